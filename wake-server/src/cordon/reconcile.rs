//! What is to be done about a node, by its record and by what is known of it. The one way back: a refused sleep, a broken connection, a
//! killed server, a take-over and a resume all end here.

use super::{Cordon, PowerState, Record, cordon, is_marked, is_ownership_void};
use crate::workload::{ClusterNode, PodId};

use std::{fmt, time::Duration};

/// What was heard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing since this server acts.
    Nothing,
    /// It is awake.
    Awake,
    /// It is entering sleep, or sleeps, by its own word.
    Sleeping,
    /// It fell silent without a word.
    Gone,
}

/// What the kubelet's Lease in `kube-node-lease` says. Only its changes count: the clock of a node need not be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseSign {
    /// Not watched for long enough to tell.
    Unclear,
    /// It was renewed since the node was heard to be awake, or, where nothing was heard, since this server looks.
    Renewed,
    /// It was not renewed for longer than a kubelet takes.
    Still,
}

/// Who has the node's leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody.
    None,
    /// An attempt of this server moves its pods.
    Attempt,
    /// It has leave of this server, or had it so short ago that it may still be entering sleep.
    Leave,
    /// It may have leave of a server before this one.
    MayHaveLeave,
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Of its agent.
    pub heard: Heard,
    /// Of its kubelet.
    pub lease: LeaseSign,
    /// Of its leave.
    pub standing: Standing,
    /// Whether a wake of it is under way.
    pub is_being_woken: bool,
    /// Whether this server has had a wake of it since it acts.
    pub was_woken_here: bool,
    /// Pods of the network and of the node itself that do not run yet.
    pub not_yet: Vec<PodId>,
    /// For how long the node has been back but for those.
    pub back_for: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Nothing: all is as it should be.
    Nothing,
    /// Nothing yet.
    Wait(Why),
    /// Write that it sleeps.
    MarkAsleep,
    /// Write that it is being woken.
    MarkWaking,
    /// Wake it: the server that began to is gone.
    CarryOn,
    /// Take away what is ours. `Back`: it slept, and came back.
    Release(Came),
    /// Give up an ownership that is void.
    Disown,
}

/// Whether a node that is released has slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It has.
    Back,
    /// It never went.
    Not,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its pods are being moved.
    Attempt,
    /// It has leave.
    Leave,
    /// It may have leave of an earlier server.
    MayHaveLeave,
    /// It sleeps, or is on its way.
    Asleep,
    /// It is being woken.
    Woken,
    /// Its kubelet has not renewed its Lease since it is back (fault K13).
    Lease,
    /// It is not ready.
    NotReady,
    /// Pods of its network do not run yet.
    Pods(Vec<PodId>),
    /// Nothing tells where it is.
    Unknown,
}

/// After this time a node that is back is used without those pods: it is ready by its kubelet's word.
const LONGEST_FOR_PODS: Duration = Duration::from_mins(2);

/// What is to be done about a node.
///
/// A node that is in doubt is not released: it may be asleep. One that is awake is released whatever else is wrong with it, but for what
/// has to be there before pods may come.
pub fn duty(node: &ClusterNode, record: Option<&Record>, evidence: &Evidence) -> Duty {
    let Some(record) = record else {
        return without_record(node, evidence);
    };
    match record.state {
        PowerState::Draining => match evidence.standing {
            Standing::Attempt => Duty::Wait(Why::Attempt),
            // Its leave is being written. Nobody hears of it before it is.
            Standing::Leave if evidence.heard != Heard::Sleeping => Duty::Wait(Why::Leave),
            // No leave was given: it does not sleep with leave of ours. What it does without, its agent says.
            Standing::None | Standing::Leave | Standing::MayHaveLeave => match evidence.heard {
                Heard::Sleeping => Duty::MarkAsleep,
                Heard::Nothing | Heard::Awake | Heard::Gone => Duty::Release(Came::Not),
            },
        },
        PowerState::Granted => match (evidence.standing, evidence.heard) {
            (_, Heard::Sleeping) => Duty::MarkAsleep,
            (Standing::Attempt, _) => Duty::Wait(Why::Attempt),
            (Standing::Leave, _) => Duty::Wait(Why::Leave),
            // It may be asleep by now, and its word have reached the earlier server alone.
            (Standing::MayHaveLeave, _) => Duty::Wait(Why::MayHaveLeave),
            (Standing::None, Heard::Awake) => Duty::Release(Came::Not),
            (Standing::None, Heard::Nothing | Heard::Gone) => match evidence.lease {
                LeaseSign::Unclear => Duty::Wait(Why::Unknown),
                LeaseSign::Renewed => Duty::Release(Came::Not),
                LeaseSign::Still => Duty::MarkAsleep,
            },
        },
        PowerState::Asleep | PowerState::Waking => sleeper(node, record.state, evidence),
    }
}

/// Of a node that slept by its record.
fn sleeper(node: &ClusterNode, state: PowerState, evidence: &Evidence) -> Duty {
    let waiting = match (state, evidence.is_being_woken) {
        (PowerState::Waking, true) => Duty::Wait(Why::Woken),
        (_, true) => Duty::MarkWaking,
        (PowerState::Waking, false) if !evidence.was_woken_here => Duty::CarryOn,
        // The wake is over, and it did not come.
        (PowerState::Waking, false) => Duty::MarkAsleep,
        (_, false) if is_ownership_void(node) => Duty::Disown,
        (_, false) => Duty::Wait(Why::Asleep),
    };
    match (evidence.heard, evidence.lease) {
        (Heard::Awake, LeaseSign::Unclear | LeaseSign::Still) => Duty::Wait(Why::Lease),
        (Heard::Nothing | Heard::Sleeping | Heard::Gone, LeaseSign::Unclear | LeaseSign::Still) => waiting,
        // Also where the agent does not say so: it may be stopped, or gone for good.
        (Heard::Nothing | Heard::Awake | Heard::Sleeping | Heard::Gone, LeaseSign::Renewed) => {
            if !node.ready {
                Duty::Wait(Why::NotReady)
            } else if !evidence.not_yet.is_empty() && evidence.back_for < LONGEST_FOR_PODS {
                Duty::Wait(Why::Pods(evidence.not_yet.clone()))
            } else {
                Duty::Release(Came::Back)
            }
        }
    }
}

/// Nothing of ours is on record.
fn without_record(node: &ClusterNode, evidence: &Evidence) -> Duty {
    match evidence.heard {
        // Somebody put it to sleep without asking; or took the record away. The scheduler is to know.
        Heard::Sleeping => Duty::MarkAsleep,
        Heard::Nothing | Heard::Awake | Heard::Gone if is_marked(node) => match cordon(node) {
            Cordon::Others if is_ownership_void(node) => Duty::Disown,
            Cordon::None | Cordon::Ours | Cordon::Others => Duty::Release(Came::Not),
        },
        Heard::Nothing | Heard::Awake | Heard::Gone => Duty::Nothing,
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt => f.write_str("its pods are being moved"),
            Self::Leave => f.write_str("it has leave to sleep"),
            Self::MayHaveLeave => f.write_str("it may have leave of an earlier server"),
            Self::Asleep => f.write_str("it sleeps"),
            Self::Woken => f.write_str("it is being woken"),
            Self::Lease => f.write_str("its kubelet has not renewed its Lease since it is back"),
            Self::NotReady => f.write_str("its kubelet says that it is not ready"),
            Self::Pods(pods) => {
                f.write_str("pods of its network do not run yet:")?;
                pods.iter().take(5).try_for_each(|pod| write!(f, " {pod}"))
            }
            Self::Unknown => f.write_str("nothing tells yet whether it sleeps"),
        }
    }
}
