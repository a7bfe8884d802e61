//! Carries wakes out: one task a wake, which sends what [`Wake`] orders, brings it what happens, and shows how far it is. Decides nothing.
//!
//! ```text
//! hub ── start ──> task ── Air::send ──> packets           task ──> WakeHandle::progress ──> whoever asked
//!                   ^ ^─── Air::answers <── ARP
//!                   └───── lives <── agents' reports, join and cancel <── WakeHandle
//! ```

mod all;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use vmstation_protocol::{MacAddr, SCHEMA, WakeDocument, WakeOutcome};

pub use self::all::{Begun, Pace, WakeAllHandle, in_order, wake_all};
use crate::{
    clock::Moment,
    presence::Life,
    registry::Node,
    wake::{Action, Event, Sent, Wake, WakePlan},
};

/// Wishes that wait for a wake's task.
const WISHES: usize = 16;

/// Where packets go and answers come from.
pub trait Air: Send + Sync + 'static {
    /// Calls every card of a node, once.
    fn send<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Sent, String>>;

    /// Hears which cards answer for a node's address, for as long as the receiver is kept. It ends where that cannot be heard.
    fn answers(&self, node: &Node) -> mpsc::Receiver<MacAddr>;
}

/// A wake under way, or over. Clones are of the same wake.
#[derive(Clone, Debug)]
pub struct WakeHandle {
    progress: watch::Receiver<WakeDocument>,
    wishes: mpsc::Sender<Event>,
}

impl WakeHandle {
    /// How it goes. The last document stays.
    pub fn progress(&self) -> watch::Receiver<WakeDocument> {
        self.progress.clone()
    }

    /// Somebody else wants this wake; with a proof, if `verify`.
    pub fn join(&self, verify: bool) {
        if verify {
            self.wish(Event::Verify);
        }
    }

    /// Nobody wants it any more.
    pub fn cancel(&self) {
        self.wish(Event::Cancel);
    }

    /// Its cluster uses the node again.
    pub fn ready(&self) {
        self.wish(Event::Ready);
    }

    fn wish(&self, wish: Event) {
        // One that is over, or has as many wishes already, needs no more.
        let _heard = self.wishes.try_send(wish);
    }
}

/// Starts a wake. `over` is told the last document before anybody else is; nobody else is until what it gives has ended.
///
/// # Panics
/// Outside a tokio runtime, or for a node without a MAC address.
pub fn start<Told: Future<Output = ()> + Send + 'static>(
    air: Arc<dyn Air>,
    node: Node,
    plan: WakePlan,
    began: Timestamp,
    lives: watch::Receiver<Option<Life>>,
    over: impl FnOnce(WakeDocument) -> Told + Send + 'static,
) -> WakeHandle {
    let (wake, actions) = Wake::begin(plan, Moment::now());
    let task = Task {
        mac: node.macs[0],
        node,
        began,
        wake,
        air,
        lives,
    };
    let (show, progress) = watch::channel(task.document());
    let (wishes, heard) = mpsc::channel(WISHES);
    tokio::spawn(task.run(actions, heard, show, over));
    WakeHandle { progress, wishes }
}

struct Task {
    node: Node,
    mac: MacAddr,
    began: Timestamp,
    wake: Wake,
    air: Arc<dyn Air>,
    lives: watch::Receiver<Option<Life>>,
}

impl Task {
    async fn run<Told: Future<Output = ()>>(
        mut self,
        mut actions: Vec<Action>,
        mut wishes: mpsc::Receiver<Event>,
        show: watch::Sender<WakeDocument>,
        over: impl FnOnce(WakeDocument) -> Told,
    ) {
        let mut answers = self.air.answers(&self.node);
        while !self.wake.is_over() {
            let more = match actions.pop() {
                Some(Action::Send) => self.send(&mut wishes).await,
                Some(Action::Ask) => {
                    // Who begins to listen asks at once.
                    answers = self.air.answers(&self.node);
                    Vec::new()
                }
                None => {
                    let event = self.next(&mut answers, &mut wishes).await;
                    self.wake.handle(event, Moment::now())
                }
            };
            actions.extend(more);
            if !self.wake.is_over() {
                show.send_if_modified(|shown| {
                    let document = self.document();
                    let is_news = *shown != document;
                    *shown = document;
                    is_news
                });
            }
        }
        let document = self.document();
        over(document.clone()).await;
        show.send_replace(document);
    }

    /// Hears wishes meanwhile: a network that takes its time holds up nobody who calls the wake off.
    async fn send(&mut self, wishes: &mut mpsc::Receiver<Event>) -> Vec<Action> {
        let mut sending = self.air.send(&self.node);
        let mut actions = Vec::new();
        while !self.wake.is_over() {
            tokio::select! {
                biased;
                Some(wish) = wishes.recv() => actions.extend(self.wake.handle(wish, Moment::now())),
                sent = &mut sending => {
                    let event = sent.map_or_else(Event::NotSent, Event::Sent);
                    actions.extend(self.wake.handle(event, Moment::now()));
                    break;
                }
            }
        }
        actions
    }

    /// Cancel-safe: channels keep what is not taken.
    async fn next(&mut self, answers: &mut mpsc::Receiver<MacAddr>, wishes: &mut mpsc::Receiver<Event>) -> Event {
        let due = self.wake.deadline().unwrap_or_default();
        tokio::select! {
            biased;
            Some(wish) = wishes.recv() => wish,
            Ok(()) = self.lives.changed() => match self.lives.borrow_and_update().clone() {
                Some(life) => Event::Heard(life),
                None => Event::Tick,
            },
            () = sleep(due.since(Moment::now())) => Event::Tick,
            Some(mac) = answers.recv() => Event::Answered(mac),
        }
    }

    fn document(&self) -> WakeDocument {
        let sent = self.wake.last_sent();
        WakeDocument {
            schema: SCHEMA,
            node: self.node.name.clone(),
            mac: self.mac,
            began: self.began.to_string(),
            outcome: self.wake.outcome(),
            stages: self.wake.stages().to_vec(),
            transport: sent.map(|sent| sent.transport),
            interface: sent.and_then(|sent| sent.interface.clone()),
            packets: self.wake.packets(),
            message: self.wake.message(),
        }
    }
}

/// Whether nobody needs to wait for a wake any longer; `verify`: for its proof, not only for the first packet.
pub const fn is_decided(document: &WakeDocument, verify: bool) -> bool {
    match document.outcome {
        WakeOutcome::Waking | WakeOutcome::Sent => !verify && !document.stages.is_empty(),
        // It may be tried again; that it is not, the end of the wake tells.
        WakeOutcome::NotSent => !verify,
        WakeOutcome::Awake | WakeOutcome::TimedOut | WakeOutcome::Cancelled => true,
    }
}

#[cfg(test)]
mod tests;
