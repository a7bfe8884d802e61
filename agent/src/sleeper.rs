//! Carries a sleep attempt out: one task an attempt, which does what [`Attempt`] commands, writes each step to the journal before it is
//! begun, and reports to the driver. Owns the journal while it runs. Decides nothing: [`crate::idle`] says when, [`Attempt`] what next.
//!
//! ```text
//! driver ── Orders (call off) ──>  run  ── Outside::perform, undo ──> hooks, logind, cards, clock
//!        <── Progress (began, confirm?, ended) ──
//! ```

mod host;

use std::{
    fmt::Write as _,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

pub use self::host::{Host, HostParts, Places};
use crate::{
    attempt::{Attempt, Command, Ending, Plan, Step, Went},
    clock::BootTime,
    journal::{Journal, Record},
    suspend::{SUSPENDED, suspended_so_far, veto::Veto},
};

/// Why an attempt is called off of which SSH connections ended the suspend.
pub const SSH_MOVED: &str = "somebody connects by SSH";

/// What an attempt touches outside the agent.
pub trait Outside: Send {
    /// Does a step; [`Step::Notice`] and [`Step::Confirm`] are for the driver. What must be known to undo it goes into `record` before anything is done.
    fn perform(&mut self, step: Step, journal: &Journal, record: &mut Record) -> impl Future<Output = Went> + Send;

    /// Undoes a step, as far as it was done.
    fn undo(&mut self, step: Step, record: &Record, ending: &str) -> impl Future<Output = ()> + Send;

    /// Waits until nothing of an attempt is under way any more whose process died: a suspend that logind took may still come.
    fn settle(&mut self, _record: &Record) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Stops a suspend that is under way, if the kernel still can; there from [`Step::Handshake`] on.
    fn veto(&self) -> Option<Arc<Veto>>;

    /// What woke the host, once it slept.
    fn wake_source(&mut self) -> Option<String>;
}

/// What the driver hears of an attempt.
#[derive(Debug)]
pub enum Progress {
    /// A step was begun.
    Began(Step),
    /// Tell everybody that the host sleeps, and answer when that is done.
    Notice(oneshot::Sender<()>),
    /// Everything is prepared: read the counters again, and answer if the host may sleep.
    Confirm(oneshot::Sender<()>),
    /// The attempt is over, and nothing is left of it.
    Ended(Box<Report>),
}

/// How an attempt went.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Every step that was taken, with its time.
    pub steps: Vec<(Step, Duration)>,
    /// From the beginning of the last reading of the counters to the order to suspend; `None`: it did not come to that.
    pub window: Option<Duration>,
    /// What woke the host, if it slept and the system tells.
    pub wake_source: Option<String>,
}

impl Report {
    /// Time between the decision to sleep and the order to suspend that the agent itself took; see [`Step::is_own_time`].
    pub fn own_time(&self) -> Duration {
        let own = self.steps.iter().filter(|(step, _)| step.is_own_time());
        own.map(|(_, time)| *time).sum()
    }

    /// Steps and their times, for the log.
    pub fn times(&self) -> String {
        let mut text = String::new();
        for (step, time) in &self.steps {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _written = write!(text, "{separator}{step} {:.1} ms", time.as_secs_f64() * 1000.0);
        }
        text
    }
}

/// An attempt under way, as the driver holds it.
#[derive(Clone, Debug)]
pub struct Handle {
    call_off: watch::Sender<Option<String>>,
    veto: VetoSlot,
}

/// Where the attempt puts its veto once the suspend is ordered.
type VetoSlot = Arc<OnceLock<Arc<Veto>>>;

/// What the attempt hears of its handle.
struct Orders {
    call_off: watch::Receiver<Option<String>>,
    veto: VetoSlot,
}

impl Handle {
    fn new() -> (Self, Orders) {
        let (call_off, heard) = watch::channel(None);
        let veto = VetoSlot::default();
        let orders = Orders {
            call_off: heard,
            veto: Arc::clone(&veto),
        };
        (Self { call_off, veto }, orders)
    }

    /// Ends the attempt as soon as possible; the first reason counts. [`Progress::Ended`] comes when everything is undone.
    pub fn call_off(&self, why: String) {
        self.call_off.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(why);
            first
        });
        // Not left to the attempt's task: what the driver does next takes time.
        if let Some(veto) = self.veto.get()
            && let Err(error) = veto.raise()
        {
            tracing::warn!(%error, "the suspend may come nevertheless");
        }
    }
}

/// Starts an attempt.
pub fn start<O: Outside + 'static>(
    outside: O,
    journal: Journal,
    plan: Plan,
    boot_id: String,
    progress: mpsc::Sender<Progress>,
) -> Handle {
    let (handle, orders) = Handle::new();
    let (attempt, first) = Attempt::begin(plan);
    let record = Record {
        boot_id,
        suspended_before: suspended_so_far(),
        plan,
        step: Step::Objections,
        begun: Vec::new(),
        alarm: None,
        leave: None,
    };
    tokio::spawn(Sleeper::new(outside, journal, record, orders, progress).run(attempt, first));
    handle
}

/// Undoes what a process left that died in an attempt.
pub fn recover<O: Outside + 'static>(
    outside: O,
    journal: Journal,
    mut record: Record,
    boot_id: &str,
    progress: mpsc::Sender<Progress>,
) -> Handle {
    let (handle, orders) = Handle::new();
    if record.boot_id != boot_id {
        // The boot has undone the rest.
        record.begun.retain(|step| matches!(step, Step::Leave | Step::Alarm));
    }
    let (attempt, first) = Attempt::interrupted(record.plan, &record.begun);
    let mut sleeper = Sleeper::new(outside, journal, record, orders, progress);
    tokio::spawn(async move {
        sleeper.outside.settle(&sleeper.record).await;
        sleeper.run(attempt, first).await;
    });
    handle
}

struct Sleeper<O> {
    outside: O,
    journal: Journal,
    record: Record,
    orders: watch::Receiver<Option<String>>,
    veto: VetoSlot,
    progress: mpsc::Sender<Progress>,
    steps: Vec<(Step, Duration)>,
    confirmed: Option<BootTime>,
    window: Option<Duration>,
    wake_source: Option<String>,
}

impl<O: Outside> Sleeper<O> {
    fn new(outside: O, journal: Journal, record: Record, orders: Orders, progress: mpsc::Sender<Progress>) -> Self {
        Self {
            outside,
            journal,
            record,
            orders: orders.call_off,
            veto: orders.veto,
            progress,
            steps: Vec::new(),
            confirmed: None,
            window: None,
            wake_source: None,
        }
    }

    async fn run(mut self, mut attempt: Attempt, mut command: Command) {
        loop {
            command = match command {
                Command::Do(step) => {
                    let went = self.take(step, &mut attempt).await;
                    let why = self.orders.borrow().clone();
                    if let Some(why) = why {
                        attempt.call_off(why);
                    }
                    attempt.went(went)
                }
                Command::Undo(step) => {
                    self.outside.undo(step, &self.record, attempt.outcome()).await;
                    self.record.begun.retain(|begun| *begun != step);
                    self.keep_record();
                    attempt.undone()
                }
                Command::End(ending) => return self.end(ending).await,
            };
        }
    }

    /// Takes a step, unless the attempt was called off before. A call that comes in the middle is heard at once where that can take long,
    /// and before the next step elsewhere.
    async fn take(&mut self, step: Step, attempt: &mut Attempt) -> Went {
        let began = BootTime::now();
        let why = self.orders.borrow().clone();
        if let Some(why) = why {
            attempt.call_off(why);
            return Went::NotBegun;
        }
        if step.is_undone() {
            self.record.begun.push(step);
        }
        self.record.step = step;
        if let Err(error) = self.journal.write(&self.record) {
            return Went::Refused(format!("the journal of the attempt cannot be written: {error}"));
        }
        // The driver ends only after the attempt.
        let _told = self.progress.send(Progress::Began(step)).await;
        let went = match step {
            Step::Suspend => self.suspend(attempt).await,
            Step::Confirm => {
                self.confirmed = Some(began);
                let (go, answer) = oneshot::channel();
                let _asked = self.progress.send(Progress::Confirm(go)).await;
                let answer = async {
                    match answer.await {
                        Ok(()) => Went::Well,
                        Err(_) => Went::Refused("the counters were not read again".into()),
                    }
                };
                unless_called_off(&mut self.orders, attempt, answer).await
            }
            Step::Notice => {
                let (done, told) = oneshot::channel();
                let _asked = self.progress.send(Progress::Notice(done)).await;
                let told = async {
                    // A notice that nobody could be told stops nothing.
                    let _told = told.await;
                    Went::Well
                };
                unless_called_off(&mut self.orders, attempt, told).await
            }
            Step::Leave | Step::Hooks | Step::Sync => {
                let performed = self.outside.perform(step, &self.journal, &mut self.record);
                unless_called_off(&mut self.orders, attempt, performed).await
            }
            // These take milliseconds, and half of one could not be undone.
            Step::Objections | Step::LastObjections | Step::WakeOnLan | Step::Alarm | Step::WakeupCount => {
                self.outside.perform(step, &self.journal, &mut self.record).await
            }
            Step::Handshake => {
                let went = self.outside.perform(step, &self.journal, &mut self.record).await;
                let veto = self.outside.veto();
                if went != Went::Well && veto.is_some_and(|veto| veto.is_raised().unwrap_or(false)) {
                    attempt.call_off(SSH_MOVED.into());
                }
                went
            }
        };
        self.steps.push((step, BootTime::now().since(began)));
        went
    }

    /// From here on only the kernel can stop it: a wakeup event of ours ends the suspend it is about to make.
    async fn suspend(&mut self, attempt: &mut Attempt) -> Went {
        let why = self.orders.borrow().clone();
        if let Some(why) = why {
            attempt.call_off(why);
            return Went::Interrupted;
        }
        if suspended_so_far().saturating_sub(self.record.suspended_before) >= SUSPENDED {
            return Went::Refused("somebody else suspended the host meanwhile".into());
        }
        self.window = self.confirmed.map(|since| BootTime::now().since(since));
        let veto = self.outside.veto();
        if let Some(veto) = &veto {
            // An attempt suspends once.
            let _first = self.veto.set(Arc::clone(veto));
        }
        let mut suspended = Box::pin(self.outside.perform(Step::Suspend, &self.journal, &mut self.record));
        let went = tokio::select! {
            biased;
            went = &mut suspended => went,
            why = called_off(&mut self.orders) => {
                tracing::info!(why, "the suspend is called off");
                attempt.call_off(why);
                suspended.as_mut().await
            }
        };
        drop(suspended);
        match veto.map(|veto| veto.lower()) {
            // What ended the suspend by itself: the driver has yet to hear of it.
            Some(Ok(true)) => attempt.call_off(SSH_MOVED.into()),
            None | Some(Ok(false)) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "the veto against a suspend cannot be taken back before the agent ends");
            }
        }
        if let Went::Slept(_) = went {
            self.wake_source = self.outside.wake_source();
        }
        went
    }

    fn keep_record(&self) {
        if let Err(error) = self.journal.write(&self.record) {
            tracing::warn!(%error, "the journal of the attempt cannot be written");
        }
    }

    async fn end(self, ending: Ending) {
        if let Err(error) = self.journal.clear() {
            tracing::warn!(%error, "the journal of the attempt cannot be removed");
        }
        let report = Report {
            ending,
            steps: self.steps,
            window: self.window,
            wake_source: self.wake_source,
        };
        // Without a driver nobody waits for it.
        let _told = self.progress.send(Progress::Ended(Box::new(report))).await;
    }
}

/// Waits for a step; drops it if the attempt is called off meanwhile.
async fn unless_called_off(
    orders: &mut watch::Receiver<Option<String>>,
    attempt: &mut Attempt,
    step: impl Future<Output = Went>,
) -> Went {
    tokio::select! {
        biased;
        why = called_off(orders) => {
            attempt.call_off(why);
            Went::Interrupted
        }
        went = step => went,
    }
}

/// Ready when the attempt is called off; never if nobody can do so any more.
async fn called_off(orders: &mut watch::Receiver<Option<String>>) -> String {
    let why = orders.wait_for(Option::is_some).await.map(|why| why.clone());
    match why {
        Ok(why) => why.unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_is_all_but_that_of_others_and_of_sleep() {
        // Each step another power of ten: every one that is counted shows.
        let mut time = Duration::from_nanos(1);
        let steps = Step::ALL.map(|step| {
            let took = time;
            time *= 10;
            (step, took)
        });
        let report = Report {
            ending: Ending::Slept(Duration::from_secs(1)),
            steps: steps.into(),
            window: None,
            wake_source: None,
        };
        // The digits are the steps, the last one first, less suspending: sync, hooks, notice and leave are the time of others.
        assert_eq!(report.own_time(), Duration::from_nanos(11_111_100_001));
    }

    #[test]
    fn the_times_are_told_with_their_steps() {
        let report = Report {
            ending: Ending::Interrupted,
            steps: vec![
                (Step::Hooks, Duration::from_micros(1_250)),
                (Step::Sync, Duration::from_secs(2)),
            ],
            window: None,
            wake_source: None,
        };
        assert_eq!(
            report.times(),
            "running the pre-sleep hooks 1.2 ms, writing data to the disks 2000.0 ms"
        );
    }
}
