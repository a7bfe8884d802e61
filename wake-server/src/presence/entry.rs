//! One node: what was heard of it, what silence makes of it, and what is shown of it.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use vmstation_protocol::{Activity, NodeName, NodeState, Order, Report};

use super::{At, Cause, Change, Life, Limits, Standing};
use crate::clock::Moment;

#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) standing: Standing,
    pub(super) since: Option<Timestamp>,
    pub(super) heard: Moment,
    /// Heard by this server since it acts; a restored one is not.
    pub(super) is_heard: bool,
    pub(super) due: Option<Moment>,
    pub(super) polls: u32,
    pub(super) waking: bool,
    pub(super) life: Option<Life>,
    pub(super) report: Option<Report>,
    pub(super) reported: Option<Timestamp>,
    pub(super) orders: VecDeque<(Moment, Order)>,
    pub(super) newest_order: u64,
}

/// How a report's life relates to the one known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Against {
    Same,
    Later,
    Earlier,
}

impl Entry {
    pub(super) fn hear(&mut self, report: Report, now: At) -> Cause {
        let against = self.life.as_ref().map_or(Against::Same, |life| life.against(&report));
        self.heard = now.moment;
        self.is_heard = true;
        let before = self.standing;
        self.standing = match (report.activity, against) {
            (Activity::Busy | Activity::Quiet { .. }, _) => Standing::Awake,
            (Activity::GoingToSleep { .. }, _) => Standing::GoingToSleep,
            (Activity::Sleeping, Against::Same | Against::Later) => Standing::Entering,
            // The sleep it speaks of is over.
            (Activity::Sleeping, Against::Earlier) => before,
        };
        if self.standing == Standing::Entering || against == Against::Later {
            self.orders.clear();
        }
        if against != Against::Earlier {
            self.life = Some(Life {
                boot_id: report.boot_id.clone(),
                resumes: report.resumes,
            });
        }
        self.report = Some(report);
        self.reported = Some(now.wall);
        match (against, before) {
            (Against::Later, _) => Cause::Woke,
            (Against::Same, Standing::Entering) => Cause::CalledOff,
            (
                Against::Same,
                Standing::Unknown | Standing::Awake | Standing::GoingToSleep | Standing::Asleep | Standing::Gone,
            )
            | (Against::Earlier, _) => Cause::Reported,
        }
    }

    /// What silence makes of it, and when.
    pub(super) fn turns(&self, limits: Limits) -> Option<(Standing, Moment)> {
        match self.standing {
            Standing::Awake | Standing::GoingToSleep if self.polls == 0 => {
                Some((Standing::Gone, self.heard.after(limits.silence)))
            }
            Standing::Entering => Some((Standing::Asleep, self.heard.after(limits.settle))),
            Standing::Unknown | Standing::Awake | Standing::GoingToSleep | Standing::Asleep | Standing::Gone => None,
        }
    }

    /// What silence has made of it by `now`, and since when.
    pub(super) fn overdue(&self, now: At) -> Option<(Standing, Timestamp)> {
        let due = self.due.filter(|due| *due <= now.moment)?;
        let standing = match self.standing {
            Standing::Awake | Standing::GoingToSleep => Standing::Gone,
            Standing::Entering => Standing::Asleep,
            Standing::Unknown | Standing::Asleep | Standing::Gone => return None,
        };
        let ago = SignedDuration::try_from(now.moment.since(due)).unwrap_or_default();
        Some((standing, now.wall.checked_sub(ago).unwrap_or(now.wall)))
    }

    /// What changes when there is something to save.
    pub(super) fn kept(&self) -> (Standing, Option<Timestamp>, Option<Timestamp>) {
        (self.standing, self.since, self.reported)
    }

    pub(super) fn shown(&self) -> NodeState {
        self.shown_as(self.standing)
    }

    pub(super) fn shown_as(&self, standing: Standing) -> NodeState {
        match standing {
            Standing::Awake => NodeState::Awake,
            Standing::GoingToSleep => NodeState::GoingToSleep,
            Standing::Unknown | Standing::Entering | Standing::Asleep | Standing::Gone if self.waking => {
                NodeState::Waking
            }
            Standing::Entering => NodeState::GoingToSleep,
            Standing::Asleep => NodeState::Asleep,
            Standing::Gone => NodeState::Gone,
            Standing::Unknown => NodeState::Unknown,
        }
    }

    pub(super) fn moved(&mut self, node: &NodeName, from: NodeState, at: Timestamp, cause: Cause) -> Option<Change> {
        let to = self.shown();
        if to == from {
            return None;
        }
        // A clock that was set back does not make a state older than the one before it.
        let since = self.since.map_or(at, |before| before.max(at));
        self.since = Some(since);
        Some(Change {
            node: node.clone(),
            from,
            to,
            since,
            cause,
        })
    }
}

impl Standing {
    pub(super) const fn is_here(self) -> bool {
        match self {
            Self::Awake | Self::GoingToSleep => true,
            Self::Unknown | Self::Entering | Self::Asleep | Self::Gone => false,
        }
    }
}

impl Life {
    fn against(&self, report: &Report) -> Against {
        if report.boot_id != self.boot_id || report.resumes > self.resumes {
            Against::Later
        } else if report.resumes == self.resumes {
            Against::Same
        } else {
            Against::Earlier
        }
    }
}
