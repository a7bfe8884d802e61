//! What a hook writes: the first bytes are kept, the rest is read and thrown away, so that the hook is never stopped by a full pipe
//! (fault H3). Owns the reading end; never waits for the end of a pipe that somebody else may hold open (fault H1).

use std::{
    convert::Infallible,
    future,
    io::{self, PipeReader},
    os::fd::OwnedFd,
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe};

use crate::printable::printable;

/// Read at a time, bytes.
const PART: usize = 16 << 10;
/// The largest pipe an ordinary process can make, bytes (`/proc/sys/fs/pipe-max-size`).
const LARGEST_PIPE: usize = 1 << 20;

/// The reading end and what came from it.
pub(super) struct Output {
    pipe: pipe::Receiver,
    part: Box<[u8]>,
    kept: Vec<u8>,
    limit: usize,
    cut: u64,
}

impl Output {
    /// Keeps the first `limit` bytes.
    ///
    /// # Errors
    /// The pipe cannot be waited for.
    pub(super) fn new(pipe: PipeReader, limit: usize) -> io::Result<Self> {
        Ok(Self {
            pipe: pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))?,
            part: vec![0; PART].into_boxed_slice(),
            kept: Vec::new(),
            limit,
            cut: 0,
        })
    }

    /// Reads as long as it is polled. Cancel-safe.
    pub(super) async fn collect(&mut self) -> Infallible {
        loop {
            match self.pipe.read(&mut self.part).await {
                // All writers are gone.
                Ok(0) | Err(_) => return future::pending().await,
                Ok(length) => self.keep(length),
            }
        }
    }

    /// Takes what is in the pipe now and waits for nothing.
    pub(super) fn take_rest(&mut self) {
        let mut taken = 0;
        while taken < LARGEST_PIPE {
            match self.pipe.try_read(&mut self.part) {
                // Empty for now, or for good.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    self.keep(length);
                    taken += length;
                }
            }
        }
    }

    fn keep(&mut self, length: usize) {
        let room = (self.limit - self.kept.len()).min(length);
        self.kept.extend_from_slice(&self.part[..room]);
        self.cut += (length - room) as u64;
    }

    /// What was kept, printable but for line feeds, and a note of what was not.
    pub(super) fn into_text(self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let mut lines: Vec<_> = text.lines().map(|line| printable(line).into_owned()).collect();
        if self.cut > 0 {
            lines.push(format!("[{} more bytes were thrown away]", self.cut));
        }
        lines.join("\n")
    }
}
