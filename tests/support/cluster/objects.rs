//! Nodes, pods and budgets for trials, made by the API as kubelets, controllers and the scheduler make them.

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        coordination::v1::Lease,
        core::v1::{Node, Pod},
        policy::v1::PodDisruptionBudget,
        scheduling::v1::PriorityClass,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Annotation of the mirror of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A node to be made: ready, empty, with 4 cores, 8 GiB and room for 110 pods.
#[derive(Clone, Debug)]
pub(crate) struct NewNode {
    name: String,
    labels: Value,
    annotations: Value,
    taints: Vec<Value>,
    allocatable: Value,
    is_ready: bool,
    is_cordoned: bool,
}

impl NewNode {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            labels: json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}),
            annotations: json!({}),
            taints: Vec::new(),
            allocatable: json!({"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi"}),
            is_ready: true,
            is_cordoned: false,
        }
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = value.into();
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    pub(crate) fn taint(mut self, key: &str, value: &str, effect: &str) -> Self {
        self.taints.push(json!({"key": key, "value": value, "effect": effect}));
        self
    }

    pub(crate) fn allocatable(mut self, resource: &str, amount: &str) -> Self {
        self.allocatable[resource] = amount.into();
        self
    }

    pub(crate) fn not_ready(mut self) -> Self {
        self.is_ready = false;
        self
    }

    pub(crate) fn cordoned(mut self) -> Self {
        self.is_cordoned = true;
        self
    }

    pub(crate) async fn create(self, client: &Client) -> Node {
        let nodes: Api<Node> = Api::all(client.clone());
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": self.labels, "annotations": self.annotations},
            "spec": {"unschedulable": self.is_cordoned},
        });
        nodes.create(&PostParams::default(), &of(node)).await.unwrap();
        let status = json!({"status": {
            "allocatable": self.allocatable, "capacity": self.allocatable, "conditions": [readiness(self.is_ready)],
        }});
        let as_kubelet = PatchParams::apply("kubelet");
        nodes
            .patch_status(&self.name, &as_kubelet, &Patch::Strategic(status))
            .await
            .unwrap();
        // A node is not ready when it is made; the node controller takes that taint away.
        let taints = json!({"spec": {"taints": self.taints}});
        let as_controller = PatchParams::apply("kube-controller-manager");
        nodes
            .patch(&self.name, &as_controller, &Patch::Merge(taints))
            .await
            .unwrap()
    }
}

/// Says as the kubelet whether the node is ready.
pub(crate) async fn set_ready(client: &Client, node: &str, is_ready: bool) {
    let nodes: Api<Node> = Api::all(client.clone());
    let status = json!({"status": {"conditions": [readiness(is_ready)]}});
    let as_kubelet = PatchParams::apply("kubelet");
    nodes
        .patch_status(node, &as_kubelet, &Patch::Strategic(status))
        .await
        .unwrap();
}

fn readiness(is_ready: bool) -> Value {
    let (status, reason) = if is_ready {
        ("True", "KubeletReady")
    } else {
        ("False", "KubeletNotReady")
    };
    json!({
        "type": "Ready", "status": status, "reason": reason, "message": "", "lastHeartbeatTime": seconds(),
        "lastTransitionTime": seconds(),
    })
}

/// Renews the node's Lease as its kubelet does, and makes it if there is none.
pub(crate) async fn renew_lease(client: &Client, node: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let renewed = json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": microseconds()}});
    let as_kubelet = PatchParams::apply("kubelet");
    match leases.patch(node, &as_kubelet, &Patch::Merge(&renewed)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let mut lease = renewed;
            lease["metadata"] = json!({"name": node});
            leases.create(&PostParams::default(), &of(lease)).await.unwrap();
        }
        Err(error) => panic!("the Lease of {node} is not renewed: {error}"),
    }
}

/// A pod to be made: of a ReplicaSet, running and ready once it is bound.
#[derive(Clone, Debug)]
pub(crate) struct NewPod {
    namespace: String,
    name: String,
    labels: Value,
    annotations: Value,
    owner: Option<(String, String)>,
    node: Option<String>,
    requests: Value,
    spec: Value,
    priority: i32,
    phase: Option<String>,
    is_ready: bool,
}

impl NewPod {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            labels: json!({}),
            annotations: json!({}),
            owner: Some(("ReplicaSet".into(), "trial".into())),
            node: None,
            requests: json!({}),
            spec: json!({}),
            priority: 0,
            phase: None,
            is_ready: true,
        }
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = value.into();
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    /// Kind and name of its controller.
    pub(crate) fn owned_by(mut self, kind: &str, name: &str) -> Self {
        self.owner = Some((kind.into(), name.into()));
        self
    }

    pub(crate) fn unmanaged(mut self) -> Self {
        self.owner = None;
        self
    }

    /// The mirror of a static pod, as a kubelet makes it.
    pub(crate) fn mirror(self) -> Self {
        self.unmanaged().annotation(MIRROR, "0123456789abcdef")
    }

    /// Binds it to the node once it is made.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.node = Some(node.into());
        self
    }

    pub(crate) fn with_empty_dir(self) -> Self {
        self.spec("volumes", json!([{"name": "scratch", "emptyDir": {}}]))
    }

    pub(crate) fn requests(mut self, resource: &str, amount: &str) -> Self {
        self.requests[resource] = amount.into();
        self
    }

    /// By a PriorityClass that is made for it.
    pub(crate) fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// `terminationGracePeriodSeconds`.
    pub(crate) fn grace(self, seconds: u32) -> Self {
        self.spec("terminationGracePeriodSeconds", seconds.into())
    }

    /// `status.phase`; without it Running if it is bound, and Pending otherwise.
    pub(crate) fn phase(mut self, phase: &str) -> Self {
        self.phase = Some(phase.into());
        self
    }

    pub(crate) fn not_ready(mut self) -> Self {
        self.is_ready = false;
        self
    }

    pub(crate) fn renamed(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Any field of `spec`.
    pub(crate) fn spec(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    pub(crate) async fn create(self, client: &Client) -> Pod {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let mut spec = self.spec;
        spec["containers"] = json!([{"name": "main", "image": "pause", "resources": {"requests": self.requests}}]);
        if self.priority != 0 {
            spec["priorityClassName"] = priority_class(client, self.priority).await.into();
        }
        let mut metadata = json!({"name": self.name, "labels": self.labels, "annotations": self.annotations});
        if let Some((kind, name)) = self.owner {
            let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
            metadata["ownerReferences"] = json!([{
                "apiVersion": version, "kind": kind, "name": name, "uid": format!("uid-of-{kind}-{name}"), "controller": true,
            }]);
        }
        // Mirrors are made by a kubelet, on its node.
        let is_mirror = metadata["annotations"].get(MIRROR).is_some();
        if is_mirror {
            spec["nodeName"] = json!(self.node);
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let made = pods.create(&PostParams::default(), &of(pod)).await.unwrap();
        if let Some(node) = self.node.as_ref().filter(|_| !is_mirror) {
            bind(client, &self.namespace, &self.name, node).await;
        }
        let phase = self.phase.or_else(|| self.node.is_some().then(|| "Running".to_owned()));
        match phase {
            Some(phase) => set_phase(client, &self.namespace, &self.name, &phase, self.is_ready).await,
            None => made,
        }
    }
}

/// A DaemonSet of nothing.
pub(crate) async fn daemon_set(client: &Client, namespace: &str, name: &str) {
    let labels = json!({"app": name});
    let set: DaemonSet = of(json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "pause"}]}},
        },
    }));
    let sets = Api::namespaced(client.clone(), namespace);
    sets.create(&PostParams::default(), &set).await.unwrap();
}

/// Says as a kubelet how far the pod is; it is ready only while it runs.
pub(crate) async fn set_phase(client: &Client, namespace: &str, name: &str, phase: &str, is_ready: bool) -> Pod {
    let ready = if is_ready && phase == "Running" {
        "True"
    } else {
        "False"
    };
    let conditions = json!([
        {"type": "Ready", "status": ready, "lastTransitionTime": seconds()},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": seconds()},
    ]);
    let status = json!({"status": {"phase": phase, "conditions": conditions, "startTime": seconds()}});
    status_of_pod(client, namespace, name, "kubelet", status).await
}

/// Whether its kubelet says that it is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Says as the scheduler that the pod fits no node.
pub(crate) async fn mark_unschedulable(client: &Client, namespace: &str, name: &str) -> Pod {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 node(s) were unschedulable.", "lastTransitionTime": seconds(),
    });
    let status = json!({"status": {"conditions": [condition]}});
    status_of_pod(client, namespace, name, "kube-scheduler", status).await
}

async fn status_of_pod(client: &Client, namespace: &str, name: &str, manager: &str, status: Value) -> Pod {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(manager);
    pods.patch_status(name, &params, &Patch::Strategic(status))
        .await
        .unwrap()
}

/// Binds the pod to the node as the scheduler does.
pub(crate) async fn bind(client: &Client, namespace: &str, name: &str, node: &str) {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    let request = hyper::Request::post(path)
        .header("Content-Type", "application/json")
        .body(binding.to_string().into_bytes())
        .unwrap();
    client.request_text(request).await.unwrap();
}

async fn priority_class(client: &Client, priority: i32) -> String {
    let name = format!("trial-{priority}").replace("--", "-minus-");
    let classes: Api<PriorityClass> = Api::all(client.clone());
    let class = of(json!({"metadata": {"name": name}, "value": priority}));
    match classes.create(&PostParams::default(), &class).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("no PriorityClass {name}: {error}"),
    }
    name
}

/// Makes a budget over the pods with this label, of which `allowed` may be evicted; counts as the disruption controller would.
pub(crate) async fn budget(client: &Client, namespace: &str, name: &str, label: (&str, &str), allowed: i32) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let (key, value) = label;
    let made =
        json!({"metadata": {"name": name}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {key: value}}}});
    budgets.create(&PostParams::default(), &of(made)).await.unwrap();
    allow(client, namespace, name, allowed).await;
}

/// Says as the disruption controller how many pods of the budget may be evicted.
pub(crate) async fn allow(client: &Client, namespace: &str, name: &str, allowed: i32) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let generation = budgets.get(name).await.unwrap().metadata.generation;
    let status = json!({"status": {
        "disruptionsAllowed": allowed, "currentHealthy": allowed + 1, "desiredHealthy": 1 + i32::from(allowed == 0),
        "expectedPods": allowed + 1, "observedGeneration": generation,
    }});
    let as_controller = PatchParams::apply("kube-controller-manager");
    budgets
        .patch_status(name, &as_controller, &Patch::Merge(status))
        .await
        .unwrap();
}

/// An object of what it looks like as JSON.
pub(crate) fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn now() -> Timestamp {
    vmstation_agent::power_log::wall_clock().timestamp()
}

fn seconds() -> String {
    format!("{:.0}", now())
}

fn microseconds() -> String {
    format!("{:.6}", now())
}
