//! What the hub knows, without its lock: pure but for handles of wakes under way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use vmstation_protocol::{
    Activity, MacAddr, MacError, NodeDocument, NodeName, NodeState, Report, Role, SCHEMA, Stage, Status, WakeDocument,
    Waking,
};

use super::{HISTORY, Refusal};
use crate::{
    clock::Moment,
    config::SleepSettings,
    limits::Interval,
    page::TimelineNode,
    permission::{Facts, Permission, Proof, Terms},
    presence::{At, Life, Presence},
    registry::{Node, Registry},
    store::Transition,
    waker::{WakeAllHandle, WakeHandle},
};

/// What the timeline shows.
const TIMELINE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Everything.
pub(super) struct Known {
    pub(super) presence: Presence,
    pub(super) permission: Permission,
    /// Wakes under way.
    pub(super) wakes: BTreeMap<NodeName, WakeHandle>,
    /// Nodes of the cluster that sleep by its word, which will say when they are ready again. Until then they are not in use.
    pub(super) sleepers: BTreeSet<NodeName>,
    /// Wakes of all, the last one and those before it that are not over.
    pub(super) all: Vec<WakeAllHandle>,
    /// As the files say.
    files: Registry,
    /// With what agents reported; absent: something was reported since.
    merged: Option<Registry>,
    /// The last wakes, the newest first.
    history: VecDeque<WakeDocument>,
    last_wakes: BTreeMap<NodeName, WakeDocument>,
    often: Interval<NodeName>,
    /// Who waits for the lives that are heard of a node.
    lives: BTreeMap<NodeName, watch::Sender<Option<Life>>>,
    /// Who waits for orders of a node.
    polls: BTreeMap<NodeName, Arc<Notify>>,
}

impl Known {
    pub(super) fn new(files: Registry, presence: Presence, interval: Duration, terms: Terms, now: At) -> Self {
        Self {
            presence,
            permission: Permission::new(
                terms,
                u64::try_from(now.wall.as_millisecond()).unwrap_or_default(),
                now.moment,
            ),
            wakes: BTreeMap::new(),
            sleepers: BTreeSet::new(),
            all: Vec::new(),
            files,
            merged: None,
            history: VecDeque::new(),
            last_wakes: BTreeMap::new(),
            often: Interval::new(interval),
            lives: BTreeMap::new(),
            polls: BTreeMap::new(),
        }
    }

    /// Who is who, agents' reports included.
    pub(super) fn registry(&mut self) -> &Registry {
        let (files, presence) = (&self.files, &self.presence);
        self.merged.get_or_insert_with(|| files.merged(presence.reports()))
    }

    pub(super) fn replace_files(&mut self, files: Registry) {
        self.files = files;
        self.merged = None;
    }

    /// A node told something of its ports or its role that was not known.
    pub(super) fn heard(&mut self, report: &Report, before: Option<&Report>) {
        if before.is_none_or(|before| (&before.ports, before.role) != (&report.ports, report.role)) {
            self.merged = None;
        }
        // A goodbye proves no waking.
        if report.activity != Activity::Sleeping
            && let (Some(lives), Some(life)) = (self.lives.get(&report.node), self.presence.life(&report.node))
        {
            lives.send_replace(Some(life.clone()));
        }
    }

    /// The lives that are heard of a node from here on, and the one that was heard last.
    pub(super) fn lives(&mut self, node: &NodeName) -> watch::Receiver<Option<Life>> {
        let life = self.presence.life(node).cloned();
        let lives = self.lives.entry(node.clone()).or_insert_with(|| watch::channel(None).0);
        lives.send_replace(life);
        lives.subscribe()
    }

    /// What wakes those who wait for orders of a node.
    pub(super) fn poll(&mut self, node: &NodeName) -> Arc<Notify> {
        Arc::clone(self.polls.entry(node.clone()).or_default())
    }

    /// The node that a client means: by name, by a MAC address of it, or a bare MAC address of whatever it is.
    pub(super) fn find(&mut self, target: &str) -> Result<Node, Refusal> {
        match target.parse::<MacAddr>() {
            Ok(mac) => Ok(self.registry().by_mac(mac).cloned().unwrap_or_else(|| Node::bare(mac))),
            Err(MacError::Form(_)) => {
                let name: NodeName = target.parse()?;
                let node = self.registry().get(&name).cloned();
                node.ok_or(Refusal::Unknown(name))
            }
            Err(error) => Err(Refusal::Mac(error)),
        }
    }

    /// Every node, or every one with a role, by name.
    pub(super) fn nodes(&mut self, role: Option<Role>) -> Vec<Node> {
        let nodes = self.registry().nodes();
        nodes
            .filter(|node| role.is_none_or(|role| role == node.role))
            .cloned()
            .collect()
    }

    pub(super) fn admit_wake(&mut self, node: &NodeName, now: Moment) -> Result<(), Refusal> {
        let admitted = self.often.admit(node.clone(), now);
        admitted.map_err(|too_many| Refusal::TooSoon(too_many.wait))
    }

    /// What permission depends on; `now` for who else is awake.
    pub(super) fn facts(&mut self, node: &NodeName, sleep: &SleepSettings, now: At) -> Facts {
        let is_being_woken = self.presence.is_being_woken(node);
        let known = self.registry().get(node);
        let role = known.map(|known| known.role).unwrap_or_default();
        let has_mac = known.is_some_and(|known| !known.macs.is_empty());
        let group = known.and_then(|known| known.group.clone());
        let min_awake = sleep.min_awake.get(&role).copied().unwrap_or_default();
        let awake_peers = if min_awake == 0 {
            Vec::new()
        } else {
            let peers = self.nodes(Some(role)).into_iter().map(|peer| peer.name);
            peers
                .filter(|peer| peer != node && self.presence.state(peer, now).0 == NodeState::Awake)
                // Back, but not yet in use again.
                .filter(|peer| !self.sleepers.contains(peer))
                .collect()
        };
        Facts {
            role,
            has_mac,
            is_being_woken,
            group,
            hold: None,
            awake_peers,
            min_awake,
            waking: self.waking(node),
            proof_needed: sleep.first_time,
        }
    }

    /// What speaks for it that a node can be woken.
    fn waking(&self, node: &NodeName) -> Proof {
        let is_proved = self.last_wakes.get(node).is_some_and(|wake| {
            // Even if it was not ready in time.
            wake.stages.iter().any(|stage| stage.stage == Stage::AgentReport)
        });
        let report = self.presence.last_report(node).map(|(report, _)| report);
        let is_armed = report.is_some_and(|report| report.ports.iter().any(|port| port.waking == Waking::Armed));
        match (is_proved, is_armed) {
            (true, _) => Proof::Woken,
            (false, true) => Proof::Armed,
            (false, false) => Proof::None,
        }
    }

    /// A wake is over.
    pub(super) fn remember(&mut self, wake: WakeDocument) {
        self.remember_last(wake.clone());
        self.history.truncate(HISTORY - 1);
        self.history.push_front(wake);
    }

    /// It is the last one of its node.
    pub(super) fn remember_last(&mut self, wake: WakeDocument) {
        self.last_wakes.insert(wake.node.clone(), wake);
    }

    pub(super) fn history(&self) -> Vec<WakeDocument> {
        self.history.iter().cloned().collect()
    }

    pub(super) fn status(&mut self, now: At) -> Status {
        self.registry();
        let registry = self.merged.as_ref().unwrap_or(&self.files);
        Status {
            schema: SCHEMA,
            time: now.wall.to_string(),
            nodes: registry.nodes().map(|node| self.document(node, now)).collect(),
            conflicts: registry.conflicts().to_vec(),
        }
    }

    /// A node that is known, as it stands.
    pub(super) fn document_of(&mut self, name: &NodeName, now: At) -> Option<NodeDocument> {
        let node = self.registry().get(name).cloned()?;
        Some(self.document(&node, now))
    }

    /// What every node did in the last seven days.
    pub(super) fn timeline(&mut self, kept: &BTreeMap<NodeName, Vec<Transition>>, now: At) -> Vec<TimelineNode> {
        let names: Vec<_> = self.registry().nodes().map(|node| node.name.clone()).collect();
        let span = |name: NodeName| TimelineNode {
            spans: kept
                .get(&name)
                .map_or_else(Vec::new, |transitions| spans(transitions, now)),
            name,
        };
        names.into_iter().map(span).collect()
    }

    fn document(&self, node: &Node, now: At) -> NodeDocument {
        let (state, since) = self.presence.state(&node.name, now);
        let report = self.presence.last_report(&node.name);
        let is_heard = matches!(state, NodeState::Awake | NodeState::GoingToSleep);
        let under_way = self.wakes.get(&node.name).map(|wake| wake.progress().borrow().clone());
        NodeDocument {
            name: node.name.clone(),
            role: node.role,
            macs: node.macs.clone(),
            address: node.address.map(|address| address.to_string()),
            state,
            since: since.map(|since| since.to_string()),
            last_report: report.map(|(_, at)| at.to_string()),
            reasons: report
                .filter(|_| is_heard)
                .map(|(report, _)| report.reasons.clone())
                .unwrap_or_default(),
            last_wake: under_way.or_else(|| self.last_wakes.get(&node.name).cloned()),
        }
    }
}

/// From each transition to the next one, as parts of the time that is shown.
fn spans(transitions: &[Transition], now: At) -> Vec<(f64, f64, NodeState)> {
    let begins = now.wall.checked_sub(TIMELINE).unwrap_or(now.wall);
    let part = |at: Timestamp| at.duration_since(begins).as_secs_f64() / TIMELINE.as_secs_f64();
    let ends = transitions.iter().skip(1).map(|next| next.at).chain([now.wall]);
    let each = transitions.iter().zip(ends);
    each.map(|(transition, end)| (part(transition.at).max(0.0), part(end), transition.to))
        .filter(|(start, end, _)| start < end)
        .collect()
}
