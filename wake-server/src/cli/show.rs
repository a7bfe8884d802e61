//! Documents of the server as text for people. What others wrote is escaped: it goes to a terminal.

use comfy_table::{Table, presets::NOTHING};
use vmstation_protocol::{NodeDocument, NodeState, Stage, Status, WakeAllDocument, WakeDocument, WakeOutcome};

/// Every node, a line each.
pub(super) fn list(status: &Status) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["NODE", "ROLE", "STATE", "SINCE", "ADDRESS", "MAC"]);
    for node in &status.nodes {
        let macs: Vec<String> = node.macs.iter().map(ToString::to_string).collect();
        table.add_row([
            node.name.to_string(),
            node.role.to_string(),
            state(node.state).to_owned(),
            optional(node.since.as_deref()),
            optional(node.address.as_deref()),
            if macs.is_empty() {
                "-".to_owned()
            } else {
                macs.join(",")
            },
        ]);
    }
    let mut text = table.trim_fmt();
    for conflict in &status.conflicts {
        text.push_str(&format!("\ncontradiction: {}", escaped(conflict)));
    }
    text
}

/// One node.
pub(super) fn node(node: &NodeDocument) -> String {
    let mut text = format!(
        "{} ({}): {} since {}, last report {}",
        node.name,
        node.role,
        state(node.state),
        optional(node.since.as_deref()),
        optional(node.last_report.as_deref())
    );
    for reason in &node.reasons {
        text.push_str(&format!("\n  awake for: {}", escaped(reason)));
    }
    if let Some(last) = &node.last_wake {
        text.push_str(&format!("\n  last wake {}: {}", escaped(&last.began), wake(last)));
    }
    text
}

/// How wakes went, a line each.
pub(super) fn wakes(document: &WakeAllDocument) -> String {
    let mut lines: Vec<String> = document
        .nodes
        .iter()
        .map(|each| format!("{}: {}", each.node, wake(each)))
        .collect();
    lines.extend(
        document
            .without_mac
            .iter()
            .map(|name| format!("{name}: cannot be woken, no MAC address of it is known")),
    );
    lines.join("\n")
}

/// How far a wake is.
pub(super) fn so_far(wake: &WakeDocument) -> String {
    let stages: Vec<String> = wake
        .stages
        .iter()
        .map(|reached| format!("{} {:.1} s", stage(reached.stage), reached.at_ms / 1000.0))
        .collect();
    if stages.is_empty() {
        "waking".to_owned()
    } else {
        stages.join(", ")
    }
}

fn wake(wake: &WakeDocument) -> String {
    let outcome = match wake.outcome {
        WakeOutcome::Waking => "waking",
        WakeOutcome::Sent => "sent, not proved",
        WakeOutcome::Awake => "awake",
        WakeOutcome::TimedOut => "timed out",
        WakeOutcome::NotSent => "not sent",
        WakeOutcome::Cancelled => "called off",
    };
    let mut text = outcome.to_owned();
    if !wake.stages.is_empty() {
        text.push_str(&format!(" ({})", so_far(wake)));
    }
    if !wake.message.is_empty() {
        text.push_str(&format!("; {}", escaped(&wake.message)));
    }
    text
}

const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Awake => "awake",
        NodeState::GoingToSleep => "going to sleep",
        NodeState::Asleep => "asleep",
        NodeState::Waking => "waking",
        NodeState::Gone => "gone",
    }
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::FrameSent => "frame sent",
        Stage::ArpReply => "card answers",
        Stage::AgentReport => "agent reports",
        Stage::Ready => "Kubernetes ready",
    }
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), escaped)
}

fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|letter| {
            let is_safe = !letter.is_control() && letter != '\u{feff}' && !('\u{200b}'..='\u{206f}').contains(&letter);
            let (plain, escape) = (is_safe.then_some(letter), (!is_safe).then(|| letter.escape_unicode()));
            plain.into_iter().chain(escape.into_iter().flatten())
        })
        .collect()
}
