//! Sockets to listen on: the service manager's, or else our own.

use std::{io, net::SocketAddr};

use listenfd::ListenFd;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tracing::info;

/// Connections that wait to be accepted; the kernel has a bound of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// How far a server may listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This host alone may connect: there is no token to tell operators by.
    Loopback,
    /// Every network.
    Networks,
}

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A system call failed.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What the service manager passed cannot be used.
    #[error(
        "cannot use socket {number} of those the service manager passed: {source}; list only stream sockets of TCP in the socket unit"
    )]
    Passed {
        /// Its number, from 0.
        number: usize,
        /// Why.
        source: io::Error,
    },
    /// Anybody could wake every node.
    #[error("refuses to listen on {address} without a token: set token_file, or listen on 127.0.0.1")]
    Unguarded {
        /// Where.
        address: SocketAddr,
    },
}

/// Takes the sockets the service manager passes (`sd_listen_fds(3)`), and those alone if there are any; listens on `address` otherwise.
/// To be called on a tokio runtime with I/O enabled.
///
/// # Errors
/// [`ListenError`]; also for a passed socket that reaches farther than it may.
pub fn listen(address: SocketAddr, reach: Reach) -> Result<Vec<TcpListener>, ListenError> {
    let passed = passed(&mut ListenFd::from_env())?;
    let listeners = if passed.is_empty() {
        guarded(address, reach)?;
        vec![bind(address).map_err(|source| ListenError::Bind { address, source })?]
    } else {
        passed
    };
    for listener in &listeners {
        let address = listener
            .local_addr()
            .map_err(|source| ListenError::Bind { address, source })?;
        guarded(address, reach)?;
        info!(%address, "listening");
    }
    Ok(listeners)
}

fn passed(sockets: &mut ListenFd) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::new();
    for number in 0..sockets.len() {
        let taken = sockets.take_tcp_listener(number).and_then(|socket| {
            let Some(socket) = socket else { return Ok(None) };
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket).map(Some)
        });
        listeners.extend(taken.map_err(|source| ListenError::Passed { number, source })?);
    }
    Ok(listeners)
}

fn guarded(address: SocketAddr, reach: Reach) -> Result<(), ListenError> {
    match reach {
        Reach::Loopback if !address.ip().to_canonical().is_loopback() => Err(ListenError::Unguarded { address }),
        Reach::Loopback | Reach::Networks => Ok(()),
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A restart does not wait for the connections of the server before it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn w7_without_a_token_there_is_only_loopback() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            let refused = listen(address.parse().unwrap(), Reach::Loopback);
            assert!(matches!(refused, Err(ListenError::Unguarded { .. })), "{address}");
        }
        let listeners = listen("127.0.0.1:0".parse().unwrap(), Reach::Loopback).unwrap();
        assert_eq!(listeners.len(), 1);
        assert_ne!(listeners[0].local_addr().unwrap().port(), 0);
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let listeners = listen("127.0.0.1:0".parse().unwrap(), Reach::Loopback).unwrap();
        let taken = listeners[0].local_addr().unwrap();
        let refused = listen(taken, Reach::Loopback).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("cannot listen on {taken}: ")), "{refused}");
    }
}
