//! The latest readings, and the sample over a window that they give. Pure: readings come with their time.
//!
//! Samples may be taken more often than a window is long; each still looks back over a whole window, so that a rate does not depend
//! on how often it is asked for.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    counters::{Counters, Interface, NetReading, NetTotals, Program, Reading, Traffic},
    sample::Sample,
};

/// Readings, oldest first: the newest that is a whole window old, and what came after it.
#[derive(Debug, Default)]
pub struct History(VecDeque<Counters>);

impl History {
    /// Takes a reading and gives the sample from the newest earlier one that is at least `window` old, or else the oldest there is.
    pub fn add(&mut self, reading: Counters, window: Duration) -> Sample {
        while self
            .0
            .get(1)
            .is_some_and(|second| reading.at.since(second.at) >= window)
        {
            self.0.pop_front();
        }
        let sample = match self.0.front() {
            Some(base) => Sample::between(base, &reading),
            None => Sample::first(&reading),
        };
        self.0.push_back(reading);
        sample
    }

    /// Puts a reading in the place of the newest one: programs that were attached since then count from here on, and a sample should begin
    /// here, not a window later.
    pub fn replace_newest(&mut self, reading: Counters) {
        self.0.pop_back();
        self.0.push_back(reading);
    }

    /// Leaves the traffic between two readings out of the samples to come: it was our own. Whatever else passed in that time is left out
    /// too, if all of it is no more than [`OWN`]; who goes on shows in the next sample.
    pub fn forgive_traffic(&mut self, before: &NetReading, after: &NetReading) {
        if let (Reading::Known { value: before, .. }, Reading::Known { value: after, .. }) =
            (&before.plain, &after.plain)
        {
            let after = &little(before, after, |before, after| after.minus(*before));
            for reading in &mut self.0 {
                if let Reading::Known { value, .. } = &mut reading.net.plain {
                    shift(value, before, after, |base, before, after| {
                        *base = base.plus(after.minus(*before));
                    });
                }
            }
        }
        if let (
            Program::Counts { value: before, epoch },
            Program::Counts {
                value: after,
                epoch: later,
            },
        ) = (&before.program, &after.program)
            && epoch == later
        {
            let after = &little(before, after, |before, after| after.all().minus(before.all()));
            for reading in &mut self.0 {
                match &mut reading.net.program {
                    Program::Counts { value, epoch: earlier } if earlier == epoch => {
                        shift(value, before, after, NetTotals::shift);
                    }
                    Program::Counts { .. } | Program::Away | Program::Failed(_) => {}
                }
            }
        }
    }

    /// Whether there have been two readings, which is what rates take.
    pub fn has_rates(&self) -> bool {
        self.0.len() >= 2
    }
}

/// More than our own notices take on an interface, TLS included, bytes: the rest would be somebody else's.
const OWN: u64 = 128 << 10;

/// The later counters of the interfaces with no more traffic between two readings than ours may be.
fn little<T: Clone>(
    before: &BTreeMap<Interface, T>,
    after: &BTreeMap<Interface, T>,
    passed: impl Fn(&T, &T) -> Traffic,
) -> BTreeMap<Interface, T> {
    let ours = |(interface, after): &(&Interface, &T)| {
        before.get(*interface).is_some_and(|before| {
            let passed = passed(before, after);
            passed.rx_bytes.saturating_add(passed.tx_bytes) <= OWN
        })
    };
    let after = after.iter().filter(ours);
    after
        .map(|(interface, after)| (interface.clone(), after.clone()))
        .collect()
}

fn shift<T>(
    base: &mut BTreeMap<Interface, T>,
    before: &BTreeMap<Interface, T>,
    after: &BTreeMap<Interface, T>,
    by: impl Fn(&mut T, &T, &T),
) {
    for (interface, base) in base {
        if let (Some(before), Some(after)) = (before.get(interface), after.get(interface)) {
            by(base, before, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootTime,
        counters::{CpuTotals, Reading, Source, Twofold},
    };

    fn reading(at: u64) -> Counters {
        let cpu = CpuTotals {
            busy: [(0, Duration::from_secs(at / 2))].into(),
            ..CpuTotals::default()
        };
        Counters {
            at: BootTime(Duration::from_secs(at)),
            net: Twofold::NOT_CONFIGURED,
            cpu: Twofold {
                plain: Reading::Known {
                    value: cpu,
                    source: Source::Plain,
                },
                ..Twofold::NOT_CONFIGURED
            },
            ssh: Reading::NotConfigured,
            pods: Reading::NotConfigured,
        }
    }

    fn traffic(at: u64, bytes: u64) -> Counters {
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
        };
        let user = Traffic {
            rx_bytes: bytes,
            ..Traffic::default()
        };
        let totals = NetTotals {
            user,
            ..NetTotals::default()
        };
        Counters {
            net: Twofold {
                plain: Reading::Known {
                    value: [(eth0.clone(), user)].into(),
                    source: Source::Plain,
                },
                program: Program::Counts {
                    value: [(eth0, totals)].into(),
                    epoch: 1,
                },
            },
            ..reading(at)
        }
    }

    #[test]
    fn x4_our_own_traffic_is_left_out_of_the_window_it_fell_into() {
        let window = Duration::from_secs(10);
        for program in [true, false] {
            let counters = |at, bytes| {
                let mut counters = traffic(at, bytes);
                if !program {
                    counters.net.program = Program::Away;
                }
                counters
            };
            let mut history = History::default();
            history.add(counters(100, 1000), window);
            history.add(counters(101, 1000), window);
            history.forgive_traffic(&counters(102, 1500).net, &counters(104, 9500).net);
            let sample = history.add(counters(105, 10_000), window);
            let rates = sample.net.known().unwrap().values().next().unwrap();
            // 500 bytes before the 8000 that were ours, and 500 after them.
            assert!((rates.user.rx_bytes_per_sec - 200.0).abs() < 1e-9, "{rates:?}");
            history.forgive_traffic(&counters(106, 10_000).net, &counters(108, 210_000).net);
            let sample = history.add(counters(109, 210_000), window);
            let rates = sample.net.known().unwrap().values().next().unwrap();
            assert!(
                rates.user.rx_bytes_per_sec > 20_000.0,
                "a download was taken for a notice of ours: {rates:?}"
            );
        }
    }

    #[test]
    fn a_sample_looks_back_over_a_whole_window_however_often_it_is_taken() {
        let mut history = History::default();
        let window = Duration::from_secs(10);
        let over = |history: &mut History, at| history.add(reading(at), window).over.as_secs();
        assert_eq!(over(&mut history, 100), 0);
        assert!(!history.has_rates());
        assert_eq!(over(&mut history, 101), 1);
        assert!(history.has_rates());
        for at in 102..1000 {
            assert_eq!(over(&mut history, at), (at - 100).min(10));
        }
        assert_eq!(over(&mut history, 1020), 21, "a gap is looked back over");
        assert!(history.0.len() <= 12, "old readings are kept: {}", history.0.len());
    }
}
