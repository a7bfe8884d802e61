//! Sees every version of every Node, and holds each against the one before and against the others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
};
use tokio::task::JoinHandle;

/// What is looked at of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    is_cordoned: bool,
    /// By the annotation.
    is_cordon_ours: bool,
    state: Option<String>,
    is_tainted: bool,
}

/// Ends when it is dropped.
pub(crate) struct Observer {
    broken: Arc<Mutex<Vec<String>>>,
    versions: Arc<Mutex<usize>>,
    watches: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.watches.abort();
    }
}

impl Observer {
    /// From now on. At least `awake` of these nodes must neither have leave nor sleep.
    pub(crate) async fn start(client: Client, nodes: &'static [&'static str], awake: usize) -> Self {
        let broken = Arc::new(Mutex::new(Vec::new()));
        let versions = Arc::new(Mutex::new(0));
        let all: Api<Node> = Api::all(client);
        let listed = all.list(&ListParams::default()).await.unwrap();
        let mut seen: BTreeMap<String, Seen> = listed.items.iter().map(|node| (name(node), Seen::of(node))).collect();
        let mut version = listed.metadata.resource_version.unwrap();
        let (told, counted) = (Arc::clone(&broken), Arc::clone(&versions));
        let watches = tokio::spawn(async move {
            loop {
                let Ok(events) = all.watch(&WatchParams::default(), &version).await else {
                    continue;
                };
                pin_mut!(events);
                while let Some(Ok(event)) = events.next().await {
                    let (WatchEvent::Added(node) | WatchEvent::Modified(node)) = event else {
                        continue;
                    };
                    version = node.metadata.resource_version.clone().unwrap();
                    let name = name(&node);
                    let now = Seen::of(&node);
                    let before = seen.insert(name.clone(), now.clone()).unwrap_or_default();
                    *counted.lock().unwrap() += 1;
                    let mut wrong = now.wrong_after(&before);
                    if nodes.iter().filter(|node| !seen[**node].may_sleep()).count() < awake {
                        wrong.push("too few are awake");
                    }
                    let wrong = wrong.into_iter();
                    let wrong = wrong.map(|wrong| format!("{name}: {wrong}: {before:?} to {now:?}; all: {seen:?}"));
                    told.lock().unwrap().extend(wrong);
                }
            }
        });
        Self {
            broken,
            versions,
            watches,
        }
    }

    /// Panics if an invariant did not hold in any version.
    pub(crate) fn all_held(&self) {
        let broken = self.broken.lock().unwrap();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// How many there were.
    pub(crate) fn versions(&self) -> usize {
        *self.versions.lock().unwrap()
    }
}

fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap()
}

impl Seen {
    fn of(node: &Node) -> Self {
        let annotation = |key: &str| {
            let annotations = node.metadata.annotations.as_ref();
            annotations.and_then(|annotations| annotations.get(&format!("vmstation.io/{key}")).cloned())
        };
        let spec = node.spec.clone().unwrap_or_default();
        let mut taints = spec.taints.into_iter().flatten();
        Self {
            is_cordoned: spec.unschedulable.unwrap_or_default(),
            is_cordon_ours: annotation("cordoned-by").is_some(),
            state: annotation("power-state"),
            is_tainted: taints.any(|taint| taint.key == "vmstation.io/asleep"),
        }
    }

    /// It has leave to sleep, or sleeps.
    fn may_sleep(&self) -> bool {
        ["granted", "asleep"]
            .iter()
            .any(|state| self.state.as_deref() == Some(state))
    }

    fn wrong_after(&self, before: &Self) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        if self.is_cordon_ours && !before.is_cordon_ours && (before.is_cordoned || !self.is_cordoned) {
            wrong.push("called a cordon ours that is not, or is none");
        }
        // Who takes it away together with our annotation is us.
        if before.is_cordoned && !self.is_cordoned && !before.is_cordon_ours && *self != before.uncordoned() {
            wrong.push("took away a cordon that is not ours");
        }
        if before.is_cordon_ours && self.is_cordon_ours && self.state.is_none() {
            wrong.push("a cordon of ours without its record");
        }
        if self.state.is_none() && self.is_tainted {
            wrong.push("a taint of ours without its record");
        }
        if self.state.is_none() && self.is_cordon_ours {
            wrong.push("a cordon of ours on a node that is released");
        }
        if self.is_tainted
            != ["asleep", "waking"]
                .iter()
                .any(|state| self.state.as_deref() == Some(state))
        {
            wrong.push("the taint of a sleeper on another, or a sleeper without");
        }
        if self.may_sleep() && !before.may_sleep() && !self.is_cordoned {
            wrong.push("leave for a node that takes pods");
        }
        wrong
    }

    /// As an administrator leaves it.
    fn uncordoned(&self) -> Self {
        Self {
            is_cordoned: false,
            ..self.clone()
        }
    }
}
