//! What keeps the guest awake, or calls a sleep off that has begun.

use std::{thread, time::Duration};

use crate::vm::{
    bed::{Bed, SOON, bed},
    installation::{EAGER, Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 5] = [
    (
        "a2_a_login_in_the_grace_period_cancels_within_a_second",
        a_login_cancels_within_a_second,
    ),
    ("a2_s1_no_login_is_lost_between_leave_and_suspend", no_login_is_lost),
    ("s2_systemd_inhibit_is_named", systemd_inhibit_is_named),
    ("s9_a_scheduled_shutdown_keeps_it_awake", scheduled_shutdown),
    ("s9_a_held_dpkg_lock_keeps_it_awake", held_dpkg_lock),
];

fn a_login_cancels_within_a_second() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            grace_period: "40s",
            ..EAGER
        },
    );
    agent.start();
    agent.status_when("in the grace period", |status| status["state"] == "grace");
    let session = agent.bed.login.open(SOON);
    agent.status_when("awake because of the login", |status| status["state"] == "active");
    let accepted = last_time(agent.bed, "ssh.service", "Accepted publickey");
    let cancelled = last_time(agent.bed, "vmstation-autosleep.service", "announced sleep is cancelled");
    let took = cancelled - accepted;
    assert!((-1.0..=1.0).contains(&took), "cancelled {took} s after the login");
    println!("cancelled {took:.3} s after the login");
    session.close(SOON);
    agent.status_when("idle again", |status| status["state"] != "active");
    assert_eq!(agent.bed.qmp.suspends(), suspends);
}

/// When a unit last said something, seconds since 1970 on the guest's clock.
fn last_time(bed: &mut Bed, unit: &str, what: &str) -> f64 {
    let line = bed.channel.ask(&format!(
        "journalctl --no-pager --output short-unix --unit {unit} | grep -F '{what}' | tail -n 1"
    ));
    let time = line.split_whitespace().next();
    time.unwrap_or_else(|| panic!("{unit} does not say {what:?}"))
        .parse()
        .unwrap()
}

/// How one try went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    /// The login came after the attempt had begun, and it was given up.
    CalledOff,
    /// The login came before the attempt began.
    TooEarly,
    /// The login came when the guest slept.
    TooLate,
}

fn no_login_is_lost() {
    const WANTED: u32 = 50;
    const AT_MOST: u32 = 160;
    let mut bed = bed();
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            min_awake: "0s",
            ..Settings::default()
        },
    );
    agent.hook("pre-sleep.d", "01-slow", "sleep 0.3");
    agent.start();
    agent.status_when("watching", |status| status["rates"]["over_s"].as_f64() > Some(0.0));
    // How long after the order a login sets out, or before it if negative, milliseconds. A login takes a second or two.
    let mut offset = -500_i64;
    let mut seed = 1_u64;
    let (mut called_off, mut early, mut late) = (0, 0, 0);
    for _ in 0..AT_MOST {
        // Numerical Recipes' generator: the same offsets in every run.
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0xffff_ffff;
        let jitter = i64::try_from(seed >> 8).unwrap() % 400 - 200;
        match one_login(&mut agent, offset + jitter) {
            Try::CalledOff => called_off += 1,
            Try::TooEarly => {
                early += 1;
                offset += 100;
            }
            Try::TooLate => {
                late += 1;
                offset -= 100;
            }
        }
        if called_off == WANTED {
            break;
        }
    }
    println!("{called_off} logins called a sleep off; {early} came before one began, {late} when the guest slept");
    assert_eq!(called_off, WANTED, "logins at the right moment");
}

fn one_login(agent: &mut Installation<'_>, offset_ms: i64) -> Try {
    let suspends = agent.bed.qmp.suspends();
    let wait = Duration::from_millis(offset_ms.unsigned_abs());
    let mut session;
    if offset_ms < 0 {
        session = agent.bed.login.begin();
        thread::sleep(wait);
        agent.order_sleep("");
    } else {
        agent.order_sleep("");
        thread::sleep(wait);
        session = agent.bed.login.begin();
    }
    // Ends with the login, or with the guest asleep: no session then.
    let mut is_in = false;
    for _ in 0..600 {
        is_in = session.is_in(Duration::from_millis(100));
        if is_in || agent.bed.qmp.status() == "suspended" {
            break;
        }
    }
    if is_in {
        let order = agent.order_ended();
        assert_eq!(
            agent.bed.qmp.suspends(),
            suspends,
            "suspended with a live session\n{}",
            agent.log()
        );
        session.close(SOON);
        agent.status_when("without sessions", |status| {
            status["rates"]["ssh_sessions"].as_array().is_some_and(Vec::is_empty)
        });
        assert_eq!(order.status, 3, "{}\n{}", order.text, agent.log());
        // Otherwise the order was refused before an attempt began.
        return if order.text.contains("called off") {
            Try::CalledOff
        } else {
            Try::TooEarly
        };
    }
    assert_eq!(
        agent.bed.qmp.status(),
        "suspended",
        "neither a login nor a suspend\n{}",
        agent.log()
    );
    thread::sleep(crate::vm::bed::NAP);
    agent.bed.wake();
    agent.order_ended();
    assert!(session.is_in(SOON), "the login that came too late is lost");
    let accepted = agent.bed.channel.ask(
        "journalctl --no-pager --output short-monotonic --unit ssh.service | grep -F 'Accepted publickey' | tail -n 1 | tr -d '[]' | awk '{ print $1 }'",
    );
    let suspended = agent
        .bed
        .channel
        .ask("dmesg | grep -F 'PM: suspend entry' | tail -n 1 | tr -d '[]' | awk '{ print $1 }'");
    let (accepted, suspended): (f64, f64) = (accepted.parse().unwrap(), suspended.parse().unwrap());
    assert!(
        accepted > suspended,
        "logged in at {accepted}, suspended at {suspended}\n{}",
        agent.log()
    );
    session.close(SOON);
    agent.status_when("without sessions", |status| {
        status["rates"]["ssh_sessions"].as_array().is_some_and(Vec::is_empty)
    });
    Try::TooLate
}

/// A sleep that is ordered is refused, and the reason has these words.
fn is_refused(agent: &mut Installation<'_>, words: &[&str]) {
    let suspends = agent.bed.qmp.suspends();
    for options in ["--check", ""] {
        let order = agent.ctl(&format!("sleep {options}"));
        assert_eq!(order.status, 3, "{options}: {}\n{}", order.text, agent.log());
        for word in words {
            assert!(order.text.contains(word), "no {word} in {}", order.text);
        }
    }
    assert_eq!(agent.bed.qmp.suspends(), suspends);
}

/// A sleep that is ordered is carried out.
fn is_carried_out(agent: &mut Installation<'_>) {
    agent.order_sleep("");
    agent.bed.nap("nothing stands against it any more");
    let order = agent.order_ended();
    assert_eq!(order.status, 0, "{}\n{}", order.text, agent.log());
}

fn systemd_inhibit_is_named() {
    let mut bed = bed();
    let mut agent = Installation::new(&mut bed, &Settings::default());
    agent.start();
    agent.bed.channel.start(
        "trial-inhibit",
        "exec systemd-inhibit --what=sleep --who=backup --why='a nightly copy' sleep 600",
    );
    agent
        .bed
        .channel
        .ask("for try in $(seq 100); do systemd-inhibit --list | grep -q backup && exit; sleep 0.1; done; exit 1");
    is_refused(&mut agent, &["backup", "a nightly copy"]);
    agent.bed.channel.ask("systemctl stop trial-inhibit");
    is_carried_out(&mut agent);
}

fn scheduled_shutdown() {
    let mut bed = bed();
    let mut agent = Installation::new(&mut bed, &Settings::default());
    agent.start();
    agent.bed.channel.ask("shutdown -h +60 2>/dev/null");
    is_refused(&mut agent, &["shutdown"]);
    agent.bed.channel.ask("shutdown -c 2>/dev/null");
    is_carried_out(&mut agent);
}

fn held_dpkg_lock() {
    let mut bed = bed();
    let mut agent = Installation::new(&mut bed, &Settings::default());
    agent.start();
    // dpkg and apt take their locks with fcntl(2); flock(1) would not do. struct flock: l_type F_WRLCK, the whole file.
    agent.bed.channel.start(
        "trial-lock",
        "exec perl -e 'open(my $lock, \"+>>\", \"/var/lib/dpkg/lock-frontend\") or die; \
         my $whole = pack(\"s s x4 q q l x4\", 1, 0, 0, 0, 0); fcntl($lock, 6, $whole) or die; open(my $held, \">\", \"/run/trial-lock.held\"); close($held); sleep 600'",
    );
    agent
        .bed
        .channel
        .ask("for try in $(seq 100); do [ -e /run/trial-lock.held ] && rm /run/trial-lock.held && exit; sleep 0.1; done; exit 1");
    is_refused(&mut agent, &["dpkg"]);
    agent.bed.channel.ask("systemctl stop trial-lock");
    is_carried_out(&mut agent);
}
