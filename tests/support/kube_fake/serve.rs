//! HTTP: from a request to what is done with the store, and the streams of watches.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use vmstation_agent::clock::BootTime;

use super::{
    Asked, Shared, Stopped, Version,
    access::{Deed, User},
    eviction, now,
    patch::Kind,
    refusal::Refusal,
    resources::{RESOURCES, Resource, Scope, Target},
    selector::Selector,
    store::{Answer, Order},
};

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request without its transport.
struct Question {
    method: Method,
    path: String,
    query: BTreeMap<String, String>,
    content_type: String,
    accept: String,
    user: User,
    order: Order,
    body: Value,
    /// Its place among all that was asked.
    number: usize,
}

impl Question {
    fn asked(&self, name: &str) -> Option<&str> {
        self.query
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.asked(name), Some("true" | "1"))
    }
}

/// Answers one request, by the faults that are set.
pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let header = |name| header(&parts.headers, name);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let path = parts.uri.path().to_owned();
    let agent = header(USER_AGENT).unwrap_or_default();
    let number = {
        let mut state = shared.state();
        state.asked.push(Asked {
            method: parts.method.to_string(),
            path: path.clone(),
            query: query.clone(),
            agent: agent.clone(),
            at: BootTime::now(),
            answered: 0,
            objects: 0,
        });
        state.asked.len() - 1
    };
    let Ok(body) = body.collect().await else {
        return Ok(refused(&Refusal::bad_request("the body ended early")));
    };
    let (delay, hangs, trickles) = {
        let state = shared.state();
        (state.faults.delay, state.faults.hangs, state.faults.trickles)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(delay).await;
    let stops = shared.state().faults.stops(parts.method.as_str(), &agent, &path);
    if stops == Stopped::Before {
        std::future::pending::<()>().await;
    }
    let ordered = shared
        .state()
        .faults
        .next_for(parts.method.as_str(), &format!("{path}?{query}"));
    let user = shared.state().access.user(header(AUTHORIZATION).as_deref());
    let body = body.to_bytes();
    let question = match (ordered, user) {
        (Some(code), _) => Err(Refusal::ordered(code)),
        (None, Err(refusal)) => Err(refusal),
        (None, Ok(user)) => read(&body).map(|body| {
            let query = pairs(&query);
            let manager = query.get("fieldManager").filter(|manager| !manager.is_empty()).cloned();
            let manager = manager.unwrap_or_else(|| agent.split(['/', ' ']).next().unwrap_or_default().into());
            Question {
                method: parts.method.clone(),
                order: Order {
                    manager,
                    dry_run: query.get("dryRun").is_some_and(|value| value == "All"),
                    now: now(),
                },
                path,
                query,
                content_type: header(CONTENT_TYPE).unwrap_or_default(),
                accept: header(hyper::header::ACCEPT).unwrap_or_default(),
                user,
                body,
                number,
            }
        }),
    };
    let response = question.and_then(|question| route(&shared, &question));
    let response = response.unwrap_or_else(|refusal| refused(&refusal));
    if stops == Stopped::After {
        std::future::pending::<()>().await;
    }
    let response = if trickles {
        one_byte_a_second(response)
    } else {
        response
    };
    Ok(counted(shared, number, response))
}

/// Notes how much is answered.
fn counted(shared: Arc<Shared>, number: usize, response: Response<Body>) -> Response<Body> {
    response.map(|body| {
        let counted = body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            shared.state().asked[number].answered += u64::try_from(bytes).unwrap_or_default();
            frame
        });
        counted.boxed_unsync()
    })
}

fn header(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

fn read(body: &Bytes) -> Result<Value, Refusal> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("error decoding the body: {error}")))
}

/// Names and values of a query, decoded.
fn pairs(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut result = Vec::new();
    while let Some(byte) = bytes.next() {
        result.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&result).into_owned()
}

fn route(shared: &Arc<Shared>, question: &Question) -> Result<Response<Body>, Refusal> {
    if let Some(told) = about_itself(&question.path, shared.state().store.version) {
        return Ok(told);
    }
    let target = Target::of(&question.path).ok_or_else(Refusal::no_such_path)?;
    let is_watch = question.is_set("watch");
    let verb = match (&question.method, &target.name) {
        (&Method::GET, Some(_)) if !is_watch => "get",
        (&Method::GET, _) if is_watch => "watch",
        (&Method::GET, _) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, Some(_)) => "update",
        (&Method::PATCH, Some(_)) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        _ => return Err(Refusal::method_not_allowed()),
    };
    let deed = Deed::of(verb, &target);
    shared.state().access.check(&question.user, target.resource, &deed)?;
    if verb == "watch" {
        return follow(shared, question, target);
    }
    let (code, body) = act(shared, question, &target, verb)?;
    if question.method != Method::GET {
        shared.tell();
    }
    let body = if question.accept.contains("as=PartialObjectMetadata") {
        metadata_alone(body)
    } else {
        body
    };
    if let Some(items) = body["items"].as_array() {
        shared.state().asked[question.number].objects = items.len();
    }
    Ok(json_response(code, &body))
}

fn act(shared: &Shared, question: &Question, target: &Target, verb: &str) -> Answer {
    let mut state = shared.state();
    let state = &mut *state;
    let (store, order, body) = (&mut state.store, &question.order, || question.body.clone());
    if target.resource.plural == "selfsubjectaccessreviews" {
        return match verb {
            "create" => Ok((201, state.access.review(&question.user, body()))),
            _ => Err(Refusal::method_not_allowed()),
        };
    }
    match (verb, target.resource.plural, target.subresource.as_deref()) {
        ("create", "pods", Some("eviction")) => eviction::evict(store, target, &body(), order),
        ("create", "pods", Some("binding")) => eviction::bind(store, target, &body(), order),
        (verb, _, Some("status")) if target.resource.has_status() && !["create", "delete"].contains(&verb) => {
            write(store, question, target, verb)
        }
        (_, _, Some(_)) => Err(Refusal::no_such_path()),
        ("list", _, None) => list(store, question, target),
        ("create", _, None) if target.name.is_none() => store.create(target, body(), order),
        ("delete", _, None) => {
            let mut options = body();
            if let Some(grace) = question.asked("gracePeriodSeconds") {
                options["gracePeriodSeconds"] = grace.parse::<i64>().unwrap_or(0).into();
            }
            let dry_run = order.dry_run || options["dryRun"].as_array().is_some_and(|values| !values.is_empty());
            let order = Order {
                dry_run,
                ..order.clone()
            };
            store.delete(target, &options, &order)
        }
        ("get" | "update" | "patch", _, None) => write(store, question, target, verb),
        _ => Err(Refusal::method_not_allowed()),
    }
}

/// Reads or writes an object that is there.
fn write(store: &mut super::store::Store, question: &Question, target: &Target, verb: &str) -> Answer {
    match verb {
        "get" => store.get(target).map(|object| (200, object)),
        "update" => store.update(target, question.body.clone(), &question.order),
        "patch" => {
            let kind = Kind::of(&question.content_type)?;
            store.patch(target, kind, &question.body, &question.order)
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn selector(question: &Question, target: &Target) -> Result<Selector, Refusal> {
    Selector::parse(
        target.resource,
        question.asked("labelSelector"),
        question.asked("fieldSelector"),
    )
}

fn list(store: &mut super::store::Store, question: &Question, target: &Target) -> Answer {
    let selector = selector(question, target)?;
    let asked = revision(question)?;
    if asked > store.revision() {
        return Err(Refusal::too_new(asked, store.revision()));
    }
    let is_exact = question.asked("resourceVersionMatch") == Some("Exact");
    if is_exact && asked < store.compacted() {
        return Err(Refusal::expired("The provided resource version is too old."));
    }
    let limit = question
        .asked("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(0);
    let listed = store.list(target, &selector, limit, question.asked("continue"))?;
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(next) = listed.next {
        metadata["continue"] = next.into();
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let items: Vec<Value> = listed
        .items
        .iter()
        .map(|item| without_kind(Value::clone(item)))
        .collect();
    let body = json!({
        "kind": format!("{}List", target.resource.kind), "apiVersion": target.resource.api_version(),
        "metadata": metadata, "items": items,
    });
    Ok((200, body))
}

/// In a list the items do not say again what they are.
fn without_kind(mut object: Value) -> Value {
    for field in ["kind", "apiVersion"] {
        super::store::put(&mut object, field, None);
    }
    object
}

fn revision(question: &Question) -> Result<u64, Refusal> {
    match question.asked("resourceVersion") {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| Refusal::bad_request(format!("invalid resource version \"{text}\""))),
    }
}

/// Objects without anything but `metadata`.
fn metadata_alone(mut body: Value) -> Value {
    if body["kind"] == "Status" {
        return body;
    }
    let partial = |object: &Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
    match body["items"].as_array() {
        Some(items) => {
            let items: Vec<Value> = items.iter().map(partial).collect();
            body["kind"] = "PartialObjectMetadataList".into();
            body["apiVersion"] = "meta.k8s.io/v1".into();
            body["items"] = items.into();
            body
        }
        None => partial(&body),
    }
}

/// One watch: what it has told, and what it is to tell.
struct Watching {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    target: Target,
    selector: Selector,
    known: u64,
    /// The watches of an earlier era are over.
    era: u64,
    pending: VecDeque<Bytes>,
    wants_bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    metadata_alone: bool,
    is_over: bool,
    /// The place of its request among all.
    number: usize,
}

fn follow(shared: &Arc<Shared>, question: &Question, mut target: Target) -> Result<Response<Body>, Refusal> {
    let selector = selector(question, &target)?;
    let from = revision(question)?;
    let seconds = question
        .asked("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok());
    // The real server takes 30 to 60 minutes when none is given.
    let patience = Duration::from_secs(seconds.filter(|&seconds| seconds > 0).unwrap_or(2_400));
    let wants_bookmarks = question.is_set("allowWatchBookmarks");
    target.subresource = None;
    let changed = shared.changed.subscribe();
    let state = shared.state();
    if question.asked("sendInitialEvents").is_some() && !state.store.version.begins_watches_with_lists() {
        return Err(Refusal::no_lists_by_watch());
    }
    let begins = Instant::now();
    let every = state.faults.bookmark_every;
    let mut watching = Watching {
        shared: Arc::clone(shared),
        changed,
        target,
        selector,
        known: if from == 0 { state.store.revision() } else { from },
        era: state.era,
        pending: VecDeque::new(),
        wants_bookmarks,
        next_bookmark: begins + every.min(patience.saturating_sub(Duration::from_secs(2))),
        ends: begins + patience,
        metadata_alone: question.accept.contains("as=PartialObjectMetadata"),
        is_over: false,
        number: question.number,
    };
    if from > state.store.revision() {
        return Err(Refusal::too_new(from, state.store.revision()));
    }
    if from == 0 {
        let (resource, namespace) = (watching.target.resource, watching.target.namespace.clone());
        for object in state.store.of(resource, namespace.as_deref()) {
            let is_named = watching
                .target
                .name
                .as_ref()
                .is_none_or(|name| object["metadata"]["name"] == **name);
            if is_named && watching.selector.matches(&object) {
                watching.tell("ADDED", object);
            }
        }
        if question.is_set("sendInitialEvents") {
            watching.bookmark(state.store.revision(), true);
        }
    } else if from < state.store.compacted() {
        let why = format!("too old resource version: {from} ({})", state.store.compacted());
        if state.faults.gone_by_status {
            return Err(Refusal::expired(&why));
        }
        watching.tell("ERROR", Refusal::expired(&why).body());
        watching.is_over = true;
    }
    drop(state);
    let lines = stream::unfold(watching, |mut watching| async {
        let line = watching.next().await?;
        Some((line, watching))
    });
    Ok(response(200, "application/json", None, lines))
}

impl Watching {
    fn tell(&mut self, kind: &str, object: Value) {
        let object = if self.metadata_alone && kind != "ERROR" {
            metadata_alone(object)
        } else {
            object
        };
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        self.pending.push_back(line.into());
    }

    fn bookmark(&mut self, revision: u64, ends_the_initial: bool) {
        let mut object = json!({
            "kind": self.target.resource.kind, "apiVersion": self.target.resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if ends_the_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.tell("BOOKMARK", object);
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.mark_unchanged();
            let hangs = self.shared.state().faults.hangs;
            if !hangs {
                if let Some(line) = self.pending.pop_front() {
                    self.shared.state().asked[self.number].objects += 1;
                    return Some(line);
                }
                if self.is_over {
                    return None;
                }
                self.look();
                if !self.pending.is_empty() || self.is_over {
                    continue;
                }
            }
            let until = if self.wants_bookmarks {
                self.next_bookmark.min(self.ends)
            } else {
                self.ends
            };
            if hangs {
                self.changed.changed().await.ok()?;
            } else {
                tokio::select! {
                    changed = self.changed.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(until) => {}
                }
            }
        }
    }

    /// Whether there is something to tell, or it is over.
    fn look(&mut self) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        let time = Instant::now();
        if state.era != self.era {
            if state.ends_with_gone {
                let why = format!("too old resource version: {} ({})", self.known, state.store.revision());
                self.tell("ERROR", Refusal::expired(&why).body());
            }
            self.is_over = true;
            return;
        }
        for (kind, object) in state.store.news(&self.target, &self.selector, self.known) {
            self.tell(kind, object);
        }
        self.known = state.store.revision();
        if self.wants_bookmarks && time >= self.next_bookmark {
            self.bookmark(self.known, false);
            self.next_bookmark = time + state.faults.bookmark_every;
        }
        self.is_over = time >= self.ends;
    }
}

/// Health, version and discovery.
fn about_itself(path: &str, version: Version) -> Option<Response<Body>> {
    let listed = |group: &str, version: &str| {
        let resources = RESOURCES
            .iter()
            .filter(|resource| resource.group == group && resource.version == version);
        let mut resources: Vec<Value> = resources.map(described).collect();
        if (group, version) == ("", "v1") {
            // By these `kubectl drain` knows how it may evict.
            resources.push(json!({
                "name": "pods/eviction", "singularName": "", "namespaced": true,
                "group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"],
            }));
        }
        (!resources.is_empty()).then_some(resources)
    };
    let told = match path.trim_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        ["healthz" | "livez" | "readyz"] => {
            let ok = stream::once(async { Bytes::from_static(b"ok") });
            return Some(response(200, "text/plain; charset=utf-8", None, ok));
        }
        ["version"] => {
            let (minor, patch) = version.minor_and_patch();
            json!({
                "major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.{patch}-fake"), "gitCommit": "",
                "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.22", "compiler": "gc",
                "platform": "linux/amd64",
            })
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let mut groups: Vec<&str> = RESOURCES.iter().map(|resource| resource.group).collect();
            groups.retain(|group| !group.is_empty());
            groups.dedup();
            let groups = groups.into_iter().map(|group| {
                let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
                json!({"name": group, "versions": [version], "preferredVersion": version})
            });
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>()})
        }
        ["api", version] => {
            json!({"kind": "APIResourceList", "groupVersion": version, "resources": listed("", version)?})
        }
        ["apis", group, version] => {
            let of = format!("{group}/{version}");
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": of, "resources": listed(group, version)?})
        }
        _ => return None,
    };
    Some(json_response(200, &told))
}

fn described(resource: &Resource) -> Value {
    json!({
        "name": resource.plural, "singularName": resource.kind.to_lowercase(), "kind": resource.kind,
        "namespaced": resource.scope == Scope::Namespaced,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    })
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let seconds = refusal
        .details
        .as_ref()
        .and_then(|details| details["retryAfterSeconds"].as_u64());
    let body = Bytes::from(refusal.body().to_string());
    response(refusal.code, "application/json", seconds, stream::once(async { body }))
}

fn json_response(code: u16, body: &Value) -> Response<Body> {
    let body = Bytes::from(body.to_string());
    response(code, "application/json", None, stream::once(async { body }))
}

fn response(
    code: u16,
    content_type: &str,
    retry_after: Option<u64>,
    body: impl Stream<Item = Bytes> + Send + 'static,
) -> Response<Body> {
    let mut response = Response::builder().status(code).header(CONTENT_TYPE, content_type);
    if let Some(seconds) = retry_after {
        response = response.header(RETRY_AFTER, seconds);
    }
    let body = StreamBody::new(body.map(|bytes| Ok(Frame::data(bytes))));
    response.body(body.boxed_unsync()).unwrap()
}

fn one_byte_a_second(response: Response<Body>) -> Response<Body> {
    response.map(|body| {
        let bytes = body.into_data_stream().flat_map(|chunk| {
            let chunk = chunk.unwrap_or_default();
            stream::iter((0..chunk.len()).map(move |at| chunk.slice(at..=at)).collect::<Vec<_>>())
        });
        let slow = bytes.then(|byte| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Frame::data(byte))
        });
        StreamBody::new(slow).boxed_unsync()
    })
}
