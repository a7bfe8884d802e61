//! Which resources there are, and which one a path names.

/// A kind of object.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) scope: Scope,
}

/// Where its objects live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Cluster,
    Namespaced,
}

/// All of them.
pub(super) static RESOURCES: [Resource; 20] = [
    cluster("", "v1", "nodes", "Node"),
    namespaced("", "v1", "pods", "Pod"),
    cluster("", "v1", "namespaces", "Namespace"),
    namespaced("", "v1", "events", "Event"),
    namespaced("", "v1", "configmaps", "ConfigMap"),
    namespaced("", "v1", "secrets", "Secret"),
    namespaced("", "v1", "serviceaccounts", "ServiceAccount"),
    cluster("", "v1", "persistentvolumes", "PersistentVolume"),
    namespaced("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    namespaced("apps", "v1", "daemonsets", "DaemonSet"),
    namespaced("apps", "v1", "replicasets", "ReplicaSet"),
    namespaced("apps", "v1", "deployments", "Deployment"),
    namespaced("apps", "v1", "statefulsets", "StatefulSet"),
    namespaced("batch", "v1", "jobs", "Job"),
    namespaced("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    namespaced("coordination.k8s.io", "v1", "leases", "Lease"),
    namespaced("events.k8s.io", "v1", "events", "Event"),
    cluster("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass"),
    cluster("storage.k8s.io", "v1", "storageclasses", "StorageClass"),
    cluster(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
    ),
];

const fn cluster(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource {
        group,
        version,
        plural,
        kind,
        scope: Scope::Cluster,
    }
}

const fn namespaced(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource {
        group,
        version,
        plural,
        kind,
        scope: Scope::Namespaced,
    }
}

impl Resource {
    /// As errors name it: `leases.coordination.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Whether `status` is written by its subresource alone.
    pub(super) fn has_status(&self) -> bool {
        matches!(
            self.plural,
            "nodes"
                | "pods"
                | "namespaces"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "daemonsets"
                | "replicasets"
                | "deployments"
                | "statefulsets"
                | "jobs"
                | "poddisruptionbudgets"
        )
    }

    pub(super) fn of(group: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES
            .iter()
            .find(|resource| resource.group == group && resource.plural == plural)
    }
}

/// What a request is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    /// None: the cluster, or all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Target {
    /// None for a path that is none of an object or a collection.
    pub(super) fn of(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            // Of a namespace itself, not of what is in it.
            ["namespaces", ..] if rest.len() <= 2 => (None, rest.as_slice()),
            ["namespaces", _, "status" | "finalize"] => (None, rest.as_slice()),
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let resource = Resource::of(group, rest.first()?)?;
        let fits = resource.version == version
            && rest.len() <= 3
            && match resource.scope {
                Scope::Cluster => namespace.is_none(),
                Scope::Namespaced => namespace.is_some() || rest.len() == 1,
            };
        fits.then(|| Self {
            resource,
            namespace: namespace.map(str::to_owned),
            name: rest.get(1).map(|&name| name.to_owned()),
            subresource: rest.get(2).map(|&subresource| subresource.to_owned()),
        })
    }
}
