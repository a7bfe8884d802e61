//! Notifications: tells people and programs elsewhere what this host is about to do, or did.
//!
//! Owns the queue and the one task that empties it. Nothing here is ever waited for by a decision: [`Notifier::tell`] returns at once,
//! the queue is short and loses its oldest, a delivery ends after [`DEADLINE`], and repetition is held back. The secret part of a URL
//! is never in a log or an error. Nothing of a delivery stays in memory between two of them.

mod delivery;
mod limiter;
mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Zoned;
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::timeout,
};

use self::message::Message;
pub use self::{
    delivery::{DEADLINE, Delivered, DeliveryError},
    limiter::Limiter,
};
use crate::{clock::BootTime, config::NotificationMethod, power_log::wall_clock, printable::printable};

/// Notices that wait for their delivery; a further one takes the place of the oldest.
const QUEUE: usize = 16;

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What happens.
    pub event: NoticeEvent,
    /// Why, in words.
    pub reason: String,
    /// When the host is to sleep, if it is known.
    pub sleeps_at: Option<Zoned>,
}

/// What a notice is about. The names are those of the webhook's `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeEvent {
    /// The host sleeps in a while unless it is used before.
    GoingToSleep,
    /// The host sleeps now.
    Sleeping,
    /// The host is awake again.
    Awake,
    /// A sleep was due and something stands against it.
    SleepRefused,
    /// A sleep was tried and did not come about.
    SleepFailed,
    /// Somebody tries out notifications.
    Test,
}

/// What became of notices since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Delivered.
    pub sent: u64,
    /// Not delivered, for the reason of an error.
    pub failed: u64,
    /// Lost because the queue was full.
    pub dropped: u64,
    /// Held back as repetition.
    pub suppressed: u64,
    /// Why the last that failed did; none after a delivery.
    pub last_error: Option<String>,
}

/// Takes notices and sees to their delivery. Clones share the queue; the task ends with the last of them.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<Owner>);

impl NoticeEvent {
    /// Its name for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GoingToSleep => "going_to_sleep",
            Self::Sleeping => "sleeping",
            Self::Awake => "awake",
            Self::SleepRefused => "sleep_refused",
            Self::SleepFailed => "sleep_failed",
            Self::Test => "test",
        }
    }
}

impl Notifier {
    /// Starts the task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(method: NotificationMethod, node: impl Into<String>) -> Self {
        let shared = Arc::new(Shared {
            node: node.into(),
            state: Mutex::new(State {
                method,
                queue: VecDeque::with_capacity(QUEUE),
                limiter: Limiter::default(),
                stats: Stats::default(),
            }),
            outstanding: watch::Sender::new(0),
            work: Notify::new(),
        });
        let task = tokio::spawn(Arc::clone(&shared).work_off()).abort_handle();
        Self(Arc::new(Owner { shared, task }))
    }

    /// From now on notices go there; those that wait, too.
    pub fn set_method(&self, method: NotificationMethod) {
        self.0.shared.state().method = method;
    }

    /// Writes a notice to the log and queues it, unless it repeats another. Never waits.
    pub fn tell(&self, notice: Notice) {
        log(&notice);
        let shared = &self.0.shared;
        let mut state = shared.state();
        if state.method == NotificationMethod::Log {
            return;
        }
        let Some(held_back) = state.limiter.admit(notice.event, &notice.reason, BootTime::now()) else {
            state.stats.suppressed += 1;
            return;
        };
        if state.queue.len() == QUEUE {
            state.queue.pop_front();
            state.stats.dropped += 1;
        } else {
            shared.outstanding.send_modify(|count| *count += 1);
        }
        state.queue.push_back(Message::new(notice, wall_clock(), held_back));
        drop(state);
        shared.work.notify_one();
    }

    /// Waits until nothing is left to deliver; `false` if `within` was too short.
    pub async fn drained(&self, within: Duration) -> bool {
        let mut outstanding = self.0.shared.outstanding.subscribe();
        matches!(
            timeout(within, outstanding.wait_for(|count| *count == 0)).await,
            Ok(Ok(_))
        )
    }

    /// Delivers a notice past the queue and past what holds back repetition, within [`DEADLINE`].
    ///
    /// # Errors
    /// [`DeliveryError`]: names the host, and nothing else of the URL.
    pub async fn deliver_now(&self, notice: Notice) -> Result<Delivered, DeliveryError> {
        log(&notice);
        let shared = &self.0.shared;
        let method = shared.state().method.clone();
        let message = Message::new(notice, wall_clock(), 0);
        let outcome = delivery::deliver(&method, &shared.node, &message).await;
        shared.state().stats.count(&outcome);
        outcome
    }

    /// What became of notices so far.
    pub fn stats(&self) -> Stats {
        self.0.shared.state().stats.clone()
    }
}

impl Stats {
    fn count(&mut self, outcome: &Result<Delivered, DeliveryError>) {
        match outcome {
            Ok(Delivered::Sent { .. }) => {
                self.sent += 1;
                self.last_error = None;
            }
            Ok(Delivered::Logged) => {}
            Err(error) => {
                self.failed += 1;
                self.last_error = Some(error.to_string());
            }
        }
    }
}

fn log(notice: &Notice) {
    let (event, reason) = (notice.event.name(), printable(&notice.reason));
    let sleeps_at = notice.sleeps_at.as_ref().map(message::rfc3339);
    match notice.event {
        NoticeEvent::SleepRefused | NoticeEvent::SleepFailed => {
            tracing::warn!(event, %reason, sleeps_at, "notice");
        }
        NoticeEvent::GoingToSleep | NoticeEvent::Sleeping | NoticeEvent::Awake | NoticeEvent::Test => {
            tracing::info!(event, %reason, sleeps_at, "notice");
        }
    }
}

/// Ends the task when the last [`Notifier`] goes.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    node: String,
    state: Mutex<State>,
    /// Queued or being delivered.
    outstanding: watch::Sender<usize>,
    work: Notify,
}

#[derive(Debug)]
struct State {
    method: NotificationMethod,
    queue: VecDeque<Message>,
    limiter: Limiter,
    stats: Stats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work_off(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                let method = state.method.clone();
                state.queue.pop_front().map(|message| (method, message))
            };
            let Some((method, message)) = next else {
                self.work.notified().await;
                continue;
            };
            let outcome = delivery::deliver(&method, &self.node, &message).await;
            match &outcome {
                Ok(delivered) => tracing::debug!(event = message.event().name(), %delivered, "notice delivered"),
                Err(error) => tracing::warn!(event = message.event().name(), %error, "notice not delivered"),
            }
            self.state().stats.count(&outcome);
            self.outstanding.send_modify(|count| *count -= 1);
        }
    }
}
