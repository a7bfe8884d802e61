//! With the real scheduler and the real controllers, which do what the other trials play: they make pods again, place them, count budgets,
//! and find that a node that sleeps does not answer. The wake server has the rights of its manifest and no more.
//!
//! Left out, with a word, unless `KUBEBUILDER_ASSETS` has `kube-scheduler` and `kube-controller-manager` as well.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::sleep;
use vmstation_protocol::{Activity, NodeState};
use vmstation_wake_server::{
    cluster::rights::RIGHTS,
    config::{Mode, SleepSettings},
};

use crate::{
    cluster::{Cluster, kube_fake::Rule, kubelet::Kubelet, objects},
    scene::Scene,
    wake_server::{LEAVE, WakeServer, settings},
};

/// Longer than a pod has to wait before it counts, and than its conditions take to settle.
const SETTLED: Duration = Duration::from_secs(15);

/// `w1`, which is to sleep, and `spare`; both are ready and run what is bound to them.
struct Place {
    scene: Scene,
    client: Client,
    kubelet: Kubelet,
    server: WakeServer,
    _folder: tempfile::TempDir,
}

/// Runs a trial where there is a control plane.
fn on_control_plane<F: Future<Output = ()>>(settings: SleepSettings, trial: impl FnOnce(Place) -> F) {
    let Some(cluster) = Cluster::with_control_plane() else {
        eprintln!("left out: there is no kube-scheduler and kube-controller-manager");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let place = Place::set(cluster, settings).await;
        trial(place).await;
    });
}

impl Place {
    async fn set(cluster: Cluster, settings: SleepSettings) -> Self {
        let scene = Scene::set_on(cluster).await;
        scene.node("w1").await;
        let client = scene.cluster.client().await;
        let kubelet = Kubelet::start(&scene.cluster, &["w1", "spare"]);
        kubelet.renew_leases(true);
        kubelet.run_pods(true);
        let rights: Vec<_> = RIGHTS.iter().map(Rule::of).collect();
        let access = scene.cluster.user("vmstation-wake-server", &rights).await;
        let folder = tempfile::tempdir().unwrap();
        let server = WakeServer::with_access(&access, folder.path(), settings).await;
        sleep(3 * LEAVE).await;
        let place = Self {
            scene,
            client,
            kubelet,
            server,
            _folder: folder,
        };
        place.network().await;
        place
    }

    /// As the plugins of container networks run: the node counts as back only with it.
    async fn network(&self) {
        let labels = json!({"app": "network"});
        let set: DaemonSet = objects::of(json!({
            "metadata": {"name": "network"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "hostNetwork": true, "priorityClassName": "system-node-critical", "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": "pause"}],
            }}},
        }));
        let sets = Api::namespaced(self.client.clone(), "kube-system");
        sets.create(&PostParams::default(), &set).await.unwrap();
        for node in ["w1", "spare"] {
            self.scene
                .until("its network runs", || async {
                    self.running_on(node).await == ["network"]
                })
                .await;
        }
    }

    /// One pod of it, on `w1`.
    async fn deployment(&self, cpu: &str) {
        self.scene.kubectl_cordons("spare", true).await;
        let labels = json!({"app": "web"});
        let made: Deployment = objects::of(json!({
            "metadata": {"name": "web"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "main", "image": "pause", "resources": {"requests": {"cpu": cpu}}}],
            }}},
        }));
        let deployments = Api::namespaced(self.client.clone(), "default");
        deployments.create(&PostParams::default(), &made).await.unwrap();
        self.scene
            .until("it runs", || async {
                self.running_on("w1").await == ["network", "web"]
            })
            .await;
    }

    async fn scale(&self, replicas: u32) {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "default");
        let wanted = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments
            .patch("web", &PatchParams::default(), &wanted)
            .await
            .unwrap();
    }

    async fn pods_of(&self, app: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let of_app = ListParams::default().labels(&format!("app={app}"));
        pods.list(&of_app).await.unwrap().items
    }

    /// The apps of the pods that run on a node, in order.
    async fn running_on(&self, node: &str) -> Vec<String> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let on = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = pods.list(&on).await.unwrap().items.into_iter();
        let running = pods.filter(|pod| pod.status.as_ref().unwrap().phase.as_deref() == Some("Running"));
        let mut apps: Vec<_> = running.map(|pod| pod.metadata.labels.unwrap()["app"].clone()).collect();
        apps.sort();
        apps
    }

    async fn is_given_up_by_the_cluster(&self, node: &str) -> bool {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let taints = nodes.get(node).await.unwrap().spec.unwrap().taints;
        let is_unreachable = |key: &str, effect: &str| key == "node.kubernetes.io/unreachable" && effect == "NoExecute";
        taints
            .into_iter()
            .flatten()
            .any(|taint| is_unreachable(&taint.key, &taint.effect))
    }

    /// `w1` has leave, suspends, and does not answer.
    async fn sleeps(&self) {
        self.server.grant("w1").await;
        self.kubelet.leave("w1");
        self.server.hears("w1", Activity::Sleeping, 0);
        let scene = &self.scene;
        scene.until("asleep", || scene.is_tainted("w1")).await;
        scene
            .until("unreachable", || self.is_given_up_by_the_cluster("w1"))
            .await;
    }

    async fn comes_back(&self) {
        self.server.hears("w1", Activity::Busy, 1);
        self.kubelet.join("w1");
        let scene = &self.scene;
        scene.until("released", || scene.is_clean("w1")).await;
        assert!(!scene.is_cordoned("w1").await);
        scene
            .until("answers again", || async {
                !self.is_given_up_by_the_cluster("w1").await
            })
            .await;
    }

    fn state(&self) -> NodeState {
        let status = self.server.hub.status();
        let node = status.nodes.iter().find(|node| node.name.as_str() == "w1");
        node.unwrap().state
    }

    async fn is_woken(&self) {
        self.scene
            .until("woken", || async { self.state() == NodeState::Waking })
            .await;
    }
}

#[test]
fn a_node_is_emptied_sleeps_and_is_woken_for_more_pods_of_the_same_set() {
    on_control_plane(settings(), |place| async move {
        place.deployment("500m").await;
        let budget: PodDisruptionBudget = objects::of(json!({
            "metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
        }));
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(place.client.clone(), "default");
        budgets.create(&PostParams::default(), &budget).await.unwrap();
        place.scene.kubectl_cordons("spare", false).await;
        // Until its controller has counted, every eviction is refused, and afterwards as well.
        let why = place.server.refusal("w1").await;
        assert!(why.contains("cannot be evicted now"), "{why}");
        assert!(!place.scene.is_cordoned("w1").await);
        budgets.delete("web", &DeleteParams::default()).await.unwrap();

        place.sleeps().await;
        place
            .scene
            .until("made again elsewhere", || async {
                place.running_on("spare").await == ["network", "web"]
            })
            .await;
        let apps = place.running_on("w1").await;
        assert_eq!(apps, ["network"], "what is of the node itself stays");

        // Five of them have room.
        place.scale(8).await;
        place.is_woken().await;
        place.comes_back().await;
        place
            .scene
            .until("all run", || async {
                let [here, there] = [place.running_on("w1").await, place.running_on("spare").await];
                here.len() + there.len() == 8 + 2
            })
            .await;
        assert!(place.running_on("w1").await.contains(&"web".into()));
        let events = place.scene.events("w1").await;
        for expected in ["SleepGranted", "Asleep", "WokenForPods", "Awake"] {
            assert!(events.iter().any(|reason| reason == expected), "{expected}: {events:?}");
        }
    });
}

#[test]
fn k15_a_frozen_pod_that_the_cluster_makes_again_does_not_wake_its_node() {
    let mut settings = settings();
    settings.pods.mode = Mode::Freeze;
    on_control_plane(settings, |place| async move {
        place.deployment("1").await;
        place.sleeps().await;
        let scene = &place.scene;
        scene
            .until("the cluster makes another", || async {
                place.pods_of("web").await.len() == 2
            })
            .await;
        sleep(SETTLED).await;
        assert_eq!(
            place.state(),
            NodeState::GoingToSleep,
            "woken for the pod that sleeps there"
        );
        place.scale(2).await;
        place.is_woken().await;
        place.comes_back().await;
        scene
            .until("both run", || async {
                place.running_on("w1").await == ["network", "web", "web"]
            })
            .await;
    });
}
