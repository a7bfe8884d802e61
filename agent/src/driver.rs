//! The one task of the agent. It owns all state: it waits for one [`Event`], feeds the idle machine, and carries out its actions.
//!
//! ```text
//!  alarm    ring buffer  netlink  control socket  signals  attempt
//!     └─────────┴───────────┴───────────┴────────────┴────────┘
//!                           v  Event
//!                        [Driver] ── sensors ──> sample ──> verdict ──> idle ──> actions
//! ```
//!
//! Beside it there are only the control server's tasks, which hand over [`Call`]s, a task for each attempt to sleep ([`attempts`]) and for
//! each question that takes a moment to answer ([`answers`]), and those of [`crate::notify`] and [`crate::metrics`]. The clock is read
//! here and passed on.

mod answers;
mod attempts;
mod contact;
mod figures;
mod pods;

use std::time::Duration;

use tokio::{sync::mpsc, task::JoinHandle};

use self::{
    attempts::{OwnTraffic, Pending, Running},
    contact::WakeServer,
    figures::Figures,
};
use crate::{
    clock::BootTime,
    config::{Loaded, NotificationMethod, Policy},
    control::Call,
    coordinator::Coordinator,
    documents::{FamilyStanding, Snapshot, Standing},
    edges::{Budget, Edge},
    energy::Account,
    escalate::{self, Escalation},
    events::{Event, Sources, SourcesError},
    history::History,
    idle::{Action, Cancelled, Event as IdleEvent, Finding, GaveUp, Idle, Order, Settings, State},
    journal::Journal,
    keeper::Keeper,
    memory,
    notify::{Notice, NoticeEvent, Notifier},
    pods::Pods,
    probes::Family,
    report::AttemptReport,
    sample::Sample,
    sensors::Sensors,
    sessions::Noticed,
    state_file::StateFile,
    suspend::{SUSPENDED, suspended_so_far},
    verdict::{Reason, Verdict, judge, stands_against},
};

/// Longest time between two samples; `check_interval` if that is shorter.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Time between two samples at the start and while a sleep is announced.
const SAMPLE_SOON: Duration = Duration::from_secs(1);
/// Time between two looks at a connection that may become a session without a record of the kernel.
const SSH_SOON: Duration = Duration::from_millis(500);
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
    /// Whether a sleep is only talked of.
    pub dry_run: bool,
    /// Of the sleep attempt that is under way.
    pub journal: Journal,
    /// Who gives leave to sleep.
    pub coordinator: Coordinator,
    /// What the start had to complain about.
    pub warnings: Vec<String>,
}

/// Owner of all state; see the module.
pub struct Driver {
    parts: Parts,
    sensors: Sensors,
    pods: Pods,
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
    /// The attempt to sleep that is under way.
    attempt: Option<Running>,
    attempts: u64,
    last_attempt: Option<AttemptReport>,
    /// An operator's order that the idle machine is about to act on.
    pending: Option<Pending>,
    notifier: Notifier,
    figures: Figures,
    wake_server: WakeServer,
    /// Our own traffic that is on its way.
    own_traffic: Option<OwnTraffic>,
    /// The network cards are being armed.
    arming: Option<JoinHandle<()>>,
    /// Longest time without a sign of life that the service manager allows.
    watchdog: Option<Duration>,
    sources: Sources,
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
        let pods = Pods::new(&parts.policy, &parts.node, sources.pods_to());
        let notifier = Notifier::new(notification_method(&parts.policy), parts.node.clone());
        let mut driver = Self {
            sensors,
            pods,
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
            attempt: None,
            attempts: 0,
            last_attempt: None,
            pending: None,
            notifier,
            figures: Figures::new(),
            wake_server: WakeServer::default(),
            own_traffic: None,
            arming: None,
            watchdog: sd_notify::watchdog_enabled(),
            sources,
            parts,
        };
        driver.meet_wake_server();
        driver.recover(now);
        driver.arm_cards();
        driver.serve_metrics();
        Ok(driver)
    }

    /// Runs until SIGTERM or SIGINT, and to the end of an attempt to sleep that is under way then.
    pub async fn run(mut self) {
        self.save(BootTime::now());
        let mut stopping = false;
        loop {
            let now = BootTime::now();
            self.sources.set_alarm(self.due(now));
            self.say_alive();
            let event = self.sources.next().await;
            let now = BootTime::now();
            self.notice_suspend(now);
            match event {
                Event::Alarm => self.alarm_went_off(now),
                Event::SshRecords => self.ssh_records(now),
                Event::Edge => self.edges(now),
                Event::LogindSession => self.judge_ssh(now),
                Event::LinksChanged => {
                    self.sensors.links_changed();
                    self.arm_cards();
                }
                Event::Call(call) => self.answer(call, now),
                Event::Attempt(progress) => self.attempt_progress(progress, now),
                Event::Delivered => self.delivered(),
                Event::Ordered(number) => self.ordered(number, now),
                Event::Pods(report) => self.pods_told(report, now),
                Event::Scrape(reply) => {
                    // A client that went away does not want its answer.
                    let _gone = reply.send(self.metrics(now));
                }
                Event::Reload => self.reload(now),
                Event::Terminate => {
                    stopping = true;
                    self.call_off("the agent is stopping");
                }
            }
            self.tell_wake_server(now);
            if stopping && self.attempt.is_none() {
                break;
            }
            if self.keeper.wants(&self.idle, &self.account, now) {
                self.save(now);
            }
        }
        self.save(BootTime::now());
    }

    /// When there is something to do without an event.
    fn due(&self, now: BootTime) -> BootTime {
        let deadline = self.idle.deadline().into_iter();
        let alive = self.watchdog.map(|longest| now.after(longest / 2));
        deadline.chain(alive).fold(self.next_sample, BootTime::min)
    }

    /// Tells the service manager that the driver runs (sd_notify(3), WATCHDOG=1), if it wants to know.
    fn say_alive(&self) {
        if self.watchdog.is_some() {
            // Without a service manager there is nobody to tell.
            let _untold = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    fn alarm_went_off(&mut self, now: BootTime) {
        if now >= self.next_sample && self.own_traffic.is_some() {
            // A sample now would show it.
            self.next_sample = now.after(SAMPLE_SOON);
        } else if now >= self.next_sample {
            // Attaches again what somebody detached, too.
            self.sensors.links_changed();
            self.check(now);
        }
        let actions = self.idle_event(IdleEvent::Deadline, now);
        self.act(&actions, now);
        self.listed_for_attempt(now);
    }

    /// Reads everything, judges it and tells the idle machine.
    fn check(&mut self, begun: BootTime) {
        if self.keeper.failure().is_some() {
            self.save(begun);
        }
        let is_start = !self.history.has_rates();
        self.check_pods(begun);
        let reading = self.sensors.read(self.pods.reading(begun));
        let sample = self.history.add(reading, self.sample_every());
        self.sample = Some(sample);
        self.judge(begun, begun);
        self.check_pods(begun);
        let begun = self.escalate(begun);
        self.schedule_sample(begun);
        self.arm_edges();
        self.measure_power(begun);
        self.write_textfile(begun);
        if is_start && self.history.has_rates() {
            // The start is over.
            memory::give_back(None);
        }
    }

    /// On the way to sleep, activity is to be noticed when it happens. In use, nothing waits for it.
    fn arm_edges(&mut self) {
        match (self.idle.state(), &self.sample) {
            _ if self.own_traffic.is_some() => self.sensors.disarm_edges(),
            (
                State::Quiet
                | State::Grace { .. }
                | State::Preparing(_)
                | State::Confirming(_)
                | State::Suspending { .. },
                Some(sample),
            ) => {
                let next = self.next_sample.since(sample.at);
                let budget = Budget::after(sample, next, &self.parts.policy.detection);
                self.sensors.arm_edges(budget);
            }
            (State::Active, _) | (_, None) => self.sensors.disarm_edges(),
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
                    // An operator who ordered the sleep knows of it.
                    if matches!(self.order(), None | Some(Order::Idle)) {
                        let actions = self.idle_event(IdleEvent::Activity { at: *at }, now);
                        self.act(&actions, now);
                    }
                    let after_us = BootTime::now().since(*at).as_micros();
                    match state {
                        State::Grace { .. } | State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => {
                            tracing::info!(%state, interface, bytes, after_us, "activity noticed by the kernel");
                        }
                        // A host at a threshold gets here between any two samples.
                        State::Active | State::Quiet => {
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
        let reading = self.sensors.read(self.pods.reading(now));
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
        let quiet = match self.going_to_sleep() {
            None => self.reasons.is_empty(),
            Some(running) => !running.is_objected(&self.reasons),
        };
        let (finding, last_activity) = if quiet {
            (Finding::Quiet, judgement.past_login)
        } else {
            (Finding::Busy, judgement.last_activity)
        };
        let event = IdleEvent::Checked {
            begun,
            finding,
            last_activity,
        };
        let actions = self.idle_event(event, now);
        self.act(&actions, now);
    }

    fn schedule_sample(&mut self, now: BootTime) {
        let every = match self.idle.state() {
            _ if self.sensors.ssh_undecided() => SSH_SOON,
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => SAMPLE_SOON,
            State::Active if !self.history.has_rates() => SAMPLE_SOON,
            State::Active | State::Quiet => self.sample_every(),
        };
        self.next_sample = now.after(every.min(self.sample_every()));
    }

    fn sample_every(&self) -> Duration {
        self.parts.policy.check_interval.min(SAMPLE_EVERY)
    }

    fn ssh_records(&mut self, now: BootTime) {
        let Some(noticed) = self.sensors.ssh_records() else {
            return;
        };
        self.give_way_to_ssh();
        match noticed {
            // A session in which nothing is started (`ssh -N`) brings no further record.
            Noticed::Nothing if self.sensors.ssh_undecided() => {
                self.next_sample = self.next_sample.min(now.after(SSH_SOON));
                self.give_way_to_login(now);
            }
            Noticed::Nothing => {}
            Noticed::Login => {
                // With force, an operator said that he knows who is there.
                if self.order() != Some(Order::Forced) {
                    let actions = self.idle_event(IdleEvent::Activity { at: now }, now);
                    self.act(&actions, now);
                }
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
            self.wake_server.count_resume();
            self.say_alive();
            let ours = matches!(self.idle.state(), State::Suspending { .. });
            self.resumed(gained, now);
            if !ours {
                self.slept_by_others(gained, now);
            }
            self.arm_cards();
        }
    }

    fn resumed(&mut self, slept: Duration, now: BootTime) {
        self.history = History::default();
        self.pods.forget();
        self.sample = None;
        self.reasons.clear();
        self.next_sample = now;
        let actions = self.idle_event(IdleEvent::Resumed { slept }, now);
        self.act(&actions, now);
    }

    fn reasons_in_words(&self) -> String {
        let words: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        words.join("; ")
    }

    /// Passes an event on and logs the transition it causes.
    fn idle_event(&mut self, event: IdleEvent, now: BootTime) -> Vec<Action> {
        let before = self.idle.state();
        let actions = self.idle.handle(event, now);
        let after = self.idle.state();
        if before.to_string() != after.to_string() {
            let idle_s = now.since(self.idle.memory().last_activity).as_secs();
            let reasons = self.reasons_in_words();
            match (before, after) {
                // A host at a threshold goes to and fro at every sample.
                (State::Active, State::Quiet) | (State::Quiet, State::Active) => {
                    tracing::debug!(from = %before, to = %after, idle_s, reasons, "idle state changed");
                }
                _ => tracing::info!(from = %before, to = %after, idle_s, reasons, "idle state changed"),
            }
        }
        self.count_triggers(before, &actions);
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
                Action::Warn { ends } => self.warn_of_sleep(ends.since(now)),
                Action::Cancel(why) => {
                    tracing::info!(%why, "the announced sleep is cancelled");
                    let reasons = self.reasons_in_words();
                    self.call_off(&if reasons.is_empty() {
                        why.to_string()
                    } else {
                        format!("{why}: {reasons}")
                    });
                }
                Action::Prepare(order) => self.begin_attempt(order, now),
                Action::Confirm => self.check(now),
                Action::Suspend => self.go(now),
                Action::GiveUp(why) => self.gave_up(why),
            }
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
                self.pods.reconfigure(&self.parts.policy, &self.parts.node);
                self.notifier.set_method(notification_method(&self.parts.policy));
                if before.metrics.listen != self.parts.policy.metrics.listen {
                    self.serve_metrics();
                }
                if before.wake_server.is_some() || self.parts.policy.wake_server.is_some() {
                    self.meet_wake_server_anew();
                }
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
            warnings: self.warnings(),
            suspends: self.suspends,
            account: &self.account,
            power: self.figures.power(&self.parts.policy),
            last: self.last(BootTime::now()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.parts.warnings.iter().chain(&self.reload_failed).cloned();
        warnings
            .chain(self.wake_server_warning())
            .chain(self.pods.warning())
            .collect()
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
