//! What sleeping has brought: how often, for how long, and how much energy it saved. Pure: the driver says what came of an attempt.
//!
//! Joules are time asleep times the watts not drawn meanwhile. Only the agent's own sleeps count: what others order they save themselves.
//! Without a figure of what the host draws, nothing is said of energy; it is never called zero. Never reads a clock or a file
//! ([`rapl`] reads the processor's own meter).

pub mod rapl;

use std::{fmt, time::Duration};

use crate::config::Energy;

/// Watts of a host in suspend to RAM, taken where `watts_asleep` is not set: memory in self-refresh and a network card that listens.
pub const ASSUMED_ASLEEP: f64 = 3.0;
/// Joules of a kilowatt hour.
pub const JOULES_PER_KWH: f64 = 3_600_000.0;

/// What came of all attempts so far, over restarts of the agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Sleeps the agent ordered that took place.
    pub sleeps: u64,
    /// Resumes from them.
    pub wakes: u64,
    /// Suspends others ordered.
    pub external: u64,
    /// Attempts the kernel or logind did not carry out.
    pub failed: u64,
    /// Attempts not begun, for something forbade them.
    pub refused: u64,
    /// Attempts begun and taken back.
    pub aborted: u64,
    /// Time in the agent's own sleeps.
    pub asleep: Duration,
    /// Joules saved in them, as far as the power was known: finite, not negative. `None`: it never was.
    pub saved_joules: Option<f64>,
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host slept, and is awake again.
    Slept {
        /// For how long.
        asleep: Duration,
    },
    /// The host slept because somebody else ordered it.
    External,
    /// It should have slept and did not.
    Failed,
    /// Something forbade it from the start.
    Refused,
    /// It was begun and taken back.
    Aborted,
}

/// What the host draws, watts; asleep less than awake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    awake: f64,
    asleep: f64,
    awake_from: AwakeFrom,
    asleep_from: AsleepFrom,
}

/// Where the watts awake come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AwakeFrom {
    Configuration,
    Rapl,
}

/// Where the watts asleep come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AsleepFrom {
    Configuration,
    Assumption,
}

/// Why nothing is known of the power.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Unknown {
    /// Neither set nor measured.
    #[error("unknown: [energy] watts_awake is not set and the processor's meter (RAPL) says nothing")]
    Awake,
    /// Sleeping would save nothing.
    #[error("unknown: {awake:.1} W awake are not above {asleep:.1} W asleep; set both in [energy]")]
    NotAbove {
        /// Watts awake.
        awake: f64,
        /// Watts asleep.
        asleep: f64,
    },
}

impl Power {
    /// From the settings, or else from what the processor measured of itself in the quiet time before (watts, see [`rapl::Average`]).
    ///
    /// # Errors
    /// [`Unknown`]: no figure, or figures that contradict each other.
    pub fn new(settings: &Energy, measured: Option<f64>) -> Result<Self, Unknown> {
        let (awake, awake_from) = match (settings.watts_awake, measured) {
            (Some(watts), _) => (watts, AwakeFrom::Configuration),
            (None, Some(watts)) => (watts, AwakeFrom::Rapl),
            (None, None) => return Err(Unknown::Awake),
        };
        let (asleep, asleep_from) = match settings.watts_asleep {
            Some(watts) => (watts, AsleepFrom::Configuration),
            None => (ASSUMED_ASLEEP, AsleepFrom::Assumption),
        };
        if awake > asleep {
            Ok(Self {
                awake,
                asleep,
                awake_from,
                asleep_from,
            })
        } else {
            Err(Unknown::NotAbove { awake, asleep })
        }
    }

    /// Joules not drawn in a sleep of this length.
    pub fn saved(&self, asleep: Duration) -> f64 {
        asleep.as_secs_f64() * (self.awake - self.asleep)
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.awake_from, self.asleep_from) {
            (AwakeFrom::Configuration, AsleepFrom::Configuration) => f.write_str("configured watts"),
            (AwakeFrom::Configuration, AsleepFrom::Assumption) => {
                write!(f, "configured watts, {ASSUMED_ASLEEP} W assumed asleep")
            }
            (AwakeFrom::Rapl, AsleepFrom::Configuration) => {
                f.write_str("processor as measured by RAPL, configured watts asleep")
            }
            (AwakeFrom::Rapl, AsleepFrom::Assumption) => {
                write!(f, "processor as measured by RAPL, {ASSUMED_ASLEEP} W assumed asleep")
            }
        }
    }
}

impl Account {
    /// Takes note of an outcome. `power` is what was known when the host fell asleep.
    pub fn note(&mut self, outcome: Outcome, power: Option<&Power>) {
        let count = match outcome {
            Outcome::Slept { asleep } => {
                self.sleeps = self.sleeps.saturating_add(1);
                self.asleep = self.asleep.saturating_add(asleep);
                if let Some(power) = power {
                    self.saved_joules = Some(self.saved_joules.unwrap_or(0.0) + power.saved(asleep));
                }
                &mut self.wakes
            }
            Outcome::External => &mut self.external,
            Outcome::Failed => &mut self.failed,
            Outcome::Refused => &mut self.refused,
            Outcome::Aborted => &mut self.aborted,
        };
        *count = count.saturating_add(1);
    }

    /// Kilowatt hours saved so far. `None`: not known. A host whose power is known and that has not slept has saved nothing.
    pub fn saved_kwh(&self, power: Option<&Power>) -> Option<f64> {
        let none_yet = (self.sleeps == 0 && power.is_some()).then_some(0.0);
        self.saved_joules.or(none_yet).map(|joules| joules / JOULES_PER_KWH)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Account, JOULES_PER_KWH, Outcome, Power, Unknown};
    use crate::config::Energy;

    const HOUR: Duration = Duration::from_secs(3600);

    fn settings(watts_awake: Option<f64>, watts_asleep: Option<f64>) -> Energy {
        Energy {
            watts_awake,
            watts_asleep,
        }
    }

    #[test]
    fn the_settings_go_before_the_measurement_and_the_source_is_named() {
        for (awake, asleep, measured, joules, source) in [
            (Some(45.0), Some(5.0), Some(20.0), 40.0, "configured watts"),
            (
                Some(45.0),
                None,
                Some(20.0),
                42.0,
                "configured watts, 3 W assumed asleep",
            ),
            (
                None,
                None,
                Some(20.0),
                17.0,
                "processor as measured by RAPL, 3 W assumed asleep",
            ),
            (
                None,
                Some(1.0),
                Some(20.0),
                19.0,
                "processor as measured by RAPL, configured watts asleep",
            ),
        ] {
            let power = Power::new(&settings(awake, asleep), measured).unwrap();
            assert_eq!(power.saved(Duration::from_secs(1)).to_bits(), f64::to_bits(joules));
            assert_eq!(power.to_string(), source);
        }
    }

    #[test]
    fn without_a_figure_nothing_is_said_of_energy() {
        assert_eq!(Power::new(&settings(None, Some(1.0)), None), Err(Unknown::Awake));
        let contradiction = Power::new(&settings(Some(2.0), None), None).unwrap_err();
        assert_eq!(
            contradiction.to_string(),
            "unknown: 2.0 W awake are not above 3.0 W asleep; set both in [energy]"
        );

        let mut account = Account::default();
        assert_eq!(account.saved_kwh(None), None);
        account.note(Outcome::Slept { asleep: HOUR }, None);
        let power = Power::new(&settings(Some(103.0), None), None).unwrap();
        assert_eq!((account.saved_kwh(None), account.saved_kwh(Some(&power))), (None, None));
        account.note(Outcome::Slept { asleep: HOUR }, Some(&power));
        assert_eq!(account.saved_kwh(None), Some(100.0 * 3600.0 / JOULES_PER_KWH));
        assert_eq!(Account::default().saved_kwh(Some(&power)), Some(0.0));
    }

    #[test]
    fn each_outcome_counts_as_itself() {
        let mut account = Account::default();
        for outcome in [
            Outcome::Slept { asleep: HOUR },
            Outcome::External,
            Outcome::External,
            Outcome::Failed,
            Outcome::Refused,
            Outcome::Aborted,
        ] {
            account.note(outcome, None);
        }
        let expected = Account {
            sleeps: 1,
            wakes: 1,
            external: 2,
            failed: 1,
            refused: 1,
            aborted: 1,
            asleep: HOUR,
            saved_joules: None,
        };
        assert_eq!(account, expected);
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            any::<u32>().prop_map(|seconds| Outcome::Slept {
                asleep: Duration::from_secs(seconds.into())
            }),
            Just(Outcome::External),
            Just(Outcome::Failed),
            Just(Outcome::Refused),
            Just(Outcome::Aborted),
        ]
    }

    proptest! {
        #[test]
        fn nothing_ever_falls(steps in prop::collection::vec((outcomes(), prop::option::of(4.0..10_000.0)), 0..40)) {
            let mut account = Account::default();
            for (outcome, watts) in steps {
                let before = account.clone();
                account.note(outcome, Power::new(&settings(watts, None), None).ok().as_ref());
                let counts = |a: &Account| [a.sleeps, a.wakes, a.external, a.failed, a.refused, a.aborted];
                let moved = counts(&account).iter().sum::<u64>() - counts(&before).iter().sum::<u64>();
                prop_assert!(counts(&account).iter().zip(counts(&before)).all(|(after, before)| *after >= before));
                prop_assert_eq!(moved, if matches!(outcome, Outcome::Slept { .. }) { 2 } else { 1 });
                prop_assert!(account.asleep >= before.asleep);
                prop_assert!(account.saved_joules >= before.saved_joules);
                prop_assert!(account.saved_joules.is_none_or(f64::is_finite));
            }
        }
    }
}
