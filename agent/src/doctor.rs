//! Whether this host can go to sleep and come back: what was found, as a list of checks in words, each with its fix.
//!
//! ```text
//! collect: files, ioctls, sockets --Facts--> findings: pure --> ctl: lines or JSON
//! ```
//! Owns nothing and needs no agent. Never suspends, never runs a hook, never sends a notification; changes nothing unless it is asked to
//! arm the ports, which the agent does in the same way.

mod collect;
mod host;
mod ports;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

pub use self::collect::{Arming, Places, collect};
use crate::{
    config::{Format, Notification, ProbeMode, Sleep},
    control::CallError,
    report::Status,
    wol::Port,
};

/// The checks a finding can be of; stable, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Does the configuration load?
    Configuration,
    /// Does the agent answer, and does it complain?
    Agent,
    /// Are all signals read from their best source?
    Signals,
    /// Does the kernel offer a sleep state?
    SleepStates,
    /// Does a magic packet wake the host?
    WakeOnLan,
    /// Can the clock wake it?
    Rtc,
    /// Would logind suspend it?
    Logind,
    /// Would the hooks run?
    Hooks,
    /// Who is told?
    Notification,
    /// Can eBPF programs be used?
    Ebpf,
    /// Can the agent remember?
    StateFolder,
    /// Who can wake this host, all in all?
    WokenBy,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// The host does not sleep, or would not come back.
    Fail,
    /// Could not be looked at.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found and what it means, one sentence.
    pub what: String,
    /// What would help, if anything has to.
    pub fix: Option<String>,
}

/// All that was found on this host.
#[derive(Debug)]
pub struct Facts {
    /// The file; or all that is wrong with it, and then the defaults hold below.
    pub configuration: Result<Configuration, String>,
    /// See there.
    pub settings: Sleep,
    /// Whom the agent tells.
    pub notification: Option<Notification>,
    /// Whether eBPF programs are to be used.
    pub probes: ProbeMode,
    /// What the agent says of itself.
    pub agent: Agent,
    /// What the kernel offers.
    pub sleep_states: SleepStates,
    /// Whether systemd tries no other sleep state after `mem`.
    pub only_mem: Result<(), String>,
    /// The network ports.
    pub ports: Ports,
    /// Contents of `rtc0/wakealarm`: empty, or the time that is set. `None`: no such file.
    pub wakealarm: Option<String>,
    /// logind's answer to `CanSuspend` (org.freedesktop.login1(5)), or why there is none.
    pub logind: Result<String, String>,
    /// The folders of hooks.
    pub hooks: Vec<HookFolder>,
    /// What eBPF programs need.
    pub kernel: Kernel,
    /// Where the agent keeps its state.
    pub state_folder: (PathBuf, StateFolder),
}

/// Where the policy is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// `None`: there is no file.
    pub path: Option<PathBuf>,
    /// Its form.
    pub format: Format,
    /// What an administrator should know.
    pub notes: Vec<String>,
}

/// What came over the control socket.
#[derive(Debug)]
pub enum Agent {
    /// Its state.
    Answers(Box<Status>),
    /// It answered something else, in words.
    Refuses(String),
    /// No answer.
    NotReached(CallError),
}

/// `/sys/power` (Documentation/admin-guide/pm/sleep-states.rst).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SleepStates {
    /// Contents of `state`, or why it cannot be read.
    pub states: Result<String, String>,
    /// Contents of `mem_sleep`: what `mem` stands for, the chosen one in brackets. `None`: no such file.
    pub mem_sleep: Option<String>,
}

/// The ports that could wake the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Interfaces that are configured; empty: all physical ones.
    pub wanted: Vec<String>,
    /// Those of them that do not exist.
    pub missing: Vec<String>,
    /// Names of the physical ports behind them, or why they are not known.
    pub names: Result<Vec<String>, String>,
    /// Whether network use counts as activity.
    pub counted: bool,
    /// As read, or why they could not be.
    pub read: Result<Vec<Port>, String>,
    /// Why a port could not be armed, by its name, if that was tried.
    pub refusals: BTreeMap<String, String>,
}

/// `pre-sleep.d` or `post-wake.d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFolder {
    /// Its path.
    pub path: PathBuf,
    /// Owner and mode; `None`: it does not exist.
    pub standing: Option<Standing>,
    /// What lies in it, in the order in which it runs; or why that is not known.
    pub hooks: Result<Vec<(String, Standing)>, String>,
}

/// Owner and mode of a file (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is a regular file.
    pub is_file: bool,
    /// Owner.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What eBPF programs need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Whether it has its type information.
    pub btf: bool,
    /// Where cgroup v2 is mounted, or why not.
    pub cgroup2: Result<PathBuf, String>,
}

/// Whether the agent can keep its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFolder {
    /// It can.
    Writable,
    /// The folder does not exist.
    Missing,
    /// Whoever asks may not write there.
    NotPermitted,
    /// Nobody can, in words.
    NotWritable(String),
}

/// Everything that was checked, in the order in which it matters to a reader. Pure.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let Facts {
        configuration,
        settings,
        notification,
        probes,
        agent,
        sleep_states,
        only_mem,
        ports,
        wakealarm,
        logind,
        hooks,
        kernel,
        state_folder: (folder, standing),
    } = facts;
    let mut findings = vec![host::configuration(configuration)];
    findings.extend(host::agent(agent));
    findings.push(host::sleep_states(sleep_states, settings.allow_s2idle));
    findings.extend(host::fallback(only_mem));
    findings.extend(ports::wake_on_lan(ports, settings));
    findings.push(host::rtc(wakealarm.as_deref(), settings.wake_after));
    findings.push(host::logind(logind));
    findings.extend(hooks.iter().flat_map(host::hooks));
    findings.push(host::notification(notification.as_ref()));
    findings.push(host::ebpf(kernel, *probes));
    findings.push(host::state_folder(folder, standing));
    findings.push(ports::woken_by(ports, settings, wakealarm.is_some()));
    findings
}

impl Check {
    /// As `serde` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Agent => "agent",
            Self::Signals => "signals",
            Self::SleepStates => "sleep_states",
            Self::WakeOnLan => "wake_on_lan",
            Self::Rtc => "rtc",
            Self::Logind => "logind",
            Self::Hooks => "hooks",
            Self::Notification => "notification",
            Self::Ebpf => "ebpf",
            Self::StateFolder => "state_folder",
            Self::WokenBy => "woken_by",
        }
    }
}

impl Verdict {
    /// As `serde` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

impl Finding {
    fn new(check: Check, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            check,
            verdict,
            what: what.into(),
            fix: None,
        }
    }

    fn ok(check: Check, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, what)
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..self
        }
    }
}
