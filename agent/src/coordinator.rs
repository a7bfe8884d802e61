//! The client of the wake server: asks its leave to sleep, tells it what this host does, and takes its orders. Without a wake server
//! there is nobody to ask.
//!
//! ```text
//! attempt ── ask leave, hand it back ──────────> [Server] ── one bounded request ──────────> wake server
//! driver  ── what the host does ──> [Contact] ──────┘        reports; one question for orders, held
//!         <── number of an order ───────┘
//! ```
//! Owns the task that keeps in contact. Decides nothing: whether the host sleeps is for [`crate::idle`], a leave belongs to the attempt
//! it was given to. Nothing the driver does waits for the network. Without `[wake_server]` in the configuration nothing of this is there.

mod contact;
mod server;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use vmstation_protocol::{Leave, NodeName};

pub use self::{
    contact::{Board, Contact, Pace},
    server::{Failure, Server},
};
use crate::{clock::BootTime, config::WakeServer, printable::printable};

/// Attempts to hand a leave back before it is left to expire.
const HAND_BACK_TRIES: usize = 8;
/// Longest wait for the first of them. The host is awake, and others wait for the end of the attempt.
const HAND_BACK_DEADLINE: Duration = Duration::from_secs(2);
/// Longest time that a leave is believed to hold.
const LONGEST_LEAVE: Duration = Duration::from_secs(24 * 60 * 60);
/// Characters of a server's words that are shown.
const SHOWN: usize = 300;

/// Who has a say over the sleep of this node.
#[derive(Clone, Debug)]
pub enum Coordinator {
    /// Nobody: a single host, or a node whose configuration names no wake server.
    Nobody,
    /// A wake server.
    Server(Arc<Server>),
    /// A wake server to which this node cannot name itself; why. There is no leave then.
    Nameless(Arc<str>),
}

/// Leave to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Names it when it is handed back.
    pub number: u64,
    /// Until when it holds, as time since boot ([`BootTime`]).
    pub until: Duration,
}

impl Coordinator {
    /// As the configuration says, for the node called `node`.
    pub fn new(configured: Option<&WakeServer>, node: &str, pace: Pace) -> Self {
        let Some(settings) = configured else {
            return Self::Nobody;
        };
        match node.parse::<NodeName>() {
            Ok(name) => Self::Server(Arc::new(Server::new(settings.clone(), name, pace))),
            Err(error) => Self::Nameless(
                format!("the wake server cannot be told who this is: {error}; change the host name").into(),
            ),
        }
    }

    /// Asks leave to sleep; `reason` says why, in words. `None`: none is needed.
    ///
    /// If the answer is not waited for, a leave may have been given that nobody knows of: it expires.
    ///
    /// # Errors
    /// Who refuses, and why. Whoever does not answer refuses.
    pub async fn ask_leave(&self, reason: &str) -> Result<Option<Grant>, String> {
        let server = match self {
            Self::Nobody => return Ok(None),
            Self::Nameless(why) => return Err(without_leave(why)),
            Self::Server(server) => server,
        };
        let asked = BootTime::now();
        match server.leave(reason).await {
            Ok(Leave::Granted { grant, for_s }) => {
                let holds = Duration::from_secs(for_s).min(LONGEST_LEAVE);
                tracing::info!(
                    server = server.host(),
                    grant,
                    for_s,
                    "the wake server gives leave to sleep"
                );
                Ok(Some(Grant {
                    number: grant,
                    until: asked.after(holds).0,
                }))
            }
            Ok(Leave::Refused { reason, again_in_s }) => {
                let reason: String = printable(&reason).chars().take(SHOWN).collect();
                Err(format!(
                    "the wake server at {} refuses: {reason} (to be asked again in {again_in_s} s)",
                    server.host()
                ))
            }
            Err(failure) => Err(without_leave(&server.in_words(&failure))),
        }
    }

    /// The node is awake, or stays so: the leave is no longer needed. What does not succeed at once is tried again in the background.
    pub async fn hand_back(&self, grant: Grant) {
        let server = match self {
            Self::Nobody | Self::Nameless(_) => return,
            Self::Server(server) => Arc::clone(server),
        };
        match server.hand_back(grant.number, HAND_BACK_DEADLINE).await {
            Ok(()) => {}
            Err(failure) if failure.may_pass() => {
                tokio::spawn(hand_back_later(server, grant.number));
            }
            Err(failure) => tracing::debug!(grant = grant.number, "{}", server.in_words(&failure)),
        }
    }

    /// Why there can never be leave, if so.
    pub fn complaint(&self) -> Option<String> {
        match self {
            Self::Nobody | Self::Server(_) => None,
            Self::Nameless(why) => Some(without_leave(why)),
        }
    }
}

impl Grant {
    /// Whether it holds no longer.
    pub fn is_over(&self, now: BootTime) -> bool {
        now.0 >= self.until
    }
}

fn without_leave(why: &str) -> String {
    format!("{why}; without its leave this node does not sleep")
}

async fn hand_back_later(server: Arc<Server>, grant: u64) {
    for wait in server.pace().waits().take(HAND_BACK_TRIES) {
        sleep(wait).await;
        match server.hand_back(grant, server.pace().answer).await {
            Err(failure) if failure.may_pass() => {
                tracing::debug!(grant, "{}", server.in_words(&failure));
            }
            Ok(()) | Err(_) => return,
        }
    }
    tracing::warn!(grant, "the leave to sleep could not be handed back: it expires");
}
