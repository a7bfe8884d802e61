//! Who objects to a sleep: inhibitors, a scheduled shutdown, a package upgrade under way. Holds no state.
//!
//! Never proceeds on doubt: what cannot be read is an objection of its own.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::{printable::printable, suspend::Logind};

/// A reason not to sleep that somebody else gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// A `block` inhibitor on `sleep` (fault S2). `delay` ones only delay, and logind waits for them.
    Inhibitor {
        /// Program that holds it, in its own words.
        who: String,
        /// Why, in its own words.
        why: String,
        /// Its user.
        uid: u32,
        /// Its process.
        pid: u32,
    },
    /// A shutdown is scheduled (fault S9): the host would sleep through it.
    Shutdown {
        /// `poweroff`, `reboot`, ..
        kind: String,
        /// When, in µs since 1970.
        at_us: u64,
    },
    /// Packages are being installed (fault S9).
    PackageUpgrade {
        /// The lock that says so.
        lock: PathBuf,
        /// Process that holds it and its command, where the kernel tells.
        holder: Option<(i32, String)>,
    },
    /// It cannot be found out whether there is one.
    Unknown {
        /// What was asked, and why there is no answer.
        why: String,
    },
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inhibitor { who, why, uid, pid } => {
                write!(
                    f,
                    "inhibited by {} (uid {uid}, pid {pid}): {}",
                    printable(who),
                    printable(why)
                )
            }
            Self::Shutdown { kind, at_us } => {
                write!(
                    f,
                    "a shutdown ({}) is scheduled for {} s since 1970",
                    printable(kind),
                    at_us / 1_000_000
                )
            }
            Self::PackageUpgrade {
                lock,
                holder: Some((pid, command)),
            } => {
                write!(
                    f,
                    "packages are being installed: {} (pid {pid}) holds {}",
                    printable(command),
                    lock.display()
                )
            }
            Self::PackageUpgrade { lock, holder: None } => {
                write!(f, "packages are being installed: {} is held", lock.display())
            }
            Self::Unknown { why } => write!(f, "whether anybody objects is unknown: {}", printable(why)),
        }
    }
}

/// Everybody's objections of this moment; empty if there are none. At most two calls with a deadline each, and a few microseconds.
pub async fn objections(logind: &Logind, locks: &PackageLocks) -> Vec<Objection> {
    let mut objections = Vec::new();
    match logind.inhibitors().await {
        Ok(inhibitors) => objections.extend(inhibitors.into_iter().filter_map(blocks_sleep)),
        Err(error) => objections.push(Objection::Unknown { why: error.to_string() }),
    }
    match logind.scheduled_shutdown().await {
        Ok((kind, at_us)) => objections.extend(is_scheduled(at_us).then_some(Objection::Shutdown { kind, at_us })),
        Err(error) => objections.push(Objection::Unknown { why: error.to_string() }),
    }
    objections.extend(locks.held());
    objections
}

/// Whether an inhibitor (`what, who, why, mode, uid, pid`) blocks sleep; `what` is a list with colons. `block-weak` is one that its
/// holder's user may pass; we are not that user.
fn blocks_sleep((what, who, why, mode, uid, pid): (String, String, String, String, u32, u32)) -> Option<Objection> {
    let blocks = mode != "delay" && what.split(':').any(|what| what == "sleep");
    blocks.then_some(Objection::Inhibitor { who, why, uid, pid })
}

/// Whether the time of `ScheduledShutdown` is one: logind tells 0 or `USEC_INFINITY` for none.
fn is_scheduled(at_us: u64) -> bool {
    at_us != 0 && at_us != u64::MAX
}

/// The locks of package managers.
#[derive(Clone, Debug)]
pub struct PackageLocks {
    root: PathBuf,
}

/// Record locks (fcntl(2)) that dpkg, apt and rpm hold while they work.
const RECORD_LOCKS: [&str; 6] = [
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/lock",
    "var/lib/apt/lists/lock",
    "var/cache/apt/archives/lock",
    "var/lib/rpm/.rpm.lock",
    "usr/lib/sysimage/rpm/.rpm.lock",
];

/// A file that pacman makes and removes.
const PACMAN: &str = "var/lib/pacman/db.lck";

impl PackageLocks {
    /// Those below `root`, which is `/` but in tests.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The locks that are held, and those that cannot be looked at.
    pub fn held(&self) -> Vec<Objection> {
        let records = RECORD_LOCKS.iter().filter_map(|lock| {
            let lock = self.root.join(lock);
            match holder(&lock) {
                Ok(None) => None,
                Ok(Some(pid)) => Some(Objection::PackageUpgrade {
                    holder: named(pid),
                    lock,
                }),
                Err(error) => Some(Objection::Unknown {
                    why: format!("look at the lock {}: {error}", lock.display()),
                }),
            }
        });
        records.chain(self.pacman()).collect()
    }

    fn pacman(&self) -> Option<Objection> {
        let lock = self.root.join(PACMAN);
        match lock.try_exists() {
            Ok(false) => None,
            Ok(true) => Some(Objection::PackageUpgrade { lock, holder: None }),
            Err(error) => Some(Objection::Unknown {
                why: format!("look for {}: {error}", lock.display()),
            }),
        }
    }
}

/// Process that holds a record lock on the file, if one does; 0 or less if the kernel does not name it (open file description locks,
/// another PID namespace).
fn holder(lock: &Path) -> io::Result<Option<i32>> {
    let file = match fs::File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut asked = libc::flock {
        l_type: record(libc::F_WRLCK)?,
        l_whence: record(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut asked))?;
    Ok((asked.l_type != record(libc::F_UNLCK)?).then_some(asked.l_pid))
}

/// The constants of fcntl.h have another width than the fields they are for.
fn record(constant: i32) -> Result<i16, Errno> {
    i16::try_from(constant).map_err(|_too_wide| Errno::EINVAL)
}

fn named(pid: i32) -> Option<(i32, String)> {
    if pid <= 0 {
        return None;
    }
    let command = fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_gone| "a process".into(), |name| name.trim().into());
    Some((pid, command))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn inhibitor(what: &str, mode: &str) -> Option<Objection> {
        blocks_sleep((what.into(), "backup".into(), "copying".into(), mode.into(), 0, 42))
    }

    #[test]
    fn s2_a_block_inhibitor_is_named() {
        let text = inhibitor("shutdown:sleep:idle", "block").unwrap().to_string();
        assert_eq!(text, "inhibited by backup (uid 0, pid 42): copying");
        assert!(inhibitor("sleep", "block-weak").is_some());
        assert_eq!(inhibitor("shutdown:idle:handle-lid-switch", "block"), None);
    }

    #[test]
    fn s3_a_delay_inhibitor_is_no_objection() {
        assert_eq!(inhibitor("sleep", "delay"), None);
    }

    #[test]
    fn s9_only_a_time_is_a_scheduled_shutdown() {
        assert!(!is_scheduled(0));
        assert!(!is_scheduled(u64::MAX));
        assert!(is_scheduled(1_750_000_000_000_000));
    }

    #[test]
    fn s9_a_held_lock_is_a_package_upgrade() {
        let root = TempDir::new().unwrap();
        let locks = PackageLocks::new(root.path().into());
        assert_eq!(locks.held(), []);
        let lock = root.path().join("var/lib/dpkg/lock");
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        let file = fs::File::create(&lock).unwrap();
        assert_eq!(locks.held(), [], "dpkg leaves the file behind");
        // A lock of the open file, not of the process: a process does not meet its own.
        let whole = libc::flock {
            l_type: record(libc::F_WRLCK).unwrap(),
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        assert_eq!(locks.held(), [Objection::PackageUpgrade { lock, holder: None }]);
        drop(file);
        assert_eq!(locks.held(), []);
    }

    #[test]
    fn s9_pacmans_file_is_a_package_upgrade() {
        let root = TempDir::new().unwrap();
        let lock = root.path().join(PACMAN);
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        fs::write(&lock, "").unwrap();
        let held = PackageLocks::new(root.path().into()).held();
        assert_eq!(held, [Objection::PackageUpgrade { lock, holder: None }]);
    }

    #[test]
    fn s9_a_lock_that_cannot_be_looked_at_is_an_objection() {
        let root = TempDir::new().unwrap();
        // Below a file there is no folder.
        fs::write(root.path().join("var"), "").unwrap();
        let held = PackageLocks::new(root.path().into()).held();
        assert!(matches!(held.first(), Some(Objection::Unknown { .. })), "{held:?}");
    }
}
