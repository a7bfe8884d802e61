//! The state that outlives the agent, in `STATE_DIR/state`: what an operator ordered, and what it was doing last.
//!
//! ```text
//! SCHEMA=2
//! LAST_ACTIVITY=1795343400
//! SLEEP_PENDING=false
//! ..
//! HOLD_BY='root (pid 812)'
//! END=1
//! ```
//!
//! Lines a shell can source and a person can read; the file is replaced as a whole and its last line proves that it is complete. The agent
//! is the only writer ([`crate::lock`]). The seconds since 1970 are for people: nothing is decided by them. Plain data in and out; never
//! reads a clock, never panics on what it finds.

mod text;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use atomic_write_file::{AtomicWriteFile, unix::OpenOptionsExt as _};

pub use self::text::{StateError, parse, render};
use crate::{clock::BootTime, energy::Account};

/// Where the agent keeps its state unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/vmstation/autosleep";
/// Name of the file in it.
const FILE: &str = "state";
/// What a file that cannot be used is renamed to.
const CORRUPT: &str = "state.corrupt";
/// More than any state file has, bytes.
const MAX_SIZE: u64 = 64 << 10;

/// What is kept over a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SavedState {
    /// Last activity, seconds since 1970. For people.
    pub last_activity: u64,
    /// Whether the grace period or more was reached. For people.
    pub sleep_pending: bool,
    /// Whether the host may sleep: configuration and operator together. For people; see `disabled_by_operator`.
    pub sleep_enabled: bool,
    /// Last check, seconds since 1970. For people.
    pub last_check: u64,
    /// The same in the clock that decides; `None` in a file of the shell scripts.
    pub boot: Option<SavedBoot>,
    /// The hold in force.
    pub hold: Option<SavedHold>,
    /// Suspends that failed in a row.
    pub failures: u32,
    /// Whether an operator said `ctl disable`.
    pub disabled_by_operator: bool,
    /// What came of all sleeps so far; time asleep kept to the millisecond, rounded down.
    pub account: Account,
    /// Sleeps in a row that ended within a minute.
    pub short_sleeps: u32,
    /// Whether too many of those switched sleeping off.
    pub disabled_by_wake_loop: bool,
}

/// Which boot the file was written in, and its last activity there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBoot {
    /// `/proc/sys/kernel/random/boot_id`.
    pub id: String,
    /// Last activity; kept to the millisecond, rounded down.
    pub last_activity: BootTime,
}

/// A hold that was in force when the file was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHold {
    /// When it ends, in the boot of [`SavedBoot::id`]; kept to the millisecond, rounded down.
    pub until: BootTime,
    /// Seconds that were left when the file was written: all that is known of its end after a reboot.
    pub seconds: u64,
    /// Who set it.
    pub by: String,
    /// Why; empty if not said.
    pub reason: String,
}

/// The state file of one folder.
#[derive(Clone, Debug)]
pub struct StateFile {
    folder: PathBuf,
}

/// What was found at the start. Only [`Loaded::Restored`] may shorten the idle time.
#[derive(Debug)]
pub enum Loaded {
    /// No file.
    Fresh,
    /// The state as it was saved.
    Restored(SavedState),
    /// A file that cannot be used. Start as active.
    Corrupt {
        /// Where it was set aside; `None` if it could not be renamed.
        kept_as: Option<PathBuf>,
        /// What is wrong with it.
        why: StateError,
    },
    /// A file that could not be read. It is left where it is. Start as active.
    Unreadable(io::Error),
}

impl SavedBoot {
    /// Whether the boot `boot_id` is this one; an empty id (it could not be read) is of no known boot.
    fn is(&self, boot_id: &str) -> bool {
        !boot_id.is_empty() && self.id == boot_id
    }
}

impl SavedState {
    /// Last activity as a time of the boot `boot_id`; `None` if it was in another one.
    pub fn last_activity_in(&self, boot_id: &str) -> Option<BootTime> {
        self.boot
            .as_ref()
            .filter(|boot| boot.is(boot_id))
            .map(|boot| boot.last_activity)
    }

    /// How long the hold lasts from `now` in the boot `boot_id`; `None` if there is none or it has ended. After a reboot, what was left at
    /// the last save: a hold may end later than ordered, never earlier.
    pub fn hold_left(&self, boot_id: &str, now: BootTime) -> Option<Duration> {
        let hold = self.hold.as_ref()?;
        let same_boot = self.boot.as_ref().is_some_and(|boot| boot.is(boot_id));
        let left = if same_boot {
            hold.until.since(now)
        } else {
            Duration::from_secs(hold.seconds)
        };
        (left > Duration::ZERO).then_some(left)
    }
}

impl StateFile {
    /// The state file in `folder`, which is made (0755) if there is none.
    ///
    /// # Errors
    /// If the folder is missing and cannot be made. One that cannot be written to is found out by [`StateFile::save`].
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        Ok(Self { folder: folder.into() })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Reads it; sets it aside as `state.corrupt` (replacing an older one) if it cannot be used.
    pub fn load(&self) -> Loaded {
        let text = match read_bounded(&self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Fresh,
            Err(error) => return Loaded::Unreadable(error),
        };
        let parsed = match String::from_utf8(text) {
            Ok(text) => parse(&text),
            Err(_) => Err(StateError::NotText),
        };
        match parsed {
            Ok(state) => Loaded::Restored(state),
            Err(why) => {
                let kept_as = self.folder.join(CORRUPT);
                Loaded::Corrupt {
                    kept_as: fs::rename(self.path(), &kept_as).is_ok().then_some(kept_as),
                    why,
                }
            }
        }
    }

    /// Replaces it: temporary file, fsync, rename, fsync of the folder. A power cut leaves the old file or the new one.
    ///
    /// # Errors
    /// What the file system says (full, read-only, ..); the file is then the old one.
    pub fn save(&self, state: &SavedState) -> io::Result<()> {
        let mut file = AtomicWriteFile::options()
            .preserve_mode(false)
            .preserve_owner(false)
            .mode(0o644)
            .open(self.path())?;
        file.write_all(render(state).as_bytes())?;
        file.commit()
    }
}

/// The content, or one byte more than allowed of it: enough to be refused as incomplete.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    file.take(MAX_SIZE + 1).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::{fs, io, os::unix::fs::PermissionsExt as _, time::Duration};

    use super::{Loaded, SavedBoot, SavedHold, SavedState, StateError, StateFile, render};
    use crate::{clock::BootTime, energy::Account};

    fn state() -> SavedState {
        SavedState {
            last_activity: 1_795_343_400,
            sleep_enabled: true,
            boot: Some(SavedBoot {
                id: "5d1b7c1e-0f5e-4a0b-9c52-0d4f7f1f3f11".into(),
                last_activity: BootTime(Duration::from_millis(812_004)),
            }),
            hold: Some(SavedHold {
                until: BootTime(Duration::from_secs(900)),
                seconds: 60,
                by: "root (pid 812)".into(),
                reason: "$(reboot)".into(),
            }),
            account: Account {
                sleeps: 12,
                asleep: Duration::from_millis(298_800_250),
                saved_joules: Some(18_720_000.5),
                ..Account::default()
            },
            ..SavedState::default()
        }
    }

    fn opened() -> (tempfile::TempDir, StateFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::open(&folder.path().join("made/here")).unwrap();
        (folder, file)
    }

    #[test]
    fn a_first_start_finds_nothing_and_a_second_what_was_saved() {
        let (_folder, file) = opened();
        assert!(matches!(file.load(), Loaded::Fresh));
        file.save(&SavedState::default()).unwrap();
        file.save(&state()).unwrap();
        assert!(matches!(file.load(), Loaded::Restored(found) if found == state()));
        assert_eq!(
            file.path().metadata().unwrap().permissions().mode() & 0o777 & !0o022,
            0o644
        );
        let left_behind = fs::read_dir(file.path().parent().unwrap()).unwrap().count();
        assert_eq!(left_behind, 1, "temporary files stay behind");
    }

    /// A power cut during [`StateFile::save`] leaves the temporary file at any length, and the name with the old file or the new one.
    #[test]
    fn f1_a_power_cut_while_saving_leaves_the_old_file_or_the_new_one() {
        let (_folder, file) = opened();
        let new = render(&state());
        file.save(&SavedState::default()).unwrap();
        for length in 0..=new.len() {
            let torn = file.path().with_file_name(format!(".state.{length:06}"));
            fs::write(&torn, &new.as_bytes()[..length]).unwrap();
            assert!(matches!(file.load(), Loaded::Restored(found) if found == SavedState::default()));
        }
        file.save(&state()).unwrap();
        assert!(matches!(file.load(), Loaded::Restored(found) if found == state()));
    }

    /// A file system that loses the end of a file all the same is found out.
    #[test]
    fn f1_a_file_torn_at_any_byte_is_set_aside_and_never_taken_for_a_state() {
        let (_folder, file) = opened();
        let whole = render(&state());
        for length in 0..whole.len() {
            // The rest missing, or there and never written.
            let mut zeroed = whole.clone().into_bytes();
            zeroed[length..].fill(0);
            for content in [&whole.as_bytes()[..length], &zeroed] {
                fs::write(file.path(), content).unwrap();
                let Loaded::Corrupt { kept_as, .. } = file.load() else {
                    panic!("{length} bytes were taken for a state");
                };
                assert_eq!(fs::read(kept_as.unwrap()).unwrap(), content);
            }
        }
        fs::write(file.path(), &whole).unwrap();
        assert!(matches!(file.load(), Loaded::Restored(found) if found == state()));
    }

    #[test]
    fn f2_garbage_is_set_aside_and_kept() {
        let whole = render(&state());
        let contents: [&[u8]; 5] = [
            b"",
            &[0; 512],
            b"\xff\xfe\n",
            &whole.as_bytes()[..whole.len() / 2],
            &[b'\n'; 70_000],
        ];
        for content in contents {
            let (_folder, file) = opened();
            fs::write(file.path(), content).unwrap();
            let Loaded::Corrupt { kept_as, .. } = file.load() else {
                panic!("{content:?} was taken for a state");
            };
            assert_eq!(fs::read(kept_as.unwrap()).unwrap(), content);
            assert!(matches!(file.load(), Loaded::Fresh));
        }
    }

    #[test]
    fn f2_a_newer_file_is_set_aside_and_named() {
        let (_folder, file) = opened();
        fs::write(file.path(), "SCHEMA=3\nSOMETHING_ELSE=1\nEND=1\n").unwrap();
        assert!(matches!(
            file.load(),
            Loaded::Corrupt {
                why: StateError::Newer { schema: 3 },
                ..
            }
        ));
    }

    #[test]
    fn f3_a_folder_that_cannot_take_the_file_is_an_error_and_the_file_stays() {
        let (_folder, file) = opened();
        fs::create_dir(file.path()).unwrap();
        assert!(file.save(&state()).is_err());
        assert!(matches!(file.load(), Loaded::Unreadable(_)));
        let gone = StateFile::open(&file.path()).unwrap();
        fs::remove_dir(file.path()).unwrap();
        assert_eq!(gone.save(&state()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_hold_ends_as_ordered_and_after_a_reboot_not_earlier() {
        let state = state();
        let boot = state.boot.clone().unwrap().id;
        let at = |seconds| BootTime(Duration::from_secs(seconds));
        assert_eq!(state.hold_left(&boot, at(890)), Some(Duration::from_secs(10)));
        assert_eq!(state.hold_left(&boot, at(900)), None);
        assert_eq!(state.hold_left("another boot", at(5000)), Some(Duration::from_secs(60)));
        assert_eq!(
            state.last_activity_in(&boot),
            Some(BootTime(Duration::from_millis(812_004)))
        );
        assert_eq!(state.last_activity_in("another boot"), None);
        assert_eq!(SavedState::default().hold_left(&boot, at(0)), None);

        let mut unknown = state;
        unknown.boot = Some(SavedBoot {
            id: String::new(),
            last_activity: at(5),
        });
        assert_eq!(unknown.last_activity_in(""), None);
        assert_eq!(unknown.hold_left("", at(5000)), Some(Duration::from_secs(60)));
    }
}
