//! Who of several wake servers acts: the one that holds a Lease of the API server.
//!
//! ```text
//!              look, every `renew`                        nobody holds it, or the same version was seen for `lease_duration`
//! ┌───────────┐ ────────────────────────────────────────────────────────────────────────────────────────> ┌────────┐
//! │ Following │                                                                                            │ Acting │ renew
//! └───────────┘ <──────────────────────────────────────────────────────────────────────────────────────── └────────┘
//!                somebody else holds it, or two thirds of `lease_duration` went by since the last renewal was sent
//! ```
//!
//! One task owns the state and is the only one to write the Lease; [`candidate`] decides. Every write names the version that it
//! replaces, so that of two servers only one gets the Lease. No clock of another host is read: who follows counts from when it saw a
//! version first, who leads from when it sent the renewal. A leader that cannot reach the API server has ceased to act while a third of
//! the lease is still to go.

mod candidate;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::candidate::{Candidate, Record, Step};
use super::{connect::Connection, error::ClusterError};
use crate::{
    clock::{Moment, wall_clock},
    config::kubernetes::KubernetesSettings,
};

/// Annotation of the Lease: the leader's URL, which who follows passes writes on to.
pub const API_URL: &str = "vmstation.io/api-url";
/// Longest name of a holder and longest URL that are believed, bytes.
const LONGEST: usize = 512;
/// Conflicts that are taken when the Lease is given back.
const TRIES: usize = 3;

/// Whether this wake server acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It does, for a time: see [`Leadership::fence`].
    Acting(Term),
    /// Another does, or nobody.
    Following {
        /// Who, if that is known.
        leader: Option<Leader>,
    },
}

/// The right to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Told from every other holder's.
    pub fence: Fence,
    /// Not from then on, if this is not told anew before.
    pub acts_until: Moment,
}

/// The Lease's `leaseTransitions`: whoever holds it later has a greater one. To be written with every claim on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// Another wake server that acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// As in the Lease.
    pub identity: String,
    /// Where its API is, if it says so.
    pub url: Option<String>,
}

impl Leadership {
    /// The right to act at this moment. To be asked right before everything that acts: timers do not count the sleep of this host.
    pub fn fence(&self, now: Moment) -> Option<Fence> {
        match self {
            Self::Acting(term) if now < term.acts_until => Some(term.fence),
            Self::Acting(_) | Self::Following { .. } => None,
        }
    }
}

/// What a Lease says, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// Who holds it.
    pub leader: Option<Leader>,
    /// How often it changed hands.
    pub transitions: u64,
    /// When the holder renewed it, by its clock.
    pub renewed: Option<Timestamp>,
}

/// Stands for election until it is dropped, which is like losing the API server: nobody else acts before the lease is over.
pub struct Election {
    leadership: watch::Receiver<Leadership>,
    resign: mpsc::Sender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    patience: Duration,
}

impl Drop for Election {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Election {
    /// Begins as who follows. `identity` is that of this process: nobody else has it, nor had it before.
    pub fn start(connection: Arc<Connection>, settings: &KubernetesSettings, identity: String) -> Self {
        let (tell, leadership) = watch::channel(Leadership::Following { leader: None });
        let (resign, resigning) = mpsc::channel(1);
        let patience = settings.lease_duration / 3;
        let standing = Standing {
            connection,
            namespace: settings.namespace.clone(),
            lease: settings.lease.clone(),
            url: settings.advertise.clone(),
            renew: settings.renew,
            patience,
            candidate: Candidate::new(identity, settings.lease_duration),
            tell,
            failure: None,
        };
        Self {
            leadership,
            resign,
            task: tokio::spawn(standing.run(resigning)),
            patience,
        }
    }

    /// Who acts, as it changes. Each renewal is a change too.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Ceases to act and gives the Lease back, so that another acts at once. Whatever acts has to have ended before. Takes no longer than
    /// the lease: what cannot be given back runs out.
    pub async fn resign(self) {
        let (resigned, done) = oneshot::channel();
        if self.resign.send(resigned).await.is_ok() && timeout(2 * self.patience, done).await.is_err() {
            tracing::warn!("the lease could not be given back in time: it runs out");
        }
    }
}

/// A name that no other process has: of this host, its boot and this process.
pub fn identity(host: &str) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    let unique = boot.map_or_else(|_| format!("{:?}", Moment::now()), |uuid| uuid.trim().to_owned());
    format!("{host}_{unique}")
}

/// Reads the Lease once.
///
/// # Errors
/// [`ClusterError::NotFound`] if there is none, or whatever went wrong.
pub async fn look(connection: &Connection, settings: &KubernetesSettings) -> Result<LeaseState, ClusterError> {
    let lease = connection
        .ask(
            &format!("read Lease {}/{}", settings.namespace, settings.lease),
            |client| {
                let api = Api::<Lease>::namespaced(client, &settings.namespace);
                async move { api.get(&settings.lease).await }
            },
        )
        .await?;
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
    let renewed = renewed.map(|time| time.0);
    let record = record(&lease);
    Ok(LeaseState {
        leader: record.holder.map(|identity| Leader {
            identity,
            url: record.url,
        }),
        transitions: record.transitions,
        renewed,
    })
}

/// The task's share.
struct Standing {
    connection: Arc<Connection>,
    namespace: String,
    lease: String,
    url: Option<String>,
    renew: Duration,
    /// Longest time of a request.
    patience: Duration,
    candidate: Candidate,
    tell: watch::Sender<Leadership>,
    /// What was last complained about.
    failure: Option<String>,
}

impl Standing {
    async fn run(mut self, mut resigning: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            // A request that is dropped here may still be done: giving the Lease back looks first.
            let resigned = tokio::select! {
                biased;
                resigned = resigning.recv() => resigned,
                () = self.turn() => continue,
            };
            self.candidate.cease();
            self.publish();
            if let Some(resigned) = resigned {
                self.give_back().await;
                // Nobody waits any more.
                let _ = resigned.send(());
            }
            return;
        }
    }

    /// One look or renewal, and the pause after it.
    async fn turn(&mut self) {
        match self.attempt().await {
            Ok(()) => self.failure = None,
            Err(ClusterError::Conflict { .. }) => {}
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_deref() != Some(&text) {
                    tracing::warn!(%error, "the lease cannot be looked after");
                    self.failure = Some(text);
                }
            }
        }
        self.publish();
        sleep(self.candidate.at_most(self.renew, Moment::now())).await;
        self.publish();
    }

    async fn attempt(&mut self) -> Result<(), ClusterError> {
        if self.candidate.has_to_look() {
            let asked_at = Moment::now();
            let found = self.read().await;
            let found = match found {
                Ok(lease) => Some(record(&lease)),
                Err(ClusterError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            self.candidate.looked(found, asked_at, Moment::now());
        }
        let (version, fence) = match self.candidate.step() {
            Step::Wait => return Ok(()),
            Step::Create { fence } => (None, fence),
            Step::Write { version, fence } => (Some(version), fence),
        };
        let sent_at = Moment::now();
        // From here on the version is not known until there is an answer.
        self.candidate.writes();
        let held = self.lease(Some(self.candidate.identity()), version, fence);
        let written = self.write(&held).await?;
        self.candidate.written(record(&written), sent_at);
        Ok(())
    }

    async fn read(&self) -> Result<Lease, ClusterError> {
        let attempted = format!("read Lease {}/{}", self.namespace, self.lease);
        let request = |client| {
            let api = Api::<Lease>::namespaced(client, &self.namespace);
            async move { api.get(&self.lease).await }
        };
        let within = self.candidate.at_most(self.patience, Moment::now());
        self.connection.ask_within(within, &attempted, request).await
    }

    /// Creates what has no version, replaces what has the version that `lease` names.
    async fn write(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let attempted = format!("write Lease {}/{}", self.namespace, self.lease);
        let request = |client| {
            let api = Api::<Lease>::namespaced(client, &self.namespace);
            async move {
                let how = PostParams::default();
                match lease.metadata.resource_version {
                    Some(_) => api.replace(&self.lease, &how, lease).await,
                    None => api.create(&how, lease).await,
                }
            }
        };
        let within = self.candidate.at_most(self.patience, Moment::now());
        self.connection.ask_within(within, &attempted, request).await
    }

    /// The Lease as it is to be. Without a holder it can be taken at once.
    fn lease(&self, holder: Option<&str>, version: Option<String>, fence: Fence) -> Lease {
        let now = MicroTime(wall_clock());
        let annotations: BTreeMap<_, _> = holder
            .and(self.url.clone())
            .map(|url| (API_URL.to_owned(), url))
            .into_iter()
            .collect();
        let seconds = self.candidate.duration().as_secs();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.lease.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version: version,
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: holder.map(|_| self.candidate.acquired().map_or(now.clone(), MicroTime)),
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
                lease_transitions: Some(i32::try_from(fence.0).unwrap_or(i32::MAX)),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    async fn give_back(&mut self) {
        for _ in 0..TRIES {
            let Ok(lease) = self.read().await else { return };
            let found = record(&lease);
            if found.holder.as_deref() != Some(self.candidate.identity()) {
                return;
            }
            let free = self.lease(None, Some(found.version), Fence(found.transitions));
            match self.write(&free).await {
                Ok(_) => {
                    tracing::info!("the lease is given back");
                    return;
                }
                Err(ClusterError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "the lease is not given back: it runs out");
                    return;
                }
            }
        }
    }

    fn publish(&self) {
        let leadership = self.candidate.leadership(Moment::now());
        self.tell.send_if_modified(|told| {
            match (&*told, &leadership) {
                (Leadership::Following { .. }, Leadership::Acting(term)) => {
                    tracing::info!(fence = term.fence.0, "this wake server leads");
                }
                (Leadership::Acting(_), Leadership::Following { .. }) => {
                    tracing::warn!("this wake server does not lead any more");
                }
                (Leadership::Acting(_), Leadership::Acting(_))
                | (Leadership::Following { .. }, Leadership::Following { .. }) => {}
            }
            let is_new = *told != leadership;
            *told = leadership;
            is_new
        });
    }
}

/// What matters of a Lease; what cannot be believed counts as not written.
fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let annotations = lease.metadata.annotations.as_ref();
    let url = annotations.and_then(|annotations| annotations.get(API_URL));
    let is_short = |text: &String| !text.is_empty() && text.len() <= LONGEST;
    Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        url: url.cloned().filter(is_short),
        duration: spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|&seconds| seconds > 0)
            .map(Duration::from_secs),
        transitions: spec
            .lease_transitions
            .and_then(|transitions| u64::try_from(transitions).ok())
            .unwrap_or(0),
    }
}
