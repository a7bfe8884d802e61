//! A cluster with its administrator's client, and what a test looks at there.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

pub(crate) use crate::cluster::objects::{NewNode, NewPod};
use crate::cluster::{Cluster, kube_fake::KubeFake, kubelet, objects};

/// When a test hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    client: Client,
}

/// A pod of a ReplicaSet, in the namespace `default`, with its name as label `app`.
pub(crate) fn pod(name: &str) -> NewPod {
    NewPod::new("default", name)
        .owned_by("ReplicaSet", "web")
        .label("app", name)
}

/// Does for a node what its kubelet does; it ends with the value.
pub(crate) struct Kubelet(#[expect(dead_code, reason = "its end ends it")] kubelet::Kubelet);

impl Kubelet {
    /// All but the pods with these names end at once.
    pub(crate) fn start(scene: &Scene, node: &str, stuck: &[&str]) -> Self {
        let kubelet = kubelet::Kubelet::start(&scene.cluster, &[node]);
        stuck.iter().for_each(|name| kubelet.leave_stuck("default", name));
        kubelet.renew_leases(true);
        Self(kubelet)
    }
}

impl Scene {
    pub(crate) async fn set_on(cluster: Cluster) -> Self {
        let client = cluster.client().await;
        let scene = Self { cluster, client };
        // Room for what is moved.
        let spare = NewNode::new("spare").allocatable("cpu", "3");
        scene.new_node("spare", spare).await;
        scene
    }

    /// The fake, if it is one.
    pub(crate) fn fake(&self) -> Option<&KubeFake> {
        self.cluster.fake()
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    async fn get(&self, name: &str) -> Node {
        self.nodes().get(name).await.unwrap()
    }

    /// A Node that is ready, with a Lease.
    pub(crate) async fn node(&self, name: &str) {
        self.new_node(name, NewNode::new(name)).await;
    }

    pub(crate) async fn new_node(&self, name: &str, node: NewNode) {
        node.create(&self.client).await;
        self.renew_lease(name).await;
    }

    /// Whether the kubelet of a node says that it is ready.
    pub(crate) async fn ready(&self, name: &str, ready: bool) {
        objects::set_ready(&self.client, name, ready).await;
    }

    /// A kubelet lives.
    pub(crate) async fn renew_lease(&self, name: &str) {
        objects::renew_lease(&self.client, name).await;
    }

    pub(crate) async fn pod(&self, pod: NewPod) {
        pod.create(&self.client).await;
    }

    /// A DaemonSet, whose controller does not run.
    pub(crate) async fn daemon_set(&self, name: &str) {
        objects::daemon_set(&self.client, "default", name).await;
    }

    /// A pod is gone at once.
    pub(crate) async fn forget(&self, name: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete(name, &at_once).await.unwrap();
    }

    /// A pod for which the scheduler finds no node.
    pub(crate) async fn pod_without_room(&self, pod: NewPod) {
        let pod = pod.create(&self.client).await;
        objects::mark_unschedulable(&self.client, "default", &pod.metadata.name.unwrap()).await;
    }

    /// A budget over the pods with label `app: APP`. No controller counts: it allows this many.
    pub(crate) async fn budget(&self, name: &str, app: &str, allowed: i32) {
        objects::budget(&self.client, "default", name, ("app", app), allowed).await;
    }

    /// What an administrator does with kubectl, which leaves a node alone that is as it should be. Whether it was not.
    pub(crate) async fn kubectl_cordons(&self, name: &str, cordons: bool) -> bool {
        let params = PatchParams {
            field_manager: Some("kubectl-cordon".into()),
            ..PatchParams::default()
        };
        loop {
            let node = self.get(name).await;
            if node.spec.and_then(|spec| spec.unschedulable).unwrap_or_default() == cordons {
                return false;
            }
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "unschedulable": cordons.then_some(true) },
            });
            if self.nodes().patch(name, &params, &Patch::Merge(patch)).await.is_ok() {
                return true;
            }
        }
    }

    pub(crate) async fn is_cordoned(&self, name: &str) -> bool {
        let spec = self.get(name).await.spec;
        spec.and_then(|spec| spec.unschedulable).unwrap_or_default()
    }

    /// An annotation of ours.
    pub(crate) async fn annotation(&self, name: &str, key: &str) -> Option<String> {
        let annotations = self.get(name).await.metadata.annotations?;
        annotations.get(&format!("vmstation.io/{key}")).cloned()
    }

    /// Whether the taint of a sleeper is on the node.
    pub(crate) async fn is_tainted(&self, name: &str) -> bool {
        let taints = self.get(name).await.spec.and_then(|spec| spec.taints);
        let mut taints = taints.into_iter().flatten();
        taints.any(|taint| taint.key == "vmstation.io/asleep" && taint.effect == "NoSchedule")
    }

    /// Nothing of ours is on the node.
    pub(crate) async fn is_clean(&self, name: &str) -> bool {
        let node = self.get(name).await;
        let annotations = node.metadata.annotations.unwrap_or_default();
        let mut ours = annotations.keys().filter(|key| {
            key.starts_with("vmstation.io/") && !matches!(key.as_str(), "vmstation.io/woken" | "vmstation.io/hold")
        });
        ours.next().is_none() && !self.is_tainted(name).await
    }

    /// Names of the pods on a node.
    pub(crate) async fn pods_on(&self, node: &str) -> Vec<String> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let on = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = all.list(&on).await.unwrap();
        pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect()
    }

    /// Reasons of the Events of a node.
    pub(crate) async fn events(&self, node: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = events.list(&ListParams::default()).await.unwrap();
        let of = events
            .items
            .into_iter()
            .filter(|event| event.involved_object.name.as_deref() == Some(node));
        of.filter_map(|event| event.reason).collect()
    }

    /// Waits until it is so; panics if it never is.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, mut is_so: impl FnMut() -> F) {
        let waiting = async {
            while !is_so().await {
                sleep(LOOK).await;
            }
        };
        assert!(timeout(LIMIT, waiting).await.is_ok(), "never: {what}");
    }
}
