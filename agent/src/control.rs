//! The control socket: what may be asked of the agent, how a question and its answer travel, and who may ask.
//!
//! ```text
//! client                     server task (one a client)            driver
//!   {"protocol":1,"request":"status"}\n ──▶ size, time, right ──▶ Call { request, peer, reply }
//!   {"protocol":1,"response":{..}}\n    ◀── deadline          ◀── Response
//! ```
//!
//! One connection carries one request line and one response line. [`server`] owns the socket and the clients and never touches the
//! agent's state: the driver answers each [`Call`] when it likes, and a slow or hostile client costs it nothing. [`client`] is the
//! blocking other end, for the command line.

mod client;
mod server;

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use self::{
    client::{CallError, call},
    server::{BindError, ControlServer},
};
use crate::report::{AttemptReport, Status, Why};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vmstation/autosleep.sock";

/// Version of the envelope and of [`Request`]; both sides refuse another.
pub const PROTOCOL: u32 = 1;

/// How long a hold may be, in seconds: 1 s to 30 d.
pub const HOLD_SECONDS: RangeInclusive<u64> = 1..=30 * 24 * 3600;

/// Longest reason of a hold, in bytes.
pub const HOLD_REASON_BYTES: usize = 256;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state of the agent.
    Status,
    /// What keeps the host awake.
    Why,
    /// Allow sleeping again.
    Enable,
    /// Do not sleep until [`Request::Enable`].
    Disable,
    /// Begin the idle time again.
    Reset,
    /// Do not sleep for a while.
    Hold {
        /// How long, in seconds; within [`HOLD_SECONDS`].
        seconds: u64,
        /// Why, in words; at most [`HOLD_REASON_BYTES`].
        reason: Option<String>,
    },
    /// End the hold.
    Release,
    /// Sleep now. Answered as soon as the attempt has begun: [`Request::Attempt`] tells how it goes.
    Sleep {
        /// Whatever the host does.
        #[serde(default)]
        force: bool,
        /// Whether hooks run.
        #[serde(default = "yes")]
        hooks: bool,
    },
    /// What stands against sleeping now. Changes nothing.
    SleepCheck {
        /// As in [`Request::Sleep`].
        #[serde(default)]
        force: bool,
    },
    /// The attempt to sleep that is under way, or the last one.
    Attempt,
    /// Send a notification now, to see whether it arrives.
    NotifyTest,
}

const fn yes() -> bool {
    true
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Why`].
    Why(Box<Why>),
    /// To [`Request::Sleep`] and [`Request::Attempt`]; `None`: there has been none since the agent started.
    Attempt(Option<Box<AttemptReport>>),
    /// To [`Request::SleepCheck`].
    SleepCheck {
        /// Each thing that stands against it, in words.
        objections: Vec<String>,
    },
    /// A change was made.
    Done {
        /// What holds from here on, in words.
        message: String,
    },
    /// Nothing was done.
    Refused {
        /// For machines.
        code: RefusalCode,
        /// For people: what was refused, why, and what helps.
        message: String,
    },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The peer may read but not change.
    NotPermitted,
    /// Something stands against it.
    Refused,
    /// Too many clients at a time.
    Busy,
    /// Not a request of this protocol, or a value out of its range.
    BadRequest,
    /// The request is longer than allowed.
    TooLarge,
    /// The request or the agent's answer did not come in time.
    Timeout,
    /// The other side speaks another [`PROTOCOL`].
    UnsupportedProtocol,
    /// The agent is stopping.
    Stopping,
    /// The agent could not do it.
    Failed,
}

/// Who asks, as the kernel says (`SO_PEERCRED`, see unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user at the time of connecting.
    pub uid: u32,
    /// Effective group at the time of connecting.
    pub gid: u32,
    /// Process; 0 if it lives in another pid namespace.
    pub pid: i32,
}

/// A request on its way to whoever answers it.
#[derive(Debug)]
pub struct Call {
    /// What is asked; permitted and within its ranges.
    pub request: Request,
    /// Who asks.
    pub peer: Peer,
    /// Where the answer goes. Dropped without one: the client hears that the agent is stopping.
    pub reply: oneshot::Sender<Response>,
}

/// The line a client sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    protocol: u32,
    request: Request,
}

/// The line the server sends.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    protocol: u32,
    response: Response,
}

impl Request {
    /// Whether it changes what the agent does: a right of its own.
    pub const fn changes(&self) -> bool {
        match self {
            Self::Status | Self::Why | Self::SleepCheck { .. } | Self::Attempt => false,
            Self::Enable
            | Self::Disable
            | Self::Reset
            | Self::Hold { .. }
            | Self::Release
            | Self::Sleep { .. }
            | Self::NotifyTest => true,
        }
    }

    /// Name on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Why => "why",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Reset => "reset",
            Self::Hold { .. } => "hold",
            Self::Release => "release",
            Self::Sleep { .. } => "sleep",
            Self::SleepCheck { .. } => "sleep --check",
            Self::Attempt => "attempt",
            Self::NotifyTest => "notify test",
        }
    }

    /// What is out of range in it, in words.
    ///
    /// # Errors
    /// A hold outside [`HOLD_SECONDS`] or with a reason above [`HOLD_REASON_BYTES`].
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Hold { seconds, .. } if !HOLD_SECONDS.contains(seconds) => {
                Err(format!("a hold of {seconds} s is out of range: 1 s to 30 days"))
            }
            Self::Hold {
                reason: Some(reason), ..
            } if reason.len() > HOLD_REASON_BYTES => Err(format!(
                "the reason of a hold is at most {HOLD_REASON_BYTES} bytes, this one has {}",
                reason.len()
            )),
            Self::Status
            | Self::Why
            | Self::Enable
            | Self::Disable
            | Self::Reset
            | Self::Hold { .. }
            | Self::Release
            | Self::Sleep { .. }
            | Self::SleepCheck { .. }
            | Self::Attempt
            | Self::NotifyTest => Ok(()),
        }
    }
}

impl Response {
    /// A refusal.
    pub fn refused(code: RefusalCode, message: impl Into<String>) -> Self {
        Self::Refused {
            code,
            message: message.into(),
        }
    }
}

impl Peer {
    /// Whether it may change what the agent does: root, or the user the agent runs as.
    pub const fn may_change(self, agent_uid: u32) -> bool {
        self.uid == 0 || self.uid == agent_uid
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            0 => f.write_str("root")?,
            uid => write!(f, "uid {uid}")?,
        }
        match self.pid {
            0 => Ok(()),
            pid => write!(f, " (pid {pid})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HOLD_REASON_BYTES, Peer, Question, Request};

    fn parse(line: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str::<Question>(line).map(|question| question.request)
    }

    #[test]
    fn requests_are_written_by_hand_easily() {
        assert_eq!(parse(r#"{"protocol":1,"request":"status"}"#).unwrap(), Request::Status);
        assert_eq!(
            parse(r#"{"protocol":1,"request":{"hold":{"seconds":60,"reason":"backup"}}}"#).unwrap(),
            Request::Hold {
                seconds: 60,
                reason: Some("backup".into())
            }
        );
        assert_eq!(
            parse(r#"{"protocol":1,"request":{"hold":{"seconds":60}}}"#).unwrap(),
            Request::Hold {
                seconds: 60,
                reason: None
            }
        );
    }

    #[test]
    fn unknown_requests_fields_and_types_are_refused() {
        for line in [
            r#"{"protocol":1,"request":"suspend"}"#,
            r#"{"protocol":1,"request":"status","force":true}"#,
            r#"{"protocol":1,"request":{"hold":{"seconds":60,"by":"root"}}}"#,
            r#"{"protocol":1,"request":{"hold":{"seconds":-1}}}"#,
            r#"{"protocol":1,"request":{"hold":{"seconds":1e99}}}"#,
            r#"{"request":"status"}"#,
            r#"{"protocol":1,"request":"status"} {}"#,
            "[]",
            "",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_hold_is_1_s_to_30_d_with_a_short_reason() {
        let hold = |seconds, reason: Option<usize>| {
            Request::Hold {
                seconds,
                reason: reason.map(|length| "x".repeat(length)),
            }
            .check()
            .is_ok()
        };
        assert!(!hold(0, None));
        assert!(hold(1, None));
        assert!(hold(30 * 86_400, Some(HOLD_REASON_BYTES)));
        assert!(!hold(30 * 86_400 + 1, None));
        assert!(!hold(u64::MAX, None));
        assert!(!hold(60, Some(HOLD_REASON_BYTES + 1)));
    }

    #[test]
    fn root_and_the_agent_itself_may_change() {
        let peer = |uid| Peer { uid, gid: 0, pid: 7 };
        assert!(peer(0).may_change(990));
        assert!(peer(990).may_change(990));
        assert!(!peer(1000).may_change(990));
        assert!(!peer(1000).may_change(0));
        assert_eq!(peer(0).to_string(), "root (pid 7)");
        assert_eq!(peer(1000).to_string(), "uid 1000 (pid 7)");
    }
}
