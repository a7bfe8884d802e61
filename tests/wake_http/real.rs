//! The real routes before the real state, in a folder that ends with it. Only the network is none: no packet leaves.

use std::{fs, future::ready, sync::Arc, time::Duration};

use axum::Router;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::mpsc;
use vmstation_protocol::{MacAddr, Transport};
use vmstation_wake_server::{
    api::{Api, router},
    auth::Keys,
    config::{SleepSettings, WakeSettings},
    hub::{Hub, Parts},
    metrics::Metrics,
    notify::Notifier,
    registry::{Node, Registry},
    store::Store,
    wake::Sent,
    waker::Air,
};

pub(crate) const TOKEN: &str = "opensesame";
/// A name that the server is told to have.
pub(crate) const HOST_NAME: &str = "power.example.org";
/// Longest time that a wake is under way.
const DEADLINE: Duration = Duration::from_secs(1);

const NODES: &str = r#"
[[node]]
name = "master.cluster.example"
role = "master"
mac = "02:00:00:00:00:01"
address = "192.0.2.1"
[[node]]
name = "storage-01"
role = "storage"
mac = "02:00:00:00:00:02"
address = "192.0.2.2"
[[node]]
name = "worker-01"
role = "worker"
mac = "02:00:00:00:00:03"
address = "192.0.2.3"
"#;

/// What the cards of the nodes do.
#[derive(Clone, Copy)]
pub(crate) enum Cards {
    /// They answer at once.
    Answer,
    /// They never do.
    Sleep,
}

/// Keeps the folder of the state, as it lives as long as that.
struct Quiet {
    cards: Cards,
    _folder: TempDir,
}

impl Air for Quiet {
    fn send<'a>(&'a self, _node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        let sent = Sent {
            transport: Transport::Raw,
            interface: Some("lan0".into()),
            packets: 1,
            note: None,
        };
        Box::pin(ready(Ok(sent)))
    }

    fn answers(&self, node: &Node) -> mpsc::Receiver<MacAddr> {
        let (tell, answers) = mpsc::channel(1);
        match self.cards {
            Cards::Answer => tell.try_send(node.macs[0]).unwrap(),
            Cards::Sleep => {}
        }
        answers
    }
}

/// With operators' token [`TOKEN`], and three nodes that answer.
pub(crate) fn app() -> Router {
    with(Cards::Answer, Notifier::default())
}

/// The same with these cards, and somebody who hears of wakes that failed.
pub(crate) fn with(cards: Cards, notifier: Notifier) -> Router {
    let folder = tempfile::tempdir().unwrap();
    let nodes = folder.path().join("nodes.toml");
    fs::write(&nodes, NODES).unwrap();
    let store = Store::new(folder.path());
    let metrics = Arc::new(Metrics::new());
    let hub = Hub::new(Parts {
        registry: Registry::load(std::slice::from_ref(&nodes)).unwrap(),
        registry_files: vec![nodes],
        lan: Arc::new(Quiet { cards, _folder: folder }),
        wake: WakeSettings {
            deadline: DEADLINE,
            stagger: Duration::ZERO,
            resend: vec![Duration::ZERO],
            node_interval: Duration::ZERO,
            ..WakeSettings::default()
        },
        sleep: SleepSettings::default(),
        kubernetes: None,
        store: Arc::new(store),
        metrics: Arc::clone(&metrics),
        notifier,
    });
    router(Arc::new(Api {
        hub,
        keys: Keys::new(TOKEN, None).unwrap(),
        metrics,
        poll_timeout: Duration::from_mins(5),
        allow_from: None,
        status_from: None,
        host_names: vec![HOST_NAME.into()],
    }))
}
