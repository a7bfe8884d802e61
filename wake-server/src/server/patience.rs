//! A stream that waits for its client only so long. Where the conversation is decides how long: [`Stage`].
//!
//! ```text
//!           first byte           head complete             answer written
//! Waiting ────────────> Head ──────────────────> Request ──────────────────> Waiting
//!  idle                  header                   no bound                    idle
//! ```
//! A connection begins in `Head`: a client that connects has something to ask. hyper has one time for all that comes before the end of a
//! head, the pause between two requests included, and none for a client that does not take its answer.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Where a conversation is; shared by its stream and its requests.
#[derive(Clone, Debug)]
pub(super) struct Stage(Arc<AtomicU8>);

const WAITING: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

impl Stage {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(HEAD)))
    }

    /// A request is there: from here on its own times apply.
    pub(super) fn request(&self) {
        self.set(REQUEST);
    }

    fn set(&self, stage: u8) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream with deadlines.
pub(super) struct Patience<S> {
    stream: S,
    stage: Stage,
    header: Duration,
    idle: Duration,
    reading: Deadline,
    /// The stage `reading` is for.
    reading_for: u8,
    writing: Deadline,
}

impl<S> Patience<S> {
    pub(super) fn new(stream: S, stage: Stage, header: Duration, idle: Duration) -> Self {
        let mut reading = Deadline::default();
        reading.set(header);
        Self {
            reading_for: stage.get(),
            stream,
            stage,
            header,
            idle,
            reading,
            writing: Deadline::default(),
        }
    }

    /// Follows the stage.
    fn follow(&mut self) {
        let stage = self.stage.get();
        if stage == self.reading_for {
            return;
        }
        self.reading_for = stage;
        match stage {
            WAITING => self.reading.set(self.idle),
            HEAD => self.reading.set(self.header),
            _request => self.reading.clear(),
        }
    }

    /// The outcome of a write, which may only wait for `idle`.
    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.writing.clear();
            return outcome;
        }
        if !self.writing.is_set() {
            self.writing.set(self.idle);
        }
        ready!(self.writing.poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.follow();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                if this.reading_for == WAITING && buffer.filled().len() > before {
                    this.stage.set(HEAD);
                    this.follow();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.reading.poll(cx));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.written(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.written(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        this.written(outcome, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.written(outcome, cx)
    }
}

/// A moment after which nobody is waited for; none at first. Its timer is made once for a connection.
#[derive(Default)]
struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
    is_set: bool,
}

impl Deadline {
    fn set(&mut self, after: Duration) {
        self.is_set = true;
        match &mut self.timer {
            Some(timer) => match Instant::now().checked_add(after) {
                Some(deadline) => timer.as_mut().reset(deadline),
                None => *timer = Box::pin(sleep(after)),
            },
            None => self.timer = Some(Box::pin(sleep(after))),
        }
    }

    fn clear(&mut self) {
        self.is_set = false;
    }

    fn is_set(&self) -> bool {
        self.is_set
    }

    /// Ready once it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.timer {
            Some(timer) if self.is_set => timer.as_mut().poll(cx),
            Some(_) | None => Poll::Pending,
        }
    }
}

/// The body of an answer. When it is over, the connection waits for the next request.
pub(super) struct Answer<B> {
    body: B,
    stage: Stage,
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, stage: Stage) -> Self {
        Self { body, stage }
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.stage.set(WAITING);
    }
}
