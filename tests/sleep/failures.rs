//! Suspends that fail, or only seem to succeed.

use crate::vm::{
    bed::{EBUSY, THAW, bed},
    installation::{Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 2] = [
    ("s4_ebusy_is_a_failure_and_the_third_disables", ebusy_is_a_failure),
    ("s5_fake_success_is_a_failure", fake_success_is_a_failure),
];

fn ebusy_is_a_failure() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(&mut bed, &Settings::default());
    agent.start();
    agent.bed.channel.start("trial-ebusy", EBUSY);
    agent
        .bed
        .channel
        .ask("until [ \"$(cat /sys/power/pm_freeze_timeout)\" = 0 ]; do sleep 0.1; done");
    for failure in 1..=3 {
        let order = agent.ctl("sleep --force");
        assert_eq!(order.status, 1, "{}\n{}", order.text, agent.log());
        let status = agent.status();
        assert_eq!(status["sleep"]["failed"], failure, "{status:#}");
        assert_eq!(status["sleep"]["last"]["outcome"], "failed", "{status:#}");
        let reason = status["sleep"]["last"]["reason"].as_str().unwrap();
        assert!(
            reason.contains("freeze") && reason.contains("16"),
            "step and errno: {reason}"
        );
        if failure < 3 {
            let status = agent.status_when("waiting", |status| status["state"] == "waiting");
            assert_eq!(status["sleep_enabled"], true, "{status:#}");
        }
    }
    let status = agent.status_when("disabled", |status| status["sleep_enabled"] == false);
    assert!(status["sleeps_in_s"].is_null(), "{status:#}");
    agent.told(&["sleep_failed"]);
    let told = agent.bed.webhook.documents();
    let last = told.last().unwrap();
    assert_eq!(last["event"], "sleep_failed", "{last:#}");
    assert!(last["reason"].as_str().unwrap().contains("disabled"), "{last:#}");
    assert_eq!(agent.bed.qmp.suspends(), suspends);
    // It stays so over a restart, and until somebody says otherwise.
    agent.bed.channel.ask(THAW);
    agent.stop();
    agent.start();
    assert_eq!(agent.status()["sleep_enabled"], false);
    assert_eq!(agent.ctl("enable").status, 0);
    agent.order_sleep("");
    agent.bed.nap("it can again");
    assert_eq!(agent.order_ended().status, 0);
}

fn fake_success_is_a_failure() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(&mut bed, &Settings::default());
    agent.start();
    agent.bed.channel.ask("echo freezer >/sys/power/pm_test");
    let order = agent.ctl("sleep --force");
    assert_eq!(order.status, 1, "{}\n{}", order.text, agent.log());
    let status = agent.status();
    assert_eq!(status["sleep"]["failed"], 1, "{status:#}");
    assert_eq!(status["sleep"]["sleeps"], 0, "{status:#}");
    agent.told(&["sleep_failed"]);
    assert_eq!(agent.bed.qmp.suspends(), suspends);
}
