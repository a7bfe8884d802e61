//! Pods that find no room wake a node that has it.

use std::time::Duration;

use tokio::time::sleep;
use vmstation_protocol::{Activity, NodeState, Stage, WakeDocument, WakeOutcome};

use crate::{
    on_both_versions,
    scene::{Kubelet, NewNode, Scene, pod},
    wake_server::{WakeServer, settings},
};

/// Longer than a pod has to wait before it counts.
const SETTLED: Duration = Duration::from_secs(8);

fn state(server: &WakeServer, node: &str) -> NodeState {
    let status = server.hub.status();
    let node = status.nodes.iter().find(|known| known.name.as_str() == node);
    node.unwrap().state
}

fn last_wake(server: &WakeServer, node: &str) -> WakeDocument {
    let status = server.hub.status();
    let node = status.nodes.into_iter().find(|known| known.name.as_str() == node);
    node.unwrap().last_wake.unwrap()
}

/// Puts a node to sleep.
async fn sleeps(cluster: &Scene, server: &WakeServer, node: &str) {
    let kubelet = Kubelet::start(cluster, node, &[]);
    server.grant_in_turn(node).await;
    drop(kubelet);
    server.hears(node, Activity::Sleeping, 0);
    cluster.until("asleep", || cluster.is_tainted(node)).await;
}

#[test]
fn a_pod_without_room_wakes_the_node_that_just_suffices() {
    on_both_versions(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster
            .new_node("w1", NewNode::new("w1").allocatable("cpu", "32"))
            .await;
        cluster.new_node("w2", NewNode::new("w2").allocatable("cpu", "8")).await;
        cluster.new_node("w3", NewNode::new("w3").allocatable("cpu", "2")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        for node in ["w1", "w2", "w3"] {
            sleeps(&cluster, &server, node).await;
        }
        cluster.pod_without_room(pod("huge").requests("cpu", "64")).await;
        cluster.pod_without_room(pod("big").requests("cpu", "6")).await;
        cluster
            .until("w2 is woken", || async { state(&server, "w2") == NodeState::Waking })
            .await;
        assert_eq!(
            ["w1", "w3"].map(|node| state(&server, node)),
            [NodeState::GoingToSleep; 2]
        );
        cluster
            .until("it is on record", || async {
                cluster.annotation("w2", "power-state").await.as_deref() == Some("waking")
            })
            .await;
        server.hears("w2", Activity::Busy, 1);
        let _kubelet = Kubelet::start(&cluster, "w2", &[]);
        cluster.until("released", || cluster.is_clean("w2")).await;
        assert!(!cluster.is_cordoned("w2").await);
        assert!(cluster.annotation("w2", "woken").await.is_some());
        cluster
            .until("the wake is over", || async {
                last_wake(&server, "w2").outcome != WakeOutcome::Waking
            })
            .await;
        let wake = last_wake(&server, "w2");
        let stages: Vec<_> = wake.stages.iter().map(|stage| stage.stage).collect();
        assert_eq!(stages, [Stage::FrameSent, Stage::AgentReport, Stage::Ready]);
        assert_eq!(wake.outcome, WakeOutcome::Awake);
        assert!(cluster.events("w2").await.iter().any(|reason| reason == "WokenForPods"));
    });
}

#[test]
fn k15_pods_that_were_moved_wake_nothing() {
    on_both_versions(|cluster| async move {
        for counts in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let name = if counts { "w2" } else { "w1" };
            cluster.node(name).await;
            cluster.pod(pod(&format!("web-{name}")).on(name)).await;
            let mut settings = settings();
            settings.demand.moved = counts;
            let server = WakeServer::with(&cluster, folder.path(), settings).await;
            sleeps(&cluster, &server, name).await;
            // Its ReplicaSet makes another, for which there is no room but where the first one was.
            cluster
                .pod_without_room(pod(&format!("again-{name}")).requests("cpu", "3500m"))
                .await;
            if counts {
                cluster
                    .until("it is woken", || async { state(&server, name) == NodeState::Waking })
                    .await;
            } else {
                sleep(SETTLED).await;
                assert_eq!(state(&server, name), NodeState::GoingToSleep);
            }
        }
    });
}
