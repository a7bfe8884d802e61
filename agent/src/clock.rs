//! The one clock of the agent: `CLOCK_BOOTTIME`, which counts through suspend and never jumps with the wall clock; and an alarm on it.
//!
//! Decisions take a [`BootTime`] as an argument; only the driver and the sensors read it. The wall clock is for showing times to
//! people, in `power_log` and nowhere else.

use std::{fmt, io, os::fd::AsFd as _, time::Duration};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
};

use crate::readable::Readable;

/// A moment: time since boot, suspended time included (`CLOCK_BOOTTIME`, see clock_gettime(2)). Meaningless after a reboot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// Reads the clock. Not for anything that decides.
    ///
    /// # Panics
    /// Never on Linux 2.6.39 or later, which has this clock.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        Self(Duration::from(time))
    }

    /// From a kernel timestamp in ns (`bpf_ktime_get_boot_ns`).
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }

    /// Time since `earlier`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `by` later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// The moment `by` earlier; boot at the earliest.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

impl fmt::Display for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:.3}s", self.0.as_secs_f64())
    }
}

/// One alarm on the same clock (timerfd_create(2)): a single wake-up of the process for each time it is set.
pub struct Alarm {
    timer: TimerFd,
    readable: Readable,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// No descriptor, or no runtime that can wait for it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(timerfd::ClockId::CLOCK_BOOTTIME, flags)?;
        let readable = Readable::new(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, readable })
    }

    /// Goes off at `at`, at once if that is past, in place of any time set before.
    ///
    /// # Errors
    /// What timerfd_settime(2) says.
    pub fn set(&self, at: BootTime) -> io::Result<()> {
        // An absolute time of zero would switch it off.
        let at = Expiration::OneShot(TimeSpec::from(at.0.max(Duration::from_nanos(1))));
        Ok(self.timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// Waits until it goes off. Cancel-safe: it then has still gone off.
    pub async fn gone_off(&self) {
        self.readable.ready().await;
    }
}
