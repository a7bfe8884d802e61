//! The agent puts the guest to sleep, and nothing is lost over many times.

use std::{collections::BTreeMap, thread, time::Duration};

use serde_json::Value;
use vmstation_agent::clock::BootTime;

use crate::vm::{
    bed::{Bed, NAP, SOON, bed},
    installation::{EAGER, Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 2] = [
    (
        "a1_an_idle_guest_sleeps_by_itself_and_comes_back",
        an_idle_guest_sleeps_by_itself,
    ),
    ("l_twenty_cycles_leak_nothing", twenty_cycles_leak_nothing),
];

const MIN_AWAKE: Duration = Duration::from_secs(15);

fn an_idle_guest_sleeps_by_itself() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(&mut bed, &EAGER);
    agent.hook("pre-sleep.d", "01-first", "");
    agent.hook("pre-sleep.d", "02-second", "");
    agent.hook("post-wake.d", "01-back", "");
    agent.start();
    agent.bed.sleeps("it is idle");
    assert_eq!(agent.bed.webhook.events(), ["going_to_sleep", "sleeping"]);
    thread::sleep(NAP);
    agent.bed.wake();
    let woken = BootTime::now();
    let status = agent.status_when("told of the wake", |status| status["sleep"]["wakes"] == 1);
    assert_eq!(status["sleep"]["sleeps"], 1);
    assert_eq!(status["sleep"]["last"]["outcome"], "slept", "{status:#}");
    assert!(status["sleep"]["asleep_s"].as_f64().unwrap() >= 1.0, "{status:#}");
    assert!(status["sleep"]["last"]["added_ms"].is_number(), "{status:#}");
    agent.told(&["going_to_sleep", "sleeping", "awake"]);
    assert_eq!(agent.hooks_that_ran(), ["01-first", "02-second", "01-back"]);
    let log = agent.bed.read("/var/log/vmstation/power.log");
    let mut rest = log.as_str();
    for line in ["to=grace", "01-first", "02-second", "the host was suspended", "01-back"] {
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("no {line:?} in its place in {log}"));
        rest = &rest[at..];
    }
    let state = agent.bed.read("/var/lib/vmstation/autosleep/state");
    for line in [
        "LAST_ACTIVITY=",
        "SLEEP_PENDING=false",
        "SLEEP_ENABLED=true",
        "LAST_CHECK=",
    ] {
        assert!(state.contains(line), "no {line} in {state}");
    }

    agent.bed.sleeps("it is idle again");
    let awake = BootTime::now().since(woken);
    assert!(awake >= MIN_AWAKE, "awake for {awake:?} only");
    assert_eq!(agent.bed.qmp.suspends(), suspends + 2);
    thread::sleep(NAP);
    agent.bed.wake();
    agent.status_when("told of the second wake", |status| status["sleep"]["wakes"] == 2);
}

/// What must not grow.
#[derive(Debug)]
struct Footprint {
    descriptors: u64,
    /// Programs, links and maps in the kernel, by kind.
    kernel: BTreeMap<&'static str, usize>,
    /// Memory of its own. Code is not counted: the agent gives it back now and then, and maps what it runs again.
    anonymous_kib: f64,
    /// With the code that is mapped.
    rss_kib: f64,
}

fn twenty_cycles_leak_nothing() {
    const WARM_UP: u32 = 3;
    const CYCLES: u32 = 20;
    /// After the first cycles and at the end: its memory is twice as much for some seconds now and then.
    const LOOKS: u32 = 5;
    let mut bed = bed();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            min_awake: "0s",
            ..Settings::default()
        },
    );
    agent.start();
    agent.status_when("watching", |status| status["rates"]["over_s"].as_f64() > Some(0.0));
    let pid = agent.pid();
    let suspends = agent.bed.qmp.suspends();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut added = Vec::new();
    for cycle in 1..=CYCLES {
        agent.order_sleep("--force");
        agent.bed.nap("it was ordered to");
        let order = agent.order_ended();
        assert_eq!(order.status, 0, "cycle {cycle}: {}\n{}", order.text, agent.log());
        let status = agent.status_when("told of the wake", |status| status["sleep"]["wakes"] == cycle);
        added.push(status["sleep"]["last"]["added_ms"].as_f64().unwrap());
        if (WARM_UP + 1..=WARM_UP + LOOKS).contains(&cycle) {
            before.push(footprint(&mut agent, pid));
        } else if cycle > CYCLES - LOOKS {
            after.push(footprint(&mut agent, pid));
        }
    }
    let [before, after] = [before, after].map(least);
    assert_eq!(agent.pid(), pid, "the agent was started again");
    assert_eq!(agent.bed.qmp.suspends(), suspends + CYCLES);
    assert_eq!(agent.status()["sleep"]["sleeps"], CYCLES);
    assert_eq!(agent.status()["sleep"]["external"], 0);
    assert!(after.descriptors <= before.descriptors, "{before:?} to {after:?}");
    assert_eq!(before.kernel, after.kernel, "what the kernel holds for it");
    assert!(
        after.anonymous_kib <= before.anonymous_kib * 1.05,
        "{before:?} to {after:?}"
    );
    println!(
        "memory of its own {} to {} KiB, with the code that is mapped {} to {} KiB",
        before.anonymous_kib, after.anonymous_kib, before.rss_kib, after.rss_kib
    );
    // The emulated RTC tells whole seconds, and the kernel makes up for what is lost in up to two of them. Time that each sleep loses adds up
    // to more.
    let behind = clock_difference(agent.bed);
    assert!(behind.abs() < 4.0, "the guest's clock is {behind} s off");
    added.sort_by(f64::total_cmp);
    println!(
        "added between the decision and the suspend call, emulated CPU, unoptimised agent, {CYCLES} sleeps: \
         median {:.1} ms, most {:.1} ms",
        added[added.len() / 2],
        added[added.len() - 1]
    );
}

/// The least of each.
fn least(looks: Vec<Footprint>) -> Footprint {
    let least = looks.into_iter().reduce(|mut least, look| {
        least.descriptors = least.descriptors.min(look.descriptors);
        least.anonymous_kib = least.anonymous_kib.min(look.anonymous_kib);
        least.rss_kib = least.rss_kib.min(look.rss_kib);
        for (kind, held) in look.kernel {
            let count = least.kernel.entry(kind).or_default();
            *count = held.min(*count);
        }
        least
    });
    least.unwrap()
}

fn footprint(agent: &mut Installation<'_>, pid: u32) -> Footprint {
    let descriptors = agent.bed.channel.ask(&format!("ls /proc/{pid}/fd | wc -l"));
    let mut memory = |kind| {
        let line = format!("awk '/^{kind}:/ {{ print $2 }}' /proc/{pid}/status");
        agent.bed.channel.ask(&line).parse().unwrap()
    };
    let (anonymous_kib, rss_kib) = (memory("RssAnon"), memory("VmRSS"));
    let kernel = ["prog", "link", "map"].map(|kind| {
        let list = agent.bed.channel.ask(&format!("bpftool --json {kind} list"));
        let list: Value = serde_json::from_str(&list).unwrap();
        // systemd's own come and go with its services.
        let is_ours = |held: &&Value| !held["name"].as_str().is_some_and(|name| name.starts_with("sd_"));
        (kind, list.as_array().unwrap().iter().filter(is_ours).count())
    });
    Footprint {
        descriptors: descriptors.parse().unwrap(),
        kernel: kernel.into(),
        anonymous_kib,
        rss_kib,
    }
}

/// Seconds the guest's wall clock is ahead of this machine's.
fn clock_difference(bed: &mut Bed) -> f64 {
    let guest = bed.channel.run("date +%s.%N", SOON).text;
    let here = vmstation_agent::power_log::wall_clock().timestamp().as_duration();
    guest.trim().parse::<f64>().unwrap() - here.as_secs_f64()
}
