//! What a node has left for pods.

use std::{cmp::Reverse, collections::BTreeMap};

use vmstation_protocol::NodeName;

use super::{Amounts, Doubt, HostPort, Judgement, Needs, Taint, Why, fits};
use crate::workload::{ClusterNode, Pod, PodId};

/// What a node has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Name of the node.
    pub name: NodeName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Allocatable less what its pods asked for; below zero if it is overcommitted.
    pub left: Amounts,
    /// Ports that its pods took.
    pub ports: Vec<HostPort>,
    /// It is cordoned.
    pub unschedulable: bool,
}

/// Whose a cordon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OursOrNot {
    /// Ours: it goes when the node is awake.
    Ours,
    /// Somebody else's: it stays (fault K8).
    NotOurs,
}

/// A pod that is only thought to fit, and why that is not sure.
pub type Unsure = (PodId, Vec<Doubt>);

/// A pod that fits nowhere, with every reason of every node.
pub type Homeless = (PodId, Vec<Why>);

/// Taint of a node that this project put to sleep.
const ASLEEP: &str = "vmstation.io/asleep";

/// Taints that Kubernetes puts on a node that does not answer, and takes away when it does.
const GONE_WHEN_AWAKE: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

impl Room {
    /// Of a node as it is, with the pods that are bound to it.
    pub fn new<'a>(node: &ClusterNode, pods: impl IntoIterator<Item = &'a Pod>) -> Room {
        let mut room = Room {
            name: node.name.clone(),
            labels: node.labels.clone(),
            taints: node.taints.clone(),
            left: node.allocatable.clone(),
            ports: Vec::new(),
            unschedulable: node.unschedulable,
        };
        for pod in pods.into_iter().filter(|pod| !pod.is_finished()) {
            room.take(&pod.needs);
        }
        room
    }

    /// Of a sleeping node as it will be once it is awake: without our taint, the taints of a node that does not answer, and a cordon of ours.
    pub fn once_awake<'a>(node: &ClusterNode, pods: impl IntoIterator<Item = &'a Pod>, cordon: OursOrNot) -> Room {
        let mut room = Room::new(node, pods);
        room.taints
            .retain(|taint| taint.key != ASLEEP && !GONE_WHEN_AWAKE.contains(&taint.key.as_str()));
        match cordon {
            OursOrNot::Ours => {
                room.unschedulable = false;
                room.taints.retain(|taint| taint.key != Taint::cordon().key);
            }
            OursOrNot::NotOurs => {}
        }
        room
    }

    /// A pod with these needs comes here.
    pub fn take(&mut self, needs: &Needs) {
        for (resource, amount) in needs.amounts() {
            let left = self.left.entry(resource.to_owned()).or_default();
            *left = left.saturating_sub(amount);
        }
        self.ports.extend(needs.ports.iter().cloned());
    }
}

/// Whether the pods that a drain moves have room on the other nodes that are awake: each goes to the first that it fits, the most important
/// first. Says which of them are only thought to fit, and why that is not sure.
///
/// # Errors
/// The pods for which there is no room, with every reason of every node.
pub fn room_elsewhere(pods: &[Pod], nodes: &[(ClusterNode, Vec<Pod>)]) -> Result<Vec<Unsure>, Vec<Homeless>> {
    let ready = nodes.iter().filter(|(node, _)| node.ready);
    let mut rooms: Vec<Room> = ready.map(|(node, pods)| Room::new(node, pods)).collect();
    rooms.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let mut order: Vec<&Pod> = pods.iter().collect();
    order.sort_by_key(|pod| (Reverse(pod.priority), &pod.id));
    let (mut doubtful, mut homeless) = (Vec::new(), Vec::new());
    for pod in order {
        let mut why = Vec::new();
        let mut home = None;
        for room in &mut rooms {
            match fits(&pod.needs, room) {
                Ok(judgement) => {
                    room.take(&pod.needs);
                    home = Some(judgement);
                    break;
                }
                Err(reasons) => why.extend(reasons),
            }
        }
        match home {
            Some(Judgement::Sure) => {}
            Some(Judgement::Doubtful(doubts)) => doubtful.push((pod.id.clone(), doubts)),
            None if why.is_empty() => homeless.push((pod.id.clone(), vec![Why::NoNode])),
            None => homeless.push((pod.id.clone(), why)),
        }
    }
    if homeless.is_empty() {
        Ok(doubtful)
    } else {
        Err(homeless)
    }
}
