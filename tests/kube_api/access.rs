//! Who may do what.

use serde_json::{Value, json};

use super::{
    asking::{Asker, MERGE},
    cluster::{Cluster, client_of, kube_fake::Rule, objects::NewNode},
};

async fn reader(cluster: &Cluster) -> Asker {
    let rules = [
        Rule::new(&[""], &["nodes"], &["get", "list", "watch"]),
        Rule::new(&[""], &["nodes"], &["patch"]).named(&["n1"]),
        Rule::new(&[""], &["pods"], &["list"]).within("kube-system"),
    ];
    let kubeconfig = cluster.user("reader", &rules).await;
    let client = cluster.client().await;
    for name in ["n1", "n2"] {
        NewNode::new(name).create(&client).await;
    }
    Asker(client_of(&kubeconfig).await)
}

async fn may(asker: &Asker, attributes: Value) -> bool {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, review) = asker.post(path, review).await;
    assert_eq!(code, 201, "{review}");
    review["status"]["allowed"].as_bool().unwrap()
}

pub(crate) async fn reviewed(cluster: &Cluster) {
    let asker = reader(cluster).await;
    for (allowed, attributes) in [
        (true, json!({"verb": "list", "resource": "nodes"})),
        (true, json!({"verb": "patch", "resource": "nodes", "name": "n1"})),
        (false, json!({"verb": "patch", "resource": "nodes", "name": "n2"})),
        (false, json!({"verb": "patch", "resource": "nodes"})),
        (false, json!({"verb": "list", "resource": "pods"})),
        (
            true,
            json!({"verb": "list", "resource": "pods", "namespace": "kube-system"}),
        ),
        (
            false,
            json!({"verb": "create", "resource": "pods", "subresource": "eviction"}),
        ),
    ] {
        assert_eq!(may(&asker, attributes.clone()).await, allowed, "{attributes}");
    }
}

pub(crate) async fn forbidden(cluster: &Cluster) {
    let asker = reader(cluster).await;
    let cordon = json!({"spec": {"unschedulable": true}});
    assert_eq!(asker.patch("/api/v1/nodes/n1", MERGE, cordon.clone()).await.0, 200);
    let (code, status) = asker.patch("/api/v1/nodes/n2", MERGE, cordon).await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(
        status["message"],
        "nodes \"n2\" is forbidden: User \"reader\" cannot patch resource \"nodes\" in API group \"\" at the cluster scope"
    );
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p1"}});
    let (_, status) = asker
        .post("/api/v1/namespaces/default/pods/p1/eviction", eviction)
        .await;
    assert_eq!(
        status["message"],
        "pods \"p1\" is forbidden: User \"reader\" cannot create resource \"pods/eviction\" in API group \"\" in the namespace \"default\""
    );
    let (_, status) = asker.get("/api/v1/pods").await;
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"reader\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
}

pub(crate) async fn unknown_token(cluster: &Cluster) {
    let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let (before, _) = text.split_once("token: ").unwrap();
    let (_, after) = text.split_once("\ncontexts:").unwrap();
    let other = cluster.kubeconfig().with_file_name("kubeconfig-of-nobody");
    std::fs::write(&other, format!("{before}token: unheard-of\ncontexts:{after}")).unwrap();
    let (code, status) = Asker(client_of(&other).await).get("/api/v1/nodes").await;
    assert_eq!((code, status["reason"].as_str()), (401, Some("Unauthorized")));
}
