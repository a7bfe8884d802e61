//! The guest itself, without the agent: that it is the machine the other trials take it for.

use std::time::Duration;

use crate::vm::bed::{ARMED, Bed, EBUSY, LYING, REFUSING, SOON, bed};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 6] = [
    ("machine_suspends_and_wakes_when_told", suspends_and_wakes),
    ("machine_is_woken_by_its_clock", is_woken_by_its_clock),
    ("machine_has_cards_that_arm_lie_and_refuse", has_three_cards),
    ("machine_reaches_the_listener", reaches_the_listener),
    ("machine_fails_to_suspend_when_it_cannot_freeze", fails_to_suspend),
    ("machine_can_fake_a_suspend", fakes_a_suspend),
];

const SECOND: Duration = Duration::from_secs(1);

/// Whether the wake-on-LAN flag of a card is `g`, and whether its device may wake the machine, as the guest sees it.
pub(crate) fn wake_on_lan(bed: &mut Bed, interface: &str) -> (bool, String) {
    let flags = bed.channel.ask(&format!("ethtool {interface} | grep '^\tWake-on:'"));
    let device = bed.read(format!("/sys/class/net/{interface}/device/power/wakeup"));
    (flags.contains('g'), device)
}

fn suspends_and_wakes() {
    let mut bed = bed();
    let mut session = bed.login.open(SOON);
    assert!(session.is_alive(SOON));
    let (asleep, suspends) = (bed.asleep(), bed.qmp.suspends());
    bed.channel.ask("systemctl suspend");
    bed.nap("it was told to");
    let slept = bed.asleep() - asleep;
    assert!(slept >= SECOND, "CLOCK_BOOTTIME shows only {slept:?} asleep");
    assert_eq!(bed.qmp.suspends(), suspends + 1);
    assert!(session.is_alive(SOON), "the session did not live through the sleep");
    session.close(SOON);
}

fn is_woken_by_its_clock() {
    let mut bed = bed();
    let asleep = bed.asleep();
    bed.channel
        .ask("echo +8 >/sys/class/rtc/rtc0/wakealarm && systemctl suspend");
    bed.sleeps("it was told to");
    assert!(bed.qmp.becomes("running", SOON), "the alarm did not wake it");
    bed.channel.ask("true");
    let slept = bed.asleep() - asleep;
    assert!(slept >= 4 * SECOND, "{slept:?}");
    assert_eq!(
        bed.read("/sys/class/rtc/rtc0/wakealarm"),
        "",
        "an alarm that rang is gone"
    );
}

fn has_three_cards() {
    let mut bed = bed();
    for card in [ARMED, LYING, REFUSING] {
        assert!(!wake_on_lan(&mut bed, card).0, "{card} is armed already");
        let offers = bed.channel.ask(&format!("ethtool {card} | grep 'Supports Wake-on:'"));
        assert!(offers.contains('g'), "{card}: {offers}");
        let told = bed.channel.run(&format!("ethtool -s {card} wol g"), SOON);
        assert_eq!(told.status == 0, card != REFUSING, "{card}: {}", told.text);
    }
    assert_eq!(wake_on_lan(&mut bed, ARMED), (true, "enabled".into()));
    assert_eq!(
        wake_on_lan(&mut bed, LYING),
        (true, String::new()),
        "nothing says whether it would"
    );
    assert_eq!(wake_on_lan(&mut bed, REFUSING), (false, String::new()));
    bed.channel.ask("systemctl suspend");
    bed.nap("it was told to");
    assert_eq!(wake_on_lan(&mut bed, ARMED), (true, "enabled".into()));
    assert!(!wake_on_lan(&mut bed, LYING).0, "it kept its word");

    // The emulated i82559er does not notice its cable.
    bed.qmp.set_link("refusing", false);
    let carrier = "for try in $(seq 100); do [ \"$(cat /sys/class/net/ens-refusing/carrier)\" = $1 ] && exit; sleep 0.1; done; exit 1";
    assert_eq!(
        bed.channel.run(&format!("set -- 0; {carrier}"), SOON).status,
        0,
        "no cable"
    );
    bed.qmp.set_link("refusing", true);
    assert_eq!(
        bed.channel.run(&format!("set -- 1; {carrier}"), SOON).status,
        0,
        "a cable"
    );
}

fn reaches_the_listener() {
    // Two at once, and one after a sleep.
    const POST: &str = "post() {
        exec 3<>/dev/tcp/10.0.2.100/80
        printf 'POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s' ${#1} \"$1\" >&3
        head -n 1 <&3
    }\n";
    let mut bed = bed();
    let answers = bed.channel.ask(&format!(
        "{POST} post '{{\"event\":\"one\"}}' & post '{{\"event\":\"two\"}}'; wait"
    ));
    assert_eq!(answers.matches("200 OK").count(), 2, "{answers}");
    let mut events = bed.webhook.events();
    events.sort();
    assert_eq!(events, ["one", "two"]);
    bed.channel.ask("systemctl suspend");
    bed.nap("it was told to");
    bed.channel.ask(&format!("{POST} post '{{\"event\":\"three\"}}'"));
    assert_eq!(bed.webhook.events().last().unwrap(), "three");
}

fn fails_to_suspend() {
    let mut bed = bed();
    let (asleep, suspends) = (bed.asleep(), bed.qmp.suspends());
    bed.channel.start("trial-ebusy", EBUSY);
    bed.channel.ask(
        "until [ \"$(cat /sys/power/pm_freeze_timeout)\" = 0 ]; do sleep 0.1; done; systemctl suspend
         for try in $(seq 300); do systemctl is-failed --quiet systemd-suspend.service && exit; sleep 0.1; done; exit 1",
    );
    assert_eq!(bed.read("/sys/power/suspend_stats/last_failed_errno"), "-16", "EBUSY");
    assert_eq!(bed.read("/sys/power/suspend_stats/last_failed_step"), "freeze");
    assert_eq!(bed.qmp.suspends(), suspends);
    assert!(bed.asleep().saturating_sub(asleep) < SECOND);
}

fn fakes_a_suspend() {
    let mut bed = bed();
    let (asleep, suspends) = (bed.asleep(), bed.qmp.suspends());
    let successes: u32 = bed.read("/sys/power/suspend_stats/success").parse().unwrap();
    bed.channel.ask("echo freezer >/sys/power/pm_test; systemctl suspend");
    let counted = format!(
        "for try in $(seq 300); do [ $(cat /sys/power/suspend_stats/success) -gt {successes} ] && exit; sleep 0.1; done; exit 1"
    );
    assert_eq!(
        bed.channel.run(&counted, SOON).status,
        0,
        "the kernel counts it as a success"
    );
    assert_eq!(bed.qmp.suspends(), suspends);
    assert!(bed.asleep().saturating_sub(asleep) < SECOND, "and did not sleep");
}
