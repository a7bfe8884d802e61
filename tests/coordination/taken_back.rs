//! What was begun and did not end in sleep is taken back, whatever ended it.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use vmstation_protocol::{Activity, NodeState, WakeOutcome};

use crate::{
    on_cluster,
    scene::{Kubelet, Scene, pod},
    wake_server::{WakeServer, settings},
};

async fn is_back(cluster: &Scene, node: &str) {
    cluster
        .until("nothing of ours is on the node", || cluster.is_clean(node))
        .await;
    assert!(!cluster.is_cordoned(node).await);
}

#[test]
fn k4_a_budget_that_closes_during_the_drain_ends_it() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        for name in ["a", "b"] {
            cluster.pod(pod(name).on("w1").label("app", "web")).await;
        }
        // One may go, and then none.
        cluster.budget("web", "web", 1).await;
        let mut settings = settings();
        settings.pods.drain_deadline = Duration::from_secs(4);
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        let _kubelet = Kubelet::start(&cluster, "w1", &[]);
        let why = server.refusal("w1").await;
        assert!(
            why.starts_with("the drain took too long; left: default/") && why.contains("disruption budget"),
            "{why}"
        );
        is_back(&cluster, "w1").await;
        assert_eq!(cluster.pods_on("w1").await.len(), 1);
        let why = server.refusal("w1").await;
        assert!(why.contains("it is left alone for"), "{why}");
    });
}

#[test]
fn k6_a_pod_that_is_stuck_ends_the_drain() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("stuck").on("w1")).await;
        cluster.pod(pod("goes").on("w1")).await;
        let mut settings = settings();
        settings.pods.drain_deadline = Duration::from_secs(4);
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        let _kubelet = Kubelet::start(&cluster, "w1", &["stuck"]);
        assert_eq!(
            server.refusal("w1").await,
            "the drain took too long; left: default/stuck"
        );
        is_back(&cluster, "w1").await;
    });
}

#[test]
fn k7_a_pod_that_comes_after_the_decision_ends_it() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("slow").on("w1")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let comes = async {
            cluster.until("w1 is cordoned", || cluster.is_cordoned("w1")).await;
            cluster.pod(pod("new").on("w1")).await;
        };
        let (why, ()) = tokio::join!(server.refusal("w1"), comes);
        assert_eq!(why, "a new pod came meanwhile: default/new");
        is_back(&cluster, "w1").await;
    });
}

#[test]
fn who_does_not_wait_for_leave_calls_the_drain_off() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("slow").on("w1")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        tokio::select! {
            leave = server.asked("w1") => panic!("{leave:?}"),
            () = cluster.until("w1 is cordoned", || cluster.is_cordoned("w1")) => {}
        }
        is_back(&cluster, "w1").await;
    });
}

#[test]
fn a_wake_calls_the_drain_off() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("stuck").on("w1")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let wanted = async {
            cluster.until("w1 is cordoned", || cluster.is_cordoned("w1")).await;
            server.hub.wake("w1", false).unwrap();
        };
        let (why, ()) = tokio::join!(server.refusal("w1"), wanted);
        assert_eq!(why, "it is wanted awake");
        is_back(&cluster, "w1").await;
    });
}

#[test]
fn leave_that_is_handed_back_is_taken_back() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let grant = server.grant("w1").await;
        // While it holds nothing is taken back.
        sleep(LOOK).await;
        assert!(cluster.is_cordoned("w1").await);
        server.hears("w1", Activity::Busy, 0);
        server.hub.hand_back(&"w1".parse().unwrap(), grant);
        is_back(&cluster, "w1").await;
    });
}

const LOOK: Duration = Duration::from_millis(500);

#[test]
fn k9_a_server_that_dies_during_a_drain_leaves_nothing_to_the_next() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.node("w2").await;
        cluster.kubectl_cordons("w2", true).await;
        cluster.pod(pod("slow").on("w1")).await;
        cluster.pod(pod("slower").on("w2")).await;
        for node in ["w1", "w2"] {
            let (first, second) = (tempfile::tempdir().unwrap(), folder.path().join(node));
            std::fs::create_dir(&second).unwrap();
            let server = WakeServer::start(&cluster, first.path()).await;
            {
                let asked = server.asked(node);
                tokio::pin!(asked);
                tokio::select! {
                    leave = &mut asked => panic!("{leave:?}"),
                    () = cluster.until("a record", || async { !cluster.is_clean(node).await }) => {}
                }
                // Nothing of it runs any more, nor what would take it back.
                server.dies();
            }
            sleep(LOOK).await;
            assert!(!cluster.is_clean(node).await);
            let _next = WakeServer::just_started(&cluster, &second, settings()).await;
            cluster.until("clean", || cluster.is_clean(node)).await;
            assert_eq!(cluster.is_cordoned(node).await, node == "w2");
        }
    });
}

#[test]
fn k9_after_a_grant_the_next_server_waits_until_it_knows() {
    on_cluster(|cluster| async move {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for node in ["w1", "w2"] {
            cluster.node(node).await;
        }
        for (node, sleeps) in [("w1", false), ("w2", true)] {
            let server = WakeServer::start(&cluster, first.path()).await;
            server.grant(node).await;
            server.dies();
            let next = WakeServer::just_started(&cluster, second.path(), settings()).await;
            if sleeps {
                next.hears(node, Activity::Sleeping, 0);
                cluster.until("asleep", || cluster.is_tainted(node)).await;
            } else {
                // It may be on its way to sleep.
                sleep(LOOK).await;
                assert!(cluster.is_cordoned(node).await);
                let _kubelet = Kubelet::start(&cluster, node, &[]);
                cluster.until("clean", || cluster.is_clean(node)).await;
                assert!(!cluster.is_cordoned(node).await);
            }
        }
    });
}

#[test]
fn k9_a_wake_is_carried_on_by_the_next_server() {
    on_cluster(|cluster| async move {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, first.path()).await;
        server.grant("w1").await;
        server.hears("w1", Activity::Sleeping, 0);
        cluster.until("asleep", || cluster.is_tainted("w1")).await;
        server.hub.wake("w1", true).unwrap();
        let is_waking = || async { cluster.annotation("w1", "power-state").await.as_deref() == Some("waking") };
        cluster.until("waking", is_waking).await;
        server.dies();
        drop(server);

        let next = WakeServer::just_started(&cluster, second.path(), settings()).await;
        let state = || {
            next.hub
                .status()
                .nodes
                .into_iter()
                .find(|node| node.name.as_str() == "w1")
                .unwrap()
        };
        cluster
            .until("carried on", || async { state().state == NodeState::Waking })
            .await;
        assert!(is_waking().await);
        next.hears("w1", Activity::Busy, 1);
        let _kubelet = Kubelet::start(&cluster, "w1", &[]);
        is_back(&cluster, "w1").await;
        let ended = || async { state().last_wake.is_some_and(|wake| wake.outcome == WakeOutcome::Awake) };
        cluster.until("proved", ended).await;
        assert!(!cluster.events("w1").await.iter().any(|reason| reason == "WakeFailed"));
    });
}

#[test]
fn k10_an_uncordon_that_fails_is_tried_again() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        let Some(fake) = cluster.fake() else { return };
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let grant = server.grant("w1").await;
        fake.fail_next(3, "PATCH", "/nodes/w1", 500);
        server.hub.hand_back(&"w1".parse().unwrap(), grant);
        is_back(&cluster, "w1").await;
        let tries = fake
            .requests()
            .into_iter()
            .filter(|asked| asked.method == "PATCH" && asked.path.ends_with("/nodes/w1"));
        // Cordon, grant, three failures, and the last.
        assert_eq!(
            tries
                .filter(|asked| asked.query.contains("vmstation-wake-server"))
                .count(),
            6
        );
    });
}

#[test]
fn a_watch_that_ends_or_is_too_old_is_begun_again() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        let Some(fake) = cluster.fake() else { return };
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        fake.compact();
        let grant = server.grant("w1").await;
        fake.end_watches();
        server.hub.hand_back(&"w1".parse().unwrap(), grant);
        let back = timeout(Duration::from_secs(50), is_back(&cluster, "w1"));
        back.await.unwrap();
    });
}
