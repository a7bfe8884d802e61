//! The whole way: leave, sleep, and back.

use vmstation_protocol::Activity;

use crate::{
    on_both_versions,
    scene::{Kubelet, pod},
    wake_server::WakeServer,
};

#[test]
fn a_node_is_emptied_sleeps_and_comes_back() {
    on_both_versions(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.node("w2").await;
        cluster.pod(pod("web").on("w1")).await;
        cluster
            .pod(pod("every-1").on("w1").owned_by("DaemonSet", "every"))
            .await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let kubelet = Kubelet::start(&cluster, "w1", &[]);

        server.grant("w1").await;
        assert_eq!(cluster.pods_on("w1").await, ["every-1"]);
        assert!(cluster.is_cordoned("w1").await);
        assert_eq!(
            cluster.annotation("w1", "power-state").await.as_deref(),
            Some("granted")
        );
        assert_eq!(
            cluster.annotation("w1", "wake-mac").await.as_deref(),
            Some("02:00:00:00:00:01")
        );
        assert!(cluster.annotation("w1", "moved").await.unwrap().contains("ReplicaSet"));

        drop(kubelet);
        server.hears("w1", Activity::Sleeping, 0);
        cluster
            .until("asleep", || async {
                cluster.annotation("w1", "power-state").await.as_deref() == Some("asleep")
            })
            .await;
        assert!(cluster.is_tainted("w1").await);
        assert_eq!(
            cluster.annotation("w1", "power-state-reason").await.as_deref(),
            Some("idle for 2 h")
        );

        server.hears("w1", Activity::Busy, 1);
        let _kubelet = Kubelet::start(&cluster, "w1", &[]);
        cluster.until("released", || cluster.is_clean("w1")).await;
        assert!(!cluster.is_cordoned("w1").await);
        let events = cluster.events("w1").await;
        for expected in ["SleepGranted", "Asleep", "Awake"] {
            assert!(events.iter().any(|reason| reason == expected), "{expected}: {events:?}");
        }
    });
}

#[test]
fn k13_ready_is_not_believed_without_a_lease_renewed_since() {
    on_both_versions(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        server.grant("w1").await;
        server.hears("w1", Activity::Sleeping, 0);
        cluster.until("asleep", || cluster.is_tainted("w1")).await;
        server.hears("w1", Activity::Busy, 1);
        // Ready=True since before its sleep, and its Lease as it was.
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(cluster.is_cordoned("w1").await && !cluster.is_clean("w1").await);
        cluster.ready("w1", false).await;
        cluster.renew_lease("w1").await;
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(cluster.is_cordoned("w1").await, "it is not ready");
        cluster.ready("w1", true).await;
        cluster.until("released", || cluster.is_clean("w1")).await;
        assert!(!cluster.is_cordoned("w1").await);
    });
}

#[test]
fn k8_an_administrators_cordon_outlives_sleep_and_wake() {
    on_both_versions(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.node("w2").await;
        cluster.kubectl_cordons("w1", true).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        for (node, is_theirs) in [("w1", true), ("w2", false)] {
            server.grant_in_turn(node).await;
            server.hears(node, Activity::Sleeping, 0);
            cluster.until("asleep", || cluster.is_tainted(node)).await;
            if !is_theirs {
                // Ours is taken away, and theirs put in its place, while it sleeps.
                cluster.kubectl_cordons(node, false).await;
                cluster.kubectl_cordons(node, true).await;
            }
            server.hears(node, Activity::Busy, 1);
            let _kubelet = Kubelet::start(&cluster, node, &[]);
            cluster.until("released", || cluster.is_clean(node)).await;
            assert!(cluster.is_cordoned(node).await, "{node}");
        }
    });
}

#[test]
fn frozen_pods_sleep_with_their_node() {
    on_both_versions(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("only").on("w1").unmanaged().with_empty_dir()).await;
        let mut settings = crate::wake_server::settings();
        settings.pods.mode = vmstation_wake_server::config::Mode::Freeze;
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        server.grant("w1").await;
        assert_eq!(cluster.pods_on("w1").await, ["only"]);
        assert!(cluster.is_cordoned("w1").await);
    });
}
