//! A figure, how it is written, and how it stands to its goal.

use serde::{Deserialize, Serialize};

use crate::measure::Estimate;

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) section: String,
    pub(crate) what: String,
    /// `None`: it was not measured, [`Self::note`] says why.
    pub(crate) value: Option<f64>,
    pub(crate) unit: String,
    /// 95 %.
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) goal: Option<Goal>,
    pub(crate) note: String,
    /// Whether the plot shows it.
    pub(crate) plotted: bool,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// Not more than this.
    AtMost(f64),
    /// The interval has 0 in it, or lies below.
    NoCost,
}

impl Figure {
    pub(crate) fn new(section: &str, what: &str, unit: &str, estimate: Estimate) -> Self {
        Self {
            interval: Some((estimate.low, estimate.high)),
            ..Self::single(section, what, unit, estimate.value)
        }
    }

    /// Of one observation.
    pub(crate) fn single(section: &str, what: &str, unit: &str, value: f64) -> Self {
        Self {
            section: section.into(),
            what: what.into(),
            value: Some(value),
            unit: unit.into(),
            interval: None,
            goal: None,
            note: String::new(),
            plotted: false,
        }
    }

    /// One that could not be measured.
    pub(crate) fn missing(section: &str, what: &str, why: &anyhow::Error) -> Self {
        Self {
            value: None,
            note: format!("not measured: {why:#}"),
            ..Self::single(section, what, "", 0.0)
        }
    }

    pub(crate) fn with_goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    pub(crate) fn with_note(mut self, note: &str) -> Self {
        self.note = note.into();
        self
    }

    pub(crate) fn plotted(mut self) -> Self {
        self.plotted = true;
        self
    }

    /// The value, rounded.
    pub(crate) fn digits(&self) -> String {
        self.value.map_or_else(|| "-".into(), digits)
    }

    /// A line of a Markdown table: figure, value, interval, goal, note.
    pub(crate) fn row(&self) -> String {
        let Self { what, unit, note, .. } = self;
        let value = self
            .value
            .map_or_else(|| "-".into(), |value| format!("{} {unit}", digits(value)));
        let interval = self.interval.map_or_else(String::new, |(low, high)| {
            format!("{} to {}", digits(low), digits(high))
        });
        let goal = match (self.goal, self.value) {
            (None, _) => String::new(),
            (Some(goal), None) => goal.words(),
            (Some(goal), Some(value)) => format!("{}: {}", goal.words(), goal.verdict(value, self.interval)),
        };
        format!("| {what} | {} | {interval} | {goal} | {note} |", value.trim())
    }
}

impl Goal {
    fn words(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::NoCost => "interval not above 0".into(),
        }
    }

    /// Only what the whole interval says counts.
    fn verdict(self, value: f64, interval: Option<(f64, f64)>) -> &'static str {
        let (low, high) = interval.unwrap_or((value, value));
        match self {
            Self::AtMost(limit) if high <= limit => "met",
            Self::AtMost(limit) if low > limit => "**missed**",
            Self::AtMost(_) => "**undecided**",
            Self::NoCost if low <= 0.0 => "met",
            Self::NoCost => "**missed**",
        }
    }
}

/// Three digits that mean something.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}
