//! An agent of the cluster asks for leave: its node is cordoned and emptied first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use tokio::time::sleep;
use vmstation_protocol::{Leave, LeaveRequest, NodeName};

use super::Kubernetes;
use crate::{
    clock::{Moment, wall_clock},
    cluster::{ClusterError, DryRun, NodeEvent},
    cordon::{self, Claim, Record},
    drain::{self, Action, Drain, Ended, Outcome, Plan},
    fit::room::room_elsewhere,
    hub::{Hub, at},
    permission::Decision,
    workload::{ClusterNode, Controller, Pod, PodId},
};

/// Tries to write a node that others write, too.
const CLAIMS: usize = 5;
/// When to ask again after something that passes by itself.
const SOON: Duration = Duration::from_mins(1);
/// And after something that somebody has to see to.
const LATER: Duration = Duration::from_mins(10);
/// Group of the nodes that are in no other: one sleeps at a time (fault K11).
const GROUP: &str = "cluster";
/// Evictions that are rehearsed at a time.
const AT_A_TIME: usize = 10;
/// Names of nodes that are offered in place of one that does not exist.
const CANDIDATES: usize = 5;

/// Why a node does not get leave.
#[derive(Debug)]
struct Obstacle {
    why: String,
    again_in: Duration,
    /// Whether its pods were touched: it is left alone for a while then (fault K4).
    cools: bool,
}

/// A node that is being prepared for sleep. Whatever ends it, its place is free then, and what was written is taken back.
struct Attempt<'a> {
    hub: &'a Hub,
    node: &'a NodeName,
    /// Leave that was given and not handed out yet.
    grant: Option<u64>,
    failed: Option<String>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut known = self.hub.known();
        if let Some(grant) = self.grant {
            known.permission.hand_back(self.node, grant);
        }
        known.permission.give_up(self.node, self.failed.take(), Moment::now());
        drop(known);
        self.hub.kick(self.node);
    }
}

impl Hub {
    /// Leave for a node of the cluster. Dropping this takes everything back.
    pub(in crate::hub) async fn leave_of_cluster(
        self: &Arc<Self>,
        kubernetes: &Kubernetes,
        name: &NodeName,
        request: &LeaveRequest,
    ) -> Leave {
        if let Err(obstacle) = kubernetes.require_acting() {
            return refused(&obstacle.why, obstacle.again_in);
        }
        let now = at();
        {
            let mut known = self.known();
            let mut facts = known.facts(name, &self.sleep, now);
            facts.group.get_or_insert_with(|| GROUP.to_owned());
            if let Err(refused) = known.permission.prepare(name, &facts, now.moment) {
                return Leave::from(refused);
            }
        }
        let mut attempt = Attempt {
            hub: self,
            node: name,
            grant: None,
            failed: None,
        };
        match self.prepared(kubernetes, name, request, &mut attempt).await {
            Ok(leave) => {
                // It is the agent's from here on.
                attempt.grant = None;
                leave
            }
            Err(obstacle) => {
                if obstacle.cools {
                    attempt.failed = Some(obstacle.why.clone());
                }
                refused(&obstacle.why, obstacle.again_in)
            }
        }
    }

    async fn prepared(
        self: &Arc<Self>,
        kubernetes: &Kubernetes,
        name: &NodeName,
        request: &LeaveRequest,
        attempt: &mut Attempt<'_>,
    ) -> Result<Leave, Obstacle> {
        let node = self.eligible(kubernetes, name).await?;
        let rules = &self.sleep.pods;
        let pods = kubernetes.cluster.pods_on(name).await?;
        let plan = drain::preflight(&pods, rules).map_err(|refusal| Obstacle {
            why: refusal.to_string(),
            again_in: LATER,
            cools: false,
        })?;
        self.room_elsewhere(kubernetes, &node, &plan).await?;
        self.rehearse(kubernetes, &plan).await?;
        let claimed = self.claim(kubernetes, node, request).await?;
        let moved = self.drain(kubernetes, name, plan).await?;

        let now = at();
        let (grant, lifetime) = {
            let mut known = self.known();
            let mut facts = known.facts(name, &self.sleep, now);
            facts.group.get_or_insert_with(|| GROUP.to_owned());
            match known.permission.grant_prepared(name, &facts, now.moment) {
                Decision::Granted { grant, lifetime } => (grant, lifetime),
                refused @ Decision::Refused { .. } => return Ok(Leave::from(refused)),
            }
        };
        attempt.grant = Some(grant);
        self.record_grant(kubernetes, claimed, grant, &moved).await?;
        // A wake may have begun meanwhile.
        if self.known().permission.grant(name, Moment::now()) != Some(grant) {
            return Err(Obstacle::soon("it is wanted awake"));
        }
        kubernetes.require_acting()?;
        Ok(Leave::from(Decision::Granted { grant, lifetime }))
    }

    /// The Node, if it may sleep at all.
    async fn eligible(&self, kubernetes: &Kubernetes, name: &NodeName) -> Result<ClusterNode, Obstacle> {
        let node = match kubernetes.cluster.node(name).await {
            Ok(node) => node,
            Err(ClusterError::NotFound { .. }) => {
                let nodes = kubernetes.cluster.nodes().await?;
                return Err(no_such_node(name, &nodes));
            }
            Err(error) => return Err(error.into()),
        };
        if node.is_control_plane() {
            return Err(Obstacle::later(
                "its Node is of the control plane, which its cluster needs awake",
            ));
        }
        if let Some(why) = node.annotations.get(cordon::HOLD) {
            let why: String = why.chars().take(200).collect();
            return Err(Obstacle::later(&format!(
                "an operator forbade it (annotation {}): {why}",
                cordon::HOLD
            )));
        }
        match Record::of(&node) {
            Ok(None) => Ok(node),
            Ok(Some(record)) => Err(Obstacle::soon(&format!(
                "what is left of an earlier sleep ({}) is being taken back",
                record.state
            ))),
            Err(error) => Err(Obstacle::later(&error.to_string())),
        }
    }

    /// Cordons it and begins the record.
    async fn claim(
        &self,
        kubernetes: &Kubernetes,
        mut node: ClusterNode,
        request: &LeaveRequest,
    ) -> Result<ClusterNode, Obstacle> {
        let name = node.name.clone();
        for _ in 0..CLAIMS {
            kubernetes.require_acting()?;
            let claim = self.words(kubernetes, &name, &request.reason);
            match kubernetes
                .cluster
                .patch_node(&name, &cordon::claim(&node, &claim))
                .await
            {
                Ok(claimed) => {
                    tracing::info!(target: "audit", node = %name, reason = request.reason, "node cordoned for its sleep");
                    return Ok(claimed);
                }
                Err(ClusterError::Conflict { .. }) => node = self.eligible(kubernetes, &name).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Obstacle::soon("its Node is changed all the time by others"))
    }

    /// Whether the pods that are to be moved have somewhere to go.
    async fn room_elsewhere(&self, kubernetes: &Kubernetes, node: &ClusterNode, plan: &Plan) -> Result<(), Obstacle> {
        let to_move = plan.running();
        if to_move.is_empty() {
            return Ok(());
        }
        let nodes = kubernetes.cluster.nodes().await?;
        let mut bound: BTreeMap<_, Vec<Pod>> = BTreeMap::new();
        for pod in kubernetes.cluster.pods().await? {
            if let Some(node) = pod.node.clone() {
                bound.entry(node).or_default().push(pod);
            }
        }
        let others = nodes.into_iter().filter(|other| other.name != node.name);
        let others: Vec<_> = others
            .map(|other| {
                let pods = bound.remove(&other.name).unwrap_or_default();
                (other, pods)
            })
            .collect();
        match room_elsewhere(&to_move, &others) {
            Ok(unsure) => {
                for (pod, doubts) in unsure {
                    let doubts: Vec<_> = doubts.iter().map(ToString::to_string).collect();
                    tracing::info!(node = %node.name, %pod, ?doubts, "it is not sure that the pod finds room elsewhere");
                }
                Ok(())
            }
            Err(homeless) => {
                let pods: Vec<_> = homeless.into_iter().map(|(pod, _)| pod).collect();
                Err(Obstacle::later(&format!(
                    "no other node has room for {}",
                    drain::Names(&pods)
                )))
            }
        }
    }

    /// Asks whether the pods could be evicted, before anything is changed: a budget that refuses now would have refused after the cordon.
    async fn rehearse(&self, kubernetes: &Kubernetes, plan: &Plan) -> Result<(), Obstacle> {
        let pods: Vec<_> = plan.to_move().iter().map(|pod| pod.id.clone()).collect();
        let rehearsals = pods.into_iter().map(|pod| {
            let cluster = kubernetes.cluster.clone();
            async move {
                let answer = cluster.evict(&pod, DryRun::Yes).await;
                (pod, answer)
            }
        });
        let mut answers = stream::iter(rehearsals).buffer_unordered(AT_A_TIME);
        while let Some((pod, answer)) = answers.next().await {
            match answer {
                // It is gone; its list says what is there in its place.
                Ok(()) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => {}
                Err(ClusterError::TooManyRequests { message, .. }) => {
                    return Err(Obstacle::soon(&format!("{pod} cannot be evicted now: {message}")));
                }
                Err(ClusterError::Other {
                    status: 500, message, ..
                }) => {
                    return Err(Obstacle::later(&format!("{pod} cannot be evicted: {message}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Moves its pods; whose they were.
    async fn drain(
        &self,
        kubernetes: &Kubernetes,
        name: &NodeName,
        plan: Plan,
    ) -> Result<BTreeMap<Controller, u8>, Obstacle> {
        let begun = Moment::now();
        let seed = u64::try_from(wall_clock().as_nanosecond() & i128::from(u32::MAX)).unwrap_or_default();
        let mut drain = Drain::new(plan, self.sleep.pods.drain_deadline, seed, begun);
        let mut asked = FuturesUnordered::new();
        loop {
            kubernetes.require_acting()?;
            if self.known().permission.is_called_off(name) {
                return Err(Obstacle::soon("it is wanted awake"));
            }
            for action in drain.step(Moment::now()) {
                let cluster = &kubernetes.cluster;
                asked.push(
                    async move {
                        match action {
                            Action::Evict(pod) => {
                                let outcome = outcome(cluster.evict(&pod, DryRun::No).await);
                                tracing::info!(target: "audit", node = %name, %pod, ?outcome, "eviction");
                                Answer::Evicted(pod, outcome)
                            }
                            Action::List => Answer::Listed(cluster.pods_on(name).await),
                        }
                    }
                    .boxed(),
                );
            }
            match drain.ended() {
                None => {}
                Some(Ended::Empty) => return Ok(drain.moved().clone()),
                Some(ended @ (Ended::NewPods(_) | Ended::Never { .. } | Ended::OutOfTime { .. })) => {
                    let why = ended.to_string();
                    tracing::warn!(node = %name, why, "the node was not drained");
                    return Err(Obstacle {
                        why,
                        again_in: self.sleep.terms.cool_down.max(SOON),
                        cools: true,
                    });
                }
            }
            let wait = drain.deadline().since(Moment::now());
            tokio::select! {
                Some(answer) = asked.next() => {
                    let now = Moment::now();
                    match answer {
                        Answer::Evicted(pod, outcome) => drain.answered(&pod, outcome, now),
                        Answer::Listed(Ok(pods)) => drain.listed(&pods, now),
                        Answer::Listed(Err(error)) => drain.not_listed(error.to_string(), now),
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// Writes the grant before anybody hears of it: whoever acts next must know that the node may be asleep.
    async fn record_grant(
        &self,
        kubernetes: &Kubernetes,
        mut node: ClusterNode,
        grant: u64,
        moved: &BTreeMap<Controller, u8>,
    ) -> Result<(), Obstacle> {
        let name = node.name.clone();
        for _ in 0..CLAIMS {
            kubernetes.require_acting()?;
            let claim = self.words(kubernetes, &name, "");
            let patch = cordon::grant(&node, grant, moved, &claim);
            match kubernetes.cluster.patch_node(&name, &patch).await {
                Ok(node) => {
                    let event = NodeEvent {
                        reason: "SleepGranted",
                        note: "the node is empty and may sleep".to_owned(),
                        is_warning: false,
                    };
                    kubernetes.tell(&node, &event).await;
                    return Ok(());
                }
                Err(ClusterError::Conflict { .. }) => {
                    node = kubernetes.cluster.node(&name).await?;
                    let is_ours = Record::of(&node).is_ok_and(|record| {
                        record.is_some_and(|record| {
                            record.state == cordon::PowerState::Draining && record.by == kubernetes.identity
                        })
                    });
                    if !is_ours {
                        return Err(Obstacle::soon("its record was taken away by others"));
                    }
                    if !node.unschedulable {
                        return Err(Obstacle::soon("somebody uncordoned it"));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Obstacle::soon("its Node is changed all the time by others"))
    }

    fn words<'a>(&self, kubernetes: &'a Kubernetes, name: &NodeName, reason: &'a str) -> Claim<'a> {
        Claim {
            by: &kubernetes.identity,
            reason,
            wake_mac: self.wake_mac(name),
            now: wall_clock(),
        }
    }
}

impl Kubernetes {
    /// Another server may act by now: what this one began is that one's to take back.
    fn require_acting(&self) -> Result<(), Obstacle> {
        if self.is_acting() {
            Ok(())
        } else {
            Err(Obstacle::soon(
                "this wake server does not act for the cluster now; ask again",
            ))
        }
    }
}

impl Obstacle {
    fn soon(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            again_in: SOON,
            cools: false,
        }
    }

    fn later(why: &str) -> Self {
        Self {
            again_in: LATER,
            ..Self::soon(why)
        }
    }
}

impl From<ClusterError> for Obstacle {
    fn from(error: ClusterError) -> Self {
        let again_in = match &error {
            ClusterError::Unreachable { .. }
            | ClusterError::Deadline { .. }
            | ClusterError::Conflict { .. }
            | ClusterError::TooManyRequests { .. }
            | ClusterError::Gone { .. }
            | ClusterError::Other { .. } => SOON,
            ClusterError::Unauthorized { .. }
            | ClusterError::Forbidden { .. }
            | ClusterError::NotFound { .. }
            | ClusterError::Unreadable(_) => LATER,
        };
        Self {
            why: error.to_string(),
            again_in,
            cools: false,
        }
    }
}

/// No Node has this name: another is never taken in its place (fault K12).
fn no_such_node(name: &NodeName, nodes: &[ClusterNode]) -> Obstacle {
    let mut names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    let like = |other: &str| strsim::jaro_winkler(name.as_str(), other);
    names.sort_by(|a, b| like(b).total_cmp(&like(a)));
    let offered = names.into_iter().take(CANDIDATES).collect::<Vec<_>>().join(", ");
    Obstacle::later(&format!(
        "the cluster has no Node {name}; it has {offered}: the agent's host name has to be the name of its Node"
    ))
}

/// What the API server answered.
enum Answer {
    Evicted(PodId, Outcome),
    Listed(Result<Vec<Pod>, ClusterError>),
}

/// What the answer to an eviction means (fault K4).
fn outcome(answer: Result<(), ClusterError>) -> Outcome {
    match answer {
        Ok(()) => Outcome::Accepted,
        // Another pod has its name by now, or none.
        Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Outcome::Gone,
        Err(ClusterError::TooManyRequests {
            message, retry_after, ..
        }) => Outcome::Later {
            why: message,
            again_in: retry_after,
        },
        // More than one budget covers it.
        Err(ClusterError::Other {
            status: 500, message, ..
        }) => Outcome::Never { why: message },
        Err(
            error @ (ClusterError::Unreachable { .. }
            | ClusterError::Deadline { .. }
            | ClusterError::Gone { .. }
            | ClusterError::Unreadable(_)
            | ClusterError::Other { .. }),
        ) => Outcome::Later {
            why: error.to_string(),
            again_in: None,
        },
        Err(error @ (ClusterError::Unauthorized { .. } | ClusterError::Forbidden { .. })) => {
            Outcome::Never { why: error.to_string() }
        }
    }
}

fn refused(why: &str, again_in: Duration) -> Leave {
    Leave::Refused {
        reason: why.to_owned(),
        again_in_s: again_in.as_secs(),
    }
}
