//! The blocking other end of the control socket, for the command line. One call, one connection, one deadline for all of it.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr},
};

use super::{Answer, PROTOCOL, Question, Request, Response};
use crate::clock::BootTime;

/// Longer than what the agent takes at most for a request and its answer, so that its own explanation arrives.
const DEADLINE: Duration = Duration::from_secs(8);
/// Longest answer, bytes.
const MAX_RESPONSE: usize = 4 << 20;
/// Pause while the agent's queue of connections is full.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why a call failed. What the agent refuses is not among them: that is a [`Response`].
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens there.
    #[error("cannot reach the agent at {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mode of the socket keeps this user out.
    #[error("may not connect to {}: permission denied; use sudo", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// No answer in time.
    #[error("no answer from {} within {} s", path.display(), DEADLINE.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or what came is no answer.
    #[error("the answer from {} cannot be used: {why}", path.display())]
    BadAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Asks the agent behind `path` and waits for its answer, 8 s at most.
///
/// # Errors
/// [`CallError`] if there is no answer. A refusal is an answer.
pub fn call(path: &Path, request: &Request) -> Result<Response, CallError> {
    let exchange = Exchange {
        path,
        until: BootTime::now().after(DEADLINE),
    };
    let mut stream = exchange.connect()?;
    exchange.send(&mut stream, request)?;
    exchange.receive(&mut stream)
}

/// One call under way.
struct Exchange<'a> {
    path: &'a Path,
    until: BootTime,
}

impl Exchange<'_> {
    fn connect(&self) -> Result<UnixStream, CallError> {
        let unreachable = |error: Errno| match error {
            Errno::EACCES | Errno::EPERM => CallError::NotPermitted { path: self.path.into() },
            error => CallError::Unreachable {
                path: self.path.into(),
                source: error.into(),
            },
        };
        let address = UnixAddr::new(self.path).map_err(unreachable)?;
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(unreachable)?;
            match socket::connect(socket.as_raw_fd(), &address) {
                Ok(()) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false).map_err(|error| self.broken(&error))?;
                    return Ok(stream);
                }
                // A blocking connect would wait for ever on a full queue.
                Err(Errno::EAGAIN) => {
                    self.left()?;
                    thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(unreachable(error)),
            }
        }
    }

    fn send(&self, stream: &mut UnixStream, request: &Request) -> Result<(), CallError> {
        let question = Question {
            protocol: PROTOCOL,
            request: request.clone(),
        };
        let mut line = serde_json::to_vec(&question).map_err(|error| self.bad(error.to_string()))?;
        line.push(b'\n');
        stream
            .set_write_timeout(Some(self.left()?))
            .map_err(|error| self.broken(&error))?;
        match stream.write_all(&line) {
            // Turned away before the request was read: the answer is already on its way.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            Err(error) => Err(self.broken(&error)),
            Ok(()) => Ok(()),
        }
    }

    fn receive(&self, stream: &mut UnixStream) -> Result<Response, CallError> {
        let mut line = Vec::new();
        let mut part = [0; 16 << 10];
        loop {
            stream
                .set_read_timeout(Some(self.left()?))
                .map_err(|error| self.broken(&error))?;
            let length = match stream.read(&mut part) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(&error)),
            };
            line.extend_from_slice(&part[..length]);
            if length == 0 || part[..length].contains(&b'\n') {
                break;
            }
            if line.len() > MAX_RESPONSE {
                return Err(self.bad(format!("longer than {MAX_RESPONSE} bytes")));
            }
        }
        if line.is_empty() {
            return Err(self.bad("the agent closed the connection without one".into()));
        }
        let Answer { protocol, response } = serde_json::from_slice(&line).map_err(|error| {
            self.bad(format!(
                "{error}; are vmstation-autosleep-ctl and the agent of the same version?"
            ))
        })?;
        if protocol != PROTOCOL {
            return Err(self.bad(format!("it is of protocol {protocol}, this program speaks {PROTOCOL}")));
        }
        Ok(response)
    }

    /// Time left, more than zero.
    fn left(&self) -> Result<Duration, CallError> {
        match self.until.since(BootTime::now()) {
            Duration::ZERO => Err(CallError::TimedOut { path: self.path.into() }),
            left => Ok(left),
        }
    }

    fn broken(&self, error: &io::Error) -> CallError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => CallError::TimedOut { path: self.path.into() },
            _ => self.bad(error.to_string()),
        }
    }

    fn bad(&self, why: String) -> CallError {
        CallError::BadAnswer {
            path: self.path.into(),
            why,
        }
    }
}
