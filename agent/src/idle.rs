//! Decides when the host may sleep. Never reads a clock, a socket or a file: the driver brings it events and the time, and carries out
//! the actions it returns.
//!
//! ```text
//!             busy, unknown, activity                      quiet, and brakes off
//!        ┌──────────────┬───────────────┬───────────────┐  and timeout over
//!        v              │               │               │
//!   ┌────────┐ quiet ┌──┴────┐       ┌──┴────┐  end  ┌──┴─────────┐ quiet, read afterwards ┌────────────┐
//!   │ Active ├──────>│ Quiet ├──────>│ Grace ├──────>│ Confirming ├───────────────────────>│ Suspending │
//!   └────────┘       └───────┘       └──┬────┘       └──┬─────────┘        Suspend         └──┬─────────┘
//!        ^               ^              │ brake set      │                                    │
//!        │               └──────────────┴────────────────┘                    resumed, failed │
//!        └────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! *Brakes* forbid sleeping whatever the verdict: configuration, an operator's `disable`, a hold, and the time to wait after a failed
//! suspend or a resume. They are looked at on the way into the grace period, at its end, and once more before suspending.
//!
//! Invariants, walked by the property tests below: a suspend follows only a quiet reading that was begun after the end of the grace
//! period; activity ends the grace period at once; the idle time counts from the last activity the kernel saw.

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
    /// The grace period is over; everything is to be read once more.
    Confirming {
        /// When the grace period began.
        announced: BootTime,
    },
    /// A suspend was ordered, its outcome is awaited.
    Suspending,
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
    /// The ordered suspend did not happen.
    SuspendFailed,
    /// The host was suspended, by us or by somebody else, and is awake again.
    Resumed,
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
    /// Take the announcement back.
    Cancel(Cancelled),
    /// Read everything again and report it as [`Event::Checked`].
    Confirm,
    /// Suspend, then report [`Event::Resumed`] or [`Event::SuspendFailed`].
    Suspend,
    /// Tell the operator that suspending failed [`GIVE_UP_AFTER`] times in a row and is disabled.
    GiveUp,
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
    /// `ctl hold`.
    Hold(Hold),
    /// A suspend failed, or the host has just resumed: not before this moment.
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
        };
        let hold = memory.hold.clone().filter(|hold| now < hold.until).map(Brake::Hold);
        let not_before = (now < memory.not_before).then_some(Brake::NotBefore(memory.not_before));
        [configuration, switch, hold, not_before]
            .into_iter()
            .flatten()
            .collect()
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
            State::Confirming { .. } | State::Suspending => Some(self.now),
        }
    }

    /// When [`Event::Deadline`] is due; `None`: nothing happens by time alone.
    pub fn deadline(&self) -> Option<BootTime> {
        match self.state {
            State::Active | State::Confirming { .. } | State::Suspending => None,
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
            Event::SuspendFailed => self.suspend_failed(),
            Event::Resumed => self.resumed(),
            Event::Disable => {
                self.memory.switch = Switch::OffByOperator;
                self.braked(Cancelled::Braked)
            }
            Event::Enable => {
                self.memory.switch = Switch::On;
                self.memory.failures = 0;
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
                    State::Confirming { announced } if !self.still_due(announced) => self.cancel(),
                    // A reading begun before it was asked for says nothing about the time since.
                    State::Confirming { .. } if begun < self.since => Vec::new(),
                    State::Confirming { .. } => {
                        self.enter(State::Suspending);
                        vec![Action::Suspend]
                    }
                    State::Suspending => Vec::new(),
                }
            }
        }
    }

    /// The host is in use. A suspend that is under way cannot be called back from here.
    fn active(&mut self, at: BootTime) -> Vec<Action> {
        self.saw_activity(Some(at));
        match self.state {
            State::Active | State::Suspending => Vec::new(),
            State::Quiet => {
                self.enter(State::Active);
                Vec::new()
            }
            State::Grace { .. } | State::Confirming { .. } => {
                self.enter(State::Active);
                vec![Action::Cancel(Cancelled::Activity)]
            }
        }
    }

    /// Goes on by time alone.
    fn advance(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Confirming { .. } | State::Suspending => Vec::new(),
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
            State::Grace { .. } if !self.still_due(self.since) => self.cancel(),
            State::Grace { ends, .. } if self.now >= ends => {
                self.enter(State::Confirming { announced: self.since });
                vec![Action::Confirm]
            }
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

    /// Leaves an announced sleep without calling the host active.
    fn braked(&mut self, why: Cancelled) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Suspending => Vec::new(),
            State::Grace { .. } | State::Confirming { .. } => {
                self.enter(State::Quiet);
                vec![Action::Cancel(why)]
            }
        }
    }

    fn suspend_failed(&mut self) -> Vec<Action> {
        match self.state {
            State::Active | State::Quiet | State::Grace { .. } | State::Confirming { .. } => Vec::new(),
            State::Suspending => {
                self.enter(State::Active);
                let memory = &mut self.memory;
                memory.failures = memory.failures.saturating_add(1);
                memory.not_before = self.now.after(retry_wait(memory.failures));
                if memory.failures < GIVE_UP_AFTER || memory.switch != Switch::On {
                    return Vec::new();
                }
                memory.switch = Switch::OffByFailures;
                vec![Action::GiveUp]
            }
        }
    }

    /// Whoever suspended the host: everything seen before is stale.
    fn resumed(&mut self) -> Vec<Action> {
        let announced = match self.state {
            State::Grace { .. } | State::Confirming { .. } => vec![Action::Cancel(Cancelled::Overtaken)],
            State::Active | State::Quiet | State::Suspending => Vec::new(),
        };
        self.enter(State::Active);
        self.memory.last_activity = self.now;
        self.memory.not_before = self.now.after(self.settings.min_awake);
        self.memory.failures = 0;
        announced
    }

    /// Takes an announced sleep back although the last reading was quiet.
    fn cancel(&mut self) -> Vec<Action> {
        self.braked(if self.brakes(self.now).is_empty() {
            Cancelled::Activity
        } else {
            Cancelled::Braked
        })
    }

    /// Whether nothing has happened since the sleep was announced, not even briefly, and it still may take place.
    fn still_due(&self, announced: BootTime) -> bool {
        self.memory.last_activity <= announced && self.due()
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
            Self::Confirming { .. } => "confirming",
            Self::Suspending => "suspending",
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
