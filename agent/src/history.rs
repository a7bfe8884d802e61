//! The latest readings, and the sample over a window that they give. Pure: readings come with their time.
//!
//! Samples may be taken more often than a window is long; each still looks back over a whole window, so that a rate does not depend
//! on how often it is asked for.

use std::{collections::VecDeque, time::Duration};

use crate::{counters::Counters, sample::Sample};

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

    /// Whether there have been two readings, which is what rates take.
    pub fn has_rates(&self) -> bool {
        self.0.len() >= 2
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
