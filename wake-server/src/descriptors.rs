//! File descriptors: a connection takes one, and a process begins with fewer than this server may need. Changes the limit of this process
//! and nothing else; never refuses to start, as few clients need few.

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// What the server needs besides connections: listeners, the store, sockets of every network, the log.
const BESIDES: u64 = 64;

/// Raises the soft limit (`RLIMIT_NOFILE`, getrlimit(2)) to the hard one, and warns if that is less than `connections` at a time need.
pub fn raise(connections: usize) {
    match limit() {
        Ok(limit) => {
            if let Some(shortage) = shortage(limit, connections) {
                tracing::warn!(limit, connections, "{shortage}");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors (RLIMIT_NOFILE)"),
    }
}

/// The limit, as high as this process may have it.
fn limit() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// What is missing, and what to do about it.
fn shortage(limit: u64, connections: usize) -> Option<String> {
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(BESIDES);
    (limit < needed).then(|| {
        let enough = limit.saturating_sub(BESIDES).max(1);
        format!(
            "{limit} file descriptors are fewer than {connections} connections need: set LimitNOFILE={needed} in the unit of the service \
             (`ulimit -Hn` in a shell), or limits.connections = {enough} in wake-server.toml"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_with_what_would_be_enough() {
        assert_eq!(shortage(16_448, 16_384), None);
        assert_eq!(
            shortage(16_447, 16_384).unwrap(),
            "16447 file descriptors are fewer than 16384 connections need: set LimitNOFILE=16448 in the unit of the service (`ulimit -Hn` in \
             a shell), or limits.connections = 16383 in wake-server.toml"
        );
        assert!(shortage(10, usize::MAX).unwrap().contains("limits.connections = 1 "));
    }
}
