//! Findings about who can wake this host (faults S10, S11, E6, E7). Pure.

use std::fmt::Write as _;

use humantime::format_duration;

use super::{Check, Finding, Ports, Verdict};
use crate::{
    config::Sleep,
    wol::{MacSource, Objection, Port},
};

const WHICH: Check = Check::WakeOnLan;

/// A finding for each port, and for each interface that has none.
pub(super) fn wake_on_lan(ports: &Ports, settings: &Sleep) -> Vec<Finding> {
    let missing = ports.missing.iter().map(|name| {
        Finding::new(WHICH, Verdict::Warn, format!("{name} is configured and does not exist"))
            .fix("correct `network_interfaces`, or plug it in")
    });
    let mut findings: Vec<_> = missing.collect();
    let names = match &ports.names {
        Ok(names) => names,
        Err(why) => {
            findings.push(Finding::new(WHICH, Verdict::Unknown, why));
            return findings;
        }
    };
    if names.is_empty() {
        findings.push(no_port(ports, settings));
        return findings;
    }
    match &ports.read {
        Ok(read) => findings.extend(read.iter().map(|port| one(port, ports, settings))),
        Err(why) => {
            let what = format!("not known of {}: {why}", names.join(", "));
            findings.push(Finding::new(WHICH, Verdict::Unknown, what).fix("`sudo vmstation-autosleep-ctl doctor`"));
        }
    }
    findings
}

/// Fault E7.
fn no_port(ports: &Ports, settings: &Sleep) -> Finding {
    if !ports.wanted.is_empty() {
        let what = format!(
            "no physical port lies behind {}: no packet can wake this host",
            ports.wanted.join(", ")
        );
        return Finding::new(WHICH, bad(ports, settings), what)
            .fix("name a physical interface, or what lies on one, in `network_interfaces`");
    }
    let what = if ports.counted {
        "this host has no physical network interface: its network use cannot be known, so it counts as active and never sleeps"
    } else {
        "this host has no physical network interface: no packet can wake it"
    };
    Finding::new(WHICH, Verdict::Fail, what)
        .fix("look for a missing driver with `ip link` and `lspci`; in a virtual machine name the interfaces in `network_interfaces`")
}

fn one(port: &Port, ports: &Ports, settings: &Sleep) -> Finding {
    let title = title(port);
    if let Some(refusal) = ports.refusals.get(&port.interface) {
        let what = format!("{title}: could not be armed, so it does not wake the host: {refusal}");
        return Finding::new(WHICH, bad(ports, settings), what);
    }
    let objections = port.objections();
    if objections.is_empty() {
        return Finding::ok(WHICH, format!("{title} armed: flag g, device wakeup enabled, carrier"));
    }
    let causes = joined(objections.iter().map(Objection::cause), ", ");
    if settings.arm_wol && port.would_wake_if_armed() {
        let what = format!("{title} is not armed: {causes}; the agent arms it before each sleep");
        return Finding::new(WHICH, Verdict::Warn, what)
            .fix("to see whether its driver takes it: `sudo vmstation-autosleep-ctl doctor --arm`");
    }
    Finding::new(
        WHICH,
        bad(ports, settings),
        format!("{title} will not wake this host: {causes}"),
    )
    .fix(fixes(&objections))
}

/// What helps against all of them; one that another contains is not repeated.
fn fixes(objections: &[Objection]) -> String {
    let fixes: Vec<_> = objections.iter().map(Objection::fix).collect();
    let is_contained = |fix: &&String| fixes.iter().any(|other| other != *fix && other.contains(fix.as_str()));
    joined(fixes.iter().filter(|fix| !is_contained(fix)).cloned(), "; ")
}

/// All in all. Whether the host sleeps goes by its ports alone: an alarm brings it back, but not when somebody wants it.
pub(super) fn woken_by(ports: &Ports, settings: &Sleep, has_alarm: bool) -> Finding {
    let alarm = settings.wake_after.filter(|_| has_alarm);
    let alarm = alarm.map(|after| format!("an RTC alarm after {}", format_duration(after)));
    let unknown =
        ports.names.is_err() || (ports.read.is_err() && ports.names.as_ref().is_ok_and(|names| !names.is_empty()));
    if unknown {
        let mut what = "not known whether a network port can wake this host".to_owned();
        if let Some(alarm) = alarm {
            let _infallible = write!(what, "; {alarm} can");
        }
        return Finding::new(Check::WokenBy, Verdict::Unknown, what);
    }
    let mut by: Vec<_> = usable(ports, settings).map(|port| port.interface.clone()).collect();
    by.extend(alarm);
    let somebody = !by.is_empty();
    let what = if by.is_empty() {
        "nobody can wake this host".into()
    } else {
        format!("this host can be woken by: {}", by.join(", "))
    };
    match (somebody, settings.allow_unwakeable) {
        (true, _) => Finding::ok(Check::WokenBy, what),
        (false, true) => Finding::new(
            Check::WokenBy,
            Verdict::Warn,
            format!("{what}; it sleeps all the same, since `[sleep] allow_unwakeable` is set"),
        ),
        (false, false) => Finding::new(
            Check::WokenBy,
            Verdict::Fail,
            format!("{what}, so it will not sleep"),
        )
        .fix("make a network port able to wake it (see wake_on_lan), or set `wake_after` or `allow_unwakeable = true` in `[sleep]`"),
    }
}

/// Ports that wake the host when it sleeps.
fn usable<'a>(ports: &'a Ports, settings: &Sleep) -> impl Iterator<Item = &'a Port> {
    let arm_wol = settings.arm_wol;
    ports.read.iter().flatten().filter(move |port| {
        port.wakes() || (arm_wol && port.would_wake_if_armed() && !ports.refusals.contains_key(&port.interface))
    })
}

/// How bad a port is that does not wake the host: another one may, or nobody needs to.
fn bad(ports: &Ports, settings: &Sleep) -> Verdict {
    if settings.allow_unwakeable || usable(ports, settings).next().is_some() {
        Verdict::Warn
    } else {
        Verdict::Fail
    }
}

fn title(port: &Port) -> String {
    let mut title = format!("{} ({}", port.interface, port.mac);
    if port.mac_source == MacSource::InUse {
        title.push_str(", the address in use: its driver tells no permanent one");
    }
    if let Some(behind) = &port.behind {
        let _infallible = write!(title, ", behind {behind}");
    }
    title.push(')');
    title
}

fn joined(words: impl Iterator<Item = String>, between: &str) -> String {
    words.collect::<Vec<_>>().join(between)
}
