//! Who gets no leave, and that his node is as it was.

use vmstation_protocol::{Activity, Leave, Role};
use vmstation_wake_server::config::Mode;

use crate::{
    cluster::kube_fake::Rule,
    on_cluster,
    scene::{Kubelet, NewNode, Scene, pod},
    wake_server::{WakeServer, settings},
};

/// The node has not changed.
async fn untouched(cluster: &Scene, node: &str) {
    assert!(
        cluster.is_clean(node).await && !cluster.is_cordoned(node).await,
        "{node}"
    );
}

#[test]
fn k12_a_node_of_another_name_is_not_touched() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1.example.org").await;
        cluster.node("other").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let why = server.refusal("w1").await;
        assert!(
            why.starts_with("the cluster has no Node w1; it has w1.example.org, "),
            "{why}"
        );
        untouched(&cluster, "w1.example.org").await;
    });
}

#[test]
fn k11_the_control_plane_and_what_is_held_stay_awake() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        let master = NewNode::new("w1").label("node-role.kubernetes.io/control-plane", "");
        cluster.new_node("w1", master).await;
        let held = NewNode::new("w2").annotation("vmstation.io/hold", "a disk is replaced");
        cluster.new_node("w2", held).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let why = server.refusal("w1").await;
        assert!(why.contains("control plane"), "{why}");
        let why = server.refusal("w2").await;
        assert!(why.contains("a disk is replaced"), "{why}");
        untouched(&cluster, "w1").await;
        untouched(&cluster, "w2").await;
    });
}

#[test]
fn k5_pods_that_would_be_lost_keep_their_node_awake() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        for node in ["w1", "w2", "w3", "w4"] {
            cluster.node(node).await;
        }
        cluster.pod(pod("alone").on("w1").unmanaged()).await;
        cluster.pod(pod("data").on("w2").with_empty_dir()).await;
        cluster
            .pod(
                pod("critical")
                    .on("w3")
                    .owned_by("DaemonSet", "every")
                    .label("vmstation.io/prevent-sleep", "true"),
            )
            .await;
        // None of these is in the way.
        cluster.pod(pod("mirror").on("w4").mirror()).await;
        cluster
            .pod(pod("every").on("w4").owned_by("DaemonSet", "every").with_empty_dir())
            .await;
        cluster.pod(pod("done").on("w4").unmanaged().phase("Succeeded")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        for (node, expected) in [
            (
                "w1",
                "default/alone has no controller that would make it again (unmanaged_pods)",
            ),
            ("w2", "default/data has data in an emptyDir (delete_local_data)"),
            ("w3", "default/critical has a label that prevents sleep"),
        ] {
            assert_eq!(server.refusal(node).await, expected);
            untouched(&cluster, node).await;
        }
        server.grant("w4").await;
    });
}

#[test]
fn pods_that_have_no_room_elsewhere_keep_their_node_awake() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("big").on("w1").requests("cpu", "3")).await;
        cluster.pod(pod("there").on("spare").requests("cpu", "2")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        assert_eq!(server.refusal("w1").await, "no other node has room for default/big");
        untouched(&cluster, "w1").await;
    });
}

#[test]
fn refuse_if_pods_refuses_if_pods() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.pod(pod("web").on("w1")).await;
        let mut settings = settings();
        settings.pods.mode = Mode::RefuseIfPods;
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        assert_eq!(
            server.refusal("w1").await,
            "default/web is there (pods = \"refuse-if-pods\")"
        );
        untouched(&cluster, "w1").await;
    });
}

#[test]
fn k4_a_budget_refuses_before_the_node_is_cordoned() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node("w1").await;
        cluster.node("w2").await;
        cluster.pod(pod("one").on("w1")).await;
        cluster.budget("keep-one", "one", 0).await;
        cluster.pod(pod("two").on("w2")).await;
        cluster.budget("two-a", "two", 1).await;
        cluster.budget("two-b", "two", 1).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let why = server.refusal("w1").await;
        assert!(
            why.starts_with("default/one cannot be evicted now: ") && why.contains("disruption budget"),
            "{why}"
        );
        let why = server.refusal("w2").await;
        assert!(why.contains("more than one PodDisruptionBudget"), "{why}");
        for node in ["w1", "w2"] {
            untouched(&cluster, node).await;
            assert_eq!(cluster.pods_on(node).await.len(), 1);
        }
    });
}

#[test]
fn k11_one_node_at_a_time() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        for node in ["w1", "w2"] {
            cluster.node(node).await;
        }
        cluster.pod(pod("slow").on("w1")).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        // Nobody ends its pod yet.
        let first = async { server.grant("w1").await };
        let second = async {
            cluster.until("w1 is cordoned", || cluster.is_cordoned("w1")).await;
            let why = server.refusal("w2").await;
            assert!(
                why.contains("w1 of the same group (cluster) is entering sleep"),
                "{why}"
            );
            untouched(&cluster, "w2").await;
            Kubelet::start(&cluster, "w1", &[])
        };
        let _both = tokio::join!(first, second);
    });
}

#[test]
fn k11_a_node_counts_as_awake_once_it_is_in_use_again() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        for node in ["w1", "w2"] {
            cluster.node(node).await;
        }
        let mut settings = settings();
        settings.min_awake = [(Role::Worker, 1)].into();
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        server.hears("w2", Activity::Busy, 0);
        server.grant("w1").await;
        server.hears("w1", Activity::Sleeping, 0);
        cluster.until("asleep", || cluster.is_tainted("w1")).await;
        // Its kubelet is not back.
        server.hears("w1", Activity::Busy, 1);
        let why = server.refusal("w2").await;
        assert!(why.contains("0 other workers are awake and 1 have to be"), "{why}");
        let _kubelet = Kubelet::start(&cluster, "w1", &[]);
        cluster.until("released", || cluster.is_clean("w1")).await;
        let leave = async || matches!(server.asked("w2").await, Leave::Granted { .. });
        cluster.until("w2 has leave", leave).await;
    });
}

#[test]
fn k1_k2_k3_an_api_server_that_refuses_or_is_silent_gives_no_leave() {
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        let Some(fake) = cluster.fake() else { return };
        cluster.node("w1").await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        fake.forbid(Rule::new(&[""], &["nodes"], &["patch"]));
        let why = server.refusal("w1").await;
        assert!(
            why.contains("cannot patch resource \"nodes\"") && why.contains("rbac.yaml"),
            "{why}"
        );
        fake.forbid_nothing();
        fake.reject_tokens(true);
        let why = server.refusal("w1").await;
        assert!(why.contains("does not accept the credentials (401)"), "{why}");
        fake.reject_tokens(false);
        for (hangs, trickles) in [(true, false), (false, true)] {
            fake.hang(hangs);
            fake.trickle(trickles);
            let why = server.refusal("w1").await;
            assert!(
                why.contains("no complete answer within 10 s") || why.contains("cannot be reached"),
                "{why}"
            );
        }
        fake.trickle(false);
        untouched(&cluster, "w1").await;
        server.grant("w1").await;
    });
}
