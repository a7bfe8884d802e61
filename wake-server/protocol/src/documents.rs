//! What the wake server answers its clients.

use serde::{Deserialize, Serialize};

use crate::{MacAddr, NodeName, Role};

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// `ok`.
    pub status: String,
    /// Version of the server.
    pub version: String,
}

/// `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// Time of the answer, RFC 3339.
    pub time: String,
    /// Every node, by name.
    pub nodes: Vec<NodeDocument>,
    /// What contradicts what, in words: registries and reports.
    pub conflicts: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeDocument {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Cards that wake it, the first one first.
    pub macs: Vec<MacAddr>,
    /// Its address, if one is known.
    pub address: Option<String>,
    /// Whether it is awake.
    pub state: NodeState,
    /// Since when, RFC 3339; absent: not known.
    pub since: Option<String>,
    /// When its agent was heard last, RFC 3339.
    pub last_report: Option<String>,
    /// Why it is awake, in words, as its agent says.
    pub reasons: Vec<String>,
    /// The last wake of it.
    pub last_wake: Option<WakeDocument>,
}

/// Whether a node is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// No agent of it was ever heard.
    Unknown,
    /// Its agent says so.
    Awake,
    /// It sleeps soon unless it is used before.
    GoingToSleep,
    /// Its agent said so before it went silent.
    Asleep,
    /// A wake of it is under way.
    Waking,
    /// Its agent went silent without a word.
    Gone,
}

/// How a wake went, or goes. `POST /wake/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WakeDocument {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// The node.
    pub node: NodeName,
    /// The card that was called.
    pub mac: MacAddr,
    /// When it began, RFC 3339.
    pub began: String,
    /// How it went.
    pub outcome: WakeOutcome,
    /// The stages that were reached, in the order of the chain. The card's answer may be noticed later than the agent's report.
    pub stages: Vec<StageDocument>,
    /// How the packets went; absent: none went.
    pub transport: Option<Transport>,
    /// Interface of this server that they went through, if they went through one that is known.
    pub interface: Option<String>,
    /// Magic packets sent.
    pub packets: u32,
    /// What else is to be said, in words: why it failed, at which stage, what to do.
    pub message: String,
}

/// How a wake went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WakeOutcome {
    /// It goes on.
    Waking,
    /// Sent; nobody asked for a proof.
    Sent,
    /// Proved awake.
    Awake,
    /// Not proved within the deadline.
    TimedOut,
    /// No packet could be sent so far; while some of the schedule is left, it is tried again.
    NotSent,
    /// Called off.
    Cancelled,
}

/// A stage of a wake that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StageDocument {
    /// Which.
    pub stage: Stage,
    /// When, milliseconds after the beginning.
    pub at_ms: f64,
}

/// What proves more and more that a node is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The first frame was sent.
    FrameSent,
    /// The right card answers for the node's address.
    ArpReply,
    /// The node's agent reports from after a resume or a start.
    AgentReport,
    /// Kubernetes has a fresh Lease and the node is Ready.
    Ready,
}

/// How a magic packet was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// As an Ethernet frame, and as UDP broadcasts.
    Raw,
    /// As UDP broadcasts alone.
    Udp,
}

/// `POST /wake/all`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WakeAllDocument {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// Each node, in the order of waking.
    pub nodes: Vec<WakeDocument>,
    /// Nodes that cannot be woken because no MAC address of them is known.
    pub without_mac: Vec<NodeName>,
}

/// Every answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// The kind, a word that does not change: `unauthorized`, `unknown_node`, ..
    pub error: String,
    /// What is wrong and what to do.
    pub message: String,
}
