//! One node's life, and the death of the wake server that led it.

use std::{cell::Cell, convert::Infallible, fmt, time::Duration};

use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinHandle, time::sleep};
use vmstation_protocol::{Leave, WakeDocument, WakeOutcome};
use vmstation_wake_server::{cluster::rights::RIGHTS, permission::Terms};

use crate::{
    cluster::{
        Cluster,
        kube_fake::{KubeFake, Rule, Stopped},
    },
    machine::{Agent, Card, MAC, NODE},
    scene::{Kubelet, Scene, pod},
    wake_program::{Program, ask},
};

const SERVER: &str = "vmstation-wake-server";
/// Of the server; the shortest that can be configured.
const LEAVE: Duration = Duration::from_secs(10);
/// The leader of a loaded machine renews late, and must not lose its Lease by that; otherwise the shortest.
const SETTINGS: &str =
    "lease_duration = \"10s\"\nrenew = \"500ms\"\n[sleep]\nleave = \"10s\"\n[wake]\nresend = [\"0s\", \"1s\"]\n";
const WAKE: &str = "/wake/w1?verify=true";
const LOOK: Duration = Duration::from_millis(50);
/// When a life hangs; a server that takes over waits for more than a minute for leave to be over that another may have given.
const LIMIT: Duration = Duration::from_mins(3);

/// What is to happen in a life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The leader dies at this write, counted from 0.
    pub(crate) number: usize,
    pub(crate) when: Stopped,
    pub(crate) is_cordoned_by_others: bool,
    /// Packets until the card wakes its machine: one that is still on its way into sleep misses the first.
    pub(crate) packets: u32,
    /// Whether everybody asks the follower, which passes it on.
    pub(crate) through_follower: bool,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) struct Lived {
    /// Writes of all servers but for Leases.
    pub(crate) writes: usize,
    /// Where the node was by its record when the leader died; none: it did not.
    pub(crate) died: Option<String>,
    /// Wakes of the server that took over.
    pub(crate) wakes: u32,
}

struct Life {
    plan: Plan,
    // Before the API server: it asks that.
    kubelet: Cell<Option<Kubelet>>,
    scene: Scene,
    card: Card,
    agent: Agent,
    servers: [Program; 2],
    /// Suspended.
    sleeps: Cell<bool>,
    /// Somebody ordered a wake; of the leader, and of the other when that was dead.
    is_ordered: Cell<bool>,
    is_ordered_again: Cell<bool>,
    _folder: TempDir,
}

/// Passes a life by the plan. `turns`: how many do something at a time.
pub(crate) async fn pass(plan: Plan, turns: &Semaphore) -> Lived {
    let turn = turns.acquire().await.unwrap();
    let mut life = Life::new(plan, Cluster::start_fake()).await;
    drop(turn);
    may_give_leave().await;
    let turn = turns.acquire().await.unwrap();
    life.kubelet.set(Some(life.kubelet()));
    life.fake().stop_at(SERVER, plan.number, plan.when);
    let is_stopped = async {
        while !life.fake().is_stopped() {
            sleep(LOOK / 5).await;
        }
    };
    let stopped = tokio::select! {
        () = life.passes() => false,
        () = is_stopped => true,
        never = life.watches_the_cordon() => match never {},
    };
    let mut died = None;
    if stopped {
        life.servers[0].kill();
        life.fake().stop_nobody();
        drop(turn);
        died = Some(life.state().await);
        tokio::select! {
            () = life.goes_on() => {}
            never = life.watches_the_cordon() => match never {},
        }
    }
    let wakes = life.is_over(died.as_deref()).await;
    Lived {
        writes: life.writes(),
        died,
        wakes,
    }
}

/// The same with nobody dying, on the real API server where there is one.
pub(crate) async fn pass_undisturbed() {
    let plan = Plan {
        number: usize::MAX,
        when: Stopped::Never,
        is_cordoned_by_others: false,
        packets: 1,
        through_follower: true,
    };
    let life = Life::new(plan, Cluster::start()).await;
    may_give_leave().await;
    life.kubelet.set(Some(life.kubelet()));
    tokio::select! {
        () = life.passes() => {}
        never = life.watches_the_cordon() => match never {},
    }
    life.is_over(None).await;
}

/// Leave of a server before it may hold.
async fn may_give_leave() {
    sleep(LEAVE + Terms::default().entering).await;
}

impl Life {
    async fn new(plan: Plan, cluster: Cluster) -> Self {
        let scene = Scene::set_on(cluster).await;
        let rights: Vec<_> = RIGHTS.iter().map(Rule::of).collect();
        let access = scene.cluster.user("vmstation-wake-server", &rights).await;
        scene.node(NODE).await;
        scene.pod(pod("web").on(NODE)).await;
        scene.pod(pod("done").on(NODE).unmanaged().phase("Succeeded")).await;
        if plan.is_cordoned_by_others {
            scene.kubectl_cordons(NODE, true).await;
        }
        let card = Card::new().await;
        let folder = tempfile::tempdir().unwrap();
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        // Through loopback alone, wherever the host's routes lead.
        let nodes = format!("[[node]]\nname = \"{NODE}\"\nmac = \"{mac}\"\ninterface = \"lo\"\n");
        let start = |name, port| {
            let settings = format!("{SETTINGS}udp_ports = [{port}]\n");
            Program::start(folder.path(), name, &nodes, &access, &settings)
        };
        let leader = start("leader", card.ports[0]);
        leader.leads(1).await;
        let follower = start("follower", card.ports[1]);
        follower.leads(0).await;
        let mut addresses = [leader.address(), follower.address()];
        if plan.through_follower {
            addresses.reverse();
        }
        Self {
            plan,
            kubelet: Cell::new(None),
            scene,
            card,
            agent: Agent::start(addresses),
            servers: [leader, follower],
            sleeps: Cell::new(false),
            is_ordered: Cell::new(false),
            is_ordered_again: Cell::new(false),
            _folder: folder,
        }
    }

    fn fake(&self) -> &KubeFake {
        self.scene.fake().unwrap()
    }

    fn kubelet(&self) -> Kubelet {
        Kubelet::start(&self.scene, NODE, &[])
    }

    fn writes(&self) -> usize {
        let asked = self.fake().requests().into_iter();
        asked
            .filter(|asked| asked.agent.starts_with(SERVER) && asked.method != "GET" && !asked.path.contains("/leases"))
            .count()
    }

    /// From the question for leave until nothing is left of it, with nobody dying. Dropped wherever somebody does.
    async fn passes(&self) {
        assert!(self.is_granted().await, "no leave: {self}");
        self.falls_asleep();
        self.until_state("asleep").await;
        self.scene.ready(NODE, false).await;
        let server = &self.servers[usize::from(self.plan.through_follower)];
        self.is_ordered.set(true);
        let wake = orders_wake(server);
        self.card.hears(self.plan.packets).await;
        self.until_state("waking").await;
        self.comes_back().await;
        is_awake(wake).await;
        self.until_told("Awake").await;
    }

    /// Whether it may sleep.
    async fn is_granted(&self) -> bool {
        loop {
            match self.agent.asks_leave().await {
                Some(Leave::Granted { .. }) => return true,
                // A loaded server begins late.
                Some(Leave::Refused { reason, .. }) if reason.contains("before the wake server started") => {
                    sleep(Duration::from_secs(1)).await;
                }
                Some(Leave::Refused { reason, .. }) => panic!("no leave: {reason}: {self}"),
                None => return false,
            }
        }
    }

    fn falls_asleep(&self) {
        self.sleeps.set(true);
        self.kubelet.set(None);
        self.agent.sleeps();
    }

    /// The machine is called, and its kubelet and its agent are back.
    async fn comes_back(&self) {
        assert!(
            self.scene.is_cordoned(NODE).await,
            "a sleeper without its cordon: {self}"
        );
        self.sleeps.set(false);
        self.agent.comes_back();
        self.kubelet.set(Some(self.kubelet()));
        self.scene.ready(NODE, true).await;
    }

    /// The leader is dead: what it was about is the other's.
    async fn goes_on(&self) {
        let next = &self.servers[1];
        let mut wake = None;
        if !self.sleeps.get() {
            // It has no leave, or is back; what it was about to say is not lost.
            self.agent.stays();
            self.scene.ready(NODE, true).await;
            next.leads(1).await;
        } else if self.is_ordered.get() && self.card.heard()[0] >= self.plan.packets {
            self.comes_back().await;
            next.leads(1).await;
        } else {
            next.leads(1).await;
            // A wake that is on record the next server carries on unasked; one that is not has to be ordered again.
            if self.state().await != "waking" {
                self.until_state("asleep").await;
                self.scene.ready(NODE, false).await;
                assert_eq!(self.card.heard()[1], 0, "called, and no order is known: {self}");
                self.is_ordered_again.set(true);
                wake = Some(orders_wake(next));
            }
            let before = self.card.heard()[0];
            self.card.hears(before + 1).await;
            self.until_state("waking").await;
            self.comes_back().await;
        }
        let scene = &self.scene;
        self.until("nothing of ours", || scene.is_clean(NODE)).await;
        if let Some(wake) = wake {
            is_awake(wake).await;
        }
    }

    /// The end of every life. How often the server that took over woke the node.
    async fn is_over(&self, died: Option<&str>) -> u32 {
        let scene = &self.scene;
        self.until("nothing of ours", || scene.is_clean(NODE)).await;
        assert_eq!(
            scene.is_cordoned(NODE).await,
            self.plan.is_cordoned_by_others,
            "its cordon: {self}"
        );
        let next = &self.servers[1];
        self.until("all wakes are over", || async {
            let metrics = next.ask("GET", "/metrics").await;
            value(&metrics, "vmstation_wake_nodes{state=\"waking\"}") == 0
                && value(&metrics, "vmstation_wake_packets_total") == self.card.heard()[1]
        })
        .await;
        let metrics = next.ask("GET", "/metrics").await;
        let wakes = value(&metrics, "vmstation_wake_wakes_total");
        let [_, heard] = self.card.heard();
        let may_wake = died == Some("waking") || self.is_ordered_again.get();
        assert!(wakes <= u32::from(may_wake), "{wakes} wakes: {self}");
        assert_eq!(wakes > 0, heard > 0, "{heard} packets of {wakes} wakes: {self}");
        let events = scene.events(NODE).await;
        let count = |reason: &str| events.iter().filter(|event| *event == reason).count();
        assert_eq!(count("WakeFailed"), 0, "{events:?}: {self}");
        for reason in ["Asleep", "Waking", "Awake"] {
            assert!(count(reason) <= 1, "{events:?}: {self}");
        }
        wakes
    }

    /// Never ends; panics when somebody's cordon is gone who needs it.
    async fn watches_the_cordon(&self) -> Infallible {
        loop {
            let slept = self.sleeps.get();
            let is_cordoned = self.scene.is_cordoned(NODE).await;
            let needs = self.plan.is_cordoned_by_others || slept && self.sleeps.get();
            assert!(is_cordoned || !needs, "a lost cordon: {self}");
            sleep(2 * LOOK).await;
        }
    }

    /// By the node's record; empty: there is none.
    async fn state(&self) -> String {
        self.scene.annotation(NODE, "power-state").await.unwrap_or_default()
    }

    async fn until_state(&self, state: &str) {
        self.until(state, || async { self.state().await == state }).await;
    }

    async fn until_told(&self, reason: &str) {
        let told = || async { self.scene.events(NODE).await.iter().any(|event| event == reason) };
        self.until(reason, told).await;
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, mut is_so: impl FnMut() -> F) {
        let waiting = async {
            while !is_so().await {
                sleep(LOOK).await;
            }
        };
        let came = tokio::time::timeout(LIMIT, waiting).await;
        assert!(came.is_ok(), "never: {what}: {self}");
    }
}

/// What the servers said, for whoever has to find out why.
impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [leader, follower] = self.servers.each_ref().map(Program::log);
        write!(f, "{:?}\nleader:\n{leader}\nfollower:\n{follower}\n", self.plan)
    }
}

fn orders_wake(server: &Program) -> JoinHandle<String> {
    let address = server.address();
    tokio::spawn(async move { ask(address, "POST", WAKE, "").await })
}

/// Whoever ordered the wake hears of its end.
async fn is_awake(wake: JoinHandle<String>) {
    let answer = wake.await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let document: Result<WakeDocument, _> = serde_json::from_str(body);
    let outcome = document.map(|document| document.outcome);
    assert!(matches!(outcome, Ok(WakeOutcome::Awake)), "{answer}");
}

/// The sum of a metric over its labels.
fn value(metrics: &str, name: &str) -> u32 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit_once(' '));
    values.map(|(_, value)| value.parse::<u32>().unwrap()).sum()
}
