//! Wake on demand: pods that find no room wake the node that has it.
//!
//! [`crate::demand`] decides. The cluster is looked at only while some pod is unschedulable, and ever more seldom while nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::time::sleep;

use super::{AGAIN, Kubernetes};
use crate::{
    clock::{Moment, wall_clock},
    cluster::{ClusterError, NodeEvent, Seen},
    config::DemandRules,
    cordon::{self, Cordon, PowerState, Record},
    demand::{Demand, DemandPolicy, MovedPods, Sleeper, WakeState, World},
    fit::OursOrNot,
    hub::Hub,
    workload::{ClusterNode, Pod, PodId},
};

/// First and longest time between two looks at a cluster whose pods find no room.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// Where no pod waits.
const IDLE: Duration = Duration::from_hours(1);

/// Pods without a node.
#[derive(Default)]
struct Pending {
    pods: BTreeMap<PodId, Pod>,
    /// Seen since the watch began.
    again: Option<BTreeSet<PodId>>,
    is_blind: bool,
}

impl Pending {
    /// Whether anything changed that a look could find: pods that find a node at once come and go all day.
    fn seen(&mut self, seen: Seen<Pod>) -> bool {
        match seen {
            Seen::Begin => {
                self.again = Some(BTreeSet::new());
                false
            }
            Seen::Is(pod) => {
                if let Some(again) = &mut self.again {
                    again.insert(pod.id.clone());
                }
                let before = self.pods.get(&pod.id);
                let waits = is_without_room(&pod) || before.is_some_and(is_without_room);
                let is_new = waits && before != Some(&pod);
                self.pods.insert(pod.id.clone(), pod);
                is_new
            }
            Seen::Gone(pod) => self.pods.remove(&pod.id).is_some_and(|pod| is_without_room(&pod)),
            Seen::Complete => {
                self.is_blind = false;
                let before = self.pods.len();
                if let Some(again) = self.again.take() {
                    self.pods.retain(|id, _| again.contains(id));
                }
                self.pods.len() != before
            }
        }
    }

    fn is_unschedulable(&self) -> bool {
        self.pods.values().any(is_without_room)
    }
}

/// Whether the scheduler found no node for it.
fn is_without_room(pod: &Pod) -> bool {
    pod.unschedulable_since.is_some()
}

impl Hub {
    /// Wakes nodes for pods. Never ends.
    pub(super) async fn answer_demand(self: &Arc<Self>, kubernetes: &Kubernetes) {
        let rules = self.sleep.demand;
        if !rules.on {
            return std::future::pending().await;
        }
        let mut unbound = kubernetes.cluster.watch_unbound().await;
        let mut pending = Pending::default();
        let mut demand = Demand::new(policy(rules));
        let (first, longest) = LOOKS;
        let mut pause = first;
        let mut next = Moment::now();
        loop {
            let wait = if pending.is_unschedulable() {
                next.since(Moment::now())
            } else {
                IDLE
            };
            tokio::select! {
                seen = unbound.next() => match seen {
                    Some(Ok(seen)) => {
                        if pending.seen(seen) {
                            pause = first;
                            next = next.min(Moment::now().after(first));
                        }
                        continue;
                    }
                    Some(Err(error)) => {
                        if !std::mem::replace(&mut pending.is_blind, true) {
                            tracing::error!(%error, "pods without a node cannot be watched; it is tried again");
                        }
                        continue;
                    }
                    None => {
                        sleep(AGAIN).await;
                        unbound = kubernetes.cluster.watch_unbound().await;
                        continue;
                    }
                },
                () = sleep(wait) => {}
            }
            if pending.is_unschedulable()
                && let Err(error) = self.decide(kubernetes, &mut demand, &pending).await
            {
                tracing::warn!(%error, "whether pods need a node that sleeps cannot be told; it is tried again");
            }
            next = Moment::now().after(pause);
            pause = pause.saturating_mul(2).min(longest);
        }
    }

    async fn decide(
        self: &Arc<Self>,
        kubernetes: &Kubernetes,
        demand: &mut Demand,
        pending: &Pending,
    ) -> Result<(), ClusterError> {
        let nodes = kubernetes.cluster.nodes().await?;
        let is_asleep = |node: &ClusterNode| {
            let state = Record::of(node).ok().flatten().map(|record| record.state);
            matches!(state, Some(PowerState::Asleep | PowerState::Waking))
        };
        if !nodes.iter().any(is_asleep) {
            return Ok(());
        }
        let pods = kubernetes.cluster.pods().await?;
        let world = self.world(nodes, pods, pending);
        let decision = demand.decide(&world, wall_clock());
        for (pod, why) in &decision.waiting {
            tracing::debug!(%pod, %why, "pod wakes no node");
        }
        for wake in decision.wake {
            if !kubernetes.is_acting() {
                return Ok(());
            }
            tracing::info!(target: "audit", node = %wake.node, why = wake.why, "node woken for pods");
            match self.wake(wake.node.as_str(), true) {
                Ok(_followed_by_its_own) => {}
                Err(refusal) => tracing::warn!(node = %wake.node, %refusal, "a node that pods need is not woken"),
            }
            if let Some(sleeper) = world.sleeping.iter().find(|sleeper| sleeper.node.name == wake.node) {
                let event = NodeEvent {
                    reason: "WokenForPods",
                    note: wake.why,
                    is_warning: false,
                };
                kubernetes.tell(&sleeper.node, &event).await;
            }
        }
        Ok(())
    }

    fn world(&self, nodes: Vec<ClusterNode>, pods: Vec<Pod>, pending: &Pending) -> World {
        let mut bound: BTreeMap<_, Vec<Pod>> = BTreeMap::new();
        for pod in pods {
            if let Some(node) = pod.node.clone() {
                bound.entry(node).or_default().push(pod);
            }
        }
        let mut world = World {
            pending: pending.pods.values().cloned().collect(),
            ..World::default()
        };
        for node in nodes {
            let pods = bound.remove(&node.name).unwrap_or_default();
            match Record::of(&node) {
                Ok(Some(record)) if matches!(record.state, PowerState::Asleep | PowerState::Waking) => {
                    let is_woken =
                        record.state == PowerState::Waking || self.known().presence.is_being_woken(&node.name);
                    let cordon = match cordon::cordon(&node) {
                        Cordon::None | Cordon::Ours => OursOrNot::Ours,
                        Cordon::Others => OursOrNot::NotOurs,
                    };
                    world.sleeping.push(Sleeper {
                        since: record.since.unwrap_or_else(wall_clock),
                        moved: record
                            .moved
                            .into_iter()
                            .map(|(controller, pods)| (controller.uid, pods))
                            .collect(),
                        wake: if is_woken {
                            WakeState::UnderWay
                        } else {
                            WakeState::Asleep
                        },
                        cordon,
                        node,
                        pods,
                    });
                }
                // One on its way to sleep is cordoned, and one that nobody understands is left to the scheduler.
                Ok(_) | Err(_) => world.awake.push((node, pods)),
            }
        }
        world
    }
}

fn policy(rules: DemandRules) -> DemandPolicy {
    DemandPolicy {
        settle: rules.settle,
        cooldown: rules.cooldown,
        moved: if rules.moved { MovedPods::Wake } else { MovedPods::Wait },
        ..DemandPolicy::default()
    }
}
