//! Which programs are wanted in the kernel: a program is attached only while its answer could change the verdict. Pure: no clock, no
//! kernel; the driver attaches and detaches.
//!
//! The plain counters are always read. While they or another signal keep the host awake, nothing a program counts could put it to sleep,
//! and a loaded host pays nothing per frame and per switch:
//!
//! ```text
//!                    traffic by class (net)                            CPU (sched)
//! quiet period       attached: tells the first activity                attached
//! traffic alone      attached for one sample in each check interval:   out
//!   keeps it awake     is it users, or the cluster's own chatter?
//! anything else      out                                               out
//! ```
//!
//! SSH programs run only when a connection changes and are always there.

use std::{fmt, time::Duration};

use crate::{
    clock::BootTime,
    config::{Policy, ProbeMode, Scope},
    counters::{Reading, Source},
    idle::State,
    probes::Family,
    sample::Sample,
    verdict::{Reason, SignalName},
};

/// Families that come and go.
const MOVABLE: [Family; 2] = [Family::Net, Family::Sched];

/// Whether the programs of a family are wanted, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// In the kernel.
    In(Why),
    /// Out of it.
    Out(Why),
}

/// Why programs are wanted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `probes = "always"`.
    Always,
    /// The agent has just started, or the host resumed: nothing is known yet.
    Starting,
    /// The plain counters say quiet: what wakes it first is to be seen at once.
    QuietPeriod,
    /// Traffic alone keeps the host awake, and whose it is has not been looked at.
    WhoseTraffic,
    /// Users' traffic keeps the host awake; that was looked at in this check interval.
    UserTraffic,
    /// Another signal keeps the host awake.
    BusyAnyway,
    /// Wanted, but attached once in this check interval already.
    TooSoon,
    /// The signal does not count.
    NotConfigured,
    /// Only pods count, whose part it does not tell.
    PodsOnly,
}

/// Which programs are wanted after a sample, its reasons to stay awake, and what the idle machine made of them.
pub fn wanted(family: Family, sample: Option<&Sample>, reasons: &[Reason], state: State, policy: &Policy) -> Want {
    let counts = match family {
        Family::Net => policy
            .detection
            .network_bytes_per_sec
            .is_some()
            .then_some(policy.detection.network_scope),
        Family::Ssh => policy.detection.ssh.is_some().then_some(Scope::Node),
        Family::Sched => policy
            .detection
            .cpu_percent
            .is_some()
            .then_some(policy.detection.cpu_scope),
    };
    match (policy.probes, sample) {
        (ProbeMode::Off, _) => Want::Out(Why::NotConfigured),
        (ProbeMode::Always, _) => Want::In(Why::Always),
        (ProbeMode::Auto, _) if counts.is_none() => Want::Out(Why::NotConfigured),
        (ProbeMode::Auto, _) if counts == Some(Scope::Pods) => Want::Out(Why::PodsOnly),
        (ProbeMode::Auto, None) => Want::In(Why::Starting),
        (ProbeMode::Auto, Some(sample)) if sample.over.is_zero() => Want::In(Why::Starting),
        (ProbeMode::Auto, Some(sample)) => match (state, family) {
            (
                State::Quiet
                | State::Grace { .. }
                | State::Preparing(_)
                | State::Confirming(_)
                | State::Suspending { .. },
                _,
            ) => Want::In(Why::QuietPeriod),
            (State::Active, _) if reasons.is_empty() => Want::In(Why::QuietPeriod),
            (State::Active, Family::Ssh) => Want::In(Why::Always),
            (State::Active, Family::Sched) => Want::Out(Why::BusyAnyway),
            (State::Active, Family::Net) if !reasons.iter().all(is_traffic) => Want::Out(Why::BusyAnyway),
            (State::Active, Family::Net) => match sample.net {
                Reading::Known {
                    source: Source::Kernel, ..
                } => Want::Out(Why::UserTraffic),
                Reading::Known {
                    source: Source::Plain | Source::Fallback(_) | Source::Kubernetes,
                    ..
                }
                | Reading::Unreadable(_)
                | Reading::NotConfigured => Want::In(Why::WhoseTraffic),
            },
        },
    }
}

fn is_traffic(reason: &Reason) -> bool {
    match reason {
        Reason::Network { .. } => true,
        Reason::Unreadable { signal, .. } => *signal == SignalName::Network,
        Reason::Cpu { .. }
        | Reason::Ssh(_)
        | Reason::Pod(_)
        | Reason::MorePods(_)
        | Reason::PreventSleep(_)
        | Reason::StateUnsaved(_) => false,
    }
}

/// How it stands with the families that come and go: a host at a threshold must not load programs at every sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalation([Leash; MOVABLE.len()]);

impl Escalation {
    /// Everything is attached at `now`.
    pub const fn new(now: BootTime) -> Self {
        Self([Leash::new(now); MOVABLE.len()])
    }

    /// What is to be attached (`true`) or taken out after a sample. Nothing is attached more than once in a check interval.
    pub fn step(
        &mut self,
        sample: Option<&Sample>,
        reasons: &[Reason],
        state: State,
        policy: &Policy,
        now: BootTime,
    ) -> Vec<(Family, bool)> {
        let changed = MOVABLE.into_iter().zip(&mut self.0).filter_map(|(family, leash)| {
            let want = wanted(family, sample, reasons, state, policy);
            leash
                .follow(want, now, policy.check_interval)
                .then_some((family, leash.attached))
        });
        changed.collect()
    }

    /// Why each family is where it is, and since when.
    pub fn standing(&self) -> impl Iterator<Item = (Family, Why, BootTime)> {
        let leashes = MOVABLE.into_iter().zip(&self.0);
        leashes.map(|(family, leash)| (family, leash.why, leash.since))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leash {
    attached: bool,
    why: Why,
    since: BootTime,
    /// Last time it was attached.
    last: BootTime,
}

impl Leash {
    const fn new(now: BootTime) -> Self {
        Self {
            attached: true,
            why: Why::Starting,
            since: now,
            last: now,
        }
    }

    /// Whether something is to be done.
    fn follow(&mut self, want: Want, now: BootTime, least: Duration) -> bool {
        let (attach, why) = match want {
            Want::In(why) => (true, why),
            Want::Out(why) => (false, why),
        };
        if attach == self.attached {
            self.why = why;
            return false;
        }
        if attach && now.since(self.last) < least {
            if self.why == Why::BusyAnyway {
                self.why = Why::TooSoon;
            }
            return false;
        }
        *self = Self {
            attached: attach,
            why,
            since: now,
            last: if attach { now } else { self.last },
        };
        true
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always wanted",
            Self::Starting => "nothing is known yet",
            Self::QuietPeriod => "the host is quiet: the first activity is to be seen at once",
            Self::WhoseTraffic => "traffic alone keeps the host awake: whose is it?",
            Self::UserTraffic => "users' traffic keeps the host awake; looked at again in the next check interval",
            Self::BusyAnyway => "the host is busy whatever it would count",
            Self::TooSoon => "wanted again from the next check interval on",
            Self::NotConfigured => "not configured",
            Self::PodsOnly => "only pods count, and it does not tell their part",
        })
    }
}

#[cfg(test)]
mod tests;
