//! The clocks: nothing else in this crate reads one.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Time since the boot of this host, its suspends included (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// This moment.
    ///
    /// # Panics
    /// Without `CLOCK_BOOTTIME` (Linux before 2.6.39).
    #[expect(clippy::expect_used, reason = "every kernel this runs on has the clock")]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME");
        Self(Duration::from(time))
    }

    /// So long after the boot.
    pub const fn from_boot(time: Duration) -> Self {
        Self(time)
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// Time since an earlier moment; zero since a later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Time for people.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place: for showing and keeping, never for deciding"
)]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}
