//! The hub's side of the Kubernetes cluster: carries out what [`crate::cordon`] says is to be done about each Node, and lets a node sleep
//! only once it is cordoned and empty.
//!
//! ```text
//! agent asks ──> prepare ──> claim (cordon) ──> drain ──> record `granted` ──> leave       each step may fail, or be dropped
//!                   │
//!                   └─ whatever ends otherwise leaves a record that nobody carries on, which [`Hub::keep_cluster`] takes back
//! ```
//! There is no other way back than that one: a refusal, a connection that broke, a killed server and a resume all end in it.

mod care;
mod leave;
mod pending;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{
    sync::{Notify, watch},
    task::consume_budget,
    time::sleep,
};
use vmstation_protocol::NodeName;

use self::care::Care;
use super::{Hub, at};
use crate::{
    clock::{Moment, wall_clock},
    cluster::{
        Cluster, ClusterError, NodeEvent,
        election::{Leader, Leadership},
    },
    cordon::{self, Came, Claim, Duty, Heard, PowerState, Record},
    workload::ClusterNode,
};

/// A node whose cluster says nothing is looked at again after this time.
const WATCH: Duration = Duration::from_mins(5);

/// Time before a watch whose credentials were refused is begun again.
const AGAIN: Duration = Duration::from_secs(10);

/// The cluster that the nodes are of.
pub struct Kubernetes {
    cluster: Cluster,
    /// How this server calls itself in what it writes.
    identity: String,
    /// Whether this server is the one that acts.
    leadership: watch::Receiver<Leadership>,
    /// Something changed that duties depend on, for these nodes.
    kick: Notify,
    kicked: Mutex<BTreeSet<NodeName>>,
}

impl Kubernetes {
    /// This cluster, in which this server acts while `leadership` says so.
    pub fn new(cluster: Cluster, leadership: watch::Receiver<Leadership>) -> Self {
        Self {
            identity: cluster.identity().to_owned(),
            cluster,
            leadership,
            kick: Notify::new(),
            kicked: Mutex::default(),
        }
    }

    fn kicked(&self) -> MutexGuard<'_, BTreeSet<NodeName>> {
        self.kicked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this server is the one that acts, at this moment.
    pub fn is_acting(&self) -> bool {
        self.leadership.borrow().fence(Moment::now()).is_some()
    }

    /// Who acts, if it is another.
    pub fn leader(&self) -> Option<Leader> {
        match &*self.leadership.borrow() {
            Leadership::Acting(_) => None,
            Leadership::Following { leader } => leader.clone(),
        }
    }
}

impl Hub {
    /// Something changed that duties to this node depend on.
    pub(super) fn kick(&self, node: &NodeName) {
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.kicked().insert(node.clone());
            kubernetes.kick.notify_one();
        }
    }

    /// Sees to it that the cluster knows who sleeps, and that nothing of ours stays on a node that is awake. Never ends; does nothing
    /// while another server acts.
    pub async fn keep_cluster(self: &Arc<Self>) {
        let Some(kubernetes) = &self.kubernetes else { return };
        let mut leadership = kubernetes.leadership.clone();
        let mut has_acted = false;
        // Without an election nobody acts any more.
        while leadership.wait_for(is_acting).await.is_ok() {
            {
                let mut known = self.known();
                known.permission.took_over(Moment::now());
                // What was heard before another acted may have changed unheard. What was heard since this server started has not.
                if has_acted {
                    known.presence.took_over();
                }
            }
            has_acted = true;
            tracing::info!(identity = kubernetes.identity, "this server acts for the cluster");
            tokio::select! {
                () = self.keep_while_acting(kubernetes) => {}
                () = self.answer_demand(kubernetes) => {}
                _ended = leadership.wait_for(|leadership| !is_acting(leadership)) => {
                    tracing::warn!(identity = kubernetes.identity, "this server does not act for the cluster any more");
                }
            }
        }
    }

    async fn keep_while_acting(self: &Arc<Self>, kubernetes: &Kubernetes) {
        let mut nodes = kubernetes.cluster.watch_nodes().await;
        let mut care = Care::default();
        loop {
            let now = Moment::now();
            let wait = care.next().map_or(WATCH, |next| next.since(now));
            tokio::select! {
                seen = nodes.next() => match seen {
                    Some(Ok(seen)) => care.seen(seen, Moment::now()),
                    Some(Err(error)) => care.blind(&error),
                    None => {
                        sleep(AGAIN).await;
                        nodes = kubernetes.cluster.watch_nodes().await;
                    }
                },
                () = kubernetes.kick.notified() => {
                    let (kicked, now) = (std::mem::take(&mut *kubernetes.kicked()), Moment::now());
                    kicked.iter().for_each(|name| care.due_now(name, now));
                }
                () = sleep(wait) => {}
            }
            while let Some(name) = care.due(Moment::now()) {
                self.care_for(kubernetes, &mut care, &name).await;
            }
            self.metrics.observe_marked_nodes(care.marked(), care.failing());
            // A list of thousands is there all at once: others get their turn, the election above all.
            consume_budget().await;
        }
    }

    /// Does what is to be done about one node.
    async fn care_for(self: &Arc<Self>, kubernetes: &Kubernetes, care: &mut Care, name: &NodeName) {
        let Some(node) = care.node(name).cloned() else { return };
        let record = match Record::of(&node) {
            Ok(record) => record,
            Err(error) => return care.strange(name, &error, Moment::now()),
        };
        let (heard, standing, is_being_woken) = {
            let now = at();
            let mut known = self.known();
            if record
                .as_ref()
                .is_some_and(|record| record.state != PowerState::Draining)
            {
                known.sleepers.insert(name.clone());
            } else {
                known.sleepers.remove(name);
            }
            (
                known.presence.heard(name, now),
                known.permission.standing(name, now.moment),
                known.presence.is_being_woken(name),
            )
        };
        if record.is_none() && !cordon::is_marked(&node) && heard != Heard::Sleeping {
            return care.rest(name, Moment::now());
        }
        if care.wants_lease(name, record.as_ref(), heard, Moment::now()) {
            match kubernetes.cluster.lease_renewed(name).await {
                Ok(renewed) => care.lease(name, renewed.as_deref(), Moment::now()),
                Err(error) => return care.failed(name, &error, Moment::now()),
            }
        }
        if care.wants_pods(name, Moment::now()) {
            match kubernetes.cluster.pods_on(name).await {
                Ok(pods) => care.pods(name, &pods, Moment::now()),
                Err(error) => return care.failed(name, &error, Moment::now()),
            }
        }
        let evidence = care.evidence(name, heard, standing, is_being_woken, Moment::now());
        let duty = cordon::duty(&node, record.as_ref(), &evidence);
        let wake_mac = self.wake_mac(name);
        let claim = Claim {
            by: &kubernetes.identity,
            reason: "its agent says that it sleeps",
            wake_mac,
            now: wall_clock(),
        };
        let was_woken = record.as_ref().is_some_and(|record| record.state == PowerState::Waking);
        let patch = match &duty {
            Duty::Nothing | Duty::Wait(_) => None,
            Duty::CarryOn => {
                self.carry_on(kubernetes, care, name);
                None
            }
            Duty::MarkAsleep => Some(cordon::asleep(&node, &claim)),
            Duty::MarkWaking => Some(cordon::waking(&node, &claim)),
            Duty::Release(came) => {
                let woken = (*came == Came::Back && was_woken).then_some(claim.now);
                Some(cordon::release(&node, woken))
            }
            Duty::Disown => Some(cordon::disown(&node)),
        };
        let Some(patch) = patch else {
            return care.waits(name, &duty, Moment::now());
        };
        if !kubernetes.is_acting() {
            return;
        }
        match kubernetes.cluster.patch_node(name, &patch).await {
            Ok(written) => {
                tracing::info!(target: "audit", node = %name, ?duty, "node written");
                care.written(name, written, &duty, Moment::now());
                if duty == Duty::Release(Came::Back)
                    && let Some(wake) = self.known().wakes.get(name)
                {
                    wake.ready();
                }
                if let Some(event) = told(&duty, record.as_ref()) {
                    kubernetes.tell(&node, &event).await;
                }
            }
            Err(ClusterError::Conflict { .. }) => match kubernetes.cluster.node(name).await {
                Ok(node) => care.changed(node, Moment::now()),
                Err(error) => care.failed(name, &error, Moment::now()),
            },
            Err(ClusterError::NotFound { .. }) => care.gone(name),
            Err(error) => care.failed(name, &error, Moment::now()),
        }
    }

    /// Wakes a node that a server before this one was waking.
    fn carry_on(self: &Arc<Self>, kubernetes: &Kubernetes, care: &mut Care, name: &NodeName) {
        if !kubernetes.is_acting() {
            return;
        }
        // Whatever comes of it: once.
        care.woken(name);
        match self.wake(name.as_str(), true) {
            Ok(_followed_by_its_own) => tracing::info!(target: "audit", node = %name, "wake carried on"),
            Err(refusal) => {
                tracing::warn!(node = %name, %refusal, "a wake is not carried on");
                self.kick(name);
            }
        }
    }

    fn wake_mac(&self, name: &NodeName) -> Option<vmstation_protocol::MacAddr> {
        self.known().registry().get(name)?.macs.first().copied()
    }
}

fn is_acting(leadership: &Leadership) -> bool {
    matches!(leadership, Leadership::Acting(_))
}

impl Kubernetes {
    /// Tells of a node; nothing depends on it.
    async fn tell(&self, node: &ClusterNode, event: &NodeEvent) {
        if let Err(error) = self.cluster.tell(node, event, wall_clock()).await {
            tracing::warn!(node = %node.name, %error, "an Event was not written");
        }
    }
}

/// What is told of a duty that was done.
fn told(duty: &Duty, record: Option<&Record>) -> Option<NodeEvent> {
    let event = |reason, note: &str| {
        Some(NodeEvent {
            reason,
            note: note.to_owned(),
            is_warning: false,
        })
    };
    match duty {
        Duty::Nothing | Duty::Wait(_) | Duty::CarryOn | Duty::Disown => None,
        Duty::MarkAsleep if record.is_some_and(|record| record.state == PowerState::Waking) => Some(NodeEvent {
            reason: "WakeFailed",
            note: "the wake is over and the node was not heard of".to_owned(),
            is_warning: true,
        }),
        Duty::MarkAsleep => event("Asleep", "the node sleeps; it can be woken"),
        Duty::MarkWaking => event("Waking", "the node is being woken"),
        Duty::Release(Came::Back) => event("Awake", "the node is back from sleep"),
        Duty::Release(Came::Not) => event(
            "SleepCalledOff",
            "the node does not sleep; what was prepared is taken back",
        ),
    }
}
