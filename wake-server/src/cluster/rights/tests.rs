//! The manifests grant what is needed, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::*;

const OURS: &str = include_str!("../../../kubernetes/rbac.yaml");
const AGENTS: &str = include_str!("../../../../agent/kubernetes/rbac.yaml");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<Rule>,
    role_ref: Option<RoleRef>,
    #[serde(default)]
    subjects: Vec<Subject>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// Verb, group, resource with its subresource, namespace, name.
type Granted = (String, String, String, Option<String>, Option<String>);

/// What a manifest grants to `account` in `kube-system`.
fn granted(manifest: &str, account: &str) -> BTreeSet<Granted> {
    let documents: Vec<Document> = serde_saphyr::from_multiple(manifest).unwrap();
    let roles: BTreeMap<_, _> = documents
        .iter()
        .filter(|document| matches!(document.kind.as_str(), "Role" | "ClusterRole"))
        .map(|role| {
            (
                (
                    role.kind.as_str(),
                    role.metadata.name.as_str(),
                    role.metadata.namespace.as_deref(),
                ),
                &role.rules,
            )
        })
        .collect();
    let is_account = |document: &&Document| document.kind == "ServiceAccount" && document.metadata.name == account;
    assert_eq!(documents.iter().filter(is_account).count(), 1);
    let mut granted = BTreeSet::new();
    for binding in documents.iter().filter(|document| document.role_ref.is_some()) {
        let [subject] = binding.subjects.as_slice() else {
            panic!("{binding:?}");
        };
        assert_eq!(
            (subject.kind.as_str(), subject.name.as_str(), subject.namespace.as_str()),
            ("ServiceAccount", account, "kube-system")
        );
        let role = binding.role_ref.as_ref().unwrap();
        let namespace = binding.metadata.namespace.as_deref();
        let rules = roles[&(role.kind.as_str(), role.name.as_str(), namespace)];
        for rule in rules {
            let names: Vec<_> = match rule.resource_names.as_slice() {
                [] => vec![None],
                names => names.iter().cloned().map(Some).collect(),
            };
            for verb in &rule.verbs {
                for group in &rule.api_groups {
                    for resource in &rule.resources {
                        for name in &names {
                            granted.insert((
                                verb.clone(),
                                group.clone(),
                                resource.clone(),
                                namespace.map(str::to_owned),
                                name.clone(),
                            ));
                        }
                    }
                }
            }
        }
    }
    granted
}

#[test]
fn k3_the_manifest_grants_the_table_and_nothing_else() {
    let settings = KubernetesSettings::default();
    let needed: BTreeSet<Granted> = RIGHTS
        .iter()
        .map(|right| {
            let resource = match right.subresource {
                "" => right.resource.to_owned(),
                subresource => format!("{}/{subresource}", right.resource),
            };
            (
                right.verb.to_owned(),
                right.group.to_owned(),
                resource,
                right.namespace(&settings),
                right.name(&settings),
            )
        })
        .collect();
    assert_eq!(needed.len(), RIGHTS.len(), "none is written twice");
    assert_eq!(granted(OURS, "vmstation-wake-server"), needed);
}

#[test]
fn agents_may_read_pods_and_nothing_else() {
    let read = |verb: &str| (verb.to_owned(), String::new(), "pods".to_owned(), None, None);
    assert_eq!(
        granted(AGENTS, "vmstation-agent"),
        BTreeSet::from([read("list"), read("watch")])
    );
}

#[test]
fn a_right_is_named_with_its_place() {
    let settings = KubernetesSettings::default();
    let words: Vec<_> = RIGHTS.iter().map(|right| right.words(&settings)).collect();
    for expected in [
        "create pods/eviction",
        "create leases in kube-system",
        "update leases kube-system/vmstation-wake-server",
        "get leases in kube-node-lease",
    ] {
        assert!(words.iter().any(|words| words == expected), "{expected} in {words:?}");
    }
}
