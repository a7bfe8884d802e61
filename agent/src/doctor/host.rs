//! Findings about the host and the agent on it, but for its network ports. Pure.

use std::{path::Path, time::Duration};

use humantime::format_duration;

use super::{Agent, Check, Configuration, Finding, HookFolder, Kernel, SleepStates, Standing, StateFolder, Verdict};
use crate::{
    config::{Notification, NotificationMethod, ProbeMode, url_host},
    control::CallError,
    report::{Signal, SignalSource, Status},
};

/// First kernel with tcx.
const TCX: (u32, u32) = (6, 6);

pub(super) fn configuration(found: &Result<Configuration, String>) -> Finding {
    match found {
        Ok(Configuration { path, format, notes }) => {
            let valid = path
                .iter()
                .map(|path| format!("{} ({format}) is valid", path.display()));
            let what: Vec<_> = valid.chain(notes.iter().cloned()).collect();
            Finding::ok(Check::Configuration, what.join("; "))
        }
        Err(why) => Finding::new(
            Check::Configuration,
            Verdict::Fail,
            format!("{why}; what follows goes by the defaults"),
        )
        .fix("correct the file; `vmstation-autosleep-ctl config check` lists what is wrong"),
    }
}

/// The agent, what it warns of, and its signals if it answers.
pub(super) fn agent(agent: &Agent) -> Vec<Finding> {
    match agent {
        Agent::Answers(status) => answered(status),
        Agent::Refuses(why) => vec![Finding::new(
            Check::Agent,
            Verdict::Fail,
            format!("it answers, but not what was asked: {why}"),
        )],
        Agent::NotReached(error) => {
            let (verdict, fix) = match error {
                CallError::NotPermitted { .. } => (Verdict::Unknown, "run it as root"),
                CallError::Unreachable { .. } => (Verdict::Fail, "`systemctl status vmstation-autosleep.service`"),
                CallError::TimedOut { .. } | CallError::BadAnswer { .. } => {
                    (Verdict::Fail, "`systemctl restart vmstation-autosleep.service`")
                }
            };
            vec![Finding::new(Check::Agent, verdict, error.to_string()).fix(fix)]
        }
    }
}

fn answered(status: &Status) -> Vec<Finding> {
    let who = format!("vmstation-autosleep {} (pid {}) answers", status.version, status.pid);
    let (suspended, disabled) = (!status.dry_run, !status.sleep_enabled);
    let mut findings = vec![match (suspended, disabled) {
        (true, false) => Finding::ok(Check::Agent, who),
        (false, _) => Finding::new(
            Check::Agent,
            Verdict::Warn,
            format!("{who}; it is in dry run and never suspends"),
        )
        .fix("start it without --dry-run"),
        (true, true) => Finding::new(Check::Agent, Verdict::Warn, format!("{who}; sleeping is disabled"))
            .fix("`vmstation-autosleep-ctl enable`, or `enabled = true` in the configuration"),
    }];
    let warnings = status.warnings.iter();
    findings.extend(warnings.map(|warning| Finding::new(Check::Agent, Verdict::Warn, warning)));
    let degraded: Vec<_> = status.signals.iter().filter_map(degraded).collect();
    let names: Vec<_> = status.signals.iter().map(|signal| signal.name.as_str()).collect();
    if degraded.is_empty() && !names.is_empty() {
        findings.push(Finding::ok(
            Check::Signals,
            format!("{}: as they should be", names.join(", ")),
        ));
    }
    findings.extend(degraded);
    findings
}

fn degraded(signal: &Signal) -> Option<Finding> {
    let why = signal.detail.as_deref().unwrap_or("no reason told");
    match signal.source {
        SignalSource::Kernel | SignalSource::Plain | SignalSource::Kubernetes | SignalSource::NotConfigured => None,
        SignalSource::Fallback => Some(
            Finding::new(
                Check::Signals,
                Verdict::Warn,
                format!("{} is degraded to /proc and /sys: {why}", signal.name),
            )
            .fix("see ebpf below; `vmstation-autosleep-ctl status` shows the signals"),
        ),
        SignalSource::Unreadable => Some(Finding::new(
            Check::Signals,
            Verdict::Fail,
            format!(
                "{} cannot be read and counts as busy, so the host does not sleep: {why}",
                signal.name
            ),
        )),
    }
}

/// Fault S8.
pub(super) fn sleep_states(found: &SleepStates, allow_s2idle: bool) -> Finding {
    const WHICH: Check = Check::SleepStates;
    let states = match &found.states {
        Ok(states) => states,
        Err(why) => {
            return Finding::new(WHICH, Verdict::Fail, format!("the kernel cannot suspend: {why}"))
                .fix("a kernel with CONFIG_SUSPEND is needed, on a machine that has sleep states");
        }
    };
    let offers = |list: &str, word: &str| list.split_whitespace().any(|one| one.trim_matches(['[', ']']) == word);
    let modes = found.mem_sleep.as_deref().unwrap_or_default();
    let has_deep = offers(states, "mem") && offers(modes, "deep");
    let has_s2idle = offers(states, "freeze") || offers(modes, "s2idle");
    match (has_deep, has_s2idle) {
        (true, _) if modes.contains("[deep]") => Finding::ok(WHICH, "suspend to RAM (deep) is there"),
        (true, _) if allow_s2idle => Finding::ok(WHICH, format!("mem stands for {modes}")),
        (true, _) => Finding::new(
            WHICH,
            Verdict::Warn,
            format!("suspend to RAM (deep) is there, but mem stands for {modes}"),
        )
        .fix("`echo deep > /sys/power/mem_sleep`; for good, `mem_sleep_default=deep` on the kernel's command line"),
        (false, true) if allow_s2idle => Finding::ok(WHICH, "only suspend to idle (s2idle), which is allowed"),
        (false, true) => Finding::new(
            WHICH,
            Verdict::Fail,
            "only suspend to idle (s2idle): it saves little, so the host does not sleep",
        )
        .fix("look for S3 in the firmware setup, or set `allow_s2idle = true` in `[sleep]`"),
        (false, false) => Finding::new(
            WHICH,
            Verdict::Fail,
            format!("no usable sleep state: /sys/power/state offers {states:?}"),
        )
        .fix("look for S3 in the firmware setup; many virtual machines have none"),
    }
}

/// Fault S1: nothing when all is well.
pub(super) fn fallback(only_mem: &Result<(), String>) -> Option<Finding> {
    let why = only_mem.as_ref().err()?;
    Some(Finding::new(Check::SleepStates, Verdict::Warn, why).fix("start the agent by its unit, or write that file"))
}

/// Fault S11.
pub(super) fn rtc(wakealarm: Option<&str>, wake_after: Option<Duration>) -> Finding {
    let after = wake_after.map(|after| format_duration(after).to_string());
    match (wakealarm, after) {
        (Some(""), Some(after)) => Finding::ok(
            Check::Rtc,
            format!("an alarm of the clock wakes the host after {after}"),
        ),
        (Some(set), Some(after)) => Finding::ok(
            Check::Rtc,
            format!(
                "an alarm wakes the host after {after}; one is set already (Unix time {set}), and is kept if it is earlier"
            ),
        ),
        (Some(_), None) => Finding::ok(
            Check::Rtc,
            "the clock has an alarm; `wake_after` of `[sleep]` is not set, so it is not used",
        ),
        (None, Some(after)) => Finding::new(
            Check::Rtc,
            Verdict::Fail,
            format!("`wake_after` is {after}, but the clock has no alarm (/sys/class/rtc/rtc0/wakealarm is missing)"),
        )
        .fix("load the driver of the clock (`modprobe rtc-cmos`), or remove `wake_after` from `[sleep]`"),
        (None, None) => Finding::ok(Check::Rtc, "the clock has no alarm, and none is configured"),
    }
}

/// Fault S7. The answers are those of `CanSuspend` in org.freedesktop.login1(5).
pub(super) fn logind(answer: &Result<String, String>) -> Finding {
    const WHICH: Check = Check::Logind;
    match answer.as_ref().map(String::as_str) {
        Ok("yes") => Finding::ok(WHICH, "it answers, and would suspend this host"),
        Ok("na") => Finding::new(WHICH, Verdict::Fail, "it answers that this host cannot suspend")
            .fix("see sleep_states; also AllowSuspend= in systemd-sleep.conf(5)"),
        Ok(other) => Finding::new(
            WHICH,
            Verdict::Warn,
            format!("it answers {other:?} to whether this user may suspend the host"),
        )
        .fix("run it as root, as which the agent runs"),
        Err(why) => Finding::new(
            WHICH,
            Verdict::Fail,
            format!("no answer on the system bus, so the host does not sleep: {why}"),
        )
        .fix("`systemctl status dbus.service systemd-logind.service`"),
    }
}

/// Fault H4: a finding a hook, or one for a folder without.
pub(super) fn hooks(folder: &HookFolder) -> Vec<Finding> {
    let path = folder.path.display();
    let failed = |what: String| Finding::new(Check::Hooks, Verdict::Fail, what);
    let Some(standing) = folder.standing else {
        return vec![Finding::ok(Check::Hooks, format!("none: {path} does not exist"))];
    };
    let mut findings = Vec::new();
    if let Some((why, fix)) = open_to_others(standing) {
        findings.push(failed(format!("{path} {why}: no hook in it can be trusted")).fix(format!("`{fix} {path}`")));
    }
    match &folder.hooks {
        Err(why) => findings.push(Finding::new(Check::Hooks, Verdict::Unknown, why)),
        Ok(hooks) if hooks.is_empty() => findings.push(Finding::ok(Check::Hooks, format!("none in {path}"))),
        Ok(hooks) => findings.extend(hooks.iter().map(|(name, standing)| {
            let hook = folder.path.join(name);
            let hook = hook.display();
            match open_to_others(*standing) {
                _ if !standing.is_file => Finding::new(
                    Check::Hooks,
                    Verdict::Warn,
                    format!("{hook} is no file and is left out"),
                )
                .fix(format!("`rm {hook}`, or put a program there")),
                Some((why, fix)) => failed(format!("{hook} {why}: it is refused")).fix(format!("`{fix} {hook}`")),
                None if standing.mode & 0o111 == 0 => Finding::new(
                    Check::Hooks,
                    Verdict::Warn,
                    format!("{hook} is not executable and is left out"),
                )
                .fix(format!("`chmod +x {hook}`")),
                None => Finding::ok(Check::Hooks, format!("{hook} runs")),
            }
        })),
    }
    findings
}

/// Whether others than root can change it, with the command that ends that.
fn open_to_others(standing: Standing) -> Option<(String, &'static str)> {
    let Standing { uid, mode, .. } = standing;
    if uid != 0 {
        Some((format!("belongs to uid {uid}, not to root"), "chown root:root"))
    } else if mode & 0o022 != 0 {
        let mode = mode & 0o7777;
        Some((
            format!("is writable by others than its owner (mode {mode:04o})"),
            "chmod go-w",
        ))
    } else {
        None
    }
}

pub(super) fn notification(notification: Option<&Notification>) -> Finding {
    const WHICH: Check = Check::Notification;
    let Some(Notification { before, method }) = notification else {
        return Finding::ok(WHICH, "nobody is told; `[notification]` is off");
    };
    let before = format_duration(*before);
    match method {
        NotificationMethod::Log => Finding::ok(WHICH, format!("the log is told {before} before a sleep")),
        NotificationMethod::Webhook { url } | NotificationMethod::Slack { url, .. } => {
            let who = url_host(url);
            let what = format!("{who} is told {before} before a sleep");
            if url
                .get(..8)
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
            {
                Finding::ok(WHICH, what)
            } else {
                Finding::new(WHICH, Verdict::Warn, format!("{what}, unencrypted")).fix("use an https URL")
            }
        }
    }
}

/// Fault E1.
pub(super) fn ebpf(kernel: &Kernel, probes: ProbeMode) -> Finding {
    const WHICH: Check = Check::Ebpf;
    let Kernel { release, btf, cgroup2 } = kernel;
    if probes == ProbeMode::Off {
        return Finding::ok(WHICH, "switched off by `probes = off`: /proc and /sys only");
    }
    let attach = match version(release) {
        Some(version) if version >= TCX => "tcx",
        Some(_) | None => "clsact (tcx needs Linux 6.6)",
    };
    let mut lacks = Vec::new();
    let mut fixes = Vec::new();
    if !btf {
        lacks.push("no type information (/sys/kernel/btf/vmlinux), so sessions and CPU are read from /proc".to_owned());
        fixes.push("use a kernel with CONFIG_DEBUG_INFO_BTF");
    }
    if let Err(why) = cgroup2 {
        lacks.push(format!("pods and owners are not told apart: {why}"));
        fixes.push("mount cgroup v2");
    }
    if lacks.is_empty() {
        let what = format!("kernel {release} has type information and cgroup v2; network programs go by {attach}");
        Finding::ok(WHICH, what)
    } else {
        Finding::new(WHICH, Verdict::Warn, format!("kernel {release}: {}", lacks.join("; "))).fix(fixes.join("; "))
    }
}

/// Major and minor of `6.18.44-arch1`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Fault F3.
pub(super) fn state_folder(folder: &Path, standing: &StateFolder) -> Finding {
    const WHICH: Check = Check::StateFolder;
    let path = folder.display();
    match standing {
        StateFolder::Writable => Finding::ok(WHICH, format!("{path} is writable")),
        StateFolder::Missing => Finding::new(
            WHICH,
            Verdict::Warn,
            format!("{path} does not exist; the agent makes it at its start"),
        )
        .fix("start the agent"),
        StateFolder::NotPermitted => {
            Finding::new(WHICH, Verdict::Unknown, format!("this user may not write to {path}")).fix("run it as root")
        }
        StateFolder::NotWritable(why) => Finding::new(
            WHICH,
            Verdict::Fail,
            format!("{path} cannot be written, so the host stays awake: {why}"),
        )
        .fix("free space, or mount it writable"),
    }
}
