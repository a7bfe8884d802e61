use vmstation_protocol::{Role, SCHEMA, Stage, StageDocument, Transport};

use super::*;

const ATTACK: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;";

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn wake(message: &str) -> WakeDocument {
    WakeDocument {
        schema: SCHEMA,
        node: name("worker-01"),
        mac: "52:54:00:12:34:af".parse().unwrap(),
        began: "2026-11-22T12:00:00Z".to_owned(),
        outcome: WakeOutcome::Awake,
        stages: vec![
            StageDocument {
                stage: Stage::FrameSent,
                at_ms: 1.5,
            },
            StageDocument {
                stage: Stage::AgentReport,
                at_ms: 6200.0,
            },
        ],
        transport: Some(Transport::Raw),
        interface: Some("lan0".to_owned()),
        packets: 7,
        message: message.to_owned(),
    }
}

fn status() -> Status {
    Status {
        schema: SCHEMA,
        time: "2026-11-22T12:35:00Z".to_owned(),
        nodes: vec![
            NodeDocument {
                name: name("worker-01"),
                role: Role::Worker,
                macs: vec!["52:54:00:12:34:af".parse().unwrap()],
                address: Some("192.0.2.7".to_owned()),
                state: NodeState::Awake,
                since: Some("2026-11-22T10:30:00Z".to_owned()),
                last_report: Some("2026-11-22T12:34:58Z".to_owned()),
                reasons: vec!["2 SSH sessions".to_owned()],
                last_wake: Some(wake("")),
            },
            NodeDocument {
                name: name("worker-02"),
                role: Role::Storage,
                macs: Vec::new(),
                address: None,
                state: NodeState::Unknown,
                since: None,
                last_report: None,
                reasons: Vec::new(),
                last_wake: None,
            },
        ],
        conflicts: Vec::new(),
    }
}

fn page(status: &Status, history: &[WakeDocument], timeline: &[TimelineNode]) -> String {
    render(&PageInput {
        status,
        history,
        timeline,
    })
    .unwrap()
}

/// The tags of a page, each up to its name.
fn count(html: &str, tag: &str) -> usize {
    html.matches(tag).count()
}

#[test]
fn every_node_is_told() {
    let html = page(&status(), &[wake("told by its agent")], &[]);
    for text in [
        "worker · 192.0.2.7 · 52:54:00:12:34:af",
        "since 2026-11-22 10:30:00 UTC (2 h 5 min)",
        "2 SSH sessions",
        "awake after 6.2 s",
        "frame sent 0.0 s, agent reports 6.2 s",
        "told by its agent",
        "1 unknown",
    ] {
        assert!(html.contains(text), "{text}: {html}");
    }
}

#[test]
fn nothing_known_is_said() {
    let mut empty = status();
    empty.nodes.clear();
    let html = page(&empty, &[], &[]);
    assert!(
        html.contains("No node is known") && html.contains("None yet."),
        "{html}"
    );
    assert!(!html.contains("The last 7 days"));
}

#[test]
fn without_a_script_nothing_pretends_to_work() {
    let html = page(&status(), &[], &[]);
    assert!(html.contains(r#"<form id="token-form" hidden>"#));
    assert_eq!(count(&html, "<button"), 4);
    assert_eq!(
        count(&html, r#"class="act" hidden>"#),
        3,
        "each cell with buttons, and their heading"
    );
}

#[test]
fn a_node_without_a_card_cannot_be_woken() {
    let html = page(&status(), &[], &[]);
    assert!(html.contains(r#"aria-label="Wake worker-02" disabled"#));
    assert!(html.contains(r#"aria-label="Wake worker-01">"#));
    assert_eq!(count(&html, "storage · no MAC address known"), 1);
}

#[test]
fn an_awake_node_without_a_reason_is_not_a_mystery() {
    let mut status = status();
    status.nodes[0].reasons.clear();
    // The other one is not known to be awake.
    assert_eq!(count(&page(&status, &[], &[]), "nothing keeps it awake"), 1);
}

#[test]
fn w14_what_others_wrote_stays_text() {
    let plain = page(&status(), &[wake("said")], &[]);
    let mut hostile = status();
    hostile.conflicts = vec![ATTACK.to_owned()];
    hostile.time = ATTACK.to_owned();
    let node = &mut hostile.nodes[0];
    node.reasons = vec![ATTACK.to_owned()];
    node.address = Some(ATTACK.to_owned());
    node.since = Some(ATTACK.to_owned());
    node.last_report = Some(ATTACK.to_owned());
    let mut told = wake(ATTACK);
    told.began = ATTACK.to_owned();
    let html = page(&hostile, &[told], &[]);

    assert_eq!(count(&html, "<script"), count(&plain, "<script"), "{html}");
    assert_eq!(count(&html, "<img"), 0);
    assert!(!html.contains(ATTACK));
    assert_eq!(count(&html, "&#60;script&#62;alert(1)"), 9);
}

#[test]
fn w14_the_page_needs_nothing_its_policy_forbids() {
    let html = page(&status(), &[wake("")], &[]);
    for forbidden in [
        " style=",
        "<style",
        " onclick=",
        " onload=",
        "javascript:",
        "http://",
        "https://",
    ] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    for forbidden in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "localStorage",
    ] {
        assert!(!JS.contains(forbidden), "{forbidden}");
    }
    let headers = headers();
    let policy = headers[0].1.to_str().unwrap();
    assert!(
        !policy.contains("unsafe") && policy.contains("default-src 'none'"),
        "{policy}"
    );
}

#[test]
fn the_timeline_keeps_its_bounds() {
    let node = TimelineNode {
        name: name("worker-01"),
        spans: vec![
            (-1.0, 0.5, NodeState::Awake),
            (0.5, 2.0, NodeState::Asleep),
            (f64::NAN, 1.0, NodeState::Gone),
            (0.9, 0.2, NodeState::Gone),
        ],
    };
    let html = page(&status(), &[], &[node]);
    assert!(html.contains("worker-01: awake 3 d 12 h, asleep 3 d 12 h"), "{html}");
    assert!(html.contains(r#"<rect class="awake" x="0.00" y="0" width="350.00" height="20">"#));
    assert!(html.contains(r#"<rect class="asleep" x="350.00" y="14" width="350.00" height="6">"#));
    assert!(!html.contains("NaN") && !html.contains(r#"<rect class="gone""#));
}

#[test]
fn a_long_history_is_cut_and_said() {
    let history = vec![wake("one of many"); WAKES + 3];
    let html = page(&status(), &history, &[]);
    assert_eq!(count(&html, "one of many"), WAKES);
    assert!(html.contains("3 older not shown."));
}
