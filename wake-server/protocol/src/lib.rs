//! What agents, the wake server and its clients say to each other, as JSON over HTTP. Types only: never sends, never decides.
//!
//! Names of fields are stable. A document says in `schema` which version of them it has; within a version fields are only added, and
//! readers ignore those they do not know.

mod agents;
mod documents;
mod mac;
mod name;
mod number;
#[cfg(feature = "openapi")]
pub mod schemas;

pub use self::{
    agents::{Activity, Leave, LeaveRequest, Order, Orders, Port, Report, Waking},
    documents::{
        Health, NodeDocument, NodeState, Problem, Stage, StageDocument, Status, Transport, WakeAllDocument,
        WakeDocument, WakeOutcome,
    },
    mac::{MacAddr, MacError},
    name::{NameError, NodeName, Role, UnknownRole},
    number::LARGEST,
};

/// Version of all documents.
pub const SCHEMA: u32 = 1;
/// Port of the wake server.
pub const PORT: u16 = 9876;
/// Header that carries the token.
pub const TOKEN_HEADER: &str = "X-Auth-Token";
