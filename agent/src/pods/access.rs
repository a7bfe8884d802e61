//! Where the Kubernetes API is, with which credentials it is asked, and what this node is called there. Reads files and processes of this
//! host; asks nobody.

use std::{
    env,
    path::{Path, PathBuf},
};

use hyper::header::HeaderValue;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use procfs::process::{Process, all_processes};

use super::api::{DEADLINE, in_words};
use crate::{
    config::{Kubernetes, KubernetesApi},
    https::USER_AGENT,
};

/// The token that Kubernetes puts into a pod (Kubernetes, "Accessing the API from a Pod").
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Where kubeconfigs are looked for, the first that is there: the agent's own, then that of the kubelet as kubeadm, k3s, RKE2 and MicroK8s
/// write it. A kubelet may list and watch the pods of its own node.
const KUBECONFIGS: [&str; 6] = [
    "/etc/vmstation/autosleep/kubeconfig",
    "/etc/vmstation/kubeconfig",
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/snap/microk8s/current/credentials/kubelet.config",
];
/// Processes that are a kubelet, or have one in them.
const KUBELETS: [&str; 6] = ["kubelet", "kubelite", "k3s", "k3s-agent", "k3s-server", "rke2"];

/// How to get at the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// As a pod.
    InCluster,
    /// As this file says.
    File(PathBuf),
}

/// What there is to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An API to ask.
    Api(Access),
    /// This is no node of a cluster: it has no pods.
    NoCluster,
    /// It is a node, and nothing says how to ask for its pods; why, in one line.
    NoAccess(String),
}

/// Looks where the configuration says.
pub(super) fn find(wanted: &Kubernetes) -> Found {
    match &wanted.api {
        KubernetesApi::Off => Found::NoCluster,
        KubernetesApi::InCluster => Found::Api(Access::InCluster),
        KubernetesApi::Kubeconfig(path) => Found::Api(Access::File(path.clone())),
        KubernetesApi::Auto => {
            let is_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(POD_TOKEN).exists();
            let file = KUBECONFIGS.map(Path::new).into_iter().find(|path| path.exists());
            choose(is_pod, file, || kubelet().map(|process| process.pid))
        }
    }
}

fn choose(is_pod: bool, file: Option<&Path>, kubelet: impl FnOnce() -> Option<i32>) -> Found {
    match (is_pod, file) {
        (true, _) => Found::Api(Access::InCluster),
        (false, Some(path)) => Found::Api(Access::File(path.to_owned())),
        (false, None) => match kubelet() {
            None => Found::NoCluster,
            Some(pid) => Found::NoAccess(format!(
                "a kubelet runs here (process {pid}), and there are no credentials for the Kubernetes API: put a kubeconfig at {}, or set \
                 `api` in [kubernetes] to off",
                KUBECONFIGS[0]
            )),
        },
    }
}

/// A client with the credentials as they are written at this moment. Makes no connection.
///
/// # Errors
/// Why there is none, in one line.
pub(super) async fn client(access: &Access) -> Result<Client, String> {
    let mut config = match access {
        Access::InCluster => Config::incluster().map_err(|error| {
            format!(
                "cannot use the credentials of this pod for the Kubernetes API: {}",
                in_words(&error)
            )
        })?,
        Access::File(path) => {
            let unusable =
                |error: kube::config::KubeconfigError| format!("cannot use {}: {}", path.display(), in_words(&error));
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(unusable)?
        }
    };
    config.connect_timeout = Some(DEADLINE);
    config.write_timeout = Some(DEADLINE);
    // A watch is silent for minutes; who reads sets the deadlines.
    config.read_timeout = None;
    // What fails is tried at the next check.
    config.default_retry = false;
    let who = HeaderValue::from_static(USER_AGENT);
    config.headers.push((hyper::header::USER_AGENT, who));
    // Without TLS nobody's certificate is checked: that the system has no authorities is no hindrance then.
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    // Proxies of the environment are not used.
    config.proxy_url = None;
    Client::try_from(config)
        .map_err(|error| format!("cannot set up a client of the Kubernetes API: {}", in_words(&error)))
}

/// What this node is called in the cluster: as configured, else as the kubelet that runs here is told (`--hostname-override`, in k3s and
/// RKE2 `--node-name`), else the host's name in lower case, as the kubelet makes it.
///
/// In a pod `NODE_NAME` of its environment goes before the kubelet's, which it cannot see.
pub(super) fn node_name(wanted: &Kubernetes, host: &str) -> String {
    if let Some(name) = &wanted.node {
        return name.clone();
    }
    if let Ok(name) = env::var("NODE_NAME")
        && Path::new(POD_TOKEN).exists()
        && !name.is_empty()
    {
        return name;
    }
    let told = kubelet()
        .and_then(|kubelet| kubelet.cmdline().ok())
        .and_then(|words| name_in(&words));
    told.unwrap_or_else(|| host.trim().to_lowercase())
}

fn name_in(words: &[String]) -> Option<String> {
    const OPTIONS: [&str; 2] = ["hostname-override", "node-name"];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            continue;
        };
        let name = match option.split_once('=') {
            Some((option, name)) if OPTIONS.contains(&option) => Some(name.to_owned()),
            Some(_) => None,
            None if OPTIONS.contains(&option) => words.next().cloned(),
            None => None,
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            return Some(name.trim().to_lowercase());
        }
    }
    None
}

/// The kubelet of this host, if one runs.
fn kubelet() -> Option<Process> {
    all_processes().ok()?.flatten().find(|process| {
        let stat = process.stat();
        stat.is_ok_and(|stat| KUBELETS.contains(&stat.comm.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_any_sign_of_kubernetes_has_no_pods() {
        assert_eq!(choose(false, None, || None), Found::NoCluster);
    }

    #[test]
    fn a_kubelet_without_credentials_is_doubt() {
        let Found::NoAccess(why) = choose(false, None, || Some(77)) else {
            panic!("doubt")
        };
        assert!(why.contains("process 77") && why.contains(KUBECONFIGS[0]), "{why}");
    }

    #[test]
    fn credentials_are_used_whether_a_kubelet_runs_or_not() {
        let path = Path::new("/x/kubeconfig");
        assert_eq!(
            choose(false, Some(path), || None),
            Found::Api(Access::File(path.into()))
        );
        assert_eq!(choose(true, Some(path), || None), Found::Api(Access::InCluster));
    }

    #[test]
    fn k12_the_kubelets_name_goes_before_the_hosts() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let name = |line: &str| name_in(&words(line));
        assert_eq!(
            name("/usr/bin/kubelet --v=2 --hostname-override=Node-A").as_deref(),
            Some("node-a")
        );
        assert_eq!(
            name("kubelet --hostname-override node-b --v=2").as_deref(),
            Some("node-b")
        );
        assert_eq!(name("k3s agent --node-name=c").as_deref(), Some("c"));
        assert_eq!(name("kubelet --hostname-override="), None);
        assert_eq!(name("kubelet --node-ip=10.0.0.1"), None);
        let named = Kubernetes {
            node: Some("configured".into()),
            ..Kubernetes::default()
        };
        assert_eq!(node_name(&named, "host"), "configured");
    }
}
