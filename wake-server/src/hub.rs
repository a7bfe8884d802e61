//! Everything the server knows, behind one lock that is never held across a wait: who is who, who is awake, who has leave, which wakes
//! are under way. Turns requests into changes of that, and tells everybody who listens.
//!
//! Never opens a socket: packets go through [`Air`], requests come through [`crate::api`]; what outlives a restart goes to [`Keeping`].
//!
//! What a crash may lose: a wake that is over is answered once it is on the disk, so that nothing is lost which somebody was told, unless
//! the disk fails or takes longer than [`KEPT_WITHIN`]. Changes of a node's state are handed over at once and waited for by nobody: those
//! of the moment before the crash may be lost, and are heard again with the agents' next reports.

mod known;
mod kubernetes;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{Notify, broadcast},
    time::{sleep, timeout},
};
use vmstation_protocol::{
    Activity, Leave, LeaveRequest, MacError, NameError, NodeDocument, NodeName, NodeState, Orders, Report, Role, Stage,
    Status, WakeAllDocument, WakeDocument,
};

use self::known::Known;
pub use self::kubernetes::Kubernetes;
use crate::{
    clock::{Moment, wall_clock},
    config::{SleepSettings, WakeSettings},
    keeping::Keeping,
    metrics::Metrics,
    notify::Notifier,
    page::{PageInput, TimelineNode},
    presence::{At, Change, Limits, Presence},
    registry::{Node, Registry, RegistryErrors},
    store::{Batch, Store, StoreError},
    wake::WakePlan,
    waker::{self, Air, Begun, Pace, WakeAllHandle, WakeHandle},
};

/// Where no state changes by itself soon, they are looked at again after this time.
const WATCH: Duration = Duration::from_mins(5);
/// Happenings that wait for a reader of `/events`; a slower one misses some.
const HAPPENINGS: usize = 1024;

/// Longest time for which the answer of a wake that is over waits for the disk.
const KEPT_WITHIN: Duration = Duration::from_secs(5);

/// Wakes that are shown.
const HISTORY: usize = 100;

/// What happens.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A node's state changed, or what keeps it awake.
    Node(Arc<NodeDocument>),
    /// A wake is over.
    Wake(Arc<WakeDocument>),
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No name and no MAC address.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A MAC address that is no card's.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// Not in the registry, and no agent of it was ever heard.
    #[error("no node {0} is known: add it to the registry, or let its agent report")]
    Unknown(NodeName),
    /// Nothing to call it by.
    #[error("no MAC address of {0} is known: add one to the registry, or let its agent report")]
    WithoutMac(NodeName),
    /// It was woken just now.
    #[error("it was woken just now; again in {} s", .0.as_secs().saturating_add(1))]
    TooSoon(Duration),
    /// No wake is under way.
    #[error("no wake is under way that could be called off")]
    NothingToCancel,
}

/// What was called off at once.
pub struct CalledOff {
    /// What the last wake of all came to until then.
    pub last: WakeAllDocument,
    /// Wakes that were under way, each of another node.
    pub wakes: usize,
}

/// What the hub is made of.
pub struct Parts {
    /// Files of the registry, to be read again.
    pub registry_files: Vec<PathBuf>,
    /// What they say.
    pub registry: Registry,
    /// How nodes are woken.
    pub wake: WakeSettings,
    /// Which may sleep.
    pub sleep: SleepSettings,
    /// The Kubernetes cluster that they are nodes of, if they are.
    pub kubernetes: Option<Kubernetes>,
    /// Through what.
    pub lan: Arc<dyn Air>,
    /// What outlives a restart.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who hears of wakes that failed.
    pub notifier: Notifier,
}

/// The hub.
pub struct Hub {
    known: Mutex<Known>,
    registry_files: Vec<PathBuf>,
    pace: Pace,
    wake: WakeSettings,
    sleep: SleepSettings,
    kubernetes: Option<Kubernetes>,
    lan: Arc<dyn Air>,
    store: Arc<Store>,
    keeping: Keeping,
    metrics: Arc<Metrics>,
    notifier: Notifier,
    happenings: broadcast::Sender<Happening>,
    /// A state changes by itself earlier than before.
    sooner: Notify,
}

/// What the page shows.
pub struct Shown {
    status: Status,
    history: Vec<WakeDocument>,
    timeline: Vec<TimelineNode>,
}

impl Shown {
    /// As the page takes it.
    pub fn input(&self) -> PageInput<'_> {
        PageInput {
            status: &self.status,
            history: &self.history,
            timeline: &self.timeline,
        }
    }
}

impl Hub {
    /// With everything that outlived the last server. Blocking: reads the store.
    pub fn new(parts: Parts) -> Arc<Self> {
        let now = at();
        let kept = parts
            .store
            .load(now.wall)
            .and_then(|loaded| Ok((loaded, parts.store.wakes(HISTORY)?)));
        let (loaded, wakes) = kept.unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "what was known before is not known"
            );
            Default::default()
        });
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let presence = Presence::restored(Limits::default(), loaded.nodes, now);
        let mut known = Known::new(
            parts.registry,
            presence,
            parts.wake.node_interval,
            parts.sleep.terms,
            now,
        );
        loaded
            .last_wakes
            .into_values()
            .for_each(|wake| known.remember_last(wake));
        wakes.into_iter().rev().for_each(|wake| known.remember(wake));
        Arc::new(Self {
            known: Mutex::new(known),
            registry_files: parts.registry_files,
            pace: Pace::new(parts.wake.stagger),
            wake: parts.wake,
            sleep: parts.sleep,
            kubernetes: parts.kubernetes,
            lan: parts.lan,
            keeping: Keeping::new(Arc::clone(&parts.store)),
            store: parts.store,
            metrics: parts.metrics,
            notifier: parts.notifier,
            happenings: broadcast::channel(HAPPENINGS).0,
            sooner: Notify::new(),
        })
    }

    /// Waits for what changes by silence. Never ends.
    pub async fn watch_silence(&self) {
        loop {
            let deadline = self.known().presence.deadline();
            let wait = deadline.map_or(WATCH, |deadline| deadline.since(Moment::now()));
            tokio::select! {
                () = sleep(wait) => {}
                () = self.sooner.notified() => {}
            }
            let mut known = self.known();
            let now = at();
            let changes = known.presence.tick(now);
            self.tell_changes(&mut known, changes, now);
        }
    }

    /// Reads the files of the registry again. What they said before stays in force if anything is wrong with them.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn reload(&self) -> Result<(), RegistryErrors> {
        let registry = Registry::load(&self.registry_files)?;
        self.known().replace_files(registry);
        Ok(())
    }

    /// Listens to what happens from here on.
    pub fn subscribe(&self) -> broadcast::Receiver<Happening> {
        self.happenings.subscribe()
    }

    /// Every node.
    pub fn status(&self) -> Status {
        self.known().status(at())
    }

    /// Every node, the last wakes, and the last seven days. Blocking: reads the store.
    ///
    /// # Errors
    /// The timelines cannot be read.
    pub fn shown(&self) -> Result<Shown, StoreError> {
        let timelines = self.store.timelines()?;
        let now = at();
        let mut known = self.known();
        Ok(Shown {
            status: known.status(now),
            history: known.history(),
            timeline: known.timeline(&timelines, now),
        })
    }

    /// Names of the nodes with this role.
    pub fn names(&self, role: Role) -> Vec<String> {
        let nodes = self.known().nodes(Some(role));
        nodes.into_iter().map(|node| node.name.to_string()).collect()
    }

    /// Wakes the node of this name, the node with this MAC address, or whatever has this MAC address. A wake that is under way is shared.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn wake(self: &Arc<Self>, target: &str, verify: bool) -> Result<WakeHandle, Refusal> {
        let now = at();
        let mut known = self.known();
        let node = known.find(target)?;
        if node.macs.is_empty() {
            return Err(Refusal::WithoutMac(node.name));
        }
        if let Some(handle) = known.wakes.get(&node.name) {
            handle.join(verify);
            return Ok(handle.clone());
        }
        known.admit_wake(&node.name, now.moment)?;
        Ok(self.begin_wake(&mut known, &node, verify, now))
    }

    /// Wakes every node, or every one with this role: masters first, then storage, then workers. Wakes that are under way are shared.
    pub fn wake_all(self: &Arc<Self>, verify: bool, role: Option<Role>) -> WakeAllHandle {
        let nodes = self.known().nodes(role);
        let hub = Arc::clone(self);
        let handle = waker::wake_all(nodes, self.pace.clone(), verify, move |node| {
            let mut known = hub.known();
            if let Some(handle) = known.wakes.get(&node.name) {
                handle.join(verify);
                return Begun::Shared(handle.clone());
            }
            Begun::Started(hub.begin_wake(&mut known, node, verify, at()))
        });
        let mut known = self.known();
        known.all.retain(|before| !before.is_over());
        known.all.push(handle.clone());
        drop(known);
        handle
    }

    /// Calls the wake of a node off.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn cancel(&self, target: &str) -> Result<WakeHandle, Refusal> {
        let mut known = self.known();
        let name = known.find(target)?.name;
        let handle = known.wakes.get(&name).cloned().ok_or(Refusal::NothingToCancel)?;
        handle.cancel();
        Ok(handle)
    }

    /// Calls every wake off that is under way, and begins none of those that wakes of all have yet to begin.
    ///
    /// # Errors
    /// [`Refusal::NothingToCancel`].
    pub fn cancel_all(&self) -> Result<CalledOff, Refusal> {
        let mut known = self.known();
        let all = std::mem::take(&mut known.all);
        let last = all.last().ok_or(Refusal::NothingToCancel)?;
        all.iter().for_each(WakeAllHandle::cancel);
        // Those that are sent go on until they are proved or out of time.
        known.wakes.values().for_each(WakeHandle::cancel);
        let last = last.progress().borrow().0.clone();
        let wakes = known.wakes.len();
        Ok(CalledOff { last, wakes })
    }

    /// Orders a node to sleep, as soon as its agent asks.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn order_sleep(&self, target: &str) -> Result<Orders, Refusal> {
        let now = at();
        let mut known = self.known();
        let name = known.find(target)?.name;
        if known.registry().get(&name).is_none() {
            return Err(Refusal::Unknown(name));
        }
        known.presence.order_sleep(&name, now);
        known.poll(&name).notify_waiters();
        Ok(known.presence.orders(&name, now.moment))
    }

    /// An agent reports.
    pub fn report(&self, report: &Report) -> Orders {
        let now = at();
        let mut known = self.known();
        let before = known
            .presence
            .last_report(&report.node)
            .map(|(before, _)| before.clone());
        let changes = known.presence.report(report, now);
        known.heard(report, before.as_ref());
        let says_else = before.is_none_or(|before| before.reasons != report.reasons);
        let is_told = !changes.is_empty();
        self.changed(&mut known, changes, now);
        if says_else
            && !is_told
            && self.happenings.receiver_count() > 0
            && let Some(document) = known.document_of(&report.node, now)
        {
            self.tell(Happening::Node(Arc::new(document)));
        }
        known.presence.orders(&report.node, now.moment)
    }

    /// Orders for a node that are newer than number `after`: at once, or when there are any, after `at_most` in any case.
    pub async fn orders(self: &Arc<Self>, node: &NodeName, after: u64, at_most: Duration) -> Orders {
        let _held = Held::new(self, node);
        let newer = async {
            loop {
                let poll = self.known().poll(node);
                let mut notified = std::pin::pin!(poll.notified());
                // From here on nothing is missed that comes after the look.
                notified.as_mut().enable();
                let orders = self.known().presence.orders_after(node, after, Moment::now());
                if let Some(orders) = orders {
                    return orders;
                }
                notified.await;
            }
        };
        match timeout(at_most, newer).await {
            Ok(orders) => orders,
            Err(_elapsed) => {
                let known = self.known();
                let orders = known.presence.orders_after(node, after, Moment::now());
                orders.unwrap_or_else(|| Orders {
                    orders: Vec::new(),
                    ..known.presence.orders(node, Moment::now())
                })
            }
        }
    }

    /// An agent asks for leave to sleep. In a Kubernetes cluster its pods are moved first; whoever does not wait for the answer calls
    /// that off.
    pub async fn ask_leave(self: &Arc<Self>, node: &NodeName, request: &LeaveRequest) -> Leave {
        let leave = match &self.kubernetes {
            Some(kubernetes) => self.leave_of_cluster(kubernetes, node, request).await,
            None => {
                let now = at();
                let mut known = self.known();
                let facts = known.facts(node, &self.sleep, now);
                Leave::from(known.permission.ask(node, &facts, now.moment))
            }
        };
        match &leave {
            Leave::Granted { grant, .. } => {
                tracing::info!(%node, grant, reason = request.reason, "leave to sleep granted");
            }
            Leave::Refused { reason, .. } => tracing::info!(%node, reason, "leave to sleep refused"),
        }
        leave
    }

    /// An agent hands its leave back.
    pub fn hand_back(&self, node: &NodeName, grant: u64) -> Orders {
        let mut known = self.known();
        let was_held = known.permission.hand_back(node, grant);
        tracing::debug!(%node, grant, was_held, "leave handed back");
        self.kick(node);
        known.presence.orders(node, Moment::now())
    }

    fn begin_wake(self: &Arc<Self>, known: &mut Known, node: &Node, verify: bool, now: At) -> WakeHandle {
        let (state, _) = known.presence.state(&node.name, now);
        let before = known.presence.life(&node.name).cloned();
        let said = known
            .presence
            .last_report(&node.name)
            .map(|(report, _)| report.activity);
        // One that said it sleeps may still be on its way into it (fault W11).
        let is_awake = matches!(state, NodeState::Awake | NodeState::GoingToSleep) && said != Some(Activity::Sleeping);
        let answers = matches!(node.address, Some(IpAddr::V4(_)));
        let (proof, before) = match (before, answers) {
            // It has not slept, so that no later life will be heard of: its card answers, or its agent speaks again.
            (Some(_), true) if is_awake => (Some(Stage::ArpReply), None),
            (Some(_), false) if is_awake => (Some(Stage::AgentReport), None),
            (Some(before), _) => (Some(Stage::AgentReport), Some(before)),
            (None, true) => (Some(Stage::ArpReply), None),
            (None, false) => (None, None),
        };
        let plan = WakePlan {
            node: node.name.clone(),
            macs: node.macs.clone(),
            resend: self.wake.resend.clone(),
            deadline: self.wake.deadline,
            verify,
            proof,
            ready: self.kubernetes.as_ref().is_some_and(Kubernetes::is_acting) && known.sleepers.contains(&node.name),
            answers,
            before,
        };
        let changes = known.presence.wake_begun(&node.name, now);
        known.permission.revoke(&node.name);
        self.changed(known, changes, now);
        let lives = known.lives(&node.name);
        let (hub, lan) = (Arc::clone(self), Arc::clone(&self.lan));
        let handle = waker::start(lan, node.clone(), plan, now.wall, lives, move |document| {
            hub.woken(document)
        });
        known.wakes.insert(node.name.clone(), handle.clone());
        handle
    }

    /// A wake is over. Ends once that is kept; in memory alone, if the disk is too slow or fails.
    fn woken(&self, document: WakeDocument) -> impl Future<Output = ()> + Send + use<> {
        let now = at();
        tracing::info!(target: "audit", node = %document.node, outcome = ?document.outcome, packets = document.packets, message = document.message, "wake over");
        self.metrics.observe_wake(&document);
        self.notifier.tell(&document);
        let mut known = self.known();
        known.wakes.remove(&document.node);
        let changes = known.presence.wake_ended(&document.node, now);
        known.remember(document.clone());
        let kept = self.keeping.keep(Batch {
            wakes: vec![document.clone()],
            ..Batch::default()
        });
        self.changed(&mut known, changes, now);
        let node = document.node.clone();
        self.tell(Happening::Wake(Arc::new(document)));
        async move {
            if timeout(KEPT_WITHIN, kept).await.is_err() {
                tracing::warn!(%node, after = ?KEPT_WITHIN, "the disk is slow: a wake is answered before it is kept");
            }
        }
    }

    /// Something was heard or done.
    fn changed(&self, known: &mut Known, changes: Vec<Change>, now: At) {
        self.tell_changes(known, changes, now);
        self.sooner.notify_one();
    }

    /// Tells of changes, and keeps them.
    fn tell_changes(&self, known: &mut Known, changes: Vec<Change>, now: At) {
        for change in &changes {
            let (node, from, to) = (&change.node, change.from, change.to);
            tracing::info!(%node, ?from, ?to, why = %change.cause, "node changed");
            if to == NodeState::Asleep {
                known.permission.used_up(node);
            }
            // A new report makes the registry anew, which nobody has to wait for whom nobody listens to.
            if self.happenings.receiver_count() > 0
                && let Some(document) = known.document_of(node, now)
            {
                self.tell(Happening::Node(Arc::new(document)));
            }
        }
        let nodes = known.presence.unsaved();
        changes.iter().for_each(|change| self.kick(&change.node));
        if !nodes.is_empty() || !changes.is_empty() {
            // Nobody is told that it is kept.
            drop(self.keeping.keep(Batch {
                nodes,
                changes,
                ..Batch::default()
            }));
        }
    }

    fn tell(&self, happening: Happening) {
        // Without readers nobody is told.
        let _readers = self.happenings.send(happening);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent that is held. Its end ends with this, also when the client goes away.
struct Held<'a> {
    hub: &'a Hub,
    node: &'a NodeName,
}

impl<'a> Held<'a> {
    fn new(hub: &'a Hub, node: &'a NodeName) -> Self {
        let now = at();
        let mut known = hub.known();
        let changes = known.presence.poll_begun(node, now);
        hub.changed(&mut known, changes, now);
        Self { hub, node }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let now = at();
        let mut known = self.hub.known();
        let changes = known.presence.poll_ended(self.node, now);
        self.hub.changed(&mut known, changes, now);
    }
}

fn at() -> At {
    At {
        moment: Moment::now(),
        wall: wall_clock(),
    }
}

#[cfg(test)]
mod tests;
