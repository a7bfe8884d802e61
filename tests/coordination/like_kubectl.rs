//! The same pods on two nodes: one is drained by `kubectl drain`, the other one by the wake server. What is left is the same.
//!
//! Left out, with a word, where there is no kubectl: `cargo xtask test` brings one.

use std::{
    env,
    path::{Path, PathBuf},
    process::Output,
};

use crate::{
    on_cluster,
    scene::{Kubelet, Scene, pod},
    wake_server::{WakeServer, settings},
};

/// Drained by kubectl, and by the wake server.
const NODES: [&str; 2] = ["w1", "w2"];

fn kubectl() -> Option<PathBuf> {
    let named = env::var_os("VMSTATION_KUBECTL").map(PathBuf::from);
    let of_envtest = env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join("kubectl"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("kubectl"));
    let found = named
        .into_iter()
        .chain(of_envtest)
        .chain(on_path)
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("left out: there is no kubectl");
    }
    found
}

async fn drained_by(kubectl: &Path, cluster: &Scene, flags: &[&str]) -> Output {
    if let Some(fake) = cluster.fake() {
        fake.admit_anybody();
    }
    let mut command = tokio::process::Command::new(kubectl);
    command
        .args(["drain", NODES[0], "--ignore-daemonsets", "--timeout=30s"])
        .args(flags)
        .env("KUBECONFIG", cluster.cluster.kubeconfig())
        // It keeps what it discovers there.
        .env("HOME", cluster.cluster.kubeconfig().parent().unwrap());
    command.output().await.unwrap()
}

/// Names without their node's.
async fn left_on(cluster: &Scene, node: &str) -> Vec<String> {
    let pods = cluster.pods_on(node).await.into_iter();
    let mut pods: Vec<_> = pods.map(|name| name.replace(&format!("-{node}"), "")).collect();
    pods.sort();
    pods
}

#[test]
fn k5_what_is_left_is_what_kubectl_drain_leaves() {
    let Some(kubectl) = kubectl() else { return };
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.daemon_set("every").await;
        for node in NODES {
            cluster.node(node).await;
            let named = |name: &str| pod(&format!("{name}-{node}")).on(node);
            cluster.pod(named("web")).await;
            cluster.pod(named("budgeted")).await;
            cluster
                .budget(&format!("budget-{node}"), &format!("budgeted-{node}"), 1)
                .await;
            cluster.pod(named("last").priority(1000)).await;
            cluster.pod(named("data").with_empty_dir()).await;
            cluster.pod(named("alone").unmanaged()).await;
            cluster.pod(named("done").unmanaged().phase("Succeeded")).await;
            cluster.pod(named("failed").phase("Failed").with_empty_dir()).await;
            cluster.pod(named("mirror").mirror()).await;
            cluster
                .pod(named("daemon").owned_by("DaemonSet", "every").with_empty_dir())
                .await;
            cluster
                .pod(named("daemon-done").owned_by("DaemonSet", "every").phase("Failed"))
                .await;
        }
        let _kubelets = NODES.map(|node| Kubelet::start(&cluster, node, &[]));
        let mut settings = settings();
        settings.pods.unmanaged = true;
        settings.pods.local_data = true;
        let by_kubectl = drained_by(&kubectl, &cluster, &["--force", "--delete-emptydir-data"]).await;
        assert!(by_kubectl.status.success(), "{by_kubectl:?}");

        // Afterwards, and looked at at once: nobody sleeps, and leave that is not used ends with the cordon.
        let server = WakeServer::with(&cluster, folder.path(), settings).await;
        server.grant(NODES[1]).await;
        assert_eq!(left_on(&cluster, NODES[0]).await, ["daemon", "mirror"]);
        assert_eq!(left_on(&cluster, NODES[1]).await, ["daemon", "mirror"]);
        assert!(cluster.is_cordoned(NODES[0]).await && cluster.is_cordoned(NODES[1]).await);
    });
}

#[test]
fn k5_what_kubectl_drain_refuses_is_refused() {
    let Some(kubectl) = kubectl() else { return };
    on_cluster(|cluster| async move {
        let folder = tempfile::tempdir().unwrap();
        cluster.node(NODES[0]).await;
        cluster.node(NODES[1]).await;
        let server = WakeServer::start(&cluster, folder.path()).await;
        let cases = [
            (
                "alone",
                pod("alone").unmanaged(),
                "declare no controller",
                "no controller",
            ),
            ("data", pod("data").with_empty_dir(), "with local storage", "emptyDir"),
        ];
        for (name, bad, their_word, our_word) in cases {
            for node in NODES {
                cluster.pod(pod(&format!("web-{name}-{node}")).on(node)).await;
                cluster
                    .pod(bad.clone().renamed(&format!("{name}-{node}")).on(node))
                    .await;
            }
            let by_kubectl = drained_by(&kubectl, &cluster, &[]).await;
            let their_refusal = String::from_utf8_lossy(&by_kubectl.stderr).into_owned();
            assert!(
                !by_kubectl.status.success() && their_refusal.contains(their_word),
                "{their_refusal}"
            );
            let our_refusal = server.refusal(NODES[1]).await;
            assert!(our_refusal.contains(our_word), "{our_refusal}");
            let [theirs, ours] = [left_on(&cluster, NODES[0]).await, left_on(&cluster, NODES[1]).await];
            assert!(
                ours.iter().any(|pod| pod == name) && ours == theirs,
                "{theirs:?} {ours:?}"
            );
            for node in NODES {
                cluster.forget(&format!("{name}-{node}")).await;
            }
        }
    });
}
