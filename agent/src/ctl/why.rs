//! `why` for people: every blocker, and what would let the host sleep. Pure: a document in, lines out.

use super::{
    paint::{Paint, Tone},
    quantity::{duration, measured},
    status::state_name,
};
use crate::{
    printable::printable,
    report::{Blocker, Why},
};

/// The whole view, a line an element.
pub(super) fn view(why: &Why, paint: Paint) -> Vec<String> {
    let node = paint.tone(Tone::Strong, printable(&why.node));
    let state = state_name(why.state);
    let mut lines = vec![match why.blockers.len() {
        0 => format!("{node} is {state}; nothing keeps it awake"),
        1 => format!("{node} is {state}; one thing keeps it awake:"),
        count => format!("{node} is {state}; {count} things keep it awake:"),
    }];
    lines.extend(why.blockers.iter().flat_map(|blocker| explained(blocker, paint)));
    lines.push(String::new());
    lines.push(format!("To sleep: {}", printable(&why.to_sleep)));
    lines
}

fn explained(blocker: &Blocker, paint: Paint) -> Vec<String> {
    let signal = paint.tone(Tone::Attention, printable(&blocker.signal));
    let mut lines = vec![String::new(), format!("  {signal}: {}", printable(&blocker.what))];
    let mut detail = |label: &str, text: &str| lines.push(format!("    {label:7} {text}"));
    detail("since", &format!("{} ago", duration(blocker.for_s)));
    let unit = blocker.unit.as_deref();
    let value = blocker.value.map(|value| measured(value, unit));
    match (value, blocker.limit.map(|limit| measured(limit, unit))) {
        (Some(value), Some(limit)) => detail("value", &printable(&format!("{value}, limit {limit}"))),
        (Some(value), None) => detail("value", &printable(&value)),
        (None, Some(limit)) => detail("limit", &printable(&limit)),
        (None, None) => {}
    }
    let labels = std::iter::once("by").chain(std::iter::repeat(""));
    for (label, who) in labels.zip(&blocker.by) {
        detail(label, &printable(who));
    }
    if !blocker.remedy.is_empty() {
        detail("remedy", &printable(&blocker.remedy));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::view;
    use crate::{
        ctl::{paint::Paint, sample},
        report::{StateName, Why},
    };

    #[test]
    fn says_what_since_when_how_much_who_and_what_helps() {
        let expected = "\
worker-01 is active; 2 things keep it awake:

  network: eth0 is busy
    since   9 min ago
    value   5.1 kB/s, limit 1.0 kB/s
    by      rsync (process group 9): 40.0 % of all CPUs
            sshd
    remedy  less than 1024 B/s on eth0

  ssh: session of alice
    since   9 min ago
    remedy  the session closed

To sleep: all of it over; then the node sleeps after 2h 10m of quiet";
        assert_eq!(view(&sample::why(), Paint::Plain).join("\n"), expected);
    }

    #[test]
    fn says_when_there_is_nothing() {
        let why = Why {
            state: StateName::Quiet,
            blockers: Vec::new(),
            ..sample::why()
        };
        assert_eq!(
            view(&why, Paint::Plain)[0],
            "worker-01 is quiet; nothing keeps it awake"
        );
    }
}
