//! The status page: what is known of every node, for people. `GET /`, `/page.css`, `/page.js`.
//!
//! Pure: owns nothing, asks nobody, and reads no clock; all times are in the documents. Every text that comes from elsewhere is escaped
//! by the template. The page reads fully without its script, which only adds the buttons.

mod words;

use askama::Template;
use axum::http::{HeaderName, HeaderValue, header};
use jiff::Timestamp;
use thiserror::Error;
use vmstation_protocol::{NodeDocument, NodeName, NodeState, Status, WakeDocument, WakeOutcome};

use self::words::{StateWords, began, days_before, length, outcome, shown, since, stage};

/// Style sheet, `/page.css`.
pub const CSS: &str = include_str!("../templates/page.css");
/// Script, `/page.js`.
pub const JS: &str = include_str!("../templates/page.js");

/// Wakes that are shown; `/status` and the store have more.
const WAKES: usize = 50;
/// Seconds the timeline spans.
const TIMELINE_S: f64 = 7.0 * 86_400.0;
/// Width of a timeline in its own units; 100 of them are a day.
const TIMELINE_WIDTH: f64 = 700.0;

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct PageInput<'a> {
    /// Every node.
    pub status: &'a Status,
    /// Wakes, the newest first.
    pub history: &'a [WakeDocument],
    /// What the nodes did in the last 7 days, in the order to be shown.
    pub timeline: &'a [TimelineNode],
}

/// What a node did in the last 7 days.
#[derive(Clone, Debug, PartialEq)]
pub struct TimelineNode {
    /// The node.
    pub name: NodeName,
    /// Beginning and end, 0 (7 days ago) to 1 (time of the status), and the state between. What is not a number, beyond the bounds or
    /// ends before it begins is cut off.
    pub spans: Vec<(f64, f64, NodeState)>,
}

/// The page could not be made.
#[derive(Debug, Error)]
#[error("cannot make the status page")]
pub struct PageError(#[from] askama::Error);

/// The page as HTML.
///
/// # Errors
/// The template fails, which no content makes it do.
pub fn render(input: &PageInput<'_>) -> Result<String, PageError> {
    Ok(Page::of(input).render()?)
}

/// What the page, its style sheet and its script are sent with, `Content-Type` apart.
pub fn headers() -> [(HeaderName, HeaderValue); 5] {
    [
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                 form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
            ),
        ),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ]
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    time: &'a str,
    time_shown: String,
    conflicts: &'a [String],
    tally: Vec<(StateWords, usize)>,
    nodes: Vec<NodeRow<'a>>,
    legend: Vec<StateWords>,
    days: Vec<u32>,
    /// What time it was at the beginning, after each day and at the end of the timeline.
    axis: Vec<String>,
    timeline: Vec<TimelineRow<'a>>,
    wakes: Vec<WakeRow<'a>>,
    older_wakes: usize,
}

struct NodeRow<'a> {
    name: &'a NodeName,
    /// Role, address and cards.
    facts: String,
    state: StateWords,
    since: Option<String>,
    reasons: &'a [String],
    /// Its agent says that it is awake.
    is_up: bool,
    last_report: String,
    last_wake: Option<WakeRow<'a>>,
    wakeable: bool,
}

struct WakeRow<'a> {
    began: String,
    node: &'a NodeName,
    outcome: String,
    class: &'static str,
    stages: String,
    packets: u32,
    message: &'a str,
}

struct TimelineRow<'a> {
    name: &'a NodeName,
    /// The states and how long each was, in words: the timeline without the picture.
    summary: String,
    spans: Vec<SpanBox>,
}

struct SpanBox {
    state: StateWords,
    x: String,
    width: String,
    /// The state is told by the height as well as by the colour.
    y: u8,
    height: u8,
    length: String,
}

impl<'a> Page<'a> {
    fn of(input: &PageInput<'a>) -> Self {
        let status = input.status;
        let now: Option<Timestamp> = status.time.parse().ok();
        let tally = StateWords::ALL
            .into_iter()
            .map(|state| {
                (
                    StateWords::of(state),
                    status.nodes.iter().filter(|node| node.state == state).count(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Self {
            time: &status.time,
            time_shown: shown(&status.time),
            conflicts: &status.conflicts,
            tally,
            nodes: status.nodes.iter().map(|node| NodeRow::of(node, now)).collect(),
            legend: StateWords::ALL.into_iter().map(StateWords::of).collect(),
            days: (1..7).map(|day| day * 100).collect(),
            axis: now.map(days_before).unwrap_or_default(),
            timeline: input.timeline.iter().map(TimelineRow::of).collect(),
            wakes: input
                .history
                .iter()
                .take(WAKES)
                .map(|wake| WakeRow::of(wake, now))
                .collect(),
            older_wakes: input.history.len().saturating_sub(WAKES),
        }
    }
}

impl<'a> NodeRow<'a> {
    fn of(node: &'a NodeDocument, now: Option<Timestamp>) -> Self {
        let mut facts = vec![node.role.to_string()];
        facts.extend(node.address.clone());
        facts.extend(node.macs.iter().map(ToString::to_string));
        if node.macs.is_empty() {
            facts.push("no MAC address known".to_owned());
        }
        Self {
            name: &node.name,
            facts: facts.join(" · "),
            state: StateWords::of(node.state),
            since: node.since.as_deref().map(|time| since(time, now)),
            reasons: &node.reasons,
            is_up: matches!(node.state, NodeState::Awake | NodeState::GoingToSleep),
            last_report: node
                .last_report
                .as_deref()
                .map_or_else(|| "never".to_owned(), |time| began(time, now)),
            last_wake: node.last_wake.as_ref().map(|wake| WakeRow::of(wake, now)),
            wakeable: !node.macs.is_empty(),
        }
    }
}

impl<'a> WakeRow<'a> {
    fn of(wake: &'a WakeDocument, now: Option<Timestamp>) -> Self {
        let (words, class) = outcome(wake.outcome);
        let took = wake.stages.last().filter(|_| wake.outcome == WakeOutcome::Awake);
        let stages: Vec<String> = wake
            .stages
            .iter()
            .map(|reached| format!("{} {}", stage(reached.stage), length(reached.at_ms / 1000.0)))
            .collect();
        Self {
            began: began(&wake.began, now),
            node: &wake.node,
            outcome: match took {
                Some(last) => format!("{words} after {}", length(last.at_ms / 1000.0)),
                None => words.to_owned(),
            },
            class,
            stages: stages.join(", "),
            packets: wake.packets,
            message: &wake.message,
        }
    }
}

impl<'a> TimelineRow<'a> {
    fn of(node: &'a TimelineNode) -> Self {
        let spans: Vec<(f64, f64, NodeState)> = node
            .spans
            .iter()
            .filter(|(start, end, _)| start.is_finite() && end.is_finite())
            .map(|&(start, end, state)| (start.clamp(0.0, 1.0), end.clamp(0.0, 1.0), state))
            .filter(|(start, end, _)| start < end)
            .collect();
        let total = |state| {
            let parts: f64 = spans
                .iter()
                .filter(|(.., its)| *its == state)
                .map(|(start, end, _)| end - start)
                .sum();
            (parts > 0.0).then(|| format!("{} {}", StateWords::of(state).words, length(parts * TIMELINE_S)))
        };
        let summary: Vec<String> = StateWords::ALL.into_iter().filter_map(total).collect();
        Self {
            name: &node.name,
            summary: if summary.is_empty() {
                "nothing known".to_owned()
            } else {
                summary.join(", ")
            },
            spans: spans.iter().map(SpanBox::of).collect(),
        }
    }
}

impl SpanBox {
    fn of(&(start, end, state): &(f64, f64, NodeState)) -> Self {
        let height = match state {
            NodeState::Awake | NodeState::Gone => 20,
            NodeState::Waking | NodeState::GoingToSleep => 14,
            NodeState::Asleep => 6,
            NodeState::Unknown => 2,
        };
        Self {
            state: StateWords::of(state),
            x: format!("{:.2}", start * TIMELINE_WIDTH),
            // A moment is still to be seen.
            width: format!("{:.2}", ((end - start) * TIMELINE_WIDTH).max(0.5)),
            y: 20 - height,
            height,
            length: length((end - start) * TIMELINE_S),
        }
    }
}

#[cfg(test)]
mod tests;
