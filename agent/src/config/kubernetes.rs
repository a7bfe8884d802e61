//! The policy of asking for this node's pods (`[kubernetes]`). Plain data.

use std::path::PathBuf;

/// Where this node's pods are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// How the API is found.
    pub api: KubernetesApi,
    /// Name of this node in the cluster. `None`: the kubelet's, else the host's in lower case.
    pub node: Option<String>,
}

/// How the Kubernetes API is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KubernetesApi {
    /// By the credentials of the pod that the agent runs in, else by a kubeconfig of the agent or the kubelet. Without any, and without a
    /// kubelet, the host has no pods.
    #[default]
    Auto,
    /// By the credentials of the pod that the agent runs in.
    InCluster,
    /// By this file, an absolute path.
    Kubeconfig(PathBuf),
    /// Not at all: the host has no pods.
    Off,
}
