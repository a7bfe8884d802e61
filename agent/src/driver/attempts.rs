//! The driver's part in an attempt to sleep: begins it, answers its questions, calls it off, and takes note of how it ended. The attempt
//! itself runs in a task of its own ([`crate::sleeper`]).

use std::{fs, os::fd::OwnedFd, path::Path, time::Duration};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::{BootTime, Driver, GaveUp, IdleEvent, Notice, NoticeEvent, Order, Reason, State, stands_against};
use crate::{
    attempt::{Ending, Plan, Step},
    config::NotificationMethod,
    counters::NetReading,
    idle::SHORT_SLEEP,
    keeper, power_log,
    report::{AttemptOutcome, AttemptReport},
    sleeper::{self, Handle, Host, HostParts, Places, Progress, Report},
    suspend::SUSPENDED,
    wol,
};

/// Longest wait for a notice that everybody else is ready for.
const NOTICE_DEADLINE: Duration = Duration::from_secs(6);

/// The attempt that is under way.
pub(super) struct Running {
    handle: Handle,
    order: Order,
    /// Whether SSH connections end a suspend by themselves ([`HostParts::login`]).
    guarded: bool,
    /// Processes of the operator who ordered it.
    own: Vec<u32>,
    /// Whether load on the CPUs may be that of our hooks, or of what suspends the host.
    load_is_ours: bool,
    /// Whether it was told that the host sleeps.
    pub(super) noticed: bool,
    /// Waits for the last reading of the counters.
    go: Option<oneshot::Sender<()>>,
    /// Before that reading this question for the pods has to be answered.
    listing: Option<u64>,
    report: AttemptReport,
}

/// What an operator wants of the attempt he ordered.
pub(super) struct Pending {
    /// Whether hooks run.
    pub(super) hooks: bool,
    /// His processes.
    pub(super) own: Vec<u32>,
}

/// Our own traffic that is on its way.
pub(super) struct OwnTraffic {
    /// Traffic before it.
    before: NetReading,
    /// Who waits for its end.
    waits: Option<oneshot::Sender<()>>,
}

impl Running {
    /// Whether one of the reasons stands against this attempt.
    pub(super) fn is_objected(&self, reasons: &[Reason]) -> bool {
        reasons
            .iter()
            .any(|reason| stands_against(reason, self.order, &self.own, self.load_is_ours))
    }

    pub(super) const fn report(&self) -> &AttemptReport {
        &self.report
    }
}

/// Why the host is to sleep.
const fn why(order: Option<Order>) -> &'static str {
    match order {
        Some(Order::Operator | Order::Forced) => "an operator ordered it",
        Some(Order::Idle) | None => "nobody uses the host",
    }
}

impl Driver {
    /// Who ordered the attempt that is under way; `None` also while one is only being undone.
    pub(super) fn order(&self) -> Option<Order> {
        self.going_to_sleep().map(|running| running.order)
    }

    /// The attempt that is under way, unless it is only being undone.
    pub(super) fn going_to_sleep(&self) -> Option<&Running> {
        match self.idle.state() {
            State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => self.attempt.as_ref(),
            State::Active | State::Quiet | State::Grace { .. } => None,
        }
    }

    pub(super) fn begin_attempt(&mut self, order: Order, now: BootTime) {
        let pending = self.pending.take().unwrap_or(Pending {
            hooks: true,
            own: Vec::new(),
        });
        if self.attempt.is_some() {
            tracing::warn!("an earlier attempt to sleep is still being undone");
            let actions = self.idle_event(IdleEvent::Refused, now);
            return self.act(&actions, now);
        }
        let plan = Plan {
            hooks: pending.hooks,
            alarm: self.parts.policy.sleep.wake_after.is_some(),
        };
        let journal = self.parts.journal.clone();
        // With force, an operator said that he knows who is there.
        let login = match order {
            Order::Idle | Order::Operator => self.sensors.login_fd(now),
            Order::Forced => None,
        };
        let login = login.and_then(|fd| fd.try_clone_to_owned().ok());
        let guarded = login.is_some();
        let handle = sleeper::start(
            self.host(login, why(Some(order))),
            journal,
            plan,
            keeper::boot_id(),
            self.sources.progress(),
        );
        self.attempts += 1;
        tracing::info!(?order, "preparing to sleep");
        self.attempt = Some(Running {
            handle,
            order,
            guarded,
            own: pending.own,
            load_is_ours: false,
            noticed: false,
            go: None,
            listing: None,
            report: AttemptReport::begun(self.attempts, order),
        });
    }

    /// Undoes what an earlier process left that died in an attempt.
    pub(super) fn recover(&mut self, now: BootTime) {
        if self.parts.dry_run {
            return;
        }
        let record = match self.parts.journal.load() {
            Ok(None) => return,
            Ok(Some(record)) => record,
            Err(error) => {
                let complaint = format!("a sleep was interrupted, and what is left of it is not known: {error}");
                tracing::error!(error = &error as &dyn std::error::Error, "{complaint}");
                self.parts.warnings.push(complaint);
                return;
            }
        };
        tracing::warn!(step = %record.step, "an earlier agent died in an attempt to sleep; undoing what is left of it");
        let slept = self.slept.saturating_sub(record.suspended_before);
        let same_boot = record.boot_id == keeper::boot_id();
        let journal = self.parts.journal.clone();
        let handle = sleeper::recover(
            self.host(None, why(None)),
            journal,
            record,
            &keeper::boot_id(),
            self.sources.progress(),
        );
        let has_slept = same_boot && slept >= SUSPENDED;
        self.attempts += 1;
        self.attempt = Some(Running {
            handle,
            order: Order::Idle,
            guarded: false,
            own: Vec::new(),
            load_is_ours: true,
            noticed: false,
            go: None,
            listing: None,
            report: AttemptReport {
                asleep_s: has_slept.then_some(slept.as_secs_f64()),
                ..AttemptReport::begun(self.attempts, Order::Idle)
            },
        });
        if has_slept {
            let actions = self.idle_event(IdleEvent::Resumed { slept }, now);
            self.act(&actions, now);
        }
    }

    /// `login`, `reason`: see [`HostParts`].
    pub(super) fn host(&self, login: Option<OwnedFd>, reason: &'static str) -> Host {
        Host::new(HostParts {
            sleep: self.parts.policy.sleep.clone(),
            interfaces: self.parts.policy.detection.interfaces.clone(),
            dry_run: self.parts.dry_run,
            coordinator: self.parts.coordinator.clone(),
            reason,
            node: self.parts.node.clone(),
            login,
            places: Places::default(),
        })
    }

    pub(super) fn call_off(&mut self, why: &str) {
        if let Some(running) = &mut self.attempt {
            running.go = None;
            running.handle.call_off(why.to_owned());
        }
    }

    /// SSH connections have moved. If that has ended the suspend already, the attempt is called off, and has not failed.
    pub(super) fn give_way_to_ssh(&mut self) {
        let guarded = self.attempt.as_ref().is_some_and(|running| running.guarded);
        if guarded && matches!(self.idle.state(), State::Suspending { .. }) {
            self.call_off(sleeper::SSH_MOVED);
        }
    }

    /// Somebody who is logging in would be in by the time the host sleeps. An attempt waits for no answer: it is called off.
    pub(super) fn give_way_to_login(&mut self, now: BootTime) {
        if matches!(self.order(), Some(Order::Idle | Order::Operator)) && self.sensors.login_begins(now) {
            self.call_off("somebody connects by SSH");
        }
    }

    /// The last reading was quiet.
    pub(super) fn go(&mut self, now: BootTime) {
        self.give_way_to_login(now);
        let go = self.attempt.as_mut().and_then(|running| running.go.take());
        if let Some(go) = go {
            // An attempt that is over meanwhile reports that.
            let _told = go.send(());
        }
    }

    pub(super) fn attempt_progress(&mut self, progress: Progress, now: BootTime) {
        match progress {
            Progress::Began(step) => {
                if step == Step::Leave && self.talks_to_wake_server() {
                    self.begin_own_traffic();
                }
                let hooks = self.parts.policy.sleep.hooks_folder.join("pre-sleep.d");
                if let Some(running) = &mut self.attempt {
                    running.report.step = Some(step.to_string());
                    running.load_is_ours |= match step {
                        Step::Hooks => fs::read_dir(hooks).is_ok_and(|mut hooks| hooks.next().is_some()),
                        Step::Suspend => true,
                        Step::Objections
                        | Step::Leave
                        | Step::Notice
                        | Step::Sync
                        | Step::LastObjections
                        | Step::WakeOnLan
                        | Step::Alarm
                        | Step::WakeupCount
                        | Step::Confirm
                        | Step::Handshake => false,
                    };
                }
            }
            Progress::Notice(done) => {
                let why = why(self.order());
                if let Some(running) = &mut self.attempt {
                    running.noticed = true;
                }
                self.tell_wake_server(now);
                self.tell(NoticeEvent::Sleeping, why.into(), None);
                match &mut self.own_traffic {
                    Some(own) => own.waits = Some(done),
                    None => {
                        let _told = done.send(());
                    }
                }
            }
            Progress::Confirm(go) => {
                if let Some(running) = &mut self.attempt {
                    running.go = Some(go);
                }
                if self.own_traffic.is_some() {
                    self.delivered();
                }
                // A pod may have been bound since the last list (fault K7). With force, nobody asks what runs.
                let listing = match self.order() {
                    Some(Order::Idle | Order::Operator) => self.pods.ask(now),
                    Some(Order::Forced) | None => None,
                };
                if let Some(running) = &mut self.attempt {
                    running.listing = listing;
                }
                self.listed_for_attempt(now);
            }
            Progress::Ended(report) => self.attempt_ended(&report, now),
        }
    }

    /// Goes on with an attempt that waits for the list of the pods, if that is in.
    pub(super) fn listed_for_attempt(&mut self, now: BootTime) {
        let Some(running) = &mut self.attempt else { return };
        let is_in = running
            .listing
            .is_none_or(|question| self.pods.is_answered(question, now));
        if running.go.is_none() || !is_in {
            return;
        }
        running.listing = None;
        let actions = self.idle_event(IdleEvent::Prepared, now);
        self.act(&actions, now);
        if let Some(running) = &mut self.attempt {
            // Not told by now: the reading was not quiet.
            running.go = None;
        }
    }

    fn attempt_ended(&mut self, report: &Report, now: BootTime) {
        let Some(running) = self.attempt.take() else { return };
        // What a leave that was refused has sent.
        self.delivered();
        let document = running.report.ended(report, now);
        tracing::info!(ending = ?report.ending, times = report.times(), own_ms = report.own_time().as_millis(), "the attempt to sleep is over");
        let reason = document.reason.clone().unwrap_or_default();
        let event = match &report.ending {
            Ending::Slept(slept) => {
                self.suspends += 1;
                if self.parts.dry_run {
                    // No wake loop: it did not sleep at all.
                    self.resumed(SHORT_SLEEP, now);
                } else if matches!(self.idle.state(), State::Suspending { .. }) {
                    // At the edge of what counts as a suspend: the attempt saw it and the driver did not.
                    self.resumed(*slept, now);
                }
                let slept = humantime::format_duration(Duration::from_secs(slept.as_secs()));
                let by = document
                    .wake_source
                    .as_ref()
                    .map(|source| format!(", woken by {source}"));
                self.tell(
                    NoticeEvent::Awake,
                    format!("slept for {slept}{}", by.unwrap_or_default()),
                    None,
                );
                None
            }
            Ending::Refused(_) => {
                tracing::warn!(reason, "the sleep is refused");
                self.tell(NoticeEvent::SleepRefused, reason, None);
                Some(IdleEvent::Refused)
            }
            Ending::Failed(_) => {
                tracing::error!(reason, "the sleep failed");
                self.tell(NoticeEvent::SleepFailed, reason, None);
                Some(IdleEvent::SuspendFailed)
            }
            Ending::Aborted(_) => {
                if report.steps.iter().any(|(step, _)| *step == Step::Notice) {
                    self.tell(NoticeEvent::Awake, format!("the sleep was called off: {reason}"), None);
                }
                Some(IdleEvent::Aborted)
            }
            Ending::Interrupted => Some(IdleEvent::Aborted),
        };
        self.account_for(document);
        if let Some(event) = event {
            let actions = self.idle_event(event, now);
            self.act(&actions, now);
        }
        self.arm_cards();
        self.save(now);
        self.write_textfile(now);
    }

    /// Somebody else suspended the host (fault S16).
    pub(super) fn slept_by_others(&mut self, slept: Duration, now: BootTime) {
        tracing::info!(seconds = slept.as_secs(), "somebody else suspended the host");
        self.attempts += 1;
        let mut document = AttemptReport::begun(self.attempts, Order::Operator);
        document.outcome = Some(AttemptOutcome::External);
        document.asleep_s = Some(slept.as_secs_f64());
        document.ended = Some(now);
        self.account_for(document);
        self.save(now);
    }

    pub(super) fn warn_of_sleep(&mut self, left: Duration) {
        let minutes = humantime::format_duration(Duration::from_secs(left.as_secs()));
        self.tell(
            NoticeEvent::GoingToSleep,
            format!("nobody uses the host: it sleeps in {minutes} unless it is used before"),
            Some(left),
        );
    }

    pub(super) fn gave_up(&mut self, why: GaveUp) {
        let (event, why) = match why {
            GaveUp::Failures => (NoticeEvent::SleepFailed, "suspending failed too often in a row"),
            GaveUp::WakeLoop => (NoticeEvent::SleepRefused, "the host woke at once too often in a row"),
        };
        tracing::error!("{why}; sleeping is disabled until `vmstation-autosleep-ctl enable`");
        self.tell(
            event,
            format!("{why}; sleeping is disabled until `vmstation-autosleep-ctl enable`"),
            None,
        );
    }

    /// Tells those to be notified, but for a dry run: it would not be true. What that sends over the network is no activity: it is left out
    /// of the samples.
    pub(super) fn tell(&mut self, event: NoticeEvent, reason: String, sleeps_in: Option<Duration>) {
        if self.parts.dry_run {
            return tracing::info!(?event, reason, "dry run: this would be told");
        }
        let on_the_way = matches!(
            self.idle.state(),
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_)
        );
        let report = match event {
            NoticeEvent::Sleeping => self.report_under_way(),
            NoticeEvent::GoingToSleep
            | NoticeEvent::Awake
            | NoticeEvent::SleepRefused
            | NoticeEvent::SleepFailed
            | NoticeEvent::Test => None,
        };
        let is_log = super::notification_method(&self.parts.policy) == NotificationMethod::Log;
        if on_the_way && (!is_log || report.is_some()) {
            self.begin_own_traffic();
        }
        let sleeps_at = sleeps_in.and_then(|left| power_log::wall_clock().checked_add(left).ok());
        self.notifier.tell(Notice {
            event,
            reason,
            sleeps_at,
        });
        if self.own_traffic.is_some() {
            let (notifier, delivered) = (self.notifier.clone(), self.sources.delivered_to());
            tokio::spawn(async move {
                let report = async {
                    if let Some(report) = report {
                        report.await;
                    }
                };
                tokio::join!(notifier.drained(NOTICE_DEADLINE), report);
                // Without a driver nobody waits for it.
                let _told = delivered.send(()).await;
            });
        }
    }

    /// From here on traffic may be our own.
    fn begin_own_traffic(&mut self) {
        if self.own_traffic.is_none() {
            self.sensors.disarm_edges();
            self.own_traffic = Some(OwnTraffic {
                before: self.sensors.traffic(),
                waits: None,
            });
        }
    }

    /// What was to be told is told.
    pub(super) fn delivered(&mut self) {
        let Some(own) = self.own_traffic.take() else { return };
        let after = self.sensors.traffic();
        self.history.forgive_traffic(&own.before, &after);
        self.arm_edges();
        if let Some(waits) = own.waits {
            let _told = waits.send(());
        }
    }

    /// Sees to it that the network cards can wake the host: at the start, when links change, and after every resume (fault S10); and that
    /// the wake server knows whether they do.
    ///
    /// Not twice at a time: pods that come and go change links by the dozen, and each sleep arms them again.
    pub(super) fn arm_cards(&mut self) {
        let sleep = &self.parts.policy.sleep;
        let is_arming = self.arming.as_ref().is_some_and(|arming| !arming.is_finished());
        let arms = sleep.arm_wol && !self.parts.dry_run;
        let board = self.wake_server.board();
        if is_arming || (!arms && board.is_none()) {
            return;
        }
        let interfaces = self.parts.policy.detection.interfaces.clone();
        let arming = spawn_blocking(move || {
            let ports = if arms {
                wol::arm_all(Path::new("/sys"), &interfaces)
            } else {
                wol::ports(Path::new("/sys"), &interfaces)
            };
            if let Err(error) = &ports {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, arms, "the network cards' Wake-on-LAN cannot be read or armed");
            }
            if let Some(board) = board {
                board.ports(ports.ok().as_deref());
            }
        });
        self.arming = Some(arming);
    }
}
