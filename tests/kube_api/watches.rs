//! Watches.

use serde_json::{Value, json};

use super::{
    asking::{Asker, MERGE, PODS, told},
    cluster::{
        Cluster,
        objects::{NewNode, NewPod, bind, set_phase},
    },
};

async fn version(asker: &Asker) -> String {
    let (_, list) = asker.get("/api/v1/pods").await;
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

pub(crate) async fn from_a_version(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    NewNode::new("n1").create(&asker.0).await;
    NewPod::new("default", "before").create(&asker.0).await;
    let from = version(&asker).await;
    NewPod::new("default", "p1").create(&asker.0).await;
    asker
        .patch(
            &format!("{PODS}/p1"),
            MERGE,
            json!({"metadata": {"labels": {"x": "1"}}}),
        )
        .await;
    asker.delete(&format!("{PODS}/p1"), Value::Null).await;
    let events = asker
        .watch(&format!("{PODS}?watch=true&resourceVersion={from}&timeoutSeconds=1"))
        .await;
    // One that is being deleted is told as such first.
    let going = &events[2]["object"]["metadata"];
    assert!(going["deletionTimestamp"].is_string(), "{events:?}");
    assert_eq!(
        told(&events),
        [
            ("ADDED", "p1"),
            ("MODIFIED", "p1"),
            ("MODIFIED", "p1"),
            ("DELETED", "p1")
        ]
    );
    let versions = events.iter().map(|event| {
        let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
        version.parse::<u64>().unwrap()
    });
    assert!(versions.collect::<Vec<_>>().is_sorted_by(|a, b| a < b), "{events:?}");
}

pub(crate) async fn from_nothing(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    NewPod::new("default", "p1").create(&asker.0).await;
    let events = asker
        .watch(&format!("{PODS}?watch=true&resourceVersion=0&timeoutSeconds=1"))
        .await;
    assert_eq!(told(&events), [("ADDED", "p1")]);
}

pub(crate) async fn through_a_selector(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    NewNode::new("n1").create(&asker.0).await;
    let from = version(&asker).await;
    NewPod::new("default", "p1").create(&asker.0).await;
    bind(&asker.0, "default", "p1", "n1").await;
    set_phase(&asker.0, "default", "p1", "Running", true).await;
    set_phase(&asker.0, "default", "p1", "Succeeded", false).await;
    let selector = "spec.nodeName%3Dn1,status.phase!%3DSucceeded";
    let query = format!("watch=true&fieldSelector={selector}&resourceVersion={from}&timeoutSeconds=1");
    let events = asker.watch(&format!("/api/v1/pods?{query}")).await;
    assert_eq!(told(&events), [("ADDED", "p1"), ("MODIFIED", "p1"), ("DELETED", "p1")]);
    // What left the selector is told as it was when it belonged to it, with the version of its leaving.
    let last = &events[2]["object"];
    assert_eq!(last["status"]["phase"], "Running");
    assert_eq!(
        asker.get(&format!("{PODS}/p1")).await.1["metadata"]["resourceVersion"],
        last["metadata"]["resourceVersion"]
    );
}

pub(crate) async fn bookmarks(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    // A watch that was never told anything of its kind gets none.
    NewPod::new("default", "p1").create(&asker.0).await;
    let from = version(&asker).await;
    let config = json!({"metadata": {"name": "other"}});
    asker.post("/api/v1/namespaces/default/configmaps", config).await;
    let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds=4");
    let events = asker.watch(&format!("{PODS}?{query}")).await;
    let Some(bookmark) = events.last() else {
        // Kubernetes promises none; the fake sends one, so that trials see what it does.
        assert!(cluster.fake().is_none(), "no bookmark");
        return;
    };
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "Pod");
    let told = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(told.parse::<u64>().unwrap() >= from.parse().unwrap(), "{events:?}");
}

pub(crate) async fn too_old(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    NewPod::new("default", "p1").create(&asker.0).await;
    cluster.fake().unwrap().compact();
    let events = asker
        .watch(&format!("{PODS}?watch=true&resourceVersion=1&timeoutSeconds=2"))
        .await;
    assert_eq!(events[0]["type"], "ERROR", "{events:?}");
    let status = &events[0]["object"];
    assert_eq!(
        (status["code"].as_u64(), status["reason"].as_str()),
        (Some(410), Some("Expired"))
    );
}
