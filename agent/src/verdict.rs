//! A sample and the policy, turned into "in use" or "quiet", with every reason. Pure: no clock, no file.
//!
//! Doubt is a reason: a signal that was asked for and could not be read keeps the host awake.

use std::{fmt, time::Duration};

use crate::{
    clock::BootTime,
    config::{Detection, Policy, Scope, SshDetection},
    counters::{Reading, Session, Source},
    idle::Order,
    sample::Sample,
};

/// Running pods that are named; the others are counted.
const NAMED_PODS: usize = 5;

/// Whether the host is in use.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing that counts is going on.
    Quiet,
    /// In use, or not known to be quiet. At least one reason.
    Busy(Vec<Reason>),
}

/// A verdict and what the kernel told of the past.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The latest moment of activity the sample shows; `None` if it shows none.
    pub last_activity: Option<BootTime>,
    /// The latest moment at which an SSH session was in use that is closed, or beyond the cap.
    pub past_login: Option<BootTime>,
}

/// One thing that makes the host busy.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// Traffic above the threshold.
    Network {
        /// Name of the interface.
        interface: String,
        /// What was compared.
        traffic: Compared,
        /// Both directions.
        bytes_per_sec: f64,
        /// Threshold.
        limit: u64,
    },
    /// CPU use above the threshold.
    Cpu {
        /// Busy share of all CPUs, percent.
        percent: f64,
        /// Threshold, percent.
        limit: f64,
        /// Whose.
        of: Scope,
    },
    /// An authenticated SSH session that is not idle beyond the cap.
    Ssh(Session),
    /// A pod of a user namespace runs here: `namespace/name`.
    Pod(String),
    /// So many further pods run here.
    MorePods(usize),
    /// A pod with a prevent-sleep label runs here: `namespace/name`.
    PreventSleep(String),
    /// A signal could not be read.
    Unreadable {
        /// Which.
        signal: SignalName,
        /// Why.
        why: String,
    },
    /// The agent cannot save its state, so that a hold or a `disable` would not survive it; why.
    StateUnsaved(String),
}

/// Which traffic is compared with the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// That of class user.
    User,
    /// All of it: nothing tells the classes apart.
    All,
}

/// The signals a verdict is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignalName {
    /// Traffic.
    Network,
    /// CPU use.
    Cpu,
    /// SSH sessions.
    Ssh,
    /// Pods.
    Pods,
}

impl Verdict {
    /// Why the host is busy; empty if it is quiet.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Quiet => &[],
            Self::Busy(reasons) => reasons,
        }
    }
}

/// Whether a reason stands against a sleep that is being carried out. `own`: processes of the operator who ordered it, whose SSH session is
/// no use of the host by somebody else. `load_is_ours`: load on the CPUs may be that of our hooks, or of the services that suspend the host.
///
/// An operator who orders a sleep knows of traffic and load; who else is logged in, or that pods run, he may not. With force he says
/// that he does.
pub fn stands_against(reason: &Reason, order: Order, own: &[u32], load_is_ours: bool) -> bool {
    match (order, reason) {
        (Order::Forced, _) | (Order::Operator, Reason::Cpu { .. } | Reason::Network { .. }) => false,
        (Order::Idle, Reason::Cpu { .. }) => !load_is_ours,
        (Order::Idle, Reason::Network { .. }) => true,
        (Order::Idle | Order::Operator, Reason::Ssh(session)) => session.pid == 0 || !own.contains(&session.pid),
        (
            Order::Idle | Order::Operator,
            Reason::Pod(_) | Reason::MorePods(_) | Reason::PreventSleep(_) | Reason::StateUnsaved(_),
        ) => true,
        (Order::Idle, Reason::Unreadable { .. }) => true,
        (Order::Operator, Reason::Unreadable { signal, .. }) => match signal {
            SignalName::Ssh | SignalName::Pods => true,
            SignalName::Network | SignalName::Cpu => false,
        },
    }
}

/// Judges one sample.
pub fn judge(sample: &Sample, policy: &Policy) -> Judgement {
    let mut reasons = Vec::new();
    network(sample, &policy.detection, &mut reasons);
    cpu(sample, &policy.detection, &mut reasons);
    pods(sample, policy.detection.pods, &mut reasons);
    let past_login = policy
        .detection
        .ssh
        .as_ref()
        .and_then(|ssh| sessions(sample, ssh, &mut reasons));

    if reasons.is_empty() {
        Judgement {
            verdict: Verdict::Quiet,
            last_activity: past_login,
            past_login,
        }
    } else {
        Judgement {
            verdict: Verdict::Busy(reasons),
            last_activity: Some(sample.at),
            past_login,
        }
    }
}

fn network(sample: &Sample, detection: &Detection, reasons: &mut Vec<Reason>) {
    let Some(limit) = detection.network_bytes_per_sec else {
        return;
    };
    let Some(interfaces) = readable(&sample.net, SignalName::Network, reasons) else {
        return;
    };
    let traffic = match &sample.net {
        Reading::Known {
            source: Source::Kernel, ..
        } => Compared::User,
        Reading::Known {
            source: Source::Plain | Source::Fallback(_) | Source::Kubernetes,
            ..
        }
        | Reading::Unreadable(_)
        | Reading::NotConfigured => Compared::All,
    };
    #[expect(clippy::cast_precision_loss, reason = "a threshold needs no more than 52 bits")]
    let above = interfaces
        .iter()
        .filter(|(_, rates)| rates.user.bytes_per_sec() > limit as f64);
    reasons.extend(above.map(|(interface, rates)| Reason::Network {
        interface: interface.name.clone(),
        traffic,
        bytes_per_sec: rates.user.bytes_per_sec(),
        limit,
    }));
}

fn cpu(sample: &Sample, detection: &Detection, reasons: &mut Vec<Reason>) {
    let Some(limit) = detection.cpu_percent else { return };
    let Some(cpu) = readable(&sample.cpu, SignalName::Cpu, reasons) else {
        return;
    };
    if cpu.percent > limit {
        reasons.push(Reason::Cpu {
            percent: cpu.percent,
            limit,
            of: detection.cpu_scope,
        });
    }
}

fn pods(sample: &Sample, wanted: bool, reasons: &mut Vec<Reason>) {
    if !wanted {
        return;
    }
    let Some(pods) = readable(&sample.pods, SignalName::Pods, reasons) else {
        return;
    };
    reasons.extend(pods.preventing.iter().cloned().map(Reason::PreventSleep));
    reasons.extend(pods.running.iter().take(NAMED_PODS).cloned().map(Reason::Pod));
    let more = pods.running.len().saturating_sub(NAMED_PODS);
    reasons.extend((more > 0).then_some(Reason::MorePods(more)));
}

/// Adds the sessions that count, and returns the last moment at which one that does not, or not any more, was in use.
fn sessions(sample: &Sample, ssh: &SshDetection, reasons: &mut Vec<Reason>) -> Option<BootTime> {
    let seen = readable(&sample.ssh, SignalName::Ssh, reasons)?;
    let (idle, live): (Vec<_>, Vec<_>) = seen
        .sessions
        .iter()
        .partition(|session| beyond_cap(session, ssh.idle_cap));
    reasons.extend(live.into_iter().cloned().map(Reason::Ssh));
    // An open session beyond the cap was last used when its last byte passed.
    idle.iter()
        .map(|session| sample.at.before(session.idle))
        .chain(seen.last_activity)
        .max()
}

/// Whether a session has been idle for so long that it does not keep the host awake (fault X2).
pub fn beyond_cap(session: &Session, cap: Option<Duration>) -> bool {
    cap.is_some_and(|cap| session.idle > cap)
}

fn readable<'a, T>(reading: &'a Reading<T>, signal: SignalName, reasons: &mut Vec<Reason>) -> Option<&'a T> {
    match reading {
        Reading::Known { value, .. } => Some(value),
        Reading::NotConfigured => None,
        Reading::Unreadable(why) => {
            reasons.push(Reason::Unreadable {
                signal,
                why: why.clone(),
            });
            None
        }
    }
}

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Cpu => "cpu",
            Self::Ssh => "ssh",
            Self::Pods => "pods",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network {
                interface,
                traffic,
                bytes_per_sec,
                limit,
            } => {
                let of = match traffic {
                    Compared::User => " of user traffic",
                    Compared::All => "",
                };
                write!(f, "{bytes_per_sec:.0} B/s{of} on {interface}, above {limit} B/s")
            }
            Self::Cpu { percent, limit, of } => {
                let of = match of {
                    Scope::Node => "",
                    Scope::Pods => " with pods",
                };
                write!(f, "CPU {percent:.1} % busy{of}, above {limit} %")
            }
            Self::Ssh(session) => {
                let user = session.user.as_deref().unwrap_or("somebody");
                write!(
                    f,
                    "SSH session of {user} from {}, idle {} s",
                    std::net::SocketAddr::new(session.peer, session.peer_port),
                    session.idle.as_secs()
                )
            }
            Self::Pod(pod) => write!(f, "pod {pod} is running"),
            Self::MorePods(1) => f.write_str("1 more pod is running"),
            Self::MorePods(more) => write!(f, "{more} more pods are running"),
            Self::PreventSleep(pod) => write!(f, "pod {pod} has a prevent-sleep label"),
            Self::Unreadable { signal, why } => write!(f, "{signal} cannot be read: {why}"),
            Self::StateUnsaved(why) => write!(f, "the agent cannot save its state: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::SshNamespaces,
        counters::{Interface, PodsSeen, SshSeen},
        sample::{CpuUse, NetRates, TrafficRates},
    };

    const AT: BootTime = BootTime(Duration::from_secs(1000));

    fn known<T>(value: T) -> Reading<T> {
        Reading::Known {
            value,
            source: Source::Kernel,
        }
    }

    fn sample(bytes_per_sec: f64, percent: f64) -> Sample {
        let rates = |rx_bytes_per_sec| TrafficRates {
            rx_bytes_per_sec,
            ..TrafficRates::default()
        };
        let rates = NetRates {
            user: rates(bytes_per_sec),
            background: rates(1e6),
            multicast: rates(1e6),
            ..NetRates::default()
        };
        Sample {
            at: AT,
            over: Duration::from_secs(10),
            net: known(
                [(
                    Interface {
                        index: 2,
                        name: "eth0".into(),
                    },
                    rates,
                )]
                .into(),
            ),
            cpu: known(CpuUse {
                percent,
                ..CpuUse::default()
            }),
            ssh: known(SshSeen::default()),
            pods: Reading::NotConfigured,
        }
    }

    fn session(idle: u64) -> Session {
        Session {
            user: Some("ada".into()),
            peer: IpAddr::from([192, 0, 2, 1]),
            peer_port: 40_000,
            pid: 1,
            idle: Duration::from_secs(idle),
        }
    }

    fn with_cap(cap: Option<u64>) -> Policy {
        let mut policy = Policy::default();
        policy.detection.ssh = Some(SshDetection {
            ports: vec![22],
            namespaces: SshNamespaces::Host,
            idle_cap: cap.map(Duration::from_secs),
        });
        policy
    }

    #[test]
    fn s1_load_of_ours_does_not_stand_against_a_sleep_and_an_operators_own_session_neither() {
        let session = |pid| Reason::Ssh(Session { pid, ..session(0) });
        let network = Reason::Network {
            interface: "eth0".into(),
            traffic: Compared::User,
            bytes_per_sec: 2000.0,
            limit: 1024,
        };
        let cpu = Reason::Cpu {
            percent: 50.0,
            limit: 10.0,
            of: Scope::Node,
        };
        let unreadable = |signal| Reason::Unreadable {
            signal,
            why: "gone".into(),
        };
        let rows = [
            (network, [true, false]),
            (cpu.clone(), [false, false]),
            (session(7), [true, true]),
            (session(0), [true, true]),
            (session(42), [false, false]),
            (Reason::Pod("a/b".into()), [true, true]),
            (Reason::PreventSleep("a/b".into()), [true, true]),
            (Reason::StateUnsaved("full".into()), [true, true]),
            (unreadable(SignalName::Network), [true, false]),
            (unreadable(SignalName::Ssh), [true, true]),
        ];
        for (reason, [idle, operator]) in rows {
            let stands = |order| stands_against(&reason, order, &[41, 42], true);
            assert_eq!(stands(Order::Idle), idle, "{reason:?}");
            assert_eq!(stands(Order::Operator), operator, "{reason:?}");
            assert!(!stands(Order::Forced));
        }
        assert!(stands_against(&cpu, Order::Idle, &[], false));
    }

    #[test]
    fn at_the_threshold_is_quiet_above_it_is_busy() {
        let policy = Policy::default();
        assert_eq!(
            judge(&sample(1024.0, 10.0), &policy),
            Judgement {
                verdict: Verdict::Quiet,
                last_activity: None,
                past_login: None
            }
        );
        let busy = judge(&sample(1025.0, 10.1), &policy);
        assert_eq!(
            busy.verdict,
            Verdict::Busy(vec![
                Reason::Network {
                    interface: "eth0".into(),
                    traffic: Compared::User,
                    bytes_per_sec: 1025.0,
                    limit: 1024
                },
                Reason::Cpu {
                    percent: 10.1,
                    limit: 10.0,
                    of: Scope::Node,
                },
            ])
        );
        assert_eq!(busy.last_activity, Some(AT));
    }

    #[test]
    fn the_reason_says_which_traffic_was_compared() {
        let mut sample = sample(2000.0, 0.0);
        let said = |sample: &Sample| judge(sample, &Policy::default()).verdict.reasons()[0].to_string();
        assert_eq!(said(&sample), "2000 B/s of user traffic on eth0, above 1024 B/s");
        let Reading::Known { source, .. } = &mut sample.net else {
            unreachable!()
        };
        *source = Source::Plain;
        assert_eq!(said(&sample), "2000 B/s on eth0, above 1024 B/s");
    }

    #[test]
    fn a_signal_that_cannot_be_read_is_busy_and_one_that_is_not_asked_for_is_not() {
        let mut policy = Policy::default();
        let mut blind = sample(0.0, 0.0);
        blind.net = Reading::Unreadable("no BTF".into());
        blind.cpu = Reading::Unreadable("no /proc".into());
        blind.ssh = Reading::Unreadable("no netlink".into());
        blind.pods = Reading::Unreadable("no answer".into());
        let reasons = judge(&blind, &policy).verdict.reasons().len();
        assert_eq!(reasons, 4);

        policy.detection.network_bytes_per_sec = None;
        policy.detection.cpu_percent = None;
        policy.detection.ssh = None;
        policy.detection.pods = false;
        assert_eq!(judge(&blind, &policy).verdict, Verdict::Quiet);
    }

    #[test]
    fn x2_a_session_counts_for_ever_unless_capped_and_then_from_its_last_byte() {
        let mut sample = sample(0.0, 0.0);
        sample.ssh = known(SshSeen {
            sessions: vec![session(900)],
            last_activity: None,
            logins: 1,
        });
        assert_eq!(
            judge(&sample, &with_cap(None)).verdict,
            Verdict::Busy(vec![Reason::Ssh(session(900))])
        );
        assert_eq!(judge(&sample, &with_cap(Some(900))).verdict.reasons().len(), 1);
        let capped = judge(&sample, &with_cap(Some(899)));
        assert_eq!(capped.verdict, Verdict::Quiet);
        assert_eq!(capped.last_activity, Some(BootTime(Duration::from_secs(100))));
    }

    #[test]
    fn x6_a_login_between_two_samples_is_past_activity() {
        let mut sample = sample(0.0, 0.0);
        let during = BootTime(Duration::from_secs(995));
        sample.ssh = known(SshSeen {
            sessions: vec![],
            last_activity: Some(during),
            logins: 1,
        });
        let judgement = judge(&sample, &with_cap(None));
        assert_eq!(
            judgement,
            Judgement {
                verdict: Verdict::Quiet,
                last_activity: Some(during),
                past_login: Some(during)
            }
        );
    }

    #[test]
    fn the_reason_says_whose_cpu_time_it_was() {
        let mut policy = Policy::default();
        policy.detection.cpu_scope = Scope::Pods;
        let reason = Reason::Cpu {
            percent: 20.04,
            limit: 10.0,
            of: policy.detection.cpu_scope,
        };
        assert_eq!(reason.to_string(), "CPU 20.0 % busy with pods, above 10 %");
    }

    #[test]
    fn pods_keep_the_node_awake() {
        let mut sample = sample(0.0, 0.0);
        sample.pods = known(PodsSeen {
            running: vec!["shop/web-0".into()],
            preventing: vec!["kube-system/backup".into()],
        });
        let reasons = judge(&sample, &Policy::default());
        assert_eq!(
            reasons.verdict,
            Verdict::Busy(vec![
                Reason::PreventSleep("kube-system/backup".into()),
                Reason::Pod("shop/web-0".into()),
            ])
        );
        sample.pods = known(PodsSeen {
            running: (0..250).map(|number| format!("shop/web-{number:03}")).collect(),
            ..PodsSeen::default()
        });
        let reasons = judge(&sample, &Policy::default());
        let words: Vec<_> = reasons.verdict.reasons().iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), NAMED_PODS + 1);
        assert_eq!(words.first().unwrap(), "pod shop/web-000 is running");
        assert_eq!(words.last().unwrap(), "245 more pods are running");
    }

    /// Known with some value, unreadable, or not configured.
    fn any_reading<T: Clone + fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Reading<T>> {
        prop_oneof![
            6 => value.prop_map(known),
            1 => Just(Reading::Unreadable("gone".into())),
            1 => Just(Reading::NotConfigured),
        ]
    }

    fn any_sample() -> impl Strategy<Value = Sample> {
        let net = (0.0..2048.0).prop_map(|rate| sample(rate, 0.0).net.known().cloned().unwrap_or_default());
        let cpu = (0.0..20.0).prop_map(|percent| CpuUse {
            percent,
            ..CpuUse::default()
        });
        let ssh = prop::collection::vec(0..200u64, 0..2).prop_map(|idle| SshSeen {
            sessions: idle.into_iter().map(session).collect(),
            ..SshSeen::default()
        });
        let pods = prop::collection::vec(Just("shop/web-0".to_owned()), 0..2).prop_map(|running| PodsSeen {
            running,
            ..PodsSeen::default()
        });
        (any_reading(net), any_reading(cpu), any_reading(ssh), any_reading(pods)).prop_map(|(net, cpu, ssh, pods)| {
            Sample {
                at: AT,
                over: Duration::from_secs(10),
                net,
                cpu,
                ssh,
                pods,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// With the idle machine's own walks: no suspend while any signal is busy or unknown.
        #[test]
        fn quiet_means_that_every_signal_was_read_and_is_below_its_limit(sample in any_sample(), cap in prop::option::of(0..200u64)) {
            fn quiet<T>(reading: &Reading<T>, below: impl Fn(&T) -> bool) -> bool {
                match reading {
                    Reading::Known { value, .. } => below(value),
                    Reading::NotConfigured => true,
                    Reading::Unreadable(_) => false,
                }
            }
            let all_quiet = quiet(&sample.net, |net| net.values().all(|rates| rates.user.rx_bytes_per_sec <= 1024.0))
                && quiet(&sample.cpu, |cpu| cpu.percent <= 10.0)
                && quiet(&sample.ssh, |ssh| ssh.sessions.iter().all(|session| cap.is_some_and(|cap| session.idle.as_secs() > cap)))
                && quiet(&sample.pods, |pods| pods.running.is_empty());
            let judgement = judge(&sample, &with_cap(cap));
            prop_assert_eq!(judgement.verdict == Verdict::Quiet, all_quiet, "{:?}", judgement);
            prop_assert!(judgement.last_activity.is_none_or(|at| at <= AT));
        }
    }
}
