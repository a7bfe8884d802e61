//! A wakeup source of the kernel's that we hold: raised, it aborts a suspend that is under way.
//!
//! ```text
//! raise() ─> eventfd readable ─> ep_poll_callback ─> ep_pm_stay_awake ─> __pm_stay_awake(wakeup source)    fs/eventpoll.c
//!                                             pm_wakeup_pending() is true once wakeup_count is armed       drivers/base/power/wakeup.c
//!                      try_to_freeze_tasks, dpm_suspend, suspend_enter give up with EBUSY                  kernel/power
//! ```
//!
//! The flag that makes it so is `EPOLLWAKEUP` (epoll_ctl(2)). The source is released by an epoll_wait(2) that follows the reading of what
//! was ready.
//!
//! A suspend that was aborted disarms `wakeup_count`, and systemd-sleep, whose write of `mem` failed, goes on to `standby` and `freeze`
//! unless systemd-sleep.conf(5) has `SuspendState=mem`: without that setting a veto may end in suspend-to-idle.
//!
//! Made for one attempt and dropped with it, which unregisters the sources. Never waits.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};

/// `CAP_BLOCK_SUSPEND` (capabilities(7), linux/capability.h). Without it the kernel drops `EPOLLWAKEUP` without a word.
const CAP_BLOCK_SUSPEND: u32 = 36;

/// The wakeup sources; see the module.
#[derive(Debug)]
pub struct Veto {
    epoll: Epoll,
    event: EventFd,
    also: Vec<OwnedFd>,
    powerless: Option<String>,
}

impl Veto {
    /// A veto that is not raised.
    ///
    /// # Errors
    /// What epoll_create1(2), epoll_ctl(2) or eventfd(2) says.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&event, holds_awake())?;
        Ok(Self {
            epoll,
            event,
            also: Vec::new(),
            powerless: powerless(),
        })
    }

    /// Why raising it has no effect, if it has none.
    pub fn powerless(&self) -> Option<&str> {
        self.powerless.as_deref()
    }

    /// Makes `fd` raise it by itself whenever it is readable. It stays raised until `fd` is read empty and [`Self::lower`] is called.
    ///
    /// # Errors
    /// What dup(2) or epoll_ctl(2) says.
    pub fn also(&mut self, fd: impl AsFd) -> io::Result<()> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        self.epoll.add(&fd, holds_awake())?;
        self.also.push(fd);
        Ok(())
    }

    /// From here on no suspend whose `wakeup_count` was armed before goes through. Raising it twice is raising it once.
    ///
    /// # Errors
    /// What write(2) says.
    pub fn raise(&self) -> io::Result<()> {
        self.event.write(1)?;
        Ok(())
    }

    /// Takes [`Self::raise`] back, and releases what [`Self::also`] held and was read empty. Whether anything still holds the host awake.
    /// Lowering one that is not raised does nothing.
    ///
    /// # Errors
    /// What read(2) or epoll_wait(2) says; it may then still be raised.
    pub fn lower(&self) -> io::Result<bool> {
        match self.event.read() {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        self.is_raised()
    }

    /// Whether anything holds the host awake. Looking at it is what releases what does not any more.
    ///
    /// # Errors
    /// What epoll_wait(2) says.
    pub fn is_raised(&self) -> io::Result<bool> {
        // Room for all of them: what is not looked at is not released.
        let mut ready = vec![EpollEvent::empty(); 1 + self.also.len()];
        Ok(self.epoll.wait(&mut ready, EpollTimeout::ZERO)? > 0)
    }
}

fn holds_awake() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLWAKEUP, 0)
}

/// Why `EPOLLWAKEUP` would be dropped, if it would.
fn powerless() -> Option<String> {
    const STATUS: &str = "/proc/self/status";
    match fs::read_to_string(STATUS).map(|status| may_block_suspend(&status)) {
        Ok(Some(true)) => None,
        Ok(Some(false)) => Some(
            "CAP_BLOCK_SUSPEND is missing: activity during a suspend cannot abort it; give the unit the capability"
                .into(),
        ),
        Ok(None) => Some(format!(
            "{STATUS} has no CapEff line: whether a suspend can be aborted is unknown"
        )),
        Err(error) => Some(format!(
            "read {STATUS}: {error}: whether a suspend can be aborted is unknown"
        )),
    }
}

/// Whether the effective capabilities (`CapEff` of proc_pid_status(5)) hold `CAP_BLOCK_SUSPEND`; `None` if they are not told.
fn may_block_suspend(status: &str) -> Option<bool> {
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).ok()?;
    Some(capabilities >> CAP_BLOCK_SUSPEND & 1 == 1)
}

#[cfg(test)]
mod tests {
    use nix::unistd::{pipe, read, write};

    use super::*;

    #[test]
    fn s1_raised_until_lowered() {
        let veto = Veto::new().unwrap();
        assert!(!veto.is_raised().unwrap());
        veto.raise().unwrap();
        veto.raise().unwrap();
        assert!(veto.is_raised().unwrap());
        assert!(!veto.lower().unwrap());
        assert!(!veto.is_raised().unwrap());
        assert!(!veto.lower().unwrap());
    }

    #[test]
    fn s1_another_descriptor_raises_it_by_itself() {
        let (reader, writer) = pipe().unwrap();
        let mut veto = Veto::new().unwrap();
        veto.also(&reader).unwrap();
        write(&writer, b"x").unwrap();
        assert!(veto.is_raised().unwrap());
        assert!(veto.lower().unwrap(), "it is still to be read");
        read(&reader, &mut [0; 8]).unwrap();
        assert!(!veto.is_raised().unwrap());
    }

    #[test]
    fn the_capability_is_bit_36() {
        assert_eq!(may_block_suspend("Name:\tx\nCapEff:\t0000001000000000\n"), Some(true));
        assert_eq!(may_block_suspend("CapEff:\t000001efffffffff\n"), Some(false));
        assert_eq!(may_block_suspend("Name:\tx\n"), None);
    }
}
