//! How the guest wakes, and what the agent makes of it.

use std::{thread, time::Duration};

use crate::vm::{
    bed::{NAP, SOON, bed},
    installation::{EAGER, Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 6] = [
    ("s11_the_dead_mans_alarm_wakes", the_dead_mans_alarm_wakes),
    ("s12_a_wake_loop_is_stopped", a_wake_loop_is_stopped),
    ("s13_after_a_wake_the_idle_time_begins_anew", the_idle_time_begins_anew),
    ("s14_a_jump_of_the_wall_clock_changes_nothing", wall_clock_jumps),
    ("s15_the_watchdog_outlives_a_long_sleep", the_watchdog_outlives),
    ("s16_a_suspend_by_somebody_else_is_reconciled", somebody_else_suspends),
];

/// The file that holds an alarm, seconds since 1970; empty if there is none.
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

fn the_dead_mans_alarm_wakes() {
    let mut bed = bed();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            sleep: "wake_after = \"8s\"",
            ..Settings::default()
        },
    );
    agent.start();
    agent.order_sleep("");
    agent.bed.sleeps("it was ordered to");
    assert!(agent.bed.qmp.becomes("running", SOON), "nobody woke it");
    let order = agent.order_ended();
    assert_eq!(order.status, 0, "{}\n{}", order.text, agent.log());
    assert_eq!(agent.bed.read(ALARM), "", "the alarm is gone");

    // Woken before it rings: taken back.
    agent.order_sleep("");
    agent.bed.nap("it was ordered to");
    assert_eq!(agent.order_ended().status, 0);
    assert_eq!(agent.bed.read(ALARM), "", "the alarm is taken back");

    // Somebody else's, and earlier: left alone.
    agent.configure(&Settings {
        sleep: "wake_after = \"1h\"",
        ..Settings::default()
    });
    agent.stop();
    agent.start();
    agent.bed.channel.ask(&format!("echo +600 >{ALARM}"));
    let foreign = agent.bed.read(ALARM);
    agent.order_sleep("");
    agent.bed.nap("it was ordered to");
    assert_eq!(agent.order_ended().status, 0);
    assert_eq!(agent.bed.read(ALARM), foreign, "somebody else's alarm");
}

fn a_wake_loop_is_stopped() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            min_awake: "2s",
            // The alarm runs while the guest is still on its way; what is left must be a sleep to its clock.
            sleep: "wake_after = \"6s\"",
            ..EAGER
        },
    );
    agent.start();
    for time in 1..=3 {
        agent.bed.sleeps("it is idle");
        assert!(agent.bed.qmp.becomes("running", SOON), "the alarm does not wake it");
        agent.status_when("told of the wake", |status| status["sleep"]["wakes"] == time);
    }
    let status = agent.status_when("disabled", |status| status["sleep_enabled"] == false);
    assert_eq!(status["disabled_by_operator"], false, "{status:#}");
    agent.told(&["sleeping", "sleeping", "sleeping", "sleep_refused"]);
    // Twice as long as it takes to sleep: 3 s of quiet, 4 s of grace.
    thread::sleep(Duration::from_secs(15));
    assert_eq!(agent.bed.qmp.suspends(), suspends + 3);
}

fn the_idle_time_begins_anew() {
    let mut bed = bed();
    let mut agent = Installation::new(&mut bed, &EAGER);
    agent.start();
    agent.bed.nap("it is idle");
    let status = agent.status_when("told of the wake", |status| status["sleep"]["wakes"] == 1);
    let asleep = status["sleep"]["asleep_s"].as_f64().unwrap();
    let idle = status["idle_s"].as_f64().unwrap();
    assert!(asleep >= 1.0, "{status:#}");
    assert!(
        ["waiting", "active", "quiet"].contains(&status["state"].as_str().unwrap()),
        "{status:#}"
    );
    // What it was idle for before, and the sleep itself, are forgotten: what is left is younger than the wake.
    let since = agent.bed.channel.ask("dmesg | grep -F 'PM: suspend exit' | tail -n 1 | tr -d '[]' | awk '{ print $1 }'; awk '/^now at/ { print $3 / 1e9; exit }' /proc/timer_list");
    let (woke, now) = since.split_once('\n').unwrap();
    let awake = now.parse::<f64>().unwrap() - woke.parse::<f64>().unwrap();
    assert!(
        idle <= awake + 1.0,
        "idle for {idle} s, awake for {awake} s: {status:#}"
    );
}

fn wall_clock_jumps() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            inactivity_timeout: "30s",
            ..Settings::default()
        },
    );
    agent.start();
    let before = agent.status();
    for jump in ["+3 days", "-9 days", "+6 days"] {
        agent.bed.channel.ask(&format!("date --set '{jump}'"));
        let status = agent.status();
        let idle = status["idle_s"].as_f64().unwrap();
        assert!((0.0..60.0).contains(&idle), "{status:#}");
    }
    let after = agent.status();
    assert_eq!(
        after["sleep"]["external"], before["sleep"]["external"],
        "a jump is no sleep"
    );
    assert_eq!(agent.bed.qmp.suspends(), suspends);
    // The machine's own clock is right.
    agent.bed.channel.ask("hwclock --hctosys");
    // And the order comes when it would have.
    agent.bed.sleeps("it is idle");
    thread::sleep(NAP);
    agent.bed.wake();
}

fn the_watchdog_outlives() {
    let mut bed = bed();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            unit: "WatchdogSec=10s",
            ..Settings::default()
        },
    );
    agent.start();
    let pid = agent.pid();
    agent.order_sleep("");
    agent.bed.sleeps("it was ordered to");
    thread::sleep(Duration::from_secs(14));
    agent.bed.wake();
    assert_eq!(agent.order_ended().status, 0);
    thread::sleep(Duration::from_secs(12));
    assert_eq!(agent.pid(), pid, "systemd's watchdog ended the agent\n{}", agent.log());
    // And it does watch.
    agent.bed.channel.ask(&format!("kill -STOP {pid}"));
    let restarted = format!(
        "for try in $(seq 400); do [ $(systemctl show --property MainPID --value vmstation-autosleep) != {pid} ] && exit; sleep 0.1; done; exit 1"
    );
    assert_eq!(agent.bed.channel.run(&restarted, SOON).status, 0, "nobody watches it");
}

fn somebody_else_suspends() {
    let mut bed = bed();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            inactivity_timeout: "20s",
            ..Settings::default()
        },
    );
    agent.hook("post-wake.d", "01-back", "");
    agent.start();
    agent.bed.channel.ask("systemctl suspend");
    agent.bed.nap("somebody told it to");
    let status = agent.status_when("told of it", |status| status["sleep"]["external"] == 1);
    assert_eq!(status["sleep"]["last"]["outcome"], "external", "{status:#}");
    assert_eq!(status["sleep"]["failed"], 0, "{status:#}");
    assert!(status["idle_s"].as_f64().unwrap() < 20.0, "{status:#}");
    assert_eq!(
        crate::machine::wake_on_lan(agent.bed, crate::vm::bed::ARMED),
        (true, "enabled".into()),
        "armed again"
    );
}
