//! What an agent and the wake server tell each other.
//!
//! ```text
//! POST   /v1/nodes/NAME/report          Report        -> Orders       at a start, after a resume, and at every change
//! GET    /v1/nodes/NAME/orders?after=N                -> Orders       held until there is something newer than N, 5 min at most
//! POST   /v1/nodes/NAME/leave           LeaveRequest  -> Leave        may the node sleep?
//! DELETE /v1/nodes/NAME/leave/GRANT                   -> Orders       the node is awake, or stays so
//! ```
//! The token is that of the node, or an operator's.

use serde::{Deserialize, Serialize};

use crate::{
    MacAddr, NodeName, Role,
    number::{version, whole},
};

/// What an agent tells of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// Version, [`crate::SCHEMA`].
    #[serde(deserialize_with = "version")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1))]
    pub schema: u32,
    /// The node.
    pub node: NodeName,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Suspends of this boot that are over. With `boot_id`, it tells a node that has just woken from one that never slept.
    #[serde(deserialize_with = "whole")]
    #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
    pub resumes: u64,
    /// What it is doing.
    pub activity: Activity,
    /// Why it is awake, in words; empty: nothing keeps it awake.
    pub reasons: Vec<String>,
    /// Its physical network ports.
    pub ports: Vec<Port>,
    /// Its role, if its configuration names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Version of the agent.
    pub version: String,
}

/// What a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Activity {
    /// In use.
    Busy,
    /// Not in use since some time.
    Quiet {
        /// Time since the last activity, seconds.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        idle_s: u64,
    },
    /// Announced that it sleeps unless it is used before.
    GoingToSleep {
        /// Time until then, seconds.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        in_s: u64,
    },
    /// About to suspend: the last that is heard of it.
    Sleeping,
}

/// A physical network port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Port {
    /// Name of the interface.
    pub interface: String,
    /// Its permanent address.
    pub mac: MacAddr,
    /// Whether a magic packet wakes the node through it.
    pub waking: Waking,
}

/// Whether a magic packet wakes a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Waking {
    /// Armed: flag `g`, device wakeup and carrier.
    Armed,
    /// Could be armed.
    Disarmed,
    /// Not possible.
    Unable,
}

/// What the server wants of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orders {
    /// Version, [`crate::SCHEMA`].
    pub schema: u32,
    /// Number of the newest order; to be given as `after` in the next question.
    #[serde(deserialize_with = "whole")]
    #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
    pub newest: u64,
    /// Orders that are newer than what was asked for, the oldest first.
    pub orders: Vec<Order>,
}

/// One order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "order")]
pub enum Order {
    /// Go to sleep, as if an operator had ordered it on the node.
    Sleep {
        /// Its number.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        number: u64,
    },
}

/// An agent asks leave to sleep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaveRequest {
    /// Version, [`crate::SCHEMA`].
    #[serde(deserialize_with = "version")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1))]
    pub schema: u32,
    /// Why it wants to sleep, in words.
    pub reason: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "leave")]
pub enum Leave {
    /// The node may sleep.
    Granted {
        /// Names this leave when it is handed back.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        grant: u64,
        /// For how long it holds, seconds: a suspend that was not begun by then must ask again.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        for_s: u64,
    },
    /// It may not.
    Refused {
        /// Why, in words.
        reason: String,
        /// When to ask again, seconds.
        #[serde(deserialize_with = "whole")]
        #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
        again_in_s: u64,
    },
}
