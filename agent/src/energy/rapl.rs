//! The processor's own energy meter (RAPL, "running average power limit"): what the quiet host draws, as far as its packages tell.
//!
//! [`Rapl`] reads sysfs and nothing else; [`Average`] is pure. What it says is a lower bound: memory, disks and the power supply are not
//! in it. See Documentation/power/powercap/powercap.rst of the kernel.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock::BootTime;

/// Longest time between two readings of which a difference is made: a counter of 65 kJ, the smallest there is, then has not gone round
/// twice below 1000 W.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// Shortest time that gives an average.
const SHORTEST: Duration = Duration::from_secs(5);
/// Joules of a microjoule.
const MICRO: f64 = 1e-6;

/// The meter of this host, under a root folder that is `/sys` but in tests.
#[derive(Clone, Debug)]
pub struct Rapl {
    folder: PathBuf,
}

/// The counters of all packages at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: BootTime,
    /// By name of the zone (`intel-rapl:0`).
    pub packages: BTreeMap<String, Counter>,
}

/// The counter of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Energy so far, microjoules; begins again after `range`.
    pub energy: u64,
    /// Largest value, microjoules.
    pub range: u64,
}

/// The mean power of all packages over the readings since it was last reset.
#[derive(Clone, Debug, Default)]
pub struct Average {
    last: Option<Reading>,
    joules: f64,
    over: Duration,
}

impl Rapl {
    /// Of the host whose sysfs is at `sys`.
    pub fn new(sys: &Path) -> Self {
        Self {
            folder: sys.join("class/powercap"),
        }
    }

    /// Reads every package at `at`; microseconds.
    ///
    /// # Errors
    /// No meter, or one that only root may read and this is not root.
    pub fn read(&self, at: BootTime) -> io::Result<Reading> {
        let mut packages = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let zone = entry.file_name().to_string_lossy().into_owned();
            // intel-rapl:0:1 is a part of intel-rapl:0; AMD's processors have the same name.
            let is_top = zone
                .strip_prefix("intel-rapl:")
                .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
            if !is_top || !fs::read_to_string(entry.path().join("name"))?.starts_with("package-") {
                continue;
            }
            let counter = Counter {
                energy: number(&entry.path().join("energy_uj"))?,
                range: number(&entry.path().join("max_energy_range_uj"))?,
            };
            packages.insert(zone, counter);
        }
        if packages.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no package in the processor's meter",
            ));
        }
        Ok(Reading { at, packages })
    }
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}

impl Average {
    /// Forgets everything: the host is in use, or has slept.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes a reading in. One that does not follow the last (other packages, too late, backwards) begins anew.
    pub fn add(&mut self, reading: Reading) {
        match self.last.as_ref().and_then(|last| between(last, &reading)) {
            Some((joules, over)) => {
                self.joules += joules;
                self.over += over;
            }
            None => self.reset(),
        }
        self.last = Some(reading);
    }

    /// Watts; `None` before there are [`SHORTEST`] of readings.
    pub fn watts(&self) -> Option<f64> {
        (self.over >= SHORTEST).then(|| self.joules / self.over.as_secs_f64())
    }
}

/// Joules and time from one reading to the next.
fn between(last: &Reading, next: &Reading) -> Option<(f64, Duration)> {
    let over = next.at.since(last.at);
    if over.is_zero() || over > LONGEST_GAP || !last.packages.keys().eq(next.packages.keys()) {
        return None;
    }
    let mut joules = 0.0;
    for (last, next) in last.packages.values().zip(next.packages.values()) {
        joules += drawn(*last, *next)? * MICRO;
    }
    Some((joules, over))
}

/// Microjoules from one value of a counter to the next; it goes round once at most.
fn drawn(last: Counter, next: Counter) -> Option<f64> {
    let micro = match next.energy.checked_sub(last.energy) {
        Some(more) => more,
        None => next.range.checked_sub(last.energy)?.checked_add(next.energy)?,
    };
    #[expect(clippy::cast_precision_loss, reason = "a meter is not right to 52 bits")]
    let micro = micro as f64;
    Some(micro)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

    use proptest::prelude::*;

    use super::{Average, Counter, Rapl, Reading};
    use crate::clock::BootTime;

    const RANGE: u64 = 262_143_328_850;

    fn at(seconds: u64) -> BootTime {
        BootTime(Duration::from_secs(seconds))
    }

    fn reading(seconds: u64, energies: &[u64]) -> Reading {
        let counter = |energy| Counter { energy, range: RANGE };
        let packages = energies
            .iter()
            .enumerate()
            .map(|(number, energy)| (format!("intel-rapl:{number}"), counter(*energy)));
        Reading {
            at: at(seconds),
            packages: packages.collect(),
        }
    }

    fn zone(sys: &Path, zone: &str, name: &str, energy: &str) {
        let folder = sys.join("class/powercap").join(zone);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        fs::write(folder.join("energy_uj"), format!("{energy}\n")).unwrap();
        fs::write(folder.join("max_energy_range_uj"), format!("{RANGE}\n")).unwrap();
    }

    #[test]
    fn packages_are_read_and_nothing_that_is_in_them() {
        let sys = tempfile::tempdir().unwrap();
        let rapl = Rapl::new(sys.path());
        assert_eq!(rapl.read(at(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        zone(sys.path(), "intel-rapl:2", "psys", "9");
        zone(sys.path(), "intel-rapl:0:0", "core", "9");
        zone(sys.path(), "dtpm", "dtpm", "9");
        assert_eq!(rapl.read(at(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        zone(sys.path(), "intel-rapl:0", "package-0", "123");
        zone(sys.path(), "intel-rapl:1", "package-1", "456");
        assert_eq!(rapl.read(at(1)).unwrap(), reading(1, &[123, 456]));
        zone(sys.path(), "intel-rapl:1", "package-1", "lots");
        assert!(rapl.read(at(1)).is_err());
    }

    #[test]
    fn watts_are_the_mean_of_all_packages() {
        let mut average = Average::default();
        assert_eq!(average.watts(), None);
        average.add(reading(100, &[0, RANGE - 10_000_000]));
        average.add(reading(104, &[40_000_000, RANGE - 2_000_000]));
        assert_eq!(average.watts(), None, "too short a time");
        // The second goes round.
        average.add(reading(110, &[100_000_000, 10_000_000]));
        assert_eq!(average.watts(), Some(12.0));
        average.reset();
        assert_eq!(average.watts(), None);
    }

    #[test]
    fn a_reading_that_does_not_follow_begins_anew() {
        for stranger in [
            reading(200, &[50_000_000]),
            reading(110, &[50_000_000]),
            reading(90, &[50_000_000]),
            reading(115, &[50_000_000, 7]),
            Reading {
                at: at(115),
                packages: BTreeMap::new(),
            },
        ] {
            let mut average = Average::default();
            average.add(reading(100, &[0]));
            average.add(reading(110, &[40_000_000]));
            assert_eq!(average.watts(), Some(4.0));
            average.add(stranger.clone());
            assert_eq!(average.watts(), None, "{stranger:?}");
        }
    }

    proptest! {
        #[test]
        fn a_counter_that_goes_round_changes_nothing(
            start in 0..RANGE,
            steps in prop::collection::vec((1u64..=60, 0u64..400), 1..50),
        ) {
            let (mut seconds, mut micro) = (1000, start);
            let mut average = Average::default();
            average.add(reading(seconds, &[micro]));
            let (mut joules, mut over) = (0, 0);
            for (step, watts) in steps {
                seconds += step;
                // The counter has the values from 0 to the range less one.
                micro = (micro + step * watts * 1_000_000) % RANGE;
                (joules, over) = (joules + step * watts, over + step);
                average.add(reading(seconds, &[micro]));
            }
            if over < 5 {
                prop_assert_eq!(average.watts(), None);
            } else {
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let expected = joules as f64 / over as f64;
                prop_assert!((average.watts().unwrap() - expected).abs() < 1e-6);
            }
        }
    }
}
