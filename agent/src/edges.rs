//! What may happen before the next sample without anybody being told: the budget of the kernel's edge records, and what they tell. Pure.
//!
//! An edge brings the next look forward. Traffic beyond the budget is activity whatever that look finds; whether a busy CPU is, the verdict
//! says. A connection to an SSH port needs no budget: the kernel tells of each ([`agent_ebpf::SshRecordKind::Opened`]), armed or not.

use std::time::Duration;

use crate::{
    clock::BootTime,
    config::{Detection, Scope},
    sample::Sample,
};

/// Least budget of a CPU: one that is busy for ever, on a host that is quiet nevertheless, brings no more than one look in this time.
const LEAST_BUSY: Duration = Duration::from_secs(1);

/// How much may happen from now on; `None`: however much, nobody is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of class user on one interface.
    pub traffic_bytes: Option<u64>,
    /// Busy time of one CPU.
    pub busy: Option<Duration>,
}

/// More happened than the budget holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge {
    /// User traffic.
    Traffic {
        /// The first frame beyond the budget.
        at: BootTime,
        /// Name of the interface, or its number if it is not watched any more.
        interface: String,
        /// Bytes on one CPU since the budget was armed.
        bytes: u64,
    },
    /// A CPU was busy; the agent's own work counts here as well.
    Cpu {
        /// When that was noticed.
        at: BootTime,
        /// Number of the CPU.
        cpu: u32,
        /// Busy time since the budget was armed.
        busy: Duration,
    },
}

impl Budget {
    /// The budget after `sample`, until another one is due `next` after it.
    ///
    /// A sample that is taken before looks back over `sample.over + next` at most ([`crate::history::History`]). Traffic: as much as it
    /// may hold below the threshold, so that it is busy if it is taken because of an edge. CPU: the share of one CPU in what it may hold,
    /// since all of them cannot be above the threshold unless one is; that sample may well be quiet.
    pub fn after(sample: &Sample, next: Duration, detection: &Detection) -> Self {
        let over = sample.over.saturating_add(next);
        // What an interface carries is no activity where only pods count.
        let on_interfaces = match detection.network_scope {
            Scope::Node => detection.network_bytes_per_sec,
            Scope::Pods => None,
        };
        Self {
            traffic_bytes: on_interfaces.map(|limit| bytes(limit, over)),
            busy: detection
                .cpu_percent
                .map(|limit| over.mul_f64(limit / 100.0).max(LEAST_BUSY)),
        }
    }
}

/// Rounded up to whole bytes.
fn bytes(limit: u64, over: Duration) -> u64 {
    let bytes = (u128::from(limit) * over.as_nanos()).div_ceil(1_000_000_000);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::Policy,
        counters::{Counters, Interface, NetTotals, Program, Reading, Source, Traffic, Twofold},
        history::History,
        verdict::{Verdict, judge},
    };

    fn detection(network: Option<u64>, cpu: Option<f64>) -> Detection {
        Detection {
            network_bytes_per_sec: network,
            cpu_percent: cpu,
            pods: false,
            ssh: None,
            ..Policy::default().detection
        }
    }

    fn reading(at: Duration, rx_bytes: u64) -> Counters {
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
        };
        let user = Traffic {
            rx_bytes,
            ..Traffic::default()
        };
        let totals = NetTotals {
            user,
            ..NetTotals::default()
        };
        Counters {
            at: BootTime(at),
            net: Twofold {
                plain: Reading::Known {
                    value: BTreeMap::from([(eth0.clone(), user)]),
                    source: Source::Plain,
                },
                program: Program::Counts {
                    value: BTreeMap::from([(eth0, totals)]),
                    epoch: 1,
                },
            },
            cpu: Twofold::NOT_CONFIGURED,
            ssh: Reading::NotConfigured,
            pods: Reading::NotConfigured,
        }
    }

    #[test]
    fn what_is_not_looked_at_has_no_budget() {
        let sample = Sample::first(&reading(Duration::from_secs(100), 0));
        let budget = |network, cpu| Budget::after(&sample, Duration::from_secs(10), &detection(network, cpu));
        assert_eq!(budget(None, None), Budget::default());
        let all = budget(Some(1024), Some(20.0));
        assert_eq!(all.traffic_bytes, Some(10_240));
        assert_eq!(all.busy, Some(Duration::from_secs(2)));
        assert_eq!(budget(Some(0), None).traffic_bytes, Some(0));
        assert_eq!(budget(Some(u64::MAX), None).traffic_bytes, Some(u64::MAX));
        assert_eq!(budget(None, Some(0.0)).busy, Some(LEAST_BUSY));
        let pods = Detection {
            network_scope: Scope::Pods,
            ..detection(Some(1024), None)
        };
        assert_eq!(
            Budget::after(&sample, Duration::from_secs(10), &pods),
            Budget::default()
        );
    }

    proptest! {
        /// However often samples were taken before: the one that an edge causes is busy.
        #[test]
        fn traffic_beyond_the_budget_makes_the_sample_busy(
            limit in 0_u64..1 << 40,
            window in 1_u64..20_000,
            gaps in prop::collection::vec(1_u64..20_000, 1..20),
            next in 1_u64..20_000,
            early in 0.0..1.0_f64,
        ) {
            let (window, next) = (Duration::from_millis(window), Duration::from_millis(next));
            let mut history = History::default();
            let mut at = Duration::from_secs(100);
            let mut sample = history.add(reading(at, 0), window);
            for gap in gaps {
                at += Duration::from_millis(gap);
                sample = history.add(reading(at, 0), window);
            }
            let policy = Policy { detection: detection(Some(limit), None), ..Policy::default() };
            let budget = Budget::after(&sample, next, &policy.detection).traffic_bytes.unwrap();

            let sample = history.add(reading(at + next.mul_f64(early).max(Duration::from_nanos(1)), budget + 1), window);
            let verdict = judge(&sample, &policy).verdict;
            prop_assert!(matches!(verdict, Verdict::Busy(_)), "{budget} bytes over {:?}", sample.over);
        }
    }
}
