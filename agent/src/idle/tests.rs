//! The transition table, complete, and random walks against an independent oracle.

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const START: BootTime = BootTime(Duration::from_secs(100_000));

fn settings() -> Settings {
    Settings {
        enabled: true,
        inactivity_timeout: 120 * MINUTE,
        grace_period: 10 * MINUTE,
        warn_before: Some(5 * MINUTE),
        min_awake: 5 * MINUTE,
    }
}

fn at(minutes: u32) -> BootTime {
    START.after(minutes * MINUTE)
}

fn quiet(begun: BootTime) -> Event {
    Event::Checked {
        begun,
        finding: Finding::Quiet,
        last_activity: None,
    }
}

fn busy(begun: BootTime) -> Event {
    Event::Checked {
        begun,
        finding: Finding::Busy,
        last_activity: None,
    }
}

fn hold(from: BootTime, minutes: u32) -> Hold {
    Hold {
        until: from.after(minutes * MINUTE),
        by: "root".into(),
        reason: None,
    }
}

/// A machine led into a state by nothing but events; the time is that of its last event.
fn in_state(name: &str) -> (Idle, BootTime) {
    let mut idle = Idle::new(settings(), at(0));
    let mut now = at(0);
    let path: &[(u32, &str)] = &[(1, "quiet"), (120, "grace"), (130, "confirming"), (130, "suspending")];
    for &(minute, reached) in path {
        if idle.state().to_string() == name {
            break;
        }
        now = at(minute);
        match reached {
            "quiet" | "suspending" => idle.handle(quiet(now), now),
            _ => idle.handle(Event::Deadline, now),
        };
        assert_eq!(idle.state().to_string(), reached);
    }
    (idle, now)
}

/// Every state against every event: state after, and actions.
#[test]
fn transition_table_is_complete() {
    use Action::{Announce, Cancel, Confirm, Suspend, Warn};
    use Cancelled::{Activity, Braked, Overtaken};
    const STATES: [&str; 5] = ["active", "quiet", "grace", "confirming", "suspending"];
    type Make = fn(BootTime) -> Event;
    let later = |after: BootTime, minutes: u32| after.after(minutes * MINUTE);

    // (event, minutes after the state was entered, expected in the order of STATES)
    type Row = (&'static str, Make, u32, [(&'static str, Vec<Action>); 5]);
    let grace_ends = at(130);
    let rows: Vec<Row> = vec![
        (
            "quiet check, soon",
            |now| quiet(now),
            0,
            [
                ("quiet", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("suspending", vec![Suspend]),
                ("suspending", vec![]),
            ],
        ),
        (
            "quiet check, late",
            |now| quiet(now),
            200,
            [
                ("grace", vec![Announce { ends: at(210) }]),
                ("grace", vec![Announce { ends: at(211) }]),
                ("confirming", vec![Confirm]),
                ("suspending", vec![Suspend]),
                ("suspending", vec![]),
            ],
        ),
        (
            "quiet check with activity of this moment",
            |now| Event::Checked {
                begun: now,
                finding: Finding::Quiet,
                last_activity: Some(now),
            },
            1,
            [
                ("quiet", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![Cancel(Activity)]),
                ("quiet", vec![Cancel(Activity)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "busy check",
            |now| busy(now),
            1,
            [
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![Cancel(Activity)]),
                ("active", vec![Cancel(Activity)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "activity",
            |now| Event::Activity { at: now },
            1,
            [
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![Cancel(Activity)]),
                ("active", vec![Cancel(Activity)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "deadline, early",
            |_| Event::Deadline,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "deadline, warning due",
            |_| Event::Deadline,
            6,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![Warn { ends: grace_ends }]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "deadline, late",
            |_| Event::Deadline,
            200,
            [
                ("active", vec![]),
                ("grace", vec![Announce { ends: at(211) }]),
                ("confirming", vec![Confirm]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "suspend failed",
            |_| Event::SuspendFailed,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("confirming", vec![]),
                ("active", vec![]),
            ],
        ),
        (
            "resumed",
            |_| Event::Resumed,
            1,
            [
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![Cancel(Overtaken)]),
                ("active", vec![Cancel(Overtaken)]),
                ("active", vec![]),
            ],
        ),
        (
            "disable",
            |_| Event::Disable,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![Cancel(Braked)]),
                ("quiet", vec![Cancel(Braked)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "enable",
            |_| Event::Enable,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "reset",
            |_| Event::Reset,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![Cancel(Activity)]),
                ("quiet", vec![Cancel(Activity)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "hold",
            |now| Event::Hold(hold(now, 1)),
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![Cancel(Braked)]),
                ("quiet", vec![Cancel(Braked)]),
                ("suspending", vec![]),
            ],
        ),
        (
            "release",
            |_| Event::Release,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "settings",
            |_| Event::Settings(settings()),
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![Cancel(Overtaken)]),
                ("quiet", vec![Cancel(Overtaken)]),
                ("suspending", vec![]),
            ],
        ),
    ];

    for (event, make, minutes, expected) in rows {
        for (state, (after, actions)) in STATES.into_iter().zip(expected) {
            let (mut idle, entered) = in_state(state);
            let now = later(entered, minutes);
            let before = idle.clone();
            let did = idle.handle(make(now), now);
            assert_eq!(
                (idle.state().to_string().as_str(), did),
                (after, actions),
                "{event} in {before:?}"
            );
        }
    }
}

#[test]
fn the_guides_two_hours() {
    let mut idle = Idle::new(settings(), at(0));
    assert_eq!(idle.handle(busy(at(0)), at(5)), []);
    assert_eq!(idle.handle(quiet(at(10)), at(10)), []);
    assert_eq!(
        idle.deadline(),
        Some(at(125)),
        "two hours after the last activity, not after the first quiet check"
    );
    assert_eq!(
        idle.handle(Event::Deadline, at(125)),
        [Action::Announce { ends: at(135) }]
    );
    assert_eq!(idle.deadline(), Some(at(130)));
    assert_eq!(idle.handle(Event::Deadline, at(130)), [Action::Warn { ends: at(135) }]);
    assert_eq!(idle.handle(quiet(at(131)), at(131)), []);
    assert_eq!(idle.deadline(), Some(at(135)));
    assert_eq!(idle.handle(Event::Deadline, at(135)), [Action::Confirm]);
    assert_eq!(
        idle.handle(quiet(at(134)), at(135)),
        [],
        "a reading begun before the end of the grace period is stale"
    );
    assert_eq!(idle.handle(quiet(at(135)), at(135)), [Action::Suspend]);
    assert_eq!(idle.handle(Event::Resumed, at(600)), []);
    assert_eq!(idle.memory().last_activity, at(600), "the idle time starts anew");
}

#[test]
fn s4_failed_suspends_back_off_and_the_third_gives_up() {
    let mut idle = Idle::new(
        Settings {
            grace_period: Duration::ZERO,
            ..settings()
        },
        at(0),
    );
    let mut now = at(200);
    for (failure, wait) in [(1, 5), (2, 10), (3, 20)] {
        assert_eq!(
            idle.handle(quiet(now), now),
            [Action::Announce { ends: now }, Action::Confirm]
        );
        assert_eq!(idle.handle(quiet(now), now), [Action::Suspend]);
        let given_up = if failure == 3 { vec![Action::GiveUp] } else { vec![] };
        assert_eq!(idle.handle(Event::SuspendFailed, now), given_up);
        assert_eq!(idle.memory().not_before, now.after(wait * MINUTE));
        assert_eq!(idle.handle(quiet(now), now), [], "not again at once");
        now = idle.memory().not_before;
    }
    assert_eq!(idle.brakes(now), [Brake::Failures(3)]);
    assert_eq!(idle.sleeps_at(), None);
    assert_eq!(
        idle.handle(Event::Enable, now),
        [Action::Announce { ends: now }, Action::Confirm]
    );
    assert_eq!(retry_wait(u32::MAX), RETRY_LONGEST);
}

#[test]
fn s12_awake_for_the_minimum_time_after_a_resume() {
    let mut idle = Idle::new(
        Settings {
            inactivity_timeout: MINUTE,
            ..settings()
        },
        at(0),
    );
    idle.handle(Event::Resumed, at(10));
    assert_eq!(idle.handle(quiet(at(14)), at(14)), []);
    assert_eq!(idle.deadline(), Some(at(15)));
    assert_eq!(
        idle.handle(Event::Deadline, at(15)),
        [Action::Announce { ends: at(25) }]
    );
}

#[test]
fn a_hold_outlives_the_process_and_ends_by_itself() {
    let mut idle = Idle::new(settings(), at(0));
    idle.handle(Event::Hold(hold(at(0), 300)), at(0));
    let mut again = Idle::restore(settings(), idle.memory().clone(), at(200));
    assert_eq!(again.handle(quiet(at(200)), at(200)), []);
    assert_eq!(again.brakes(at(200)), [Brake::Hold(hold(at(0), 300))]);
    assert_eq!(again.deadline(), Some(at(300)));
    assert_eq!(
        again.handle(Event::Deadline, at(300)),
        [Action::Announce { ends: at(310) }]
    );
}

#[test]
fn s14_time_that_runs_backwards_is_ignored() {
    let mut idle = Idle::new(settings(), at(100));
    idle.handle(Event::Activity { at: at(500) }, at(100));
    assert_eq!(
        idle.memory().last_activity,
        at(100),
        "activity of the future is activity of this moment"
    );
    idle.handle(quiet(at(50)), at(50));
    assert_eq!(idle.since(), at(100));
}

/// One step of a random walk.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, seconds.
    Wait(u64),
    /// Time jumps ahead by hours, as after a suspend nobody told of.
    Jump(u64),
    /// Time passes up to the deadline.
    ToDeadline,
    Check(Finding),
    /// A quiet check that tells of activity so many seconds ago.
    QuietSince(u64),
    /// A check begun so many seconds ago.
    StaleQuiet(u64),
    Activity(u64),
    SuspendFailed,
    Resumed,
    Disable,
    Enable,
    Reset,
    Hold(u64),
    Release,
    Restart,
    Settings(Settings),
}

fn any_settings() -> impl Strategy<Value = Settings> {
    (
        prop::bool::weighted(0.9),
        1..200u64,
        0..60u64,
        prop::option::of(0..60u64),
        0..100u64,
    )
        .prop_map(|(enabled, timeout, grace, warn, awake)| Settings {
            enabled,
            inactivity_timeout: Duration::from_secs(timeout),
            grace_period: Duration::from_secs(grace),
            warn_before: warn.map(|warn| Duration::from_secs(warn.min(grace))),
            min_awake: Duration::from_secs(awake),
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..120u64).prop_map(Step::Wait),
        1 => (1..100_000u64).prop_map(Step::Jump),
        8 => Just(Step::ToDeadline),
        16 => Just(Step::Check(Finding::Quiet)),
        2 => Just(Step::Check(Finding::Busy)),
        2 => (0..300u64).prop_map(Step::QuietSince),
        2 => (1..60u64).prop_map(Step::StaleQuiet),
        1 => (0..60u64).prop_map(Step::Activity),
        2 => Just(Step::SuspendFailed),
        2 => Just(Step::Resumed),
        1 => Just(Step::Disable),
        2 => Just(Step::Enable),
        1 => Just(Step::Reset),
        1 => (1..600u64).prop_map(Step::Hold),
        1 => Just(Step::Release),
        1 => Just(Step::Restart),
        1 => any_settings().prop_map(Step::Settings),
    ]
}

/// What a bystander who sees events and actions only can say about whether they are legal. Written without looking into the machine.
struct Oracle {
    settings: Settings,
    last_activity: BootTime,
    announced: Option<BootTime>,
    confirm_asked: Option<BootTime>,
    disabled: bool,
    gave_up: bool,
    held_until: BootTime,
    not_before: BootTime,
    failures: u32,
    suspended: bool,
}

impl Oracle {
    fn forbidden(&self, now: BootTime) -> bool {
        !self.settings.enabled || self.disabled || self.gave_up || now < self.held_until || now < self.not_before
    }

    fn judge(&mut self, event: &Event, actions: &[Action], now: BootTime) -> Result<(), TestCaseError> {
        let mut activity = None;
        let mut cancels = false;
        match event {
            Event::Checked {
                finding: Finding::Busy,
                last_activity,
                ..
            } => {
                activity = Some(last_activity.unwrap_or(now).min(now));
                cancels = true;
            }
            Event::Checked {
                finding: Finding::Quiet,
                last_activity,
                ..
            } => {
                activity = last_activity.map(|at| at.min(now));
                cancels = activity.is_some_and(|at| self.announced.is_some_and(|began| at > began));
            }
            Event::Activity { at } => {
                activity = Some((*at).min(now));
                cancels = true;
            }
            Event::Reset => {
                activity = Some(now);
                cancels = true;
            }
            Event::Resumed => {
                activity = Some(now);
                self.not_before = now.after(self.settings.min_awake);
                self.failures = 0;
                self.suspended = false;
                cancels = true;
            }
            Event::SuspendFailed if self.suspended => {
                self.suspended = false;
                self.failures += 1;
                self.not_before = now.after(retry_wait(self.failures));
                let give_up = self.failures >= GIVE_UP_AFTER && !self.disabled && !self.gave_up;
                prop_assert_eq!(actions.contains(&Action::GiveUp), give_up);
                self.gave_up |= give_up;
            }
            Event::SuspendFailed | Event::Deadline => {}
            Event::Disable => {
                self.disabled = true;
                cancels = true;
            }
            Event::Enable => {
                self.disabled = false;
                self.gave_up = false;
                self.failures = 0;
            }
            Event::Hold(hold) => {
                self.held_until = hold.until;
                cancels = true;
            }
            Event::Release => self.held_until = BootTime::default(),
            Event::Settings(settings) => {
                self.settings = settings.clone();
                cancels = true;
            }
        }
        self.last_activity = self.last_activity.max(activity.unwrap_or_default());

        let cancelled = actions.iter().any(|action| matches!(action, Action::Cancel(_)));
        if cancels && self.announced.is_some() && !self.suspended {
            prop_assert!(cancelled, "not cancelled at once by {event:?}");
        }
        prop_assert!(
            !cancelled || self.announced.is_some(),
            "cancelled what was never announced"
        );
        if cancelled {
            (self.announced, self.confirm_asked) = (None, None);
        }

        let idle = now.since(self.last_activity);
        for action in actions {
            match action {
                Action::Announce { ends } => {
                    prop_assert!(idle >= self.settings.inactivity_timeout, "announced after {idle:?}");
                    prop_assert!(!self.forbidden(now), "announced while forbidden");
                    prop_assert_eq!(*ends, now.after(self.settings.grace_period));
                    self.announced = Some(now);
                }
                Action::Warn { ends } => {
                    prop_assert_eq!(
                        Some(*ends),
                        self.announced.map(|began| began.after(self.settings.grace_period))
                    );
                }
                Action::Confirm => {
                    let ends = self.announced.map(|began| began.after(self.settings.grace_period));
                    prop_assert!(ends.is_some_and(|ends| now >= ends), "grace period cut short");
                    self.confirm_asked = Some(now);
                }
                Action::Suspend => {
                    let Event::Checked {
                        begun,
                        finding: Finding::Quiet,
                        ..
                    } = event
                    else {
                        return Err(TestCaseError::fail(format!("suspend on {event:?}")));
                    };
                    prop_assert!(
                        self.confirm_asked.is_some_and(|asked| *begun >= asked),
                        "suspend on a stale reading"
                    );
                    prop_assert!(self.announced.is_some_and(|began| self.last_activity <= began));
                    prop_assert!(idle >= self.settings.inactivity_timeout, "suspend after {idle:?}");
                    prop_assert!(!self.forbidden(now), "suspend while forbidden");
                    (self.announced, self.confirm_asked, self.suspended) = (None, None, true);
                }
                Action::Cancel(_) | Action::GiveUp => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_walks_are_legal(settings in any_settings(), steps in prop::collection::vec(any_step(), 1..80)) {
        let mut now = START;
        let mut idle = Idle::new(settings.clone(), now);
        let mut oracle = Oracle {
            settings,
            last_activity: now,
            announced: None,
            confirm_asked: None,
            disabled: false,
            gave_up: false,
            held_until: BootTime::default(),
            not_before: BootTime::default(),
            failures: 0,
            suspended: false,
        };
        for step in steps {
            let ago = |seconds| now.before(Duration::from_secs(seconds));
            let event = match step {
                Step::Wait(seconds) | Step::Jump(seconds) => {
                    now = now.after(Duration::from_secs(seconds));
                    Event::Deadline
                }
                Step::ToDeadline => {
                    now = idle.deadline().map_or(now, |deadline| deadline.max(now));
                    Event::Deadline
                }
                Step::Check(finding) => Event::Checked { begun: now, finding, last_activity: None },
                Step::QuietSince(seconds) => {
                    Event::Checked { begun: now, finding: Finding::Quiet, last_activity: Some(ago(seconds)) }
                }
                Step::StaleQuiet(seconds) => {
                    Event::Checked { begun: ago(seconds), finding: Finding::Quiet, last_activity: None }
                }
                Step::Activity(seconds) => Event::Activity { at: ago(seconds) },
                Step::SuspendFailed => Event::SuspendFailed,
                Step::Resumed => Event::Resumed,
                Step::Disable => Event::Disable,
                Step::Enable => Event::Enable,
                Step::Reset => Event::Reset,
                Step::Hold(seconds) => {
                    let length = Duration::from_secs(seconds);
                    Event::Hold(Hold { until: now.after(length), by: "somebody".into(), reason: None })
                }
                Step::Release => Event::Release,
                Step::Restart => {
                    idle = Idle::restore(idle.settings().clone(), idle.memory().clone(), now);
                    (oracle.announced, oracle.confirm_asked, oracle.suspended) = (None, None, false);
                    prop_assert_eq!(idle.state(), State::Active);
                    continue;
                }
                Step::Settings(settings) => Event::Settings(settings),
            };
            let actions = idle.handle(event.clone(), now);
            oracle.judge(&event, &actions, now)?;
            prop_assert_eq!(idle.memory().last_activity, oracle.last_activity);
            prop_assert_eq!(!idle.brakes(now).is_empty(), oracle.forbidden(now), "brakes {:?}", idle.brakes(now));
            if let (Event::Deadline, Some(deadline)) = (event, idle.deadline()) {
                prop_assert!(deadline > now, "a deadline that was served is due again: the driver would spin");
            }
        }
    }
}
