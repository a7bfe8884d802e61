//! What happened, when, and by whose word; printed as it happens. Somebody follows the API server for it.
//!
//! What the API server tells is noted in the order of its versions within one kind of object; what others tell, when it was seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Resource,
    api::{WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use vmstation_agent::clock::BootTime;

use crate::{
    cluster::{Cluster, client_of},
    lan::Host,
};

/// Who tells.
pub(crate) const CLUSTER: &str = "API server";
/// A Lease that was renewed after this time is worth a line.
const LONG: Duration = Duration::from_secs(3);
/// The annotations that count.
const STATE: &str = "vmstation.io/power-state";
const CORDONED_BY: &str = "vmstation.io/cordoned-by";

#[derive(Clone, Debug)]
struct Entry {
    at: Duration,
    who: &'static str,
    what: String,
}

/// The entries.
pub(crate) struct Chronicle {
    since: BootTime,
    entries: Mutex<Vec<Entry>>,
}

/// Follows the API server until it is dropped.
pub(crate) struct Follower {
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Chronicle {
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self {
            since: BootTime::now(),
            entries: Mutex::default(),
        })
    }

    pub(crate) fn note(&self, who: &'static str, what: impl Into<String>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            at: BootTime::now().since(self.since),
            who,
            what: what.into(),
        };
        println!("{:>8.2} s  {:<11} {}", entry.at.as_secs_f64(), entry.who, entry.what);
        entries.push(entry);
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether somebody told something that has these words.
    pub(crate) fn has(&self, who: &str, words: &str) -> bool {
        let entries = self.entries();
        entries
            .iter()
            .any(|entry| entry.who == who && entry.what.contains(words))
    }

    /// Panics unless these were told in this order, others among them.
    pub(crate) fn assert_order(&self, expected: &[(&str, &str)]) {
        let entries = self.entries();
        let mut rest = entries.iter();
        for (who, words) in expected {
            let found = rest.any(|entry| entry.who == *who && entry.what.contains(words));
            assert!(found, "not in its place: {who}: {words}\n{entries:#?}");
        }
    }
}

impl Follower {
    /// Notes what becomes of this node, of its Lease and of all pods.
    pub(crate) fn of(chronicle: &Arc<Chronicle>, cluster: &Cluster, host: &Host, node: &'static str) -> Self {
        let (over, is_over) = oneshot::channel();
        let (chronicle, kubeconfig) = (Arc::clone(chronicle), cluster.kubeconfig().to_owned());
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let client = client_of(&kubeconfig).await;
                let following = async {
                    tokio::join!(
                        nodes(&client, &chronicle, node),
                        pods(&client, &chronicle),
                        leases(&client, &chronicle, node)
                    )
                };
                tokio::select! {
                    _ = following => {}
                    _ = is_over => {}
                }
            });
        };
        Self {
            over: Some(over),
            thread: Some(host.run(|| thread::spawn(follow))),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            // What went wrong in it was printed.
            let _ended = thread.join();
        }
    }
}

/// What is told of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Marks {
    cordoned: bool,
    cordoned_by: Option<String>,
    state: Option<String>,
    tainted: bool,
    ready: bool,
}

impl Marks {
    fn of(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let annotation = |key: &str| node.metadata.annotations.as_ref()?.get(key).cloned();
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        Self {
            cordoned: spec.unschedulable.unwrap_or_default(),
            cordoned_by: annotation(CORDONED_BY),
            state: annotation(STATE),
            tainted: spec
                .taints
                .iter()
                .flatten()
                .any(|taint| taint.key == "vmstation.io/asleep"),
            ready: conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        }
    }

    /// What changed in one write.
    fn changes(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if self.cordoned != before.cordoned {
            changes.push(if self.cordoned { "cordoned" } else { "uncordoned" }.to_owned());
        }
        if self.cordoned_by != before.cordoned_by {
            let whose = self.cordoned_by.as_ref();
            changes.push(whose.map_or("cordon disowned".into(), |whose| format!("cordon owned by {whose}")));
        }
        if self.state != before.state {
            changes.push(format!("power-state {}", self.state.as_deref().unwrap_or("gone")));
        }
        if self.tainted != before.tainted {
            changes.push(if self.tainted { "tainted" } else { "taint gone" }.to_owned());
        }
        if self.ready != before.ready {
            changes.push(if self.ready { "ready" } else { "not ready" }.to_owned());
        }
        changes
    }
}

async fn nodes(client: &Client, chronicle: &Chronicle, name: &str) {
    let mut before = Marks::default();
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    follow(&Api::<Node>::all(client.clone()), &one, |node, _| {
        let marks = Marks::of(node);
        let changes = marks.changes(&before);
        if !changes.is_empty() {
            chronicle.note(CLUSTER, format!("node {name}: {}", changes.join(", ")));
        }
        before = marks;
    })
    .await;
}

async fn pods(client: &Client, chronicle: &Chronicle) {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let all = Api::<Pod>::all(client.clone());
    follow(&all, &WatchParams::default(), |pod, is_gone| {
        let name = pod.metadata.name.clone().unwrap();
        let words = if is_gone { "gone".to_owned() } else { words_of(pod) };
        if known.get(&name) != Some(&words) {
            chronicle.note(CLUSTER, format!("pod {name}: {words}"));
            known.insert(name, words);
        }
    })
    .await;
}

fn words_of(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let has_no_room = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.reason.as_deref() == Some("Unschedulable"));
    let mut words = status.phase.unwrap_or_default();
    match node {
        Some(node) => words.push_str(&format!(" on {node}")),
        None if has_no_room => words.push_str(", unschedulable"),
        None => {}
    }
    if pod.metadata.deletion_timestamp.is_some() {
        words.push_str(", ending");
    }
    words
}

async fn leases(client: &Client, chronicle: &Chronicle, node: &str) {
    let mut before = None;
    let one = WatchParams::default().fields(&format!("metadata.name={node}"));
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    follow(&leases, &one, |_, _| {
        let now = BootTime::now();
        let silent = before.replace(now).map(|before| now.since(before));
        match silent {
            None => chronicle.note(CLUSTER, format!("Lease of {node}: first seen")),
            Some(silent) if silent > LONG => {
                chronicle.note(
                    CLUSTER,
                    format!("Lease of {node}: renewed, after {:.0} s without", silent.as_secs_f64()),
                );
            }
            Some(_) => {}
        }
    })
    .await;
}

/// Tells of each object that there is, and of each change; whether it is gone. Never ends.
async fn follow<K>(api: &Api<K>, params: &WatchParams, mut tell: impl FnMut(&K, bool))
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut version = "0".to_owned();
    loop {
        let events = api.watch(params, &version).await.unwrap();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            let (object, is_gone) = match event.unwrap() {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(error) => panic!("a watch failed: {error:?}"),
            };
            if let Some(newer) = &object.meta().resource_version {
                version.clone_from(newer);
            }
            tell(&object, is_gone);
        }
    }
}
