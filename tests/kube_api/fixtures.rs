//! Nodes and pods as clusters of the oldest and the newest version report them, as the wake server reads them, whatever else is in them.

use k8s_openapi::{List, api::core::v1};
use vmstation_wake_server::{
    cluster::reading,
    fit::{Judgement, Room, Taint, Why, fits},
    workload::{ClusterNode, Phase, Pod},
};

use super::cluster::Cluster;

struct Fixture {
    kubelet: &'static str,
    node: &'static str,
    pods: &'static str,
    /// Each pod with the thousandths of a core that it takes, and what is not judged of it.
    needs: &'static [(&'static str, i128, &'static [&'static str])],
    /// The pod that the scheduler has refused.
    refused: &'static str,
    /// Thousandths of a core that the pods of the node leave.
    cpu_left: i128,
}

/// Kubernetes 1.33 and later change amounts of running pods, 1.34 and later let the pod as a whole ask for them.
const FIXTURES: [Fixture; 2] = [
    Fixture {
        kubelet: "v1.29.8",
        node: include_str!("../fixtures/kubernetes/node-1.29.json"),
        pods: include_str!("../fixtures/kubernetes/pods-1.29.json"),
        needs: &[
            // While it starts: its init container with the sidecar before it.
            ("web-6d4cf56db6-x7k2p", 1200, &[]),
            ("node-exporter-kq8zt", 100, &[]),
            ("haproxy-worker-1", 50, &[]),
            ("report-29470080-4fr8d", 1000, &[]),
            ("held-5b8c7f9d4-z2m6l", 1000, &[]),
            ("render-0", 2000, &["claims devices"]),
        ],
        refused: "render-0",
        cpu_left: 7800 - 1350,
    },
    Fixture {
        kubelet: "v1.37.1",
        node: include_str!("../fixtures/kubernetes/node-1.37.json"),
        pods: include_str!("../fixtures/kubernetes/pods-1.37.json"),
        needs: &[
            // What it asks for as a whole.
            ("web-6d4cf56db6-x7k2p", 2000, &[]),
            ("node-exporter-kq8zt", 100, &[]),
            ("haproxy-worker-1", 50, &[]),
            ("report-29470080-4fr8d", 1000, &[]),
            ("held-5b8c7f9d4-z2m6l", 1000, &[]),
            // It asks for 3 cores and has 1; asks for a half and has 2; asks for more than the node has, and keeps 1.
            ("grows-0", 3000, &["has the volume data, which may be bound to a place"]),
            ("shrinks-0", 2000, &[]),
            ("hopeless-0", 1000, &[]),
            (
                "trainer-0",
                4000,
                &[
                    "claims devices",
                    "is of the pod group training, which may be placed as a whole",
                ],
            ),
        ],
        refused: "trainer-0",
        cpu_left: 7800 - 8150,
    },
];

fn read(fixture: &Fixture) -> (ClusterNode, Vec<Pod>) {
    let node: v1::Node = serde_json::from_str(fixture.node).unwrap();
    let system = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    assert_eq!(system.unwrap().kubelet_version, fixture.kubelet);
    let pods: List<v1::Pod> = serde_json::from_str(fixture.pods).unwrap();
    let pods = pods.items.iter().map(|pod| reading::pod(pod).unwrap());
    (reading::node(&node).unwrap(), pods.collect())
}

pub(crate) async fn read_by_the_wake_server(_: &Cluster) {
    for fixture in &FIXTURES {
        let (mut node, pods) = read(fixture);
        let version = fixture.kubelet;
        assert!(node.ready && node.unschedulable, "{version}");
        assert_eq!(node.cordoned_by[0].0, "kubectl-cordon", "{version}");
        assert_eq!(node.allocatable["cpu"], 7800, "{version}");
        assert_eq!(node.allocatable["memory"], 16_281_856 * 1024 * 1000, "{version}");
        assert_eq!(node.allocatable["pods"], 110_000, "{version}");
        let sla = Taint {
            key: "example.com/sla".to_owned(),
            value: "950".to_owned(),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        };
        assert_eq!(node.taints.len(), 2, "{version}");
        assert_eq!(
            (&node.taints[0].key, &node.taints[1]),
            (&Taint::cordon().key, &sla),
            "{version}"
        );

        assert_eq!(pods.len(), fixture.needs.len(), "{version}");
        for (pod, (name, cpu, doubts)) in pods.iter().zip(fixture.needs) {
            assert_eq!(
                (pod.id.name.as_str(), pod.needs.requests["cpu"]),
                (*name, *cpu),
                "{version}"
            );
            let found: Vec<String> = pod.needs.doubts.iter().map(ToString::to_string).collect();
            assert_eq!(found, *doubts, "{version} {name}");
        }
        let named = |is: fn(&Pod) -> bool| -> Vec<&str> {
            let found = pods.iter().filter(|pod| is(pod));
            found.map(|pod| pod.id.name.as_str()).collect()
        };
        assert_eq!(named(Pod::is_daemon), ["node-exporter-kq8zt"], "{version}");
        assert_eq!(named(|pod| pod.is_mirror), ["haproxy-worker-1"], "{version}");
        assert_eq!(
            named(|pod| pod.has_local_storage),
            ["web-6d4cf56db6-x7k2p"],
            "{version}"
        );
        assert_eq!(named(Pod::is_finished), ["report-29470080-4fr8d"], "{version}");
        assert_eq!(
            named(|pod| pod.unschedulable_since.is_some()),
            [fixture.refused],
            "{version}"
        );
        assert_eq!(
            named(|pod| pod.node.is_none() && pod.phase == Phase::Pending),
            ["held-5b8c7f9d4-z2m6l", fixture.refused],
            "{version}"
        );

        let here = pods.iter().filter(|pod| pod.node.as_ref() == Some(&node.name));
        assert_eq!(Room::new(&node, here).left["cpu"], fixture.cpu_left, "{version}");
        node.unschedulable = false;
        node.taints.remove(0);
        let empty = Room::new(&node, []);
        let refused = pods.iter().find(|pod| pod.id.name == fixture.refused).unwrap();
        assert_eq!(
            fits(&refused.needs, &empty),
            Ok(Judgement::Doubtful(refused.needs.doubts.clone())),
            "{version}"
        );
        assert_eq!(fits(&pods[0].needs, &empty), Err(vec![Why::Taint(sla)]), "{version}");
    }
}
