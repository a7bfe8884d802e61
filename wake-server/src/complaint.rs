//! What is wrong with a file that people write, and where: the words they read.
//!
//! Reads such files within bounds; collects, places and sorts complaints. Never decides what is valid.

use std::{
    fmt, fs,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

/// Complaints kept; of more than these only the number is told.
const MOST: usize = 100;

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, or `command line`.
    pub path: PathBuf,
    /// Line, from 1; 0: the whole of it.
    pub line: usize,
    /// Column in characters, from 1; 0 if `line` is. In bytes far into a long line.
    pub column: usize,
}

impl Place {
    /// All of a file, or something that is not in a file.
    pub(crate) fn whole(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            line: 0,
            column: 0,
        }
    }
}

/// `path:line`, for use within a sentence.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.line {
            0 => write!(f, "{path}"),
            line => write!(f, "{path}:{line}"),
        }
    }
}

/// One thing that is wrong.
///
/// Displayed as compilers do, `path:line:column: error: ..`, a hint on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What would be right, if that is known.
    pub hint: Option<String>,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.place)?;
        if self.place.column > 0 {
            write!(f, "{}:", self.place.column)?;
        }
        write!(f, " error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Complaints, each on a line of its own.
pub(crate) fn write_all(complaints: &[Complaint], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, complaint) in complaints.iter().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        write!(f, "{complaint}")?;
    }
    Ok(())
}

/// The complaints about one or more files, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    found: Vec<Complaint>,
    left_out: usize,
}

impl Complaints {
    pub(crate) fn add(&mut self, place: Place, message: impl Into<String>, hint: impl Into<Option<String>>) {
        if self.found.len() == MOST {
            self.left_out += 1;
            return;
        }
        self.found.push(Complaint {
            place,
            message: message.into(),
            hint: hint.into(),
        });
    }

    pub(crate) fn push(&mut self, complaint: Complaint) {
        self.add(complaint.place, complaint.message, complaint.hint);
    }

    /// All of them in the order of the files, or `value` if there is none.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, Vec<Complaint>> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort_by(|one, other| one.place.cmp(&other.place));
        if self.left_out > 0
            && let Some(last) = self.found.last_mut()
        {
            last.message
                .push_str(&format!(" (and {} more complaints, left out)", self.left_out));
        }
        Err(self.found)
    }
}

/// The text of a file, and where its lines begin.
pub(crate) struct Source<'t> {
    pub(crate) path: &'t Path,
    pub(crate) text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Source<'t> {
    pub(crate) fn new(path: &'t Path, text: &'t str) -> Self {
        let after_newline = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            path,
            text,
            starts: [0].into_iter().chain(after_newline).collect(),
        }
    }

    /// The place of what is written at `offset` (bytes).
    pub(crate) fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset.min(self.text.len()));
        let line = self.starts.partition_point(|&start| start <= offset).max(1);
        let before = &self.text[self.starts[line - 1]..offset];
        // Many places in one endless line are not each worth counting from its start.
        const LONG: usize = 4096;
        let column = if before.len() > LONG {
            before.len()
        } else {
            before.chars().count()
        };
        Place {
            path: self.path.to_owned(),
            line,
            column: column + 1,
        }
    }

    /// What is written at `span` (bytes).
    pub(crate) fn written(&self, span: Range<usize>) -> &'t str {
        self.text.get(span).unwrap_or_default()
    }
}

/// The text of a file of at most `longest` bytes, without a byte order mark.
///
/// # Errors
/// A file that cannot be read, is no file but something that may never end, is longer, or is not text.
pub(crate) fn read_text(path: &Path, longest: u64) -> Result<String, Complaint> {
    let complain = |place, message: String, hint: Option<String>| Complaint { place, message, hint };
    let whole = |message: String, hint: Option<&str>| complain(Place::whole(path), message, hint.map(str::to_owned));
    let unreadable = |error: std::io::Error| whole(format!("cannot be read: {error}"), None);
    // Opening a pipe would wait for somebody to write into it.
    let kind = fs::metadata(path).map_err(unreadable)?.file_type();
    if !kind.is_file() && path != Path::new("/dev/null") {
        return Err(whole("is not a file".into(), None));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(longest + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > longest {
        return Err(whole(
            format!("is longer than {longest} bytes"),
            Some("is it the right file?"),
        ));
    }
    let at = |before: &[u8], message: &str, hint: &str| {
        let good = String::from_utf8_lossy(before);
        let place = Source::new(path, &good).place(good.len());
        complain(place, message.into(), Some(hint.into()))
    };
    if let Some(nul) = bytes.iter().position(|&byte| byte == 0) {
        return Err(at(
            &bytes[..nul],
            "a NUL byte: this is not a text file",
            "save it as UTF-8",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        at(good, "this is not UTF-8", "save it as UTF-8")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// `text` in backticks, on one line and of bounded length.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut quoted = String::from("`");
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST {
            quoted.push('…');
            break;
        }
        if character.is_control() {
            quoted.extend(character.escape_default());
        } else {
            quoted.push(character);
        }
    }
    quoted.push('`');
    quoted
}

/// The known word that `word` was probably meant to be.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, candidate);
    let is_near = |candidate: &str| {
        distance(candidate) <= 2.max(candidate.len() / 3) || lower.len() >= 4 && candidate.starts_with(&lower)
    };
    known
        .into_iter()
        .filter(|candidate| is_near(candidate))
        .min_by_key(|candidate| distance(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], longest: u64) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, bytes).unwrap();
        read_text(&path, longest).map_err(|complaint| {
            let text = complaint.to_string();
            text.replace(&format!("{}/", folder.path().display()), "")
        })
    }

    #[test]
    fn f6_what_is_no_text_is_refused_with_its_line() {
        assert_eq!(read(b"\xef\xbb\xbfa", 9), Ok("a".into()));
        assert_eq!(
            read(b"a\nb\0c", 9),
            Err("file:2:2: error: a NUL byte: this is not a text file\n  hint: save it as UTF-8".into())
        );
        assert_eq!(
            read(b"a\nb\xff", 9),
            Err("file:2:2: error: this is not UTF-8\n  hint: save it as UTF-8".into())
        );
    }

    #[test]
    fn f6_a_file_is_read_within_bounds() {
        assert_eq!(read(b"12345", 5), Ok("12345".into()));
        assert_eq!(
            read(b"123456", 5),
            Err("file: error: is longer than 5 bytes\n  hint: is it the right file?".into())
        );
        for endless in ["/dev/zero", "/"] {
            let complaint = read_text(Path::new(endless), 5).unwrap_err();
            assert_eq!(complaint.to_string(), format!("{endless}: error: is not a file"));
        }
        assert_eq!(read_text(Path::new("/dev/null"), 5), Ok(String::new()));
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let source = Source::new(Path::new("f"), "ä=1\r\n\nb");
        let place = |offset| (source.place(offset).line, source.place(offset).column);
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(2), (1, 2));
        assert_eq!(place(1), (1, 1), "within a character");
        assert_eq!(place(6), (2, 1));
        assert_eq!(place(7), (3, 1));
        assert_eq!(place(999), (3, 2), "behind the end");
    }

    #[test]
    fn the_nearest_word_is_found_if_it_is_near() {
        let known = ["token_file", "state_dir", "wake"];
        for (word, meant) in [
            ("tokenfile", Some("token_file")),
            ("token", Some("token_file")),
            ("Wkae", Some("wake")),
            ("to", None),
            ("something", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn many_complaints_are_counted_and_not_kept() {
        let mut complaints = Complaints::default();
        for line in 0..MOST + 7 {
            complaints.add(
                Place {
                    path: "f".into(),
                    line,
                    column: 1,
                },
                "wrong",
                None,
            );
        }
        let all = complaints.finish(()).unwrap_err();
        assert_eq!(all.len(), MOST);
        assert!(all[MOST - 1].message.ends_with("(and 7 more complaints, left out)"));
    }
}
