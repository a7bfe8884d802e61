//! What is asked of the Kubernetes API: the list of the pods that are bound to one node, and a watch of its changes. Two verbs on one
//! resource, and nothing else.
//!
//! A list is bounded in all by [`DEADLINE`] and [`LONGEST_PAGE`], however slowly or much the server answers (fault K1); a watch begins
//! within [`DEADLINE`] and lasts at most [`WATCH_FOR`]. Never tries anything twice.

use std::{error::Error as StdError, time::Duration};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Response, StatusCode, body::Bytes};
use kube::{
    Client,
    api::{ListParams, VersionMatch, WatchParams},
    client::Body,
    core::Request,
};
use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::time::timeout;

use super::count::{Bound, Pod, Rules};

/// Longest time of a list with all its pages, and of the beginning of a watch.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// A watch is ended by the server after this time, in seconds ..
pub(super) const WATCH_SECONDS: u32 = 290;
/// .. and by the agent after this one.
pub(super) const WATCH_FOR: Duration = Duration::from_secs(300);
/// Pods of one page.
const PAGE: u32 = 500;
/// Pages of one list: a node holds some hundred pods.
const MOST_PAGES: usize = 20;
/// Bytes of a page, and of one event of a watch. An object is at most some 1.5 MiB long (etcd).
const LONGEST_PAGE: usize = 64 << 20;
const LONGEST_EVENT: usize = 4 << 20;
/// Bytes of an answer that says what is wrong.
const LONGEST_COMPLAINT: usize = 64 << 10;
/// Characters that are shown of what the server says.
const SHOWN: usize = 200;

/// What the agent does to pods; RBAC's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

/// How new a list has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    /// As of the moment at which it is asked for.
    Now,
    /// Not older than what is known, if anything is. The server answers that from memory, by an index of nodes; before Kubernetes 1.31 it
    /// reads all pods of the cluster from etcd for any other list, also for one that comes in pages.
    Known,
}

/// Why the API did not tell.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Failure {
    /// It does not know who asks (401).
    #[error("the Kubernetes API does not accept the credentials (401 Unauthorized): {0}")]
    Unauthorized(String),
    /// It knows, and RBAC has no rule (403).
    #[error(
        "the Kubernetes API forbids it (403): RBAC has to allow the verb `{verb}` on the resource `pods` in all namespaces: {said}"
    )]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// By the server.
        said: String,
    },
    /// The place in the history of changes is forgotten (410).
    #[error("the Kubernetes API has forgotten what was before (410 Gone)")]
    Gone,
    /// Any other answer than 200.
    #[error("the Kubernetes API answers {0}: {1}")]
    Refused(u16, String),
    /// There is nothing to ask with; why.
    #[error("{0}")]
    NoClient(String),
    /// It was too slow.
    #[error("the Kubernetes API has not answered within {} s", DEADLINE.as_secs())]
    TooSlow,
    /// There was no connection, or it broke.
    #[error("the Kubernetes API cannot be reached: {0}")]
    Unreachable(String),
    /// The answer is no list of pods.
    #[error("the Kubernetes API says what is not understood: {0}")]
    NotUnderstood(String),
}

/// All pods of a node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) bound: Bound,
    /// Place in the history of changes from which a watch goes on.
    pub(super) version: String,
}

/// One thing that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A pod is bound here or has changed.
    Put(Box<Pod>),
    /// A pod is gone.
    Removed(Box<Pod>),
    /// Nothing happened up to this place in the history.
    Bookmark(String),
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    more: Option<String>,
}

/// `Status` of the API (`v1`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Complaint {
    message: Option<String>,
    code: Option<u16>,
}

#[derive(Deserialize)]
struct EventKind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct EventOf<T> {
    object: T,
}

/// All pods that are bound to `node`; not older than `version`, or of this moment without one.
///
/// # Errors
/// Why they are not known; after [`DEADLINE`] at the latest.
pub(super) async fn list(client: &Client, node: &str, version: Option<&str>, rules: &Rules) -> Result<Listed, Failure> {
    timeout(DEADLINE, list_all(client, node, version, rules))
        .await
        .unwrap_or(Err(Failure::TooSlow))
}

async fn list_all(client: &Client, node: &str, version: Option<&str>, rules: &Rules) -> Result<Listed, Failure> {
    let params = ListParams::default().fields(&selector(node));
    let mut params = match version {
        Some(version) => params.at(version).matching(VersionMatch::NotOlderThan),
        None => params.limit(PAGE),
    };
    let mut bound = Bound::default();
    for _ in 0..MOST_PAGES {
        let request = Request::new(PODS).list(&params).map_err(|error| unsendable(&error))?;
        let response = send(client, request, Verb::List).await?;
        let page = collect(response.into_body(), LONGEST_PAGE).await?;
        let page: Page = serde_json::from_slice(&page).map_err(|error| not_understood(&error))?;
        for pod in &page.items {
            bound.put(pod, rules);
        }
        match page.metadata.more.filter(|more| !more.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => {
                return Ok(Listed {
                    bound,
                    version: page.metadata.resource_version,
                });
            }
        }
    }
    Err(Failure::NotUnderstood(format!(
        "a list of more than {MOST_PAGES} pages"
    )))
}

const PODS: &str = "/api/v1/pods";

fn selector(node: &str) -> String {
    format!("spec.nodeName={node}")
}

/// What changes of the pods of one node from a place in the history on.
pub(super) struct Watch {
    body: Body,
    lines: Lines,
}

impl Watch {
    /// Begins one.
    ///
    /// # Errors
    /// Why there is none; after [`DEADLINE`] at the latest.
    pub(super) async fn begin(client: &Client, node: &str, version: &str) -> Result<Self, Failure> {
        let params = WatchParams::default().fields(&selector(node)).timeout(WATCH_SECONDS);
        let request = Request::new(PODS)
            .watch(&params, version)
            .map_err(|error| unsendable(&error))?;
        let response = timeout(DEADLINE, send(client, request, Verb::Watch)).await;
        Ok(Self {
            body: response.unwrap_or(Err(Failure::TooSlow))?.into_body(),
            lines: Lines::default(),
        })
    }

    /// The next change; `None`: the watch is over. Cancel-safe: what has arrived is kept.
    ///
    /// # Errors
    /// Why the watch is over before its time.
    pub(super) async fn next(&mut self) -> Result<Option<Change>, Failure> {
        loop {
            if let Some(line) = self.lines.next()? {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return change(&line).map(Some);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(unreachable(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(&data);
                    }
                }
            }
        }
    }
}

/// Bytes that arrive piecemeal, as lines.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.0.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.0.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.0.len() > LONGEST_EVENT => Err(Failure::NotUnderstood(format!(
                "an event of more than {LONGEST_EVENT} bytes"
            ))),
            None => Ok(None),
        }
    }
}

fn change(line: &[u8]) -> Result<Change, Failure> {
    let EventKind { kind } = serde_json::from_slice(line).map_err(|error| not_understood(&error))?;
    match kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Change::Put(Box::new(object(line)?))),
        "DELETED" => Ok(Change::Removed(Box::new(object(line)?))),
        "BOOKMARK" => Ok(Change::Bookmark(object::<Pod>(line)?.metadata.resource_version)),
        "ERROR" => {
            let complaint: Complaint = object(line)?;
            let code = complaint.code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR.as_u16());
            Err(failure(code, &complaint.message.unwrap_or_default(), Verb::Watch))
        }
        other => Err(Failure::NotUnderstood(format!("an event of type {}", shown(other)))),
    }
}

fn object<T: DeserializeOwned>(line: &[u8]) -> Result<T, Failure> {
    let event: EventOf<T> = serde_json::from_slice(line).map_err(|error| not_understood(&error))?;
    Ok(event.object)
}

/// Sends a request; an answer other than 200 is a failure.
async fn send(client: &Client, request: hyper::Request<Vec<u8>>, verb: Verb) -> Result<Response<Body>, Failure> {
    let response = client.send(request.map(Body::from)).await;
    let response = response.map_err(|error| unreachable(&error))?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let code = response.status().as_u16();
    // Without its words the code says enough.
    let body = collect(response.into_body(), LONGEST_COMPLAINT)
        .await
        .unwrap_or_default();
    let complaint: Complaint = serde_json::from_slice(&body).unwrap_or_default();
    Err(failure(code, &complaint.message.unwrap_or_default(), verb))
}

fn failure(code: u16, said: &str, verb: Verb) -> Failure {
    let said = if said.is_empty() {
        "it does not say why".into()
    } else {
        shown(said)
    };
    match StatusCode::from_u16(code) {
        Ok(StatusCode::UNAUTHORIZED) => Failure::Unauthorized(said),
        Ok(StatusCode::FORBIDDEN) => Failure::Forbidden {
            verb: match verb {
                Verb::List => "list",
                Verb::Watch => "watch",
            },
            said,
        },
        Ok(StatusCode::GONE) => Failure::Gone,
        Ok(_) | Err(_) => Failure::Refused(code, said),
    }
}

async fn collect(body: Body, longest: usize) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, longest).collect().await;
    let collected = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => Failure::NotUnderstood(format!("an answer of more than {longest} bytes")),
        None => unreachable(error.as_ref()),
    })?;
    Ok(collected.to_bytes())
}

fn unsendable(error: &kube::core::request::Error) -> Failure {
    Failure::Unreachable(in_words(error))
}

fn unreachable(error: &(dyn StdError + 'static)) -> Failure {
    Failure::Unreachable(in_words(error))
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::NotUnderstood(shown(&error.to_string()))
}

/// The error and what caused it. What repeats the words of its cause is said once.
pub(super) fn in_words(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !words.contains(&said) {
            words = format!("{words}: {said}");
        }
        cause = error.source();
    }
    shown(&words)
}

/// In one line of bounded length.
fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece.as_bytes());
            while let Some(line) = lines.next().unwrap() {
                found.push(String::from_utf8(line).unwrap());
            }
        }
        found
    }

    #[test]
    fn lines_are_found_however_they_arrive() {
        assert_eq!(lines(&["a", "b\nc", "\n", "d"]), ["ab", "c"]);
        assert_eq!(lines(&["a\n\nb\n"]), ["a", "", "b"]);
        let mut long = Lines::default();
        long.push(&vec![b'x'; LONGEST_EVENT + 1]);
        assert!(matches!(long.next(), Err(Failure::NotUnderstood(_))));
    }

    #[test]
    fn events_of_a_watch_are_understood() {
        let added = change(br#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"uid":"u","name":"n","namespace":"s","future":1},"status":{"phase":"Pending"}}}"#);
        assert!(matches!(added.unwrap(), Change::Put(pod) if pod.metadata.uid == "u"));
        let gone = change(br#"{"type":"DELETED","object":{"metadata":{"uid":"u"}}}"#);
        assert!(matches!(gone.unwrap(), Change::Removed(pod) if pod.metadata.uid == "u"));
        let bookmark = change(br#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"12746","creationTimestamp":null},"spec":{"containers":null},"status":{}}}"#);
        assert_eq!(bookmark.unwrap(), Change::Bookmark("12746".into()));
        let expired = change(br#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#);
        assert_eq!(expired.unwrap_err(), Failure::Gone);
        assert!(matches!(
            change(b"{\"type\":\"ADDED\"}"),
            Err(Failure::NotUnderstood(_))
        ));
        assert!(matches!(change(b"<html>"), Err(Failure::NotUnderstood(_))));
    }

    #[test]
    fn k3_a_missing_right_is_named_with_verb_and_resource() {
        let why = failure(403, "pods is forbidden", Verb::Watch).to_string();
        assert!(why.contains("`watch`") && why.contains("`pods`"), "{why}");
        let why = failure(403, "", Verb::List).to_string();
        assert!(why.contains("`list`"), "{why}");
    }
}
