//! Nodes and pods as clusters of several versions report them, whatever else is in them.

use k8s_openapi::api::core::v1::{Node, Pod};

use super::cluster::Cluster;

const NODES: [(&str, &str); 2] = [
    ("v1.29.8", include_str!("../fixtures/kubernetes/node-1.29.json")),
    ("v1.34.1", include_str!("../fixtures/kubernetes/node-1.34.json")),
];
const PODS: [(&str, &str); 2] = [
    ("1.29", include_str!("../fixtures/kubernetes/pod-1.29.json")),
    ("1.34", include_str!("../fixtures/kubernetes/pod-1.34.json")),
];

pub(crate) async fn decode(_: &Cluster) {
    for (version, text) in NODES {
        let node: Node = serde_json::from_str(text).unwrap();
        let status = node.status.unwrap();
        assert_eq!(status.node_info.unwrap().kubelet_version, version);
        assert_eq!(status.allocatable.unwrap()["pods"].0, "110");
        let ready = status.conditions.unwrap();
        assert!(
            ready
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        );
        assert!(node.spec.unwrap().unschedulable.unwrap());
    }
    for (version, text) in PODS {
        let pod: Pod = serde_json::from_str(text).unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("worker-1"), "{version}");
        assert_eq!(spec.priority, Some(0), "{version}");
        assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Running"), "{version}");
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller),
            ("ReplicaSet", Some(true)),
            "{version}"
        );
    }
    let newest: Pod = serde_json::from_str(PODS[1].1).unwrap();
    let spec = newest.spec.unwrap();
    let sidecar = &spec.init_containers.unwrap()[0];
    assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.resources.unwrap().requests.unwrap()["cpu"].0, "2");
}
