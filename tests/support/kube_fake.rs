//! A Kubernetes API server that is only memory, on loopback and without TLS. It answers as the real one does as far as our programs ask,
//! and fails on demand as a trial orders.
//!
//! No controller, scheduler or kubelet runs, as with the API server alone of envtest. [`KubeFake`] owns the thread that serves; it ends
//! when dropped. All state is behind one lock that no wait holds.

#[path = "kube_fake/access.rs"]
mod access;
#[path = "kube_fake/admission.rs"]
mod admission;
#[path = "kube_fake/eviction.rs"]
mod eviction;
#[path = "kube_fake/managed.rs"]
mod managed;
#[path = "kube_fake/patch.rs"]
mod patch;
#[path = "kube_fake/refusal.rs"]
mod refusal;
#[path = "kube_fake/resources.rs"]
mod resources;
#[path = "kube_fake/selector.rs"]
mod selector;
#[path = "kube_fake/serve.rs"]
mod serve;
#[path = "kube_fake/store.rs"]
mod store;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc as orders, watch},
    task::JoinSet,
};
use vmstation_agent::clock::BootTime;

pub(crate) use access::Rule;

/// Leases of elections; those of nodes are in another namespace.
const ELECTIONS: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// As it came: still encoded.
    pub(crate) query: String,
    /// `User-Agent`.
    pub(crate) agent: String,
    /// When it came.
    pub(crate) at: BootTime,
    /// Bytes of the body that was answered so far.
    pub(crate) answered: u64,
    /// Objects of a list; events of a watch so far.
    pub(crate) objects: usize,
}

impl Asked {
    /// Whether a stream of changes was asked for.
    pub(crate) fn is_watch(&self) -> bool {
        self.query
            .split('&')
            .any(|pair| pair == "watch=true" || pair == "watch=1")
    }
}

/// A running API server.
pub(crate) struct KubeFake {
    address: SocketAddr,
    shared: Arc<Shared>,
    orders: orders::UnboundedSender<(Listening, mpsc::Sender<()>)>,
    thread: Option<JoinHandle<()>>,
}

/// Which version of Kubernetes the server is, as far as a client can tell that asks for what ours ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// The oldest that our programs are for.
    Oldest,
    #[default]
    Newest,
}

impl Version {
    pub(crate) const ALL: [Self; 2] = [Self::Oldest, Self::Newest];

    /// After `1.`, and the patch.
    fn minor_and_patch(self) -> (u32, u32) {
        match self {
            Self::Oldest => (29, 15),
            Self::Newest => (37, 1),
        }
    }

    /// Feature gate `WatchList` (KEP 3157): on by default since 1.32.
    fn begins_watches_with_lists(self) -> bool {
        self == Self::Newest
    }

    /// Changes of a pod's `spec` are counted since 1.33 (KEP 5067).
    fn counts_changes_of_pods(self) -> bool {
        self == Self::Newest
    }
}

/// Whether connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    Yes,
    No,
    Over,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

struct State {
    store: store::Store,
    access: access::Access,
    faults: Faults,
    asked: Vec<Asked>,
    /// Grows when all watches are ended.
    era: u64,
    /// How those were told that were ended.
    ends_with_gone: bool,
}

struct Faults {
    delay: Duration,
    hangs: bool,
    trickles: bool,
    gone_by_status: bool,
    bookmark_every: Duration,
    failures: Vec<Failure>,
    stop: Option<Stop>,
}

/// When a write of a client is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It was heard, and changes nothing.
    Before,
    /// It is done, and its answer never comes.
    After,
    /// It goes on: the trial is told, nothing else.
    Never,
}

/// A write by which a client is stopped.
struct Stop {
    agent: String,
    left: usize,
    when: Stopped,
    is_reached: bool,
}

/// Answers that a trial ordered.
struct Failure {
    left: usize,
    method: String,
    part: String,
    code: u16,
}

impl Faults {
    fn next_for(&mut self, method: &str, path_and_query: &str) -> Option<u16> {
        let failure = self
            .failures
            .iter_mut()
            .find(|failure| failure.left > 0 && failure.method == method && path_and_query.contains(&failure.part))?;
        failure.left -= 1;
        Some(failure.code)
    }

    /// Where a request is to be stopped; after the one that was, all of the client are. But for those for the Lease of an election, which
    /// is renewed by the clock, and by which another takes over who calls himself the same.
    fn stops(&mut self, method: &str, agent: &str, path: &str) -> Stopped {
        let Some(stop) = self.stop.as_mut().filter(|stop| agent.starts_with(&stop.agent)) else {
            return Stopped::Never;
        };
        if path.starts_with(ELECTIONS) {
            return Stopped::Never;
        }
        if stop.is_reached {
            return match stop.when {
                Stopped::Never => Stopped::Never,
                Stopped::Before | Stopped::After => Stopped::Before,
            };
        }
        if method == "GET" {
            return Stopped::Never;
        }
        if stop.left > 0 {
            stop.left -= 1;
            return Stopped::Never;
        }
        stop.is_reached = true;
        stop.when
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A trial that panics while it looks leaves the state as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

fn now() -> Timestamp {
    vmstation_agent::power_log::wall_clock().timestamp()
}

impl KubeFake {
    pub(crate) fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// At an address of the network namespace of this thread.
    pub(crate) fn start_at(address: Ipv4Addr) -> Self {
        let listener = listen(SocketAddr::from((address, 0)));
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                store: store::Store::new(now()),
                access: access::Access::new(),
                faults: Faults {
                    delay: Duration::ZERO,
                    hangs: false,
                    trickles: false,
                    gone_by_status: false,
                    bookmark_every: Duration::from_secs(60),
                    failures: Vec::new(),
                    stop: None,
                },
                asked: Vec::new(),
                era: 0,
                ends_with_gone: false,
            }),
            changed: watch::channel(0).0,
        });
        let (orders, received) = orders::unbounded_channel();
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve_connections(address, listener, serving, received));
        });
        Self {
            address,
            shared,
            orders,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bearer token of who may do everything. A request without a token is anonymous, and may do nothing.
    pub(crate) fn token(&self) -> &'static str {
        access::ADMIN
    }

    /// Puts objects of the collection at `path` there as they are, status included, and tells no watch: a large cluster that was there
    /// before.
    pub(crate) fn put(&self, path: &str, objects: impl IntoIterator<Item = Value>) {
        let target = resources::Target::of(path).unwrap();
        self.shared.state().store.put(&target, objects, now());
    }

    /// What it is from here on; the newest unless told otherwise.
    pub(crate) fn be(&self, version: Version) {
        self.shared.state().store.version = version;
    }

    /// `metadata.resourceVersion` of the last write.
    pub(crate) fn revision(&self) -> u64 {
        self.shared.state().store.revision()
    }

    /// All that was asked so far.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.requests_since(0)
    }

    /// What was asked after the first `count` requests.
    pub(crate) fn requests_since(&self, count: usize) -> Vec<Asked> {
        let state = self.shared.state();
        state.asked.get(count..).unwrap_or_default().to_vec()
    }

    /// Each answer comes this much later.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.state().faults.delay = delay;
    }

    /// Stops the client that calls itself so at its write number `number`, counted from 0, and at all that follows. The Lease of an
    /// election does not count, and goes on.
    pub(crate) fn stop_at(&self, agent: &str, number: usize, when: Stopped) {
        self.shared.state().faults.stop = Some(Stop {
            agent: agent.into(),
            left: number,
            when,
            is_reached: false,
        });
    }

    /// Whether [`Self::stop_at`] came to that.
    pub(crate) fn is_stopped(&self) -> bool {
        let stop = &self.shared.state().faults.stop;
        stop.as_ref().is_some_and(|stop| stop.is_reached)
    }

    /// Takes back [`Self::stop_at`]; what was stopped stays so.
    pub(crate) fn stop_nobody(&self) {
        self.shared.state().faults.stop = None;
    }

    /// Takes requests and never answers; open watches fall silent. A request that came meanwhile is never answered.
    pub(crate) fn hang(&self, hangs: bool) {
        self.shared.state().faults.hangs = hangs;
        self.shared.tell();
    }

    /// Sends one byte of each body per second.
    pub(crate) fn trickle(&self, trickles: bool) {
        self.shared.state().faults.trickles = trickles;
    }

    /// Cuts all connections and refuses others until [`Self::accept`].
    pub(crate) fn refuse(&self) {
        self.order(Listening::No);
    }

    pub(crate) fn accept(&self) {
        self.order(Listening::Yes);
    }

    /// 401 for everybody.
    pub(crate) fn reject_tokens(&self, rejects: bool) {
        self.shared.state().access.reject_all(rejects);
    }

    /// 401 for every token but this one, which may do everything.
    pub(crate) fn accept_only(&self, token: &str) {
        self.shared.state().access.only(token);
    }

    /// Who shows no token may do everything: kubectl shows none where there is no TLS.
    pub(crate) fn admit_anybody(&self) {
        self.shared.state().access.admit_anybody();
    }

    /// Who comes with `token` is `name`, and may do what the rules say.
    pub(crate) fn user(&self, token: &str, name: &str, rules: &[Rule]) {
        self.shared.state().access.add(token, name, rules.to_vec());
    }

    /// 403 for what the rule covers, for everybody. Access reviews say so too.
    pub(crate) fn forbid(&self, rule: Rule) {
        self.shared.state().access.deny(rule);
    }

    /// Takes back all of [`Self::forbid`].
    pub(crate) fn forbid_nothing(&self) {
        self.shared.state().access.deny_nothing();
    }

    /// Forgets all changes so far: a watch that begins before is told 410, a list in parts has to begin anew.
    pub(crate) fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// Whether 410 for a watch is the status of the answer, and not an event of type ERROR.
    pub(crate) fn gone_by_status(&self, by_status: bool) {
        self.shared.state().faults.gone_by_status = by_status;
    }

    /// Ends all watches, as a server does that restarts.
    pub(crate) fn end_watches(&self) {
        self.next_era(false);
    }

    /// Ends all watches with an event that says 410.
    pub(crate) fn expire_watches(&self) {
        self.next_era(true);
    }

    /// How often watches get a bookmark; each minute unless told otherwise.
    pub(crate) fn bookmark_every(&self, every: Duration) {
        self.shared.state().faults.bookmark_every = every;
    }

    /// The next `count` requests of `method` whose path with its query contains `part` get `code`.
    pub(crate) fn fail_next(&self, count: usize, method: &str, part: &str, code: u16) {
        self.shared.state().faults.failures.push(Failure {
            left: count,
            method: method.into(),
            part: part.into(),
            code,
        });
    }

    fn next_era(&self, with_gone: bool) {
        {
            let mut state = self.shared.state();
            state.era += 1;
            state.ends_with_gone = with_gone;
        }
        self.shared.tell();
    }

    fn order(&self, listening: Listening) {
        let (done, is_done) = mpsc::channel();
        self.orders.send((listening, done)).unwrap();
        // Its end is an answer as well.
        let _over = is_done.recv();
    }
}

impl Drop for KubeFake {
    fn drop(&mut self) {
        let (done, _) = mpsc::channel();
        let _over = self.orders.send((Listening::Over, done));
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    // It sets SO_REUSEADDR: the same port can be taken again at once.
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

async fn serve_connections(
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    mut orders: orders::UnboundedReceiver<(Listening, mpsc::Sender<()>)>,
) {
    let mut listener = Some(tokio::net::TcpListener::from_std(listener).unwrap());
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((stream, _)) = next => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| serve::answer(Arc::clone(&shared), request));
                    // A client that goes away is none of our business.
                    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
            order = orders.recv() => match order {
                Some((Listening::Yes, done)) => {
                    if listener.is_none() {
                        listener = Some(tokio::net::TcpListener::from_std(listen(address)).unwrap());
                    }
                    let _waits = done.send(());
                }
                Some((Listening::No, done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _waits = done.send(());
                }
                Some((Listening::Over, _)) | None => return,
            },
        }
    }
}
