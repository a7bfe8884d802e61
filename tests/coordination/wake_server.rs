//! A wake server of a cluster, in this process, and the agents that ask it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use vmstation_protocol::{Activity, Leave, LeaveRequest, MacAddr, NodeName, Port, Report, SCHEMA, Transport, Waking};
use vmstation_wake_server::{
    clock::Moment,
    cluster::{
        Cluster as Client,
        connect::Connection,
        election::{Fence, Leadership, Term},
    },
    config::{Access, KubernetesSettings, SleepSettings, WakeSettings},
    hub::{Hub, Kubernetes, Parts},
    metrics::Metrics,
    notify::Notifier,
    permission::Terms,
    registry::{Node, Registry},
    store::Store,
    wake::Sent,
    waker::Air,
};

use crate::scene::Scene;

/// Leave that a server gives in these tests, and how long a suspend takes after it.
pub(crate) const LEAVE: Duration = Duration::from_secs(1);

pub(crate) struct WakeServer {
    pub(crate) hub: Arc<Hub>,
    keeps: JoinHandle<()>,
    _elected: watch::Sender<Leadership>,
}

/// Cards hear nothing.
struct Deaf;

impl Air for Deaf {
    fn send<'a>(&'a self, _node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        let sent = Sent {
            transport: Transport::Raw,
            interface: None,
            packets: 1,
            note: None,
        };
        Box::pin(std::future::ready(Ok(sent)))
    }

    fn answers(&self, _node: &Node) -> mpsc::Receiver<MacAddr> {
        mpsc::channel(1).1
    }
}

pub(crate) fn settings() -> SleepSettings {
    let mut settings = SleepSettings {
        terms: Terms {
            lifetime: LEAVE,
            entering: LEAVE,
            ..Terms::default()
        },
        ..SleepSettings::default()
    };
    settings.pods.drain_deadline = Duration::from_secs(20);
    settings
}

impl WakeServer {
    pub(crate) async fn start(cluster: &Scene, folder: &Path) -> Self {
        Self::with(cluster, folder, settings()).await
    }

    /// Of four workers and a master. It is a while old: no leave of an earlier one holds.
    pub(crate) async fn with(cluster: &Scene, folder: &Path, sleep: SleepSettings) -> Self {
        let server = Self::just_started(cluster, folder, sleep).await;
        tokio::time::sleep(3 * LEAVE).await;
        server
    }

    /// The same, just started.
    pub(crate) async fn just_started(cluster: &Scene, folder: &Path, sleep: SleepSettings) -> Self {
        Self::with_access(cluster.cluster.kubeconfig(), folder, sleep).await
    }

    /// The same, as whoever that access is of.
    pub(crate) async fn with_access(kubeconfig: &Path, folder: &Path, sleep: SleepSettings) -> Self {
        let nodes = folder.join("nodes.toml");
        let node = |n: usize| {
            let role = if n == 0 { "master" } else { "worker" };
            format!("[[node]]\nname = \"w{n}\"\nmac = \"02:00:00:00:00:0{n}\"\nrole = \"{role}\"\n")
        };
        fs::write(&nodes, (0..5).map(node).collect::<String>()).unwrap();
        let kubernetes = KubernetesSettings {
            access: Access::Kubeconfig(kubeconfig.into()),
            ..KubernetesSettings::default()
        };
        let connection = Arc::new(Connection::new(&kubernetes).await.unwrap());
        // The only server: elected for good.
        let acting = Leadership::Acting(Term {
            fence: Fence(1),
            acts_until: Moment::now().after(Duration::from_hours(1)),
        });
        let (elected, leadership) = watch::channel(acting);
        let hub = Hub::new(Parts {
            registry: Registry::load(std::slice::from_ref(&nodes)).unwrap(),
            registry_files: vec![nodes],
            wake: WakeSettings::default(),
            sleep,
            kubernetes: Some(Kubernetes::new(Client::new(connection, "master-1".into()), leadership)),
            lan: Arc::new(Deaf),
            store: Arc::new(Store::new(folder)),
            metrics: Arc::new(Metrics::new()),
            notifier: Notifier::default(),
        });
        let keeps = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.keep_cluster().await }
        });
        Self {
            hub,
            keeps,
            _elected: elected,
        }
    }

    /// As with kill -9: what it was about is not taken back by itself.
    pub(crate) fn dies(&self) {
        self.keeps.abort();
    }

    /// The agent of a node speaks.
    pub(crate) fn hears(&self, node: &str, activity: Activity, resumes: u64) {
        self.hub.report(&Report {
            schema: SCHEMA,
            node: node.parse().unwrap(),
            boot_id: "b".into(),
            resumes,
            activity,
            reasons: Vec::new(),
            ports: vec![Port {
                interface: "eth0".into(),
                mac: format!("02:00:00:00:00:0{}", &node[1..]).parse().unwrap(),
                waking: Waking::Armed,
            }],
            role: None,
            version: "0".into(),
        });
    }

    /// The agent of a node that is awake asks for leave.
    pub(crate) async fn asked(&self, node: &str) -> Leave {
        self.hears(node, Activity::GoingToSleep { in_s: 0 }, 0);
        let request = LeaveRequest {
            schema: SCHEMA,
            reason: "idle for 2 h".into(),
        };
        let name: NodeName = node.parse().unwrap();
        self.hub.ask_leave(&name, &request).await
    }

    pub(crate) async fn refusal(&self, node: &str) -> String {
        match self.asked(node).await {
            Leave::Refused { reason, .. } => reason,
            Leave::Granted { grant, .. } => panic!("{node} has leave: {grant}"),
        }
    }

    /// The same once another node of its group is out of the way.
    pub(crate) async fn grant_in_turn(&self, node: &str) -> u64 {
        tokio::time::sleep(2 * LEAVE).await;
        self.grant(node).await
    }

    pub(crate) async fn grant(&self, node: &str) -> u64 {
        match self.asked(node).await {
            Leave::Granted { grant, .. } => grant,
            Leave::Refused { reason, .. } => panic!("{node} is refused: {reason}"),
        }
    }
}

impl Drop for WakeServer {
    fn drop(&mut self) {
        self.keeps.abort();
    }
}
