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
    let path: &[(u32, &str)] = &[
        (1, "quiet"),
        (120, "grace"),
        (130, "preparing"),
        (130, "confirming"),
        (130, "suspending"),
    ];
    for &(minute, reached) in path {
        if idle.state().to_string() == name {
            break;
        }
        now = at(minute);
        match reached {
            "quiet" | "suspending" => idle.handle(quiet(now), now),
            "confirming" => idle.handle(Event::Prepared, now),
            _ => idle.handle(Event::Deadline, now),
        };
        assert_eq!(idle.state().to_string(), reached);
    }
    (idle, now)
}

/// Every state against every event: state after, and actions.
#[test]
fn transition_table_is_complete() {
    use Action::{Announce, Cancel, Confirm, Prepare, Suspend, Warn};
    use Cancelled::{Activity, Braked, Overtaken};
    const STATES: [&str; 6] = ["active", "quiet", "grace", "preparing", "confirming", "suspending"];
    type Make = fn(BootTime) -> Event;
    let later = |after: BootTime, minutes: u32| after.after(minutes * MINUTE);

    // (event, minutes after the state was entered, expected in the order of STATES)
    type Row = (&'static str, Make, u32, [(&'static str, Vec<Action>); 6]);
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
                ("preparing", vec![]),
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
                ("preparing", vec![Prepare(Order::Idle)]),
                ("preparing", vec![]),
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
                ("active", vec![Cancel(Activity)]),
                ("suspending", vec![Cancel(Activity)]),
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
                ("active", vec![Cancel(Activity)]),
                ("suspending", vec![Cancel(Activity)]),
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
                ("preparing", vec![]),
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
                ("preparing", vec![]),
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
                ("preparing", vec![Prepare(Order::Idle)]),
                ("preparing", vec![]),
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
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![]),
            ],
        ),
        (
            "resumed",
            |_| Event::Resumed { slept: MINUTE },
            1,
            [
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![Cancel(Overtaken)]),
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
                ("quiet", vec![Cancel(Braked)]),
                ("suspending", vec![Cancel(Braked)]),
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
                ("preparing", vec![]),
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
                ("quiet", vec![Cancel(Activity)]),
                ("suspending", vec![Cancel(Activity)]),
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
                ("quiet", vec![Cancel(Braked)]),
                ("suspending", vec![Cancel(Braked)]),
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
                ("preparing", vec![]),
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
                ("quiet", vec![Cancel(Overtaken)]),
                ("suspending", vec![Cancel(Overtaken)]),
            ],
        ),
        (
            "ordered by an operator",
            |_| Event::SleepNow(Order::Operator),
            1,
            [
                ("preparing", vec![Prepare(Order::Operator)]),
                ("preparing", vec![Prepare(Order::Operator)]),
                ("preparing", vec![Prepare(Order::Operator)]),
                ("preparing", vec![]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "prepared",
            |_| Event::Prepared,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("confirming", vec![Confirm]),
                ("confirming", vec![]),
                ("suspending", vec![]),
            ],
        ),
        (
            "refused",
            |_| Event::Refused,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![]),
                ("quiet", vec![]),
            ],
        ),
        (
            "aborted",
            |_| Event::Aborted,
            1,
            [
                ("active", vec![]),
                ("quiet", vec![]),
                ("grace", vec![]),
                ("active", vec![]),
                ("active", vec![]),
                ("active", vec![]),
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
    assert_eq!(idle.handle(Event::Deadline, at(135)), [Action::Prepare(Order::Idle)]);
    assert_eq!(idle.handle(Event::Prepared, at(135)), [Action::Confirm]);
    assert_eq!(
        idle.handle(quiet(at(134)), at(135)),
        [],
        "a reading begun before everything else was prepared is stale"
    );
    assert_eq!(idle.handle(quiet(at(135)), at(135)), [Action::Suspend]);
    assert_eq!(idle.handle(Event::Resumed { slept: 465 * MINUTE }, at(600)), []);
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
            [Action::Announce { ends: now }, Action::Prepare(Order::Idle)]
        );
        assert_eq!(idle.handle(Event::Prepared, now), [Action::Confirm]);
        assert_eq!(idle.handle(quiet(now), now), [Action::Suspend]);
        let given_up = match failure {
            3 => vec![Action::GiveUp(GaveUp::Failures)],
            _ => vec![],
        };
        assert_eq!(idle.handle(Event::SuspendFailed, now), given_up);
        assert_eq!(idle.memory().not_before, now.after(wait * MINUTE));
        assert_eq!(idle.handle(quiet(now), now), [], "not again at once");
        now = idle.memory().not_before;
    }
    assert_eq!(idle.brakes(now), [Brake::Failures(3)]);
    assert_eq!(idle.sleeps_at(), None);
    assert_eq!(
        idle.handle(Event::Enable, now),
        [Action::Announce { ends: now }, Action::Prepare(Order::Idle)]
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
    idle.handle(Event::Resumed { slept: MINUTE }, at(10));
    assert_eq!(idle.handle(quiet(at(14)), at(14)), []);
    assert_eq!(idle.deadline(), Some(at(15)));
    assert_eq!(
        idle.handle(Event::Deadline, at(15)),
        [Action::Announce { ends: at(25) }]
    );
}

/// Led into a suspend by an order, at `now`.
fn suspending(idle: &mut Idle, order: Order, now: BootTime) {
    assert_eq!(idle.handle(Event::SleepNow(order), now), [Action::Prepare(order)]);
    assert_eq!(idle.handle(Event::Prepared, now), [Action::Confirm]);
    assert_eq!(idle.handle(quiet(now), now), [Action::Suspend]);
}

#[test]
fn s12_the_third_short_sleep_in_a_row_gives_up() {
    let mut idle = Idle::new(settings(), at(0));
    let mut sleep = |minute, seconds| {
        suspending(&mut idle, Order::Operator, at(minute));
        let slept = Duration::from_secs(seconds);
        (
            idle.handle(Event::Resumed { slept }, at(minute + 1)),
            idle.memory().switch,
        )
    };
    for (minute, seconds) in [(1, 59), (2, 0), (3, 60), (4, 59), (5, 59)] {
        assert_eq!(sleep(minute, seconds), (vec![], Switch::On), "minute {minute}");
    }
    assert_eq!(
        sleep(6, 59),
        (vec![Action::GiveUp(GaveUp::WakeLoop)], Switch::OffByWakeLoop)
    );
    assert_eq!(idle.brakes(at(600)), [Brake::WakeLoop(3)]);
    idle.handle(Event::Enable, at(600));
    assert_eq!(idle.brakes(at(600)), []);
}

#[test]
fn s16_a_suspend_by_somebody_else_is_no_wake_loop() {
    let mut idle = Idle::new(settings(), at(0));
    for minute in 0..10 {
        assert_eq!(idle.handle(Event::Resumed { slept: Duration::ZERO }, at(minute)), []);
    }
    assert_eq!(idle.memory().short_sleeps, 0);
}

#[test]
fn an_order_needs_no_idle_time_and_only_force_passes_a_hold() {
    let mut idle = Idle::new(settings(), at(0));
    idle.handle(Event::Hold(hold(at(0), 300)), at(0));
    assert_eq!(idle.handle(Event::SleepNow(Order::Operator), at(1)), []);
    assert_eq!(idle.forbids(Order::Operator, at(1)), [Brake::Hold(hold(at(0), 300))]);
    suspending(&mut idle.clone(), Order::Forced, at(1));
    idle.handle(Event::Release, at(1));
    idle.handle(Event::Disable, at(1));
    assert_eq!(idle.handle(Event::SleepNow(Order::Idle), at(1)), []);
    suspending(&mut idle.clone(), Order::Operator, at(1));
    idle.handle(Event::SleepNow(Order::Operator), at(1));
    assert_eq!(
        idle.handle(Event::Activity { at: at(1) }, at(1)),
        [Action::Cancel(Cancelled::Activity)]
    );
}

#[test]
fn a_refusal_waits_longer_each_time_until_there_is_activity() {
    let mut idle = Idle::new(settings(), at(0));
    for wait in [5, 10, 20, 40, 60, 60] {
        idle.handle(Event::SleepNow(Order::Operator), at(1));
        idle.handle(Event::Refused, at(1));
        assert_eq!(idle.brakes(at(1)), [Brake::NotBefore(at(1 + wait))]);
    }
    idle.handle(Event::Activity { at: at(1) }, at(1));
    idle.handle(Event::SleepNow(Order::Operator), at(1));
    idle.handle(Event::Refused, at(1));
    assert_eq!(idle.brakes(at(1)), [Brake::NotBefore(at(6))]);
    assert_eq!(idle.memory().failures, 0);
}

#[test]
fn s1_a_suspend_under_way_is_called_off_once() {
    let mut idle = Idle::new(settings(), at(0));
    suspending(&mut idle, Order::Operator, at(1));
    assert_eq!(
        idle.handle(Event::Activity { at: at(1) }, at(1)),
        [Action::Cancel(Cancelled::Activity)]
    );
    assert_eq!(idle.handle(busy(at(1)), at(1)), []);
    assert_eq!(idle.handle(Event::Aborted, at(1)), []);
    assert_eq!((idle.state(), idle.memory().failures), (State::Active, 0));
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
    SleepNow(Order),
    Prepared,
    Refused,
    Aborted,
    SuspendFailed,
    /// After so many seconds.
    Resumed(u64),
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
        1 => prop_oneof![Just(Order::Operator), Just(Order::Forced)].prop_map(Step::SleepNow),
        8 => Just(Step::Prepared),
        1 => Just(Step::Refused),
        1 => Just(Step::Aborted),
        2 => Just(Step::SuspendFailed),
        3 => (0..200u64).prop_map(Step::Resumed),
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
    /// The attempt that is being prepared or confirmed, and since when it was asked to be confirmed.
    attempt: Option<Order>,
    confirm_asked: Option<BootTime>,
    disabled: bool,
    gave_up: bool,
    gave_up_by_failures: bool,
    held_until: BootTime,
    not_before: BootTime,
    failures: u32,
    refusals: u32,
    short: u32,
    /// A suspend is being carried out, and whether it was called off.
    suspended: Option<bool>,
}

impl Oracle {
    fn new(settings: Settings, now: BootTime) -> Self {
        Self {
            settings,
            last_activity: now,
            announced: None,
            attempt: None,
            confirm_asked: None,
            disabled: false,
            gave_up: false,
            gave_up_by_failures: false,
            held_until: BootTime::default(),
            not_before: BootTime::default(),
            failures: 0,
            refusals: 0,
            short: 0,
            suspended: None,
        }
    }

    /// The process is another one.
    fn restarted(&mut self) {
        (self.announced, self.attempt, self.confirm_asked, self.suspended) = (None, None, None, None);
    }

    fn forbidden(&self, now: BootTime) -> bool {
        !self.settings.enabled || self.disabled || self.gave_up || now < self.held_until || now < self.not_before
    }

    fn forbidden_to(&self, order: Order, now: BootTime) -> bool {
        match order {
            Order::Idle => self.forbidden(now),
            Order::Operator => now < self.held_until,
            Order::Forced => false,
        }
    }

    /// Takes note of what the event says by itself; whether it must end an announced sleep.
    fn listen(&mut self, event: &Event, actions: &[Action], now: BootTime) -> Result<bool, TestCaseError> {
        let (activity, cancels) = match event {
            Event::Checked {
                finding: Finding::Busy,
                last_activity,
                ..
            } => {
                self.refusals = 0;
                (Some(last_activity.unwrap_or(now).min(now)), true)
            }
            Event::Checked {
                finding: Finding::Quiet,
                last_activity,
                ..
            } => {
                let activity = last_activity.map(|at| at.min(now));
                let by_idle = self.suspended.is_none() && matches!(self.attempt, None | Some(Order::Idle));
                let after = activity.is_some_and(|at| self.announced.is_some_and(|began| at > began));
                (activity, by_idle && after)
            }
            Event::Activity { at } => {
                self.refusals = 0;
                (Some((*at).min(now)), true)
            }
            Event::Reset => (Some(now), true),
            Event::Resumed { slept } => {
                self.not_before = now.after(self.settings.min_awake);
                self.refusals = 0;
                if !self.gave_up_by_failures {
                    self.failures = 0;
                }
                if self.suspended.take().is_some() {
                    self.short = if *slept < SHORT_SLEEP { self.short + 1 } else { 0 };
                    let loops = self.short >= WAKE_LOOP_AFTER && !self.disabled && !self.gave_up;
                    prop_assert_eq!(actions.contains(&Action::GiveUp(GaveUp::WakeLoop)), loops);
                    self.gave_up |= loops;
                }
                (Some(now), true)
            }
            Event::SuspendFailed => {
                if self.attempt.is_some() || self.suspended.is_some() {
                    self.restarted();
                    self.failures += 1;
                    self.not_before = now.after(retry_wait(self.failures));
                    let give_up = self.failures >= GIVE_UP_AFTER && !self.disabled && !self.gave_up;
                    prop_assert_eq!(actions.contains(&Action::GiveUp(GaveUp::Failures)), give_up);
                    self.gave_up |= give_up;
                    self.gave_up_by_failures |= give_up;
                }
                (None, false)
            }
            Event::Refused => {
                if self.attempt.is_some() || self.suspended.is_some() {
                    self.restarted();
                    self.refusals += 1;
                    self.not_before = now.after(retry_wait(self.refusals));
                }
                (None, false)
            }
            Event::Aborted => {
                if self.attempt.is_some() || self.suspended.is_some() {
                    self.restarted();
                    self.not_before = self.not_before.max(now.after(RETRY_FIRST));
                }
                (None, false)
            }
            Event::Deadline | Event::Prepared | Event::SleepNow(_) => (None, false),
            Event::Disable => {
                self.disabled = true;
                self.gave_up_by_failures = false;
                (None, true)
            }
            Event::Enable => {
                (self.disabled, self.gave_up, self.gave_up_by_failures) = (false, false, false);
                (self.failures, self.short) = (0, 0);
                (None, false)
            }
            Event::Hold(hold) => {
                self.held_until = hold.until;
                (None, true)
            }
            Event::Release => {
                self.held_until = BootTime::default();
                (None, false)
            }
            Event::Settings(settings) => {
                self.settings = settings.clone();
                (None, true)
            }
        };
        self.last_activity = self.last_activity.max(activity.unwrap_or_default());
        Ok(cancels)
    }

    fn judge(&mut self, event: &Event, actions: &[Action], now: BootTime) -> Result<(), TestCaseError> {
        let cancels = self.listen(event, actions, now)?;
        let cancelled = actions.iter().any(|action| matches!(action, Action::Cancel(_)));
        match self.suspended {
            Some(true) => prop_assert!(!cancelled, "called off twice"),
            Some(false) => {
                prop_assert_eq!(cancelled, cancels, "a suspend under way, by {:?}", event);
                self.suspended = Some(cancelled);
            }
            None => {
                let stands = self.announced.is_some() || self.attempt.is_some();
                prop_assert!(!cancels || !stands || cancelled, "not cancelled at once by {:?}", event);
                prop_assert!(!cancelled || stands, "cancelled what was never announced");
                if cancelled {
                    self.restarted();
                }
            }
        }
        for action in actions {
            self.allow(*action, event, now)?;
        }
        Ok(())
    }

    fn allow(&mut self, action: Action, event: &Event, now: BootTime) -> Result<(), TestCaseError> {
        let idle = now.since(self.last_activity);
        let ends = self.announced.map(|began| began.after(self.settings.grace_period));
        match action {
            Action::Announce { ends } => {
                prop_assert!(idle >= self.settings.inactivity_timeout, "announced after {idle:?}");
                prop_assert!(!self.forbidden(now), "announced while forbidden");
                prop_assert_eq!(ends, now.after(self.settings.grace_period));
                self.announced = Some(now);
            }
            Action::Warn { ends: told } => prop_assert_eq!(Some(told), ends),
            Action::Prepare(Order::Idle) => {
                prop_assert!(ends.is_some_and(|ends| now >= ends), "grace period cut short");
                self.attempt = Some(Order::Idle);
            }
            Action::Prepare(order) => {
                prop_assert_eq!(event, &Event::SleepNow(order));
                prop_assert!(!self.forbidden_to(order, now), "prepared while forbidden");
                self.attempt = Some(order);
                self.announced = Some(now);
            }
            Action::Confirm => {
                prop_assert_eq!(event, &Event::Prepared);
                prop_assert!(self.attempt.is_some());
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
                let order = self.attempt.unwrap();
                prop_assert!(!self.forbidden_to(order, now), "suspend while forbidden");
                if order == Order::Idle {
                    prop_assert!(self.announced.is_some_and(|began| self.last_activity <= began));
                    prop_assert!(idle >= self.settings.inactivity_timeout, "suspend after {idle:?}");
                }
                self.restarted();
                self.suspended = Some(false);
            }
            Action::Cancel(_) | Action::GiveUp(_) => {}
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
        let mut oracle = Oracle::new(settings, now);
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
                Step::SleepNow(order) => Event::SleepNow(order),
                Step::Prepared => Event::Prepared,
                Step::Refused => Event::Refused,
                Step::Aborted => Event::Aborted,
                Step::SuspendFailed => Event::SuspendFailed,
                Step::Resumed(seconds) => Event::Resumed { slept: Duration::from_secs(seconds) },
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
                    oracle.restarted();
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
