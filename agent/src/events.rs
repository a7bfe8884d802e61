//! Everything that can wake the agent: one closed list of events, and the sources they come from.
//!
//! Owns the descriptors, channels and signals that are waited for, and nothing that is decided. Every wait in [`Sources::next`] is safe
//! to drop: each source keeps what was not taken.

use std::{future, io, os::fd::BorrowedFd};

use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    clock::{Alarm, BootTime},
    control::Call,
    interfaces::LinkWatch,
    metrics::server::Asker,
    pods,
    readable::Readable,
    sensors::Sensors,
    sleeper::Progress,
};

/// Something that woke the agent.
#[derive(Debug)]
pub enum Event {
    /// The alarm went off.
    Alarm,
    /// The kernel has records of SSH connections.
    SshRecords,
    /// The kernel noticed activity beyond what is armed.
    Edge,
    /// logind has a session that may be one.
    LogindSession,
    /// A network interface came, went or changed its name.
    LinksChanged,
    /// Somebody asks something.
    Call(Call),
    /// The attempt to sleep tells how far it is.
    Attempt(Progress),
    /// What was to be told is told.
    Delivered,
    /// The wake server orders a sleep; the number of its order.
    Ordered(u64),
    /// The Kubernetes API told of this node's pods.
    Pods(pods::Report),
    /// Somebody wants the metrics.
    Scrape(oneshot::Sender<String>),
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT.
    Terminate,
}

/// Why the agent cannot run at all.
#[derive(Debug, Error)]
pub enum SourcesError {
    /// No alarm.
    #[error("cannot make an alarm on CLOCK_BOOTTIME")]
    Alarm(#[source] io::Error),
    /// No signals.
    #[error("cannot install the signal handlers")]
    Signals(#[source] io::Error),
}

/// Where events come from.
pub struct Sources {
    alarm: Alarm,
    ring: Option<Readable>,
    edges: Option<Readable>,
    logind: Option<Readable>,
    links: Option<LinkWatch>,
    calls: mpsc::Receiver<Call>,
    progress: mpsc::Receiver<Progress>,
    progress_to: mpsc::Sender<Progress>,
    scrapes: mpsc::Receiver<oneshot::Sender<String>>,
    asker: Asker,
    orders: mpsc::Receiver<u64>,
    orders_to: mpsc::Sender<u64>,
    pods: mpsc::Receiver<pods::Report>,
    pods_to: mpsc::Sender<pods::Report>,
    delivered: mpsc::Receiver<()>,
    delivered_to: mpsc::Sender<()>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Sources {
    /// Listens from this moment on. Make the sensors afterwards, so that no change of the interfaces falls between, and hand them to
    /// [`Sources::watch`].
    ///
    /// # Errors
    /// Only what nothing works without: an alarm and signal handlers.
    pub fn new(calls: mpsc::Receiver<Call>) -> Result<Self, SourcesError> {
        let handler = |kind| signal(kind).map_err(SourcesError::Signals);
        let (progress_to, progress) = mpsc::channel(4);
        let (delivered_to, delivered) = mpsc::channel(4);
        let (orders_to, orders) = mpsc::channel(4);
        let (pods_to, pods) = mpsc::channel(4);
        let (asker, scrapes) = mpsc::channel(4);
        let links = LinkWatch::new().inspect_err(|error| {
            tracing::warn!(%error, "cannot listen for network interface changes, they are looked for at each check");
        });
        Ok(Self {
            alarm: Alarm::new().map_err(SourcesError::Alarm)?,
            ring: None,
            edges: None,
            logind: None,
            links: links.ok(),
            calls,
            progress,
            progress_to,
            scrapes,
            asker,
            orders,
            orders_to,
            pods,
            pods_to,
            delivered,
            delivered_to,
            hangup: handler(SignalKind::hangup())?,
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
        })
    }

    /// Waits for the sensors that speak up by themselves, in place of those before.
    pub fn watch(&mut self, sensors: &Sensors) {
        self.ring = watch("records of SSH connections", sensors.ssh_fd());
        self.edges = watch("activity that the kernel notices", sensors.edge_fd());
        self.logind = watch("sessions of logind", sensors.logind_fd());
    }

    /// [`Event::Alarm`] comes at `at`, in place of any time set before.
    pub fn set_alarm(&self, at: BootTime) {
        if let Err(error) = self.alarm.set(at) {
            tracing::error!(%error, "cannot set the alarm");
        }
    }

    /// Where an attempt to sleep tells how far it is, to come back as [`Event::Attempt`].
    pub fn progress(&self) -> mpsc::Sender<Progress> {
        self.progress_to.clone()
    }

    /// Where metrics are asked for, to come back as [`Event::Scrape`].
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Where the numbers of the wake server's orders to sleep go, to come back as [`Event::Ordered`].
    pub fn orders_to(&self) -> mpsc::Sender<u64> {
        self.orders_to.clone()
    }

    /// Where reports on this node's pods go, to come back as [`Event::Pods`].
    pub fn pods_to(&self) -> mpsc::Sender<pods::Report> {
        self.pods_to.clone()
    }

    /// Where it is said that everything is told, to come back as [`Event::Delivered`].
    pub fn delivered_to(&self) -> mpsc::Sender<()> {
        self.delivered_to.clone()
    }

    /// Waits for the next event. Cancel-safe: signals, channels, [`LinkWatch::changed`] and [`Readable::ready`] keep what is not taken.
    pub async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Terminate,
            _ = self.interrupt.recv() => Event::Terminate,
            _ = self.hangup.recv() => Event::Reload,
            Some(progress) = self.progress.recv() => Event::Attempt(progress),
            Some(()) = self.delivered.recv() => Event::Delivered,
            Some(report) = self.pods.recv() => Event::Pods(report),
            Some(number) = self.orders.recv() => Event::Ordered(number),
            Some(reply) = self.scrapes.recv() => Event::Scrape(reply),
            () = ready(self.ring.as_ref()) => Event::SshRecords,
            () = ready(self.edges.as_ref()) => Event::Edge,
            () = ready(self.logind.as_ref()) => Event::LogindSession,
            () = links_changed(&mut self.links) => Event::LinksChanged,
            Some(call) = self.calls.recv() => Event::Call(call),
            () = self.alarm.gone_off() => Event::Alarm,
        }
    }
}

/// Registers a duplicate, so that the sensor may go before it. What cannot be waited for is seen at each check.
fn watch(what: &str, source: Option<BorrowedFd<'_>>) -> Option<Readable> {
    source?
        .try_clone_to_owned()
        .and_then(Readable::new)
        .inspect_err(|error| tracing::warn!(%error, "cannot wait for {what}"))
        .ok()
}

/// Ready when the source is; never without one.
async fn ready(source: Option<&Readable>) {
    match source {
        None => future::pending().await,
        Some(source) => source.ready().await,
    }
}

/// Ready when the network interfaces changed; never without a watch. A watch that failed is given up: the interfaces are looked for at
/// each check in any case.
async fn links_changed(watch: &mut Option<LinkWatch>) {
    match watch {
        None => future::pending().await,
        Some(links) => {
            if let Err(error) = links.changed().await {
                tracing::warn!(%error, "cannot listen for network interface changes, they are looked for at each check");
                *watch = None;
            }
        }
    }
}
