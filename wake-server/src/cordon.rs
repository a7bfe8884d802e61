//! What this server writes to a Node, and what of it is ours.
//!
//! One record for a node's way through sleep, in its annotations: whoever acts next (this server after a restart, another after a
//! take-over) reads there what was going on. Pure: makes merge patches (RFC 7386) and reads Nodes, never talks to the API server.
//!
//! ```text
//!  (none) ──claim──> draining ──grant──> granted ──asleep──> asleep ──wake begins──> waking
//!    ^                  │                   │                  │                       │
//!    └──────────────────┴───── release ─────┴──────────────────┴───────────────────────┘
//! ```
//! Cordon and ownership are set in one patch and taken away in one patch (fault K8). Every patch carries the resource version that it was
//! made from, so that a change by somebody else in between is a conflict and never overwritten.

mod lease;
mod reconcile;

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use vmstation_protocol::MacAddr;

pub use self::{
    lease::LeaseWatch,
    reconcile::{Came, Duty, Evidence, Heard, LeaseSign, Standing, Why, duty},
};
use crate::{
    fit::Taint,
    workload::{ClusterNode, Controller},
};

/// How this server calls itself to the API server; `metadata.managedFields` names it.
pub const MANAGER: &str = "vmstation-wake-server";
/// Key of the taint of a node that sleeps; its effect is `NoSchedule`.
pub const ASLEEP: &str = "vmstation.io/asleep";
/// An operator's word that a node is to stay awake; its value says why.
pub const HOLD: &str = "vmstation.io/hold";
/// When a wake of the node was proved last (RFC 3339); stays when the record goes.
pub const WOKEN: &str = "vmstation.io/woken";

const STATE: &str = "vmstation.io/power-state";
const SINCE: &str = "vmstation.io/power-state-since";
const BY: &str = "vmstation.io/power-state-by";
const REASON: &str = "vmstation.io/power-state-reason";
const WAKE_MAC: &str = "vmstation.io/wake-mac";
const GRANT: &str = "vmstation.io/grant";
const MOVED: &str = "vmstation.io/moved";
/// Present while the cordon is ours.
const CORDONED_BY: &str = "vmstation.io/cordoned-by";
/// Everything that a release takes away.
const RECORD: [&str; 8] = [STATE, SINCE, BY, REASON, WAKE_MAC, GRANT, MOVED, CORDONED_BY];

/// Controllers whose pods were moved that a record names at most.
const MOST_MOVED: usize = 100;
/// A controller's kind, name and UID, and how many of its pods were moved.
type Moved = (String, String, String, u8);
/// Characters of a reason that are kept.
const REASON_LENGTH: usize = 256;

/// Where a node is on its way through sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PowerState {
    /// Cordoned; its pods are being moved. It has no leave.
    Draining,
    /// It has leave to sleep.
    Granted,
    /// It sleeps.
    Asleep,
    /// A wake of it is under way.
    Waking,
}

/// What the annotations of a node say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub state: PowerState,
    /// Since when. For people.
    pub since: Option<Timestamp>,
    /// The server that wrote this.
    pub by: String,
    /// Why it sleeps.
    pub reason: String,
    /// Card that wakes it.
    pub wake_mac: Option<MacAddr>,
    /// Number of its leave.
    pub grant: Option<u64>,
    /// Controllers whose pods were moved for this sleep (fault K15), and how many of each.
    pub moved: BTreeMap<Controller, u8>,
}

/// Whose a cordon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cordon {
    /// There is none.
    None,
    /// Ours: it goes with the record.
    Ours,
    /// An administrator's. It is never touched.
    Others,
}

/// Why the annotations of a node cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{STATE} is {0:?}: draining, granted, asleep or waking was expected")]
pub struct UnknownState(pub String);

/// What a record is to be told.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// This server.
    pub by: &'a str,
    /// Why the node is to sleep.
    pub reason: &'a str,
    /// Card that wakes it.
    pub wake_mac: Option<MacAddr>,
    /// Now. For people.
    pub now: Timestamp,
}

impl Record {
    /// What the annotations say; `None`: nothing of ours.
    ///
    /// # Errors
    /// A state of another version of this program, or of somebody else: such a node is left as it is.
    pub fn of(node: &ClusterNode) -> Result<Option<Self>, UnknownState> {
        let said = |key| node.annotations.get(key);
        let Some(state) = said(STATE) else { return Ok(None) };
        let moved = said(MOVED).and_then(|text| serde_json::from_str::<Vec<Moved>>(text).ok());
        let controller = |(kind, name, uid, pods)| (Controller { kind, name, uid }, pods);
        Ok(Some(Self {
            state: state.parse()?,
            since: said(SINCE).and_then(|text| text.parse().ok()),
            by: said(BY).cloned().unwrap_or_default(),
            reason: said(REASON).cloned().unwrap_or_default(),
            wake_mac: said(WAKE_MAC).and_then(|text| text.parse().ok()),
            grant: said(GRANT).and_then(|text| text.parse().ok()),
            moved: moved.unwrap_or_default().into_iter().map(controller).collect(),
        }))
    }
}

/// Whose the cordon of a node is: ours if the annotation says so and, where the API server tells who wrote it last, it was us. An
/// administrator who uncordons a node and cordons it again leaves our annotation behind.
pub fn cordon(node: &ClusterNode) -> Cordon {
    if !node.unschedulable {
        return Cordon::None;
    }
    let is_claimed = node.annotations.contains_key(CORDONED_BY);
    let is_written_by_others =
        !node.cordoned_by.is_empty() && node.cordoned_by.iter().all(|(manager, _)| manager != MANAGER);
    if is_claimed && !is_written_by_others {
        Cordon::Ours
    } else {
        Cordon::Others
    }
}

/// Whether somebody took our cordon away, or put his own in its place: the annotation is to go then, so that a later cordon of his is not
/// taken for ours.
pub fn is_ownership_void(node: &ClusterNode) -> bool {
    node.annotations.contains_key(CORDONED_BY) && cordon(node) != Cordon::Ours
}

/// Whether something of ours is on the node.
pub fn is_marked(node: &ClusterNode) -> bool {
    RECORD.iter().any(|key| node.annotations.contains_key(*key)) || node.taints.iter().any(is_ours)
}

/// Cordons the node, unless somebody has, and begins a record: `draining`.
pub fn claim(node: &ClusterNode, claim: &Claim<'_>) -> Value {
    let mut patch = Patch::of(node);
    patch.state(PowerState::Draining, claim);
    patch.annotation(REASON, Some(claim.reason.chars().take(REASON_LENGTH).collect()));
    patch.annotation(WAKE_MAC, claim.wake_mac.map(|mac| mac.to_string()));
    patch.annotation(GRANT, None);
    patch.annotation(MOVED, None);
    match cordon(node) {
        Cordon::None => {
            patch.annotation(CORDONED_BY, Some(claim.by.to_owned()));
            patch.unschedulable(true);
        }
        Cordon::Ours => {}
        Cordon::Others => patch.annotation(CORDONED_BY, None),
    }
    patch.value()
}

/// Its leave is on record, and whose pods were moved for it.
pub fn grant(node: &ClusterNode, number: u64, moved: &BTreeMap<Controller, u8>, claim: &Claim<'_>) -> Value {
    let mut patch = Patch::of(node);
    patch.state(PowerState::Granted, claim);
    patch.annotation(GRANT, Some(number.to_string()));
    let moved: Vec<_> = moved
        .iter()
        .take(MOST_MOVED)
        .map(|(controller, pods)| (&controller.kind, &controller.name, &controller.uid, pods))
        .collect();
    patch.annotation(MOVED, (!moved.is_empty()).then(|| json!(moved).to_string()));
    patch.value()
}

/// It sleeps: nothing is to be scheduled there.
pub fn asleep(node: &ClusterNode, claim: &Claim<'_>) -> Value {
    let mut patch = Patch::of(node);
    patch.state(PowerState::Asleep, claim);
    if !node.annotations.contains_key(REASON) {
        patch.annotation(REASON, Some(claim.reason.chars().take(REASON_LENGTH).collect()));
    }
    if let Some(mac) = claim.wake_mac {
        patch.annotation(WAKE_MAC, Some(mac.to_string()));
    }
    patch.void_ownership(node);
    if !node.taints.iter().any(is_ours) {
        let ours = Taint {
            key: ASLEEP.into(),
            value: String::new(),
            effect: "NoSchedule".into(),
            time_added: None,
        };
        patch.taints(node.taints.iter().chain([&ours]));
    }
    patch.value()
}

/// A wake of it is under way.
pub fn waking(node: &ClusterNode, claim: &Claim<'_>) -> Value {
    let mut patch = Patch::of(node);
    patch.state(PowerState::Waking, claim);
    patch.void_ownership(node);
    patch.value()
}

/// Our ownership is void: see [`is_ownership_void`].
pub fn disown(node: &ClusterNode) -> Value {
    let mut patch = Patch::of(node);
    patch.annotation(CORDONED_BY, None);
    patch.value()
}

/// Takes everything away that is ours, the cordon with it if it is; `woken`: that it came back is proved.
pub fn release(node: &ClusterNode, woken: Option<Timestamp>) -> Value {
    let mut patch = Patch::of(node);
    for key in RECORD {
        if node.annotations.contains_key(key) {
            patch.annotation(key, None);
        }
    }
    if let Some(woken) = woken {
        patch.annotation(WOKEN, Some(woken.to_string()));
    }
    if node.taints.iter().any(is_ours) {
        patch.taints(node.taints.iter().filter(|taint| !is_ours(taint)));
    }
    if cordon(node) == Cordon::Ours {
        patch.unschedulable(false);
    }
    patch.value()
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == ASLEEP
}

/// A merge patch of one reading of a node.
struct Patch {
    resource_version: String,
    uid: String,
    annotations: Map<String, Value>,
    spec: Map<String, Value>,
}

impl Patch {
    fn of(node: &ClusterNode) -> Self {
        Self {
            resource_version: node.resource_version.clone(),
            uid: node.uid.clone(),
            annotations: Map::new(),
            spec: Map::new(),
        }
    }

    fn annotation(&mut self, key: &str, value: Option<String>) {
        self.annotations
            .insert(key.to_owned(), value.map_or(Value::Null, Value::String));
    }

    fn state(&mut self, state: PowerState, claim: &Claim<'_>) {
        self.annotation(STATE, Some(state.to_string()));
        self.annotation(SINCE, Some(claim.now.to_string()));
        self.annotation(BY, Some(claim.by.to_owned()));
    }

    fn void_ownership(&mut self, node: &ClusterNode) {
        if is_ownership_void(node) {
            self.annotation(CORDONED_BY, None);
        }
    }

    /// `false` is told by leaving the field out, as kubectl does.
    fn unschedulable(&mut self, to: bool) {
        let value = if to { Value::Bool(true) } else { Value::Null };
        self.spec.insert("unschedulable".into(), value);
    }

    /// The whole list: it is atomic in the API (`listType=atomic`), and the resource version guards it.
    fn taints<'a>(&mut self, taints: impl Iterator<Item = &'a Taint>) {
        let taints: Vec<_> = taints.map(Taint::to_json).collect();
        self.spec.insert("taints".into(), Value::Array(taints));
    }

    fn value(self) -> Value {
        let mut metadata = json!({ "resourceVersion": self.resource_version, "uid": self.uid });
        if !self.annotations.is_empty() {
            metadata["annotations"] = Value::Object(self.annotations);
        }
        let mut patch = json!({ "metadata": metadata });
        if !self.spec.is_empty() {
            patch["spec"] = Value::Object(self.spec);
        }
        patch
    }
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draining => "draining",
            Self::Granted => "granted",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
        })
    }
}

impl FromStr for PowerState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        match text {
            "draining" => Ok(Self::Draining),
            "granted" => Ok(Self::Granted),
            "asleep" => Ok(Self::Asleep),
            "waking" => Ok(Self::Waking),
            _ => Err(UnknownState(text.chars().take(64).collect())),
        }
    }
}

impl Taint {
    fn to_json(&self) -> Value {
        let mut taint = json!({ "key": self.key, "effect": self.effect });
        if !self.value.is_empty() {
            taint["value"] = Value::String(self.value.clone());
        }
        if let Some(time_added) = &self.time_added {
            taint["timeAdded"] = Value::String(time_added.clone());
        }
        taint
    }
}

/// Annotations of a node whose sleep is on record; for tests of what reads them.
#[cfg(test)]
pub(crate) fn annotations(state: &str, is_cordon_ours: bool) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(STATE.to_owned(), state.to_owned()), (BY.to_owned(), "test".to_owned())]);
    if is_cordon_ours {
        annotations.insert(CORDONED_BY.to_owned(), "test".to_owned());
    }
    annotations
}

#[cfg(test)]
mod tests;
