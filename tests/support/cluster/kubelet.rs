//! Plays the kubelets of some nodes: lets pods go that are being deleted and, if it is told to, renews Leases, runs pods and says that its
//! nodes are ready. Nothing else.
//!
//! [`Kubelet`] owns a thread with a client of its own, which asks under [`AGENT`]; it ends when dropped. It never makes a pod or a node.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use vmstation_agent::clock::BootTime;

use super::{Cluster, objects};

/// Its `User-Agent`, by which requests of the subject and of the stage are told apart.
pub(crate) const AGENT: &str = "trial-kubelet";

const EVERY: Duration = Duration::from_millis(50);

/// How often Leases are renewed; a real kubelet does it every ten seconds.
const RENEWED_EVERY: Duration = Duration::from_millis(500);

/// The kubelets of some nodes.
pub(crate) struct Kubelet {
    orders: Arc<Mutex<Orders>>,
    thread: Option<JoinHandle<()>>,
}

struct Orders {
    nodes: BTreeSet<String>,
    takes: Duration,
    stuck: BTreeSet<(String, String)>,
    renews: bool,
    runs: bool,
    is_over: bool,
}

impl Kubelet {
    /// Finishes pods of these nodes at once, and renews no Leases.
    pub(crate) fn start(cluster: &Cluster, nodes: &[&str]) -> Self {
        let orders = Arc::new(Mutex::new(Orders {
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
            takes: Duration::ZERO,
            stuck: BTreeSet::new(),
            renews: false,
            runs: false,
            is_over: false,
        }));
        let kubeconfig = cluster.kubeconfig().to_owned();
        let obeyed = Arc::clone(&orders);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let config = Kubeconfig::read_from(kubeconfig).unwrap();
                let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
                    .await
                    .unwrap();
                config.default_retry = false;
                config.headers.push((hyper::header::USER_AGENT, AGENT.parse().unwrap()));
                work(&Client::try_from(config).unwrap(), &obeyed).await;
            });
        });
        Self {
            orders,
            thread: Some(thread),
        }
    }

    /// Pods take this long to end.
    pub(crate) fn finish_after(&self, takes: Duration) {
        locked(&self.orders).takes = takes;
    }

    /// This pod never ends.
    pub(crate) fn leave_stuck(&self, namespace: &str, name: &str) {
        locked(&self.orders).stuck.insert((namespace.into(), name.into()));
    }

    /// Takes back [`Self::leave_stuck`].
    pub(crate) fn release(&self, namespace: &str, name: &str) {
        locked(&self.orders).stuck.remove(&(namespace.into(), name.into()));
    }

    /// Whether it renews the Leases of its nodes.
    pub(crate) fn renew_leases(&self, renews: bool) {
        locked(&self.orders).renews = renews;
    }

    /// Whether it runs the pods that are bound to its nodes, and says that these are ready.
    pub(crate) fn run_pods(&self, runs: bool) {
        locked(&self.orders).runs = runs;
    }

    /// The node's kubelet stops, as with a node that sleeps.
    pub(crate) fn leave(&self, node: &str) {
        locked(&self.orders).nodes.remove(node);
    }

    /// The node's kubelet starts.
    pub(crate) fn join(&self, node: &str) {
        locked(&self.orders).nodes.insert(node.into());
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        locked(&self.orders).is_over = true;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn locked(orders: &Mutex<Orders>) -> MutexGuard<'_, Orders> {
    orders.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn work(client: &Client, orders: &Mutex<Orders>) {
    let mut renewed: Option<BootTime> = None;
    let mut ending: Vec<(String, BootTime)> = Vec::new();
    loop {
        let (nodes, takes, stuck, renews, runs) = {
            let orders = locked(orders);
            if orders.is_over {
                return;
            }
            (
                orders.nodes.clone(),
                orders.takes,
                orders.stuck.clone(),
                orders.renews,
                orders.runs,
            )
        };
        let now = BootTime::now();
        if renews && renewed.is_none_or(|renewed| now.since(renewed) >= RENEWED_EVERY) {
            for node in &nodes {
                objects::renew_lease(client, node).await;
            }
            renewed = Some(now);
            if runs {
                say_ready(client, &nodes).await;
            }
        }
        // A server that a trial makes fail is asked again.
        let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await;
        let pods = pods.map(|pods| pods.items).unwrap_or_default();
        for pod in &pods {
            let of_ours = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            let is_ours = of_ours.is_some_and(|node| nodes.contains(node));
            let metadata = &pod.metadata;
            let (Some(namespace), Some(name), Some(uid)) = (&metadata.namespace, &metadata.name, &metadata.uid) else {
                continue;
            };
            if is_ours && runs && metadata.deletion_timestamp.is_none() && !objects::is_ready(pod) {
                objects::set_phase(client, namespace, name, "Running", true).await;
            }
            if !is_ours || metadata.deletion_timestamp.is_none() || stuck.contains(&(namespace.clone(), name.clone())) {
                continue;
            }
            let since = match ending.iter().find(|(known, _)| known == uid) {
                Some((_, since)) => *since,
                None => {
                    ending.push((uid.clone(), now));
                    now
                }
            };
            if now.since(since) >= takes {
                let ours = DeleteParams::default().grace_period(0);
                let _gone_already = Api::<Pod>::namespaced(client.clone(), namespace)
                    .delete(name, &ours)
                    .await;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Of those that are taken for something else.
async fn say_ready(client: &Client, nodes: &BTreeSet<String>) {
    for node in nodes {
        let Ok(found) = Api::<Node>::all(client.clone()).get(node).await else {
            continue;
        };
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        if !conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        {
            objects::set_ready(client, node, true).await;
        }
    }
}
