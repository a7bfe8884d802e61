//! The night itself.

use std::{collections::BTreeSet, sync::Arc, thread, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::Value;

use crate::{
    chronicle::{CLUSTER, Chronicle, Follower},
    cluster::objects::{self, NewPod},
    place::{NODE, Place, SPARE},
    vm::{
        bed::{LAN, NAP, bed},
        installation::{EAGER, Installation, Settings},
    },
    wait::wait_until,
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 1] = [("k_a_node_is_emptied_sleeps_and_is_woken_for_a_pod", a_night_of_a_node)];

/// A step that both programs take part in, and the API server.
const STEP: Duration = Duration::from_mins(2);
const AGENT: &str = "agent";
const SERVER: &str = "wake server";
const MACHINE: &str = "machine";
const CARD: &str = "card";

/// Everybody who can tell how far it is.
struct Night<'a> {
    agent: Installation<'a>,
    place: &'a Place,
    chronicle: Arc<Chronicle>,
    /// Notices of the agent that are noted.
    told: usize,
    /// The node's state by the wake server's word.
    state: String,
    /// The machine's, by qemu's.
    machine: String,
}

fn a_night_of_a_node() {
    let mut bed = bed();
    let place = Place::set(&mut bed);
    let chronicle = Chronicle::begin();
    let _follower = Follower::of(&chronicle, &place.cluster, &place.master.host, NODE);
    place.does(async |client| {
        NewPod::new("default", "report").on(NODE).create(&client).await;
        dns("dns-1").on(NODE).create(&client).await;
        let network = NewPod::new("kube-system", "network")
            .owned_by("DaemonSet", "network")
            .spec("hostNetwork", true.into());
        network.on(NODE).create(&client).await;
    });
    let agent = Installation::new(
        &mut bed,
        &Settings {
            interfaces: &[LAN],
            min_awake: "20s",
            wake_server: &Place::wake_server(),
            kubernetes: &Place::kubernetes(),
            ..EAGER
        },
    );
    let mut night = Night {
        agent,
        place: &place,
        chronicle,
        told: 0,
        state: String::new(),
        machine: String::new(),
    };
    let suspends = night.agent.bed.qmp.suspends();
    night.agent.start();
    night.is_kept_awake_by("default/report");
    night.falls_asleep();
    night.is_woken_for("big");
    night.is_kept_awake_by("default/big");
    assert_eq!(night.agent.bed.qmp.suspends(), suspends + 1);
    night.chronicle.assert_order(&[
        (AGENT, "awake: pod default/report is running"),
        (CLUSTER, "pod report: Succeeded"),
        (AGENT, "notice going_to_sleep"),
        (CLUSTER, "cordoned, cordon owned by"),
        (CLUSTER, "pod dns-1: Running on worker-01, ending"),
        (CLUSTER, "pod dns-1: gone"),
        (CLUSTER, "power-state granted"),
        (MACHINE, "suspended"),
        (SERVER, "asleep"),
        (CLUSTER, "pod big: Pending, unschedulable"),
        (CARD, "called"),
        (MACHINE, "running"),
        (SERVER, "awake"),
        (CLUSTER, "Lease of worker-01: renewed, after"),
        (CLUSTER, "uncordoned, cordon disowned, power-state gone, taint gone"),
        (CLUSTER, "pod big: Running on worker-01"),
        (AGENT, "awake: pod default/big is running"),
    ]);
    // Moved by the eviction API, and not deleted: who may not is not able to.
    let asked = place.cluster.fake().unwrap().requests();
    let evictions = asked.iter().filter(|asked| asked.path.ends_with("/eviction"));
    let evicted: BTreeSet<_> = evictions.map(|asked| asked.path.as_str()).collect();
    // The finished one too, as by `kubectl drain`.
    let expected = [
        "/api/v1/namespaces/default/pods/report/eviction",
        "/api/v1/namespaces/kube-system/pods/dns-1/eviction",
    ];
    assert_eq!(evicted, expected.into());
}

/// Of a namespace that the agent leaves out: such a pod does not keep its node awake, but has to be moved.
fn dns(name: &str) -> NewPod {
    NewPod::new("kube-system", name).owned_by("ReplicaSet", "dns")
}

impl Night<'_> {
    /// Notes what is new.
    fn look(&mut self) {
        let machine = self.agent.bed.qmp.status();
        if machine != self.machine {
            self.chronicle.note(MACHINE, machine.clone());
            self.machine = machine;
        }
        let events = self.agent.bed.webhook.events();
        for event in &events[self.told..] {
            self.chronicle.note(AGENT, format!("notice {event}"));
        }
        self.told = events.len();
        let node = self.place.master.node(NODE);
        let state = node["state"].as_str().unwrap_or_default();
        if state != self.state {
            self.chronicle.note(SERVER, state);
            state.clone_into(&mut self.state);
        }
    }

    /// Looks until it is so; panics if it never is.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let came = wait_until(STEP, || {
            self.look();
            is_so(self)
        });
        if !came {
            let agent = match self.machine.as_str() {
                "running" => self.agent.log(),
                _ => String::new(),
            };
            panic!("never: {what}\n{agent}\n{}", self.place.master.log());
        }
    }

    /// The API server tells something with these words.
    fn until_told(&mut self, words: &str) {
        self.until(words, |night| night.chronicle.has(CLUSTER, words));
    }

    /// Nothing else does; no time is waited for.
    fn is_kept_awake_by(&mut self, pod: &str) {
        let status = self
            .agent
            .status_when("kept awake by a pod alone", |status| blockers(status) == ["pods"]);
        let said = format!("pod {pod} is running");
        assert!(status["blockers"].to_string().contains(&said), "{status:#}");
        self.look();
        self.chronicle.note(AGENT, format!("awake: {said}, and nothing else"));
        let mut programs = status["programs"].as_array().unwrap().iter();
        assert!(programs.any(|program| program["attached"] == true), "eBPF: {status:#}");
    }

    fn falls_asleep(&mut self) {
        self.place.can_grant();
        self.place
            .does(async |client| objects::set_phase(&client, "default", "report", "Succeeded", false).await);
        self.until_told("pod dns-1: gone");
        self.place
            .does(async |client| dns("dns-2").on(SPARE).create(&client).await);
        self.until("the machine suspends", |night| night.machine == "suspended");
        self.place.sleeps();
        self.until("the server knows", |night| night.state == "asleep");
        self.until_told("power-state asleep, tainted");
        thread::sleep(NAP);
    }

    fn is_woken_for(&mut self, pod: &str) {
        // More than the other node has.
        self.place.does(async |client| {
            let demand = NewPod::new("default", pod).requests("cpu", "3500m");
            demand.create(&client).await;
            objects::mark_unschedulable(&client, "default", pod).await;
        });
        self.until("its card is called", |night| night.place.cable.calls() > 0);
        assert_eq!(self.machine, "suspended");
        self.chronicle.note(CARD, "called by a magic packet");
        self.place.cable.wakes();
        self.agent.bed.qmp.wake();
        self.until("the server hears of it", |night| night.state == "awake");
        self.until("told of the wake", |night| {
            night.agent.bed.webhook.events().iter().any(|event| event == "awake")
        });
        // Its agent is back, but not its kubelet (fault K13).
        let node = self.node();
        assert_eq!(node.spec.unwrap().unschedulable, Some(true));
        self.place.kubelet_comes();
        self.until_told("power-state gone");
        let node = self.node();
        let annotations = node.metadata.annotations.unwrap_or_default();
        let ours: Vec<_> = annotations
            .keys()
            .filter(|key| key.starts_with("vmstation.io/"))
            .collect();
        assert_eq!(
            ours,
            ["vmstation.io/woken"],
            "the proof of a wake stays, and nothing else"
        );
        let spec = node.spec.unwrap();
        assert_eq!(
            (spec.unschedulable.unwrap_or_default(), spec.taints.unwrap_or_default()),
            (false, vec![])
        );
        self.place.does(async |client| {
            objects::bind(&client, "default", pod, NODE).await;
            objects::set_phase(&client, "default", pod, "Running", true).await;
        });
        self.until_told(&format!("pod {pod}: Running on {NODE}"));
    }

    fn node(&self) -> Node {
        self.place
            .does(async |client| Api::<Node>::all(client).get(NODE).await.unwrap())
    }
}

/// Signals that keep the node awake.
fn blockers(status: &Value) -> Vec<&str> {
    let blockers = status["blockers"].as_array().unwrap().iter();
    blockers.map(|blocker| blocker["signal"].as_str().unwrap()).collect()
}
