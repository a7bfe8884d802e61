//! Judges how a suspend ended. Pure but for [`Baseline::take`], which reads what it is judged by.
//!
//! That logind said yes, that its signal came and that the kernel counts a success prove nothing (faults S4 to S6): the proof is that
//! `CLOCK_BOOTTIME` gained on `CLOCK_MONOTONIC`.

use std::{fmt, time::Duration};

use nix::errno::Errno;

use super::{
    power::{Power, Stats},
    suspended_so_far,
};

/// `CLOCK_BOOTTIME` gaining this much on `CLOCK_MONOTONIC` is a suspend; reading them one after the other costs microseconds.
pub const SUSPENDED: Duration = Duration::from_millis(500);

/// What a suspend is judged by: taken before the order, and again when it seems over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// Time suspended since boot; see [`suspended_so_far`].
    pub slept: Duration,
    /// The kernel's account of its attempts, where it has one.
    pub stats: Option<Stats>,
}

impl Baseline {
    /// Reads the clocks and `suspend_stats`: a few microseconds.
    pub fn take(power: &Power) -> Self {
        Self {
            slept: suspended_so_far(),
            stats: power.stats(),
        }
    }
}

/// What told that the suspend is over. Says nothing about how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// `PrepareForSleep(false)` from logind.
    Signal,
    /// The clocks.
    Clocks,
    /// Neither, for this much time awake.
    Deadline(Duration),
}

/// How a suspend ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The host slept.
    Slept {
        /// How long.
        r#for: Duration,
    },
    /// It did not, whatever was reported.
    NotSlept(NotSlept),
}

/// A suspend that was ordered and did not happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotSlept {
    /// What is known of the cause, in words.
    pub why: String,
    /// Step at which the kernel failed (`freeze`, `suspend`, ..), from `suspend_stats/last_failed_step`.
    pub step: Option<String>,
    /// Error number, positive, from `suspend_stats/last_failed_errno`.
    pub errno: Option<i32>,
    /// Device that refused, from `suspend_stats/last_failed_dev`.
    pub device: Option<String>,
    /// The kernel counted a success, though no time passed (fault S5).
    pub fake: bool,
}

impl fmt::Display for NotSlept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Judges by what was read before and after.
pub fn judge(before: &Baseline, after: &Baseline, sign: Sign) -> Ended {
    let gained = after.slept.saturating_sub(before.slept);
    if gained >= SUSPENDED {
        return Ended::Slept { r#for: gained };
    }
    Ended::NotSlept(match (&before.stats, &after.stats) {
        (Some(before), Some(after)) if after.fail > before.fail => failed(after, after.success > before.success),
        (Some(before), Some(after)) if after.success > before.success => fake(),
        (Some(_), Some(_)) => NotSlept {
            why: format!("the kernel was not asked to suspend: {}", in_words(sign)),
            ..NotSlept::default()
        },
        (None, _) | (_, None) => NotSlept {
            why: format!(
                "the host did not sleep ({}), and this kernel has no /sys/power/suspend_stats to say why",
                in_words(sign)
            ),
            ..NotSlept::default()
        },
    })
}

fn failed(stats: &Stats, fake: bool) -> NotSlept {
    let mut why = "the kernel could not suspend".to_owned();
    if let Some(step) = &stats.last_failed_step {
        why.push_str(&format!(" at step `{step}`"));
    }
    if let Some(errno) = stats.last_failed_errno {
        let name = Errno::from_raw(errno);
        why.push_str(&format!(": {name:?} ({}, errno {errno})", name.desc()));
    }
    if let Some(device) = &stats.last_failed_dev {
        why.push_str(&format!(", last device that refused: {device}"));
    }
    NotSlept {
        why,
        step: stats.last_failed_step.clone(),
        errno: stats.last_failed_errno,
        device: stats.last_failed_dev.clone(),
        fake,
    }
}

fn fake() -> NotSlept {
    NotSlept {
        why: "the kernel counts a success, and yet no time was spent suspended (is /sys/power/pm_test set, or did something wake the \
              host at once?)"
            .into(),
        fake: true,
        ..NotSlept::default()
    }
}

fn in_words(sign: Sign) -> String {
    match sign {
        Sign::Signal => "logind says that it is over, and no time was spent suspended".into(),
        Sign::Clocks => "no time was spent suspended".into(),
        Sign::Deadline(limit) => format!("nothing happened within {} s", limit.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(slept_ms: u64, success: u64, fail: u64) -> Baseline {
        Baseline {
            slept: Duration::from_millis(slept_ms),
            stats: Some(Stats {
                success,
                fail,
                last_failed_dev: Some("0000:00:1f.6".into()),
                last_failed_errno: Some(16),
                last_failed_step: Some("suspend".into()),
            }),
        }
    }

    fn refused(ended: Ended) -> NotSlept {
        match ended {
            Ended::NotSlept(refused) => refused,
            Ended::Slept { r#for: time } => panic!("slept for {time:?}"),
        }
    }

    #[test]
    fn s6_the_clocks_decide_whatever_else_is_said() {
        for sign in [Sign::Signal, Sign::Clocks, Sign::Deadline(Duration::from_secs(1))] {
            let slept = judge(&at(1_000, 3, 0), &at(1_500, 3, 1), sign);
            assert_eq!(slept, Ended::Slept { r#for: SUSPENDED });
            let unknown = Baseline {
                slept: Duration::from_millis(1_499),
                stats: None,
            };
            assert!(!refused(judge(&at(1_000, 3, 0), &unknown, sign)).fake);
        }
    }

    #[test]
    fn s4_step_errno_and_device_are_told() {
        let not = refused(judge(&at(0, 3, 0), &at(0, 3, 1), Sign::Signal));
        assert_eq!(
            (not.errno, not.step.as_deref(), not.device.as_deref()),
            (Some(16), Some("suspend"), Some("0000:00:1f.6"))
        );
        assert!(!not.fake);
        for part in ["EBUSY", "`suspend`", "0000:00:1f.6"] {
            assert!(not.why.contains(part), "{part} is not in {}", not.why);
        }
    }

    #[test]
    fn s4_an_old_failure_is_not_told_as_this_one() {
        let not = refused(judge(
            &at(0, 3, 1),
            &at(0, 3, 1),
            Sign::Deadline(Duration::from_secs(120)),
        ));
        assert_eq!((not.errno, not.step, not.device), (None, None, None));
        assert!(not.why.contains("120 s"), "{}", not.why);
    }

    #[test]
    fn s5_a_success_without_time_asleep_is_fake() {
        assert!(refused(judge(&at(0, 3, 1), &at(499, 4, 1), Sign::Signal)).fake);
    }
}
