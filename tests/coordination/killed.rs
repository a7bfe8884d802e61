//! kill -9 of either side at every write that a sleep and a wake make: the next server leaves no node that is awake with anything of ours,
//! and takes no administrator's cordon away (fault K9).
//!
//! The writes are not listed here: a life without a death counts them. Only on the fake, which stops at each of them.

use std::{cell::Cell, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::sleep;
use vmstation_protocol::{Activity, Leave};

use crate::{
    cluster::{Cluster, kube_fake::Stopped},
    scene::{Kubelet, Scene, pod},
    wake_server::{LEAVE, WakeServer, settings},
};

const NODE: &str = "w1";
const SERVER: &str = "vmstation-wake-server";
/// Lives at a time, each on a cluster of its own.
const AT_A_TIME: usize = 10;
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    /// The server; the same one starts again.
    Server(Stopped),
    /// The server; one that knows nothing but what is in the cluster acts next.
    Leader(Stopped),
    Agent,
}

/// One node, its agent and its kubelet.
struct Life {
    cluster: Scene,
    is_cordoned_by_others: bool,
    kubelet: Cell<Option<Kubelet>>,
    /// Whether it suspended.
    sleeps: Cell<bool>,
    /// How often it came back.
    resumes: Cell<u64>,
}

impl Life {
    async fn new(is_cordoned_by_others: bool) -> Self {
        let cluster = Scene::set_on(Cluster::start_fake()).await;
        cluster.node(NODE).await;
        cluster.pod(pod("web").on(NODE)).await;
        cluster.pod(pod("done").on(NODE).unmanaged().phase("Succeeded")).await;
        if is_cordoned_by_others {
            cluster.kubectl_cordons(NODE, true).await;
        }
        let life = Self {
            cluster,
            is_cordoned_by_others,
            kubelet: Cell::new(None),
            sleeps: Cell::new(false),
            resumes: Cell::new(0),
        };
        life.kubelet.set(Some(life.kubelet()));
        life
    }

    fn kubelet(&self) -> Kubelet {
        Kubelet::start(&self.cluster, NODE, &[])
    }

    /// Asks for leave, sleeps, is woken and comes back.
    async fn passes(&self, server: &WakeServer) {
        // Leave of a server before it may hold for a moment, and a loaded one begins late.
        while let Leave::Refused { reason, .. } = server.asked(NODE).await {
            assert!(reason.contains("before the wake server started"), "no leave: {reason}");
            sleep(LEAVE).await;
        }
        self.sleeps.set(true);
        self.kubelet.set(None);
        server.hears(NODE, Activity::Sleeping, 0);
        self.cluster.until("asleep", || self.cluster.is_tainted(NODE)).await;
        server.hub.wake(NODE, true).unwrap();
        self.cluster
            .until("waking", || async {
                self.cluster.annotation(NODE, "power-state").await.as_deref() == Some("waking")
            })
            .await;
        self.comes_back(server);
        self.is_as_before().await;
        // Events follow what they tell of.
        sleep(Duration::from_millis(200)).await;
    }

    fn comes_back(&self, server: &WakeServer) {
        self.sleeps.set(false);
        self.resumes.set(1);
        self.kubelet.set(Some(self.kubelet()));
        server.hears(NODE, Activity::Busy, 1);
    }

    async fn is_as_before(&self) {
        let cluster = &self.cluster;
        cluster.until("nothing of ours", || cluster.is_clean(NODE)).await;
        assert_eq!(cluster.is_cordoned(NODE).await, self.is_cordoned_by_others);
    }
}

/// How many writes a life takes.
async fn writes() -> usize {
    let life = Life::new(false).await;
    let folder = tempfile::tempdir().unwrap();
    let server = WakeServer::start(&life.cluster, folder.path()).await;
    life.passes(&server).await;
    let requests = life.cluster.fake().unwrap().requests().into_iter();
    requests
        .filter(|asked| asked.agent.starts_with(SERVER) && asked.method != "GET")
        .count()
}

async fn a_life_with_a_death(number: usize, dies: Dies, is_cordoned_by_others: bool) {
    let life = Life::new(is_cordoned_by_others).await;
    let fake = life.cluster.fake().unwrap();
    let (folder, another) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = WakeServer::start(&life.cluster, folder.path()).await;
    let when = match dies {
        Dies::Server(when) | Dies::Leader(when) => when,
        Dies::Agent => Stopped::Never,
    };
    fake.stop_at(SERVER, number, when);
    let stopped = async {
        while !fake.is_stopped() {
            sleep(LOOK).await;
        }
    };
    let is_over = tokio::select! {
        () = life.passes(&server) => true,
        () = stopped => false,
    };
    // An Event may be left out, and then a life takes fewer.
    if is_over && !fake.is_stopped() {
        return;
    }
    fake.stop_nobody();
    let next = match dies {
        Dies::Server(_) | Dies::Leader(_) => {
            server.dies();
            drop(server);
            let state = if matches!(dies, Dies::Leader(_)) {
                &another
            } else {
                &folder
            };
            WakeServer::just_started(&life.cluster, state.path(), settings()).await
        }
        // Its connection is closed.
        Dies::Agent => server,
    };
    if life.sleeps.get() {
        // Nobody tells this server that it sleeps, and it is not to be taken for awake.
        sleep(3 * LEAVE).await;
        assert!(life.cluster.is_cordoned(NODE).await, "a sleeper without its cordon");
        life.comes_back(&next);
    } else {
        next.hears(NODE, Activity::Busy, life.resumes.get());
    }
    life.is_as_before().await;
    let events = life.cluster.events(NODE).await;
    assert!(!events.iter().any(|reason| reason == "WakeFailed"), "{events:?}");
}

fn at_each_write(dies: Dies, is_cordoned_by_others: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let writes = writes().await;
        // Two rehearsals, the cordon, two evictions, the grant, asleep, waking, back, and their Events.
        assert!(writes >= 9, "{writes} writes");
        stream::iter(0..writes)
            .for_each_concurrent(AT_A_TIME, |number| async move {
                a_life_with_a_death(number, dies, is_cordoned_by_others).await;
            })
            .await;
    });
}

#[test]
fn k9_a_server_that_dies_before_any_of_its_writes_strands_nothing() {
    at_each_write(Dies::Server(Stopped::Before), false);
}

#[test]
fn k9_a_server_that_dies_after_any_of_its_writes_strands_nothing() {
    at_each_write(Dies::Server(Stopped::After), false);
}

#[test]
fn k9_whoever_acts_next_finishes_or_takes_back() {
    at_each_write(Dies::Leader(Stopped::Before), false);
    at_each_write(Dies::Leader(Stopped::After), true);
}

#[test]
fn k8_k9_whenever_the_server_dies_an_administrators_cordon_stays() {
    at_each_write(Dies::Server(Stopped::Before), true);
    at_each_write(Dies::Server(Stopped::After), true);
}

#[test]
fn k9_an_agent_that_dies_at_any_write_strands_nothing() {
    at_each_write(Dies::Agent, false);
}
