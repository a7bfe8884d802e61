//! One drain, from the cordon to an empty node.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use super::{Names, Plan};
use crate::{
    clock::Moment,
    workload::{Controller, Pod, PodId},
};

/// Evictions that are asked for at a time.
const AT_A_TIME: usize = 10;
/// Time between two lists while pods terminate.
const LOOK: Duration = Duration::from_secs(2);
/// First and longest wait after an eviction that was put off.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is to be asked of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Evict this pod.
    Evict(PodId),
    /// List the pods of the node.
    List,
}

/// What came of an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is being deleted.
    Accepted,
    /// It is no more.
    Gone,
    /// Not now: a budget does not allow it (429), or the API server fails for the moment.
    Later {
        /// Why.
        why: String,
        /// When to ask again, if it said so.
        again_in: Option<Duration>,
    },
    /// Never, as two budgets on one pod (500).
    Never {
        /// Why.
        why: String,
    },
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left that had to be moved.
    Empty,
    /// A pod came that was not there before the cordon (fault K7).
    NewPods(Vec<PodId>),
    /// A pod cannot be evicted at all.
    Never {
        /// Which.
        pod: PodId,
        /// Why.
        why: String,
    },
    /// It took too long.
    OutOfTime {
        /// What is left.
        left: Vec<PodId>,
        /// What was in the way last.
        why: Option<String>,
    },
}

/// A drain.
#[derive(Clone, Debug)]
pub struct Drain {
    plan: Plan,
    pods: BTreeMap<PodId, State>,
    deadline: Moment,
    list: List,
    seed: u64,
    /// When the last pod left, or was let go.
    changed: Moment,
    /// Whose pods were evicted, and how many.
    moved: BTreeMap<Controller, u8>,
    /// What was in the way last.
    trouble: Option<String>,
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be evicted, from then on.
    Due { at: Moment, tries: u32 },
    /// The API server is being asked.
    Asked { tries: u32 },
    /// It is being deleted.
    Leaving,
    /// It is no more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Due { at: Moment },
    Asked { at: Moment },
}

impl Drain {
    /// Of a node that is cordoned. `seed` spreads repetitions.
    pub fn new(plan: Plan, within: Duration, seed: u64, now: Moment) -> Self {
        let due = State::Due { at: now, tries: 0 };
        Self {
            pods: plan.to_move.iter().map(|pod| (pod.id.clone(), due)).collect(),
            plan,
            deadline: now.after(within),
            // A pod may have been bound between the first list and the cordon.
            list: List::Due { at: now },
            seed,
            changed: now,
            moved: BTreeMap::new(),
            trouble: None,
            ended: None,
        }
    }

    /// What is to be done now. None after the end.
    pub fn step(&mut self, now: Moment) -> Vec<Action> {
        if self.ended.is_none() && now >= self.deadline {
            self.ended = Some(Ended::OutOfTime {
                left: self.left().cloned().collect(),
                why: self.trouble.clone(),
            });
        }
        if self.ended.is_some() {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let asked = self
            .pods
            .values()
            .filter(|state| matches!(state, State::Asked { .. }))
            .count();
        let turn = self.turn();
        for pod in &self.plan.to_move {
            if asked + actions.len() >= AT_A_TIME {
                break;
            }
            if let Some(state) = self.pods.get_mut(&pod.id)
                && let State::Due { at, tries } = *state
                && at <= now
                && Some(pod.priority) == turn
            {
                *state = State::Asked { tries };
                actions.push(Action::Evict(pod.id.clone()));
            }
        }
        if let List::Due { at } = self.list
            && at <= now
        {
            self.list = List::Asked { at: now };
            actions.push(Action::List);
        }
        actions
    }

    /// When there is something to do without an answer.
    pub fn deadline(&self) -> Moment {
        let turn = self.turn();
        let due = self.plan.to_move.iter().filter(|pod| Some(pod.priority) == turn);
        let due = due.filter_map(|pod| match self.pods.get(&pod.id) {
            Some(State::Due { at, .. }) => Some(*at),
            Some(State::Asked { .. } | State::Leaving | State::Gone) | None => None,
        });
        let list = match self.list {
            List::Due { at } => Some(at),
            List::Asked { .. } => None,
        };
        due.chain(list).fold(self.deadline, Moment::min)
    }

    /// What came of an eviction.
    pub fn answered(&mut self, pod: &PodId, outcome: Outcome, now: Moment) {
        let seed = self.seed;
        let Some(state) = self.pods.get_mut(pod) else { return };
        let State::Asked { tries } = *state else { return };
        match outcome {
            Outcome::Accepted => {
                *state = State::Leaving;
                self.has_left(pod, now);
            }
            // The answer to an earlier try may have been lost.
            Outcome::Gone if tries > 0 => {
                *state = State::Gone;
                self.has_left(pod, now);
            }
            Outcome::Gone => {
                *state = State::Gone;
                self.changed = now;
            }
            Outcome::Later { why, again_in } => {
                let wait = back_off(pod, tries, seed).max(again_in.unwrap_or_default());
                *state = State::Due {
                    at: now.after(wait),
                    tries: tries.saturating_add(1),
                };
                self.trouble = Some(format!("{pod}: {why}"));
            }
            Outcome::Never { why } => {
                self.end(Ended::Never { pod: pod.clone(), why });
            }
        }
    }

    /// The pods that are on the node, as of some moment after the list was asked for.
    pub fn listed(&mut self, pods: &[Pod], now: Moment) {
        let List::Asked { at: asked } = self.list else { return };
        self.list = List::Due { at: now.after(LOOK) };
        let new: Vec<_> = pods
            .iter()
            .filter(|pod| self.plan.is_new(pod))
            .map(|pod| pod.id.clone())
            .collect();
        if !new.is_empty() {
            return self.end(Ended::NewPods(new));
        }
        let there = |id: &PodId| pods.iter().find(|pod| pod.id == *id);
        let runs = |id: &PodId| there(id).is_some_and(|pod| !pod.is_finished());
        for (id, state) in &mut self.pods {
            match state {
                // One that is being asked about is left until the answer.
                State::Asked { .. } | State::Gone => {}
                State::Due { .. } if there(id).is_none() => *state = State::Gone,
                State::Leaving if !runs(id) => *state = State::Gone,
                State::Due { .. } | State::Leaving => {}
            }
        }
        let is_all_gone = self.pods.values().all(|state| *state == State::Gone);
        // Also those that the API server said were gone.
        let is_empty = self.plan.to_move.iter().all(|pod| !runs(&pod.id));
        // What was asked before the last change says nothing of it.
        if is_all_gone && is_empty && asked >= self.changed {
            self.end(Ended::Empty);
        }
    }

    /// The pods could not be listed.
    pub fn not_listed(&mut self, why: String, now: Moment) {
        if let List::Asked { .. } = self.list {
            self.list = List::Due { at: now.after(LOOK) };
        }
        self.trouble = Some(why);
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Controllers whose pods were evicted, and how many of each (255: or more).
    pub fn moved(&self) -> &BTreeMap<Controller, u8> {
        &self.moved
    }

    fn has_left(&mut self, pod: &PodId, now: Moment) {
        self.changed = now;
        let planned = self.plan.to_move.iter().find(|planned| planned.id == *pod);
        // Nothing is made in the place of one that is finished.
        let planned = planned.filter(|planned| !planned.is_finished());
        if let Some(controller) = planned.and_then(|planned| planned.controller.clone()) {
            let pods = self.moved.entry(controller).or_default();
            *pods = pods.saturating_add(1);
        }
    }

    /// The lowest priority of the pods that are there: it is their turn.
    fn turn(&self) -> Option<i32> {
        let there = self
            .plan
            .to_move
            .iter()
            .filter(|pod| self.pods.get(&pod.id) != Some(&State::Gone));
        there.map(|pod| pod.priority).min()
    }

    fn left(&self) -> impl Iterator<Item = &PodId> {
        self.pods
            .iter()
            .filter(|(_, state)| **state != State::Gone)
            .map(|(id, _)| id)
    }

    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }
}

/// Doubled at each try; by chance up to half of it shorter, so that the pods of one budget do not come in step.
fn back_off(pod: &PodId, tries: u32, seed: u64) -> Duration {
    let (first, longest) = BACK_OFF;
    let wait = first.saturating_mul(1 << tries.min(10)).min(longest);
    let mut hasher = DefaultHasher::new();
    (seed, pod, tries).hash(&mut hasher);
    let parts = u32::try_from(hasher.finish() % 512).unwrap_or_default();
    wait.saturating_sub(wait.saturating_mul(parts) / 1024)
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the node is empty"),
            Self::NewPods(pods) => write!(f, "a new pod came meanwhile: {}", Names(pods)),
            Self::Never { pod, why } => write!(f, "{pod} cannot be evicted: {why}"),
            Self::OutOfTime { left, why } => {
                write!(f, "the drain took too long; left: {}", Names(left))?;
                why.iter().try_for_each(|why| write!(f, " ({why})"))
            }
        }
    }
}
