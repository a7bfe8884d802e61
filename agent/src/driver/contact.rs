//! The driver's part in the contact with the wake server: says what the host does when that changes, and takes orders to sleep. Never
//! waits for it; the contact has a task of its own ([`crate::coordinator`]).

use std::{
    mem::{Discriminant, discriminant},
    path::Path,
    time::Duration,
};

use vmstation_protocol::Activity;

use super::{BootTime, Driver, Order, Reason, State};
use crate::{
    control::Response,
    coordinator::{Board, Contact, Coordinator, Pace},
    suspend::power::Power,
};

/// Longest wait for the report that the host sleeps. Leave was given: the sleep does not depend on it.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);

/// The wake server, as the driver holds it.
#[derive(Default)]
pub(super) struct WakeServer {
    /// Outlives each contact.
    board: Board,
    contact: Option<Contact>,
    /// What was said last.
    said: Option<Said>,
    /// Suspends of this boot.
    resumes: u64,
}

/// What is worth a report when it changes.
#[derive(PartialEq, Eq)]
struct Said {
    activity: Discriminant<Activity>,
    reasons: Vec<Discriminant<Reason>>,
    resumes: u64,
}

impl WakeServer {
    /// The host was suspended: one more than were known, and no fewer than the kernel counts. The kernel's count survives the agent; it is
    /// raised only after processes run again, so that it alone could be read too early.
    pub(super) fn count_resume(&mut self) {
        self.resumes = suspends().max(self.resumes + 1);
    }

    /// Where to say what the host does, if anybody wants to know.
    pub(super) fn board(&self) -> Option<Board> {
        self.contact.is_some().then(|| self.board.clone())
    }
}

/// As the kernel counts those of this boot; 0 where it does not.
fn suspends() -> u64 {
    let stats = Power::new(Path::new("/sys").into()).stats();
    stats.map_or(0, |stats| stats.success)
}

impl Driver {
    /// Gets into contact, where a wake server is configured.
    pub(super) fn meet_wake_server(&mut self) {
        self.wake_server.contact = match &self.parts.coordinator {
            Coordinator::Nobody | Coordinator::Nameless(_) => None,
            Coordinator::Server(server) => {
                self.wake_server.resumes = suspends().max(self.wake_server.resumes);
                let (board, orders) = (&self.wake_server.board, self.sources.orders_to());
                Some(Contact::start(server.clone(), board, orders))
            }
        };
        if let Some(why) = self.parts.coordinator.complaint() {
            tracing::error!("{why}");
        }
    }

    /// After the configuration was read again; so were the token and the certificates.
    pub(super) fn meet_wake_server_anew(&mut self) {
        let configured = self.parts.policy.wake_server.as_ref();
        self.parts.coordinator = Coordinator::new(configured, &self.parts.node, Pace::default());
        self.meet_wake_server();
        self.arm_cards();
    }

    /// Says what the host does, if that is something else than before.
    pub(super) fn tell_wake_server(&mut self, now: BootTime) {
        if self.wake_server.contact.is_none() {
            return;
        }
        let activity = self.activity(now);
        // The report of a sleep is the last.
        let told: &[Reason] = if activity == Activity::Sleeping {
            &[]
        } else {
            &self.reasons
        };
        let mut reasons: Vec<Discriminant<Reason>> = Vec::new();
        for reason in told.iter().map(discriminant) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        let said = Said {
            activity: discriminant(&activity),
            reasons,
            resumes: self.wake_server.resumes,
        };
        if self.wake_server.said.as_ref() == Some(&said) {
            return;
        }
        let reasons = told.iter().map(ToString::to_string).collect();
        self.wake_server.board.activity(activity, reasons, said.resumes);
        self.wake_server.said = Some(said);
    }

    fn activity(&self, now: BootTime) -> Activity {
        match self.idle.state() {
            State::Active => Activity::Busy,
            State::Quiet => Activity::Quiet {
                idle_s: now.since(self.idle.memory().last_activity).as_secs(),
            },
            State::Grace { ends, .. } => Activity::GoingToSleep {
                in_s: ends.since(now).as_secs(),
            },
            // In a dry run it would not be true.
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => match &self.attempt {
                Some(running) if running.noticed && !self.parts.dry_run => Activity::Sleeping,
                Some(_) | None => Activity::GoingToSleep { in_s: 0 },
            },
        }
    }

    /// Whether a leave is asked for over the network.
    pub(super) fn talks_to_wake_server(&self) -> bool {
        self.wake_server.contact.is_some() && !self.parts.dry_run
    }

    /// Ready when the server knows what was said last, or cannot be told.
    pub(super) fn report_under_way(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let contact = self.wake_server.contact.as_ref()?;
        Some(contact.caught_up(REPORT_DEADLINE))
    }

    /// What is wrong with the contact, in words.
    pub(super) fn wake_server_warning(&self) -> Option<String> {
        let contact = self.wake_server.contact.as_ref();
        let failure = contact.and_then(Contact::failure);
        failure.or_else(|| self.parts.coordinator.complaint())
    }

    /// The wake server orders a sleep, as an operator would on this host.
    pub(super) fn ordered(&mut self, number: u64, now: BootTime) {
        tracing::info!(number, "the wake server orders a sleep");
        if let Response::Refused { message, .. } = self.sleep_now(Order::Operator, true, Vec::new(), now) {
            tracing::warn!(number, why = message, "the order of the wake server is refused");
        }
    }
}
