//! What the API server is asked while nothing happens is bounded, whatever the number of nodes. Counts, no times: for the fake alone, which
//! tells what it was asked.

use std::{future::ready, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    cluster::kube_fake::{Asked, KubeFake, Rule},
    crowd, on_cluster,
    scene::{Scene, pod},
    wake_server::{WakeServer, settings},
};

const NODES: usize = 5_000;
/// Objects of a page of a list.
const PAGE: usize = 500;

/// What the wake server asked after the first `count` requests of everybody.
fn asked(fake: &KubeFake, count: usize) -> Vec<Asked> {
    let asked = fake.requests_since(count).into_iter();
    asked
        .filter(|asked| asked.agent.starts_with("vmstation-wake-server/"))
        .collect()
}

fn is_watched(fake: &KubeFake) -> bool {
    asked(fake, 0).iter().filter(|asked| asked.is_watch()).count() >= 2
}

/// A kubelet at rest says that it is well.
async fn heartbeat(client: &Client, node: &str, number: usize) {
    let nodes: Api<Node> = Api::all(client.clone());
    let at = format!("2026-01-01T02:{:02}:{:02}Z", number / 60 % 60, number % 60);
    let status = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": at}]}});
    let params = PatchParams::apply("kubelet");
    nodes
        .patch_status(node, &params, &Patch::Strategic(status))
        .await
        .unwrap();
}

/// Leaves what the server has to take back: once it has, it has seen all that was before.
async fn mark(scene: &Scene, client: &Client, node: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = json!({"metadata": {"annotations": {"vmstation.io/power-state": "draining"}}});
    let params = PatchParams::apply("trial");
    nodes.patch(node, &params, &Patch::Merge(patch)).await.unwrap();
    scene.until("the record is taken back", || scene.is_clean(node)).await;
}

#[test]
fn thousands_of_nodes_cost_one_list_and_one_watch() {
    on_cluster(|scene| async move {
        let Some(fake) = scene.fake() else { return };
        fake.put("/api/v1/nodes", (0..NODES).map(crowd::node));
        fake.put("/api/v1/pods", (0..NODES).map(|node| crowd::pod(node, 0)));
        let folder = tempfile::tempdir().unwrap();
        let _server = WakeServer::just_started(&scene, folder.path(), settings()).await;
        scene
            .until("nodes and pods are watched", || ready(is_watched(fake)))
            .await;
        let client = scene.cluster.client().await;
        mark(&scene, &client, "spare").await;
        let begun = asked(fake, 0);
        // The node of the scene is one more.
        let pages = (NODES + 1).div_ceil(PAGE);
        let lists = |path: &str| {
            begun
                .iter()
                .filter(|asked| !asked.is_watch() && asked.path == path)
                .collect::<Vec<_>>()
        };
        let (nodes, pods) = (lists("/api/v1/nodes"), lists("/api/v1/pods"));
        assert_eq!(nodes.len(), pages, "{nodes:?}");
        assert!(nodes.iter().all(|asked| asked.objects <= PAGE), "{nodes:?}");
        assert_eq!(nodes.iter().map(|asked| asked.objects).sum::<usize>(), NODES + 1);
        assert_eq!(pods.len(), 1, "{pods:?}");
        assert_eq!(pods[0].objects, 0, "only those without a node: {pods:?}");
        let watches: Vec<_> = begun.iter().filter(|asked| asked.is_watch()).collect();
        assert_eq!(watches.len(), 2, "{watches:?}");

        // What kubelets say, and the end of the watches, as the API server ends them after a time.
        let count = fake.requests().len();
        for number in 0..100 {
            heartbeat(&client, &crowd::name(number * 50), number).await;
        }
        fake.end_watches();
        for number in 100..200 {
            heartbeat(&client, &crowd::name(number * 25), number).await;
        }
        mark(&scene, &client, "spare").await;
        let later = asked(fake, count);
        let (watches, others): (Vec<_>, Vec<_>) = later.iter().partition(|asked| asked.is_watch());
        assert_eq!(watches.len(), 2, "each is begun again once: {watches:?}");
        assert!(
            watches.iter().all(|watch| watch.query.contains("resourceVersion=")),
            "{watches:?}"
        );
        // The record that was taken back, and its Event.
        let of_mark = |asked: &&&Asked| asked.path.ends_with("/nodes/spare") || asked.path.ends_with("/events");
        assert_eq!(others.len(), others.iter().filter(of_mark).count(), "{others:?}");
        assert!(others.len() <= 4, "{others:?}");
    });
}

#[test]
fn a_sleeper_that_is_not_ready_is_left_alone_until_its_cluster_says_otherwise() {
    on_cluster(|scene| async move {
        let Some(fake) = scene.fake() else { return };
        let mut node = crowd::node(0);
        node["metadata"]["annotations"]["vmstation.io/power-state"] = "asleep".into();
        node["spec"]["taints"] = json!([{"key": "vmstation.io/asleep", "effect": "NoSchedule"}]);
        node["status"]["conditions"][3]["status"] = "Unknown".into();
        fake.put("/api/v1/nodes", [node]);
        let folder = tempfile::tempdir().unwrap();
        let _server = WakeServer::just_started(&scene, folder.path(), settings()).await;
        scene
            .until("nodes and pods are watched", || ready(is_watched(fake)))
            .await;
        let client = scene.cluster.client().await;
        mark(&scene, &client, "spare").await;
        let name = crowd::name(0);
        let of_node = |asked: &Asked| asked.path.ends_with(&format!("/{name}"));
        assert!(!asked(fake, 0).iter().any(of_node), "{:?}", asked(fake, 0));
        // Its kubelet is back, and its agent is not: it is taken back all the same.
        scene.ready(&name, true).await;
        scene
            .until("its Lease is asked for", || ready(asked(fake, 0).iter().any(of_node)))
            .await;
        scene
            .until("it is taken back", || async {
                scene.renew_lease(&name).await;
                scene.is_clean(&name).await
            })
            .await;
    });
}

#[test]
fn pods_that_come_and_go_while_one_waits_bring_no_look_about() {
    on_cluster(|scene| async move {
        let Some(fake) = scene.fake() else { return };
        let folder = tempfile::tempdir().unwrap();
        let _server = WakeServer::just_started(&scene, folder.path(), settings()).await;
        scene
            .until("nodes and pods are watched", || ready(is_watched(fake)))
            .await;
        scene.pod_without_room(pod("large").requests("cpu", "999")).await;
        let looks = || {
            let all = asked(fake, 0);
            all.iter()
                .filter(|asked| {
                    asked.path == "/api/v1/nodes" && !asked.is_watch() && !asked.query.contains("continue=")
                })
                .count()
                - 1
        };
        scene.until("a first look", || ready(looks() >= 1)).await;
        // Looks are 2 s apart, then 4, 8, 16: without the others there is room for three in 14 s.
        for number in 0..28 {
            scene.pod(pod(&format!("job-{number}")).on("spare")).await;
            sleep(Duration::from_millis(500)).await;
        }
        assert!(looks() <= 4, "{} looks", looks());
    });
}

#[test]
fn k3_a_watch_that_is_refused_is_asked_for_ever_more_seldom() {
    on_cluster(|scene| async move {
        let Some(fake) = scene.fake() else { return };
        fake.forbid(Rule::new(&[""], &["nodes"], &["list"]));
        let folder = tempfile::tempdir().unwrap();
        let _server = WakeServer::just_started(&scene, folder.path(), settings()).await;
        let lists = || {
            asked(fake, 0)
                .iter()
                .filter(|asked| asked.path == "/api/v1/nodes")
                .count()
        };
        scene.until("it is asked for", || ready(lists() >= 1)).await;
        sleep(Duration::from_secs(12)).await;
        // At once, and after 0.8, 1.6, 3.2 and 6.4 s or more.
        assert!(lists() <= 5, "{} lists", lists());
    });
}
