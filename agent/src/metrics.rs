//! The agent's figures for Prometheus: [`render`] makes the text, [`server`] serves it, [`write_textfile`] leaves it for node_exporter.
//!
//! All of it comes from the document of `ctl status` and from counts the driver keeps: nothing is measured here, and no text is made that
//! nobody asked for. Every label has a bounded set of values: no pod, user or interface names. The text is OpenMetrics 1.0, and of it only
//! what the older format of node_exporter's textfile collector can read too (no `info`, no `stateset`).

pub mod server;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use atomic_write_file::{AtomicWriteFile, unix::OpenOptionsExt as _};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text::encode as encode_text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use crate::{
    energy::JOULES_PER_KWH,
    report::{Signal, SignalSource, StateName, Status},
    verdict::Reason,
};

/// What made a quiet host active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// Traffic above the threshold.
    Network,
    /// CPU use above the threshold.
    Cpu,
    /// A session or a login.
    Ssh,
    /// A pod, or one labelled prevent-sleep.
    Pods,
    /// A signal that cannot be read.
    Unreadable,
    /// The state cannot be saved.
    State,
}

/// How often each trigger made a quiet host active since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers(BTreeMap<Trigger, u64>);

/// Notices to people since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Delivered.
    pub sent: u64,
    /// Given up.
    pub failed: u64,
    /// Not sent, for the same was said just before.
    pub suppressed: u64,
    /// Not sent, for too many were waiting.
    pub dropped: u64,
}

impl Trigger {
    const ALL: [Self; 6] = [
        Self::Network,
        Self::Cpu,
        Self::Ssh,
        Self::Pods,
        Self::Unreadable,
        Self::State,
    ];

    /// The signal a reason speaks of.
    pub const fn of(reason: &Reason) -> Self {
        match reason {
            Reason::Network { .. } => Self::Network,
            Reason::Cpu { .. } => Self::Cpu,
            Reason::Ssh(_) => Self::Ssh,
            Reason::Pod(_) | Reason::MorePods(_) | Reason::PreventSleep(_) => Self::Pods,
            Reason::Unreadable { .. } => Self::Unreadable,
            Reason::StateUnsaved(_) => Self::State,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Cpu => "cpu",
            Self::Ssh => "ssh",
            Self::Pods => "pods",
            Self::Unreadable => "unreadable",
            Self::State => "state",
        }
    }
}

impl Triggers {
    /// Takes note of one transition from quiet, or from an announced sleep, to active: each of its triggers counts once.
    pub fn note(&mut self, causes: impl IntoIterator<Item = Trigger>) {
        let mut causes: Vec<_> = causes.into_iter().collect();
        causes.sort_unstable();
        causes.dedup();
        for cause in causes {
            let count = self.0.entry(cause).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// How often `trigger` was among the causes.
    pub fn count(&self, trigger: Trigger) -> u64 {
        self.0.get(&trigger).copied().unwrap_or(0)
    }
}

/// The text of all figures at the moment of `status`.
///
/// # Panics
/// Never: only the writer can fail, and a `String` does not.
pub fn render(status: Status, triggers: &Triggers, notices: Notices) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures {
        status,
        triggers: triggers.clone(),
        notices,
    }));
    let mut text = String::new();
    encode_text(&mut text, &registry).expect("a String takes everything");
    text
}

/// Replaces the file at `path` (0644) as a whole: temporary file, fsync, rename. node_exporter never sees half of it.
///
/// # Errors
/// What the file system says; the file is then the old one.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let mut file = AtomicWriteFile::options()
        .preserve_mode(false)
        .preserve_owner(false)
        .mode(0o644)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.commit()
}

/// What a text is made of.
#[derive(Debug)]
struct Figures {
    status: Status,
    triggers: Triggers,
    notices: Notices,
}

/// Name, without `_total`, and what it tells.
type Title = [&'static str; 2];

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(&mut encoder);
        self.sleeps(&mut page)?;
        self.activity(&mut page)?;
        self.agent(&mut page)
    }
}

impl Figures {
    fn sleeps(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let sleep = &self.status.sleep;
        page.counter(
            ["vmstation_sleep_events", "Sleeps the agent ordered that took place"],
            &sleep.sleeps,
        )?;
        page.counter(
            ["vmstation_wake_events", "Resumes from sleeps the agent ordered"],
            &sleep.wakes,
        )?;
        page.counters(
            [
                "vmstation_failed_attempts",
                "Attempts to sleep that did not lead to one",
            ],
            "kind",
            &[
                ("failed", sleep.failed),
                ("refused", sleep.refused),
                ("aborted", sleep.aborted),
            ],
        )?;
        page.counter(
            ["vmstation_external_suspends", "Suspends others ordered"],
            &sleep.external,
        )?;
        page.counter(
            ["vmstation_asleep_seconds", "Time in sleeps the agent ordered"],
            &sleep.asleep_s,
        )?;
        match sleep.saved_kwh {
            Some(kwh) => page.counter(
                ["vmstation_energy_saved_joules", "Energy not drawn in those sleeps"],
                &(kwh * JOULES_PER_KWH),
            ),
            None => Ok(()),
        }
    }

    fn activity(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let status = &self.status;
        let triggers = Trigger::ALL.map(|trigger| (trigger.name(), self.triggers.count(trigger)));
        page.counters(
            [
                "vmstation_activity_triggers",
                "Times a signal ended the quiet since the agent started",
            ],
            "signal",
            &triggers,
        )?;
        page.gauge(
            ["vmstation_idle_seconds", "Time since the last activity"],
            &status.idle_s,
        )?;
        let states = STATES.map(|(state, name)| ([("state", name)], u64::from(state == status.state)));
        page.gauges(["vmstation_state", "1 for the state of the idle machine"], &states)?;

        let mut blocked: BTreeMap<&str, u64> = BLOCKERS.map(|signal| (signal, 0)).into();
        for blocker in &status.blockers {
            *blocked.entry(&blocker.signal).or_default() += 1;
        }
        let blocked: Vec<_> = blocked
            .into_iter()
            .map(|(signal, count)| ([("signal", signal)], count))
            .collect();
        page.gauges(
            ["vmstation_blocked", "Things of each kind that keep the host awake"],
            &blocked,
        )?;

        let sources: Vec<_> = status.signals.iter().flat_map(sources).collect();
        page.gauges(
            ["vmstation_signal_source", "1 for the way each signal is read"],
            &sources,
        )?;
        let attached: Vec<_> = status
            .programs
            .iter()
            .map(|programs| ([("family", programs.signal.as_str())], u64::from(programs.attached)))
            .collect();
        page.gauges(
            [
                "vmstation_probe_attached",
                "Whether the eBPF programs of a signal are in the kernel",
            ],
            &attached,
        )
    }

    fn agent(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let status = &self.status;
        let Notices {
            sent,
            failed,
            suppressed,
            dropped,
        } = self.notices;
        page.counters(
            ["vmstation_notifications", "Notices to people since the agent started"],
            "outcome",
            &[
                ("sent", sent),
                ("failed", failed),
                ("suppressed", suppressed),
                ("dropped", dropped),
            ],
        )?;
        page.gauge(
            [
                "vmstation_sleep_enabled",
                "Whether configuration and operator let the host sleep at all",
            ],
            &u64::from(status.sleep_enabled),
        )?;
        page.gauge(
            ["vmstation_dry_run", "Whether the agent only says what it would do"],
            &u64::from(status.dry_run),
        )?;
        page.gauges(
            ["vmstation_build_info", "1; the label tells the version of the agent"],
            &[([("version", status.version.as_str())], 1)],
        )
    }
}

const STATES: [(StateName, &str); 7] = [
    (StateName::Active, "active"),
    (StateName::Quiet, "quiet"),
    (StateName::Grace, "grace"),
    (StateName::Preparing, "preparing"),
    (StateName::Confirming, "confirming"),
    (StateName::Suspending, "suspending"),
    (StateName::Waiting, "waiting"),
];

/// Kinds of blockers that are listed with 0 too; see [`crate::documents`].
const BLOCKERS: [&str; 13] = [
    "network",
    "cpu",
    "ssh",
    "pods",
    "prevent_sleep",
    "unreadable",
    "state",
    "configuration",
    "disabled",
    "failures",
    "wake_loop",
    "hold",
    "waiting",
];

/// Every way a signal can be read, 1 for the one it is.
fn sources(signal: &Signal) -> [([(&str, &str); 2], u64); 6] {
    [
        (SignalSource::Kernel, "kernel"),
        (SignalSource::Plain, "plain"),
        (SignalSource::Fallback, "fallback"),
        (SignalSource::Kubernetes, "kubernetes"),
        (SignalSource::Unreadable, "unreadable"),
        (SignalSource::NotConfigured, "not_configured"),
    ]
    .map(|(source, name)| {
        let labels = [("signal", signal.name.as_str()), ("source", name)];
        (labels, u64::from(source == signal.source))
    })
}

/// The text while it is written.
struct Page<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    fn counter(&mut self, [name, help]: Title, value: &impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter(value, None::<&Exemplar<NoLabelSet, f64>>)
    }

    fn counters(&mut self, [name, help]: Title, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (kind, value) in values {
            let labels = [(label, *kind)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter(value, None::<&Exemplar<NoLabelSet, f64>>)?;
        }
        Ok(())
    }

    fn gauge(&mut self, [name, help]: Title, value: &impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(value)
    }

    fn gauges<const N: usize>(&mut self, [name, help]: Title, values: &[([(&str, &str); N], u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            let mut metric = family.encode_family(labels)?;
            metric.encode_gauge(value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
