//! An attempt to sleep, step by step: which step comes next, and what is to be undone. Pure: no clock, no I/O; [`crate::sleeper`] carries
//! the commands out and tells how each went.
//!
//! ```text
//! objections, leave, notice, hooks, sync, objections, WoL, alarm, wakeup count, confirm, handshake, suspend
//!      │        │              │                              │                             │         │
//!      │ refused, failed, called off: whatever was begun is undone, last first              │         │ slept, or not
//!      v        v              v                              v                             v         v
//!      end <── hand leave <── post-wake <─────────────────── take <───────────────────── disarm <──── undo
//!              back           hooks                          alarm back
//! ```
//!
//! Invariants, walked by the property tests below: a step is undone only if it was begun, exactly once, last first, however the attempt
//! ends, and also after the process died in it; nothing is begun once the attempt is refused, failed or called off.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A step towards sleep, in the order of [`Step::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Everybody who could refuse is asked: sleep states, inhibitors, a scheduled shutdown, a package upgrade, who could wake the host.
    Objections,
    /// The wake server gives leave.
    Leave,
    /// Those to be notified hear that the host sleeps.
    Notice,
    /// The pre-sleep hooks run.
    Hooks,
    /// Dirty data goes to the disks.
    Sync,
    /// Everybody is asked again: hooks take their time.
    LastObjections,
    /// The network cards are armed and looked at.
    WakeOnLan,
    /// The dead-man alarm of the real-time clock is set.
    Alarm,
    /// The kernel's count of wakeup events is read.
    WakeupCount,
    /// All counters are read once more.
    Confirm,
    /// The kernel is given its count back: a wakeup event since then stops the suspend.
    Handshake,
    /// logind suspends the host.
    Suspend,
}

/// Who wanted less than everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Whether hooks run, before and after.
    pub hooks: bool,
    /// Whether an alarm is set.
    pub alarm: bool,
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Went {
    /// It is done.
    Well,
    /// Somebody stands against the sleep; who and why.
    Refused(String),
    /// It could not be done; why.
    Failed(String),
    /// It was interrupted because the attempt was called off ([`Attempt::call_off`]).
    Interrupted,
    /// It was not begun because the attempt had been called off: there is nothing of it to undo.
    NotBegun,
    /// The host slept for so long ([`Step::Suspend`] only).
    Slept(Duration),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// This step; then [`Attempt::went`].
    Do(Step),
    /// Undo this step; then [`Attempt::undone`].
    Undo(Step),
    /// Nothing: the attempt is over.
    End(Ending),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The host slept.
    Slept(Duration),
    /// Somebody stood against it; who and why.
    Refused(String),
    /// The suspend did not happen, or something broke; why.
    Failed(String),
    /// It was called off; why.
    Aborted(String),
    /// The process that made it died. Whether the host slept in it is known by the clocks.
    Interrupted,
}

/// The attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    plan: Plan,
    /// Steps to be undone, in the order in which they were begun.
    begun: Vec<Step>,
    /// What is under way.
    doing: Option<Step>,
    called_off: Option<String>,
    ending: Option<Ending>,
}

impl Step {
    /// All, in their order.
    pub const ALL: [Self; 12] = [
        Self::Objections,
        Self::Leave,
        Self::Notice,
        Self::Hooks,
        Self::Sync,
        Self::LastObjections,
        Self::WakeOnLan,
        Self::Alarm,
        Self::WakeupCount,
        Self::Confirm,
        Self::Handshake,
        Self::Suspend,
    ];

    /// Whether it leaves something behind that must be undone. Armed network cards stay armed: they are so at all times.
    pub const fn is_undone(self) -> bool {
        match self {
            Self::Leave | Self::Hooks | Self::Alarm | Self::Handshake => true,
            Self::Objections
            | Self::Notice
            | Self::Sync
            | Self::LastObjections
            | Self::WakeOnLan
            | Self::WakeupCount
            | Self::Confirm
            | Self::Suspend => false,
        }
    }

    /// Whether its time is the agent's own, rather than that of hooks, receivers of notices, a server, the disks, or sleep itself.
    pub const fn is_own_time(self) -> bool {
        match self {
            Self::Objections
            | Self::LastObjections
            | Self::WakeOnLan
            | Self::Alarm
            | Self::WakeupCount
            | Self::Confirm
            | Self::Handshake => true,
            Self::Leave | Self::Notice | Self::Hooks | Self::Sync | Self::Suspend => false,
        }
    }

    const fn is_wanted(self, plan: Plan) -> bool {
        match self {
            Self::Hooks => plan.hooks,
            Self::Alarm => plan.alarm,
            Self::Objections
            | Self::Leave
            | Self::Notice
            | Self::Sync
            | Self::LastObjections
            | Self::WakeOnLan
            | Self::WakeupCount
            | Self::Confirm
            | Self::Handshake
            | Self::Suspend => true,
        }
    }

    fn after(self, plan: Plan) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self && step.is_wanted(plan))
    }
}

impl Attempt {
    /// An attempt and its first command.
    pub fn begin(plan: Plan) -> (Self, Command) {
        let mut attempt = Self {
            plan,
            begun: Vec::new(),
            doing: None,
            called_off: None,
            ending: None,
        };
        let first = attempt.take_up(Step::Objections);
        (attempt, first)
    }

    /// What is left of an attempt whose process died: `begun` of it were begun and not undone.
    pub fn interrupted(plan: Plan, begun: &[Step]) -> (Self, Command) {
        let mut attempt = Self {
            plan,
            begun: begun.iter().copied().filter(|step| step.is_undone()).collect(),
            doing: None,
            called_off: None,
            ending: Some(Ending::Interrupted),
        };
        let first = attempt.go_back();
        (attempt, first)
    }

    /// The host is in use after all, or an operator said no; why. The step that is under way may be interrupted; nothing further is begun.
    pub fn call_off(&mut self, why: String) {
        self.called_off.get_or_insert(why);
    }

    /// How the step went that is under way.
    pub fn went(&mut self, went: Went) -> Command {
        let Some(step) = self.doing.take() else {
            return self.go_back();
        };
        if went == Went::NotBegun && self.begun.last() == Some(&step) {
            self.begun.pop();
        }
        let ending = match (went, self.called_off.clone()) {
            (Went::Slept(time), _) => Ending::Slept(time),
            (_, Some(why)) => Ending::Aborted(why),
            (Went::Refused(why), None) => Ending::Refused(why),
            (Went::Failed(why), None) => Ending::Failed(why),
            (Went::Interrupted | Went::NotBegun, None) => Ending::Aborted("interrupted".into()),
            (Went::Well, None) => match step.after(self.plan) {
                Some(next) => return self.take_up(next),
                // Whatever suspends must tell whether the host slept.
                None => Ending::Failed("the suspend has no outcome".into()),
            },
        };
        self.ending = Some(ending);
        self.go_back()
    }

    /// The step of the last [`Command::Undo`] is undone, as far as that is possible.
    pub fn undone(&mut self) -> Command {
        self.go_back()
    }

    /// How it ended, in a word: `slept`, `refused`, `failed`, `aborted` or `interrupted`.
    pub const fn outcome(&self) -> &'static str {
        match &self.ending {
            Some(Ending::Slept(_)) => "slept",
            Some(Ending::Refused(_)) => "refused",
            Some(Ending::Failed(_)) => "failed",
            Some(Ending::Aborted(_)) => "aborted",
            Some(Ending::Interrupted) | None => "interrupted",
        }
    }

    fn take_up(&mut self, step: Step) -> Command {
        self.doing = Some(step);
        if step.is_undone() {
            self.begun.push(step);
        }
        Command::Do(step)
    }

    fn go_back(&mut self) -> Command {
        match self.begun.pop() {
            Some(step) => Command::Undo(step),
            None => Command::End(self.ending.clone().unwrap_or(Ending::Interrupted)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Objections => "asking for objections",
            Self::Leave => "asking for leave",
            Self::Notice => "sending the notice",
            Self::Hooks => "running the pre-sleep hooks",
            Self::Sync => "writing data to the disks",
            Self::LastObjections => "asking for objections again",
            Self::WakeOnLan => "arming Wake-on-LAN",
            Self::Alarm => "setting the alarm",
            Self::WakeupCount => "reading the wakeup count",
            Self::Confirm => "reading all counters again",
            Self::Handshake => "handing the wakeup count back",
            Self::Suspend => "suspending",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Plan = Plan {
        hooks: true,
        alarm: true,
    };

    /// Every command up to the end, given how each step goes.
    fn commands(plan: Plan, mut goes: impl FnMut(&mut Attempt, Step) -> Went) -> Vec<Command> {
        let (mut attempt, mut command) = Attempt::begin(plan);
        let mut all = vec![command.clone()];
        loop {
            command = match command {
                Command::Do(step) => {
                    let went = goes(&mut attempt, step);
                    attempt.went(went)
                }
                Command::Undo(_) => attempt.undone(),
                Command::End(_) => return all,
            };
            all.push(command.clone());
        }
    }

    fn slept(_: &mut Attempt, step: Step) -> Went {
        match step {
            Step::Suspend => Went::Slept(Duration::from_secs(3600)),
            _ => Went::Well,
        }
    }

    #[test]
    fn a_sleep_goes_through_every_step_and_undoes_what_it_left() {
        let mut expected: Vec<_> = Step::ALL.into_iter().map(Command::Do).collect();
        expected.extend([Step::Handshake, Step::Alarm, Step::Hooks, Step::Leave].map(Command::Undo));
        expected.push(Command::End(Ending::Slept(Duration::from_secs(3600))));
        assert_eq!(commands(ALL, slept), expected);
    }

    #[test]
    fn what_is_not_wanted_is_neither_done_nor_undone() {
        let plan = Plan {
            hooks: false,
            alarm: false,
        };
        let all = commands(plan, slept);
        for step in [Step::Hooks, Step::Alarm] {
            assert!(!all.contains(&Command::Do(step)) && !all.contains(&Command::Undo(step)));
        }
    }

    #[test]
    fn s1_a_suspend_called_off_is_aborted_and_one_that_came_too_late_slept() {
        let call_off = |after: Went| {
            commands(ALL, move |attempt, step| match step {
                Step::Suspend => {
                    attempt.call_off("a login".into());
                    after.clone()
                }
                _ => Went::Well,
            })
        };
        let last = |commands: Vec<Command>| commands.last().cloned().unwrap();
        assert_eq!(
            last(call_off(Went::Failed("EBUSY".into()))),
            Command::End(Ending::Aborted("a login".into()))
        );
        assert_eq!(
            last(call_off(Went::Slept(Duration::ZERO))),
            Command::End(Ending::Slept(Duration::ZERO))
        );
    }

    fn any_went() -> impl Strategy<Value = Went> {
        prop_oneof![
            12 => Just(Went::Well),
            1 => Just(Went::Refused("no".into())),
            1 => Just(Went::Failed("broken".into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_was_begun_is_undone_once_and_last_first(
            hooks: bool,
            alarm: bool,
            goes in prop::collection::vec((any_went(), prop::bool::weighted(0.2)), 12),
            dies_after in 0..40usize,
        ) {
            let plan = Plan { hooks, alarm };
            let (mut attempt, mut command) = Attempt::begin(plan);
            let mut goes = goes.into_iter();
            let (mut begun, mut stopped, mut died) = (Vec::new(), false, false);
            for count in 0.. {
                if count == dies_after && !matches!(command, Command::End(_)) {
                    // The next process knows what was begun and not undone; a command that was given may have been carried out or not.
                    (attempt, command) = Attempt::interrupted(plan, &begun);
                    (stopped, died) = (true, true);
                    continue;
                }
                command = match command {
                    Command::Do(step) => {
                        prop_assert!(!stopped, "{} begun although stopped", step);
                        if step.is_undone() {
                            begun.push(step);
                        }
                        let (mut went, called_off) = goes.next().unwrap();
                        if called_off {
                            attempt.call_off("in use".into());
                            if went == Went::Refused("no".into()) {
                                // Heard before the step was begun.
                                went = Went::NotBegun;
                                if step.is_undone() {
                                    begun.pop();
                                }
                            }
                        }
                        stopped = called_off || went != Went::Well || step == Step::Suspend;
                        attempt.went(went)
                    }
                    Command::Undo(step) => {
                        prop_assert_eq!(begun.pop(), Some(step), "undone out of order");
                        attempt.undone()
                    }
                    Command::End(ending) => {
                        prop_assert!(begun.is_empty(), "{:?} left behind", begun);
                        prop_assert_eq!(died, ending == Ending::Interrupted);
                        prop_assert!(!matches!(ending, Ending::Slept(_)));
                        break;
                    }
                };
            }
        }
    }
}
