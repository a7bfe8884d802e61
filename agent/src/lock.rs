//! Only one agent for a state folder: a lock that ends with the process, however it ends.
//!
//! Two witnesses, because a state folder may be read-only, missing, or come and go: `flock` on `STATE_DIR/lock`, and an abstract Unix
//! socket named after the folder. An agent holds whichever it can get and gives way if either belongs to another agent. The name of an
//! abstract socket is open to every local user, so one held by neither root nor the agent's own user proves nothing and is passed over
//! while the file is locked. Decides nothing and touches nothing else.

use std::{
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt::PeerCredentials},
    unistd,
};

/// Name of the lock file in the state folder.
const FILE: &str = "lock";
/// Whoever may open the file may lock it (flock(2)): nobody else may.
const LOCK_MODE: u32 = 0o600;
/// Tries to tell a socket that is being closed from one that is held.
const TRIES: usize = 3;

/// Proof that no other agent runs on the same state folder; held until it is dropped.
#[derive(Debug)]
pub struct InstanceLock {
    file: Option<Flock<File>>,
    _name: Option<UnixListener>,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it. The agent then exits with 75 (`EX_TEMPFAIL` of sysexits.h).
    #[error("another agent{} runs on the state folder {}", pid.map_or(String::new(), |pid| format!(" (pid {pid})")), folder.display())]
    Held {
        /// Its process id, if known.
        pid: Option<u32>,
        /// The state folder.
        folder: PathBuf,
    },
    /// Neither the file nor the socket can be had, so that another agent could not be noticed.
    #[error("cannot make sure that no other agent runs on the state folder {}: {file}; {name}", folder.display())]
    Impossible {
        /// The state folder.
        folder: PathBuf,
        /// Why there is no lock on the file.
        file: io::Error,
        /// Why there is no socket.
        name: io::Error,
    },
}

impl InstanceLock {
    /// Takes the lock of `state_dir`, which is made if it is missing and can be made. Does not wait.
    ///
    /// # Errors
    /// [`LockError::Held`] if another agent has it, [`LockError::Impossible`] if that cannot be told.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let held = |pid| LockError::Held {
            pid,
            folder: state_dir.into(),
        };
        let file = match lock_file(state_dir) {
            Ok(Claim::Ours(file)) => Ok(file),
            Ok(Claim::Theirs(pid)) => return Err(held(pid)),
            Err(error) => Err(error),
        };
        let name = match claim_name(state_dir) {
            Ok(Claim::Ours(socket)) => Ok(socket),
            Ok(Claim::Theirs(pid)) => return Err(held(pid)),
            Err(error) => Err(error),
        };
        match (file, name) {
            (Err(file), Err(name)) => Err(LockError::Impossible {
                folder: state_dir.into(),
                file,
                name,
            }),
            (file, name) => Ok(Self {
                file: file.ok(),
                _name: name.ok(),
            }),
        }
    }

    /// Whether the file in the state folder is locked; if not, the folder cannot be used and the socket alone holds.
    pub const fn has_file(&self) -> bool {
        self.file.is_some()
    }
}

enum Claim<T> {
    Ours(T),
    Theirs(Option<u32>),
}

/// Locks the file and writes this process's id into it, for people. On a read-only file system a file that is there can be locked all the
/// same.
fn lock_file(folder: &Path) -> io::Result<Claim<Flock<File>>> {
    let path = folder.join(FILE);
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    let writable = made.and_then(|()| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(&path)
    });
    let mut file = match writable {
        Ok(file) => file,
        Err(why) => File::open(&path).map_err(|_| why)?,
    };
    let mut text = String::new();
    match Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => {
            // The id is a courtesy: a lock without it still holds.
            let _told = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            Ok(Claim::Ours(locked))
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let read = file.take(32).read_to_string(&mut text);
            Ok(Claim::Theirs(read.ok().and_then(|_| text.trim().parse().ok())))
        }
        Err((_, error)) => Err(error.into()),
    }
}

/// Binds the abstract name of the folder, or finds out who has it.
fn claim_name(folder: &Path) -> io::Result<Claim<UnixListener>> {
    let name = abstract_name(folder);
    let address = SocketAddr::from_abstract_name(&name)?;
    let trusted = [0, unistd::geteuid().as_raw()];
    for _ in 0..TRIES {
        match UnixListener::bind_addr(&address) {
            Ok(socket) => return Ok(Claim::Ours(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        // Without waiting: a holder that is not an agent may let its queue fill up.
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        match socket::connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => continue,
            Err(error) => return Err(error.into()),
        }
        let holder = socket::getsockopt(&socket, PeerCredentials)?;
        if trusted.contains(&holder.uid()) {
            return Ok(Claim::Theirs(u32::try_from(holder.pid()).ok().filter(|pid| *pid != 0)));
        }
        let why = format!("its name is taken by uid {}, pid {}", holder.uid(), holder.pid());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// The same for every spelling of a folder, and short enough for any folder (108 bytes, see unix(7)).
fn abstract_name(folder: &Path) -> String {
    let canonical = fs::canonicalize(folder)
        .or_else(|_| std::path::absolute(folder))
        .unwrap_or_else(|_| folder.into());
    let mut hasher = DefaultHasher::new();
    canonical.hash(&mut hasher);
    format!("vmstation-autosleep-{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::{Claim, InstanceLock, LockError, claim_name, lock_file};

    fn holder(folder: &Path) -> Option<u32> {
        match InstanceLock::acquire(folder) {
            Err(LockError::Held { pid, .. }) => pid,
            other => panic!("not held: {other:?}"),
        }
    }

    #[test]
    fn the_second_is_told_who_has_it_and_gets_it_when_that_ends() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = InstanceLock::acquire(&state).unwrap();
        assert!(first.has_file());
        assert_eq!(holder(&state), Some(std::process::id()));
        drop(first);
        drop(InstanceLock::acquire(&state).unwrap());
    }

    #[test]
    fn another_folder_has_another_lock() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let locks = folders.each_ref().map(|folder| InstanceLock::acquire(folder.path()));
        assert!(locks.iter().all(Result::is_ok));
    }

    #[test]
    fn each_witness_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(Claim::Ours(file)) = lock_file(folder.path()) else {
            panic!("no file lock");
        };
        assert_eq!(holder(folder.path()), Some(std::process::id()));
        drop(file);
        let Ok(Claim::Ours(name)) = claim_name(folder.path()) else {
            panic!("no name");
        };
        assert_eq!(holder(folder.path()), Some(std::process::id()));
        drop(name);
        assert!(InstanceLock::acquire(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_made_still_admits_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let impossible = folder.path().join("file/state");
        let first = InstanceLock::acquire(&impossible).unwrap();
        assert!(!first.has_file());
        assert_eq!(holder(&impossible), Some(std::process::id()));
    }

    #[test]
    fn another_spelling_of_the_folder_is_the_same_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let link = folder.path().join("link");
        symlink(&state, &link).unwrap();
        let _first = InstanceLock::acquire(&state).unwrap();
        assert_eq!(holder(&link), Some(std::process::id()));
    }
}
