//! States, outcomes and times in the words of the status page.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use vmstation_protocol::{NodeState, Stage, WakeOutcome};

/// A state in words, and the class that colours it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateWords {
    pub(super) words: &'static str,
    pub(super) class: &'static str,
}

impl StateWords {
    /// Every state, in the order of the page.
    pub(super) const ALL: [NodeState; 6] = [
        NodeState::Awake,
        NodeState::GoingToSleep,
        NodeState::Asleep,
        NodeState::Waking,
        NodeState::Gone,
        NodeState::Unknown,
    ];

    pub(super) const fn of(state: NodeState) -> Self {
        let (words, class) = match state {
            NodeState::Unknown => ("unknown", "unknown"),
            NodeState::Awake => ("awake", "awake"),
            NodeState::GoingToSleep => ("going to sleep", "going"),
            NodeState::Asleep => ("asleep", "asleep"),
            NodeState::Waking => ("waking", "waking"),
            NodeState::Gone => ("gone", "gone"),
        };
        Self { words, class }
    }
}

/// An outcome in words, and the class that colours it.
pub(super) const fn outcome(outcome: WakeOutcome) -> (&'static str, &'static str) {
    match outcome {
        WakeOutcome::Waking => ("waking", "waking"),
        WakeOutcome::Sent => ("sent, not proved", "unknown"),
        WakeOutcome::Awake => ("awake", "good"),
        WakeOutcome::TimedOut => ("timed out", "bad"),
        WakeOutcome::NotSent => ("not sent", "bad"),
        WakeOutcome::Cancelled => ("called off", "unknown"),
    }
}

/// A stage in words.
pub(super) const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::FrameSent => "frame sent",
        Stage::ArpReply => "card answers",
        Stage::AgentReport => "agent reports",
        Stage::Ready => "Kubernetes ready",
    }
}

/// A length of time, seconds, in its two largest units; below 10 s with a tenth. What is negative or no number is zero.
pub(super) fn length(seconds: f64) -> String {
    if seconds.is_nan() || seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; the cast saturates"
    )]
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        ..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        86_400.. => format!("{days} d {hours} h"),
    }
}

/// A time of a document for people, in UTC; one that is no time is shown as it is.
pub(super) fn shown(time: &str) -> String {
    time.parse::<Timestamp>().map_or_else(
        |_| time.to_owned(),
        |time| {
            time.to_zoned(TimeZone::UTC)
                .strftime("%Y-%m-%d %H:%M:%S UTC")
                .to_string()
        },
    )
}

/// `2026-11-22 10:30:00 UTC (2 h 5 min)`.
pub(super) fn since(time: &str, now: Option<Timestamp>) -> String {
    age(time, now).map_or_else(|| shown(time), |age| format!("{} ({age})", shown(time)))
}

/// `2026-11-22 10:30:00 UTC (2 h 5 min ago)`.
pub(super) fn began(time: &str, now: Option<Timestamp>) -> String {
    age(time, now).map_or_else(|| shown(time), |age| format!("{} ({age} ago)", shown(time)))
}

/// This time of each of the 7 days before, and of this one: `16 Nov 11:35`, in UTC.
pub(super) fn days_before(now: Timestamp) -> Vec<String> {
    let days = (0..=7)
        .rev()
        .filter_map(|ago| now.checked_sub(SignedDuration::from_hours(24 * ago)).ok());
    days.map(|day| day.to_zoned(TimeZone::UTC).strftime("%-d %b %H:%M").to_string())
        .collect()
}

fn age(time: &str, now: Option<Timestamp>) -> Option<String> {
    let time: Timestamp = time.parse().ok()?;
    Some(length(now?.duration_since(time).as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_has_its_two_largest_units() {
        for (seconds, text) in [
            (f64::NAN, "0.0 s"),
            (-3.0, "0.0 s"),
            (4.26, "4.3 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (60.0, "1 min 0 s"),
            (3599.6, "1 h 0 min"),
            (7500.0, "2 h 5 min"),
            (200_000.0, "2 d 7 h"),
        ] {
            assert_eq!(length(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_time_has_its_age() {
        let now = "2026-11-22T12:35:00+00:00".parse().ok();
        assert_eq!(
            began("2026-11-22T11:30:00+01:00", now),
            "2026-11-22 10:30:00 UTC (2 h 5 min ago)"
        );
        assert_eq!(since("2026-11-22T10:30:00Z", None), "2026-11-22 10:30:00 UTC");
        assert_eq!(since("soon", now), "soon");
    }

    #[test]
    fn the_axis_goes_from_seven_days_ago_to_this_moment() {
        let days = days_before("2026-12-03T01:35:00+02:00".parse().unwrap());
        assert_eq!((days.len(), &*days[0], &*days[7]), (8, "25 Nov 23:35", "2 Dec 23:35"));
    }
}
