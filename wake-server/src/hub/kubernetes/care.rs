//! What is remembered of each Node between two looks at it, and when it is looked at next. Pure but for what it logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vmstation_protocol::NodeName;

use crate::{
    clock::Moment,
    cluster::{ClusterError, Seen},
    cordon::{self, Duty, Evidence, Heard, LeaseSign, LeaseWatch, PowerState, Record, Standing, UnknownState, Why},
    workload::{ClusterNode, Pod, PodId},
};

/// After so long a suspended node is not ready by its cluster's word: one that is has come back unheard, or has no controller that says so.
const READY_IS_TRUE_AFTER: Duration = Duration::from_mins(2);
/// Time between two looks at a node that is awaited.
const SOON: Duration = Duration::from_secs(2);
/// And at one of which nothing tells where it is.
const LATER: Duration = Duration::from_secs(15);
/// And at one that is as it should be.
const SELDOM: Duration = Duration::from_mins(5);
/// First and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Care {
    nodes: BTreeMap<NodeName, Kept>,
    /// When which node is looked at, as its own `next` says.
    order: BTreeSet<(Moment, NodeName)>,
    /// Those with something of ours.
    marked: BTreeSet<NodeName>,
    /// Those that something is to be done about and cannot.
    failing: BTreeSet<NodeName>,
    /// Seen since the watch began; the rest goes when it is complete.
    again: Option<BTreeSet<NodeName>>,
    is_blind: bool,
}

#[derive(Debug)]
struct Kept {
    node: ClusterNode,
    next: Option<Moment>,
    heard: Heard,
    heard_since: Moment,
    lease: Option<LeaseWatch>,
    /// Since when it is back but for its pods, and those.
    back: Option<(Moment, Vec<PodId>)>,
    /// Whether a wake of it was under way here.
    woken: bool,
    failures: u32,
    waits: Option<Duty>,
}

impl Care {
    /// The watch says something.
    pub(super) fn seen(&mut self, seen: Seen<ClusterNode>, now: Moment) {
        match seen {
            Seen::Begin => self.again = Some(BTreeSet::new()),
            Seen::Is(node) => {
                if let Some(again) = &mut self.again {
                    again.insert(node.name.clone());
                }
                self.changed(node, now);
            }
            Seen::Gone(node) => self.gone(&node.name),
            Seen::Complete => {
                if self.is_blind {
                    self.is_blind = false;
                    tracing::info!("the cluster's nodes are watched again");
                }
                let Some(again) = self.again.take() else { return };
                let gone: Vec<_> = self
                    .nodes
                    .keys()
                    .filter(|name| !again.contains(*name))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| self.gone(name));
            }
        }
    }

    /// The watch fails.
    pub(super) fn blind(&mut self, error: &ClusterError) {
        if !self.is_blind {
            self.is_blind = true;
            tracing::error!(%error, "the cluster's nodes cannot be watched; it is tried again");
        }
    }

    /// A node is this now.
    pub(super) fn changed(&mut self, node: ClusterNode, now: Moment) {
        let name = node.name.clone();
        let is_marked = cordon::is_marked(&node);
        match self.nodes.get_mut(&name) {
            // The word of a watch may be older than an answer.
            Some(kept) if is_older(&node.resource_version, &kept.node.resource_version) => return,
            Some(kept) if kept.node.uid == node.uid => kept.node = node,
            Some(_) | None => {
                self.gone(&name);
                let kept = Kept {
                    node,
                    next: None,
                    heard: Heard::Nothing,
                    heard_since: now,
                    lease: None,
                    back: None,
                    woken: false,
                    failures: 0,
                    waits: None,
                };
                self.nodes.insert(name.clone(), kept);
            }
        }
        if is_marked {
            self.marked.insert(name.clone());
        } else {
            self.marked.remove(&name);
        }
        self.due_now(&name, now);
    }

    /// A node is no more.
    pub(super) fn gone(&mut self, name: &NodeName) {
        if let Some(kept) = self.nodes.remove(name)
            && let Some(next) = kept.next
        {
            self.order.remove(&(next, name.clone()));
        }
        self.marked.remove(name);
        self.failing.remove(name);
    }

    /// Something changed for a node. One that fails keeps its wait, whatever is heard of it meanwhile.
    pub(super) fn due_now(&mut self, name: &NodeName, now: Moment) {
        if !self.failing.contains(name) {
            self.schedule(name, now);
        }
    }

    /// When a node is to be looked at.
    pub(super) fn next(&self) -> Option<Moment> {
        self.order.first().map(|(next, _)| *next)
    }

    /// A node whose time has come.
    pub(super) fn due(&mut self, now: Moment) -> Option<NodeName> {
        let (next, name) = self.order.first().filter(|(next, _)| *next <= now)?.clone();
        self.order.remove(&(next, name.clone()));
        if let Some(kept) = self.nodes.get_mut(&name) {
            kept.next = None;
        }
        // Whatever becomes of this look, there is another.
        self.schedule(&name, now.after(SELDOM));
        Some(name)
    }

    /// As it was read last.
    pub(super) fn node(&self, name: &NodeName) -> Option<&ClusterNode> {
        self.nodes.get(name).map(|kept| &kept.node)
    }

    /// Nodes with something of ours.
    pub(super) fn marked(&self) -> usize {
        self.marked.len()
    }

    /// Nodes that something is to be done about and cannot.
    pub(super) fn failing(&self) -> usize {
        self.failing.len()
    }

    /// Nothing of ours is on it.
    pub(super) fn rest(&mut self, name: &NodeName, now: Moment) {
        if let Some(kept) = self.nodes.get_mut(name) {
            kept.lease = None;
            kept.back = None;
            kept.woken = false;
            kept.failures = 0;
            kept.waits = None;
        }
        self.failing.remove(name);
        self.schedule(name, now.after(SELDOM));
    }

    /// Its annotations are not ours to understand.
    pub(super) fn strange(&mut self, name: &NodeName, error: &UnknownState, now: Moment) {
        tracing::warn!(node = %name, %error, "the node is left as it is");
        self.schedule(name, now.after(SELDOM));
    }

    /// Whether its Lease tells something that nothing else does.
    pub(super) fn wants_lease(&mut self, name: &NodeName, record: Option<&Record>, heard: Heard, now: Moment) -> bool {
        let Some(kept) = self.nodes.get_mut(name) else {
            return false;
        };
        if heard != kept.heard {
            kept.heard = heard;
            kept.heard_since = now;
            // What was seen of it before it was heard proves nothing about after.
            kept.lease = None;
            kept.back = None;
        }
        let wants = match (record.map(|record| record.state), heard) {
            (None | Some(PowerState::Draining), _) => false,
            (Some(PowerState::Granted | PowerState::Asleep | PowerState::Waking), Heard::Sleeping) => {
                kept.node.ready && now.since(kept.heard_since) >= READY_IS_TRUE_AFTER
            }
            // A sleeper is not taken back before it is ready, which the watch tells: until then its Lease is not asked for all the time.
            (Some(PowerState::Asleep | PowerState::Waking), Heard::Nothing | Heard::Gone) => kept.node.ready,
            (Some(PowerState::Granted | PowerState::Asleep | PowerState::Waking), _) => true,
        };
        if !wants {
            kept.lease = None;
            kept.back = None;
            return false;
        }
        let watch = kept.lease.get_or_insert_with(|| LeaseWatch::new(now));
        watch.sign(now) != LeaseSign::Renewed
    }

    /// What its Lease says.
    pub(super) fn lease(&mut self, name: &NodeName, renewed: Option<&str>, now: Moment) {
        if let Some(watch) = self.nodes.get_mut(name).and_then(|kept| kept.lease.as_mut()) {
            watch.observe(renewed, now);
        }
    }

    /// Whether nothing but its pods is missing.
    pub(super) fn wants_pods(&mut self, name: &NodeName, now: Moment) -> bool {
        let Some(kept) = self.nodes.get_mut(name) else {
            return false;
        };
        let sign = kept.lease.as_ref().map(|watch| watch.sign(now));
        sign == Some(LeaseSign::Renewed) && kept.node.ready
    }

    /// Its pods.
    pub(super) fn pods(&mut self, name: &NodeName, pods: &[Pod], now: Moment) {
        if let Some(kept) = self.nodes.get_mut(name) {
            let since = kept.back.take().map_or(now, |(since, _)| since);
            let not_yet = pods.iter().filter(|pod| is_of_network(pod) && !pod.is_ready);
            kept.back = Some((since, not_yet.map(|pod| pod.id.clone()).collect()));
        }
    }

    /// All that is known of it.
    pub(super) fn evidence(
        &mut self,
        name: &NodeName,
        heard: Heard,
        standing: Standing,
        is_being_woken: bool,
        now: Moment,
    ) -> Evidence {
        if let Some(kept) = self.nodes.get_mut(name) {
            kept.woken |= is_being_woken;
        }
        let kept = self.nodes.get(name);
        let lease = kept.and_then(|kept| kept.lease.as_ref());
        let back = kept.and_then(|kept| kept.back.as_ref());
        Evidence {
            heard,
            lease: lease.map_or(LeaseSign::Unclear, |watch| watch.sign(now)),
            standing,
            is_being_woken,
            was_woken_here: kept.is_some_and(|kept| kept.woken),
            not_yet: back.map(|(_, pods)| pods.clone()).unwrap_or_default(),
            back_for: back.map(|(since, _)| now.since(*since)).unwrap_or_default(),
        }
    }

    /// A wake of it is begun here.
    pub(super) fn woken(&mut self, name: &NodeName) {
        if let Some(kept) = self.nodes.get_mut(name) {
            kept.woken = true;
        }
    }

    /// There is nothing to do about it now.
    pub(super) fn waits(&mut self, name: &NodeName, duty: &Duty, now: Moment) {
        let Some(kept) = self.nodes.get_mut(name) else { return };
        if kept.waits.as_ref() != Some(duty) {
            if let Duty::Wait(why) = duty {
                tracing::debug!(node = %name, %why, "node waits");
            }
            kept.waits = Some(duty.clone());
        }
        kept.failures = 0;
        self.failing.remove(name);
        let wait = match duty {
            Duty::Wait(
                Why::Attempt | Why::Leave | Why::MayHaveLeave | Why::Woken | Why::Lease | Why::NotReady | Why::Pods(_),
            ) => SOON,
            Duty::Wait(Why::Unknown) => LATER,
            // By its Lease, where nothing is heard of it.
            Duty::Wait(Why::Asleep) if kept.lease.is_some() => LATER,
            Duty::Wait(Why::Asleep) => READY_IS_TRUE_AFTER,
            Duty::Nothing | Duty::MarkAsleep | Duty::MarkWaking | Duty::CarryOn | Duty::Release(_) | Duty::Disown => {
                SELDOM
            }
        };
        self.schedule(name, now.after(wait));
    }

    /// It was written.
    pub(super) fn written(&mut self, name: &NodeName, node: ClusterNode, duty: &Duty, now: Moment) {
        if let Some(kept) = self.nodes.get_mut(name) {
            if kept.failures > 0 {
                tracing::info!(node = %name, after = kept.failures, "what was to be written to the node is");
            }
            kept.failures = 0;
            kept.waits = None;
            if matches!(duty, Duty::Release(_)) {
                kept.lease = None;
                kept.back = None;
            }
        }
        self.failing.remove(name);
        self.changed(node, now);
    }

    /// What was to be done about it failed. It is tried again for ever (fault K10).
    pub(super) fn failed(&mut self, name: &NodeName, error: &ClusterError, now: Moment) {
        let Some(kept) = self.nodes.get_mut(name) else { return };
        let (first, longest) = BACK_OFF;
        let wait = first.saturating_mul(1 << kept.failures.min(10)).min(longest);
        if kept.failures == 0 {
            tracing::error!(node = %name, %error, "the node cannot be seen to; it is tried again");
        } else {
            tracing::debug!(node = %name, %error, failures = kept.failures, "the node cannot be seen to");
        }
        kept.failures = kept.failures.saturating_add(1);
        self.failing.insert(name.clone());
        self.schedule(name, now.after(wait));
    }

    fn schedule(&mut self, name: &NodeName, next: Moment) {
        let Some(kept) = self.nodes.get_mut(name) else { return };
        if let Some(before) = kept.next.replace(next) {
            self.order.remove(&(before, name.clone()));
        }
        self.order.insert((next, name.clone()));
    }
}

/// Pods that have to run before others may come: those of DaemonSets that the cluster calls critical to their node and that use its
/// network, as the plugins of the container network do.
fn is_of_network(pod: &Pod) -> bool {
    pod.is_daemon()
        && pod.uses_host_network
        && !pod.is_terminating
        && pod.priority_class.as_deref() == Some("system-node-critical")
}

/// Resource versions are whole numbers that rise (KEP-5504); where they are not, the later word counts.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version < than,
        (Err(_), _) | (_, Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cordon::Came;

    fn at(seconds: u64) -> Moment {
        Moment::from_boot(Duration::from_secs(seconds))
    }

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn node(node: &str, version: u32, is_marked: bool) -> ClusterNode {
        let mark = is_marked.then(|| ("vmstation.io/power-state".to_owned(), "asleep".to_owned()));
        ClusterNode {
            name: name(node),
            uid: node.to_owned(),
            resource_version: version.to_string(),
            labels: BTreeMap::new(),
            annotations: mark.into_iter().collect(),
            taints: Vec::new(),
            unschedulable: false,
            ready: false,
            allocatable: BTreeMap::new(),
            cordoned_by: Vec::new(),
        }
    }

    /// Three nodes that were looked at, of which `b` is marked.
    fn three() -> Care {
        let mut care = Care::default();
        care.seen(Seen::Begin, at(0));
        for (each, is_marked) in [("a", false), ("b", true), ("c", false)] {
            care.seen(Seen::Is(node(each, 1, is_marked)), at(0));
        }
        care.seen(Seen::Complete, at(0));
        while care.due(at(0)).is_some() {}
        care
    }

    #[test]
    fn a_change_of_one_node_is_a_look_at_that_one_alone() {
        let mut care = three();
        care.due_now(&name("b"), at(1));
        assert_eq!(care.due(at(1)), Some(name("b")));
        assert_eq!(care.due(at(1)), None);
        care.seen(Seen::Is(node("c", 2, false)), at(1));
        assert_eq!(care.due(at(1)), Some(name("c")));
        assert_eq!(care.due(at(1)), None);
        care.due_now(&name("stranger"), at(1));
        assert_eq!(care.due(at(1)), None);
    }

    #[test]
    fn who_is_marked_and_who_fails_is_counted_as_it_changes() {
        let mut care = three();
        assert_eq!((care.marked(), care.failing()), (1, 0));
        care.seen(Seen::Is(node("a", 2, true)), at(1));
        care.seen(Seen::Is(node("b", 2, false)), at(1));
        care.seen(Seen::Is(node("c", 2, true)), at(1));
        assert_eq!(care.marked(), 2);
        care.seen(Seen::Is(node("c", 1, false)), at(1));
        assert_eq!(care.marked(), 2, "an older word");
        let error = ClusterError::Gone {
            attempted: "x".to_owned(),
            message: "y".to_owned(),
        };
        while care.due(at(1)).is_some() {}
        care.failed(&name("a"), &error, at(1));
        care.failed(&name("c"), &error, at(1));
        assert_eq!(care.failing(), 2);
        care.due_now(&name("a"), at(1));
        assert_eq!(care.due(at(1)), None, "one that fails keeps its wait");
        assert!(care.due(at(2)).is_some());
        care.written(&name("a"), node("a", 3, false), &Duty::Release(Came::Not), at(2));
        assert_eq!((care.marked(), care.failing()), (1, 1));
        care.seen(Seen::Gone(node("c", 3, true)), at(2));
        assert_eq!((care.marked(), care.failing()), (0, 0));
    }

    #[test]
    fn a_lease_is_asked_for_where_it_decides() {
        let record = |node: &ClusterNode| Record::of(node).unwrap();
        for (ready, heard, wants) in [
            (false, Heard::Nothing, false),
            (false, Heard::Gone, false),
            (true, Heard::Nothing, true),
            (true, Heard::Gone, true),
            // It speaks: it may be ready soon.
            (false, Heard::Awake, true),
            (true, Heard::Awake, true),
            (true, Heard::Sleeping, false),
        ] {
            let mut care = Care::default();
            let mut sleeper = node("b", 1, true);
            sleeper.ready = ready;
            let record = record(&sleeper);
            care.changed(sleeper, at(0));
            assert_eq!(
                care.wants_lease(&name("b"), record.as_ref(), heard, at(1)),
                wants,
                "ready {ready}, {heard:?}"
            );
        }
    }
}
