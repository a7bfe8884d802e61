//! Waiting for a file descriptor on the runtime. Owns the descriptor it waits for, never reads from it.

use std::{future, io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor of its own, registered with the runtime.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Registers `fd`, usually a duplicate of the one that is read from.
    ///
    /// # Errors
    /// It cannot be waited for (epoll_ctl(2)).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open, gives the same descriptor every time, and lives in the `AsyncFd` until that goes.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits until it is readable, and not again before it has become so anew: read it empty afterwards. Cancel-safe: readiness that was
    /// not taken stays.
    pub async fn ready(&self) {
        match self.0.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime shuts down.
            Err(_) => future::pending().await,
        }
    }
}
