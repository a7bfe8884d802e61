//! Numbers out of noise: paired blocks, medians and their confidence intervals. Knows nothing of what is measured.

use std::time::Duration;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use vmstation_agent::clock::BootTime;

/// Samples drawn with replacement for an interval.
const RESAMPLES: usize = 2000;

/// A median and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Pseudo-random numbers (xorshift64), the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// Below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("below a usize")
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Nanoseconds that `work` takes for one of its `count` parts.
pub(crate) fn nanos_each(count: usize, work: impl FnOnce()) -> f64 {
    let start = BootTime::now();
    work();
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let count = count as f64;
    nanos(BootTime::now().since(start)) / count
}

pub(crate) fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// Measures every variant once a round, in a new order each time. One row a round, in the order of the variants.
pub(crate) fn interleaved<const N: usize>(rounds: usize, mut measure: impl FnMut(usize) -> f64) -> Vec<[f64; N]> {
    let mut random = Random::new();
    let mut order: Vec<usize> = (0..N).collect();
    let rows = (0..rounds).map(|_| {
        let mut row = [0.0; N];
        random.shuffle(&mut order);
        for variant in &order {
            row[*variant] = measure(*variant);
        }
        row
    });
    rows.collect()
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of all is not above. `values` must not be empty.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a short list, not negative"
    )]
    let index = ((values.len() - 1) as f64 * share).round() as usize;
    values[index]
}

/// `figure` of all rounds, with the interval it has over rounds drawn again: differences stay within their round.
pub(crate) fn estimate<T: Copy>(rounds: &[T], figure: impl Fn(&[T]) -> f64) -> Estimate {
    let mut random = Random::new();
    let mut drawn: Vec<T> = Vec::with_capacity(rounds.len());
    let again = (0..RESAMPLES).map(|_| {
        drawn.clear();
        drawn.extend((0..rounds.len()).map(|_| rounds[random.below(rounds.len())]));
        figure(&drawn)
    });
    let mut figures: Vec<f64> = again.collect();
    Estimate {
        value: figure(rounds),
        low: quantile(&mut figures, 0.025),
        high: quantile(&mut figures, 0.975),
    }
}

/// Median over rounds of one column.
pub(crate) fn column<const N: usize>(variant: usize) -> impl Fn(&[[f64; N]]) -> f64 {
    move |rounds| median(&mut rounds.iter().map(|row| row[variant]).collect::<Vec<_>>())
}

/// Median over rounds of what `variant` takes more than `base`.
pub(crate) fn added<const N: usize>(variant: usize, base: usize) -> impl Fn(&[[f64; N]]) -> f64 {
    move |rounds| median(&mut rounds.iter().map(|row| row[variant] - row[base]).collect::<Vec<_>>())
}

/// Keeps the calling thread on one CPU. Returns whether there is such a CPU.
pub(crate) fn pin(cpu: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &only).is_ok()
}
