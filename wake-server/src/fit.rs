//! Whether a pod fits a node, by the rules of the scheduler. Pure: [`crate::cluster::reading`] makes the values of what the API server says.
//!
//! Resources, node selector, required node affinity, taints, host ports and the cordon are judged. What is not (pod affinity, spreading,
//! volumes, claims of devices, groups) is never passed over in silence: it is a [`Doubt`] of the pod, and a fit of such a pod is
//! [`Fit::Doubtful`].

pub mod affinity;
pub mod amount;
pub mod room;
pub mod toleration;

use std::{collections::BTreeMap, fmt};

pub use self::{
    affinity::{Affinity, Operator, Requirement, Term},
    room::{Homeless, OursOrNot, Room, Unsure, room_elsewhere},
    toleration::{Taint, Toleration, TolerationOperator},
};

/// Amounts of resources by name, in thousandths of their unit (`cpu`: cores, `memory`: bytes, `pods`: pods).
pub type Amounts = BTreeMap<String, i128>;

/// What a pod asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Requests, those of init containers and the overhead included. The pod's own place (`pods`) is not: every pod takes one.
    pub requests: Amounts,
    /// `spec.nodeSelector`: labels that the node must have.
    pub selector: BTreeMap<String, String>,
    /// Required node affinity.
    pub affinity: Option<Affinity>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// What else it asks that is not judged.
    pub doubts: Vec<Doubt>,
}

/// A port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address of the node; `0.0.0.0` is all of them.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
}

/// A demand of a pod that is not judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Required affinity to, or anti-affinity against, other pods.
    PodAffinity,
    /// Topology spread with `DoNotSchedule`.
    Spread,
    /// The volume of this name may be bound to a node or a zone.
    Volume(String),
    /// Claims devices.
    Devices,
    /// It is of the pod group of this name, which may be placed as a whole or not at all (since Kubernetes 1.35).
    Group(String),
    /// Another scheduler than the cluster's own places it.
    Scheduler(String),
    /// An amount that cannot be read.
    Amount {
        /// Of which resource.
        resource: String,
        /// As it stands there.
        text: String,
    },
    /// An operator of a node affinity or a toleration that is not known.
    Operator(String),
}

/// Whether the needs of a pod are all judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// All of them.
    Sure,
    /// Not these.
    Doubtful(Vec<Doubt>),
}

/// A pod fits.
pub type Fit = Judgement;

/// Why a pod does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The node is cordoned.
    Cordoned,
    /// The pod does not tolerate the taint.
    Taint(Taint),
    /// The node lacks the label that the node selector asks for.
    Selector {
        /// Key of the label.
        key: String,
        /// Value of the label.
        value: String,
    },
    /// No term of the required node affinity matches.
    Affinity,
    /// Too little is left, in thousandths.
    Lacks {
        /// Of which resource.
        resource: String,
        /// Asked for.
        asked: i128,
        /// What is left; none if the node does not list it, below zero if it is overcommitted.
        left: i128,
    },
    /// The port is taken.
    Port(HostPort),
    /// There is no node to look at.
    NoNode,
}

/// Resource of which every pod takes one.
const PODS: &str = "pods";

/// One pod, in thousandths.
const ONE_POD: i128 = 1000;

impl Needs {
    /// Whether all needs are judged.
    pub fn judgement(&self) -> Judgement {
        if self.doubts.is_empty() {
            Judgement::Sure
        } else {
            Judgement::Doubtful(self.doubts.clone())
        }
    }

    /// All amounts that it takes of a node, its own place included.
    pub fn amounts(&self) -> impl Iterator<Item = (&str, i128)> {
        let requests = self
            .requests
            .iter()
            .map(|(resource, amount)| (resource.as_str(), *amount));
        requests
            .filter(|(resource, _)| *resource != PODS)
            .chain([(PODS, ONE_POD)])
    }
}

impl HostPort {
    /// Whether two pods cannot have both.
    pub fn collides(&self, other: &HostPort) -> bool {
        const ALL: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == ALL || other.address == ALL)
    }
}

/// Whether a pod with these needs fits this room.
///
/// # Errors
/// Every reason why it does not.
pub fn fits(needs: &Needs, room: &Room) -> Result<Fit, Vec<Why>> {
    let mut why = Vec::new();
    if room.unschedulable && !toleration::tolerates(&needs.tolerations, &Taint::cordon()) {
        why.push(Why::Cordoned);
    }
    let unbearable = room.taints.iter().filter(|taint| taint.keeps_pods_away());
    let unbearable = unbearable.filter(|taint| !toleration::tolerates(&needs.tolerations, taint));
    why.extend(unbearable.cloned().map(Why::Taint));
    for (key, value) in &needs.selector {
        if room.labels.get(key) != Some(value) {
            why.push(Why::Selector {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    if needs
        .affinity
        .as_ref()
        .is_some_and(|affinity| !affinity.matches(room.name.as_str(), &room.labels))
    {
        why.push(Why::Affinity);
    }
    for (resource, asked) in needs.amounts() {
        let left = room.left.get(resource).copied().unwrap_or(0);
        if asked > 0 && asked > left {
            why.push(Why::Lacks {
                resource: resource.to_owned(),
                asked,
                left,
            });
        }
    }
    let taken = needs
        .ports
        .iter()
        .filter(|port| room.ports.iter().any(|used| used.collides(port)));
    why.extend(taken.cloned().map(Why::Port));
    if why.is_empty() {
        Ok(needs.judgement())
    } else {
        Err(why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Cordoned => write!(f, "is cordoned"),
            Why::Taint(taint) => write!(f, "has the taint {}:{}", taint.key, taint.effect),
            Why::Selector { key, value } => write!(f, "lacks the label {key}={value}"),
            Why::Affinity => write!(f, "does not match the node affinity"),
            Why::Lacks { resource, asked, left } => {
                write!(f, "has {left} thousandths of {resource} left, {asked} are asked for")
            }
            Why::Port(port) => write!(f, "has no free port {}/{}", port.port, port.protocol),
            Why::NoNode => write!(f, "there is no node"),
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::PodAffinity => write!(f, "asks for or against other pods beside it"),
            Doubt::Spread => write!(f, "asks to be spread"),
            Doubt::Volume(name) => write!(f, "has the volume {name}, which may be bound to a place"),
            Doubt::Devices => write!(f, "claims devices"),
            Doubt::Group(name) => write!(f, "is of the pod group {name}, which may be placed as a whole"),
            Doubt::Scheduler(name) => write!(f, "is placed by the scheduler {name}"),
            Doubt::Amount { resource, text } => write!(f, "asks for {text:?} of {resource}, which is no amount"),
            Doubt::Operator(name) => write!(f, "has the unknown operator {name}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
