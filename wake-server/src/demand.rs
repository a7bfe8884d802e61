//! Decides which sleeping node is woken for pods that find no room. Never reads a clock and wakes nothing: it is given the cluster and the
//! time, and answers with the nodes to wake and, for every other pending pod, why it wakes nothing.
//!
//! ```text
//! pending ─> unschedulable for long enough ─> not moved by our own drain ─> fits no awake node ─> fits none on its way ─> wakes the best
//! ```
//! A pod whose needs are not all judged ([`Judgement::Doubtful`]) passes over the awake nodes: the scheduler knows better why it is not there.
//! It may wake a node in vain, so each further wake for it waits twice as long as the one before.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use vmstation_protocol::NodeName;

use crate::{
    fit::{Judgement, OursOrNot, Room, Why, fits},
    workload::{ClusterNode, Pod, PodId},
};

/// How long after its node fell asleep a pod may have been made in the place of one that was evicted: some controllers wait for its end.
const MADE_AGAIN: Duration = Duration::from_secs(60);

/// How demand wakes nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandPolicy {
    /// How long a pod must have been unschedulable: the scheduler may still place it.
    pub settle: Duration,
    /// Shortest time between two wakes of a node for demand, and before the second wake for a doubtful pod.
    pub cooldown: Duration,
    /// Longest time before a further wake for a doubtful pod.
    pub longest_pause: Duration,
    /// Pods of controllers that our own drain evicted from.
    pub moved: MovedPods,
    /// Pods whose needs are not all judged.
    pub doubtful: DoubtfulPods,
}

/// Whether pods that our own drain moved are demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovedPods {
    /// They wake nodes.
    Wake,
    /// They wait (fault K15).
    Wait,
}

/// Whether doubtful pods are demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtfulPods {
    /// They wake nodes, seldom.
    Wake,
    /// They wait.
    Wait,
}

impl Default for DemandPolicy {
    fn default() -> DemandPolicy {
        DemandPolicy {
            settle: Duration::from_secs(5),
            cooldown: Duration::from_secs(5 * 60),
            longest_pause: Duration::from_secs(60 * 60),
            moved: MovedPods::Wait,
            doubtful: DoubtfulPods::Wake,
        }
    }
}

/// The cluster, as far as demand depends on it. The order of its lists does not matter.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Pods that are not bound to a node.
    pub pending: Vec<Pod>,
    /// Nodes that are awake, and their pods.
    pub awake: Vec<(ClusterNode, Vec<Pod>)>,
    /// Nodes that sleep, or are being woken and not yet handed back to the scheduler.
    pub sleeping: Vec<Sleeper>,
}

/// A sleeping node.
#[derive(Clone, Debug)]
pub struct Sleeper {
    /// It.
    pub node: ClusterNode,
    /// Pods that sleep with it.
    pub pods: Vec<Pod>,
    /// Since when it sleeps.
    pub since: Timestamp,
    /// Whose its cordon is.
    pub cordon: OursOrNot,
    /// How many pods were evicted when it went to sleep, by the UIDs of their controllers.
    pub moved: BTreeMap<String, u8>,
    /// Whether it is being woken.
    pub wake: WakeState,
}

/// Whether a sleeping node is being woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeState {
    /// It is not.
    Asleep,
    /// It is, for whatever reason.
    UnderWay,
}

/// A node to wake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeFor {
    /// Which one.
    pub node: NodeName,
    /// For these pods.
    pub pods: Vec<PodId>,
    /// What to tell the operator.
    pub why: String,
}

/// Why a pending pod wakes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWake {
    /// The scheduler has not refused it.
    NotRefused,
    /// The scheduler has refused it too short a time ago.
    Settling,
    /// It is bound, finished or being deleted.
    Gone,
    /// It stands for one that was moved away from this node for its sleep (fault K15).
    Moved(NodeName),
    /// It fits this node, which is awake: the scheduler's business.
    FitsAwake(NodeName),
    /// It fits this node, which is being woken or has just been.
    Coming(NodeName),
    /// Its needs are not all judged, and such pods are set to wait.
    Doubtful,
    /// Its needs are not all judged, and a wake for it has been in vain; not again before.
    Paused(Timestamp),
    /// No sleeping node fits.
    NoFit(Vec<(NodeName, Vec<Why>)>),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Nodes to wake.
    pub wake: Vec<WakeFor>,
    /// Pods that wake nothing.
    pub waiting: Vec<(PodId, NoWake)>,
}

/// Remembers what was woken for demand.
#[derive(Clone, Debug)]
pub struct Demand {
    policy: DemandPolicy,
    /// When each node was last woken for demand.
    woken: BTreeMap<NodeName, Timestamp>,
    /// Of doubtful pods, by the UID of their controller or else their own.
    pauses: BTreeMap<String, Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Timestamp,
    length: Duration,
}

/// A sleeping node with what it has left when those that are on their way to it are there.
struct Candidate<'a> {
    sleeper: &'a Sleeper,
    room: Room,
    pods: Vec<PodId>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asleep,
    Coming,
    Chosen,
}

impl Demand {
    /// Nothing was woken.
    pub fn new(policy: DemandPolicy) -> Demand {
        Demand {
            policy,
            woken: BTreeMap::new(),
            pauses: BTreeMap::new(),
        }
    }

    /// Decides for the cluster as it is. What it says is to be woken counts as room for the length of the cooldown.
    pub fn decide(&mut self, world: &World, now: Timestamp) -> Decision {
        self.forget(world, now);
        let mut decision = Decision::default();
        let mut eager: Vec<&Pod> = Vec::new();
        let mut places = places(world);
        for pod in by_priority(&world.pending) {
            match self.reluctance(pod, &mut places, now) {
                Some(why) => decision.waiting.push((pod.id.clone(), why)),
                None => eager.push(pod),
            }
        }
        let ready = world.awake.iter().filter(|(node, _)| node.ready);
        let mut awake: Vec<Room> = ready.map(|(node, pods)| Room::new(node, pods)).collect();
        awake.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let mut candidates = self.candidates(world, now);
        // What fits where room is, or will be, takes it before anything is woken.
        eager.retain(|pod| match self.placed(pod, &mut awake, &mut candidates) {
            Some(why) => {
                decision.waiting.push((pod.id.clone(), why));
                false
            }
            None => true,
        });
        let mut doubtful = BTreeSet::new();
        while let Some(pod) = eager.first().copied() {
            let Some(best) = best(&candidates, pod, &eager) else {
                decision.waiting.push((pod.id.clone(), no_fit(pod, &candidates)));
                eager.remove(0);
                continue;
            };
            let candidate = &mut candidates[best];
            candidate.stage = Stage::Chosen;
            eager.retain(|pod| match fits(&pod.needs, &candidate.room) {
                Ok(judgement) => {
                    candidate.room.take(&pod.needs);
                    candidate.pods.push(pod.id.clone());
                    if judgement != Judgement::Sure {
                        doubtful.insert(key(pod));
                    }
                    false
                }
                Err(_) => true,
            });
        }
        for key in doubtful {
            self.pause(key, now);
        }
        for chosen in candidates.iter().filter(|candidate| candidate.stage == Stage::Chosen) {
            let node = chosen.sleeper.node.name.clone();
            self.woken.insert(node.clone(), now);
            let names: Vec<String> = chosen.pods.iter().map(PodId::to_string).collect();
            let why = format!("no awake node has room for {}", names.join(", "));
            decision.wake.push(WakeFor {
                node,
                pods: chosen.pods.clone(),
                why,
            });
        }
        decision
    }

    fn forget(&mut self, world: &World, now: Timestamp) {
        let cooldown = self.policy.cooldown;
        self.woken.retain(|_, since| !has_passed(*since, cooldown, now));
        let pending: BTreeSet<&str> = world.pending.iter().map(key).collect();
        self.pauses
            .retain(|key, pause| now < pause.until || pending.contains(key.as_str()));
    }

    /// Why a pod is not even to be looked at.
    fn reluctance(&self, pod: &Pod, places: &mut Places<'_>, now: Timestamp) -> Option<NoWake> {
        if pod.node.is_some() || pod.is_finished() || pod.is_terminating {
            return Some(NoWake::Gone);
        }
        let Some(since) = pod.unschedulable_since else {
            return Some(NoWake::NotRefused);
        };
        if !has_passed(since, self.policy.settle, now) {
            return Some(NoWake::Settling);
        }
        if self.policy.moved == MovedPods::Wait
            && let Some(name) = moved_from(pod, places)
        {
            return Some(NoWake::Moved(name.clone()));
        }
        match (pod.needs.judgement(), self.policy.doubtful) {
            (Judgement::Sure, DoubtfulPods::Wake | DoubtfulPods::Wait) => None,
            (Judgement::Doubtful(_), DoubtfulPods::Wait) => Some(NoWake::Doubtful),
            (Judgement::Doubtful(_), DoubtfulPods::Wake) => {
                let pause = self.pauses.get(key(pod)).filter(|pause| now < pause.until);
                pause.map(|pause| NoWake::Paused(pause.until))
            }
        }
    }

    fn candidates<'a>(&self, world: &'a World, now: Timestamp) -> Vec<Candidate<'a>> {
        let candidate = |sleeper: &'a Sleeper| {
            let has_just_been = self.woken.get(&sleeper.node.name);
            let is_cooling = has_just_been.is_some_and(|since| !has_passed(*since, self.policy.cooldown, now));
            Candidate {
                sleeper,
                room: Room::once_awake(&sleeper.node, &sleeper.pods, sleeper.cordon),
                pods: Vec::new(),
                stage: match sleeper.wake {
                    WakeState::UnderWay => Stage::Coming,
                    WakeState::Asleep if is_cooling => Stage::Coming,
                    WakeState::Asleep => Stage::Asleep,
                },
            }
        };
        let mut candidates: Vec<Candidate<'a>> = world.sleeping.iter().map(candidate).collect();
        candidates.sort_by(|a, b| a.room.name.as_str().cmp(b.room.name.as_str()));
        candidates
    }

    /// Takes room on a node that is awake or coming.
    fn placed(&self, pod: &Pod, awake: &mut [Room], candidates: &mut [Candidate<'_>]) -> Option<NoWake> {
        if pod.needs.judgement() == Judgement::Sure
            && let Some(room) = awake.iter_mut().find(|room| fits(&pod.needs, room).is_ok())
        {
            room.take(&pod.needs);
            return Some(NoWake::FitsAwake(room.name.clone()));
        }
        let mut coming = candidates
            .iter_mut()
            .filter(|candidate| candidate.stage == Stage::Coming);
        let coming = coming.find(|candidate| fits(&pod.needs, &candidate.room).is_ok())?;
        coming.room.take(&pod.needs);
        Some(NoWake::Coming(coming.room.name.clone()))
    }

    fn pause(&mut self, key: &str, now: Timestamp) {
        let before = self.pauses.get(key).map(|pause| pause.length.saturating_mul(2));
        let length = before.unwrap_or(self.policy.cooldown).min(self.policy.longest_pause);
        let until = SignedDuration::try_from(length)
            .ok()
            .and_then(|length| now.checked_add(length).ok());
        self.pauses.insert(
            key.to_owned(),
            Pause {
                until: until.unwrap_or(Timestamp::MAX),
                length,
            },
        );
    }
}

/// The sleeping node to wake for this pod: it serves the most of those that wait, has the least left then, sleeps the longest, is the first by
/// name.
fn best(candidates: &[Candidate<'_>], pod: &Pod, eager: &[&Pod]) -> Option<usize> {
    let asleep = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.stage == Stage::Asleep);
    let fitting = asleep.filter(|(_, candidate)| fits(&pod.needs, &candidate.room).is_ok());
    let ranked = fitting.map(|(index, candidate)| {
        let mut room = candidate.room.clone();
        let mut served = 0_usize;
        for pod in eager {
            if fits(&pod.needs, &room).is_ok() {
                room.take(&pod.needs);
                served += 1;
            }
        }
        let left = |resource: &str| room.left.get(resource).copied().unwrap_or(0);
        let rank = (
            Reverse(served),
            left("cpu"),
            left("memory"),
            left("pods"),
            candidate.sleeper.since,
        );
        (rank, candidate.room.name.as_str(), index)
    });
    ranked.min().map(|(_, _, index)| index)
}

fn no_fit(pod: &Pod, candidates: &[Candidate<'_>]) -> NoWake {
    let why = |candidate: &Candidate<'_>| Some((candidate.room.name.clone(), fits(&pod.needs, &candidate.room).err()?));
    NoWake::NoFit(candidates.iter().filter_map(why).collect())
}

/// Of each controller, what its pending pods may stand for: one pod that was moved for a sleep each.
type Places<'a> = BTreeMap<&'a str, Vec<Place<'a>>>;

/// Where a pod was that was moved.
struct Place<'a> {
    node: &'a NodeName,
    /// What was made later does not stand for it: more pods are wanted, or the node that it was moved to is gone.
    until: Option<Timestamp>,
}

/// Where pods were that were evicted for a sleep, and where those are that slept with their node: Kubernetes deletes them when it has not
/// answered for some minutes, others are made, and they themselves stay until their kubelet is back.
fn places(world: &World) -> Places<'_> {
    let mut places = Places::new();
    for sleeper in &world.sleeping {
        let node = &sleeper.node.name;
        for (controller, pods) in &sleeper.moved {
            let until = sleeper.since.checked_add(MADE_AGAIN).ok();
            let evicted = (0..*pods).map(|_| Place { node, until });
            places.entry(controller.as_str()).or_default().extend(evicted);
        }
        let gone = sleeper.pods.iter().filter(|pod| pod.is_terminating);
        for controller in gone.filter_map(|pod| pod.controller.as_ref()) {
            let place = Place { node, until: None };
            places.entry(&controller.uid).or_default().push(place);
        }
    }
    places
}

/// The place of the pod that this one stands for, which is taken then.
fn moved_from<'a>(pod: &Pod, places: &mut Places<'a>) -> Option<&'a NodeName> {
    let places = places.get_mut(pod.controller.as_ref()?.uid.as_str())?;
    let is_older = |until| pod.created.is_none_or(|created| created <= until);
    let stood_for = places.iter().position(|place| place.until.is_none_or(is_older))?;
    Some(places.remove(stood_for).node)
}

fn by_priority(pods: &[Pod]) -> Vec<&Pod> {
    let mut order: Vec<&Pod> = pods.iter().collect();
    order.sort_by_key(|pod| (Reverse(pod.priority), pod.unschedulable_since, &pod.id));
    order
}

/// Pods that a controller makes one after the other are one demand.
fn key(pod: &Pod) -> &str {
    pod.controller
        .as_ref()
        .map_or(pod.id.uid.as_str(), |controller| controller.uid.as_str())
}

/// A time that lies ahead has not passed: the API server's clock is not ours.
fn has_passed(since: Timestamp, length: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(since)).is_ok_and(|elapsed| elapsed >= length)
}

impl fmt::Display for NoWake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoWake::NotRefused => write!(f, "the scheduler has not refused it"),
            NoWake::Settling => write!(f, "the scheduler may still place it"),
            NoWake::Gone => write!(f, "it waits for no node"),
            NoWake::Moved(node) => write!(f, "it was moved when {node} went to sleep"),
            NoWake::FitsAwake(node) => write!(f, "it fits {node}, which is awake"),
            NoWake::Coming(node) => write!(f, "it fits {node}, which is being woken"),
            NoWake::Doubtful => write!(f, "not all that it asks for is judged"),
            NoWake::Paused(until) => write!(f, "a node was woken for it in vain; not again before {until}"),
            NoWake::NoFit(nodes) => {
                write!(f, "it fits no sleeping node")?;
                nodes.iter().try_for_each(|(node, why)| {
                    let why: Vec<String> = why.iter().map(Why::to_string).collect();
                    write!(f, "; {node} {}", why.join(", "))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
