//! Lines in the log (target `audit`) about what the server refuses by itself, before the application hears of it. Owns how often there is
//! one: a flood does not fill the disk. What a client sent is escaped and cut.

use std::{
    fmt::Display,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use axum::http::Method;
use tracing::info;

use crate::{clock::Moment, limits::Lines};

/// Characters of a path that are shown.
const SHOWN: usize = 200;

/// What was refused already.
#[derive(Debug, Default)]
pub(super) struct Audit(Mutex<Lines>);

impl Audit {
    /// A connection of which nothing was read.
    pub(super) fn connection(&self, client: IpAddr, why: &dyn Display) {
        if let Some(left_out) = self.tell(client) {
            info!(target: "audit", %client, %why, left_out, "connection refused");
        }
    }

    /// Bytes that are no request.
    pub(super) fn bytes(&self, client: IpAddr, why: &dyn Display) {
        if let Some(left_out) = self.tell(client) {
            info!(target: "audit", %client, %why, left_out, "what is no request refused");
        }
    }

    /// A request whose head was read.
    pub(super) fn request(&self, client: IpAddr, method: &Method, path: &str, status: u16) {
        if let Some(left_out) = self.tell(client) {
            info!(target: "audit", %client, %method, path = shown(path), status, left_out, "request refused");
        }
    }

    fn tell(&self, client: IpAddr) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.tell(client, Moment::now())
    }
}

/// A path as it may stand in a log, whoever sent it.
pub fn shown(path: &str) -> String {
    path.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w3_a_path_is_one_short_line() {
        assert_eq!(shown("/wake/a\n\u{1b}[31m\u{202e}"), "/wake/a\\n\\u{1b}[31m\\u{202e}");
        assert_eq!(shown(&"\u{7f}".repeat(100_000)), "\\u{7f}".repeat(SHOWN));
    }
}
