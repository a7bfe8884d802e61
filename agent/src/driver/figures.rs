//! The driver's figures: what sleeping saved, what woke the host's users, and the text of it all for Prometheus.

use std::{path::Path, time::Duration};

use tokio::task::JoinHandle;

use super::{Action, BootTime, Cancelled, Driver, State};
use crate::{
    config::{Metrics, Policy},
    energy::{
        Outcome, Power, Unknown,
        rapl::{Average, Rapl},
    },
    metrics::{self, Notices, Trigger, Triggers, server},
    report::{AttemptOutcome, AttemptReport, LastAttempt},
};

/// The textfile is not written more often than this, but for the end of an attempt to sleep.
const TEXTFILE_EVERY: Duration = Duration::from_secs(60);

/// What is counted beside the account of sleeps.
pub(super) struct Figures {
    triggers: Triggers,
    rapl: Rapl,
    average: Average,
    textfile_due: BootTime,
    server: Option<JoinHandle<()>>,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self {
            triggers: Triggers::default(),
            rapl: Rapl::new(Path::new("/sys")),
            average: Average::default(),
            textfile_due: BootTime::default(),
            server: None,
        }
    }

    /// What the host draws, as far as that is known.
    pub(super) fn power(&self, policy: &Policy) -> Result<Power, Unknown> {
        Power::new(&policy.energy, self.average.watts())
    }
}

impl Driver {
    /// Serves the metrics where the configuration says, in place of where it said before.
    pub(super) fn serve_metrics(&mut self) {
        if let Some(server) = self.figures.server.take() {
            server.abort();
        }
        let Some(address) = self.parts.policy.metrics.listen else {
            return;
        };
        match server::listen(address) {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                self.figures.server = Some(tokio::spawn(server::serve(listener, self.sources.asker())));
            }
            Err(error) => {
                let warning = format!("metrics are not served: {error}");
                tracing::warn!("{warning}");
                self.parts.warnings.push(warning);
            }
        }
    }

    /// The text for Prometheus.
    pub(super) fn metrics(&self, now: BootTime) -> String {
        let stats = self.notifier.stats();
        let notices = Notices {
            sent: stats.sent,
            failed: stats.failed,
            suppressed: stats.suppressed,
            dropped: stats.dropped,
        };
        metrics::render(self.snapshot().status(now), &self.figures.triggers, notices)
    }

    /// Writes the textfile if one is wanted and it is due.
    pub(super) fn write_textfile(&mut self, now: BootTime) {
        let Metrics {
            textfile: Some(path), ..
        } = self.parts.policy.metrics.clone()
        else {
            return;
        };
        if now < self.figures.textfile_due {
            return;
        }
        self.figures.textfile_due = now.after(TEXTFILE_EVERY);
        if let Err(error) = metrics::write_textfile(&path, &self.metrics(now)) {
            tracing::warn!(path = %path.display(), %error, "the metrics cannot be written");
        }
    }

    /// Reads the processor's own meter in the quiet time, if nothing better is configured.
    pub(super) fn measure_power(&mut self, now: BootTime) {
        if self.parts.policy.energy.watts_awake.is_some() {
            return;
        }
        match self.idle.state() {
            State::Quiet | State::Grace { .. } => {
                // A host without a meter has nothing to add.
                if let Ok(reading) = self.figures.rapl.read(now) {
                    self.figures.average.add(reading);
                }
            }
            State::Active => self.figures.average.reset(),
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => {}
        }
    }

    /// Counts what ended a quiet time.
    pub(super) fn count_triggers(&mut self, before: State, actions: &[Action]) {
        let ended = match (before, self.idle.state()) {
            (State::Quiet | State::Grace { .. } | State::Preparing(_) | State::Confirming(_), State::Active) => {
                !actions.contains(&Action::Cancel(Cancelled::Overtaken))
            }
            _ => false,
        };
        if ended {
            self.figures.triggers.note(self.reasons.iter().map(Trigger::of));
        }
    }

    /// Takes note of how an attempt ended.
    pub(super) fn account_for(&mut self, document: AttemptReport) {
        let asleep = Duration::try_from_secs_f64(document.asleep_s.unwrap_or_default()).unwrap_or_default();
        let outcome = match document.outcome {
            Some(AttemptOutcome::Slept) if self.parts.dry_run => None,
            Some(AttemptOutcome::Slept) => Some(Outcome::Slept { asleep }),
            Some(AttemptOutcome::Refused) => Some(Outcome::Refused),
            Some(AttemptOutcome::Failed) => Some(Outcome::Failed),
            Some(AttemptOutcome::Aborted) => Some(Outcome::Aborted),
            Some(AttemptOutcome::External) => Some(Outcome::External),
            Some(AttemptOutcome::Interrupted) if !asleep.is_zero() => Some(Outcome::Slept { asleep }),
            Some(AttemptOutcome::Interrupted) => Some(Outcome::Aborted),
            None => None,
        };
        if let Some(outcome) = outcome {
            let power = self.figures.power(&self.parts.policy).ok();
            self.account.note(outcome, power.as_ref());
        }
        self.last_attempt = Some(document);
        self.figures.textfile_due = BootTime::default();
    }

    /// The last attempt, as `status` tells it at `now`.
    pub(super) fn last(&self, now: BootTime) -> Option<LastAttempt> {
        let document = self.last_attempt.clone()?.at(now);
        Some(LastAttempt {
            outcome: document.outcome?,
            reason: document.reason.unwrap_or_default(),
            wake_source: document.wake_source,
            asleep_s: document.asleep_s,
            added_ms: document.added_ms,
            ago_s: document.ago_s.unwrap_or_default(),
        })
    }
}
