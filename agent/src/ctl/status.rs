//! `status` for people. Pure: a document in, lines out.

use super::{
    paint::{Paint, Tone},
    quantity::{bytes, counted, duration, rate},
};
use crate::{
    printable::printable,
    report::{
        AttemptOutcome, Blocker, ClassRates, InterfaceRates, LastAttempt, Programs, Signal, SignalSource, SleepReport,
        StateName, Status,
    },
};

/// Width of the column of labels.
const LABEL: usize = 12;
/// Cells of the CPU bar.
const BAR: u8 = 20;

/// The whole view, a line an element.
pub(super) fn view(status: &Status, paint: Paint) -> Vec<String> {
    let mut lines = vec![title(status, paint), String::new()];
    lines.extend(labelled("state", [headline(status, paint)]));
    lines.extend(labelled("sleeping", [sleeping(status)]));
    lines.extend(labelled("slept", slept(&status.sleep)));
    lines.extend(labelled("idle", [idle(status)]));
    lines.extend(labelled("cpu", cpu(status)));
    lines.extend(labelled("network", network(status)));
    lines.extend(labelled("ssh", ssh(status)));
    lines.extend(labelled("signals", status.signals.iter().map(signal)));
    lines.extend(labelled("programs", status.programs.iter().map(programs)));
    lines.extend(labelled("last check", [last_check(status)]));
    if !status.blockers.is_empty() {
        let awake = status
            .blockers
            .iter()
            .map(|blocker| paint.tone(Tone::Attention, blocked_by(blocker)));
        lines.extend(labelled("kept awake", awake));
    }
    let warnings = status
        .warnings
        .iter()
        .map(|warning| paint.tone(Tone::Attention, printable(warning)));
    lines.extend(labelled("warnings", warnings));
    lines
}

/// Who is speaking.
pub(super) fn title(status: &Status, paint: Paint) -> String {
    let dry_run = if status.dry_run {
        ", dry run: never suspends"
    } else {
        ""
    };
    format!(
        "{}  vmstation-autosleep {} (pid {}{dry_run})",
        paint.tone(Tone::Strong, printable(&status.node)),
        printable(&status.version),
        status.pid
    )
}

/// The verdict in one line: state, since when, and when the host sleeps or what keeps it from that.
pub(super) fn headline(status: &Status, paint: Paint) -> String {
    let tone = if status.blockers.is_empty() {
        Tone::Good
    } else {
        Tone::Attention
    };
    let state = paint.tone(tone, state_name(status.state));
    let since = duration(status.state_for_s);
    match status.sleeps_in_s {
        Some(left) => format!("{state} for {since}, sleeps in {} if it stays quiet", duration(left)),
        None if status.blockers.is_empty() => format!("{state} for {since}"),
        None => format!("{state} for {since}, kept awake by {}", blocking_signals(status)),
    }
}

/// The signals that keep the host awake, each once.
pub(super) fn blocking_signals(status: &Status) -> String {
    let mut names: Vec<_> = status
        .blockers
        .iter()
        .map(|blocker| printable(&blocker.signal))
        .collect();
    names.dedup();
    names.join(", ")
}

/// Name of a state for people.
pub(super) const fn state_name(state: StateName) -> &'static str {
    match state {
        StateName::Active => "active",
        StateName::Quiet => "quiet",
        StateName::Grace => "grace period",
        StateName::Preparing => "preparing to sleep",
        StateName::Confirming => "confirming",
        StateName::Suspending => "suspending",
        StateName::Waiting => "waiting",
    }
}

fn sleeping(status: &Status) -> String {
    let allowed = match (status.sleep_enabled, status.disabled_by_operator) {
        (true, _) => "enabled",
        (false, true) => "disabled by an operator (`vmstation-autosleep-ctl enable` ends that)",
        (false, false) => "disabled",
    };
    let hold = status.hold.as_ref().map_or(String::new(), |hold| {
        let reason = hold
            .reason
            .as_ref()
            .map_or(String::new(), |reason| format!(": {}", printable(reason)));
        format!(
            "; held awake for {} by {}{reason}",
            duration(hold.remaining_s),
            printable(&hold.by)
        )
    });
    let suspends = match (status.suspends, status.dry_run) {
        (0, _) => String::new(),
        (count, true) => format!("; would have suspended {}", counted(count, "time")),
        (count, false) => format!("; suspended {}", counted(count, "time")),
    };
    format!("{allowed}{hold}{suspends}")
}

/// How often and for how long, what else came of attempts, and the last one.
fn slept(sleep: &SleepReport) -> Vec<String> {
    let source = printable(&sleep.energy_source);
    let saved = match sleep.saved_kwh {
        _ if sleep.sleeps == 0 => String::new(),
        Some(kwh) => format!("; saved about {kwh:.1} kWh ({source})"),
        None => format!("; energy {source}"),
    };
    let whole = match sleep.sleeps {
        0 => "never so far".to_owned(),
        sleeps => format!(
            "{}, {} in all, woken {}{saved}",
            counted(sleeps, "time"),
            duration(sleep.asleep_s),
            counted(sleep.wakes, "time")
        ),
    };
    let others: Vec<_> = [
        (sleep.failed, "failed"),
        (sleep.refused, "refused"),
        (sleep.aborted, "aborted"),
        (sleep.external, "by others"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, kind)| format!("{count} {kind}"))
    .collect();
    let others = (!others.is_empty()).then(|| format!("besides: {}", others.join(", ")));
    [whole]
        .into_iter()
        .chain(others)
        .chain(sleep.last.as_ref().map(last_attempt))
        .collect()
}

fn last_attempt(last: &LastAttempt) -> String {
    let outcome = match last.outcome {
        AttemptOutcome::Slept => "slept",
        AttemptOutcome::Refused => "refused",
        AttemptOutcome::Failed => "failed",
        AttemptOutcome::Aborted => "aborted",
        AttemptOutcome::Interrupted => "interrupted",
        AttemptOutcome::External => "slept by others' order",
    };
    let length = last.asleep_s.map(|length| format!(" for {}", duration(length)));
    let source = last
        .wake_source
        .as_ref()
        .map(|source| format!(", woken by {}", printable(source)));
    let added = last.added_ms.map(|added| format!(", {added:.0} ms of it ours"));
    let reason = (!last.reason.is_empty()).then(|| format!(": {}", printable(&last.reason)));
    let details: String = [length, source, added, reason].into_iter().flatten().collect();
    format!("last, {} ago: {outcome}{details}", duration(last.ago_s))
}

/// How far the idle time has come.
pub(super) fn idle(status: &Status) -> String {
    format!(
        "{} of {}, then {} grace period",
        duration(status.idle_s),
        duration(status.inactivity_timeout_s),
        duration(status.grace_period_s)
    )
}

/// The bar over all CPUs, and each of them.
pub(super) fn cpu(status: &Status) -> Vec<String> {
    let rates = &status.rates;
    let Some(percent) = rates.cpu_percent else {
        return vec!["not known".into()];
    };
    let switches = rates
        .switches_per_s
        .map_or(String::new(), |switches| format!("  {switches:.0} switches/s"));
    let mut lines = vec![format!("{} {percent:5.1} %{switches}", bar(percent))];
    let each: Vec<_> = rates
        .cpus_percent
        .iter()
        .map(|(cpu, percent)| format!("cpu{cpu} {percent:.0} %"))
        .collect();
    if each.len() > 1 {
        lines.extend(each.chunks(8).map(|some| some.join("  ")));
    }
    lines
}

fn bar(percent: f64) -> String {
    let filled = (1..=BAR)
        .filter(|cell| percent * f64::from(BAR) >= 100.0 * (f64::from(*cell) - 0.5))
        .count();
    format!("[{}{}]", "#".repeat(filled), ".".repeat(usize::from(BAR) - filled))
}

/// A line an interface, and another with the rates by class where there is any traffic.
pub(super) fn network(status: &Status) -> Vec<String> {
    let interfaces = &status.rates.interfaces;
    if interfaces.is_empty() {
        return vec!["no interface counted".into()];
    }
    let width = interfaces.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    let lines = |(name, rates): (&String, &InterfaceRates)| {
        let whole = format!(
            "{:width$}  in {:>10}  out {:>10}  (total in {}, out {})",
            printable(name),
            rate(rates.rx_bytes_per_s),
            rate(rates.tx_bytes_per_s),
            bytes(approximate(rates.rx_bytes)),
            bytes(approximate(rates.tx_bytes))
        );
        let is_any = rates.rx_packets > 0 || rates.tx_packets > 0;
        let by_class = is_any.then(|| format!("{:width$}  {}", "", classes(rates)));
        std::iter::once(whole).chain(by_class)
    };
    interfaces.iter().flat_map(lines).collect()
}

/// Both directions, and when somebody last used the host over this interface.
fn classes(rates: &InterfaceRates) -> String {
    let both = |class: &ClassRates| rate(class.rx_bytes_per_s + class.tx_bytes_per_s);
    let last = rates
        .last_user_s
        .map_or(String::new(), |ago| format!(", last {} ago", duration(ago)));
    format!(
        "user {}{last}; background {}; multicast {}",
        both(&rates.user),
        both(&rates.background),
        both(&rates.multicast)
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
const fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

/// How many sessions, and a line each.
pub(super) fn ssh(status: &Status) -> Vec<String> {
    let sessions = &status.rates.ssh_sessions;
    let logins = status
        .rates
        .ssh_logins
        .map_or(String::new(), |logins| format!(", {} seen", counted(logins, "login")));
    let open = counted(sessions.len().try_into().unwrap_or(u64::MAX), "session");
    let each = sessions.iter().map(|session| {
        let user = session.user.as_deref().unwrap_or("somebody");
        let counts = if session.counts { "" } else { ", no longer counts" };
        format!(
            "{} from {}, idle {}{counts}",
            printable(user),
            printable(&session.peer),
            duration(session.idle_s)
        )
    });
    std::iter::once(format!("{open} open{logins}")).chain(each).collect()
}

fn signal(signal: &Signal) -> String {
    let source = match signal.source {
        SignalSource::Kernel => "eBPF",
        SignalSource::Plain => "plain counters",
        SignalSource::Fallback => "fallback",
        SignalSource::Kubernetes => "Kubernetes API",
        SignalSource::Unreadable => "unreadable, so taken as busy",
        SignalSource::NotConfigured => "not configured",
    };
    let detail = match (&signal.detail, signal.source) {
        (Some(detail), SignalSource::Kernel | SignalSource::Fallback | SignalSource::Unreadable) => {
            format!(": {}", printable(detail))
        }
        (Some(_), SignalSource::Plain | SignalSource::Kubernetes | SignalSource::NotConfigured) | (None, _) => {
            String::new()
        }
    };
    format!("{:8} {source}{detail}", printable(&signal.name))
}

/// Whether programs are attached, since when and why, and what they have cost.
fn programs(programs: &Programs) -> String {
    let standing = match (programs.attached, programs.for_s) {
        (true, Some(length)) => format!("attached for {}", duration(length)),
        (false, Some(length)) => format!("not attached for {}", duration(length)),
        (_, None) => "cannot run".into(),
    };
    let cost = programs
        .runs
        .zip(programs.run_time_s)
        .map_or(String::new(), |(runs, time)| {
            format!("; ran {runs} times, {:.3} ms in all", time * 1000.0)
        });
    format!(
        "{:8} {standing}: {}{cost}",
        printable(&programs.signal),
        printable(&programs.why)
    )
}

fn last_check(status: &Status) -> String {
    match status.last_check_s {
        Some(ago) => format!("{} ago", duration(ago)),
        None => "none yet".into(),
    }
}

/// A blocker in one line.
pub(super) fn blocked_by(blocker: &Blocker) -> String {
    format!(
        "{}: {} (for {})",
        printable(&blocker.signal),
        printable(&blocker.what),
        duration(blocker.for_s)
    )
}

/// The label in front of the first line, the others below it; nothing without lines.
pub(super) fn labelled(label: &str, lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let labels = std::iter::once(label).chain(std::iter::repeat(""));
    labels
        .zip(lines)
        .map(|(label, line)| format!("{label:LABEL$}{line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{bar, slept, view};
    use crate::{
        ctl::{paint::Paint, sample},
        report::{AttemptOutcome, LastAttempt, SleepReport},
    };

    #[test]
    fn says_all_of_it_aligned() {
        let expected = "\
worker-01  vmstation-autosleep 0.1.0 (pid 812, dry run: never suspends)

state       quiet for 12 min 5 s, sleeps in 1 h 57 min if it stays quiet
sleeping    enabled; held awake for 59 min by root (pid 900): backup; would have suspended 2 times
slept       12 times, 3 d 11 h in all, woken 12 times; saved about 5.2 kWh (configured watts)
            besides: 1 failed, 4 refused, 2 aborted, 3 by others
            last, 2 h ago: slept for 8 h, woken by eth0, 123 ms of it ours
idle        12 min 5 s of 2 h, then 10 min grace period
cpu         [#...................]   3.2 %  1234 switches/s
            cpu0 5 %  cpu1 1 %
network     eth0   in   1.2 kB/s  out    300 B/s  (total in 4.5 MB, out 120 B)
                   user 300 B/s, last 1 min 5 s ago; background 1.2 kB/s; multicast 34 B/s
            wlan0  in      0 B/s  out      0 B/s  (total in 0 B, out 0 B)
ssh         2 sessions open, 5 logins seen
            alice from 10.0.0.1:4242, idle 3 min
            somebody from 10.0.0.2:4243, idle 2 d, no longer counts
signals     network  eBPF
            ssh      fallback: no BTF
            pods     not configured
programs    network  attached for 12 min 5 s: the host is quiet; ran 2000 times, 1.250 ms in all
            cpu      not attached for 3 s: the host is busy
            ssh      cannot run: no BTF
last check  3 s ago
kept awake  ssh: session of alice (for 9 min)
warnings    power.log cannot be written";
        assert_eq!(view(&sample::status(), Paint::Plain).join("\n"), expected);
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        let mut status = sample::status();
        status.node = "\x1b[2Jnode".into();
        status.blockers[0].what = "a\nb\x07".into();
        status.warnings = vec!["\x1b]0;title\x07".into()];
        status.rates.ssh_sessions[0].user = Some("\x1b[31m".into());
        let shown = view(&status, Paint::Plain);
        assert!(shown.iter().all(|line| !line.contains(char::is_control)), "{shown:?}");
        let coloured = view(&sample::status(), Paint::Coloured);
        assert!(coloured.iter().any(|line| line.contains("\x1b[33m")));
    }

    #[test]
    fn energy_that_is_not_known_is_not_called_zero() {
        let mut sleep = SleepReport::default();
        assert_eq!(slept(&sleep), ["never so far"]);
        sleep.sleeps = 1;
        sleep.wakes = 1;
        sleep.asleep_s = 60.0;
        sleep.energy_source = "unknown: no figure".into();
        sleep.last = Some(LastAttempt {
            outcome: AttemptOutcome::Refused,
            reason: "a package upgrade runs\x07".into(),
            wake_source: None,
            asleep_s: None,
            added_ms: None,
            ago_s: 5.0,
        });
        let said = slept(&sleep);
        assert_eq!(said[0], "1 time, 1 min in all, woken 1 time; energy unknown: no figure");
        assert!(
            said[1].starts_with("last, 5 s ago: refused: a package upgrade runs"),
            "{said:?}"
        );
        assert!(!said[1].contains('\x07'));
    }

    #[test]
    fn the_bar_is_full_at_100_and_empty_at_0() {
        assert_eq!(bar(0.0), "[....................]");
        assert_eq!(bar(50.0), "[##########..........]");
        assert_eq!(bar(100.0), "[####################]");
        assert_eq!(bar(250.0), "[####################]");
        assert_eq!(bar(f64::NAN), "[....................]");
    }
}
