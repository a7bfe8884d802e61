//! Nodes and pods of the Kubernetes cluster, as far as sleep and wake depend on them. Plain values: [`crate::cluster`] makes them of what
//! the API server says, the decisions read them.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use vmstation_protocol::NodeName;

use crate::fit::{Amounts, Needs, Taint};

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its name.
    pub name: NodeName,
    /// Its UID: another of the same name is another node.
    pub uid: String,
    /// Of the object that this was read from.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Condition `Ready` is true.
    pub ready: bool,
    /// `status.allocatable`.
    pub allocatable: Amounts,
    /// Managers of `spec.unschedulable` in `metadata.managedFields` with the time of their last write.
    pub cordoned_by: Vec<(String, Option<Timestamp>)>,
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Which one.
    pub id: PodId,
    /// `spec.nodeName`.
    pub node: Option<NodeName>,
    /// `status.phase`.
    pub phase: Phase,
    /// The controller that made it, and would make another.
    pub controller: Option<Controller>,
    /// A static pod's mirror (annotation `kubernetes.io/config.mirror`).
    pub is_mirror: bool,
    /// Is being deleted.
    pub is_terminating: bool,
    /// Its containers are ready.
    pub is_ready: bool,
    /// Has a volume of type `emptyDir`.
    pub has_local_storage: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.priorityClassName`.
    pub priority_class: Option<String>,
    /// `spec.hostNetwork`.
    pub uses_host_network: bool,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Since when condition `PodScheduled` is false for the reason `Unschedulable`.
    pub unschedulable_since: Option<Timestamp>,
    /// What it asks of a node.
    pub needs: Needs,
}

/// Which pod: one that was made again under the same name has another UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Who made a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Controller {
    /// As `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers have started.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// All is done.
    Succeeded,
    /// It failed.
    Failed,
    /// Its node does not say.
    Unknown,
}

impl ClusterNode {
    /// Whether it runs the control plane, by the labels of kubeadm and its like.
    pub fn is_control_plane(&self) -> bool {
        [
            "node-role.kubernetes.io/control-plane",
            "node-role.kubernetes.io/master",
        ]
        .iter()
        .any(|label| self.labels.contains_key(*label))
    }
}

impl Pod {
    /// Nothing of it runs any more.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether a DaemonSet made it: it belongs to the node, and neither keeps it awake nor is moved (fault K5).
    pub fn is_daemon(&self) -> bool {
        self.controller
            .as_ref()
            .is_some_and(|controller| controller.kind == "DaemonSet")
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
