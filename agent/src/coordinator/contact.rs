//! Keeps in contact with the wake server: one task that reports what the driver says the host does, and holds one question for orders.
//!
//! ```text
//!            ┌──────── wait, longer each time <── failed ───────────┐
//!            v                                                      │
//! told ──> report ──> hold a question for orders ──> answered ──> ask again
//!            ^              │ told
//!            └──────────────┘
//! ```
//! What is told is reported at once after a start and a resume and before a sleep, else at most every [`Pace::spacing`]; of several, the
//! newest counts. Before a sleep the question is dropped, and nothing is said until there is something else to tell: silence is sleep.
//!
//! An order is passed on once. Those that are older than the first answer after a start or a resume are not: whether they were carried
//! out is not known, and who wakes a host wants it awake.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use vmstation_protocol::{Activity, MacAddr, Order, Orders, Port, Waking};

use super::{Failure, Server};
use crate::{clock::BootTime, wol};

/// Longest wait for the network cards' drivers before the first report.
const PORTS_DEADLINE: Duration = Duration::from_secs(5);

/// How long everything takes at most, and how often it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Longest wait for an answer.
    pub answer: Duration,
    /// Longest wait for an answer that the server holds back: longer than the 5 minutes it does.
    pub hold: Duration,
    /// A server that holds a question for a shorter time than this does not hold it.
    pub shortest_hold: Duration,
    /// Least time between two reports that are not urgent.
    pub spacing: Duration,
    /// Wait after a first failure; doubled for each further one ..
    pub retry_first: Duration,
    /// .. up to this. By chance a wait is up to twice as long.
    pub retry_longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(5),
            hold: Duration::from_secs(330),
            shortest_hold: Duration::from_secs(10),
            spacing: Duration::from_secs(10),
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(30),
        }
    }
}

impl Pace {
    /// Growing waits, each made longer by chance, by up to itself, so that a cluster does not come back in step.
    pub(super) fn waits(self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.retry_first)
            .with_max_delay(self.retry_longest)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// What the host does, as the driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Counts what was told.
    pub(super) number: u64,
    /// Whether the driver has said what the host does; before, nothing else of this is true.
    pub(super) said: bool,
    pub(super) activity: Activity,
    /// Why it is in use.
    pub(super) reasons: Vec<String>,
    /// Suspends of this boot.
    pub(super) resumes: u64,
    /// `None`: not known yet.
    pub(super) ports: Option<Vec<Port>>,
}

/// Where it is written what the host does, for whoever is in contact with a wake server. Clones are the same board.
#[derive(Clone, Debug)]
pub struct Board(watch::Sender<Told>);

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(Told {
            number: 0,
            said: false,
            activity: Activity::Busy,
            reasons: Vec::new(),
            resumes: 0,
            ports: None,
        }))
    }
}

impl Board {
    /// What the host does, why it is in use, and how often it was suspended since boot. Never waits.
    pub fn activity(&self, activity: Activity, reasons: Vec<String>, resumes: u64) {
        self.0.send_modify(|told| {
            told.number += 1;
            told.said = true;
            (told.activity, told.reasons, told.resumes) = (activity, reasons, resumes);
        });
    }

    /// Its network ports; `None`: they cannot be read. Never waits.
    pub fn ports(&self, ports: Option<&[wol::Port]>) {
        let ports: Vec<_> = ports.unwrap_or_default().iter().filter_map(port).collect();
        self.0.send_if_modified(|told| {
            let is_news = told.ports.as_ref() != Some(&ports);
            if is_news {
                told.number += 1;
                told.ports = Some(ports);
            }
            is_news
        });
    }
}

/// `None` for one whose address no magic packet can carry.
fn port(port: &wol::Port) -> Option<Port> {
    Some(Port {
        interface: port.interface.clone(),
        mac: MacAddr::new(port.mac.0).ok()?,
        waking: if port.wakes() {
            Waking::Armed
        } else if port.would_wake_if_armed() {
            Waking::Disarmed
        } else {
            Waking::Unable
        },
    })
}

/// Contact with a wake server, for as long as it lives.
#[derive(Debug)]
pub struct Contact {
    task: AbortHandle,
    board: Board,
    standing: watch::Receiver<Standing>,
}

/// How the contact is.
#[derive(Clone, Debug, Default)]
struct Standing {
    /// Number of the newest report that was tried.
    tried: u64,
    /// Why there is none.
    failure: Option<String>,
}

impl Contact {
    /// Begins. `orders` gets the number of each order to sleep.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(server: Arc<Server>, board: &Board, orders: mpsc::Sender<u64>) -> Self {
        let (standing_to, standing) = watch::channel(Standing::default());
        let keeper = Keeper {
            waits: server.pace().waits(),
            pace: server.pace(),
            server,
            told: board.0.subscribe(),
            standing: standing_to,
            orders,
            after: None,
            last: None,
        };
        Self {
            task: tokio::spawn(keeper.run()).abort_handle(),
            board: board.clone(),
            standing,
        }
    }

    /// Waits until the server was told what is on the board now, or that was tried in vain; `within` at most.
    pub fn caught_up(&self, within: Duration) -> impl Future<Output = ()> + Send + use<> {
        let number = self.board.0.borrow().number;
        let mut standing = self.standing.clone();
        async move {
            // Whoever waits goes on in any case.
            let _tried = timeout(within, standing.wait_for(|standing| standing.tried >= number)).await;
        }
    }

    /// Why there is no contact, in words.
    pub fn failure(&self) -> Option<String> {
        self.standing.borrow().failure.clone()
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The last report that was tried.
#[derive(Clone, Copy, Debug)]
struct Last {
    number: u64,
    resumes: u64,
    at: BootTime,
}

struct Keeper {
    server: Arc<Server>,
    pace: Pace,
    told: watch::Receiver<Told>,
    standing: watch::Sender<Standing>,
    orders: mpsc::Sender<u64>,
    waits: ExponentialBackoff,
    /// Number of the newest order that is done with; `None`: the next answer says which that is.
    after: Option<u64>,
    last: Option<Last>,
}

impl Keeper {
    async fn run(mut self) {
        // Without a driver there is nothing to report.
        let Ok(()) = self.told.wait_for(|told| told.said).await.map(drop) else {
            return;
        };
        // A report without ports is better than none.
        drop(timeout(PORTS_DEADLINE, self.told.wait_for(|told| told.ports.is_some())).await);
        loop {
            if let Err(failure) = self.in_contact().await {
                self.lost(&failure);
                let wait = self.next_wait();
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.urgent() => {}
                }
            }
        }
    }

    /// Until something goes wrong, or the host sleeps or has slept.
    async fn in_contact(&mut self) -> Result<(), Failure> {
        let told = self.told.borrow_and_update().clone();
        self.report(&told).await?;
        if told.activity == Activity::Sleeping {
            self.another().await;
            return Ok(());
        }
        self.attend().await
    }

    /// Asks for orders, again and again, and reports meanwhile what is told.
    async fn attend(&mut self) -> Result<(), Failure> {
        let mut pause = Duration::ZERO;
        loop {
            let (server, after) = (Arc::clone(&self.server), self.after.unwrap_or_default());
            let mut question = pin!(async move {
                sleep(pause).await;
                let asked = BootTime::now();
                let answer = server.orders(after).await;
                (answer, BootTime::now().since(asked))
            });
            let (answer, held) = loop {
                tokio::select! {
                    answered = &mut question => break answered,
                    told = self.news() => {
                        if self.is_urgent(&told) {
                            return Ok(());
                        }
                        self.report(&told).await?;
                    }
                }
            };
            let orders = answer?;
            self.obey(&orders).await;
            self.after = self.after.max(Some(orders.newest));
            pause = if held >= self.pace.shortest_hold {
                self.waits = self.pace.waits();
                Duration::ZERO
            } else {
                self.next_wait()
            };
        }
    }

    async fn report(&mut self, told: &Told) -> Result<(), Failure> {
        if self.last.is_some_and(|last| last.resumes != told.resumes) {
            self.after = None;
            // A network that has just come up needs a moment, not a minute.
            self.waits = self.pace.waits();
        }
        let answer = self.server.report(told).await;
        self.last = Some(Last {
            number: told.number,
            resumes: told.resumes,
            at: BootTime::now(),
        });
        let regained = answer.is_ok() && self.standing.borrow().failure.is_some();
        if regained {
            tracing::info!(server = self.server.host(), "the wake server answers again");
        }
        self.standing.send_modify(|standing| {
            standing.tried = told.number;
            if answer.is_ok() {
                standing.failure = None;
            }
        });
        let orders = answer?;
        self.obey(&orders).await;
        Ok(())
    }

    /// Passes the newest order on, unless it is done with.
    async fn obey(&mut self, orders: &Orders) {
        let Some(after) = self.after.filter(|after| *after <= orders.newest) else {
            // At first, or after a restart of the server, which counts anew.
            self.after = Some(orders.newest);
            return;
        };
        let numbers = orders.orders.iter().map(|order| match order {
            Order::Sleep { number } => *number,
        });
        if let Some(number) = numbers.filter(|number| *number > after).max() {
            self.after = Some(number);
            // Without a driver nobody sleeps.
            let _passed = self.orders.send(number).await;
        }
    }

    fn next_wait(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.pace.retry_longest)
    }

    fn lost(&self, failure: &Failure) {
        let why = self.server.in_words(failure);
        let is_news = self.standing.borrow().failure.as_ref() != Some(&why);
        if is_news {
            tracing::warn!("{why}");
            self.standing.send_modify(|standing| standing.failure = Some(why));
        }
    }

    /// What is told and is due to be reported. Cancel-safe: it follows from what was reported last.
    async fn news(&mut self) -> Told {
        loop {
            let told = self.told.borrow_and_update().clone();
            match self.wait_before(&told) {
                Some(Duration::ZERO) => return told,
                Some(wait) => tokio::select! {
                    () = sleep(wait) => {}
                    () = self.another() => {}
                },
                None => self.another().await,
            }
        }
    }

    /// Ready when something is told that cannot wait. Cancel-safe.
    async fn urgent(&mut self) {
        loop {
            let told = self.told.borrow_and_update().clone();
            if self.is_urgent(&told) {
                return;
            }
            self.another().await;
        }
    }

    /// How long it is to wait; `None`: it is reported already.
    fn wait_before(&self, told: &Told) -> Option<Duration> {
        match self.last {
            Some(last) if last.number == told.number => None,
            Some(last) if !self.is_urgent(told) => {
                Some(self.pace.spacing.saturating_sub(BootTime::now().since(last.at)))
            }
            Some(_) | None => Some(Duration::ZERO),
        }
    }

    /// The host is about to sleep, or has slept, and that was not tried to be told.
    fn is_urgent(&self, told: &Told) -> bool {
        self.last.is_none_or(|last| {
            last.resumes != told.resumes || (told.activity == Activity::Sleeping && last.number != told.number)
        })
    }

    /// Ready when something else is told; never without a driver. Cancel-safe.
    async fn another(&mut self) {
        if self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_cannot_wait_does_not() {
        let server = Arc::new(Server::new(
            crate::config::WakeServer {
                url: "http://127.0.0.1:1".into(),
                token_file: None,
                ca_file: None,
            },
            "worker-01".parse().unwrap(),
            Pace::default(),
        ));
        let board = Board::default();
        let mut keeper = Keeper {
            pace: server.pace(),
            waits: server.pace().waits(),
            server,
            told: board.0.subscribe(),
            standing: watch::Sender::default(),
            orders: mpsc::channel(1).0,
            after: None,
            last: None,
        };
        let wait = |keeper: &Keeper| keeper.wait_before(&board.0.borrow());
        assert_eq!(wait(&keeper), Some(Duration::ZERO), "the first");
        let last = Last {
            number: 1,
            resumes: 0,
            at: BootTime::now(),
        };
        board.activity(Activity::Busy, Vec::new(), 0);
        keeper.last = Some(last);
        assert_eq!(wait(&keeper), None, "what is told already");
        board.activity(Activity::Quiet { idle_s: 0 }, Vec::new(), 0);
        assert!(wait(&keeper) > Some(Duration::from_secs(1)), "an ordinary one");
        board.activity(Activity::Sleeping, Vec::new(), 0);
        assert_eq!(wait(&keeper), Some(Duration::ZERO), "before a sleep");
        board.activity(Activity::Busy, Vec::new(), 1);
        assert_eq!(wait(&keeper), Some(Duration::ZERO), "after a sleep");
    }
}
