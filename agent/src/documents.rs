//! Turns the agent's state into the documents of [`crate::report`]. Pure: it is given the time and changes nothing.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::{
    attempt::{Ending, Step},
    clock::BootTime,
    config::{Policy, Scope, SshDetection},
    counters::{Reading, Source, Traffic},
    energy::{self, Account, Power},
    escalate,
    idle::{Brake, Idle, Order, State},
    probes::{Cost, Family},
    report::{
        AttemptOutcome, AttemptReport, Blocker, ClassRates, Hold, InterfaceRates, LastAttempt, Programs, Rates, SCHEMA,
        Signal, SignalSource, SleepReport, SshSession, StateName, Status, StepTime, Why,
    },
    sample::{Sample, TrafficRates},
    sleeper::Report,
    verdict::{Compared, Reason, SignalName, beyond_cap},
};

/// Everything the documents are made of.
pub struct Snapshot<'a> {
    /// Host name.
    pub node: &'a str,
    /// Whether suspending is only talked of.
    pub dry_run: bool,
    /// The machine.
    pub idle: &'a Idle,
    /// The policy.
    pub policy: &'a Policy,
    /// The last sample, if there is one.
    pub sample: Option<&'a Sample>,
    /// Reasons of the last verdict.
    pub reasons: &'a [Reason],
    /// Since when each blocker stands.
    pub standing: &'a Standing,
    /// When the last sample was taken.
    pub last_check: Option<BootTime>,
    /// The eBPF programs.
    pub programs: Vec<FamilyStanding>,
    /// What does not work as it should.
    pub warnings: Vec<String>,
    /// Suspends so far.
    pub suspends: u64,
    /// What came of all sleeps.
    pub account: &'a Account,
    /// What the host draws, or why that is not known.
    pub power: Result<Power, energy::Unknown>,
    /// The last attempt; its `ago_s` holds at the time given to [`Snapshot::status`].
    pub last: Option<LastAttempt>,
}

/// How it stands with the programs of a family.
pub struct FamilyStanding {
    /// Which.
    pub family: Family,
    /// Whether they are in the kernel; why they cannot be.
    pub attached: Result<bool, String>,
    /// Why they are there or not.
    pub why: escalate::Why,
    /// Since when.
    pub since: BootTime,
    /// What they have cost, if the kernel counts it.
    pub cost: Option<Cost>,
}

/// Since when each blocker has stood without a break.
#[derive(Debug, Default)]
pub struct Standing(BTreeMap<(&'static str, String), BootTime>);

impl Standing {
    /// Takes note of what blocks at `now`; what no longer does is forgotten.
    pub fn update(&mut self, reasons: &[Reason], brakes: &[Brake], now: BootTime) {
        let keys = reasons.iter().map(reason_key).chain(brakes.iter().map(brake_key));
        self.0 = keys
            .map(|key| {
                let since = self.0.get(&key).copied().unwrap_or(now);
                (key, since)
            })
            .collect();
    }

    fn seconds(&self, key: &(&'static str, String), now: BootTime) -> f64 {
        self.0.get(key).map_or(0.0, |since| seconds(now.since(*since)))
    }
}

impl Snapshot<'_> {
    /// The answer to `status`.
    pub fn status(&self, now: BootTime) -> Status {
        let brakes = self.idle.brakes(now);
        let memory = self.idle.memory();
        let settings = self.idle.settings();
        let hold = brakes.iter().find_map(|brake| match brake {
            Brake::Hold(hold) => Some(Hold {
                remaining_s: seconds(hold.until.since(now)),
                by: hold.by.clone(),
                reason: hold.reason.clone(),
            }),
            Brake::Configuration | Brake::Operator | Brake::Failures(_) | Brake::WakeLoop(_) | Brake::NotBefore(_) => {
                None
            }
        });
        let switched_off = |brake: &Brake| match brake {
            Brake::Configuration | Brake::Operator | Brake::Failures(_) | Brake::WakeLoop(_) => true,
            Brake::Hold(_) | Brake::NotBefore(_) => false,
        };
        Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.node.into(),
            pid: std::process::id(),
            dry_run: self.dry_run,
            state: self.state(&brakes),
            state_for_s: seconds(now.since(self.idle.since())),
            sleep_enabled: !brakes.iter().any(switched_off),
            disabled_by_operator: brakes.contains(&Brake::Operator),
            hold,
            idle_s: seconds(now.since(memory.last_activity)),
            inactivity_timeout_s: seconds(settings.inactivity_timeout),
            grace_period_s: seconds(settings.grace_period),
            sleeps_in_s: self.sleeps_at().map(|at| seconds(at.since(now))),
            last_check_s: self.last_check.map(|at| seconds(now.since(at))),
            blockers: self.blockers(&brakes, now),
            rates: self
                .sample
                .map(|sample| rates(sample, self.policy.detection.ssh.as_ref(), now))
                .unwrap_or_default(),
            signals: self.sample.map(signals).unwrap_or_default(),
            programs: self.programs.iter().map(|standing| programs(standing, now)).collect(),
            warnings: self.warnings.clone(),
            suspends: self.suspends,
            sleep: self.sleep(),
        }
    }

    fn sleep(&self) -> SleepReport {
        let account = self.account;
        SleepReport {
            sleeps: account.sleeps,
            wakes: account.wakes,
            failed: account.failed,
            refused: account.refused,
            aborted: account.aborted,
            external: account.external,
            asleep_s: seconds(account.asleep),
            saved_kwh: account.saved_kwh(self.power.as_ref().ok()),
            energy_source: match &self.power {
                Ok(power) => power.to_string(),
                Err(unknown) => unknown.to_string(),
            },
            last: self.last.clone(),
        }
    }

    /// The answer to `why`, without the process groups behind a signal.
    pub fn why(&self, now: BootTime) -> Why {
        let brakes = self.idle.brakes(now);
        let blockers = self.blockers(&brakes, now);
        Why {
            schema: SCHEMA,
            node: self.node.into(),
            state: self.state(&brakes),
            to_sleep: self.to_sleep(&blockers, now),
            blockers,
        }
    }

    /// What is said of brakes.
    pub fn brakes_in_words(&self, brakes: &[Brake], now: BootTime) -> Vec<String> {
        brakes.iter().map(|brake| brake_blocker(brake, now).what).collect()
    }

    fn state(&self, brakes: &[Brake]) -> StateName {
        let waiting = brakes.iter().any(|brake| matches!(brake, Brake::NotBefore(_)));
        match self.idle.state() {
            State::Active => StateName::Active,
            State::Quiet if waiting => StateName::Waiting,
            State::Quiet => StateName::Quiet,
            State::Grace { .. } => StateName::Grace,
            State::Preparing(_) => StateName::Preparing,
            State::Confirming(_) => StateName::Confirming,
            State::Suspending { .. } => StateName::Suspending,
        }
    }

    /// A busy host has no time at which it sleeps.
    fn sleeps_at(&self) -> Option<BootTime> {
        if self.reasons.is_empty() {
            self.idle.sleeps_at()
        } else {
            None
        }
    }

    fn blockers(&self, brakes: &[Brake], now: BootTime) -> Vec<Blocker> {
        let reasons = self.reasons.iter().map(|reason| Blocker {
            for_s: self.standing.seconds(&reason_key(reason), now),
            ..reason_blocker(reason)
        });
        let brakes = brakes.iter().map(|brake| Blocker {
            for_s: self.standing.seconds(&brake_key(brake), now),
            ..brake_blocker(brake, now)
        });
        reasons.chain(brakes).collect()
    }

    fn to_sleep(&self, blockers: &[Blocker], now: BootTime) -> String {
        let settings = self.idle.settings();
        let whole = words(settings.inactivity_timeout + settings.grace_period);
        let remedies: Vec<&str> = blockers.iter().map(|blocker| blocker.remedy.as_str()).collect();
        match (self.sleeps_at(), remedies.as_slice()) {
            (Some(at), []) => format!("the node sleeps in {} if it stays quiet", words(at.since(now))),
            (Some(at), some) => {
                format!(
                    "{}; if it stays quiet the node sleeps in {}",
                    some.join("; "),
                    words(at.since(now))
                )
            }
            (None, []) => format!("the node sleeps after {whole} of quiet"),
            (None, some) => format!("{}; then the node sleeps after {whole} of quiet", some.join("; ")),
        }
    }
}

fn reason_key(reason: &Reason) -> (&'static str, String) {
    match reason {
        Reason::Network { interface, .. } => ("network", interface.clone()),
        Reason::Cpu { .. } => ("cpu", String::new()),
        Reason::Ssh(session) => ("ssh", SocketAddr::new(session.peer, session.peer_port).to_string()),
        Reason::Pod(pod) => ("pods", pod.clone()),
        Reason::MorePods(_) => ("pods", String::new()),
        Reason::PreventSleep(pod) => ("prevent_sleep", pod.clone()),
        Reason::Unreadable { signal, .. } => ("unreadable", signal.to_string()),
        Reason::StateUnsaved(_) => ("state", String::new()),
    }
}

fn brake_key(brake: &Brake) -> (&'static str, String) {
    let name = match brake {
        Brake::Configuration => "configuration",
        Brake::Operator => "disabled",
        Brake::Failures(_) => "failures",
        Brake::WakeLoop(_) => "wake_loop",
        Brake::Hold(_) => "hold",
        Brake::NotBefore(_) => "waiting",
    };
    (name, String::new())
}

fn reason_blocker(reason: &Reason) -> Blocker {
    let (signal, _) = reason_key(reason);
    let base = Blocker {
        what: reason.to_string(),
        ..blocker(signal)
    };
    match reason {
        Reason::Network {
            interface,
            traffic,
            bytes_per_sec,
            limit,
        } => Blocker {
            value: Some(*bytes_per_sec),
            #[expect(clippy::cast_precision_loss, reason = "a threshold needs no more than 52 bits")]
            limit: Some(*limit as f64),
            unit: Some("B/s".into()),
            remedy: match traffic {
                Compared::User => format!("less than {limit} B/s of user traffic on {interface}"),
                Compared::All => format!("less than {limit} B/s on {interface}"),
            },
            ..base
        },
        Reason::Cpu { percent, limit, of } => Blocker {
            value: Some(*percent),
            limit: Some(*limit),
            unit: Some("%".into()),
            remedy: match of {
                Scope::Node => format!("CPU below {limit} %"),
                Scope::Pods => format!("CPU use of pods below {limit} %"),
            },
            ..base
        },
        Reason::Ssh(session) => {
            let user = session.user.as_deref().unwrap_or("somebody");
            Blocker {
                value: Some(seconds(session.idle)),
                unit: Some("s idle".into()),
                by: vec![format!("{user}, sshd process {}", session.pid)],
                remedy: format!("the SSH session of {user} closed"),
                ..base
            }
        }
        Reason::Pod(pod) => Blocker {
            by: vec![pod.clone()],
            remedy: format!("pod {pod} gone"),
            ..base
        },
        Reason::MorePods(_) => Blocker {
            remedy: "the other pods gone".into(),
            ..base
        },
        Reason::PreventSleep(pod) => Blocker {
            by: vec![pod.clone()],
            remedy: format!("the prevent-sleep label of pod {pod} removed"),
            ..base
        },
        Reason::Unreadable { signal, .. } => Blocker {
            remedy: format!("{signal} readable"),
            ..base
        },
        Reason::StateUnsaved(_) => Blocker {
            remedy: "the state folder writable".into(),
            ..base
        },
    }
}

fn brake_blocker(brake: &Brake, now: BootTime) -> Blocker {
    let (signal, _) = brake_key(brake);
    let base = blocker(signal);
    match brake {
        Brake::Configuration => Blocker {
            what: "sleeping is switched off in the configuration ([general] enabled)".into(),
            remedy: "`enabled = true` in the configuration".into(),
            ..base
        },
        Brake::Operator => Blocker {
            what: "an operator disabled sleeping".into(),
            remedy: "`vmstation-autosleep-ctl enable`".into(),
            ..base
        },
        Brake::Failures(count) => Blocker {
            what: format!("{count} suspends in a row failed, sleeping is disabled"),
            value: Some(f64::from(*count)),
            unit: Some("failures".into()),
            remedy: "the cause mended and `vmstation-autosleep-ctl enable`".into(),
            ..base
        },
        Brake::WakeLoop(count) => Blocker {
            what: format!("the host woke at once after each of the last {count} sleeps, sleeping is disabled"),
            value: Some(f64::from(*count)),
            unit: Some("short sleeps".into()),
            remedy: "what wakes it found (`status` names the last source) and `vmstation-autosleep-ctl enable`".into(),
            ..base
        },
        Brake::Hold(hold) => Blocker {
            what: match &hold.reason {
                None => format!("held awake by {} for another {}", hold.by, words(hold.until.since(now))),
                Some(why) => format!(
                    "held awake by {} for another {}: {why}",
                    hold.by,
                    words(hold.until.since(now))
                ),
            },
            value: Some(seconds(hold.until.since(now))),
            unit: Some("s left".into()),
            by: vec![hold.by.clone()],
            remedy: "the hold over, or `vmstation-autosleep-ctl release`".into(),
            ..base
        },
        Brake::NotBefore(at) => Blocker {
            what: format!(
                "awake for at least another {} after a resume, or a sleep that failed or was refused",
                words(at.since(now))
            ),
            value: Some(seconds(at.since(now))),
            unit: Some("s left".into()),
            remedy: "that time over".into(),
            ..base
        },
    }
}

fn blocker(signal: &str) -> Blocker {
    Blocker {
        signal: signal.into(),
        what: String::new(),
        for_s: 0.0,
        value: None,
        limit: None,
        unit: None,
        by: Vec::new(),
        remedy: String::new(),
    }
}

fn programs(standing: &FamilyStanding, now: BootTime) -> Programs {
    let FamilyStanding {
        family,
        attached,
        why,
        since,
        cost,
    } = standing;
    let signal = match family {
        Family::Net => SignalName::Network,
        Family::Ssh => SignalName::Ssh,
        Family::Sched => SignalName::Cpu,
    };
    Programs {
        signal: signal.to_string(),
        names: family.programs().iter().map(|name| (*name).to_owned()).collect(),
        attached: *attached == Ok(true),
        why: attached.as_ref().map_or_else(String::clone, |_| why.to_string()),
        for_s: attached.is_ok().then(|| seconds(now.since(*since))),
        runs: cost.map(|cost| cost.runs),
        run_time_s: cost.map(|cost| cost.time.as_secs_f64()),
    }
}

fn class_rates(rates: &TrafficRates, total: &Traffic) -> ClassRates {
    ClassRates {
        rx_bytes_per_s: rates.rx_bytes_per_sec,
        tx_bytes_per_s: rates.tx_bytes_per_sec,
        rx_bytes: total.rx_bytes,
        tx_bytes: total.tx_bytes,
        rx_packets: total.rx_packets,
        tx_packets: total.tx_packets,
    }
}

fn rates(sample: &Sample, ssh: Option<&SshDetection>, now: BootTime) -> Rates {
    let cap = ssh.and_then(|ssh| ssh.idle_cap);
    let cpu = sample.cpu.known();
    let seen = sample.ssh.known();
    let interfaces = sample.net.known().into_iter().flatten().map(|(interface, net)| {
        let (all, total) = (net.all(), net.totals.all());
        let rates = InterfaceRates {
            rx_bytes_per_s: all.rx_bytes_per_sec,
            tx_bytes_per_s: all.tx_bytes_per_sec,
            rx_bytes: total.rx_bytes,
            tx_bytes: total.tx_bytes,
            rx_packets: total.rx_packets,
            tx_packets: total.tx_packets,
            user: class_rates(&net.user, &net.totals.user),
            background: class_rates(&net.background, &net.totals.background),
            multicast: class_rates(&net.multicast, &net.totals.multicast),
            last_user_s: net.totals.last_user.map(|last| seconds(now.since(last))),
        };
        (interface.name.clone(), rates)
    });
    let sessions = seen
        .into_iter()
        .flat_map(|seen| &seen.sessions)
        .map(|session| SshSession {
            user: session.user.clone(),
            peer: SocketAddr::new(session.peer, session.peer_port).to_string(),
            pid: session.pid,
            idle_s: seconds(session.idle),
            counts: !beyond_cap(session, cap),
        });
    Rates {
        over_s: seconds(sample.over),
        cpu_percent: cpu.map(|cpu| cpu.percent),
        cpus_percent: cpu.map(|cpu| cpu.by_cpu.clone()).unwrap_or_default(),
        switches_per_s: cpu.map(|cpu| cpu.switches_per_sec),
        interfaces: interfaces.collect(),
        ssh_sessions: sessions.collect(),
        ssh_logins: seen.map(|seen| seen.logins),
    }
}

fn signals(sample: &Sample) -> Vec<Signal> {
    vec![
        signal(SignalName::Network, &sample.net),
        signal(SignalName::Cpu, &sample.cpu),
        signal(SignalName::Ssh, &sample.ssh),
        signal(SignalName::Pods, &sample.pods),
    ]
}

fn signal<T>(name: SignalName, reading: &Reading<T>) -> Signal {
    let (source, detail) = match reading {
        Reading::Known {
            source: Source::Kernel, ..
        } => (SignalSource::Kernel, None),
        Reading::Known {
            source: Source::Plain, ..
        } => (SignalSource::Plain, None),
        Reading::Known {
            source: Source::Kubernetes,
            ..
        } => (SignalSource::Kubernetes, None),
        Reading::Known {
            source: Source::Fallback(why),
            ..
        } => (SignalSource::Fallback, Some(why.clone())),
        Reading::Unreadable(why) => (SignalSource::Unreadable, Some(why.clone())),
        Reading::NotConfigured => (SignalSource::NotConfigured, Some("not configured".into())),
    };
    Signal {
        name: name.to_string(),
        source,
        detail,
    }
}

impl AttemptReport {
    /// One that has just begun.
    pub fn begun(id: u64, order: Order) -> Self {
        let order = match order {
            Order::Idle => "idle",
            Order::Operator => "operator",
            Order::Forced => "forced",
        };
        Self {
            schema: SCHEMA,
            id,
            order: order.into(),
            step: None,
            steps: Vec::new(),
            outcome: None,
            reason: None,
            asleep_s: None,
            wake_source: None,
            added_ms: None,
            window_ms: None,
            ago_s: None,
            ended: None,
        }
    }

    /// It ended at `now`.
    #[must_use]
    pub fn ended(self, report: &Report, now: BootTime) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let (outcome, reason, asleep) = match &report.ending {
            Ending::Slept(slept) => (AttemptOutcome::Slept, None, Some(seconds(*slept))),
            Ending::Refused(why) => (AttemptOutcome::Refused, Some(why.clone()), None),
            Ending::Failed(why) => (AttemptOutcome::Failed, Some(why.clone()), None),
            Ending::Aborted(why) => (AttemptOutcome::Aborted, Some(why.clone()), None),
            Ending::Interrupted => (
                AttemptOutcome::Interrupted,
                Some("an earlier agent died in it".into()),
                None,
            ),
        };
        let step = |(step, time): &(Step, Duration)| StepTime {
            step: step.to_string(),
            ms: ms(*time),
        };
        Self {
            step: None,
            steps: report.steps.iter().map(step).collect(),
            outcome: Some(outcome),
            reason,
            asleep_s: asleep.or(self.asleep_s),
            wake_source: report.wake_source.clone(),
            added_ms: Some(ms(report.own_time())),
            window_ms: report.window.map(ms),
            ended: Some(now),
            ..self
        }
    }

    /// As it is told at `now`.
    #[must_use]
    pub fn at(self, now: BootTime) -> Self {
        Self {
            ago_s: self.ended.map(|ended| seconds(now.since(ended))),
            ..self
        }
    }
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// In words, to the second.
fn words(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}
