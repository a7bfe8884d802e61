//! Tells people and programs elsewhere of wakes that failed (fault W13), in the form of the agents' notices.
//!
//! Owns the queue and the one task that empties it. Nobody waits for it: [`Notifier::tell`] returns at once, what the short queue cannot
//! take is lost, a delivery ends after [`DEADLINE`], and repetition is held back. What follows the host in a URL is in no log or error.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::client::legacy;
use serde::Serialize;
use serde_json::json;
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
    time::timeout,
};
use vmstation_protocol::{NodeName, WakeDocument, WakeOutcome};

use crate::{
    clock::{Moment, wall_clock},
    https,
    limits::Interval,
};

/// Longest time of a delivery: name, connection, TLS and the head of the answer.
pub const DEADLINE: Duration = Duration::from_millis(4500);
/// Notices that wait for their delivery.
const QUEUE: usize = 16;
/// A node is told of once in this time.
const SAME_WITHIN: Duration = Duration::from_mins(10);
/// The time over which [`AT_MOST`] counts.
const WINDOW: Duration = Duration::from_hours(1);
/// Notices within [`WINDOW`].
const AT_MOST: usize = 12;
const USER_AGENT: &str = concat!("vmstation-wake-server/", env!("CARGO_PKG_VERSION"));

/// Where notices go to. What follows the host of its URL often is a password: it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    uri: Uri,
    form: Form,
}

/// What a notice looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A document, for programs.
    Webhook,
    /// A sentence, as Slack's incoming webhooks take it.
    Slack,
}

/// A notice on its way.
#[derive(Clone, Debug, Serialize)]
struct Notice {
    event: &'static str,
    node: NodeName,
    reason: String,
    time: String,
}

/// Why a notice was not delivered.
#[derive(Debug, Error)]
enum DeliveryError {
    #[error("no answer within {} s", DEADLINE.as_secs_f32())]
    TimedOut,
    #[error("status {0}, a redirect: redirects are not followed; configure the URL it leads to")]
    Redirected(u16),
    #[error("status {0}")]
    Refused(StatusCode),
    #[error("cannot be reached")]
    Unreachable(#[source] legacy::Error),
    #[error("cannot be asked: {0}")]
    Client(String),
    #[error("cannot be asked")]
    Request(#[from] http::Error),
    #[error("cannot be asked")]
    Task(#[from] JoinError),
}

/// Takes notices and sees to their delivery. By default to nobody.
#[derive(Debug, Default)]
pub struct Notifier {
    queue: Option<mpsc::Sender<Notice>>,
    limiter: Mutex<Limiter>,
}

impl Target {
    /// One at this URL; none: it is no `http://` or `https://` URL with a host.
    pub fn new(form: Form, url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        (is_http && uri.host().is_some_and(|host| !host.is_empty())).then_some(Self { uri, form })
    }

    fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.form, self.host())
    }
}

impl Notifier {
    /// Tells all of these, one after the other. The task ends with the value.
    ///
    /// # Panics
    /// Outside a tokio runtime, if there are any.
    pub fn new(targets: Vec<Target>) -> Self {
        if targets.is_empty() {
            return Self::default();
        }
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(work_off(targets, waiting));
        Self {
            queue: Some(queue),
            limiter: Mutex::default(),
        }
    }

    /// Tells of a wake that is over, if it failed. Never waits.
    pub fn tell(&self, wake: &WakeDocument) {
        let Some(queue) = &self.queue else { return };
        match wake.outcome {
            WakeOutcome::TimedOut | WakeOutcome::NotSent => {}
            WakeOutcome::Waking | WakeOutcome::Sent | WakeOutcome::Awake | WakeOutcome::Cancelled => return,
        }
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held_back) = limiter.admit(&wake.node, Moment::now()) else {
            return;
        };
        drop(limiter);
        let notice = Notice::of(wake, held_back);
        if queue.try_send(notice).is_err() {
            tracing::warn!(node = %wake.node, "a notice is lost: too many wait for their delivery");
        }
    }
}

impl Notice {
    fn of(wake: &WakeDocument, held_back: u32) -> Self {
        let before = match held_back {
            0 => String::new(),
            number => format!(" ({number} notices before this one were held back)"),
        };
        Self {
            event: "wake_failed",
            node: wake.node.clone(),
            reason: format!("{}{before}", wake.message),
            time: wall_clock().to_string(),
        }
    }

    fn body(&self, form: Form) -> Bytes {
        let Self { node, reason, .. } = self;
        let document = match form {
            Form::Webhook => json!(self),
            Form::Slack => json!({ "text": plain(&format!("{node} could not be woken: {reason}")) }),
        };
        Bytes::from(document.to_string())
    }
}

/// Without what Slack takes for markup, `<!channel>` above all.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn work_off(targets: Vec<Target>, mut waiting: mpsc::Receiver<Notice>) {
    while let Some(notice) = waiting.recv().await {
        for target in &targets {
            let delivered = timeout(DEADLINE, deliver(target, &notice)).await;
            let (node, host) = (&notice.node, target.host());
            match delivered.unwrap_or(Err(DeliveryError::TimedOut)) {
                Ok(status) => tracing::debug!(%node, host, status = status.as_u16(), "notice delivered"),
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::warn!(%node, host, error, "notice not delivered");
                }
            }
        }
    }
}

/// The status of the answer. What else it says does not matter and is not read. Nothing of a delivery stays in memory.
async fn deliver(target: &Target, notice: &Notice) -> Result<StatusCode, DeliveryError> {
    let is_tls = target.uri.scheme_str() == Some("https");
    let client = spawn_blocking(move || https::client(is_tls, None)).await?;
    let client = client.map_err(DeliveryError::Client)?;
    let request = Request::post(target.uri.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(notice.body(target.form)))?;
    let answer = client.request(request).await.map_err(DeliveryError::Unreachable)?;
    let status = answer.status();
    if status.is_redirection() {
        return Err(DeliveryError::Redirected(status.as_u16()));
    }
    status
        .is_success()
        .then_some(status)
        .ok_or(DeliveryError::Refused(status))
}

/// What holds back repetition (fault H6). Pure: time is an argument.
#[derive(Debug)]
struct Limiter {
    nodes: Interval<NodeName>,
    /// When notices went out within [`WINDOW`], the oldest first; at most [`AT_MOST`].
    sent: VecDeque<Moment>,
    held_back: u32,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            nodes: Interval::new(SAME_WITHIN),
            sent: VecDeque::new(),
            held_back: 0,
        }
    }
}

impl Limiter {
    /// Whether a notice of this node goes out; if so, how many were held back since the one before.
    fn admit(&mut self, node: &NodeName, now: Moment) -> Option<u32> {
        while self.sent.front().is_some_and(|sent| now.since(*sent) >= WINDOW) {
            self.sent.pop_front();
        }
        if self.sent.len() >= AT_MOST || self.nodes.admit(node.clone(), now).is_err() {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.sent.push_back(now);
        Some(std::mem::take(&mut self.held_back))
    }
}
