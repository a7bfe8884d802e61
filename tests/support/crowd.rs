//! A large cluster at rest: nodes and pods as a kubelet and a scheduler leave them, of the length that they have in a cluster in use. Only
//! values: [`super::kube_fake`] takes them.

use serde_json::{Value, json};

/// Images that a kubelet tells of, as many as it does at most (`nodeStatusMaxImages`).
const IMAGES: usize = 50;

/// Name of a node.
pub(crate) fn name(number: usize) -> String {
    format!("node-{number:04}")
}

/// A worker that is ready; some 13 KiB of JSON.
pub(crate) fn node(number: usize) -> Value {
    let name = name(number);
    let image = |image: usize| {
        let named = format!("registry.example.com/team-{}/service-{image:02}", image % 7);
        let digest = format!("{:064x}", image * 7_919);
        json!({"names": [format!("{named}@sha256:{digest}"), format!("{named}:v1.{image}.0")], "sizeBytes": 91_230_113 + image})
    };
    let condition = |kind: &str, is: &str, reason: &str| {
        json!({
            "type": kind, "status": is, "reason": reason, "message": "kubelet is posting its state",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let room =
        json!({"cpu": "16", "memory": "65536Mi", "pods": "110", "ephemeral-storage": "400Gi", "hugepages-2Mi": "0"});
    json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
            },
            "managedFields": managed("kubelet", &["f:status", "f:conditions", "f:images", "f:nodeInfo", "f:capacity", "f:allocatable"]),
        },
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "providerID": format!("metal://{number}")},
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": format!("{number:032x}"), "systemUUID": format!("{number:032x}"), "bootID": format!("{number:032x}"),
                "kernelVersion": "6.1.0-28-amd64", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "containerRuntimeVersion": "containerd://1.7.24", "kubeletVersion": "v1.33.1", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
            "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        },
    })
}

/// A pod of a ReplicaSet that runs on the node of this number; some 5 KiB of JSON.
pub(crate) fn pod(node: usize, number: usize) -> Value {
    let namespace = format!("team-{}", number % 5);
    let owner = format!("service-{number:02}-7c9d6b5f4");
    let container = |container: &str| {
        json!({
            "name": container, "image": format!("registry.example.com/{namespace}/{container}:v1.4.2"),
            "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080, "protocol": "TCP"}],
            "env": (0..8).map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-of-setting-{n}")})).collect::<Vec<_>>(),
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{"name": "token", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        })
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let state = |container: &str| {
        json!({
            "name": container, "ready": true, "started": true, "restartCount": 0,
            "image": format!("registry.example.com/{namespace}/{container}:v1.4.2"),
            "imageID": format!("registry.example.com/{namespace}/{container}@sha256:{number:064x}"),
            "containerID": format!("containerd://{node:064x}"), "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        })
    };
    let node_name = name(node);
    json!({
        "metadata": {
            "name": format!("{owner}-{node:04}"), "namespace": namespace, "generateName": format!("{owner}-"),
            "labels": {"app": format!("service-{number:02}"), "pod-template-hash": "7c9d6b5f4"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": format!("uid-of-{owner}"),
                "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": managed("kube-controller-manager", &["f:metadata", "f:labels", "f:spec", "f:containers", "f:volumes"]),
        },
        "spec": {
            "nodeName": node_name, "containers": [container("main"), container("proxy")],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "schedulerName": "default-scheduler", "priority": 0,
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable", "hostIP": "192.0.2.1", "podIP": "10.0.0.9",
            "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": [state("main"), state("proxy")],
        },
    })
}

/// Who wrote which fields.
fn managed(manager: &str, fields: &[&str]) -> Value {
    let each: serde_json::Map<_, _> = fields
        .iter()
        .map(|field| {
            let below = (0..12).map(|n| {
                (
                    format!("k:{{\"type\":\"{field}-{n}\"}}"),
                    json!({".": {}, "f:type": {}, "f:status": {}}),
                )
            });
            ((*field).to_owned(), Value::Object(below.collect()))
        })
        .collect();
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": each,
    }])
}
