//! What the agent tells others about itself: the documents of the control socket and of `--output json`.
//!
//! Stable names: a field is added, never renamed; [`SCHEMA`] rises when one changes its meaning. The decision types are turned into
//! these at the edge and know nothing of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

/// Version of [`Status`] and [`Why`].
pub const SCHEMA: u32 = 1;

/// `ctl status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the agent.
    pub version: String,
    /// Host name.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Whether the agent only says what it would do.
    pub dry_run: bool,
    /// State of the idle machine.
    pub state: StateName,
    /// Seconds in that state.
    pub state_for_s: f64,
    /// Whether the host may sleep at all: configuration and `ctl disable` together.
    pub sleep_enabled: bool,
    /// Whether an operator said `ctl disable`.
    pub disabled_by_operator: bool,
    /// The hold in force, if any.
    pub hold: Option<Hold>,
    /// Seconds since the last activity.
    pub idle_s: f64,
    /// Quiet time needed before the grace period, seconds.
    pub inactivity_timeout_s: f64,
    /// Length of the grace period, seconds.
    pub grace_period_s: f64,
    /// Seconds until the host sleeps if it stays quiet; absent while it cannot.
    pub sleeps_in_s: Option<f64>,
    /// Seconds since the last check; absent before the first.
    pub last_check_s: Option<f64>,
    /// What keeps the host awake; empty if nothing.
    pub blockers: Vec<Blocker>,
    /// Rates of the last sample.
    pub rates: Rates,
    /// Where each signal is read.
    pub signals: Vec<Signal>,
    /// The eBPF programs, by what they count.
    #[serde(default)]
    pub programs: Vec<Programs>,
    /// What does not work as it should, in words.
    pub warnings: Vec<String>,
    /// Suspends carried out (in dry-run: that would have been) since the agent started.
    pub suspends: u64,
    /// What came of all sleeps, over restarts of the agent.
    #[serde(default)]
    pub sleep: SleepReport,
}

/// What came of all sleeps, over restarts of the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SleepReport {
    /// Sleeps the agent ordered that took place.
    pub sleeps: u64,
    /// Resumes from them.
    pub wakes: u64,
    /// Attempts that should have put the host to sleep and did not.
    pub failed: u64,
    /// Attempts something forbade from the start.
    pub refused: u64,
    /// Attempts begun and taken back.
    pub aborted: u64,
    /// Suspends others ordered.
    pub external: u64,
    /// Seconds in the agent's own sleeps.
    pub asleep_s: f64,
    /// Kilowatt hours saved in them; absent if what the host draws is not known.
    pub saved_kwh: Option<f64>,
    /// Where the power for that is known from, or why it is not, in words.
    pub energy_source: String,
    /// The last attempt, or the last suspend by others; absent before the first since the agent started.
    pub last: Option<LastAttempt>,
}

/// What came of one attempt to sleep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastAttempt {
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// Why it ended so, in words; empty if there is nothing to say.
    pub reason: String,
    /// What woke the host, if it slept and that is known.
    pub wake_source: Option<String>,
    /// Seconds asleep; absent if it did not sleep.
    pub asleep_s: Option<f64>,
    /// Milliseconds the agent's own steps added to the suspend and the resume; absent if it did not sleep.
    pub added_ms: Option<f64>,
    /// Seconds since it ended.
    pub ago_s: f64,
}

/// What came of an attempt to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The host slept and is awake again.
    Slept,
    /// Something forbade it from the start.
    Refused,
    /// It should have slept and did not.
    Failed,
    /// It was begun and taken back.
    Aborted,
    /// The agent died in it; the next one undid what was left.
    Interrupted,
    /// The host slept because somebody else ordered it.
    External,
}

/// `ctl sleep`: an attempt to sleep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Counts from 1 with the start of the agent.
    pub id: u64,
    /// Who ordered it: `idle`, `operator`, `forced`.
    pub order: String,
    /// What is being done, in words; `None`: nothing yet.
    pub step: Option<String>,
    /// Every step that was taken.
    pub steps: Vec<StepTime>,
    /// How it ended; `None`: it has not.
    pub outcome: Option<AttemptOutcome>,
    /// Why it ended so.
    pub reason: Option<String>,
    /// Seconds the host slept.
    pub asleep_s: Option<f64>,
    /// What woke it, if the system tells.
    pub wake_source: Option<String>,
    /// Milliseconds of the agent's own work between the decision and the order to suspend: without hooks, notices, a server's answer and
    /// the writing of dirty data.
    pub added_ms: Option<f64>,
    /// Milliseconds between the last reading of all counters and the order to suspend.
    pub window_ms: Option<f64>,
    /// Seconds since it ended.
    pub ago_s: Option<f64>,
    /// When it ended.
    #[serde(skip)]
    pub ended: Option<BootTime>,
}

/// A step of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Which, in words.
    pub step: String,
    /// What it took, milliseconds.
    pub ms: f64,
}

/// State of the idle machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// In use, or not known to be quiet.
    Active,
    /// Quiet; the idle time runs.
    Quiet,
    /// The sleep is announced.
    Grace,
    /// Whoever has a say is asked, and the pre-sleep hooks run.
    Preparing,
    /// Everything is read once more.
    Confirming,
    /// Suspend was asked for.
    Suspending,
    /// A sleep failed or was refused, or the host has just resumed: not again before a time.
    Waiting,
}

/// A hold: the host stays awake until it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// Seconds left.
    pub remaining_s: f64,
    /// Who set it.
    pub by: String,
    /// Why, if it was said.
    #[serde(default)]
    pub reason: Option<String>,
}

/// One thing that keeps the host awake.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blocker {
    /// `network`, `cpu`, `ssh`, `pods`, `hold`, `disabled`, ..: stable, for machines.
    pub signal: String,
    /// In words, one line, with value and limit.
    pub what: String,
    /// For how long, seconds.
    pub for_s: f64,
    /// Measured value, in `unit`.
    pub value: Option<f64>,
    /// Value above which it blocks, in `unit`.
    pub limit: Option<f64>,
    /// `B/s`, `%`, `sessions`, ..
    pub unit: Option<String>,
    /// Who causes it, where that is known: process groups, sessions, pods.
    pub by: Vec<String>,
    /// What would end it, in words.
    pub remedy: String,
}

/// Rates of the last sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Length of the sample, seconds; 0 before the second reading.
    pub over_s: f64,
    /// Busy share of all CPUs, percent.
    pub cpu_percent: Option<f64>,
    /// Busy share of each CPU, percent, by CPU number.
    pub cpus_percent: BTreeMap<u32, f64>,
    /// Context switches per second.
    pub switches_per_s: Option<f64>,
    /// Traffic by interface name.
    pub interfaces: BTreeMap<String, InterfaceRates>,
    /// Open authenticated sessions.
    pub ssh_sessions: Vec<SshSession>,
    /// Sessions authenticated since the agent started, those open at its start included.
    pub ssh_logins: Option<u64>,
}

/// Traffic of one interface, all classes together and each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceRates {
    /// Bytes received per second.
    pub rx_bytes_per_s: f64,
    /// Bytes sent per second.
    pub tx_bytes_per_s: f64,
    /// Bytes received since the agent began to count; by plain counters (see [`Signal::source`]), since the interface came.
    pub rx_bytes: u64,
    /// Bytes sent since the agent began to count.
    pub tx_bytes: u64,
    /// Frames received since the agent began to count.
    pub rx_packets: u64,
    /// Frames sent since the agent began to count.
    pub tx_packets: u64,
    /// Somebody uses the host: what is compared with the threshold. All traffic, where nothing tells the classes apart.
    #[serde(default)]
    pub user: ClassRates,
    /// The host and its cluster keep themselves going.
    #[serde(default)]
    pub background: ClassRates,
    /// Broadcast and multicast.
    #[serde(default)]
    pub multicast: ClassRates,
    /// Seconds since the last frame of class user; absent: none since the agent began to count, or not known.
    #[serde(default)]
    pub last_user_s: Option<f64>,
}

/// Traffic of one class on one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassRates {
    /// Bytes received per second.
    pub rx_bytes_per_s: f64,
    /// Bytes sent per second.
    pub tx_bytes_per_s: f64,
    /// Bytes received since the agent began to count.
    pub rx_bytes: u64,
    /// Bytes sent since the agent began to count.
    pub tx_bytes: u64,
    /// Frames received since the agent began to count.
    pub rx_packets: u64,
    /// Frames sent since the agent began to count.
    pub tx_packets: u64,
}

/// One SSH session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SshSession {
    /// Who, if known.
    pub user: Option<String>,
    /// `address:port` of the peer.
    pub peer: String,
    /// Process of the server, 0 if unknown.
    pub pid: u32,
    /// Seconds since the last byte.
    pub idle_s: f64,
    /// Whether it keeps the host awake (see `ssh_idle_cap`).
    pub counts: bool,
}

/// Where a signal is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// `network`, `cpu`, `ssh`, `pods`.
    pub name: String,
    /// How.
    pub source: SignalSource,
    /// Why, unless `source` is `kernel` or `plain`.
    pub detail: Option<String>,
}

/// How a signal is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalSource {
    /// eBPF program.
    Kernel,
    /// The kernel's plain counters: no program is attached, because its answer could not change the verdict, or it has not been for long
    /// enough.
    Plain,
    /// `/proc`, `/sys`, netlink.
    Fallback,
    /// The Kubernetes API.
    Kubernetes,
    /// Not readable: counts as busy.
    Unreadable,
    /// Not configured: does not count.
    NotConfigured,
}

/// eBPF programs that count the same thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Programs {
    /// `network`, `ssh`, `cpu`: the signal they serve.
    pub signal: String,
    /// Names, as `bpftool prog show` has them.
    pub names: Vec<String>,
    /// Whether they are in the kernel.
    pub attached: bool,
    /// Why they are, or are not.
    pub why: String,
    /// Seconds since they were attached or taken out; absent if they cannot run.
    pub for_s: Option<f64>,
    /// Times they ran since they were attached; absent unless the kernel counts it (sysctl `kernel.bpf_stats_enabled`).
    pub runs: Option<u64>,
    /// Seconds they ran for; absent likewise.
    pub run_time_s: Option<f64>,
}

/// `ctl why`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Host name.
    pub node: String,
    /// State of the idle machine.
    pub state: StateName,
    /// Everything that keeps the host awake.
    pub blockers: Vec<Blocker>,
    /// One sentence: what would let the node sleep, and when it then would.
    pub to_sleep: String,
}
