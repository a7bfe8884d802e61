//! The journal of a sleep attempt, in `STATE_DIR/journal`: what was begun and not yet undone, so that the next process can undo it.
//!
//! One JSON document, there only while an attempt is under way, and replaced as a whole before each step. It outlives the process, and
//! that is all it has to outlive: what it lists of the kernel is gone after a reboot. So it is renamed into place but not forced to the
//! disk, which would cost each attempt several times the time of everything else. Plain data; never reads a clock.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    attempt::{Plan, Step},
    coordinator::Grant,
    suspend::rtc::Alarm,
};

const FILE: &str = "journal";
const NEXT: &str = "journal.next";
const CORRUPT: &str = "journal.corrupt";
/// More than any journal has, bytes.
const MAX_SIZE: u64 = 64 << 10;

/// An attempt, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `/proc/sys/kernel/random/boot_id` of the boot it was made in.
    pub boot_id: String,
    /// Time the host had been suspended in that boot when the attempt began.
    pub suspended_before: Duration,
    /// What was wanted.
    pub plan: Plan,
    /// The step that is under way or was the last.
    pub step: Step,
    /// Steps begun and not undone.
    pub begun: Vec<Step>,
    /// The alarm that was set, or is about to be.
    pub alarm: Option<Alarm>,
    /// The leave that was given, if one is needed.
    pub leave: Option<Grant>,
}

/// The journal of one folder.
#[derive(Clone, Debug)]
pub struct Journal {
    folder: PathBuf,
}

/// Why a journal that is there cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("cannot read the journal {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not one; it was set aside.
    #[error("the journal {} is no journal of this version, kept as {CORRUPT}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Journal {
    /// In `folder`, which must exist by the time of the first [`Journal::write`].
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// What a process left that died in an attempt.
    ///
    /// # Errors
    /// A journal that is there and cannot be used.
    pub fn load(&self) -> Result<Option<Record>, JournalError> {
        let path = self.folder.join(FILE);
        let size = match fs::metadata(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map(|metadata| metadata.len()),
        };
        let text = size.and_then(|size| {
            if size > MAX_SIZE {
                return Ok(Vec::new());
            }
            fs::read(&path)
        });
        let text = text.map_err(|source| JournalError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map(Some).map_err(|source| {
            // If it cannot be renamed, the next attempt replaces it.
            let _kept = fs::rename(&path, self.folder.join(CORRUPT));
            JournalError::Corrupt { path, source }
        })
    }

    /// Replaces it.
    ///
    /// # Errors
    /// What the file system says; the journal is then the one before.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let next = self.folder.join(NEXT);
        fs::write(&next, serde_json::to_vec(record)?)?;
        fs::rename(next, self.folder.join(FILE))
    }

    /// Nothing is left to undo.
    ///
    /// # Errors
    /// What the file system says; the next process will undo once more what is undone.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.folder.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::suspend::rtc::RtcTime;

    fn record() -> Record {
        Record {
            boot_id: "a boot".into(),
            suspended_before: Duration::from_millis(1_500),
            plan: Plan {
                hooks: true,
                alarm: true,
            },
            step: Step::WakeupCount,
            begun: vec![Step::Leave, Step::Hooks, Step::Alarm],
            alarm: Some(Alarm::Ours {
                rings: RtcTime(7),
                displaced: Some(RtcTime(9)),
            }),
            leave: Some(Grant {
                number: 7,
                until: Duration::from_secs(90),
            }),
        }
    }

    fn folder() -> (TempDir, Journal) {
        let folder = TempDir::new().unwrap();
        let journal = Journal::new(folder.path());
        (folder, journal)
    }

    /// That text is no journal, and is kept for who wants to know.
    fn assert_set_aside(text: &[u8]) {
        let (folder, journal) = folder();
        fs::write(folder.path().join(FILE), text).unwrap();
        let loaded = journal.load();
        assert!(matches!(loaded, Err(JournalError::Corrupt { .. })), "{loaded:?}");
        assert_eq!(fs::read(folder.path().join(CORRUPT)).unwrap(), text);
        assert_eq!(journal.load().unwrap(), None, "it is told once");
        journal.write(&record()).unwrap();
        assert_eq!(journal.load().unwrap(), Some(record()));
    }

    #[test]
    fn f1_what_was_written_last_is_read() {
        let (_folder, journal) = folder();
        assert_eq!(journal.load().unwrap(), None);
        journal.write(&record()).unwrap();
        let next = Record {
            step: Step::Suspend,
            alarm: None,
            ..record()
        };
        journal.write(&next).unwrap();
        assert_eq!(journal.load().unwrap(), Some(next));
        journal.clear().unwrap();
        assert_eq!(journal.load().unwrap(), None);
        journal.clear().unwrap();
    }

    #[test]
    fn f1_a_process_that_dies_while_it_writes_leaves_the_journal_before() {
        let (folder, journal) = folder();
        journal.write(&record()).unwrap();
        let half = &serde_json::to_vec(&record()).unwrap()[..40];
        fs::write(folder.path().join(NEXT), half).unwrap();
        assert_eq!(journal.load().unwrap(), Some(record()));
        let next = Record {
            step: Step::Suspend,
            ..record()
        };
        journal.write(&next).unwrap();
        assert_eq!(journal.load().unwrap(), Some(next));
    }

    #[test]
    fn f3_a_journal_that_cannot_be_replaced_is_the_one_before() {
        let (folder, journal) = folder();
        journal.write(&record()).unwrap();
        fs::create_dir(folder.path().join(NEXT)).unwrap();
        let next = Record {
            step: Step::Suspend,
            ..record()
        };
        journal.write(&next).unwrap_err();
        assert_eq!(journal.load().unwrap(), Some(record()));
    }

    #[test]
    fn f2_a_torn_journal_is_set_aside() {
        let whole = serde_json::to_vec(&record()).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            assert_set_aside(&whole[..length]);
        }
    }

    #[test]
    fn f2_garbage_is_set_aside() {
        assert_set_aside(b"\0\xff\xfe garbage");
        assert_set_aside(&vec![b'['; usize::try_from(MAX_SIZE).unwrap() + 1]);
    }

    #[test]
    fn f2_the_journal_of_a_newer_agent_is_set_aside() {
        let whole = serde_json::to_value(record()).unwrap();
        let mut another_field = whole.clone();
        another_field["leave_id"] = 7.into();
        assert_set_aside(another_field.to_string().as_bytes());
        let mut another_step = whole;
        another_step["begun"] = serde_json::json!(["leave", "drain"]);
        assert_set_aside(another_step.to_string().as_bytes());
    }

    #[test]
    fn f2_a_journal_that_cannot_be_read_is_no_missing_one() {
        let (folder, journal) = folder();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        let loaded = journal.load();
        assert!(matches!(loaded, Err(JournalError::Read { .. })), "{loaded:?}");
        // Nobody, not even root, gets through a link to itself.
        let around = folder.path().join("around");
        symlink(&around, &around).unwrap();
        let loaded = Journal::new(&around).load();
        assert!(matches!(loaded, Err(JournalError::Read { .. })), "{loaded:?}");
    }

    #[test]
    fn f3_a_folder_that_is_not_there_has_no_journal_and_takes_none() {
        let (folder, _) = folder();
        let nowhere = folder.path().join("nowhere");
        let journal = Journal::new(&nowhere);
        assert_eq!(journal.load().unwrap(), None);
        journal.write(&record()).unwrap_err();
        fs::write(&nowhere, "").unwrap();
        assert_eq!(journal.load().unwrap(), None);
        journal.write(&record()).unwrap_err();
    }
}
