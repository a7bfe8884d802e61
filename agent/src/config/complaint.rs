//! What is wrong with a configuration, and where: the words a person reads.
//!
//! Collects, places and sorts complaints. Never decides what is valid.

use std::{collections::BTreeSet, error::Error, fmt, ops::Range, path::PathBuf};

/// Complaints kept for one file; a file with more gets a last one that says so.
const MOST: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Line, from 1; 0 if an environment variable is at fault and not the file.
    pub line: usize,
    /// Column in characters, from 1; 0 if `line` is.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, if that is known.
    pub hint: Option<String>,
}

/// A configuration that cannot be used: everything that is wrong with it, in the order of the file.
///
/// Displayed as compilers do, `path:line:column: error: ..`, a hint on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub complaints: Vec<Complaint>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, complaint) in self.complaints.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Complaint {
                line,
                column,
                message,
                hint,
            } = complaint;
            if *line == 0 {
                write!(f, "environment: error: {message}")?;
            } else {
                write!(f, "{}:{line}:{column}: error: {message}", self.path.display())?;
            }
            if let Some(hint) = hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl Error for Invalid {}

/// The complaints about one text, as they are found.
pub(super) struct Complaints<'t> {
    text: &'t str,
    found: Vec<Complaint>,
    /// Lines that could not be read at all: nothing else is said about them.
    broken: BTreeSet<usize>,
    more: bool,
}

impl<'t> Complaints<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
            broken: BTreeSet::new(),
            more: false,
        }
    }

    /// What is written at `span`.
    pub(super) fn written(&self, span: Range<usize>) -> &'t str {
        self.text.get(span).unwrap_or_default()
    }

    /// About what is written at `offset` (bytes).
    pub(super) fn at(&mut self, offset: usize, message: impl Into<String>, hint: Option<String>) {
        if self.more {
            return;
        }
        let (line, column) = position(self.text, offset);
        if !self.broken.contains(&line) {
            self.push(line, column, message.into(), hint);
        }
    }

    /// About a line that cannot be read.
    pub(super) fn broken(&mut self, offset: usize, message: impl Into<String>, hint: Option<String>) {
        self.at(offset, message, hint);
        if !self.more {
            self.broken.insert(self.line(offset));
        }
    }

    /// About an environment variable.
    pub(super) fn variable(&mut self, message: impl Into<String>, hint: Option<String>) {
        self.push(0, 0, message.into(), hint);
    }

    /// Line of `offset` (bytes), from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        position(self.text, offset).0
    }

    /// Whether a line could not be read, so that a setting may be missing only because of that.
    pub(super) fn any_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Whether so much is wrong that looking further serves nobody.
    pub(super) const fn is_full(&self) -> bool {
        self.more
    }

    /// `value` if there was no complaint.
    pub(super) fn finish<T>(mut self, path: impl Into<PathBuf>, value: T) -> Result<T, Invalid> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort_by_key(|complaint| (complaint.line, complaint.column));
        if self.more
            && let Some(last) = self.found.last_mut()
        {
            last.message.push_str(" (and more: the rest is left out)");
        }
        Err(Invalid {
            path: path.into(),
            complaints: self.found,
        })
    }

    fn push(&mut self, line: usize, column: usize, message: String, hint: Option<String>) {
        if self.found.len() == MOST {
            self.more = true;
            return;
        }
        self.found.push(Complaint {
            line,
            column,
            message,
            hint,
        });
    }
}

/// Line and column, from 1, of `offset` bytes; an offset behind the last line means that line's end.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let end = offset.min(text.trim_end_matches(['\r', '\n']).len());
    let before = &text[..text.floor_char_boundary(end)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.bytes().filter(|&byte| byte == b'\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// `text` in backticks, on one line and of bounded length.
pub(super) fn quote(text: &str) -> String {
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
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 2.max(candidate.len() / 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}
