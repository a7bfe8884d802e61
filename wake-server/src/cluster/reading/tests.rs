use std::time::Duration;

use serde_json::{Value, json};

use super::{node, pod};
use crate::{
    fit::{Doubt, Operator},
    workload::{Phase, Pod},
};

fn read_pod(object: Value) -> Pod {
    pod(&serde_json::from_value(object).unwrap()).unwrap()
}

fn with_spec(spec: &Value) -> Pod {
    read_pod(json!({"metadata": {"namespace": "games", "name": "p", "uid": "1"}, "spec": spec}))
}

#[test]
fn a_node_of_1_29_is_read() {
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node1", "uid": "u1", "resourceVersion": "42", "labels": {"a": "b"},
            "managedFields": [
                {"manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}}},
                {"manager": "kubectl-cordon", "operation": "Update", "time": "2024-01-02T03:04:05Z",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}]},
        "spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]},
        "status": {"allocatable": {"cpu": "3920m", "memory": "16Gi", "pods": "110", "odd": "many"},
            "conditions": [{"type": "Ready", "status": "True"}]}
    });
    let read = node(&serde_json::from_value(object).unwrap()).unwrap();
    assert_eq!(
        (read.name.as_str(), read.uid.as_str(), read.resource_version.as_str()),
        ("node1", "u1", "42")
    );
    assert!(read.unschedulable && read.ready);
    let expected = [("cpu", 3920), ("memory", 17_179_869_184_000), ("pods", 110_000)];
    assert_eq!(
        read.allocatable,
        expected.map(|(name, amount)| (name.to_owned(), amount)).into()
    );
    assert_eq!(read.taints[0].effect, "NoSchedule");
    let cordoned = "2024-01-02T03:04:05Z".parse().unwrap();
    assert_eq!(read.cordoned_by, [("kubectl-cordon".to_owned(), Some(cordoned))]);
}

#[test]
fn what_is_essential_is_missed_by_name() {
    let no_uid = node(&serde_json::from_value(json!({"metadata": {"name": "node1"}})).unwrap());
    assert_eq!(no_uid.unwrap_err().to_string(), "node node1 has no UID");
    assert!(node(&serde_json::from_value(json!({"metadata": {"uid": "1"}})).unwrap()).is_err());
    let no_uid = pod(&serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "p"}})).unwrap());
    assert_eq!(no_uid.unwrap_err().to_string(), "pod n/p has no UID");
}

#[test]
fn a_pod_of_1_29_is_read() {
    let read = read_pod(json!({
        "metadata": {"namespace": "games", "name": "web-1", "uid": "1", "creationTimestamp": "2024-01-01T00:00:00Z",
            "annotations": {"kubernetes.io/config.mirror": "x"}, "deletionTimestamp": "2024-01-02T00:00:00Z",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r", "controller": true}]},
        "spec": {"nodeName": "node1", "priority": 7, "priorityClassName": "high", "hostNetwork": true,
            "terminationGracePeriodSeconds": 5, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"},
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "lastTransitionTime": "2024-01-01T00:00:09Z"}]}
    }));
    assert_eq!(read.node.unwrap().as_str(), "node1");
    assert_eq!(read.phase, Phase::Running);
    assert_eq!(read.controller.unwrap().uid, "r");
    assert!(read.is_mirror && read.is_terminating && read.is_ready && read.has_local_storage && read.uses_host_network);
    assert_eq!(
        (read.priority, read.priority_class.as_deref(), read.grace),
        (7, Some("high"), Duration::from_secs(5))
    );
    assert_eq!(read.unschedulable_since, Some("2024-01-01T00:00:09Z".parse().unwrap()));
    assert_eq!(read.needs.ports.len(), 1);
    assert_eq!(
        (read.needs.ports[0].address.as_str(), read.needs.ports[0].port),
        ("0.0.0.0", 8080)
    );
    assert!(read.needs.doubts.is_empty());
}

#[test]
fn sidecars_and_init_containers_add_up_as_the_scheduler_adds_them() {
    let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
    let sum = |init: Value, own: Value| {
        let spec = json!({"initContainers": init, "containers": [{"name": "c", "resources": cpu("100m")},
            {"name": "d", "resources": cpu("200m")}], "overhead": {"cpu": "10m"}, "resources": own, "unheardOf": {"x": 1}});
        with_spec(&spec).needs.requests["cpu"]
    };
    let sidecar = |amount| json!({"name": "s", "restartPolicy": "Always", "resources": cpu(amount)});
    let init = |amount| json!({"name": "i", "resources": cpu(amount)});
    assert_eq!(sum(json!([]), json!({})), 310);
    assert_eq!(sum(json!([init("250m")]), json!({})), 310);
    assert_eq!(sum(json!([init("1")]), json!({})), 1010);
    assert_eq!(sum(json!([sidecar("50m")]), json!({})), 360);
    assert_eq!(sum(json!([sidecar("50m"), init("1")]), json!({})), 1060);
    assert_eq!(sum(json!([init("1"), sidecar("50m")]), json!({})), 1010);
    assert_eq!(sum(json!([sidecar("50m")]), cpu("2")), 2010);
}

#[test]
fn while_amounts_change_the_larger_ones_count() {
    let cpu = |amount: &str| json!({"cpu": amount});
    let spec = json!({"containers": [{"name": "c", "resources": {"requests": cpu("2")}}, {"name": "d"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": cpu("100m")}}]});
    let sum = |spec: &Value, status: Value| {
        let metadata = json!({"namespace": "games", "name": "p", "uid": "1"});
        read_pod(json!({"metadata": metadata, "spec": spec, "status": status}))
            .needs
            .requests["cpu"]
    };
    let granted = |allocated: &str, in_force: &str| {
        let of_c = json!({"name": "c", "allocatedResources": cpu(allocated), "resources": {"requests": cpu(in_force)}});
        json!({"containerStatuses": [of_c, {"name": "d", "resources": {}}]})
    };
    assert_eq!(sum(&spec, json!({"containerStatuses": [{"name": "c"}]})), 2100);
    assert_eq!(sum(&spec, granted("2", "2")), 2100);
    // It grows: it is not yet granted. It shrinks: granted, but not yet in force; and not yet granted.
    assert_eq!(sum(&spec, granted("1", "1")), 2100);
    assert_eq!(sum(&spec, granted("2", "3")), 3100);
    assert_eq!(sum(&spec, granted("3", "3")), 3100);
    let sidecar = json!({"initContainerStatuses": [{"name": "s", "allocatedResources": cpu("200m"), "resources": {}}]});
    assert_eq!(sum(&spec, sidecar), 2200);
    for (reason, expected) in [("Deferred", 2100), ("Infeasible", 1100)] {
        let mut status = granted("1", "1");
        status["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
        assert_eq!(sum(&spec, status), expected, "{reason}");
    }

    let mut whole = spec;
    whole["resources"] = json!({"requests": cpu("4")});
    whole["overhead"] = cpu("250m");
    let granted = |allocated: &str, in_force: &str| json!({"allocatedResources": cpu(allocated), "resources": {"requests": cpu(in_force)}});
    assert_eq!(sum(&whole, json!({})), 4250);
    assert_eq!(sum(&whole, granted("3250m", "3250m")), 4250);
    assert_eq!(sum(&whole, granted("4250m", "5250m")), 5250);
    // What only its containers state stays theirs.
    let mut of_memory = whole.clone();
    of_memory["resources"] = json!({"requests": {"memory": "1Gi"}});
    assert_eq!(sum(&of_memory, granted("1250m", "1250m")), 2350);
    let mut status = granted("3250m", "3250m");
    status["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
    assert_eq!(sum(&whole, status), 3250);
}

#[test]
fn a_gated_pod_is_not_refused_by_the_scheduler() {
    let since = |reason: &str| {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason});
        let metadata =
            json!({"namespace": "games", "name": "p", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let spec = json!({"containers": [{"name": "c"}], "schedulingGates": [{"name": "quota"}]});
        let status = json!({"phase": "Pending", "conditions": [condition]});
        read_pod(json!({"metadata": metadata, "spec": spec, "status": status})).unschedulable_since
    };
    assert_eq!(since("SchedulingGated"), None);
    assert!(since("Unschedulable").is_some());
}

#[test]
fn what_is_not_judged_is_a_doubt() {
    let term = json!([{"topologyKey": "t"}]);
    let spec = json!({
        "schedulerName": "other",
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "lots"}}}],
        "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term},
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "k", "operator": "Near", "values": ["v"]}]}]}}},
        "tolerations": [{"key": "k", "operator": "Like", "value": "5"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "t", "whenUnsatisfiable": "DoNotSchedule"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "tmp", "emptyDir": {}}],
        "resourceClaims": [{"name": "gpu"}],
        "schedulingGroup": {"podGroupName": "training"}
    });
    let needs = with_spec(&spec).needs;
    assert_eq!(needs.affinity.unwrap().terms[0].labels[0].operator, Operator::Unknown);
    assert!(needs.tolerations.is_empty());
    let text = |text: &str| text.to_owned();
    let expected = [
        Doubt::Amount {
            resource: text("cpu"),
            text: text("lots"),
        },
        Doubt::Operator(text("Near")),
        Doubt::Operator(text("Like")),
        Doubt::PodAffinity,
        Doubt::Spread,
        Doubt::Volume(text("data")),
        Doubt::Devices,
        Doubt::Group(text("training")),
        Doubt::Scheduler(text("other")),
    ];
    assert_eq!(needs.doubts, expected);
    let soft = json!({"containers": [], "topologySpreadConstraints":
        [{"maxSkew": 1, "topologyKey": "t", "whenUnsatisfiable": "ScheduleAnyway"}]});
    assert!(with_spec(&soft).needs.doubts.is_empty());
}
