//! Two agents see the same host, one with `auto` and one with `always`: random walks over what it does.

use proptest::prelude::*;

use super::*;
use crate::{
    counters::{Counters, CpuTotals, Interface, NetTotals, Program, Session, SshSeen, Traffic, Twofold},
    history::History,
    idle::{Action, Event, Finding, Idle, Settings},
    verdict::{Verdict, judge},
};

const STEP: Duration = Duration::from_secs(10);
const LIMIT: u64 = 1024;

/// What a host does for one sample.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Bytes of users.
    user: u64,
    /// Bytes of the cluster's own chatter.
    background: u64,
    /// Percent.
    cpu: u32,
    session: bool,
}

/// An agent with simulated sensors.
struct Agent {
    policy: Policy,
    now: BootTime,
    plain: (Traffic, Duration),
    net: Option<(Traffic, Traffic)>,
    sched: Option<Duration>,
    epoch: u64,
    history: History,
    idle: Idle,
    escalation: Escalation,
    attached: Vec<(Family, bool, BootTime)>,
}

/// What came of a sample.
struct Outcome {
    quiet: bool,
    /// Nothing was left to the plain counters that they cannot tell.
    sure: bool,
    suspends: bool,
}

impl Agent {
    fn new(probes: ProbeMode, check_interval: Duration) -> Self {
        let mut policy = Policy {
            probes,
            check_interval,
            ..Policy::default()
        };
        policy.detection.pods = false;
        let now = BootTime(Duration::from_secs(1000));
        let settings = Settings {
            enabled: true,
            inactivity_timeout: 6 * STEP,
            grace_period: STEP,
            warn_before: None,
            min_awake: STEP,
        };
        let mut agent = Self {
            policy,
            now,
            plain: (Traffic::default(), Duration::ZERO),
            net: Some((Traffic::default(), Traffic::default())),
            sched: Some(Duration::ZERO),
            epoch: 0,
            history: History::default(),
            idle: Idle::new(settings, now),
            escalation: Escalation::new(now),
            attached: Vec::new(),
        };
        agent.check(false);
        agent
    }

    fn live(&mut self, load: Load) -> Outcome {
        self.now = self.now.after(STEP);
        let received = |rx_bytes| Traffic {
            rx_bytes,
            ..Traffic::default()
        };
        let busy = STEP * load.cpu / 100;
        self.plain.0 = self.plain.0.plus(received(load.user + load.background));
        self.plain.1 += busy;
        if let Some((user, background)) = &mut self.net {
            *user = user.plus(received(load.user));
            *background = background.plus(received(load.background));
        }
        if let Some(counted) = &mut self.sched {
            *counted += busy;
        }
        self.check(load.session)
    }

    fn check(&mut self, session: bool) -> Outcome {
        let reading = self.read(session);
        let sample = self.history.add(reading, STEP);
        let judgement = judge(&sample, &self.policy);
        let reasons = match judgement.verdict {
            Verdict::Quiet => Vec::new(),
            Verdict::Busy(reasons) => reasons,
        };
        let finding = if reasons.is_empty() {
            Finding::Quiet
        } else {
            Finding::Busy
        };
        let checked = Event::Checked {
            begun: self.now,
            finding,
            last_activity: judgement.last_activity,
        };
        let mut actions = self.idle.handle(checked.clone(), self.now);
        actions.extend(self.idle.handle(Event::Deadline, self.now));
        if actions.contains(&Action::Confirm) {
            actions.extend(self.idle.handle(checked, self.now));
        }
        let suspends = actions.contains(&Action::Suspend);
        if suspends {
            self.idle.handle(Event::Resumed { slept: Duration::ZERO }, self.now);
        }
        let changes = self
            .escalation
            .step(Some(&sample), &reasons, self.idle.state(), &self.policy, self.now);
        for (family, attach) in changes {
            self.set_attached(family, attach);
            self.attached.push((family, attach, self.now));
            if attach {
                let reading = self.read(session);
                self.history.replace_newest(reading);
            }
        }
        let classes_missing = reasons.iter().any(is_traffic)
            && !matches!(
                &sample.net,
                Reading::Known {
                    source: Source::Kernel,
                    ..
                }
            );
        Outcome {
            quiet: reasons.is_empty(),
            sure: !classes_missing,
            suspends,
        }
    }

    fn set_attached(&mut self, family: Family, attach: bool) {
        self.epoch += 1;
        match family {
            Family::Net => self.net = attach.then(Default::default),
            Family::Sched => self.sched = attach.then_some(Duration::ZERO),
            Family::Ssh => unreachable!("stays"),
        }
    }

    fn read(&self, session: bool) -> Counters {
        fn plain<T>(value: T) -> Reading<T> {
            Reading::Known {
                value,
                source: Source::Plain,
            }
        }
        fn program<T>(value: Option<T>, epoch: u64) -> Program<T> {
            value.map_or(Program::Away, |value| Program::Counts { value, epoch })
        }
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
        };
        let cpu = |busy| CpuTotals {
            busy: [(0, busy)].into(),
            ..CpuTotals::default()
        };
        let classes = self.net.map(|(user, background)| NetTotals {
            user,
            background,
            ..NetTotals::default()
        });
        let session = session.then(|| Session {
            user: None,
            peer: [10, 0, 0, 1].into(),
            peer_port: 4000,
            pid: 1,
            idle: Duration::ZERO,
        });
        Counters {
            at: self.now,
            net: Twofold {
                plain: plain([(eth0.clone(), self.plain.0)].into()),
                program: program(classes.map(|classes| [(eth0, classes)].into()), self.epoch),
            },
            cpu: Twofold {
                plain: plain(cpu(self.plain.1)),
                program: program(self.sched.map(cpu), self.epoch),
            },
            ssh: plain(SshSeen {
                sessions: session.into_iter().collect(),
                ..SshSeen::default()
            }),
            pods: Reading::NotConfigured,
        }
    }
}

/// Stretches of the same load, so that something settles, at and around the thresholds.
fn any_day() -> impl Strategy<Value = Vec<Load>> {
    let bytes = || {
        prop_oneof![
            3 => Just(0),
            2 => 0..LIMIT * STEP.as_secs() * 2,
            1 => Just(50_000_000),
        ]
    };
    let load = (
        bytes(),
        bytes(),
        prop_oneof![3 => 0..10u32, 1 => 0..100u32],
        prop::bool::weighted(0.1),
    );
    let load = load.prop_map(|(user, background, cpu, session)| Load {
        user,
        background,
        cpu,
        session,
    });
    let stretch = (load, 1..12usize).prop_map(|(load, length)| vec![load; length]);
    prop::collection::vec(stretch, 1..12).prop_map(|stretches| stretches.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The verdict with `auto` is that with `always`, except while traffic alone keeps the host awake and nobody has looked whose it is:
    /// then `auto` stays awake.
    #[test]
    fn auto_judges_as_always_does_and_in_doubt_stays_awake(day in any_day(), every in 1..6u32) {
        let mut auto = Agent::new(ProbeMode::Auto, every * STEP);
        let mut always = Agent::new(ProbeMode::Always, every * STEP);
        for load in day {
            let (one, other) = (auto.live(load), always.live(load));
            if one.sure {
                prop_assert_eq!(one.quiet, other.quiet, "{:?}", load);
            } else {
                prop_assert!(!one.quiet);
            }
            prop_assert!(!one.suspends || other.quiet, "slept while `always` says busy: {:?}", load);
        }
    }

    /// Chatter of the cluster alone is recognised: within a check interval and a sample both are of one mind, and stay so.
    #[test]
    fn a_steady_load_is_soon_judged_alike(day in any_day(), every in 1..6u32) {
        let last = *day.last().expect("a day has a load");
        let mut auto = Agent::new(ProbeMode::Auto, every * STEP);
        let mut always = Agent::new(ProbeMode::Always, every * STEP);
        for load in day {
            auto.live(load);
            always.live(load);
        }
        for step in 0..40 {
            let (one, other) = (auto.live(last), always.live(last));
            if step > every + 1 {
                prop_assert_eq!(one.quiet, other.quiet, "{:?} at step {}", last, step);
            }
        }
    }

    /// At most one attachment of a family in a check interval, however the load goes.
    #[test]
    fn nothing_flaps(day in any_day(), every in 1..6u32) {
        let mut auto = Agent::new(ProbeMode::Auto, every * STEP);
        for load in day {
            auto.live(load);
        }
        for family in MOVABLE {
            let times: Vec<_> = auto.attached.iter().filter(|(of, attach, _)| *of == family && *attach).map(|(.., at)| *at).collect();
            for pair in times.windows(2) {
                prop_assert!(pair[1].since(pair[0]) >= every * STEP, "{:?}", auto.attached);
            }
        }
    }
}

fn days(load: Load, steps: usize) -> Agent {
    let mut agent = Agent::new(ProbeMode::Auto, 30 * STEP);
    for _ in 0..steps {
        agent.live(load);
    }
    agent
}

const NOTHING: Load = Load {
    user: 0,
    background: 0,
    cpu: 0,
    session: false,
};

#[test]
fn a_loaded_host_pays_nothing_and_a_resting_one_sees_everything() {
    let mut agent = days(
        Load {
            user: 50_000_000,
            cpu: 90,
            ..NOTHING
        },
        40,
    );
    assert_eq!((agent.net, agent.sched), (None, None));
    agent.live(NOTHING);
    assert!(agent.net.is_some() && agent.sched.is_some());
    let why: Vec<_> = agent.escalation.standing().map(|(_, why, _)| why).collect();
    assert_eq!(why, [Why::QuietPeriod, Why::QuietPeriod]);
}

#[test]
fn a_file_server_is_looked_at_for_one_sample_in_each_check_interval() {
    let server = Load {
        user: 50_000_000,
        ..NOTHING
    };
    let mut agent = days(server, 1);
    let mut attached = 0;
    for _ in 0..300 {
        attached += u32::from(agent.net.is_some());
        agent.live(server);
    }
    assert_eq!(attached, 300 / 30, "samples with programs on the interface");
    assert_eq!(agent.sched, None);
}

#[test]
fn chatter_above_the_threshold_is_recognised_and_lets_the_host_rest() {
    let chatter = Load {
        background: 20_000,
        ..NOTHING
    };
    let mut agent = days(chatter, 3);
    assert_eq!(agent.idle.state(), State::Quiet);
    assert!(agent.live(chatter).quiet);
}

#[test]
fn off_and_signals_that_do_not_count_want_nothing() {
    let want = |policy: &Policy, family| wanted(family, None, &[], State::Quiet, policy);
    let mut policy = Policy {
        probes: ProbeMode::Off,
        ..Policy::default()
    };
    assert_eq!(want(&policy, Family::Net), Want::Out(Why::NotConfigured));
    policy.probes = ProbeMode::Auto;
    policy.detection.cpu_percent = None;
    assert_eq!(want(&policy, Family::Sched), Want::Out(Why::NotConfigured));
    assert_eq!(want(&policy, Family::Net), Want::In(Why::Starting));
}

#[test]
fn programs_that_cannot_tell_the_pods_part_are_not_wanted_where_only_pods_count() {
    let mut policy = Policy::default();
    policy.detection.cpu_scope = Scope::Pods;
    let want = |policy: &Policy, family| wanted(family, None, &[], State::Quiet, policy);
    assert_eq!(want(&policy, Family::Sched), Want::Out(Why::PodsOnly));
    assert_eq!(want(&policy, Family::Net), Want::In(Why::Starting));
    policy.detection.network_scope = Scope::Pods;
    assert_eq!(want(&policy, Family::Net), Want::Out(Why::PodsOnly));
    policy.detection.network_bytes_per_sec = None;
    assert_eq!(want(&policy, Family::Net), Want::Out(Why::NotConfigured));
}
