//! Suspending the host: this file and its folder are the only ones that touch power. Never decides: it is called after everything was
//! decided and checked.
//!
//! - [`logind`] gives the order and waits for its end, [`ended`] judges that end;
//! - [`fallback`] is what systemd would do after a failure;
//! - [`power`] is `/sys/power`: sleep states, the `wakeup_count` handshake, `suspend_stats`, who woke the host;
//! - [`rtc`] is the dead man's alarm;
//! - [`veto`] lets activity after the order abort the suspend in the kernel.

pub mod ended;
pub mod fallback;
pub mod logind;
pub mod power;
pub mod rtc;
pub mod veto;

use std::{fs, io, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::clock::BootTime;
pub use ended::{Baseline, Ended, NotSlept, SUSPENDED};
pub use logind::{Logind, SuspendError};

/// Time the host has been suspended since boot: what `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` does not (clock_gettime(2)). To the
/// microsecond: the two are read one after the other.
pub fn suspended_so_far() -> Duration {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    BootTime::now().0.saturating_sub(monotonic)
}

/// The text of a kernel file without the white space around it; `None` if there is no such file.
fn read_if_there(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read {}: {error}", path.display())),
    }
}
