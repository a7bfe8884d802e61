//! The Kubernetes cluster, as one asks it: one call each, bounded in time, in plain values. With the files below it the only place that
//! names `kube`.
//!
//! Decides nothing and keeps nothing: what is written to a Node is [`crate::cordon`]'s, who may sleep is [`crate::permission`]'s.

pub mod connect;
pub mod election;
pub mod error;
pub mod reading;
pub mod rights;

use std::{fmt::Debug, panic::resume_unwind, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::ready, stream::BoxStream};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Node, ObjectReference, Pod as ApiPod},
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::{ObjectList, Request, Status},
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use vmstation_protocol::NodeName;

use self::connect::Connection;
pub use self::error::ClusterError;
use self::reading::ReadingError;
use crate::{
    cordon::MANAGER,
    workload::{ClusterNode, Pod, PodId},
};

/// Where kubelets have their Leases.
const NODE_LEASES: &str = "kube-node-lease";
/// Where Events of Nodes are, as the kubelet's own.
const NODE_EVENTS: &str = "default";
/// Waits after failures of a watch: 0.8 to 1.6 s, growing to a minute, by chance longer or shorter, and from the beginning after two minutes
/// without one. A word of the watch does not end that: `Init` comes before the list is asked for, so that a list that is refused would be
/// asked for each second (fault K3).
#[derive(Default)]
struct Patient(DefaultBackoff);

impl Iterator for Patient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Patient {
    fn reset(&mut self) {}
}

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Seconds after which the API server ends a watch, to be begun again.
const WATCH: u32 = 290;
/// Longest wait for a list of everything.
const LIST: Duration = Duration::from_secs(60);

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// It begins: what was seen before may be gone.
    Begin,
    /// This is there.
    Is(T),
    /// This is not there any more.
    Gone(T),
    /// All that was there at the beginning has been told.
    Complete,
}

/// Whether an eviction is only tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It is.
    Yes,
    /// It is carried out.
    No,
}

/// What is told of a Node to everybody who looks at it (`kubectl describe node`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// One word, as `Asleep`.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
    /// Whether somebody should look.
    pub is_warning: bool,
}

/// The cluster.
#[derive(Clone)]
pub struct Cluster {
    connection: Arc<Connection>,
    /// Who we are in Events: this server's identity.
    identity: String,
}

impl Cluster {
    /// Over this connection.
    pub fn new(connection: Arc<Connection>, identity: String) -> Self {
        Self { connection, identity }
    }

    /// Who we are.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// One Node.
    ///
    /// # Errors
    /// [`ClusterError`], as of all calls.
    pub async fn node(&self, name: &NodeName) -> Result<ClusterNode, ClusterError> {
        let what = format!("reading node {name}");
        let node = self
            .connection
            .ask(&what, |client| async move {
                Api::<Node>::all(client).get(name.as_str()).await
            })
            .await?;
        Ok(reading::node(&node)?)
    }

    /// Every Node. One that cannot be read is left out, which the log says.
    ///
    /// # Errors
    /// As above.
    pub async fn nodes(&self) -> Result<Vec<ClusterNode>, ClusterError> {
        let read = |node: &Node| legible(reading::node(node)).map(Ok);
        self.list("listing nodes", None, read).await
    }

    /// The pods that are bound to a node.
    ///
    /// # Errors
    /// As above; also if one of them cannot be read: it may be one that matters.
    pub async fn pods_on(&self, node: &NodeName) -> Result<Vec<Pod>, ClusterError> {
        let selector = format!("spec.nodeName={node}");
        let what = format!("listing the pods of {node}");
        let read = |pod: &ApiPod| Some(reading::pod(pod));
        self.list(&what, Some(&selector), read).await
    }

    /// Every pod that is not finished.
    ///
    /// # Errors
    /// As above.
    pub async fn pods(&self) -> Result<Vec<Pod>, ClusterError> {
        let selector = "status.phase!=Succeeded,status.phase!=Failed";
        let read = |pod: &ApiPod| legible(reading::pod(pod)).map(Ok);
        self.list("listing pods", Some(selector), read).await
    }

    /// Writes a merge patch to a Node, and says what it is then.
    ///
    /// # Errors
    /// As above; [`ClusterError::Conflict`]: it changed since the patch was made.
    pub async fn patch_node(&self, name: &NodeName, patch: &Value) -> Result<ClusterNode, ClusterError> {
        let what = format!("writing node {name}");
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let (params, patch) = (&params, &Patch::Merge(patch));
        let node = self
            .connection
            .ask(&what, |client| async move {
                Api::<Node>::all(client).patch(name.as_str(), params, patch).await
            })
            .await?;
        Ok(reading::node(&node)?)
    }

    /// Evicts a pod, with the grace period that it asks for itself; another pod of the same name is left alone (fault K6).
    ///
    /// # Errors
    /// As above; [`ClusterError::TooManyRequests`]: a PodDisruptionBudget does not allow it now.
    pub async fn evict(&self, pod: &PodId, dry_run: DryRun) -> Result<(), ClusterError> {
        let what = format!("evicting pod {pod}");
        let PodId { namespace, name, uid } = pod;
        let query = match dry_run {
            DryRun::Yes => "?dryRun=All",
            DryRun::No => "",
        };
        // `Api::evict` of kube writes the options under a name that the API does not know, and they would be ignored.
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "namespace": namespace, "name": name },
            "deleteOptions": { "preconditions": { "uid": uid } },
        });
        let path = &format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction{query}");
        let body = &body.to_string().into_bytes();
        let evicted = self.connection.ask(&what, |client| async move {
            let request = http::Request::post(path)
                .header("Content-Type", "application/json")
                .body(body.clone());
            client.request::<Status>(request.map_err(kube::Error::HttpError)?).await
        });
        evicted.await.map(drop)
    }

    /// When a kubelet renewed its Lease, in its own words; `None`: it has none.
    ///
    /// # Errors
    /// As above.
    pub async fn lease_renewed(&self, node: &NodeName) -> Result<Option<String>, ClusterError> {
        let what = format!("reading the Lease of {node}");
        let lease = self
            .connection
            .ask(&what, |client| async move {
                Api::<Lease>::namespaced(client, NODE_LEASES)
                    .get_opt(node.as_str())
                    .await
            })
            .await?;
        let renewed = lease.and_then(|lease| lease.spec?.renew_time);
        Ok(renewed.map(|time| time.0.to_string()))
    }

    /// Tells of a Node.
    ///
    /// # Errors
    /// As above.
    pub async fn tell(&self, node: &ClusterNode, event: &NodeEvent, now: jiff::Timestamp) -> Result<(), ClusterError> {
        let what = format!("writing an Event of node {}", node.name);
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
        let event = Event {
            metadata: kube::api::ObjectMeta {
                generate_name: Some(format!("{}.", node.name)),
                namespace: Some(NODE_EVENTS.into()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.name.to_string()),
                // As the kubelet does, so that `kubectl describe node` finds it.
                uid: Some(node.name.to_string()),
                ..Default::default()
            },
            reason: Some(event.reason.into()),
            message: Some(event.note.clone()),
            type_: Some(if event.is_warning { "Warning" } else { "Normal" }.into()),
            first_timestamp: Some(time.clone()),
            last_timestamp: Some(time),
            count: Some(1),
            reporting_component: Some(MANAGER.into()),
            reporting_instance: Some(self.identity.chars().take(128).collect()),
            source: Some(k8s_openapi::api::core::v1::EventSource {
                component: Some(MANAGER.into()),
                host: None,
            }),
            ..Default::default()
        };
        let event = &event;
        let created = self.connection.ask(&what, |client| async move {
            let events = Api::<Event>::namespaced(client, NODE_EVENTS);
            events.create(&PostParams::default(), event).await
        });
        created.await.map(drop)
    }

    /// What becomes of the Nodes from here on. Goes on by itself after errors, with back-off; ends only after [`ClusterError::Unauthorized`],
    /// to be begun again.
    pub async fn watch_nodes(&self) -> BoxStream<'static, Result<Seen<ClusterNode>, ClusterError>> {
        let config = watcher::Config::default().timeout(WATCH).page_size(PAGE);
        let nodes = Api::<Node>::all(self.connection.watching().await);
        self.watch(nodes, config, "watching nodes", reading::node)
    }

    /// What becomes of the pods that are bound to no node. As [`Self::watch_nodes`].
    pub async fn watch_unbound(&self) -> BoxStream<'static, Result<Seen<Pod>, ClusterError>> {
        let config = watcher::Config::default()
            .timeout(WATCH)
            .page_size(PAGE)
            .fields("spec.nodeName=,status.phase=Pending");
        let pods = Api::<ApiPod>::all(self.connection.watching().await);
        self.watch(pods, config, "watching pods without a node", reading::pod)
    }

    /// All pages of a list, within [`LIST`]; of each object what `read` makes of it, `None` to leave it out. No more than a page is held as
    /// it came: a pod of the API is many times as large as ours. Without a resource version, as the watch cache answers those in one piece.
    async fn list<K, T>(
        &self,
        what: &str,
        fields: Option<&str>,
        read: fn(&K) -> Option<Result<T, ReadingError>>,
    ) -> Result<Vec<T>, ClusterError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
        T: Send + 'static,
    {
        let pages = |client: Client| async move {
            let request = Request::new(K::url_path(&(), None));
            let mut params = ListParams::default().limit(PAGE);
            params.field_selector = fields.map(str::to_owned);
            let mut all = Vec::new();
            loop {
                let page = request.list(&params).map_err(kube::Error::BuildRequest)?;
                let page = client.request_text(page).await?;
                // A page is some MiB of JSON: whoever else is served does not wait while it is read.
                let read = spawn_blocking(move || {
                    let page: ObjectList<K> = serde_json::from_str(&page)?;
                    let objects: Vec<_> = page.items.iter().filter_map(read).collect();
                    Ok((objects, page.metadata.continue_))
                });
                let (objects, next) = match read.await {
                    Ok(read) => read.map_err(kube::Error::SerdeError)?,
                    Err(panicked) => resume_unwind(panicked.into_panic()),
                };
                all.extend(objects);
                params.continue_token = next.filter(|token| !token.is_empty());
                if params.continue_token.is_none() {
                    return Ok(all);
                }
            }
        };
        let all = self.connection.ask_within(LIST, what, pages).await?;
        Ok(all.into_iter().collect::<Result<_, _>>()?)
    }

    fn watch<K, T, E>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        what: &'static str,
        read: fn(&K) -> Result<T, E>,
    ) -> BoxStream<'static, Result<Seen<T>, ClusterError>>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        T: Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let events = watcher(api, config).backoff(Patient::default());
        let seen = events.filter_map(move |event| {
            ready(match event {
                Ok(watcher::Event::Init) => Some(Ok(Seen::Begin)),
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    legible(read(&object)).map(|value| Ok(Seen::Is(value)))
                }
                Ok(watcher::Event::Delete(object)) => legible(read(&object)).map(|value| Ok(Seen::Gone(value))),
                Ok(watcher::Event::InitDone) => Some(Ok(Seen::Complete)),
                Err(error) => Some(Err(of_watch(what, error))),
            })
        });
        // A client has its credentials for good: others need another watch.
        let told = seen.scan(false, move |is_over, seen| {
            let connection = Arc::clone(&connection);
            let ends = std::mem::replace(is_over, matches!(seen, Err(ClusterError::Unauthorized { .. })));
            async move {
                if ends {
                    return None;
                }
                if let Err(ClusterError::Unauthorized { message, .. }) = &seen {
                    connection.refused(message).await;
                }
                Some(seen)
            }
        });
        told.boxed()
    }
}

fn of_watch(what: &str, error: watcher::Error) -> ClusterError {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ClusterError::of(what, &error),
        watcher::Error::WatchError(status) => ClusterError::of_status(what.to_owned(), &status),
        watcher::Error::NoResourceVersion => ClusterError::Other {
            attempted: what.to_owned(),
            status: 0,
            message: "a list without a resourceVersion".to_owned(),
        },
    }
}

fn legible<T, E: std::error::Error>(read: Result<T, E>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(%error, "an object of the cluster is passed over"))
        .ok()
}
