//! Lists: selectors and parts.

use super::{
    asking::{Asker, PODS, names},
    cluster::{
        Cluster,
        objects::{NewNode, NewPod},
    },
};

async fn three_pods(cluster: &Cluster) -> Asker {
    let client = cluster.client().await;
    NewNode::new("n1").create(&client).await;
    let pod = |name| NewPod::new("default", name);
    pod("a")
        .label("app", "web")
        .label("tier", "one")
        .on("n1")
        .create(&client)
        .await;
    pod("b")
        .label("app", "web")
        .on("n1")
        .phase("Succeeded")
        .create(&client)
        .await;
    pod("c").label("app", "db").create(&client).await;
    Asker(client)
}

pub(crate) async fn by_fields(cluster: &Cluster) {
    let asker = three_pods(cluster).await;
    for (selector, wanted) in [
        ("spec.nodeName%3Dn1", vec!["a", "b"]),
        ("spec.nodeName%3D", vec!["c"]),
        ("spec.nodeName%3Dn1,status.phase!%3DSucceeded", vec!["a"]),
        ("metadata.name%3Db,metadata.namespace%3Ddefault", vec!["b"]),
        ("status.phase%3DPending", vec!["c"]),
    ] {
        let (code, list) = asker.get(&format!("/api/v1/pods?fieldSelector={selector}")).await;
        assert_eq!(
            (code, names(&list)),
            (200, wanted.into_iter().map(str::to_owned).collect()),
            "{selector}"
        );
    }
    let (_, cordoned) = asker
        .get("/api/v1/nodes?fieldSelector=spec.unschedulable%3Dfalse")
        .await;
    assert_eq!(names(&cordoned), ["n1"]);
}

pub(crate) async fn by_an_unknown_field(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    let (code, status) = asker.get("/api/v1/pods?fieldSelector=spec.colour%3Dred").await;
    assert_eq!((code, status["reason"].as_str()), (400, Some("BadRequest")));
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("field label not supported: spec.colour"),
        "{status}"
    );
    let (code, _) = asker.get("/api/v1/nodes?fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(code, 400);
}

pub(crate) async fn by_labels(cluster: &Cluster) {
    let asker = three_pods(cluster).await;
    for (selector, wanted) in [
        ("app%3Dweb", vec!["a", "b"]),
        ("app!%3Dweb", vec!["c"]),
        ("tier", vec!["a"]),
        ("!tier", vec!["b", "c"]),
        ("app+in+(web,db),tier", vec!["a"]),
        ("app+notin+(web)", vec!["c"]),
        ("tier!%3Dtwo", vec!["a", "b", "c"]),
    ] {
        let (code, list) = asker.get(&format!("{PODS}?labelSelector={selector}")).await;
        assert_eq!(
            (code, names(&list)),
            (200, wanted.into_iter().map(str::to_owned).collect()),
            "{selector}"
        );
    }
}

pub(crate) async fn in_parts(cluster: &Cluster) {
    let asker = three_pods(cluster).await;
    let (_, first) = asker.get(&format!("{PODS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    // What comes meanwhile is of no part.
    NewPod::new("default", "d").create(&asker.0).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = asker.get(&format!("{PODS}?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert!(second["metadata"].get("continue").is_none());
}

/// As the agents ask at their checks.
pub(crate) async fn not_older_than(cluster: &Cluster) {
    let asker = three_pods(cluster).await;
    let (_, all) = asker.get(PODS).await;
    let known = all["metadata"]["resourceVersion"].as_str().unwrap();
    let asked = format!("{PODS}?fieldSelector=metadata.name%3Db&resourceVersionMatch=NotOlderThan&resourceVersion");
    let (code, list) = asker.get(&format!("{asked}={known}")).await;
    assert_eq!((code, names(&list)), (200, vec!["b".to_owned()]), "{list}");
    let version = |list: &serde_json::Value| {
        list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(version(&list) >= version(&all));
    // Of any age.
    let (code, list) = asker.get(&format!("{asked}=0")).await;
    assert_eq!(code, 200, "{list}");
}

pub(crate) async fn of_a_future_version(cluster: &Cluster) {
    let asker = three_pods(cluster).await;
    let (code, status) = asker.get(&format!("{PODS}?resourceVersion=99999999")).await;
    assert_eq!((code, status["reason"].as_str()), (504, Some("Timeout")), "{status}");
}

pub(crate) async fn of_metadata_alone(cluster: &Cluster) {
    use k8s_openapi::api::core::v1::Pod;
    let asker = three_pods(cluster).await;
    let pods: kube::Api<Pod> = kube::Api::namespaced(asker.0.clone(), "default");
    let list = pods.list_metadata(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 3);
    assert!(list.items.iter().all(|item| item.metadata.uid.is_some()));
}
