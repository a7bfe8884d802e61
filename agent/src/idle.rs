//! Decides when the host may sleep. Never reads a clock, a socket or a file: the driver brings it events and the time, and carries out
//! the actions it returns.
//!
//! ```text
//!            busy, unknown, activity           quiet, timeout over, brakes off
//!      ┌─────────────┬─────────────┬─────────────┬──────────────┐
//!      v             │             │             │              │
//! ┌────────┐quiet┌───┴───┐     ┌───┴───┐ end ┌───┴───────┐ ┌────┴───────┐ quiet, read  ┌────────────┐
//! │ Active ├────>│ Quiet ├────>│ Grace ├────>│ Preparing ├>│ Confirming ├─────────────>│ Suspending │
//! └────────┘     └───────┘     └───┬───┘     └───┬───────┘ └────┬───────┘  afterwards  └──┬──┬──────┘
//!      ^             ^ brake set   │   brake set, refused       │               refused   │  │ resumed, failed,
//!      │             └─────────────┴─────────────┴──────────────┴─────────────────────────┘  │ called off
//!      └─────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! *Brakes* forbid sleeping whatever the verdict: configuration, an operator's `disable`, a hold, and the time to wait after a sleep that
//! failed or was refused, and after a resume. They are looked at on the way into the grace period, at its end, and once more before
//! suspending. An operator can order a sleep at once ([`Order`]); of the brakes only a hold stands against that.
//!
//! Invariants, walked by the property tests below: a suspend follows only a quiet reading that was begun after everything else was
//! prepared; activity ends an announced sleep at once and calls off one that is being carried out; the idle time counts from the last
//! activity the kernel saw.

use std::{fmt, time::Duration};

use crate::clock::BootTime;

/// What the machine needs of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether sleeping is allowed at all.
    pub enabled: bool,
    /// Quiet time before the grace period.
    pub inactivity_timeout: Duration,
    /// Time between announcing and suspending.
    pub grace_period: Duration,
    /// Warn this long before the end of the grace period; `None`: do not.
    pub warn_before: Option<Duration>,
    /// Stay awake at least this long after a resume.
    pub min_awake: Duration,
}

/// Time to wait after the first suspend that failed; doubled for each further one in a row.
pub const RETRY_FIRST: Duration = Duration::from_secs(5 * 60);
/// The longest such wait.
pub const RETRY_LONGEST: Duration = Duration::from_secs(60 * 60);
/// Failures in a row after which the machine gives up until an operator enables it again.
pub const GIVE_UP_AFTER: u32 = 3;
/// A sleep of ours that is shorter than this was ended by something that will end the next one too.
pub const SHORT_SLEEP: Duration = Duration::from_secs(60);
/// Short sleeps in a row after which the machine gives up until an operator enables it again.
pub const WAKE_LOOP_AFTER: u32 = 3;

/// Where the host is on its way to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use, or not known to be quiet.
    Active,
    /// Quiet; the idle time runs.
    Quiet,
    /// The sleep is announced.
    Grace {
        /// When it ends.
        ends: BootTime,
        /// Whether the warning before its end has been given.
        warned: Warned,
    },
    /// The grace period is over, or an operator ordered a sleep: everybody else is asked, hooks run.
    Preparing(Attempt),
    /// Prepared; everything is to be read once more.
    Confirming(Attempt),
    /// The suspend is being carried out, its outcome is awaited.
    Suspending {
        /// Whether it was called off since then. It may come too late.
        called_off: CalledOff,
    },
}

/// An attempt to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who wants it.
    pub order: Order,
    /// When it was announced: activity after that counts against it.
    pub announced: BootTime,
}

/// Who wants the host to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nobody uses it.
    Idle,
    /// An operator, at once: how long the host has been idle does not matter, nor do brakes but a hold.
    Operator,
    /// An operator, whatever the host does.
    Forced,
}

/// Whether a suspend that is being carried out was called off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalledOff {
    /// It was.
    Yes,
    /// It stands.
    No,
}

/// Whether the warning before a sleep has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warned {
    /// It has.
    Yes,
    /// Not yet.
    No,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All sensors were read and judged.
    Checked {
        /// When reading began.
        begun: BootTime,
        /// What came out.
        finding: Finding,
        /// Latest activity the kernel told of, if any.
        last_activity: Option<BootTime>,
    },
    /// Activity between two checks.
    Activity {
        /// When it was.
        at: BootTime,
    },
    /// The time of [`Idle::deadline`] has come. Harmless at any other time.
    Deadline,
    /// An operator wants the host to sleep at once.
    SleepNow(Order),
    /// Everything that [`Action::Prepare`] asked for is done.
    Prepared,
    /// Somebody else stands against the sleep; nothing is left of the attempt.
    Refused,
    /// The attempt ended because it was called off; nothing is left of it.
    Aborted,
    /// The ordered suspend did not happen.
    SuspendFailed,
    /// The host was suspended, by us or by somebody else, and is awake again.
    Resumed {
        /// For how long.
        slept: Duration,
    },
    /// An operator forbids sleeping until [`Event::Enable`].
    Disable,
    /// An operator allows sleeping again; past failures are forgotten.
    Enable,
    /// An operator restarts the idle time.
    Reset,
    /// An operator keeps the host awake for a time.
    Hold(Hold),
    /// The hold is lifted.
    Release,
    /// The configuration changed.
    Settings(Settings),
}

/// A verdict without its reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing that counts is going on.
    Quiet,
    /// In use, or unknown.
    Busy,
}

/// What the driver must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell everybody that the host sleeps at `ends` if it stays quiet.
    Announce {
        /// End of the grace period.
        ends: BootTime,
    },
    /// Tell users that the host is about to sleep.
    Warn {
        /// End of the grace period.
        ends: BootTime,
    },
    /// Take the announcement back, and undo what was done for the sleep. One that is being carried out must be stopped if that is still
    /// possible.
    Cancel(Cancelled),
    /// Ask whoever has a say, run the hooks, then report [`Event::Prepared`] or [`Event::Refused`].
    Prepare(Order),
    /// Read everything again and report it as [`Event::Checked`].
    Confirm,
    /// Suspend, then report [`Event::Resumed`], [`Event::SuspendFailed`], [`Event::Refused`] or [`Event::Aborted`].
    Suspend,
    /// Tell the operator that sleeping is disabled, and why.
    GiveUp(GaveUp),
}

/// Why the machine switched itself off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// [`GIVE_UP_AFTER`] suspends in a row failed.
    Failures,
    /// [`WAKE_LOOP_AFTER`] sleeps in a row were shorter than [`SHORT_SLEEP`].
    WakeLoop,
}

/// Why an announced sleep does not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The host is in use.
    Activity,
    /// Sleeping became forbidden.
    Braked,
    /// The host slept or changed its policy meanwhile.
    Overtaken,
}

/// The host stays awake until a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// First moment at which it no longer holds.
    pub until: BootTime,
    /// Who set it.
    pub by: String,
    /// Why, if that was said.
    pub reason: Option<String>,
}

/// Who disabled sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Nobody.
    On,
    /// An operator.
    OffByOperator,
    /// The machine itself, after too many failures.
    OffByFailures,
    /// The machine itself, because the host woke at once each time.
    OffByWakeLoop,
}

/// Something that forbids sleeping whatever the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brake {
    /// `enabled = false` in the configuration.
    Configuration,
    /// `ctl disable`.
    Operator,
    /// Too many suspends failed in a row.
    Failures(u32),
    /// Too many sleeps in a row were over at once.
    WakeLoop(u32),
    /// `ctl hold`.
    Hold(Hold),
    /// A sleep failed or was refused, or the host has just resumed: not before this moment.
    NotBefore(BootTime),
}

/// What outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Last activity.
    pub last_activity: BootTime,
    /// Hold in force.
    pub hold: Option<Hold>,
    /// Whether sleeping is switched off.
    pub switch: Switch,
    /// Failed suspends in a row.
    pub failures: u32,
    /// Sleeps that others refused since the last activity.
    pub refusals: u32,
    /// Sleeps in a row that were shorter than [`SHORT_SLEEP`].
    pub short_sleeps: u32,
    /// Not before this moment.
    pub not_before: BootTime,
}

/// The machine. Owns all state of the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    settings: Settings,
    state: State,
    since: BootTime,
    /// The latest time it was told: time never runs backwards in here.
    now: BootTime,
    memory: Memory,
}

impl Idle {
    /// A machine that has seen nothing yet: the host counts as active at `now`.
    pub fn new(settings: Settings, now: BootTime) -> Self {
        let memory = Memory {
            last_activity: now,
            hold: None,
            switch: Switch::On,
            failures: 0,
            refusals: 0,
            short_sleeps: 0,
            not_before: BootTime::default(),
        };
        Self::restore(settings, memory, now)
    }

    /// A machine that goes on from the memory of an earlier process of the same boot. It starts as active: what happened in between is
    /// for the first check to find out.
    pub fn restore(settings: Settings, memory: Memory, now: BootTime) -> Self {
        let last_activity = memory.last_activity.min(now);
        Self {
            settings,
            state: State::Active,
            since: now,
            now,
            memory: Memory {
                last_activity,
                ..memory
            },
        }
    }

    /// The state.
    pub const fn state(&self) -> State {
        self.state
    }

    /// When it was entered.
    pub const fn since(&self) -> BootTime {
        self.since
    }

    /// What must be kept for a later process.
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The settings in force.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Everything that forbids sleeping at `now`, whatever the verdict.
    pub fn brakes(&self, now: BootTime) -> Vec<Brake> {
        let memory = &self.memory;
        let configuration = (!self.settings.enabled).then_some(Brake::Configuration);
        let switch = match memory.switch {
            Switch::On => None,
            Switch::OffByOperator => Some(Brake::Operator),
            Switch::OffByFailures => Some(Brake::Failures(memory.failures)),
            Switch::OffByWakeLoop => Some(Brake::WakeLoop(memory.short_sleeps)),
        };
        let hold = memory.hold.clone().filter(|hold| now < hold.until).map(Brake::Hold);
        let not_before = (now < memory.not_before).then_some(Brake::NotBefore(memory.not_before));
        [configuration, switch, hold, not_before]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The brakes that stand against an order at `now`.
    pub fn forbids(&self, order: Order, now: BootTime) -> Vec<Brake> {
        let mut brakes = self.brakes(now);
        brakes.retain(|brake| match (order, brake) {
            (Order::Idle, _) | (Order::Operator, Brake::Hold(_)) => true,
            (
                Order::Operator,
                Brake::Configuration | Brake::Operator | Brake::Failures(_) | Brake::WakeLoop(_) | Brake::NotBefore(_),
            )
            | (Order::Forced, _) => false,
        });
        brakes
    }

    /// When the host sleeps if it stays quiet; `None` if it would not.
    pub fn sleeps_at(&self) -> Option<BootTime> {
        let memory = &self.memory;
        if !self.settings.enabled || memory.switch != Switch::On {
            return None;
        }
        match self.state {
            State::Active | State::Quiet => Some(self.grace_begins().after(self.settings.grace_period)),
            State::Grace { ends, .. } => Some(ends),
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => Some(self.now),
        }
    }

    /// When [`Event::Deadline`] is due; `None`: nothing happens by time alone.
    pub fn deadline(&self) -> Option<BootTime> {
        match self.state {
            State::Active | State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => None,
            State::Quiet => self.sleeps_at().map(|_| self.grace_begins()),
            State::Grace { ends, warned } => Some(match (warned, self.settings.warn_before) {
                (Warned::No, Some(before)) => ends.before(before),
                (Warned::Yes, _) | (Warned::No, None) => ends,
            }),
        }
    }

    /// Takes one event at `now` and tells what to do about it.
    pub fn handle(&mut self, event: Event, now: BootTime) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Checked {
                begun,
                finding,
                last_activity,
            } => self.checked(begun, finding, last_activity),
            Event::Activity { at } => self.active(at),
            Event::Deadline => self.advance(),
            Event::SleepNow(order) => self.sleep_now(order),
            Event::Prepared => self.prepared(),
            Event::Refused => self.refused(),
            Event::Aborted => self.aborted(),
            Event::SuspendFailed => self.suspend_failed(),
            Event::Resumed { slept } => self.resumed(slept),
            Event::Disable => {
                self.memory.switch = Switch::OffByOperator;
                self.braked(Cancelled::Braked)
            }
            Event::Enable => {
                self.memory.switch = Switch::On;
                self.memory.failures = 0;
                self.memory.short_sleeps = 0;
                self.advance()
            }
            Event::Reset => {
                self.memory.last_activity = self.now;
                self.braked(Cancelled::Activity)
            }
            Event::Hold(hold) => {
                self.memory.hold = Some(hold);
                self.braked(Cancelled::Braked)
            }
            Event::Release => {
                self.memory.hold = None;
                self.advance()
            }
            Event::Settings(settings) => {
                self.settings = settings;
                self.braked(Cancelled::Overtaken)
            }
        }
    }

    fn checked(&mut self, begun: BootTime, finding: Finding, last_activity: Option<BootTime>) -> Vec<Action> {
        match finding {
            Finding::Busy => self.active(last_activity.unwrap_or(self.now)),
            Finding::Quiet => {
                self.saw_activity(last_activity);
                match self.state {
                    State::Active => {
                        self.enter(State::Quiet);
                        self.advance()
                    }
                    State::Quiet | State::Grace { .. } => self.advance(),
                    State::Preparing(attempt) | State::Confirming(attempt) if !self.still_due(attempt) => self.cancel(),
                    State::Preparing(_) => Vec::new(),
                    // A reading begun before it was asked for says nothing about the time since.
                    State::Confirming(_) if begun < self.since => Vec::new(),
                    State::Confirming(_) => {
                        self.enter(State::Suspending {
                            called_off: CalledOff::No,
                        });
                        vec![Action::Suspend]
                    }
                    State::Suspending { .. } => Vec::new(),
                }
            }
        }
    }

    /// The host is in use.
    fn active(&mut self, at: BootTime) -> Vec<Action> {
        self.saw_activity(Some(at));
        self.memory.refusals = 0;
        match self.state {
            State::Active => Vec::new(),
            State::Quiet => {
                self.enter(State::Active);
                Vec::new()
            }
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_) => {
                self.enter(State::Active);
                vec![Action::Cancel(Cancelled::Activity)]
            }
            State::Suspending { called_off } => self.call_off(called_off, Cancelled::Activity),
        }
    }

    /// Goes on by time alone.
    fn advance(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => Vec::new(),
            State::Quiet if self.due() => {
                let ends = self.now.after(self.settings.grace_period);
                self.enter(State::Grace {
                    ends,
                    warned: Warned::No,
                });
                let mut actions = vec![Action::Announce { ends }];
                actions.extend(self.advance());
                actions
            }
            State::Quiet => Vec::new(),
            State::Grace { .. }
                if !self.still_due(Attempt {
                    order: Order::Idle,
                    announced: self.since,
                }) =>
            {
                self.cancel()
            }
            State::Grace { ends, .. } if self.now >= ends => self.prepare(Order::Idle, self.since),
            State::Grace {
                ends,
                warned: Warned::No,
            } if self
                .settings
                .warn_before
                .is_some_and(|before| self.now >= ends.before(before)) =>
            {
                // Still the same stay in the grace period: `since` is kept.
                self.state = State::Grace {
                    ends,
                    warned: Warned::Yes,
                };
                vec![Action::Warn { ends }]
            }
            State::Grace { .. } => Vec::new(),
        }
    }

    /// An operator's order takes the place of a grace period. An attempt that is under way goes on as it is.
    fn sleep_now(&mut self, order: Order) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Grace { .. } if self.forbids(order, self.now).is_empty() => {
                self.prepare(order, self.now)
            }
            State::Active
            | State::Quiet
            | State::Grace { .. }
            | State::Preparing(_)
            | State::Confirming(_)
            | State::Suspending { .. } => Vec::new(),
        }
    }

    fn prepare(&mut self, order: Order, announced: BootTime) -> Vec<Action> {
        self.enter(State::Preparing(Attempt { order, announced }));
        vec![Action::Prepare(order)]
    }

    fn prepared(&mut self) -> Vec<Action> {
        match self.state {
            State::Preparing(attempt) => {
                self.enter(State::Confirming(attempt));
                vec![Action::Confirm]
            }
            State::Active | State::Quiet | State::Grace { .. } | State::Confirming(_) | State::Suspending { .. } => {
                Vec::new()
            }
        }
    }

    /// Not again at once: whoever refused is asked again after the same growing wait as after a failure.
    fn refused(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Grace { .. } => {}
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => {
                self.enter(State::Quiet);
                let memory = &mut self.memory;
                memory.refusals = memory.refusals.saturating_add(1);
                memory.not_before = self.now.after(retry_wait(memory.refusals));
            }
        }
        Vec::new()
    }

    /// What it was called off for is for the next check to judge.
    fn aborted(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Grace { .. } => {}
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => {
                self.enter(State::Active);
                // Whatever it was, it may come again: everybody is told of a sleep, and hooks run, only so often.
                self.memory.not_before = self.memory.not_before.max(self.now.after(RETRY_FIRST));
            }
        }
        Vec::new()
    }

    /// Leaves an announced sleep without calling the host active.
    fn braked(&mut self, why: Cancelled) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet => Vec::new(),
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_) => {
                self.enter(State::Quiet);
                vec![Action::Cancel(why)]
            }
            State::Suspending { called_off } => self.call_off(called_off, why),
        }
    }

    /// Once: it is up to whoever carries the suspend out whether it still can be stopped.
    fn call_off(&mut self, already: CalledOff, why: Cancelled) -> Vec<Action> {
        match already {
            CalledOff::Yes => Vec::new(),
            CalledOff::No => {
                // Still the same suspend: `since` is kept.
                self.state = State::Suspending {
                    called_off: CalledOff::Yes,
                };
                vec![Action::Cancel(why)]
            }
        }
    }

    fn suspend_failed(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Grace { .. } => Vec::new(),
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => {
                self.enter(State::Active);
                let memory = &mut self.memory;
                memory.failures = memory.failures.saturating_add(1);
                memory.not_before = self.now.after(retry_wait(memory.failures));
                if memory.failures < GIVE_UP_AFTER || memory.switch != Switch::On {
                    return Vec::new();
                }
                memory.switch = Switch::OffByFailures;
                vec![Action::GiveUp(GaveUp::Failures)]
            }
        }
    }

    /// Whoever suspended the host: everything seen before is stale.
    fn resumed(&mut self, slept: Duration) -> Vec<Action> {
        let ours = match self.state {
            State::Active | State::Quiet | State::Grace { .. } | State::Preparing(_) | State::Confirming(_) => false,
            State::Suspending { .. } => true,
        };
        let mut actions = match self.state {
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_) => {
                vec![Action::Cancel(Cancelled::Overtaken)]
            }
            State::Active | State::Quiet | State::Suspending { .. } => Vec::new(),
        };
        self.enter(State::Active);
        let memory = &mut self.memory;
        memory.last_activity = self.now;
        memory.not_before = self.now.after(self.settings.min_awake);
        if memory.switch != Switch::OffByFailures {
            memory.failures = 0;
        }
        memory.refusals = 0;
        if ours {
            memory.short_sleeps = if slept < SHORT_SLEEP {
                memory.short_sleeps.saturating_add(1)
            } else {
                0
            };
            if memory.short_sleeps >= WAKE_LOOP_AFTER && memory.switch == Switch::On {
                memory.switch = Switch::OffByWakeLoop;
                actions.push(Action::GiveUp(GaveUp::WakeLoop));
            }
        }
        actions
    }

    /// Takes an announced sleep back although the last reading was quiet.
    fn cancel(&mut self) -> Vec<Action> {
        self.braked(if self.brakes(self.now).is_empty() {
            Cancelled::Activity
        } else {
            Cancelled::Braked
        })
    }

    /// Whether nothing has happened since the sleep was announced, not even briefly, and it still may take place. What counts as activity
    /// against an operator's order is for [`Event::Activity`] and [`Finding::Busy`] to say: the kernel's last traffic may be his own.
    fn still_due(&self, attempt: Attempt) -> bool {
        match attempt.order {
            Order::Idle => self.memory.last_activity <= attempt.announced && self.due(),
            Order::Operator | Order::Forced => self.forbids(attempt.order, self.now).is_empty(),
        }
    }

    /// Whether the idle time is over and no brake is on.
    fn due(&self) -> bool {
        self.now.since(self.memory.last_activity) >= self.settings.inactivity_timeout
            && self.brakes(self.now).is_empty()
    }

    /// The earliest moment at which the grace period can begin, given that the host stays quiet and is not switched off.
    fn grace_begins(&self) -> BootTime {
        let memory = &self.memory;
        let held = memory.hold.as_ref().map_or(BootTime::default(), |hold| hold.until);
        memory
            .last_activity
            .after(self.settings.inactivity_timeout)
            .max(held)
            .max(memory.not_before)
    }

    /// Activity only ever moves the idle time forward, and never beyond `now`.
    fn saw_activity(&mut self, at: Option<BootTime>) {
        if let Some(at) = at {
            self.memory.last_activity = self.memory.last_activity.max(at.min(self.now));
        }
    }

    const fn enter(&mut self, state: State) {
        self.state = state;
        self.since = self.now;
    }
}

/// Wait after the `failures`th suspend in a row that failed.
pub fn retry_wait(failures: u32) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
    RETRY_FIRST.saturating_mul(doubled).min(RETRY_LONGEST)
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Quiet => "quiet",
            Self::Grace { .. } => "grace",
            Self::Preparing(_) => "preparing",
            Self::Confirming(_) => "confirming",
            Self::Suspending { .. } => "suspending",
        })
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Activity => "the host is in use",
            Self::Braked => "sleeping is forbidden",
            Self::Overtaken => "the host slept or its policy changed meanwhile",
        })
    }
}

#[cfg(test)]
mod tests;
