//! Requests as they are, for what the client's own types hide.

use http_body_util::BodyExt as _;
use hyper::{Method, Request};
use kube::{Client, client::Body};
use serde_json::{Value, json};

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";

/// Asks, and says the status code with the body.
pub(crate) struct Asker(pub(crate) Client);

impl Asker {
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, "application/json", Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::PUT, path, "application/json", body).await
    }

    pub(crate) async fn delete(&self, path: &str, options: Value) -> (u16, Value) {
        self.ask(Method::DELETE, path, "application/json", options).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        self.ask(Method::PATCH, path, kind, body).await
    }

    /// The lines of a watch, until the server ends it.
    pub(crate) async fn watch(&self, path: &str) -> Vec<Value> {
        let (code, text) = self.text(Method::GET, path, "application/json", Value::Null).await;
        assert_eq!(code, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Evicts a pod of the default namespace.
    pub(crate) async fn evict(&self, pod: &str, options: Value) -> (u16, Value) {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"},
            "deleteOptions": options,
        });
        self.post(&format!("{PODS}/{pod}/eviction"), eviction).await
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: Value) -> (u16, Value) {
        let (code, text) = self.text(method, path, kind, body).await;
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn text(&self, method: Method, path: &str, kind: &str, body: Value) -> (u16, String) {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder().method(method).uri(path);
        let request = request.header("Content-Type", kind).body(Body::from(body)).unwrap();
        let response = self.0.send(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// Names of the objects of a list.
pub(crate) fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    let mut names: Vec<String> = items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// Type and object's name of what a watch told.
pub(crate) fn told(events: &[Value]) -> Vec<(&str, &str)> {
    let told = events.iter().map(|event| {
        let name = event["object"]["metadata"]["name"].as_str();
        (event["type"].as_str().unwrap(), name.unwrap_or_default())
    });
    told.collect()
}
