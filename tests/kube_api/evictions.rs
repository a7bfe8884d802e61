//! Evictions and disruption budgets.

use serde_json::{Value, json};

use super::{
    asking::{Asker, MERGE, PODS},
    cluster::{
        Cluster,
        objects::{NewNode, NewPod, budget},
    },
};

const BUDGET: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web";

async fn pods(cluster: &Cluster) -> Asker {
    let client = cluster.client().await;
    NewNode::new("n1").create(&client).await;
    for name in ["p1", "p2"] {
        NewPod::new("default", name)
            .label("app", "web")
            .on("n1")
            .create(&client)
            .await;
    }
    Asker(client)
}

async fn is_going(asker: &Asker, pod: &str) -> bool {
    let (_, pod) = asker.get(&format!("{PODS}/{pod}")).await;
    pod["metadata"].get("deletionTimestamp").is_some()
}

pub(crate) async fn without_a_budget(cluster: &Cluster) {
    let asker = pods(cluster).await;
    let (code, status) = asker.evict("p1", Value::Null).await;
    assert_eq!((code, status["status"].as_str()), (201, Some("Success")), "{status}");
    let (_, pod) = asker.get(&format!("{PODS}/p1")).await;
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let marked = conditions
        .iter()
        .find(|condition| condition["type"] == "DisruptionTarget")
        .unwrap();
    assert_eq!(marked["reason"], "EvictionByEvictionAPI");
    // It is terminating already, and that is no failure.
    assert_eq!(asker.evict("p1", Value::Null).await.0, 201);
}

pub(crate) async fn counted(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 1).await;
    assert_eq!(asker.evict("p1", Value::Null).await.0, 201);
    let (_, now) = asker.get(BUDGET).await;
    assert_eq!(now["status"]["disruptionsAllowed"], 0);
    assert!(now["status"]["disruptedPods"]["p1"].is_string());
    assert_eq!(asker.evict("p2", Value::Null).await.0, 429);
    assert!(!is_going(&asker, "p2").await);
}

pub(crate) async fn refused(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 0).await;
    let (code, status) = asker.evict("p1", Value::Null).await;
    assert_eq!((code, status["reason"].as_str()), (429, Some("TooManyRequests")));
    assert_eq!(
        status["message"],
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["reason"], "DisruptionBudget");
    assert_eq!(
        cause["message"],
        "The disruption budget web needs 2 healthy pods and has 1 currently"
    );
    assert!(!is_going(&asker, "p1").await);
}

pub(crate) async fn not_yet_counted(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 1).await;
    // The controller has not seen what the budget says by then.
    assert_eq!(
        asker.patch(BUDGET, MERGE, json!({"spec": {"minAvailable": 2}})).await.0,
        200
    );
    let (code, status) = asker.evict("p1", Value::Null).await;
    assert_eq!(code, 429);
    let why = status["details"]["causes"][0]["message"].as_str().unwrap();
    assert_eq!(why, "The disruption budget web is still being processed by the server.");
}

pub(crate) async fn two_budgets(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 1).await;
    budget(&asker.0, "default", "web-again", ("app", "web"), 1).await;
    let (code, status) = asker.evict("p1", Value::Null).await;
    assert_eq!(code, 500);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("more than one PodDisruptionBudget"),
        "{status}"
    );
    assert!(!is_going(&asker, "p1").await);
}

pub(crate) async fn rehearsed(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 1).await;
    assert_eq!(asker.evict("p1", json!({"dryRun": ["All"]})).await.0, 201);
    assert!(!is_going(&asker, "p1").await);
    assert_eq!(asker.get(BUDGET).await.1["status"]["disruptionsAllowed"], 1);
}

pub(crate) async fn another_of_the_name(cluster: &Cluster) {
    let asker = pods(cluster).await;
    assert_eq!(asker.evict("nobody", Value::Null).await.0, 404);
    let (code, status) = asker.evict("p1", json!({"preconditions": {"uid": "another"}})).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")), "{status}");
    assert!(!is_going(&asker, "p1").await);
    let uid = asker.get(&format!("{PODS}/p1")).await.1["metadata"]["uid"].clone();
    assert_eq!(asker.evict("p1", json!({"preconditions": {"uid": uid}})).await.0, 201);
}

pub(crate) async fn finished_pods(cluster: &Cluster) {
    let asker = pods(cluster).await;
    budget(&asker.0, "default", "web", ("app", "web"), 0).await;
    let pod = |name| NewPod::new("default", name).label("app", "web").on("n1");
    pod("done").phase("Succeeded").create(&asker.0).await;
    pod("starting").phase("Pending").create(&asker.0).await;
    for name in ["done", "starting"] {
        assert_eq!(asker.evict(name, Value::Null).await.0, 201, "{name}");
    }
    assert_eq!(asker.get(&format!("{PODS}/done")).await.0, 404);
    assert!(is_going(&asker, "starting").await);
}
