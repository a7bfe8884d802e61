//! `sleep` on the command line, against the real control socket with a fake driver behind it: what is asked, what is shown, how it exits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{process::Output, sync::Mutex};

use serde_json::Value;
use vmstation_agent::{
    control::{RefusalCode, Request, Response},
    idle::Order,
    report::{AttemptOutcome, AttemptReport},
};

use crate::support::fake_agent::Agent;

/// What several test programs share.
#[expect(dead_code, reason = "other test programs use more of it")]
mod support {
    pub(crate) mod fake_agent;
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn begun(id: u64) -> AttemptReport {
    AttemptReport::begun(id, Order::Operator)
}

fn ended(outcome: AttemptOutcome, reason: &str) -> AttemptReport {
    AttemptReport {
        outcome: Some(outcome),
        reason: Some(reason.into()),
        ..begun(7)
    }
}

/// Begins attempt 7, and tells these states of it one after the other, the last one for ever.
fn carrying_out(states: Vec<AttemptReport>) -> Agent {
    let states = Mutex::new(states.into_iter().peekable());
    Agent::answering(move |request| {
        let attempt = |report| Some(Response::Attempt(Some(Box::new(report))));
        match request {
            Request::Sleep { .. } => attempt(begun(7)),
            Request::Attempt => {
                let mut states = states.lock().unwrap();
                let state = states.next().unwrap();
                if states.peek().is_none() {
                    *states = vec![state.clone()].into_iter().peekable();
                }
                attempt(state)
            }
            other => panic!("asked {other:?}"),
        }
    })
}

#[test]
fn a_sleep_is_followed_to_its_end() {
    let slept = AttemptReport {
        asleep_s: Some(3725.4),
        wake_source: Some("rtc_cmos".into()),
        ..ended(AttemptOutcome::Slept, "")
    };
    let agent = carrying_out(vec![begun(7), begun(7), slept]);
    let told = agent.ctl(&["sleep", "--no-hooks", "--force"]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(
        String::from_utf8(told.stdout).unwrap(),
        "slept for 1h 2m 5s, woken by rtc_cmos\n"
    );
    let order = Request::Sleep {
        force: true,
        hooks: false,
    };
    let seen = agent.seen();
    assert_eq!(seen[0].0, order);
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn how_it_ended_is_the_exit_code() {
    for (outcome, code) in [
        (AttemptOutcome::Refused, 3),
        (AttemptOutcome::Aborted, 3),
        (AttemptOutcome::Failed, 1),
        (AttemptOutcome::Interrupted, 1),
    ] {
        let told = carrying_out(vec![ended(outcome, "a reason\x1b[31m")]).ctl(&["sleep"]);
        assert_eq!(told.status.code(), Some(code), "{outcome:?}: {told:?}");
        assert!(err(&told).contains("a reason\\"), "{told:?}");
        let told = carrying_out(vec![ended(outcome, "a reason")]).ctl(&["--output", "json", "sleep"]);
        assert_eq!(told.status.code(), Some(code), "{outcome:?}: {told:?}");
        let document: Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(document["reason"], "a reason");
    }
}

#[test]
fn another_attempt_is_not_taken_for_this_one() {
    let told = carrying_out(vec![AttemptReport {
        id: 8,
        ..ended(AttemptOutcome::Slept, "")
    }])
    .ctl(&["sleep"]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    assert!(err(&told).contains("another attempt"), "{told:?}");
}

#[test]
fn an_order_that_is_refused_exits_3_with_the_reason() {
    let agent = Agent::answering(|_| {
        Some(Response::refused(
            RefusalCode::Refused,
            "held awake by root for another 2h",
        ))
    });
    let told = agent.ctl(&["sleep"]);
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    assert!(err(&told).contains("held awake by root"), "{told:?}");
}

#[test]
fn check_tells_and_orders_nothing() {
    let with = |objections: &'static [&str]| {
        Agent::answering(move |request| {
            assert_eq!(*request, Request::SleepCheck { force: false });
            let objections = objections.iter().map(ToString::to_string).collect();
            Some(Response::SleepCheck { objections })
        })
    };
    let told = with(&[]).ctl(&["sleep", "--check"]);
    assert!(told.status.success(), "{told:?}");
    let told = with(&["inhibited by backup", "no card"]).ctl(&["sleep", "--check"]);
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    assert!(err(&told).contains("inhibited by backup; no card"), "{told:?}");
    let told = with(&["no card"]).ctl(&["--output", "json", "sleep", "--check"]);
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    let document: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(document["objections"][0], "no card");
    let told = with(&[]).ctl(&["sleep", "--check", "--no-hooks"]);
    assert_eq!(told.status.code(), Some(2), "{told:?}");
}
