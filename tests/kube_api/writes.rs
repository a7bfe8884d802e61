//! Creating, changing and deleting.

use serde_json::{Value, json};

use super::{
    asking::{Asker, JSON_PATCH, MERGE, PODS, STRATEGIC},
    cluster::{
        Cluster,
        objects::{NewNode, NewPod, renew_lease},
    },
};

const N1: &str = "/api/v1/nodes/n1";
const P1: &str = "/api/v1/namespaces/default/pods/p1";

async fn one_node(cluster: &Cluster) -> Asker {
    let client = cluster.client().await;
    NewNode::new("n1")
        .label("zone", "a")
        .taint("kept", "yes", "NoSchedule")
        .create(&client)
        .await;
    Asker(client)
}

async fn one_pod(cluster: &Cluster) -> Asker {
    let asker = one_node(cluster).await;
    NewPod::new("default", "p1").on("n1").create(&asker.0).await;
    asker
}

fn is_refused(answer: &(u16, Value), code: u16, reason: &str) {
    assert_eq!(
        (answer.0, answer.1["reason"].as_str()),
        (code, Some(reason)),
        "{}",
        answer.1
    );
    assert_eq!(answer.1["kind"], "Status");
    assert_eq!(
        (answer.1["status"].as_str(), answer.1["code"].as_u64()),
        (Some("Failure"), Some(code.into()))
    );
}

pub(crate) async fn missing_and_double(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let missing = asker.get("/api/v1/nodes/nobody").await;
    is_refused(&missing, 404, "NotFound");
    assert_eq!(missing.1["message"], "nodes \"nobody\" not found");
    assert_eq!(missing.1["details"], json!({"name": "nobody", "kind": "nodes"}));
    let lease = asker
        .get("/apis/coordination.k8s.io/v1/namespaces/default/leases/none")
        .await;
    assert_eq!(lease.1["message"], "leases.coordination.k8s.io \"none\" not found");
    assert_eq!(lease.1["details"]["group"], "coordination.k8s.io");
    let node = json!({"metadata": {"name": "n1"}});
    is_refused(&asker.post("/api/v1/nodes", node).await, 409, "AlreadyExists");
    let config = json!({"metadata": {"name": "x"}});
    let nowhere = asker.post("/api/v1/namespaces/nowhere/configmaps", config).await;
    is_refused(&nowhere, 404, "NotFound");
    assert_eq!(nowhere.1["message"], "namespaces \"nowhere\" not found");
}

pub(crate) async fn names_are_made(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    let config = json!({"metadata": {"generateName": "made-"}});
    let path = "/api/v1/namespaces/default/configmaps";
    let (code, first) = asker.post(path, config.clone()).await;
    let (_, second) = asker.post(path, config).await;
    assert_eq!(code, 201);
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("made-") && name.len() == 10, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    is_refused(&asker.post(path, json!({"metadata": {}})).await, 422, "Invalid");
}

pub(crate) async fn stale_updates(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let (_, read) = asker.get(N1).await;
    let (code, _) = asker
        .patch(N1, MERGE, json!({"metadata": {"labels": {"x": "1"}}}))
        .await;
    assert_eq!(code, 200);
    let stale = asker.put(N1, read.clone()).await;
    is_refused(&stale, 409, "Conflict");
    assert_eq!(
        stale.1["message"],
        "Operation cannot be fulfilled on nodes \"n1\": the object has been modified; please apply your changes to the latest version and try \
         again"
    );
    let patch = json!({"metadata": {"resourceVersion": read["metadata"]["resourceVersion"], "labels": {"x": "2"}}});
    is_refused(&asker.patch(N1, MERGE, patch).await, 409, "Conflict");
    // Without a version it is taken.
    let mut unconditional = read;
    unconditional["metadata"]["resourceVersion"] = "".into();
    assert_eq!(asker.put(N1, unconditional).await.0, 200);
    let (_, now) = asker.get(N1).await;
    assert!(now["metadata"]["labels"].get("x").is_none());
}

pub(crate) async fn another_of_the_name(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let (_, mut read) = asker.get(N1).await;
    let patch = json!({"metadata": {"uid": "another", "labels": {"x": "1"}}});
    is_refused(&asker.patch(N1, MERGE, patch).await, 422, "Invalid");
    read["metadata"]["uid"] = "another".into();
    is_refused(&asker.put(N1, read).await, 409, "Conflict");
    let options = json!({"preconditions": {"uid": "another"}});
    is_refused(&asker.delete(N1, options).await, 409, "Conflict");
    assert_eq!(asker.get(N1).await.0, 200);
}

pub(crate) async fn nothing_changes(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let (_, before) = asker.get(N1).await;
    let (_, after) = asker
        .patch(N1, MERGE, json!({"metadata": {"labels": {"zone": "a"}}}))
        .await;
    assert_eq!(
        after["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
}

pub(crate) async fn status_is_apart(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let both = json!({"spec": {"unschedulable": true}, "status": {"phase": "Terminated"}});
    let (_, node) = asker.patch(N1, MERGE, both.clone()).await;
    assert_eq!(
        (&node["spec"]["unschedulable"], node["status"].get("phase")),
        (&json!(true), None)
    );
    asker.patch(N1, MERGE, json!({"spec": {"unschedulable": null}})).await;
    let (_, node) = asker.patch(&format!("{N1}/status"), MERGE, both).await;
    assert_eq!(
        (node["spec"].get("unschedulable"), &node["status"]["phase"]),
        (None, &json!("Terminated"))
    );
}

pub(crate) async fn merge_patch(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let patch = json!({
        "metadata": {"labels": {"zone": null, "x": "1"}},
        "spec": {"taints": [{"key": "asleep", "effect": "NoSchedule"}]},
    });
    let (code, node) = asker.patch(N1, MERGE, patch).await;
    assert_eq!(code, 200);
    assert!(node["metadata"]["labels"].get("zone").is_none());
    assert_eq!(node["metadata"]["labels"]["x"], "1");
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "asleep", "effect": "NoSchedule"}])
    );
}

pub(crate) async fn strategic_patch(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let status = json!({"status": {"conditions": [{"type": "MemoryPressure", "status": "False"}]}});
    asker.patch(&format!("{N1}/status"), STRATEGIC, status).await;
    let changed = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let (_, node) = asker.patch(&format!("{N1}/status"), STRATEGIC, changed).await;
    let conditions = node["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 2);
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .unwrap();
    // The element is merged, not replaced.
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("Unknown"), Some("KubeletReady"))
    );
    let deleted = json!({"status": {"conditions": [{"type": "MemoryPressure", "$patch": "delete"}]}});
    let (_, node) = asker.patch(&format!("{N1}/status"), STRATEGIC, deleted).await;
    assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 1);
    // Taints have no merge key: who patches them replaces those of others.
    let taints = json!({"spec": {"taints": [{"key": "asleep", "effect": "NoSchedule"}]}});
    let (_, node) = asker.patch(N1, STRATEGIC, taints).await;
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "asleep", "effect": "NoSchedule"}])
    );
}

pub(crate) async fn json_patch(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let patch = json!([
        {"op": "test", "path": "/spec/taints/0/key", "value": "kept"},
        {"op": "add", "path": "/spec/taints/-", "value": {"key": "asleep", "effect": "NoSchedule"}},
        {"op": "add", "path": "/metadata/labels/example.org~1x", "value": "1"},
        {"op": "remove", "path": "/metadata/labels/zone"},
    ]);
    let (code, node) = asker.patch(N1, JSON_PATCH, patch.clone()).await;
    assert_eq!(code, 200);
    assert_eq!(node["spec"]["taints"].as_array().unwrap().len(), 2);
    assert_eq!(node["metadata"]["labels"]["example.org/x"], "1");
    // What it removes is gone: nothing of it is done twice.
    is_refused(&asker.patch(N1, JSON_PATCH, patch).await, 422, "Invalid");
    let (_, node) = asker.get(N1).await;
    assert_eq!(node["spec"]["taints"].as_array().unwrap().len(), 2);
}

pub(crate) async fn unknown_patch(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    is_refused(
        &asker.patch(N1, "application/json", json!({})).await,
        415,
        "UnsupportedMediaType",
    );
}

pub(crate) async fn rehearsed(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let (_, before) = asker.get(N1).await;
    let cordon = json!({"spec": {"unschedulable": true}});
    let (code, said) = asker.patch(&format!("{N1}?dryRun=All"), MERGE, cordon).await;
    assert_eq!((code, &said["spec"]["unschedulable"]), (200, &json!(true)));
    let config = json!({"metadata": {"name": "rehearsed"}});
    let (code, _) = asker
        .post("/api/v1/namespaces/default/configmaps?dryRun=All", config)
        .await;
    assert_eq!(code, 201);
    assert_eq!(
        asker.get("/api/v1/namespaces/default/configmaps/rehearsed").await.0,
        404
    );
    assert_eq!(asker.delete(&format!("{N1}?dryRun=All"), Value::Null).await.0, 200);
    assert_eq!(asker.get(N1).await.1, before);
}

pub(crate) async fn who_cordoned(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let cordon = json!({"spec": {"unschedulable": true}});
    asker
        .patch(&format!("{N1}?fieldManager=administrator"), MERGE, cordon.clone())
        .await;
    // Who writes what is there already does not manage it.
    asker.patch(&format!("{N1}?fieldManager=second"), MERGE, cordon).await;
    assert_eq!(managers(&asker).await, ["administrator"]);
    asker
        .patch(
            &format!("{N1}?fieldManager=second"),
            MERGE,
            json!({"spec": {"unschedulable": false}}),
        )
        .await;
    let (_, node) = asker.get(N1).await;
    assert!(node["spec"].get("unschedulable").is_none(), "false is not written down");
    assert_eq!(managers(&asker).await, Vec::<String>::new());
}

async fn managers(asker: &Asker) -> Vec<String> {
    let (_, node) = asker.get(N1).await;
    let entries = node["metadata"]["managedFields"].as_array().unwrap().clone();
    let of_cordon = entries
        .iter()
        .filter(|entry| entry["fieldsV1"].pointer("/f:spec/f:unschedulable").is_some());
    of_cordon
        .map(|entry| {
            assert!(entry["time"].is_string() && entry["operation"] == "Update", "{entry}");
            entry["manager"].as_str().unwrap().to_owned()
        })
        .collect()
}

pub(crate) async fn graceful_deletion(cluster: &Cluster) {
    let asker = one_pod(cluster).await;
    let (code, pod) = asker.delete(P1, Value::Null).await;
    assert_eq!(
        (code, &pod["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(30))
    );
    assert!(asker.get(P1).await.1["metadata"]["deletionTimestamp"].is_string());
    // It can be hurried, and not delayed.
    let (_, pod) = asker.delete(P1, json!({"gracePeriodSeconds": 5})).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 5);
    let (_, pod) = asker.delete(P1, json!({"gracePeriodSeconds": 60})).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 5);
    asker.delete(P1, json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(asker.get(P1).await.0, 404);
}

pub(crate) async fn unbound_pods_go_at_once(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    NewPod::new("default", "p1").create(&asker.0).await;
    assert_eq!(asker.delete(P1, Value::Null).await.0, 200);
    assert_eq!(asker.get(P1).await.0, 404);
}

pub(crate) async fn finalizers(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    asker
        .patch(N1, MERGE, json!({"metadata": {"finalizers": ["example.org/last"]}}))
        .await;
    assert_eq!(asker.delete(N1, Value::Null).await.0, 200);
    assert!(asker.get(N1).await.1["metadata"]["deletionTimestamp"].is_string());
    asker.patch(N1, MERGE, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(asker.get(N1).await.0, 404);
}

pub(crate) async fn pods_as_made(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let pod = json!({"metadata": {"name": "p1"}, "spec": {"containers": [{"name": "main", "image": "pause"}]}, "status": {"phase": "Running"}});
    let (code, pod) = asker.post(PODS, pod).await;
    assert_eq!(code, 201);
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["spec"]["priority"], 0);
    assert_eq!(pod["status"]["phase"], "Pending");
    let moved = json!({"spec": {"nodeName": "n1"}});
    is_refused(&asker.patch(P1, MERGE, moved).await, 422, "Invalid");
    NewPod::new("default", "p2").priority(7).create(&asker.0).await;
    assert_eq!(asker.get(&format!("{PODS}/p2")).await.1["spec"]["priority"], 7);
    let unknown = json!({"metadata": {"name": "p3"}, "spec": {"priorityClassName": "none", "containers": [{"name": "main", "image": "pause"}]}});
    is_refused(&asker.post(PODS, unknown).await, 403, "Forbidden");
}

pub(crate) async fn binding(cluster: &Cluster) {
    let asker = one_pod(cluster).await;
    let (_, pod) = asker.get(P1).await;
    assert_eq!(pod["spec"]["nodeName"], "n1");
    let scheduled = pod["status"]["conditions"].as_array().unwrap().iter();
    assert_eq!(
        scheduled
            .filter(|condition| condition["type"] == "PodScheduled")
            .count(),
        1
    );
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p1"}, "target": {"kind": "Node", "name": "n2"}});
    is_refused(&asker.post(&format!("{P1}/binding"), binding).await, 409, "Conflict");
}

pub(crate) async fn leases(cluster: &Cluster) {
    let asker = one_node(cluster).await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    renew_lease(&asker.0, "n1").await;
    let (_, first) = asker.get(path).await;
    renew_lease(&asker.0, "n1").await;
    let (_, second) = asker.get(path).await;
    assert!(second["spec"]["renewTime"].as_str() > first["spec"]["renewTime"].as_str());
    // Two candidates for a Lease: the later one with the same version loses.
    let mut mine = second.clone();
    mine["spec"]["holderIdentity"] = "mine".into();
    assert_eq!(asker.put(path, mine).await.0, 200);
    let mut theirs = second.clone();
    theirs["spec"]["holderIdentity"] = "theirs".into();
    is_refused(&asker.put(path, theirs.clone()).await, 409, "Conflict");
    theirs["metadata"]["resourceVersion"] = "".into();
    is_refused(&asker.put(path, theirs).await, 422, "Invalid");
}
