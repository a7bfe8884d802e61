//! The wake server in a Kubernetes cluster: who gets leave, what becomes of the node and its pods, and that nothing of ours stays on a
//! node that is awake. Against a real API server where `KUBEBUILDER_ASSETS` names one, and a fake otherwise. Needs no root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/cluster.rs"]
mod cluster;
#[path = "coordination/control_plane.rs"]
mod control_plane;
#[path = "support/crowd.rs"]
mod crowd;
#[path = "coordination/demand.rs"]
mod demand;
#[path = "coordination/killed.rs"]
mod killed;
#[path = "coordination/like_kubectl.rs"]
mod like_kubectl;
#[path = "coordination/load.rs"]
mod load;
#[path = "coordination/observer.rs"]
mod observer;
#[path = "coordination/refused.rs"]
mod refused;
#[path = "coordination/scene.rs"]
mod scene;
#[path = "coordination/sleeping.rs"]
mod sleeping;
#[path = "coordination/taken_back.rs"]
mod taken_back;
#[path = "coordination/wake_server.rs"]
mod wake_server;
#[path = "coordination/walk.rs"]
mod walk;

use cluster::{Cluster, kube_fake::Version};

/// Runs a test on a cluster of its own.
fn on_cluster<F: Future<Output = ()>>(test: impl FnOnce(scene::Scene) -> F) {
    on_cluster_of(Version::default(), test);
}

/// Runs a test on clusters of the oldest and of the newest version, side by side. Where there is a real one, on that alone.
fn on_both_versions<F: Future<Output = ()>>(test: impl Fn(scene::Scene) -> F + Sync) {
    if Cluster::is_real() {
        return on_cluster(test);
    }
    std::thread::scope(|scope| {
        for version in Version::ALL {
            let test = &test;
            std::thread::Builder::new()
                .name(format!("{version:?}"))
                .spawn_scoped(scope, move || on_cluster_of(version, test))
                .unwrap();
        }
    });
}

/// `version`: of the fake.
fn on_cluster_of<F: Future<Output = ()>>(version: Version, test: impl FnOnce(scene::Scene) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start();
        if let Some(fake) = cluster.fake() {
            fake.be(version);
        }
        let cluster = scene::Scene::set_on(cluster).await;
        tokio::time::timeout(std::time::Duration::from_secs(120), test(cluster))
            .await
            .expect("the test hangs");
    });
}
