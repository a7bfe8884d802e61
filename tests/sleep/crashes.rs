//! The agent dies in each step of an attempt to sleep: the next one undoes what is left of it.

use std::{collections::BTreeSet, time::Duration};

use crate::vm::{
    bed::{NAP, bed},
    installation::{Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 1] = [("f_s1_kill_9_at_each_step_leaves_nothing_behind", kill_9_at_each_step)];

/// As the journal names them, in their order.
const STEPS: [&str; 12] = [
    "objections",
    "leave",
    "notice",
    "hooks",
    "sync",
    "last_objections",
    "wake_on_lan",
    "alarm",
    "wakeup_count",
    "confirm",
    "handshake",
    "suspend",
];
/// Steps that must have been hit, out of all.
const ENOUGH: usize = 8;

/// Looks at the journal without a pause and ends the agent in the step that is wanted, or in the first after it. Arguments: the process, the
/// steps from the wanted one on. Prints the step.
const ASSASSIN: &str = r#"
my ($agent, @steps) = @ARGV;
my $pattern = join "|", @steps;
my $until = time + 60;
while (time < $until) {
    open(my $journal, "<", "/var/lib/vmstation/autosleep/journal") or next;
    local $/;
    if ((<$journal> // "") =~ /"step":"($pattern)"/) {
        kill "KILL", $agent;
        print $1;
        exit 0;
    }
}
exit 1;
"#;

fn kill_9_at_each_step() {
    let mut bed = bed();
    bed.channel.write("/var/trial/assassin", "644", ASSASSIN);
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            min_awake: "0s",
            sleep: "wake_after = \"1h\"",
            ..Settings::default()
        },
    );
    // Long enough to be hit; the others are hit because an emulated CPU is slow.
    agent.hook("pre-sleep.d", "01-prepare", "sleep 0.5");
    agent.hook("post-wake.d", "01-back", "");
    agent.start();
    let mut hit = BTreeSet::new();
    for (at, step) in STEPS.iter().enumerate() {
        for _try in 0..3 {
            let killed_in = die_in(&mut agent, &STEPS[at..]);
            check(&mut agent, &killed_in);
            let right = killed_in == *step;
            hit.insert(killed_in);
            if right {
                break;
            }
        }
    }
    println!("killed in {hit:?}");
    assert!(hit.len() >= ENOUGH, "only {hit:?}");
}

/// Lets the agent die in one of these steps; in which.
fn die_in(agent: &mut Installation<'_>, steps: &[&str]) -> String {
    let pid = agent.pid();
    agent.bed.channel.ask("rm -f /var/trial/order");
    agent.bed.channel.start(
        "trial-assassin",
        &format!("exec perl /var/trial/assassin {pid} {}", steps.join(" ")),
    );
    agent.order_sleep("--force");
    let killed = loop {
        if agent.bed.qmp.status() == "suspended" {
            std::thread::sleep(NAP);
            agent.bed.wake();
        }
        // It may fall asleep between the look and the question.
        if let Some(killed) = agent.bed.channel.ended("trial-assassin", Duration::from_secs(1)) {
            break killed;
        }
    };
    assert_eq!(killed.status, 0, "no attempt came to {steps:?}\n{}", agent.log());
    // logind may have been told already.
    if agent.bed.qmp.becomes("suspended", NAP) {
        std::thread::sleep(NAP);
    }
    agent.bed.wake();
    assert_ne!(
        agent.order_ended().status,
        0,
        "the control program takes it for a success"
    );
    let back = agent.status_when("back", |status| {
        status["pid"].as_u64() > Some(0) && status["pid"] != pid
    });
    assert_ne!(back["pid"], pid);
    killed.text.trim().into()
}

/// Nothing is armed, held or half done.
fn check(agent: &mut Installation<'_>, killed_in: &str) {
    let status = agent.status_when("over it", |status| {
        ["active", "quiet", "waiting"].contains(&status["state"].as_str().unwrap_or_default())
    });
    assert_eq!(
        agent.bed.read("/sys/class/rtc/rtc0/wakealarm"),
        "",
        "{killed_in}: an alarm is left"
    );
    let journal =
        "for try in $(seq 300); do [ ! -e /var/lib/vmstation/autosleep/journal ] && exit; sleep 0.1; done; exit 1";
    agent.bed.channel.ask(journal);
    let hooks = agent.hooks_that_ran();
    let begun = STEPS.iter().position(|step| *step == killed_in) > STEPS.iter().position(|step| *step == "hooks");
    if killed_in == "hooks" {
        // Whether the one before the sleep had begun is for chance.
        assert_eq!(
            hooks.last().map(String::as_str),
            Some("01-back"),
            "{hooks:?}: {status:#}"
        );
    } else if begun || hooks.contains(&"01-prepare".into()) {
        assert_eq!(hooks, ["01-prepare", "01-back"], "{killed_in}: {status:#}");
    } else {
        assert!(hooks.is_empty(), "{killed_in}: {hooks:?}");
    }
    let inhibitors = agent.bed.channel.ask("systemd-inhibit --list --no-pager");
    assert!(!inhibitors.contains("block"), "{killed_in}: {inhibitors}");
    // The kernel would refuse it if a wakeup count were armed and out of date.
    agent.bed.channel.ask("systemctl suspend");
    agent
        .bed
        .nap(&format!("a plain suspend, after the agent died in {killed_in}"));
}
