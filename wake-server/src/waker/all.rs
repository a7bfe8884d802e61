//! The wake of many nodes: masters first, then storage, then workers, one after the other, so that they do not all draw their inrush
//! current at once (fault W9).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use vmstation_protocol::{NodeName, SCHEMA, WakeAllDocument};

use super::{WakeHandle, is_decided};
use crate::registry::Node;

/// How often progress is shown: a document of all nodes for each step of each would be the square of their number.
const SHOWN_EVERY: Duration = Duration::from_millis(500);
/// Nodes that are begun one after the other, without a stagger, before anybody else has a turn.
const AT_ONCE: usize = 256;

/// The wake of many nodes. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct WakeAllHandle {
    progress: watch::Receiver<(WakeAllDocument, bool)>,
    cancel: watch::Sender<bool>,
}

impl WakeAllHandle {
    /// How it goes, and whether every wake of it is decided.
    pub fn progress(&self) -> watch::Receiver<(WakeAllDocument, bool)> {
        self.progress.clone()
    }

    /// Calls off those that are under way, and begins no more.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Whether every wake of it is decided.
    pub fn is_over(&self) -> bool {
        self.progress.borrow().1
    }
}

/// How a node's wake comes to be part of a wake of many.
#[derive(Clone, Debug)]
pub enum Begun {
    /// Its node draws its inrush current from here on.
    Started(WakeHandle),
    /// It was under way: nobody need wait for the next one because of it.
    Shared(WakeHandle),
}

/// The time between two nodes. Clones are of the same one: two wakes of many at a time wake no more nodes in a second than one does.
#[derive(Clone, Debug)]
pub struct Pace {
    stagger: Duration,
    /// When the next node may be woken, by the clock of the runtime's timers: nothing else is decided by it. None: at once.
    free: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    /// So long after each other.
    pub fn new(stagger: Duration) -> Self {
        Self {
            stagger,
            free: Arc::default(),
        }
    }

    /// Cancel-safe: what was begun is returned at once.
    async fn begin(&self, node: &Node, start: &impl Fn(&Node) -> Begun) -> WakeHandle {
        loop {
            let free = {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                match *free {
                    Some(free) if free > now => free,
                    Some(_) | None => {
                        return match start(node) {
                            Begun::Started(handle) => {
                                *free = now.checked_add(self.stagger);
                                handle
                            }
                            Begun::Shared(handle) => handle,
                        };
                    }
                }
            };
            sleep_until(free).await;
        }
    }
}

/// The order in which nodes are woken, and the names of those that nothing can wake.
pub fn in_order(mut nodes: Vec<Node>) -> (Vec<Node>, Vec<NodeName>) {
    nodes.sort_by(|one, other| (one.role, &one.name).cmp(&(other.role, &other.name)));
    let (nodes, without): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| !node.macs.is_empty());
    (nodes, without.into_iter().map(|node| node.name).collect())
}

/// Wakes them, each by `start`, at this pace.
///
/// # Panics
/// Outside a tokio runtime.
pub fn wake_all(
    nodes: Vec<Node>,
    pace: Pace,
    verify: bool,
    start: impl Fn(&Node) -> Begun + Send + Sync + 'static,
) -> WakeAllHandle {
    let (nodes, without_mac) = in_order(nodes);
    let document = WakeAllDocument {
        schema: SCHEMA,
        nodes: Vec::new(),
        without_mac,
    };
    let (show, progress) = watch::channel((document, false));
    let (cancel, cancelled) = watch::channel(false);
    tokio::spawn(run(nodes, pace, verify, start, show, cancelled));
    WakeAllHandle { progress, cancel }
}

async fn run(
    nodes: Vec<Node>,
    pace: Pace,
    verify: bool,
    start: impl Fn(&Node) -> Begun + Send + Sync + 'static,
    show: watch::Sender<(WakeAllDocument, bool)>,
    mut cancelled: watch::Receiver<bool>,
) {
    let mut to_begin = nodes.into_iter().peekable();
    let mut begun: Vec<WakeHandle> = Vec::new();
    let mut decided = 0;
    let mut is_cancelled = false;
    let mut look = interval(SHOWN_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = to_begin.peek().filter(|_| !is_cancelled);
        let undecided = begun.get(decided);
        if next.is_none() && undecided.is_none() {
            break;
        }
        // Each of them can be dropped where it awaits.
        tokio::select! {
            biased;
            true = async { cancelled.wait_for(|cancelled| *cancelled).await.is_ok() }, if !is_cancelled => {
                is_cancelled = true;
                begun.iter().for_each(WakeHandle::cancel);
            }
            _ = look.tick() => {
                if is_cancelled {
                    // One that had too many wishes then hears it now.
                    begun.iter().for_each(WakeHandle::cancel);
                }
                show.send_if_modified(|(document, _)| refresh(document, &mut begun));
            }
            Some(handle) = optional(next.map(|node| pace.begin(node, &start))) => {
                begun.push(handle);
                to_begin.next();
                if begun.len().is_multiple_of(AT_ONCE) {
                    yield_now().await;
                }
            }
            Some(()) = optional(undecided.map(|wake| until_decided(wake, verify))), if next.is_none() => decided += 1,
        }
    }
    show.send_modify(|(document, is_over)| {
        refresh(document, &mut begun);
        *is_over = true;
    });
}

async fn optional<T>(future: Option<impl Future<Output = T>>) -> Option<T> {
    Some(future?.await)
}

async fn until_decided(wake: &WakeHandle, verify: bool) {
    let mut progress = wake.progress();
    // One that is over has its last document, whatever that says.
    let _decided = progress.wait_for(|document| is_decided(document, verify)).await.is_ok();
}

/// Takes over what is new of each wake; whether anything is.
fn refresh(document: &mut WakeAllDocument, begun: &mut [WakeHandle]) -> bool {
    let mut is_news = false;
    for (number, handle) in begun.iter_mut().enumerate() {
        match document.nodes.get_mut(number) {
            None => document.nodes.push(handle.progress.borrow_and_update().clone()),
            Some(shown) => {
                let current = handle.progress.borrow_and_update();
                if !current.has_changed() {
                    continue;
                }
                shown.clone_from(&current);
            }
        }
        is_news = true;
    }
    is_news
}

#[cfg(test)]
mod tests {
    use vmstation_protocol::{MacAddr, Role};

    use super::*;

    #[test]
    fn w9_masters_come_before_storage_and_that_before_workers() {
        let node = |name: &str, role, mac: Option<u8>| Node {
            name: name.parse().unwrap(),
            role,
            macs: mac
                .map(|last| MacAddr::new([2, 0, 0, 0, 0, last]).unwrap())
                .into_iter()
                .collect(),
            ..Node::bare(MacAddr::new([2, 0, 0, 0, 0, 9]).unwrap())
        };
        let (nodes, without) = in_order(vec![
            node("b", Role::Worker, Some(1)),
            node("a", Role::Worker, Some(2)),
            node("z", Role::Master, Some(3)),
            node("s", Role::Storage, Some(4)),
            node("x", Role::Master, None),
        ]);
        let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["z", "s", "a", "b"]);
        assert_eq!(without, ["x".parse().unwrap()]);
    }
}
