//! Tells that logind has made or ended a session, any session. Whose it is, the processes tell.
//!
//! Watches the folder in which logind keeps its sessions, as sd_login_monitor_new(3) does: no bus, no deadline, nothing to pay where
//! there is no logind. It fills the one gap forks leave: a session without shell or command, served by the process that was there
//! before the login.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

const SESSIONS: &str = "/run/systemd/sessions";

/// The watch; closed when dropped.
#[derive(Debug)]
pub(super) struct LogindWatch(Inotify);

impl LogindWatch {
    /// `None` where there is no logind, or no inotify instance left to use.
    pub(super) fn new() -> Option<Self> {
        Self::on(Path::new(SESSIONS))
    }

    fn on(folder: &Path) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        inotify
            .add_watch(folder, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE)
            .ok()?;
        Some(Self(inotify))
    }

    /// Takes what waits. What it says is of no interest, only that it came.
    pub(super) fn drain(&self) {
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for LogindWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn wakes_for_a_session_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let (draft, session) = (folder.path().join(".#1"), folder.path().join("1"));
        let watch = LogindWatch::on(folder.path()).unwrap();
        let waiting = || watch.0.read_events().is_ok();
        fs::write(&draft, "UID=0\n").unwrap();
        assert!(!waiting());
        fs::rename(&draft, &session).unwrap();
        assert!(waiting());
        fs::remove_file(&session).unwrap();
        watch.drain();
        assert!(!waiting());
    }

    #[test]
    fn no_logind_costs_nothing() {
        assert!(LogindWatch::on(Path::new("/nonexistent/sessions")).is_none());
    }
}
