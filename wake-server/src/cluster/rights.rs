//! The rights that the wake server needs, each with its reason. The manifest `wake-server/kubernetes/rbac.yaml` grants these and no
//! others, and `doctor` asks for each of them.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::{connect::Connection, error::ClusterError};
use crate::config::kubernetes::KubernetesSettings;

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In all namespaces, and for what is in none.
    Cluster,
    /// In the namespace of the Lease.
    Ours,
    /// In the namespace of the Lease, for the Lease alone.
    TheLease,
    /// In the namespace where the kubelets' Leases are.
    NodeLeases,
}

/// Namespace of the kubelets' Leases.
pub const NODE_LEASES: &str = "kube-node-lease";

/// A right, as RBAC writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// As `patch`.
    pub verb: &'static str,
    /// As `coordination.k8s.io`; empty: the core group.
    pub group: &'static str,
    /// As `pods`.
    pub resource: &'static str,
    /// As `eviction`; empty: the resource itself.
    pub subresource: &'static str,
    /// Where.
    pub scope: Scope,
    /// What it is needed for.
    pub why: &'static str,
}

const fn right(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: Scope,
    why: &'static str,
) -> Right {
    Right {
        verb,
        group,
        resource,
        subresource,
        scope,
        why,
    }
}

const LEASES: &str = "coordination.k8s.io";

/// All of them.
pub const RIGHTS: [Right; 12] = [
    right(
        "get",
        "",
        "nodes",
        "",
        Scope::Cluster,
        "to see whose a cordon is before it is changed",
    ),
    right(
        "list",
        "",
        "nodes",
        "",
        Scope::Cluster,
        "to know what nodes there are and what fits on them",
    ),
    right(
        "watch",
        "",
        "nodes",
        "",
        Scope::Cluster,
        "to hear of an administrator's cordon at once",
    ),
    right(
        "patch",
        "",
        "nodes",
        "",
        Scope::Cluster,
        "to cordon, to uncordon and to keep the taint and the power state",
    ),
    right(
        "list",
        "",
        "pods",
        "",
        Scope::Cluster,
        "to know what runs where, and what waits for a node",
    ),
    right(
        "watch",
        "",
        "pods",
        "",
        Scope::Cluster,
        "to wake a node for a pod that fits nowhere",
    ),
    right(
        "create",
        "",
        "pods",
        "eviction",
        Scope::Cluster,
        "to drain a node as its disruption budgets allow",
    ),
    right(
        "create",
        "",
        "events",
        "",
        Scope::Cluster,
        "to say at the node why it sleeps or is woken",
    ),
    right(
        "create",
        LEASES,
        "leases",
        "",
        Scope::Ours,
        "to make the Lease that decides which wake server acts",
    ),
    right(
        "get",
        LEASES,
        "leases",
        "",
        Scope::TheLease,
        "to see which wake server acts",
    ),
    right(
        "update",
        LEASES,
        "leases",
        "",
        Scope::TheLease,
        "to take, renew and give back that Lease",
    ),
    right(
        "get",
        LEASES,
        "leases",
        "",
        Scope::NodeLeases,
        "to see whether one kubelet lives",
    ),
];

impl Right {
    /// As `create pods/eviction in kube-system`.
    pub fn words(&self, settings: &KubernetesSettings) -> String {
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        let what = format!("{} {}{slash}{}", self.verb, self.resource, self.subresource);
        let place = match (self.namespace(settings), self.name(settings)) {
            (Some(namespace), Some(name)) => format!(" {namespace}/{name}"),
            (Some(namespace), None) => format!(" in {namespace}"),
            (None, _) => String::new(),
        };
        format!("{what}{place}")
    }

    fn namespace(&self, settings: &KubernetesSettings) -> Option<String> {
        match self.scope {
            Scope::Cluster => None,
            Scope::Ours | Scope::TheLease => Some(settings.namespace.clone()),
            Scope::NodeLeases => Some(NODE_LEASES.to_owned()),
        }
    }

    fn name(&self, settings: &KubernetesSettings) -> Option<String> {
        match self.scope {
            Scope::TheLease => Some(settings.lease.clone()),
            Scope::Cluster | Scope::Ours | Scope::NodeLeases => None,
        }
    }
}

/// Whether the API server would allow it (`SelfSubjectAccessReview`, which everybody may ask).
///
/// # Errors
/// Whatever went wrong.
pub async fn is_granted(
    connection: &Connection,
    settings: &KubernetesSettings,
    right: &Right,
) -> Result<bool, ClusterError> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: some(right.verb),
                group: Some(right.group.to_owned()),
                resource: some(right.resource),
                subresource: some(right.subresource),
                namespace: right.namespace(settings),
                name: right.name(settings),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let attempted = format!("ask for the right to {}", right.words(settings));
    let answer = connection
        .ask(&attempted, |client| {
            let api = Api::<SelfSubjectAccessReview>::all(client);
            let review = review.clone();
            async move { api.create(&PostParams::default(), &review).await }
        })
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The version of the API server, as `v1.33.1`.
///
/// # Errors
/// Whatever went wrong.
pub async fn version(connection: &Connection) -> Result<String, ClusterError> {
    let version = connection
        .ask("read the version of the API server", |client| async move {
            client.apiserver_version().await
        })
        .await?;
    Ok(version.git_version)
}

#[cfg(test)]
mod tests;
