//! Whatever happens in whatever order: the invariants of who may sleep and of who owns a cordon hold.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use tokio::time::{sleep, timeout};
use vmstation_protocol::{Activity, Leave, Role};
use vmstation_wake_server::config::SleepSettings;

use crate::{
    cluster::kubelet::Kubelet,
    observer::Observer,
    on_cluster,
    scene::{Scene, pod},
    wake_server::{LEAVE, WakeServer, settings},
};

const NODES: [&str; 3] = ["w1", "w2", "w3"];
/// `min_awake` of the workers.
const AWAKE: usize = 1;
/// An agent that waits for leave no longer than this.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
enum Step {
    /// An agent asks; with leave it goes to sleep or does not.
    Asks {
        node: usize,
        then_sleeps: bool,
    },
    /// The same, and something happens so many milliseconds later, in the middle of it.
    AsksWhile {
        node: usize,
        after: u64,
        event: Event,
    },
    /// The scheduler binds a pod, if the node is not cordoned.
    PodArrives(usize),
    AdministratorCordons(usize, bool),
    /// A budget over the pods of a node, which allows so many evictions.
    BudgetAppears(usize, i32),
    /// The server is killed and another starts.
    ServerRestarts,
    /// A node wakes; its agent says so, or has died.
    Resumes {
        node: usize,
        agent_lives: bool,
    },
    Passes(u64),
}

#[derive(Clone, Copy, Debug)]
enum Event {
    AgentDies,
    ServerDies,
    AdministratorCordons(bool),
    BudgetAppears,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NODES.len();
    let event = prop_oneof![
        2 => Just(Event::AgentDies),
        2 => Just(Event::ServerDies),
        2 => any::<bool>().prop_map(Event::AdministratorCordons),
        1 => Just(Event::BudgetAppears),
    ];
    let step = prop_oneof![
        4 => (node.clone(), 0..400_u64, event).prop_map(|(node, after, event)| Step::AsksWhile { node, after, event }),
        5 => (node.clone(), any::<bool>()).prop_map(|(node, then_sleeps)| Step::Asks { node, then_sleeps }),
        3 => node.clone().prop_map(Step::PodArrives),
        3 => (node.clone(), any::<bool>()).prop_map(|(node, cordons)| Step::AdministratorCordons(node, cordons)),
        1 => (node.clone(), 0..2).prop_map(|(node, allowed)| Step::BudgetAppears(node, allowed)),
        1 => Just(Step::ServerRestarts),
        3 => (node, any::<bool>()).prop_map(|(node, agent_lives)| Step::Resumes { node, agent_lives }),
        2 => (0..3000_u64).prop_map(Step::Passes),
    ];
    prop::collection::vec(step, 40)
}

struct Node {
    sleeps: bool,
    /// It reports; as one that has died it does not before it asks again.
    agent_lives: bool,
    resumes: u64,
    /// The administrator's last word, if it changed anything.
    administrator: Option<bool>,
}

struct Walk<'a> {
    cluster: &'a Scene,
    observer: Observer,
    kubelet: Kubelet,
    server: WakeServer,
    store: PathBuf,
    nodes: BTreeMap<&'static str, Node>,
    names: usize,
    leaves: usize,
}

impl Walk<'_> {
    async fn step(&mut self, step: &Step) {
        self.agents_report();
        match *step {
            Step::Asks { node, then_sleeps } if !self.nodes[NODES[node]].sleeps => {
                self.asks(NODES[node], then_sleeps).await;
            }
            Step::AsksWhile { node, after, event } if !self.nodes[NODES[node]].sleeps => {
                self.asks_while(NODES[node], Duration::from_millis(after), event).await;
            }
            Step::PodArrives(node) => {
                let node = NODES[node];
                if !self.nodes[node].sleeps && !self.cluster.is_cordoned(node).await {
                    self.names += 1;
                    let name = format!("p{}", self.names);
                    self.cluster.pod(pod(&name).on(node).label("app", node)).await;
                }
            }
            Step::AdministratorCordons(node, cordons) => {
                let node = NODES[node];
                if self.cluster.kubectl_cordons(node, cordons).await {
                    self.nodes.get_mut(node).unwrap().administrator = Some(cordons);
                }
            }
            Step::BudgetAppears(node, allowed) => self.budget(NODES[node], allowed).await,
            Step::ServerRestarts => self.server_restarts().await,
            Step::Resumes { node, agent_lives } if self.nodes[NODES[node]].sleeps => {
                self.resumes(NODES[node], agent_lives);
            }
            Step::Passes(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
            Step::Asks { .. } | Step::AsksWhile { .. } | Step::Resumes { .. } => {}
        }
        self.administrators_cordons_hold().await;
        self.observer.all_held();
    }

    fn agents_report(&self) {
        let awake = self.nodes.iter().filter(|(_, node)| !node.sleeps && node.agent_lives);
        for (name, node) in awake {
            self.server.hears(name, Activity::Busy, node.resumes);
        }
    }

    async fn budget(&mut self, node: &str, allowed: i32) {
        self.names += 1;
        self.cluster.budget(&format!("b{}", self.names), node, allowed).await;
    }

    async fn server_restarts(&mut self) {
        self.server.dies();
        self.server = WakeServer::just_started(self.cluster, &self.store, policy()).await;
        self.agents_report();
    }

    /// Whatever comes of it, the node does not sleep.
    async fn asks_while(&mut self, name: &'static str, after: Duration, event: Event) {
        self.nodes.get_mut(name).unwrap().agent_lives = true;
        let leave = match event {
            // Nobody hears the answer.
            Event::AgentDies => {
                let _unheard = timeout(after, self.server.asked(name)).await;
                None
            }
            Event::ServerDies => {
                let _unheard = timeout(after, self.server.asked(name)).await;
                self.server_restarts().await;
                None
            }
            Event::AdministratorCordons(cordons) => {
                let acts = async {
                    sleep(after).await;
                    self.cluster.kubectl_cordons(name, cordons).await
                };
                let (leave, changes) = tokio::join!(timeout(PATIENCE, self.server.asked(name)), acts);
                if changes {
                    self.nodes.get_mut(name).unwrap().administrator = Some(cordons);
                }
                leave.ok()
            }
            Event::BudgetAppears => {
                self.names += 1;
                let budget = format!("b{}", self.names);
                let acts = async {
                    sleep(after).await;
                    self.cluster.budget(&budget, name, 0).await;
                };
                tokio::join!(timeout(PATIENCE, self.server.asked(name)), acts).0.ok()
            }
        };
        if let Some(Leave::Granted { grant, .. }) = leave {
            self.leaves += 1;
            self.server.hub.hand_back(&name.parse().unwrap(), grant);
        }
    }

    async fn asks(&mut self, name: &'static str, then_sleeps: bool) {
        self.nodes.get_mut(name).unwrap().agent_lives = true;
        // One that does not wait any longer breaks its connection.
        let Ok(Leave::Granted { grant, .. }) = timeout(PATIENCE, self.server.asked(name)).await else {
            return;
        };
        self.leaves += 1;
        // Only a pod that was bound before the cordon can be there, and none was: this is the only scheduler.
        assert_eq!(self.cluster.pods_on(name).await, [""; 0], "{name} has leave and pods");
        assert!(
            self.cluster.is_cordoned(name).await,
            "{name} has leave and is not cordoned"
        );
        let others = NODES.into_iter().filter(|other| *other != name);
        for other in others {
            let state = self.cluster.annotation(other, "power-state").await;
            let is_asleep = self.nodes[other].sleeps;
            assert!(
                is_asleep || state.as_deref() != Some("draining"),
                "{other} is emptied beside {name}"
            );
        }
        if then_sleeps {
            self.server.hears(name, Activity::Sleeping, self.nodes[name].resumes);
            self.kubelet.leave(name);
            self.nodes.get_mut(name).unwrap().sleeps = true;
            self.cluster
                .until("a sleeper is known as one", || self.cluster.is_tainted(name))
                .await;
        } else {
            self.server.hub.hand_back(&name.parse().unwrap(), grant);
        }
    }

    fn resumes(&mut self, name: &'static str, agent_lives: bool) {
        let node = self.nodes.get_mut(name).unwrap();
        node.sleeps = false;
        node.resumes += 1;
        node.agent_lives = agent_lives;
        self.kubelet.join(name);
        if agent_lives {
            self.server.hears(name, Activity::Busy, node.resumes);
        }
    }

    async fn administrators_cordons_hold(&mut self) {
        for (name, node) in &mut self.nodes {
            // One that he took away may have been followed by one of ours.
            if node.administrator == Some(true) {
                assert!(
                    self.cluster.is_cordoned(name).await,
                    "{name}: the administrator's cordon is gone"
                );
            }
        }
    }

    async fn end(mut self) {
        for name in NODES {
            if self.nodes[name].sleeps {
                self.resumes(name, true);
            } else {
                self.server.hears(name, Activity::Busy, self.nodes[name].resumes);
            }
        }
        for name in NODES {
            self.cluster
                .until("a node that is awake is clean", || self.cluster.is_clean(name))
                .await;
        }
        // A reconciliation more changes nothing.
        sleep(2 * LEAVE).await;
        self.observer.all_held();
        println!("{} versions of Nodes", self.observer.versions());
        assert!(self.observer.versions() > self.leaves, "nobody watched");
        for (name, node) in &self.nodes {
            let is_cordoned = self.cluster.is_cordoned(name).await;
            assert_eq!(is_cordoned, node.administrator == Some(true), "{name}");
        }
    }
}

#[test]
fn k7_k8_k9_k11_k13_walk_1() {
    walk(1);
}

#[test]
fn k7_k8_k9_k11_k13_walk_2() {
    walk(2);
}

#[test]
fn k7_k8_k9_k11_k13_walk_3() {
    walk(3);
}

#[test]
fn k7_k8_k9_k11_k13_walk_4() {
    walk(4);
}

#[test]
fn k7_k8_k9_k11_k13_walk_5() {
    walk(5);
}

#[test]
fn k7_k8_k9_k11_k13_walk_6() {
    walk(6);
}

fn policy() -> SleepSettings {
    SleepSettings {
        min_awake: [(Role::Worker, AWAKE)].into(),
        ..settings()
    }
}

/// One walk, always the same for a number. It takes half a minute, most of it waiting.
fn walk(number: u8) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[number; 32]);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let steps = steps().new_tree(&mut runner).unwrap().current();
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        for node in NODES {
            cluster.node(node).await;
        }
        let server = WakeServer::with(&cluster, folder.path(), policy()).await;
        let kubelet = Kubelet::start(&cluster.cluster, &NODES);
        kubelet.renew_leases(true);
        let node = || Node {
            sleeps: false,
            agent_lives: true,
            resumes: 0,
            administrator: None,
        };
        let mut walk = Walk {
            cluster: &cluster,
            observer: Observer::start(cluster.cluster.client().await, &NODES, AWAKE).await,
            kubelet,
            server,
            store: folder.path().to_owned(),
            nodes: NODES.into_iter().map(|name| (name, node())).collect(),
            names: 0,
            leaves: 0,
        };
        for (done, step) in steps.iter().enumerate() {
            println!("{done}: {step:?}");
            walk.step(step).await;
        }
        println!("leave was given {} times", walk.leaves);
        assert!(walk.leaves > 0, "nobody ever had leave");
        walk.end().await;
    });
}
