//! The user pods of this node. The only file of the agent, with those in its folder, that may name a Kubernetes library; it reads, and
//! never writes to the cluster.
//!
//! ```text
//!  driver ── ask n, watch or not ──> task ── list, watch ──> Kubernetes API
//!    ^                                 │
//!    └──────── Report (answers n) ─────┘
//! ```
//! The driver owns [`Pods`] and never waits: it is woken by each [`Report`] and reads the last one. A task owns the client and lives while
//! there is an API to ask, so that a host without Kubernetes has neither. What was asked for and is not in yet is doubt; so is a list that
//! failed, until the next check asks again. Between two lists a watch, if the driver wants one, tells of changes at once.
//!
//! Of the node's name only so much can be checked as pods tell (fault K12): a node that runs pods by its cgroups and has none by the API has
//! another name there. Whether a Node object of that name exists, the wake server looks, which may.

mod access;
mod api;
mod count;

use std::{
    future,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

use self::{
    access::{Access, Found},
    api::{Change, DEADLINE, Failure, Fresh, WATCH_FOR, WATCH_SECONDS, Watch},
    count::{Bound, Rules},
};
use crate::{
    clock::BootTime,
    config::{Kubernetes, Policy},
    counters::{PodsSeen, Reading, Source},
    kubepods,
};

/// Shortest time between two looks for a cluster on a host that is of none.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Shortest time between the beginnings of two watches.
const WATCH_EVERY: Duration = Duration::from_secs(10);
/// Part of a check interval by which a list may be asked for early: hosts that started together do not stay in step.
const EARLY: f64 = 0.1;
/// A list is in by then: one that is under way ends, credentials are read again, and it is tried once more.
const PATIENCE: Duration = Duration::from_secs(30);
/// Why nothing is known before the first answer.
const NOT_YET: &str = "the Kubernetes API is being asked for the pods of this node";
/// Changes on their way from the watch.
const QUEUE: usize = 64;

/// Whether changes are to be told at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watching {
    /// Yes.
    Yes,
    /// Only lists.
    No,
}

/// What the task found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The last question that is answered.
    answers: u64,
    pods: Result<PodsSeen, String>,
    /// Why changes are not told at once, if they were wanted.
    deaf: Option<String>,
}

/// What the driver wants of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Number of the last question: a list that begins after it was asked.
    question: u64,
    /// Number of the last one that wants to know what is there when it is asked.
    now: u64,
    watching: Watching,
}

/// The pods sensor.
pub struct Pods {
    reports: mpsc::Sender<Report>,
    wanted: Option<Setup>,
    state: State,
    /// Number of the last question, whatever task it went to.
    asked: u64,
    asked_at: BootTime,
    /// By chance: how much of [`EARLY`] the next one comes early, up to 1.
    early: f64,
}

/// What the configuration says.
struct Setup {
    kubernetes: Kubernetes,
    rules: Rules,
    /// Time between two lists.
    every: Duration,
    /// Name of the host.
    host: String,
}

enum State {
    /// Nobody has looked.
    Unknown,
    /// Nothing to ask.
    NoCluster,
    NoAccess(String),
    Asking(Asking),
}

/// A task and what it said last.
struct Asking {
    access: Access,
    wanted: watch::Sender<Wanted>,
    task: AbortHandle,
    /// Its first question: a report on an earlier one is another task's.
    first: u64,
    last: Option<Report>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pods {
    /// Asks nobody yet. Reports go to `reports`. `host`: name of this host.
    pub fn new(policy: &Policy, host: &str, reports: mpsc::Sender<Report>) -> Self {
        let wanted = policy.detection.pods.then(|| Setup {
            kubernetes: policy.kubernetes.clone(),
            rules: Rules {
                excluded_namespaces: policy.excluded_namespaces.clone(),
                prevent_sleep_labels: policy.prevent_sleep_labels.clone(),
            },
            every: policy.check_interval,
            host: host.to_owned(),
        });
        Self {
            reports,
            wanted,
            state: State::Unknown,
            asked: 0,
            asked_at: BootTime::default(),
            early: roll(),
        }
    }

    /// Goes on under another policy.
    pub fn reconfigure(&mut self, policy: &Policy, host: &str) {
        let asked = self.asked;
        *self = Self::new(policy, host, self.reports.clone());
        self.asked = asked;
    }

    /// Asks for a list if the last one is as old as a check interval, or a little less, or `watching` if that is another wish than before. To be called
    /// at each sample, from within a runtime.
    pub fn check(&mut self, watching: Watching, now: BootTime) {
        let Some(setup) = &self.wanted else { return };
        let every = match self.state {
            State::Unknown => Duration::ZERO,
            State::NoCluster => setup.every.max(LOOK_EVERY),
            State::NoAccess(_) | State::Asking(_) => setup.every.mul_f64(1.0 - EARLY * self.early),
        };
        let is_due = now.since(self.asked_at) >= every;
        if is_due {
            self.ask_for(Fresh::Known, now);
        }
        if let State::Asking(asking) = &self.state {
            asking.wanted.send_if_modified(|wanted| {
                let differs = wanted.watching != watching;
                wanted.watching = watching;
                differs
            });
        }
    }

    /// Asks for the pods that are there at this moment; the number of the question, `None` where there is nobody to ask.
    pub fn ask(&mut self, now: BootTime) -> Option<u64> {
        self.ask_for(Fresh::Now, now)
    }

    fn ask_for(&mut self, fresh: Fresh, now: BootTime) -> Option<u64> {
        let setup = self.wanted.as_ref()?;
        // To look for a kubelet is to look at every process, and no host joins a cluster every minute.
        if matches!(self.state, State::NoCluster) && now.since(self.asked_at) < LOOK_EVERY {
            return None;
        }
        self.asked_at = now;
        self.early = roll();
        let access = match access::find(&setup.kubernetes) {
            Found::Api(access) => access,
            Found::NoCluster => {
                self.state = State::NoCluster;
                return None;
            }
            Found::NoAccess(why) => {
                self.state = State::NoAccess(why);
                return None;
            }
        };
        self.asked += 1;
        let question = self.asked;
        let is_of_now = fresh == Fresh::Now;
        match &mut self.state {
            State::Asking(asking) if asking.access == access && !asking.task.is_finished() => {
                asking.wanted.send_modify(|wanted| {
                    wanted.question = question;
                    if is_of_now {
                        wanted.now = question;
                    }
                });
            }
            State::Asking(_) | State::Unknown | State::NoCluster | State::NoAccess(_) => {
                let (wanted, inbox) = watch::channel(Wanted {
                    question,
                    now: if is_of_now { question } else { 0 },
                    watching: Watching::No,
                });
                let task = Task {
                    access: access.clone(),
                    node: access::node_name(&setup.kubernetes, &setup.host),
                    rules: setup.rules.clone(),
                    reports: self.reports.clone(),
                    client: None,
                    known: Err(NOT_YET.into()),
                    answers: 0,
                    watcher: None,
                    watched_at: None,
                    cut: Cut::No,
                    deaf: None,
                };
                tracing::info!(node = task.node, access = ?access, "asking the Kubernetes API for the pods of this node");
                self.state = State::Asking(Asking {
                    access,
                    wanted,
                    task: tokio::spawn(task.run(inbox)).abort_handle(),
                    first: question,
                    last: None,
                });
            }
        }
        Some(question)
    }

    /// What was known is forgotten (the host slept); the next check asks anew.
    pub fn forget(&mut self) {
        match self.state {
            // It joined none while it slept.
            State::NoCluster => {}
            State::Unknown | State::NoAccess(_) | State::Asking(_) => self.state = State::Unknown,
        }
    }

    /// Takes note of a report; whether it is one of the pods that are asked for.
    pub fn take(&mut self, report: Report) -> bool {
        let State::Asking(asking) = &mut self.state else {
            return false;
        };
        if report.answers < asking.first {
            return false;
        }
        asking.last = Some(report);
        true
    }

    /// Whether the question is answered, or never will be: [`Self::reading`] tells.
    pub fn is_answered(&self, question: u64, now: BootTime) -> bool {
        match &self.state {
            State::Asking(asking) => {
                let is_in = asking.last.as_ref().is_some_and(|last| last.answers >= question);
                is_in || self.is_overdue(now)
            }
            State::Unknown | State::NoCluster | State::NoAccess(_) => true,
        }
    }

    fn is_overdue(&self, now: BootTime) -> bool {
        now.since(self.asked_at) > PATIENCE
    }

    /// The pods of this node, as far as known.
    pub fn reading(&self, now: BootTime) -> Reading<PodsSeen> {
        if self.wanted.is_none() {
            return Reading::NotConfigured;
        }
        match &self.state {
            State::Unknown => Reading::Unreadable(NOT_YET.into()),
            State::NoCluster => Reading::NotConfigured,
            State::NoAccess(why) => Reading::Unreadable(why.clone()),
            State::Asking(asking) => match &asking.last {
                None => Reading::Unreadable(NOT_YET.into()),
                Some(last) if last.answers < self.asked && self.is_overdue(now) => {
                    Reading::Unreadable("the list of the pods of this node is overdue".into())
                }
                Some(last) => match &last.pods {
                    Err(why) => Reading::Unreadable(why.clone()),
                    Ok(seen) => Reading::Known {
                        value: seen.clone(),
                        source: Source::Kubernetes,
                    },
                },
            },
        }
    }

    /// What an operator should know although it keeps nothing awake.
    pub fn warning(&self) -> Option<String> {
        let State::Asking(asking) = &self.state else {
            return None;
        };
        let why = asking.last.as_ref()?.deaf.as_ref()?;
        Some(format!("a new pod is noticed at the next check only: {why}"))
    }
}

/// Owns the client and all that is known.
struct Task {
    access: Access,
    node: String,
    rules: Rules,
    reports: mpsc::Sender<Report>,
    /// Made when it is first used, and anew after it failed.
    client: Option<Client>,
    /// What the last list and the changes since then say.
    known: Result<Known, String>,
    /// The last question that is answered.
    answers: u64,
    watcher: Option<Watcher>,
    /// When the last watch was to begin.
    watched_at: Option<BootTime>,
    cut: Cut,
    deaf: Option<String>,
}

/// How the last watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// In its time, or because nobody wanted it.
    No,
    /// Before its time, as those of all other hosts when the server is stopped.
    Early,
    /// It failed, after so many others that did without one that began.
    Failed(u32),
}

struct Known {
    bound: Bound,
    /// Where a watch goes on; `None`: the API has forgotten it.
    version: Option<String>,
}

/// A watch that is under way, with the time before it in which none may begin.
struct Watcher {
    told: mpsc::Receiver<Told>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a watch tells.
#[derive(Debug)]
enum Told {
    Begun,
    Changed(Change),
    Failed(Failure),
}

/// What the task waits for.
enum Woken {
    Asked,
    Told(Told),
    WatchOver,
    NobodyAsks,
}

impl Task {
    async fn run(mut self, mut inbox: watch::Receiver<Wanted>) {
        loop {
            let wanted = *inbox.borrow_and_update();
            if wanted.question > self.answers {
                let fresh = if wanted.now > self.answers {
                    Fresh::Now
                } else {
                    Fresh::Known
                };
                self.list(fresh).await;
                self.answers = wanted.question;
                self.report().await;
            }
            match wanted.watching {
                Watching::No => {
                    self.watcher = None;
                    self.deaf = None;
                }
                Watching::Yes if self.watcher.is_none() => self.begin_watch().await,
                Watching::Yes => {}
            }
            let before = (self.seen(), self.deaf.clone());
            // Cancel-safe: both channels keep what was not taken.
            let woken = tokio::select! {
                changed = inbox.changed() => changed.map_or(Woken::NobodyAsks, |()| Woken::Asked),
                told = told(self.watcher.as_mut()) => told.map_or(Woken::WatchOver, Woken::Told),
            };
            match woken {
                Woken::NobodyAsks => return,
                Woken::Asked => {}
                Woken::WatchOver => self.watch_over(BootTime::now()),
                Woken::Told(told) => self.take(told),
            }
            if before != (self.seen(), self.deaf.clone()) {
                self.report().await;
            }
        }
    }

    fn seen(&self) -> Result<PodsSeen, String> {
        match &self.known {
            Ok(known) => Ok(known.bound.seen()),
            Err(why) => Err(why.clone()),
        }
    }

    async fn report(&self) {
        let report = Report {
            answers: self.answers,
            pods: self.seen(),
            deaf: self.deaf.clone(),
        };
        // A driver that is gone wants no report.
        let _gone = self.reports.send(report).await;
    }

    /// Asks for the list. Credentials that are not accepted are read again once: tokens and certificates are replaced every now and then
    /// (fault K2).
    async fn list(&mut self, fresh: Fresh) {
        let mut listed = self.try_list(fresh).await;
        if matches!(listed, Err(Failure::Unauthorized(_))) {
            self.client = None;
            listed = self.try_list(fresh).await;
        }
        let known = match listed {
            Ok(listed) if listed.bound.is_empty() && kubepods::any_pod() => Err(format!(
                "no pod is bound to node {} by the Kubernetes API, and pods run here: is `node` in [kubernetes] its name?",
                self.node
            )),
            Ok(listed) => Ok(Known {
                bound: listed.bound,
                version: Some(listed.version),
            }),
            Err(failure) => {
                // The next one begins with another connection, and with the credentials of then.
                self.client = None;
                Err(failure.to_string())
            }
        };
        match (&self.known, &known) {
            (Err(before), Err(why)) if before == why => {}
            (Ok(_) | Err(_), Err(why)) => tracing::warn!(node = self.node, why, "the pods of this node are not known"),
            (Err(_), Ok(_)) => tracing::info!(node = self.node, "the pods of this node are known"),
            (Ok(_), Ok(_)) => {}
        }
        self.known = known;
    }

    async fn try_list(&mut self, fresh: Fresh) -> Result<api::Listed, Failure> {
        let client = self.client().await?;
        let version = match (fresh, &self.known) {
            (Fresh::Now, _) => None,
            (Fresh::Known, Ok(known)) => known.version.as_deref(),
            // Of any age.
            (Fresh::Known, Err(_)) => Some("0"),
        };
        api::list(&client, &self.node, version, &self.rules).await
    }

    async fn client(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let made = timeout(DEADLINE, access::client(&self.access)).await;
        let made = made.unwrap_or_else(|_elapsed| Err("making a client of the Kubernetes API takes too long".into()));
        let client = made.map_err(Failure::NoClient)?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Watches from the last list on. Without a list there is nothing to go on from: the next check brings one.
    async fn begin_watch(&mut self) {
        if matches!(&self.known, Ok(known) if known.version.is_none()) {
            self.list(Fresh::Now).await;
            self.report().await;
        }
        let Ok(Known {
            version: Some(version), ..
        }) = &self.known
        else {
            return;
        };
        let version = version.clone();
        let client = match self.client().await {
            Ok(client) => client,
            Err(failure) => {
                self.known = Err(failure.to_string());
                return self.report().await;
            }
        };
        let (tell, told) = mpsc::channel(QUEUE);
        let now = BootTime::now();
        let rest = self
            .watched_at
            .map_or(Duration::ZERO, |at| rest(self.cut, now.since(at), roll()));
        self.watched_at = Some(now.after(rest));
        let task = tokio::spawn(watch_after(rest, client, self.node.clone(), version, tell)).abort_handle();
        self.watcher = Some(Watcher { told, task });
    }

    fn watch_over(&mut self, now: BootTime) {
        self.watcher = None;
        let lasted = self.watched_at.map_or(Duration::ZERO, |at| now.since(at));
        // A second less for what the server takes for one.
        let is_early = lasted.as_secs() + 1 < WATCH_SECONDS.into();
        if self.cut == Cut::No && is_early {
            self.cut = Cut::Early;
        }
    }

    fn take(&mut self, told: Told) {
        match (told, &mut self.known) {
            (Told::Begun, _) => {
                self.cut = Cut::No;
                self.deaf = None;
            }
            (Told::Changed(Change::Put(pod)), Ok(known)) => {
                known.bound.put(&pod, &self.rules);
                known.version = Some(pod.metadata.resource_version);
            }
            (Told::Changed(Change::Removed(pod)), Ok(known)) => {
                known.bound.remove(&pod);
                known.version = Some(pod.metadata.resource_version);
            }
            (Told::Changed(Change::Bookmark(version)), Ok(known)) => known.version = Some(version),
            (Told::Changed(Change::Put(_) | Change::Removed(_) | Change::Bookmark(_)), Err(_)) => {}
            (Told::Failed(Failure::Gone), Ok(known)) => known.version = None,
            (Told::Failed(Failure::Gone), Err(_)) => {}
            (Told::Failed(failure), _) => {
                let why = failure.to_string();
                if self.deaf.as_ref() != Some(&why) {
                    tracing::warn!(node = self.node, why, "new pods are noticed at the next check only");
                }
                self.deaf = Some(why);
                self.client = None;
                self.cut = match self.cut {
                    Cut::No | Cut::Early => Cut::Failed(1),
                    Cut::Failed(times) => Cut::Failed(times.saturating_add(1)),
                };
            }
        }
    }
}

/// The next word of the watch, `None` at its end; never without a watch.
async fn told(watcher: Option<&mut Watcher>) -> Option<Told> {
    match watcher {
        None => future::pending().await,
        Some(watcher) => watcher.told.recv().await,
    }
}

/// Rest before the next watch, `begun` after the beginning of the last one. Watches of all hosts end together when the API server does: what
/// `roll` says, from 0 to 1, spreads their return over 10 s, and the further tries over up to 80 s.
fn rest(cut: Cut, begun: Duration, roll: f64) -> Duration {
    let spread = match cut {
        Cut::No => Duration::ZERO,
        Cut::Early => WATCH_EVERY,
        Cut::Failed(times) => WATCH_EVERY * (1 << times.min(3)),
    };
    WATCH_EVERY.saturating_sub(begun) + spread.mul_f64(roll)
}

/// By chance, from 0 to 1.
fn roll() -> f64 {
    let bits = RandomState::new().hash_one(());
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// Watches after a rest, so that watches that end at once do not follow each other; until the watch ends or nobody listens.
async fn watch_after(rest: Duration, client: Client, node: String, version: String, tell: mpsc::Sender<Told>) {
    sleep(rest).await;
    let ended = timeout(WATCH_FOR, pass_on(&client, &node, &version, &tell)).await;
    if let Ok(Err(failure)) = ended {
        // A task that does not listen any more has no watch.
        let _gone = tell.send(Told::Failed(failure)).await;
    }
}

async fn pass_on(client: &Client, node: &str, version: &str, tell: &mpsc::Sender<Told>) -> Result<(), Failure> {
    let mut watch = Watch::begin(client, node, version).await?;
    let mut next = Told::Begun;
    while tell.send(next).await.is_ok() {
        match watch.next().await? {
            Some(change) => next = Told::Changed(change),
            None => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
