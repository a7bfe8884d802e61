//! The file behind `power.log`: one `write` a line, rotation by size, and patience with a folder that cannot be written to.
//!
//! Opened for every line, which is rare, so that an outside `logrotate` or a removed folder needs no signal. Reads no clock.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock::BootTime;

const FILE: &str = "power.log";
/// Time between two tries while the file cannot be written.
const RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct LogFile {
    folder: PathBuf,
    max_size: u64,
    retention: u32,
    trouble: Option<Trouble>,
    /// Whether the last line was cut short (full disk), so that the next one must begin with a line feed.
    torn: bool,
}

/// Lines do not get through.
#[derive(Debug)]
struct Trouble {
    tried: BootTime,
    lost: u64,
}

/// What became of a line.
#[derive(Debug)]
pub(super) enum Outcome {
    Written,
    /// Written, the first after `lost` that were not.
    Recovered {
        lost: u64,
    },
    /// The first that could not be written.
    Failed {
        path: PathBuf,
        error: io::Error,
    },
    /// Not written either.
    StillFailing,
}

impl LogFile {
    /// `max_size` in bytes; `retention` is the number of rotated files kept.
    pub(super) fn new(folder: PathBuf, max_size: u64, retention: u32) -> Self {
        Self {
            folder,
            max_size,
            retention,
            trouble: None,
            torn: false,
        }
    }

    /// Appends a line, which ends with a line feed.
    pub(super) fn append(&mut self, line: &str, now: BootTime) -> Outcome {
        if let Some(trouble) = &mut self.trouble
            && now.since(trouble.tried) < RETRY
        {
            trouble.lost += 1;
            return Outcome::StillFailing;
        }
        match (self.write(line), &mut self.trouble) {
            (Ok(()), None) => Outcome::Written,
            (Ok(()), Some(Trouble { lost, .. })) => {
                let lost = *lost;
                self.trouble = None;
                Outcome::Recovered { lost }
            }
            (Err(error), None) => {
                self.trouble = Some(Trouble { tried: now, lost: 1 });
                let path = self.folder.join(FILE);
                Outcome::Failed { path, error }
            }
            (Err(_), Some(trouble)) => {
                trouble.tried = now;
                trouble.lost += 1;
                Outcome::StillFailing
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let path = self.folder.join(FILE);
        let mut file = self.open(&path)?;
        let size = file.metadata()?.len();
        if size > 0 && size.saturating_add(line.len() as u64) > self.max_size {
            self.rotate(&path)?;
            file = self.open(&path)?;
        }
        let whole = if self.torn { format!("\n{line}") } else { line.into() };
        let written = file.write(whole.as_bytes())?;
        self.torn = written > 0 && written < whole.len();
        match written == whole.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.folder)?;
        OpenOptions::new().append(true).create(true).mode(0o644).open(path)
    }

    /// Renames `power.log` to `power.log.1`, `.1` to `.2` and so on; the last one kept makes room.
    fn rotate(&self, path: &Path) -> io::Result<()> {
        if self.retention == 0 {
            return fs::remove_file(path);
        }
        let numbered = |number: u32| self.folder.join(format!("{FILE}.{number}"));
        let first_free = (1..self.retention)
            .find(|number| !numbered(*number).exists())
            .unwrap_or(self.retention);
        for number in (1..first_free).rev() {
            fs::rename(numbered(number), numbered(number + 1))?;
        }
        fs::rename(path, numbered(1))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path, time::Duration};

    use super::{LogFile, Outcome};
    use crate::clock::BootTime;

    fn at(seconds: u64) -> BootTime {
        BootTime(Duration::from_secs(seconds))
    }

    fn files(folder: &Path) -> BTreeMap<String, String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect()
    }

    /// Ten lines of 4 bytes in files of 8.
    fn rotated(retention: u32) -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(folder.path().into(), 8, retention);
        for number in 0..10 {
            assert!(matches!(log.append(&format!("{number:03}\n"), at(0)), Outcome::Written));
        }
        files(folder.path())
    }

    fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files
            .iter()
            .map(|(name, text)| ((*name).into(), (*text).into()))
            .collect()
    }

    #[test]
    fn rotates_above_the_size_and_keeps_so_many() {
        assert_eq!(rotated(0), expected(&[("power.log", "008\n009\n")]));
        assert_eq!(
            rotated(1),
            expected(&[("power.log", "008\n009\n"), ("power.log.1", "006\n007\n")])
        );
        assert_eq!(
            rotated(2),
            expected(&[
                ("power.log", "008\n009\n"),
                ("power.log.1", "006\n007\n"),
                ("power.log.2", "004\n005\n")
            ])
        );
        assert_eq!(rotated(u32::MAX).len(), 5);
    }

    #[test]
    fn a_line_longer_than_the_size_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(folder.path().into(), 8, 3);
        for line in ["a long first line\n", "b\n"] {
            assert!(matches!(log.append(line, at(0)), Outcome::Written));
        }
        let kept = expected(&[("power.log", "b\n"), ("power.log.1", "a long first line\n")]);
        assert_eq!(files(folder.path()), kept);
    }

    #[test]
    fn a_file_taken_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(folder.path().join("log"), 1 << 20, 3);
        assert!(matches!(log.append("a\n", at(0)), Outcome::Written));
        fs::remove_dir_all(folder.path().join("log")).unwrap();
        assert!(matches!(log.append("b\n", at(0)), Outcome::Written));
        assert_eq!(files(&folder.path().join("log")), expected(&[("power.log", "b\n")]));
    }

    #[test]
    fn trouble_is_told_once_tried_again_and_its_end_told() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("log");
        fs::write(&in_the_way, "").unwrap();
        let mut log = LogFile::new(in_the_way.clone(), 1 << 20, 3);
        assert!(matches!(log.append("a\n", at(100)), Outcome::Failed { .. }));
        assert!(matches!(log.append("b\n", at(101)), Outcome::StillFailing));
        assert!(matches!(log.append("c\n", at(160)), Outcome::StillFailing));
        fs::remove_file(&in_the_way).unwrap();
        assert!(matches!(log.append("d\n", at(219)), Outcome::StillFailing));
        assert!(!in_the_way.exists());
        assert!(matches!(log.append("e\n", at(220)), Outcome::Recovered { lost: 4 }));
        assert_eq!(files(&in_the_way), expected(&[("power.log", "e\n")]));
        assert!(matches!(log.append("f\n", at(220)), Outcome::Written));
    }
}
