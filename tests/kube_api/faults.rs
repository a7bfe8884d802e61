//! That the fake fails as it is told to, and the kubelet does what kubelets do.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    asking::{Asker, MERGE, PODS, told},
    cluster::{
        Cluster,
        kube_fake::{KubeFake, Rule, Version},
        kubelet::{AGENT, Kubelet},
        objects::{NewNode, NewPod},
    },
};

const NODES: &str = "/api/v1/nodes";

/// Long enough for an answer that comes at all.
const SOON: Duration = Duration::from_millis(500);

async fn asker(cluster: &Cluster) -> (Asker, &KubeFake) {
    (Asker(cluster.client().await), cluster.fake().unwrap())
}

pub(crate) async fn hangs(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    fake.hang(true);
    assert!(timeout(SOON, asker.get(NODES)).await.is_err());
    fake.hang(false);
    assert_eq!(asker.get(NODES).await.0, 200);
    fake.trickle(true);
    assert!(timeout(SOON, asker.get(NODES)).await.is_err());
    fake.trickle(false);
    fake.delay(2 * SOON);
    assert!(timeout(SOON, asker.get(NODES)).await.is_err());
    assert_eq!(asker.get(NODES).await.0, 200);
}

pub(crate) async fn refuses(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    assert_eq!(asker.get(NODES).await.0, 200);
    fake.refuse();
    let address = fake.url().replace("http://", "");
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());
    fake.accept();
    assert_eq!(asker.get(NODES).await.0, 200);
}

pub(crate) async fn rejects(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    fake.reject_tokens(true);
    assert_eq!(asker.get(NODES).await.0, 401);
    fake.reject_tokens(false);
    assert_eq!(asker.get(NODES).await.0, 200);
    fake.accept_only("rotated");
    assert_eq!(asker.get(NODES).await.0, 401);
    fake.accept_only(fake.token());
    fake.forbid(Rule::new(&[""], &["nodes"], &["list"]));
    let (code, status) = asker.get(NODES).await;
    let message =
        "nodes is forbidden: User \"admin\" cannot list resource \"nodes\" in API group \"\" at the cluster scope";
    assert_eq!((code, status["message"].as_str()), (403, Some(message)));
    fake.forbid_nothing();
    assert_eq!(asker.get(NODES).await.0, 200);
}

pub(crate) async fn fails_next(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    let before = fake.requests().len();
    fake.fail_next(2, "GET", "/nodes", 503);
    assert_eq!(asker.get("/api/v1/pods").await.0, 200);
    assert_eq!(asker.get(NODES).await.0, 503);
    assert_eq!(asker.get(&format!("{NODES}?limit=1")).await.0, 503);
    assert_eq!(asker.get(NODES).await.0, 200);
    let asked = fake.requests_since(before);
    let asked: Vec<_> = asked
        .iter()
        .map(|asked| (asked.path.as_str(), asked.query.as_str()))
        .collect();
    assert_eq!(
        asked,
        [("/api/v1/pods", ""), (NODES, ""), (NODES, "limit=1"), (NODES, "")]
    );
}

pub(crate) async fn ends_watches(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    NewPod::new("default", "p1").create(&asker.0).await;
    let watching = format!("{PODS}?watch=true&resourceVersion={}", fake.revision());
    // They last as long as the server likes, and it does not like to any more.
    let ended = async {
        wait_for_a_watch(fake).await;
        fake.end_watches();
    };
    let (events, ()) = tokio::join!(asker.watch(&watching), ended);
    assert_eq!(told(&events), []);
    let expired = async {
        wait_for_a_watch(fake).await;
        fake.expire_watches();
    };
    let (events, ()) = tokio::join!(asker.watch(&watching), expired);
    assert_eq!(events[0]["object"]["code"], 410);
}

/// Until one more is asked for, and has had time to begin.
async fn wait_for_a_watch(fake: &KubeFake) {
    let known = fake.requests().len();
    while fake.requests().len() == known {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

pub(crate) async fn gone(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    for name in ["p1", "p2"] {
        NewPod::new("default", name).create(&asker.0).await;
    }
    let (_, part) = asker.get(&format!("{PODS}?limit=1")).await;
    fake.compact();
    let next = part["metadata"]["continue"].as_str().unwrap();
    let (code, status) = asker.get(&format!("{PODS}?limit=1&continue={next}")).await;
    assert_eq!((code, status["reason"].as_str()), (410, Some("Expired")));
    fake.gone_by_status(true);
    let (code, _) = asker.get(&format!("{PODS}?watch=true&resourceVersion=1")).await;
    assert_eq!(code, 410);
}

pub(crate) async fn versions(cluster: &Cluster) {
    let (asker, fake) = asker(cluster).await;
    NewNode::new("n1").create(&asker.0).await;
    for (version, minor) in [(Version::Newest, "37"), (Version::Oldest, "29")] {
        fake.be(version);
        let is_newest = version == Version::Newest;
        assert_eq!(asker.get("/version").await.1["minor"], minor);
        let (code, answer) = asker
            .get(&format!(
                "{PODS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
            ))
            .await;
        assert_eq!(code, if is_newest { 200 } else { 422 }, "{answer}");
        // Changes of it are counted, and conditions say of which state they tell.
        let name = format!("p{minor}");
        let pod = NewPod::new("default", &name).on("n1").create(&asker.0).await;
        assert_eq!(pod.metadata.generation, is_newest.then_some(1));
        assert_eq!(asker.evict(&name, Value::Null).await.0, 201);
        let (_, evicted) = asker.get(&format!("{PODS}/{name}")).await;
        let conditions = evicted["status"]["conditions"].as_array().unwrap();
        let target = conditions
            .iter()
            .find(|condition| condition["type"] == "DisruptionTarget")
            .unwrap();
        assert_eq!(target["observedGeneration"].is_number(), is_newest, "{evicted}");
    }
}

pub(crate) async fn kubelet(cluster: &Cluster) {
    let asker = Asker(cluster.client().await);
    NewNode::new("n1").create(&asker.0).await;
    for name in ["p1", "stuck"] {
        NewPod::new("default", name).on("n1").create(&asker.0).await;
    }
    let kubelet = Kubelet::start(cluster, &["n1"]);
    kubelet.leave_stuck("default", "stuck");
    kubelet.renew_leases(true);
    for name in ["p1", "stuck"] {
        asker.delete(&format!("{PODS}/{name}"), Value::Null).await;
    }
    until(&asker, &format!("{PODS}/p1"), 404).await;
    until(
        &asker,
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1",
        200,
    )
    .await;
    assert_eq!(asker.get(&format!("{PODS}/stuck")).await.0, 200);
    kubelet.release("default", "stuck");
    until(&asker, &format!("{PODS}/stuck"), 404).await;
    if let Some(fake) = cluster.fake() {
        assert!(fake.requests().iter().any(|asked| asked.agent == AGENT));
    }
    asker
        .patch("/api/v1/nodes/n1", MERGE, json!({"metadata": {"labels": {"x": "1"}}}))
        .await;
}

async fn until(asker: &Asker, path: &str, code: u16) {
    let came = timeout(Duration::from_secs(20), async {
        while asker.get(path).await.0 != code {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(came.await.is_ok(), "{path} never answers {code}");
}
