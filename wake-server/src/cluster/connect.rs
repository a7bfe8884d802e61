//! The way to the API server: credentials, timeouts, and a second try with credentials that were read again.
//!
//! Owns the client. kube reads a service account's token file again once a minute by itself, and asks an `exec` plugin again when its
//! token expires; a token that stands in the kubeconfig, and one that is revoked before its time, it never reads again: then a 401 (fault
//! K2) makes [`Connection`] read everything again, once. Never guesses where credentials might be.

use std::{env, future::Future, path::Path, time::Duration};

use http::{HeaderValue, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use thiserror::Error;
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::error::ClusterError;
use crate::config::kubernetes::{Access, KubernetesSettings};

/// Longest time of a single request with its answer ([`bounded`]).
pub const WITHIN: Duration = Duration::from_secs(10);
/// What this program calls itself: audit logs and metrics of the API server tell its requests by it.
const USER_AGENT: &str = concat!("vmstation-wake-server/", env!("CARGO_PKG_VERSION"));
/// Connection, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence within an answer, and time to take a part of a request.
const SILENCE: Duration = Duration::from_secs(10);
/// Silence within a watch, which the API server ends by itself after at most 295 s, as kube asks it to.
const WATCH_SILENCE: Duration = Duration::from_secs(330);
/// Credentials that were read again and are refused too are not read again before this time is over.
const READ_AGAIN: Duration = Duration::from_mins(1);
/// Where a pod finds the token of its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why there is no way to the API server, before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// `api = "off"`, or `"auto"` outside of a pod.
    #[error(
        "there is no cluster: [kubernetes] names no kubeconfig, and this does not run in a pod with a service account"
    )]
    Off,
    /// Not in a pod.
    #[error("cannot use the service account: {0}; does this run in a pod, with automountServiceAccountToken?")]
    ServiceAccount(String),
    /// The file.
    #[error("cannot use the kubeconfig {path}: {why}")]
    Kubeconfig {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificates or credentials.
    #[error("cannot use what the credentials say: {0}")]
    Client(String),
}

/// Clients of one API server.
#[derive(Clone)]
struct Clients {
    requests: Client,
    watches: Client,
}

/// The way to one API server. Shared by everybody who asks it.
pub struct Connection {
    settings: KubernetesSettings,
    held: Mutex<Held>,
}

struct Held {
    clients: Clients,
    /// Counts how often the credentials were read.
    generation: u64,
    read_again: Option<Instant>,
}

/// Whether `settings` lead to a cluster.
pub fn is_configured(settings: &KubernetesSettings) -> bool {
    match &settings.access {
        Access::Off => false,
        Access::Auto => env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists(),
        Access::InCluster | Access::Kubeconfig(_) => true,
    }
}

/// A client for requests; nothing is sent. A watch needs the longer patience of [`Connection::watching`].
///
/// # Errors
/// Credentials that are not there or cannot be used.
pub async fn connect(settings: &KubernetesSettings) -> Result<Client, ConnectError> {
    Ok(clients(settings).await?.requests)
}

/// Awaits a request for [`WITHIN`] at most, which no server that sends a byte a second draws out (fault K1). `attempted`: in words.
///
/// # Errors
/// Whatever went wrong, with what was attempted.
pub async fn bounded<T>(attempted: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
    bounded_by(WITHIN, attempted, request).await
}

/// [`bounded`] with another limit.
///
/// # Errors
/// Whatever went wrong, with what was attempted.
pub async fn bounded_by<T>(
    within: Duration,
    attempted: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    match timeout(within, request).await {
        Ok(answer) => answer.map_err(|error| ClusterError::of(attempted, &error)),
        Err(_elapsed) => Err(ClusterError::Deadline {
            attempted: attempted.to_owned(),
            within,
        }),
    }
}

impl Connection {
    /// Reads the credentials; nothing is sent.
    ///
    /// # Errors
    /// Credentials that are not there or cannot be used.
    pub async fn new(settings: &KubernetesSettings) -> Result<Self, ConnectError> {
        Ok(Self {
            settings: settings.clone(),
            held: Mutex::new(Held {
                clients: clients(settings).await?,
                generation: 0,
                read_again: None,
            }),
        })
    }

    /// The client for requests. Not to be kept: credentials may be read again.
    pub async fn client(&self) -> Client {
        self.held.lock().await.clients.requests.clone()
    }

    /// The client for watches. Not to be kept beyond the end of a watch.
    pub async fn watching(&self) -> Client {
        self.held.lock().await.clients.watches.clone()
    }

    /// Makes a request, for [`WITHIN`] at most, and once more with credentials that are read again if those at hand are refused
    /// (fault K2).
    ///
    /// # Errors
    /// Whatever went wrong. [`ClusterError::Unauthorized`] stays until somebody renews the credentials.
    pub async fn ask<T, F>(&self, attempted: &str, request: impl Fn(Client) -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.ask_within(WITHIN, attempted, request).await
    }

    /// [`Connection::ask`] with another limit, which holds for each of the two tries.
    ///
    /// # Errors
    /// Whatever went wrong.
    pub async fn ask_within<T, F>(
        &self,
        within: Duration,
        attempted: &str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, ClusterError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let (client, generation) = {
            let held = self.held.lock().await;
            (held.clients.requests.clone(), held.generation)
        };
        let answer = bounded_by(within, attempted, request(client)).await;
        let Err(ClusterError::Unauthorized { message, .. }) = &answer else {
            return answer;
        };
        match self.renewed(generation, message).await {
            Some(client) => bounded_by(within, attempted, request(client)).await,
            None => answer,
        }
    }

    /// To be told when a watch is refused with 401: the next [`Connection::watching`] has other credentials.
    pub async fn refused(&self, message: &str) {
        let generation = self.held.lock().await.generation;
        self.renewed(generation, message).await;
    }

    /// The client with credentials that are not those of `generation`; `None`: there are no others.
    async fn renewed(&self, generation: u64, message: &str) -> Option<Client> {
        let mut held = self.held.lock().await;
        if held.generation > generation {
            return Some(held.clients.requests.clone());
        }
        if held.read_again.is_some_and(|at| at.elapsed() < READ_AGAIN) {
            return None;
        }
        held.read_again = Some(Instant::now());
        tracing::warn!(message, "the API server refused the credentials: reading them again");
        // A kubeconfig's plug-in may take its time: not longer than a request.
        match timeout(WITHIN, clients(&self.settings)).await {
            Ok(Ok(clients)) => {
                held.clients = clients;
                held.generation += 1;
                Some(held.clients.requests.clone())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the credentials were not read again");
                None
            }
            Err(_elapsed) => {
                tracing::error!("the credentials were not read again: it took too long");
                None
            }
        }
    }
}

async fn clients(settings: &KubernetesSettings) -> Result<Clients, ConnectError> {
    let config = config(settings).await?;
    // An `exec` plugin is run here, and waited for.
    let made = spawn_blocking({
        let runtime = tokio::runtime::Handle::current();
        move || {
            let _within = runtime.enter();
            let with_silence = |silence| {
                let mut config = config.clone();
                config.read_timeout = Some(silence);
                Client::try_from(config).map_err(|error| ConnectError::Client(error.to_string()))
            };
            Ok(Clients {
                requests: with_silence(SILENCE)?,
                watches: with_silence(WATCH_SILENCE)?,
            })
        }
    });
    made.await.map_err(|error| ConnectError::Client(error.to_string()))?
}

async fn config(settings: &KubernetesSettings) -> Result<Config, ConnectError> {
    let service_account = || Config::incluster().map_err(|error| ConnectError::ServiceAccount(error.to_string()));
    let mut config = match &settings.access {
        Access::Off => return Err(ConnectError::Off),
        Access::Auto if !is_configured(settings) => return Err(ConnectError::Off),
        Access::Auto | Access::InCluster => service_account()?,
        Access::Kubeconfig(path) => kubeconfig(path).await?,
    };
    let who = HeaderValue::from_static(USER_AGENT);
    config.headers.push((header::USER_AGENT, who));
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(SILENCE);
    // The time that a connection waited for its next request is not silence.
    config.reset_reader_on_write = true;
    // Without TLS nobody's certificate is checked: that the system has no authorities is no hindrance then.
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    // Who is told to come back later decides that himself: a budget that refuses an eviction is no failure of the server.
    config.default_retry = false;
    Ok(config)
}

async fn kubeconfig(path: &Path) -> Result<Config, ConnectError> {
    let error = |why: String| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        why,
    };
    let read = spawn_blocking({
        let path = path.to_owned();
        move || Kubeconfig::read_from(path).map_err(|error| error.to_string())
    });
    let kubeconfig = read.await.map_err(|join| error(join.to_string()))?.map_err(error)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|why| error(why.to_string()))
}

#[cfg(test)]
mod tests;
