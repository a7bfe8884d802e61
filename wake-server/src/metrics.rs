//! The server's figures for Prometheus. `GET /metrics`, OpenMetrics 1.0.
//!
//! Owns the counts since the start; what is true at the moment comes from the status document. Every label has a bounded set of values
//! (W2): a path is that of a route, never what a client sent, and a node is one of the status: figures of others are dropped.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{Mutex, PoisonError},
};

use axum::http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use vmstation_protocol::{NodeName, NodeState, Status, Transport, WakeDocument, WakeOutcome};

use crate::{cluster::election::Leadership, openapi::Route};

/// `Content-Type` of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the time a node takes to wake, seconds: from a suspended guest (1 s) to a server that boots (5 min).
const SECONDS_TO_AWAKE: [f64; 12] = [0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0];

/// What is counted since the start.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    wakes: Mutex<BTreeMap<(NodeName, &'static str), u64>>,
    failed_wakes: Counter,
    packets: Family<TransportLabels, Counter>,
    seconds_to_awake: Histogram,
    marked_nodes: Gauge,
    failing_nodes: Gauge,
    is_leader: Gauge,
    lease_transitions: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WakeLabels {
    node: NodeLabel,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: NodeLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NodeLabel(NodeName);

impl EncodeLabelValue for NodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vmstation_wake");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests answered, by route and class of the status",
            requests.clone(),
        );
        let failed_wakes = Counter::default();
        registry.register(
            "failed_wakes",
            "Wakes that could not be sent or were not proved in time",
            failed_wakes.clone(),
        );
        let packets = Family::default();
        registry.register("packets", "Magic packets of wakes that are over", packets.clone());
        let seconds_to_awake = Histogram::new(SECONDS_TO_AWAKE);
        registry.register_with_unit(
            "to_awake",
            "Time from the first frame until a node was proved awake",
            Unit::Seconds,
            seconds_to_awake.clone(),
        );
        let marked_nodes = Gauge::default();
        registry.register(
            "cluster_marked_nodes",
            "Nodes of the Kubernetes cluster that carry a cordon or a record of this server",
            marked_nodes.clone(),
        );
        let failing_nodes = Gauge::default();
        registry.register(
            "cluster_failing_nodes",
            "Nodes of the Kubernetes cluster that cannot be written as they should be; it is tried again for ever",
            failing_nodes.clone(),
        );
        let is_leader = Gauge::default();
        // Alone until it is one of several.
        is_leader.set(1);
        registry.register(
            "server_is_leader",
            "1: this wake server acts, as it leads or is alone",
            is_leader.clone(),
        );
        let lease_transitions = Gauge::default();
        registry.register(
            "server_lease_transitions",
            "How often the lease of the wake servers had changed hands when this one last got it; 0: it never did",
            lease_transitions.clone(),
        );
        Self {
            registry,
            requests,
            wakes: Mutex::default(),
            failed_wakes,
            packets,
            seconds_to_awake,
            marked_nodes,
            failing_nodes,
            is_leader,
            lease_transitions,
        }
    }

    /// Counts a request. `route`: the path as it was matched; none or an unknown one counts as `other`.
    pub fn observe_request(&self, route: Option<&str>, status: StatusCode) {
        let labels = RequestLabels {
            route: route.and_then(Route::of).map_or("other", Route::path),
            status: match status.as_u16() {
                ..200 => "1xx",
                200..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                500.. => "5xx",
            },
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// Nodes of the Kubernetes cluster that carry a record of ours, and those whose record cannot be written or taken away.
    pub fn observe_marked_nodes(&self, marked: usize, failing: usize) {
        self.marked_nodes.set(i64::try_from(marked).unwrap_or(i64::MAX));
        self.failing_nodes.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }

    /// Counts a wake, once it is over; one that goes on is not counted.
    pub fn observe_wake(&self, wake: &WakeDocument) {
        let Some(outcome) = outcome(wake.outcome) else {
            return;
        };
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        *wakes.entry((wake.node.clone(), outcome)).or_default() += 1;
        drop(wakes);
        if matches!(wake.outcome, WakeOutcome::TimedOut | WakeOutcome::NotSent) {
            self.failed_wakes.inc();
        }
        if let Some(transport) = wake.transport {
            let transport = match transport {
                Transport::Raw => "raw",
                Transport::Udp => "udp",
            };
            let labels = TransportLabels { transport };
            self.packets.get_or_create(&labels).inc_by(u64::from(wake.packets));
        }
        if wake.outcome == WakeOutcome::Awake
            && let Some(last) = wake.stages.last()
        {
            self.seconds_to_awake.observe(last.at_ms / 1000.0);
        }
    }

    /// Whether this server leads of several.
    pub fn observe_leadership(&self, leadership: &Leadership) {
        match leadership {
            Leadership::Acting(term) => {
                self.is_leader.set(1);
                self.lease_transitions
                    .set(i64::try_from(term.fence.0).unwrap_or(i64::MAX));
            }
            Leadership::Following { .. } => {
                self.is_leader.set(0);
            }
        }
    }

    /// All figures as text.
    ///
    /// # Panics
    /// Never: a `String` takes all that is written.
    #[expect(clippy::expect_used, reason = "writing to a String cannot fail")]
    pub fn encode(&self, status: &Status) -> String {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry).expect("a String takes all");
        let mut moment = moment(status);
        moment.register(
            "wakes",
            "Wakes that are over, by node and outcome",
            self.wakes_of(status),
        );
        text::encode_registry(&mut text, &moment).expect("a String takes all");
        text::encode_eof(&mut text).expect("a String takes all");
        text
    }

    /// The wakes of nodes that are in the status; those of others are forgotten.
    fn wakes_of(&self, status: &Status) -> Family<WakeLabels, Counter> {
        let known: HashSet<&NodeName> = status.nodes.iter().map(|node| &node.name).collect();
        let family = Family::<WakeLabels, Counter>::default();
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.retain(|(node, _), _| known.contains(node));
        for ((node, outcome), count) in wakes.iter() {
            let labels = WakeLabels {
                node: NodeLabel(node.clone()),
                outcome,
            };
            family.get_or_create(&labels).inc_by(*count);
        }
        family
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What is true at the moment. A registry for each answer, so that two at a time do not write into each other's.
fn moment(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix("vmstation_wake");
    let nodes = Family::<StateLabels, Gauge>::default();
    for state in STATES {
        let _zero = nodes.get_or_create(&StateLabels {
            state: state_name(state),
        });
    }
    let awake = Family::<NodeLabels, Gauge>::default();
    for node in &status.nodes {
        let state = state_name(node.state);
        nodes.get_or_create(&StateLabels { state }).inc();
        let labels = NodeLabels {
            node: NodeLabel(node.name.clone()),
        };
        awake.get_or_create(&labels).set(i64::from(is_awake(node.state)));
    }
    let conflicts = Gauge::<i64>::default();
    conflicts.set(i64::try_from(status.conflicts.len()).unwrap_or(i64::MAX));
    registry.register("nodes", "Nodes, by state", nodes);
    registry.register("node_awake", "1: the node's agent says that it is awake", awake);
    registry.register("conflicts", "Contradictions between registries and reports", conflicts);
    registry
}

const STATES: [NodeState; 6] = [
    NodeState::Unknown,
    NodeState::Awake,
    NodeState::GoingToSleep,
    NodeState::Asleep,
    NodeState::Waking,
    NodeState::Gone,
];

const fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Awake => "awake",
        NodeState::GoingToSleep => "going_to_sleep",
        NodeState::Asleep => "asleep",
        NodeState::Waking => "waking",
        NodeState::Gone => "gone",
    }
}

const fn is_awake(state: NodeState) -> bool {
    match state {
        NodeState::Awake | NodeState::GoingToSleep => true,
        NodeState::Unknown | NodeState::Asleep | NodeState::Waking | NodeState::Gone => false,
    }
}

/// None: it is not over.
const fn outcome(outcome: WakeOutcome) -> Option<&'static str> {
    match outcome {
        WakeOutcome::Waking => None,
        WakeOutcome::Sent => Some("sent"),
        WakeOutcome::Awake => Some("awake"),
        WakeOutcome::TimedOut => Some("timed_out"),
        WakeOutcome::NotSent => Some("not_sent"),
        WakeOutcome::Cancelled => Some("cancelled"),
    }
}

#[cfg(test)]
mod tests {
    use vmstation_protocol::{NodeDocument, Role, SCHEMA, Stage, StageDocument};

    use super::*;

    fn status(names: &[&str]) -> Status {
        let node = |name: &&str| NodeDocument {
            name: name.parse().unwrap(),
            role: Role::Worker,
            macs: Vec::new(),
            address: None,
            state: NodeState::Awake,
            since: None,
            last_report: None,
            reasons: vec!["<b>\"free\\text\n".to_owned()],
            last_wake: None,
        };
        Status {
            schema: SCHEMA,
            time: String::new(),
            nodes: names.iter().map(node).collect(),
            conflicts: vec!["two cards".to_owned()],
        }
    }

    fn wake(node: &str, outcome: WakeOutcome) -> WakeDocument {
        WakeDocument {
            schema: SCHEMA,
            node: node.parse().unwrap(),
            mac: "52:54:00:12:34:af".parse().unwrap(),
            began: String::new(),
            outcome,
            stages: vec![StageDocument {
                stage: Stage::AgentReport,
                at_ms: 6200.0,
            }],
            transport: Some(Transport::Raw),
            interface: None,
            packets: 3,
            message: String::new(),
        }
    }

    #[test]
    fn wakes_are_counted_when_they_are_over() {
        let metrics = Metrics::new();
        for outcome in [
            WakeOutcome::Waking,
            WakeOutcome::Awake,
            WakeOutcome::TimedOut,
            WakeOutcome::NotSent,
        ] {
            metrics.observe_wake(&wake("worker-01", outcome));
        }
        let text = metrics.encode(&status(&["worker-01"]));
        for line in [
            r#"vmstation_wake_wakes_total{node="worker-01",outcome="awake"} 1"#,
            r#"vmstation_wake_wakes_total{node="worker-01",outcome="timed_out"} 1"#,
            "vmstation_wake_failed_wakes_total 2",
            r#"vmstation_wake_packets_total{transport="raw"} 9"#,
            "vmstation_wake_to_awake_seconds_count 1",
            r#"vmstation_wake_to_awake_seconds_bucket{le="10.0"} 1"#,
            r#"vmstation_wake_to_awake_seconds_bucket{le="5.0"} 0"#,
            r#"vmstation_wake_nodes{state="awake"} 1"#,
            r#"vmstation_wake_nodes{state="gone"} 0"#,
            r#"vmstation_wake_node_awake{node="worker-01"} 1"#,
            "vmstation_wake_conflicts 1",
        ] {
            assert!(text.lines().any(|its| its == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
        assert!(!text.contains("waking\"} 1") && !text.contains("free"));
    }

    #[test]
    fn who_leads_is_told() {
        use crate::{
            clock::Moment,
            cluster::election::{Fence, Term},
        };
        let metrics = Metrics::new();
        let says = |line: &str| metrics.encode(&status(&[])).lines().any(|found| found == line);
        assert!(says("vmstation_wake_server_is_leader 1"), "alone");
        metrics.observe_leadership(&Leadership::Following { leader: None });
        assert!(says("vmstation_wake_server_is_leader 0"));
        metrics.observe_leadership(&Leadership::Acting(Term {
            fence: Fence(7),
            acts_until: Moment::from_boot(std::time::Duration::MAX),
        }));
        assert!(says("vmstation_wake_server_is_leader 1"));
        assert!(says("vmstation_wake_server_lease_transitions 7"));
    }

    #[test]
    fn w2_a_route_is_counted_by_its_pattern() {
        let metrics = Metrics::new();
        metrics.observe_request(Some("/wake/{node}"), StatusCode::NOT_FOUND);
        metrics.observe_request(Some("/wake/no-such-node"), StatusCode::NOT_FOUND);
        metrics.observe_request(None, StatusCode::NOT_FOUND);
        let text = metrics.encode(&status(&[]));
        assert!(text.contains(r#"vmstation_wake_requests_total{route="/wake/{node}",status="4xx"} 1"#));
        assert!(text.contains(r#"vmstation_wake_requests_total{route="other",status="4xx"} 2"#));
        assert!(!text.contains("no-such-node"));
    }

    #[test]
    fn w2_a_node_that_is_not_registered_has_no_series() {
        let metrics = Metrics::new();
        metrics.observe_wake(&wake("former", WakeOutcome::Sent));
        assert!(metrics.encode(&status(&["former"])).contains("former"));
        assert!(!metrics.encode(&status(&["worker-01"])).contains("former"));
        assert!(!metrics.encode(&status(&["former"])).contains("outcome"), "forgotten");
    }
}
