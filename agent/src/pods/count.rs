//! Which pods keep the node awake: what the API says of a pod, and the rules. Pure.
//!
//! In doubt a pod counts: a phase that is missing, `Unknown` or never heard of is no end.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::counters::PodsSeen;

/// Whose pods count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Pods in these namespaces never count as activity.
    pub(super) excluded_namespaces: BTreeSet<String>,
    /// A pod with one of these labels (name, value) keeps the node awake, in every namespace and whoever made it.
    pub(super) prevent_sleep_labels: BTreeMap<String, String>,
}

/// Of a pod as the API writes it (`v1`), what matters here. Unknown fields are ignored.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Pod {
    #[serde(default)]
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<Annotations>,
    pub(super) owner_references: Option<Vec<Owner>>,
}

/// Annotations can be 256 KiB long; one is looked at.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Annotations {
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) mirror: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Owner {
    pub(super) kind: String,
    pub(super) controller: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Status {
    pub(super) phase: Option<String>,
}

/// What a pod is to a node that wants to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Finished, a DaemonSet's, a mirror, or of an excluded namespace.
    Ignored,
    /// Activity.
    Runs,
    /// It has a prevent-sleep label.
    Prevents,
}

impl Pod {
    /// What it is, by the rules.
    pub(super) fn standing(&self, rules: &Rules) -> Standing {
        if self.is_finished() {
            return Standing::Ignored;
        }
        let labels = self.metadata.labels.as_ref();
        let has = |(name, value): (&String, &String)| labels.and_then(|labels| labels.get(name)) == Some(value);
        if rules.prevent_sleep_labels.iter().any(has) {
            return Standing::Prevents;
        }
        let is_excluded = rules.excluded_namespaces.contains(&self.metadata.namespace);
        if is_excluded || self.is_mirror() || self.is_of_a_daemon_set() {
            Standing::Ignored
        } else {
            Standing::Runs
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    fn is_mirror(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.mirror.is_some())
    }

    fn is_of_a_daemon_set(&self) -> bool {
        let mut owners = self.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet")
    }

    fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }
}

/// What is kept of a pod that is bound to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    name: String,
    standing: Standing,
}

/// The pods that are bound to this node, by UID: a pod that is made again under its name is another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bound(BTreeMap<String, Kept>);

impl Bound {
    /// It is bound here, or has changed.
    pub(super) fn put(&mut self, pod: &Pod, rules: &Rules) {
        let kept = Kept {
            name: pod.full_name(),
            standing: pod.standing(rules),
        };
        self.0.insert(pod.metadata.uid.clone(), kept);
    }

    /// It is gone.
    pub(super) fn remove(&mut self, pod: &Pod) {
        self.0.remove(&pod.metadata.uid);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that keep the node awake, by name.
    pub(super) fn seen(&self) -> PodsSeen {
        let named = |wanted: Standing| {
            let matching = self.0.values().filter(|kept| kept.standing == wanted);
            let mut names: Vec<String> = matching.map(|kept| kept.name.clone()).collect();
            names.sort_unstable();
            names
        };
        PodsSeen {
            running: named(Standing::Runs),
            preventing: named(Standing::Prevents),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rules() -> Rules {
        Rules {
            excluded_namespaces: ["kube-system".to_owned()].into(),
            prevent_sleep_labels: [("vmstation.io/prevent-sleep".to_owned(), "true".to_owned())].into(),
        }
    }

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_annotation_of_a_mirror_pod_is_the_kubelets() {
        let mirror = pod(json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "abc"}}}));
        assert!(mirror.is_mirror());
    }

    #[test]
    fn k5_mirror_and_daemon_set_pods_are_no_activity() {
        let base = |metadata| pod(json!({"metadata": metadata, "status": {"phase": "Running"}}));
        let owned = |kind: &str, controller| json!({"namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": controller}]});
        let mirror = json!({"namespace": "shop", "annotations": {"kubernetes.io/config.mirror": "1"}});
        let cases = [
            (mirror, Standing::Ignored),
            (owned("DaemonSet", true), Standing::Ignored),
            (owned("DaemonSet", false), Standing::Runs),
            (owned("ReplicaSet", true), Standing::Runs),
            (json!({"namespace": "kube-system"}), Standing::Ignored),
            (json!({"namespace": "shop"}), Standing::Runs),
        ];
        for (metadata, expected) in cases {
            assert_eq!(base(metadata.clone()).standing(&rules()), expected, "{metadata}");
        }
    }

    #[test]
    fn a_label_blocks_everywhere_until_the_pod_is_finished() {
        let labelled = |namespace: &str, phase: &str, value: &str| {
            let metadata = json!({
                "namespace": namespace,
                "labels": {"vmstation.io/prevent-sleep": value},
                "annotations": {"kubernetes.io/config.mirror": "1"},
                "ownerReferences": [{"kind": "DaemonSet", "controller": true}],
            });
            pod(json!({"metadata": metadata, "status": {"phase": phase}})).standing(&rules())
        };
        assert_eq!(labelled("kube-system", "Running", "true"), Standing::Prevents);
        assert_eq!(labelled("kube-system", "Pending", "true"), Standing::Prevents);
        assert_eq!(labelled("kube-system", "Running", "false"), Standing::Ignored);
        assert_eq!(labelled("kube-system", "Succeeded", "true"), Standing::Ignored);
        assert_eq!(labelled("shop", "Failed", "true"), Standing::Ignored);
    }

    #[test]
    fn a_phase_that_is_no_end_counts() {
        for status in [
            json!({}),
            json!({"phase": null}),
            json!({"phase": "Unknown"}),
            json!({"phase": "Resizing"}),
        ] {
            let pod = pod(json!({"metadata": {"namespace": "shop"}, "status": status}));
            assert_eq!(pod.standing(&rules()), Standing::Runs, "{status}");
        }
    }

    #[test]
    fn pods_of_the_oldest_and_the_newest_version_are_understood() {
        #[derive(Deserialize)]
        struct List {
            items: Vec<serde_json::Value>,
        }
        for (version, list, of_that_version) in [
            (
                "1.29",
                include_str!("../../../tests/fixtures/kubernetes/pods-1.29.json"),
                &[][..],
            ),
            (
                "1.37",
                include_str!("../../../tests/fixtures/kubernetes/pods-1.37.json"),
                &["default/grows-0", "default/hopeless-0", "default/shrinks-0"],
            ),
        ] {
            let list: List = serde_json::from_str(list).unwrap();
            let mut bound = Bound::default();
            for object in list.items {
                // Of others the API says nothing to a node.
                if object["spec"]["nodeName"] == "worker-1" {
                    bound.put(&pod(object), &rules());
                }
            }
            // Finished, of a DaemonSet, or a mirror are the rest.
            let expected = [of_that_version, &["default/web-6d4cf56db6-x7k2p"]].concat();
            assert_eq!(bound.seen().running, expected, "{version}");
            assert_eq!(bound.0.len(), expected.len() + 3, "{version}");
            assert!(bound.seen().preventing.is_empty(), "{version}");
        }
    }

    fn any_pod() -> impl Strategy<Value = Pod> {
        let phase = prop::sample::select(vec![
            None,
            Some("Pending"),
            Some("Running"),
            Some("Succeeded"),
            Some("Failed"),
            Some("Unknown"),
        ]);
        let owner = prop::sample::select(vec![
            None,
            Some(("DaemonSet", true)),
            Some(("DaemonSet", false)),
            Some(("Job", true)),
        ]);
        let namespace = prop::sample::select(vec!["kube-system", "shop"]);
        let label = prop::sample::select(vec![None, Some("true"), Some("false")]);
        ("[a-c]", namespace, "[a-d]", phase, owner, label, any::<bool>()).prop_map(
            |(name, namespace, uid, phase, owner, label, is_mirror)| Pod {
                metadata: Metadata {
                    name,
                    namespace: namespace.into(),
                    uid,
                    resource_version: String::new(),
                    labels: label.map(|value| [("vmstation.io/prevent-sleep".to_owned(), value.to_owned())].into()),
                    annotations: is_mirror.then(|| Annotations {
                        mirror: Some("x".into()),
                    }),
                    owner_references: owner.map(|(kind, controller)| {
                        vec![Owner {
                            kind: kind.into(),
                            controller: Some(controller),
                        }]
                    }),
                },
                status: Status {
                    phase: phase.map(Into::into),
                },
            },
        )
    }

    proptest! {
        #[test]
        fn the_node_is_quiet_only_if_no_pod_that_is_bound_to_it_says_otherwise(
            steps in prop::collection::vec((any::<bool>(), any_pod()), 0..12)
        ) {
            let mut bound = Bound::default();
            let mut oracle: Vec<Pod> = Vec::new();
            for (arrives, pod) in steps {
                oracle.retain(|other| other.metadata.uid != pod.metadata.uid);
                if arrives {
                    bound.put(&pod, &rules());
                    oracle.push(pod);
                } else {
                    bound.remove(&pod);
                }
            }
            let alive = |pod: &&Pod| !["Succeeded", "Failed"].contains(&pod.status.phase.as_deref().unwrap_or(""));
            let labelled = |pod: &Pod| {
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                labels.get("vmstation.io/prevent-sleep").is_some_and(|value| value == "true")
            };
            let of_system = |pod: &Pod| {
                let owners = pod.metadata.owner_references.clone().unwrap_or_default();
                pod.metadata.namespace == "kube-system"
                    || pod.metadata.annotations.clone().unwrap_or_default().mirror.is_some()
                    || owners.iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true))
            };
            let seen = bound.seen();
            let preventing = oracle.iter().filter(alive).filter(|pod| labelled(pod)).count();
            let running = oracle.iter().filter(alive).filter(|pod| !labelled(pod) && !of_system(pod)).count();
            prop_assert_eq!(seen.preventing.len(), preventing);
            prop_assert_eq!(seen.running.len(), running);
        }
    }
}
