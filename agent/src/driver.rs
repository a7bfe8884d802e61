//! The one task of the agent. It owns all state: it waits for one [`Event`], feeds the idle machine, and carries out its actions.
//!
//! ```text
//!  alarm    ring buffer  netlink  control socket  signals  suspend
//!     └─────────┴───────────┴───────────┴────────────┴────────┘
//!                           v  Event
//!                        [Driver] ── sensors ──> sample ──> verdict ──> idle ──> actions
//! ```
//!
//! Beside it there are only the control server's tasks, which hand over [`Call`]s, and a task for each suspend and for each `why`, which
//! hand back their outcome. The clock is read here and passed on.

use std::{sync::Arc, time::Duration};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};

use crate::{
    blame,
    clock::BootTime,
    config::{Loaded, NotificationMethod, Policy, ProbeMode},
    control::{Call, Peer, RefusalCode, Request, Response},
    documents::{FamilyStanding, Snapshot, Standing},
    edges::{Budget, Edge},
    energy::{Account, Power},
    escalate::{self, Escalation},
    events::{Event, Sources, SourcesError},
    history::History,
    idle::{Action, Event as IdleEvent, Finding, Hold, Idle, Settings, State},
    keeper::Keeper,
    memory,
    notify::{Notice, NoticeEvent, Notifier},
    probes::Family,
    report::Why,
    sample::Sample,
    sensors::Sensors,
    sessions::Noticed,
    state_file::StateFile,
    suspend::{SuspendError, Suspender},
    talkers,
    verdict::{Reason, Verdict, judge},
};

/// Longest time between two samples; `check_interval` if that is shorter.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Time between two samples at the start and while a sleep is announced.
const SAMPLE_SOON: Duration = Duration::from_secs(1);
/// Time over which `why` looks for who is busiest; it answers that much later.
const BLAME_OVER: Duration = Duration::from_millis(500);
/// Time between two looks at a connection that may become a session without a record of the kernel.
const SSH_SOON: Duration = Duration::from_millis(500);
/// `CLOCK_BOOTTIME` gaining this much on `CLOCK_MONOTONIC` is a suspend; reading them one after the other costs microseconds.
const SUSPENDED: Duration = Duration::from_millis(500);

/// How the configuration is read again.
pub type Reload = Box<dyn Fn() -> Result<Loaded, String>>;

/// What the driver is made of.
pub struct Parts {
    /// The policy in force.
    pub policy: Policy,
    /// Reads it again.
    pub reload: Reload,
    /// Host name.
    pub node: String,
    /// Whether `suspender` only says what it would do.
    pub dry_run: bool,
    /// Carries out a suspend.
    pub suspender: Arc<dyn Suspender>,
    /// What the start had to complain about.
    pub warnings: Vec<String>,
}

/// Owner of all state; see the module.
pub struct Driver {
    parts: Parts,
    sensors: Sensors,
    idle: Idle,
    history: History,
    sample: Option<Sample>,
    reasons: Vec<Reason>,
    standing: Standing,
    next_sample: BootTime,
    keeper: Keeper,
    account: Account,
    escalation: Escalation,
    started: BootTime,
    /// Complaint of the last reload.
    reload_failed: Option<String>,
    suspends: u64,
    slept: Duration,
    sources: Sources,
    notifier: Notifier,
}

impl Driver {
    /// Loads the sensors and restores the state.
    ///
    /// # Errors
    /// Only what nothing works without; see [`Sources::new`].
    pub fn new(
        mut parts: Parts,
        calls: mpsc::Receiver<Call>,
        state: Result<StateFile, String>,
    ) -> Result<Self, SourcesError> {
        let now = BootTime::now();
        let keeper = Keeper::new(state);
        let (idle, account, complaint) = keeper.restore(settings(&parts.policy), now);
        if let Some(complaint) = complaint {
            tracing::warn!("{complaint}");
            parts.warnings.push(complaint);
        }
        let mut sources = Sources::new(calls)?;
        let sensors = Sensors::new(&parts.policy);
        sources.watch(&sensors);
        let notifier = Notifier::new(notification_method(&parts.policy), parts.node.clone());
        Ok(Self {
            sensors,
            idle,
            history: History::default(),
            sample: None,
            reasons: Vec::new(),
            standing: Standing::default(),
            next_sample: now,
            keeper,
            account,
            escalation: Escalation::new(now),
            started: now,
            reload_failed: None,
            suspends: 0,
            slept: suspended_so_far(),
            sources,
            notifier,
            parts,
        })
    }

    /// Runs until SIGTERM or SIGINT.
    pub async fn run(mut self) {
        self.save(BootTime::now());
        loop {
            let due = self
                .idle
                .deadline()
                .map_or(self.next_sample, |deadline| deadline.min(self.next_sample));
            self.sources.set_alarm(due);
            let event = self.sources.next().await;
            let now = BootTime::now();
            self.notice_suspend(now);
            match event {
                Event::Alarm => self.alarm_went_off(now),
                Event::SshRecords => self.ssh_records(now),
                Event::Edge => self.edges(now),
                Event::LogindSession => self.judge_ssh(now),
                Event::LinksChanged => self.sensors.links_changed(),
                Event::Call(call) => self.answer(call, now),
                Event::SuspendDone(outcome) => self.suspend_ended(outcome, now),
                Event::Reload => self.reload(now),
                Event::Terminate => break,
            }
            if self.keeper.wants(&self.idle, &self.account, now) {
                self.save(now);
            }
        }
        self.save(BootTime::now());
    }

    fn alarm_went_off(&mut self, now: BootTime) {
        if now >= self.next_sample {
            // Attaches again what somebody detached, too.
            self.sensors.links_changed();
            self.check(now);
        }
        let actions = self.idle_event(IdleEvent::Deadline, now);
        self.act(&actions, now);
    }

    /// Reads everything, judges it and tells the idle machine.
    fn check(&mut self, begun: BootTime) {
        if self.keeper.failure().is_some() {
            self.save(begun);
        }
        let is_start = !self.history.has_rates();
        let reading = self.sensors.read();
        let sample = self.history.add(reading, self.sample_every());
        self.sample = Some(sample);
        self.judge(begun, begun);
        let begun = self.escalate(begun);
        self.schedule_sample(begun);
        self.arm_edges();
        if is_start && self.history.has_rates() {
            // The start is over.
            memory::give_back(None);
        }
    }

    /// On the way to sleep, activity is to be noticed when it happens. In use, nothing waits for it.
    fn arm_edges(&mut self) {
        match (self.idle.state(), &self.sample) {
            (State::Quiet | State::Grace { .. } | State::Confirming { .. }, Some(sample)) => {
                let next = self.next_sample.since(sample.at);
                let budget = Budget::after(sample, next, &self.parts.policy.detection);
                self.sensors.arm_edges(budget);
            }
            (State::Active | State::Suspending, _) | (_, None) => self.sensors.disarm_edges(),
        }
    }

    /// The kernel noticed more than it was told to let pass. Traffic beyond a threshold is activity at once; what a busy CPU is, the verdict
    /// says: it may be our own work.
    fn edges(&mut self, now: BootTime) {
        let edges = self.sensors.edges();
        if edges.is_empty() {
            return;
        }
        for edge in &edges {
            let state = self.idle.state();
            match edge {
                Edge::Traffic { at, interface, bytes } => {
                    let actions = self.idle_event(IdleEvent::Activity { at: *at }, now);
                    self.act(&actions, now);
                    let after_us = BootTime::now().since(*at).as_micros();
                    match state {
                        State::Grace { .. } | State::Confirming { .. } => {
                            tracing::info!(%state, interface, bytes, after_us, "activity noticed by the kernel");
                        }
                        // A host at a threshold gets here between any two samples.
                        State::Active | State::Quiet | State::Suspending => {
                            tracing::debug!(%state, interface, bytes, after_us, "activity noticed by the kernel");
                        }
                    }
                }
                Edge::Cpu { at, cpu, busy } => {
                    let after_us = now.since(*at).as_micros();
                    let busy_ms = busy.as_millis();
                    tracing::debug!(%state, cpu, busy_ms, after_us, "a busy CPU noticed by the kernel");
                }
            }
        }
        self.check(now);
    }

    /// Attaches the programs whose answer could change the verdict, and no others. When the last reading was taken: if programs were
    /// attached it is a new one, so that the next sample can be theirs.
    fn escalate(&mut self, now: BootTime) -> BootTime {
        let sample = self.sample.as_ref();
        let state = self.idle.state();
        let changes = self
            .escalation
            .step(sample, &self.reasons, state, &self.parts.policy, now);
        for (family, attach) in &changes {
            self.sensors.set_attached(*family, *attach);
            tracing::debug!(?family, attach, "eBPF programs attached or taken out");
        }
        if !changes.iter().any(|(_, attach)| *attach) {
            return now;
        }
        let reading = self.sensors.read();
        let now = reading.at;
        self.history.replace_newest(reading);
        now
    }

    /// Judges the current sample and tells the idle machine.
    fn judge(&mut self, begun: BootTime, now: BootTime) {
        let Some(sample) = &self.sample else { return };
        let judgement = judge(sample, &self.parts.policy);
        self.reasons = match judgement.verdict {
            Verdict::Quiet => Vec::new(),
            Verdict::Busy(reasons) => reasons,
        };
        let unsaved = self.keeper.failure().map(|why| Reason::StateUnsaved(why.into()));
        self.reasons.extend(unsaved);
        let finding = if self.reasons.is_empty() {
            Finding::Quiet
        } else {
            Finding::Busy
        };
        let event = IdleEvent::Checked {
            begun,
            finding,
            last_activity: judgement.last_activity,
        };
        let actions = self.idle_event(event, now);
        self.act(&actions, now);
    }

    fn schedule_sample(&mut self, now: BootTime) {
        let every = match self.idle.state() {
            State::Grace { .. } | State::Confirming { .. } => SAMPLE_SOON,
            State::Active if !self.history.has_rates() => SAMPLE_SOON,
            State::Active | State::Quiet | State::Suspending if self.sensors.ssh_undecided() => SSH_SOON,
            State::Active | State::Quiet | State::Suspending => self.sample_every(),
        };
        self.next_sample = now.after(every.min(self.sample_every()));
    }

    fn sample_every(&self) -> Duration {
        self.parts.policy.check_interval.min(SAMPLE_EVERY)
    }

    fn ssh_records(&mut self, now: BootTime) {
        match self.sensors.ssh_records() {
            // A session in which nothing is started (`ssh -N`) brings no further record.
            Noticed::Nothing if self.sensors.ssh_undecided() => {
                self.next_sample = self.next_sample.min(now.after(SSH_SOON));
            }
            Noticed::Nothing => {}
            Noticed::Login => {
                let actions = self.idle_event(IdleEvent::Activity { at: now }, now);
                self.act(&actions, now);
                self.judge_ssh(now);
            }
            Noticed::Ended => self.judge_ssh(now),
        }
    }

    /// Judges again with the sessions of this moment and the rates of the last sample.
    fn judge_ssh(&mut self, now: BootTime) {
        let ssh = self.sensors.ssh();
        if let Some(sample) = &mut self.sample {
            sample.ssh = ssh;
            let begun = sample.at;
            self.judge(begun, now);
        }
    }

    /// A suspend, whoever ordered it, shows as boot time gained on the monotonic clock (faults S4, S6, S16). Readings from before it
    /// are forgotten (S13).
    fn notice_suspend(&mut self, now: BootTime) {
        let slept = suspended_so_far();
        let gained = slept.saturating_sub(self.slept);
        self.slept = slept;
        if gained >= SUSPENDED {
            tracing::info!(seconds = gained.as_secs(), "the host was suspended and is awake again");
            self.resumed(now);
        }
    }

    fn resumed(&mut self, now: BootTime) {
        self.history = History::default();
        self.sample = None;
        self.reasons.clear();
        self.next_sample = now;
        let actions = self.idle_event(IdleEvent::Resumed, now);
        self.act(&actions, now);
    }

    fn suspend_ended(&mut self, outcome: Result<(), SuspendError>, now: BootTime) {
        match outcome {
            Ok(()) => {
                self.suspends += 1;
                self.resumed(now);
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "suspend failed");
                let actions = self.idle_event(IdleEvent::SuspendFailed, now);
                self.act(&actions, now);
            }
        }
    }

    /// Passes an event on and logs the transition it causes.
    fn idle_event(&mut self, event: IdleEvent, now: BootTime) -> Vec<Action> {
        let before = self.idle.state();
        let actions = self.idle.handle(event, now);
        let after = self.idle.state();
        if before.to_string() != after.to_string() {
            let idle_s = now.since(self.idle.memory().last_activity).as_secs();
            let reasons = self
                .reasons
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            match (before, after) {
                // A host at a threshold goes to and fro at every sample.
                (State::Active, State::Quiet) | (State::Quiet, State::Active) => {
                    tracing::debug!(from = %before, to = %after, idle_s, reasons, "idle state changed");
                }
                _ => tracing::info!(from = %before, to = %after, idle_s, reasons, "idle state changed"),
            }
        }
        self.standing.update(&self.reasons, &self.idle.brakes(now), now);
        actions
    }

    fn act(&mut self, actions: &[Action], now: BootTime) {
        for action in actions {
            match *action {
                Action::Announce { ends } => {
                    tracing::info!(
                        in_s = ends.since(now).as_secs(),
                        "the host sleeps unless it is used before"
                    );
                    self.schedule_sample(now);
                }
                Action::Warn { ends } => {
                    tracing::warn!(in_s = ends.since(now).as_secs(), "the host is about to sleep");
                }
                Action::Cancel(why) => tracing::info!(%why, "the announced sleep is cancelled"),
                Action::Confirm => self.check(now),
                Action::Suspend => self.suspend(),
                Action::GiveUp => {
                    tracing::error!(
                        "suspending failed too often in a row; disabled until `vmstation-autosleep-ctl enable`"
                    );
                }
            }
        }
    }

    fn suspend(&self) {
        let suspender = Arc::clone(&self.parts.suspender);
        let done = self.sources.suspend_done();
        tokio::spawn(async move {
            let outcome = suspender.suspend().await;
            // The receiver lives as long as the driver; without it nobody waits for the outcome.
            let _sent = done.send(outcome).await;
        });
    }

    fn answer(&mut self, call: Call, now: BootTime) {
        let Call { request, peer, reply } = call;
        let name = request.name();
        let (event, message) = match request {
            Request::Status => {
                // A client that went away does not want its answer.
                let _gone = reply.send(Response::Status(Box::new(self.snapshot().status(now))));
                return;
            }
            Request::Why => return answer_why(self.snapshot().why(now), self.parts.policy.probes, reply),
            Request::NotifyTest => return answer_notify_test(self.notifier.clone(), &peer, reply),
            Request::Enable => (IdleEvent::Enable, "sleeping is allowed".into()),
            Request::Disable => (IdleEvent::Disable, "sleeping is disabled until `enable`".into()),
            Request::Reset => (IdleEvent::Reset, "the idle time begins again".into()),
            Request::Release => (IdleEvent::Release, "no hold is in force".into()),
            Request::Hold { seconds, reason } => {
                let length = Duration::from_secs(seconds);
                let hold = Hold {
                    until: now.after(length),
                    by: peer.to_string(),
                    reason,
                };
                (
                    IdleEvent::Hold(hold),
                    format!("held awake for {}", humantime::format_duration(length)),
                )
            }
        };
        tracing::info!(request = name, by = %peer, outcome = message, "an operator changes the agent");
        let _gone = reply.send(self.operator(event, message, now));
    }

    /// Does what an operator asks, and says so only once it would survive the process.
    fn operator(&mut self, event: IdleEvent, message: String, now: BootTime) -> Response {
        let actions = self.idle_event(event, now);
        self.act(&actions, now);
        self.save(now);
        match self.keeper.failure() {
            None => Response::Done { message },
            Some(why) => Response::Refused {
                code: RefusalCode::Failed,
                message: format!("done, but it will not survive a restart of the agent: {why}"),
            },
        }
    }

    fn reload(&mut self, now: BootTime) {
        match (self.parts.reload)() {
            Ok(loaded) => {
                tracing::info!("configuration read again");
                self.reload_failed = None;
                let before = std::mem::replace(&mut self.parts.policy, loaded.policy);
                if !self.sensors.reconfigure(&before, &self.parts.policy) {
                    self.sources.watch(&self.sensors);
                    self.escalation = Escalation::new(now);
                }
                self.notifier.set_method(notification_method(&self.parts.policy));
                self.history = History::default();
                self.sample = None;
                self.next_sample = now;
                let actions = self.idle_event(IdleEvent::Settings(settings(&self.parts.policy)), now);
                self.act(&actions, now);
            }
            Err(error) => {
                let warning = format!("the configuration was not read again, the one before stays in force: {error}");
                tracing::error!("{warning}");
                self.reload_failed = Some(warning);
            }
        }
    }

    fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            node: &self.parts.node,
            dry_run: self.parts.dry_run,
            idle: &self.idle,
            policy: &self.parts.policy,
            sample: self.sample.as_ref(),
            reasons: &self.reasons,
            standing: &self.standing,
            last_check: self.sample.as_ref().map(|sample| sample.at),
            programs: self.programs(),
            warnings: self.parts.warnings.iter().chain(&self.reload_failed).cloned().collect(),
            suspends: self.suspends,
            account: &self.account,
            power: Power::new(&self.parts.policy.energy, None),
            last: None,
        }
    }

    fn programs(&self) -> Vec<FamilyStanding> {
        let ssh = (Family::Ssh, escalate::Why::Always, self.started);
        let standing = |(family, why, since)| FamilyStanding {
            family,
            attached: self.sensors.attached(family).map_err(str::to_owned),
            why,
            since,
            cost: self.sensors.cost(family),
        };
        std::iter::once(ssh)
            .chain(self.escalation.standing())
            .map(standing)
            .collect()
    }

    fn save(&mut self, now: BootTime) {
        let last_check = self.sample.as_ref().map(|sample| sample.at);
        self.keeper.save(
            &self.idle,
            &self.account,
            last_check,
            now,
            self.parts.policy.check_interval,
        );
    }
}

fn settings(policy: &Policy) -> Settings {
    Settings {
        enabled: policy.enabled,
        inactivity_timeout: policy.inactivity_timeout,
        grace_period: policy.grace_period,
        warn_before: policy.notification.as_ref().map(|notification| notification.before),
        min_awake: policy.min_awake,
    }
}

/// Where notices go: the log at least.
fn notification_method(policy: &Policy) -> NotificationMethod {
    let configured = policy.notification.as_ref();
    configured.map_or(NotificationMethod::Log, |notification| notification.method.clone())
}

/// Sends a notification and answers what became of it.
fn answer_notify_test(notifier: Notifier, by: &Peer, reply: oneshot::Sender<Response>) {
    let notice = Notice {
        event: NoticeEvent::Test,
        reason: format!("asked for by {by}"),
        sleeps_at: None,
    };
    tokio::spawn(async move {
        let response = match notifier.deliver_now(notice).await {
            Ok(delivered) => Response::Done {
                message: delivered.to_string(),
            },
            Err(error) => Response::Refused {
                code: RefusalCode::Failed,
                message: format!("the notification was not delivered: {error}"),
            },
        };
        // A client that went away does not want its answer.
        let _gone = reply.send(response);
    });
}

/// Completes the answer with who causes it, which takes a moment to find out, and sends it; gives up when nobody waits for it any more.
fn answer_why(mut why: Why, probes: ProbeMode, mut reply: oneshot::Sender<Response>) {
    tokio::spawn(async move {
        let done = tokio::select! {
            () = name_causes(&mut why, probes) => true,
            () = reply.closed() => false,
        };
        if done {
            // A client that went away does not want its answer.
            let _gone = reply.send(Response::Why(Box::new(why)));
        }
    });
}

async fn name_causes(why: &mut Why, probes: ProbeMode) {
    let blocked_by = |signal: &str| why.blockers.iter().any(|blocker| blocker.signal == signal);
    let (by_cpu, by_network) = (blocked_by("cpu"), blocked_by("network"));
    let cpu = async {
        if by_cpu {
            let busiest = blame::busiest_over(BLAME_OVER).await;
            busiest.iter().map(ToString::to_string).collect()
        } else {
            Vec::new()
        }
    };
    let network = async {
        if by_network {
            talkers::named(talkers::busiest_over(BLAME_OVER, probes).await)
        } else {
            Vec::new()
        }
    };
    let (cpu, network) = tokio::join!(cpu, network);
    for blocker in &mut why.blockers {
        match blocker.signal.as_str() {
            "cpu" => blocker.by.clone_from(&cpu),
            // Which interface a socket uses is not asked.
            "network" => blocker.by.clone_from(&network),
            _ => {}
        }
    }
}

/// Time the host has been suspended since boot: what `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` does not.
fn suspended_so_far() -> Duration {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    BootTime::now().0.saturating_sub(monotonic)
}
