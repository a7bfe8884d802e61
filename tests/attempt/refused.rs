//! Attempts that somebody or something stands against: who and what it is is said, and whatever was done by then is undone.

use std::{fs, os::unix::net::UnixListener, sync::Arc};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use vmstation_agent::{
    attempt::{Ending, Step},
    config::Sleep,
};

use crate::{
    fake_login1::{Bus, Machine, Script},
    node::Node,
    run,
};

/// What an attempt is refused with, on a node and a machine prepared like this; and the last step that was begun.
async fn refusal(script: Script, prepare: impl FnOnce(&Node, &Machine) -> Sleep) -> (String, Step) {
    let bus = Bus::start();
    let machine = Arc::<Machine>::default();
    let _served = bus.logind(script, &machine).await;
    let node = Node::new();
    let sleep = prepare(&node, &machine);
    let report = node.attempt(&bus.address(), sleep).await;
    node.assert_left_alone(None, "refused");
    let last = report.steps.last().map_or(Step::Objections, |(step, _)| *step);
    let orders = usize::from(last == Step::Suspend);
    assert_eq!(machine.orders.lock().unwrap().len(), orders, "orders to suspend");
    assert_hooks(&node, last);
    match report.ending {
        Ending::Refused(why) => (why, last),
        other => panic!("{other:?}"),
    }
}

/// Hooks that ran before are followed by those afterwards.
fn assert_hooks(node: &Node, last: Step) {
    if last < Step::Hooks {
        assert!(node.told().is_empty(), "{:?}", node.told());
    } else {
        assert_eq!(node.told(), ["first pre-sleep", "last post-wake refused"]);
    }
}

/// One that is said before anything is done.
fn at_once(prepare: impl FnOnce(&Node, &Machine) -> Sleep, parts: &[&str]) {
    run(async {
        let (why, last) = refusal(Script::Sleeps, prepare).await;
        assert_eq!(last, Step::Objections);
        assert_says(&why, parts);
    });
}

fn assert_says(why: &str, parts: &[&str]) {
    for part in parts {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
}

pub(crate) fn by_an_inhibitor() {
    at_once(
        |node, machine| {
            let [what, who, why, mode] = ["sleep", "backup", "copying", "block"].map(str::to_owned);
            *machine.inhibitors.lock().unwrap() = vec![(what, who, why, mode, 0, 42)];
            node.settings()
        },
        &["inhibited by backup (uid 0, pid 42): copying"],
    );
}

pub(crate) fn by_an_inhibitor_at_the_last_moment() {
    run(async {
        for script in [Script::Blocked, Script::BlockedByLock, Script::InProgress] {
            let (why, last) = refusal(script, |node, _| node.settings()).await;
            assert_eq!(last, Step::Suspend, "{script:?}");
            let expected = if script == Script::InProgress {
                "logind is at it already"
            } else {
                "systemd-inhibit --list"
            };
            assert_says(&why, &[expected]);
        }
    });
}

pub(crate) fn by_a_shutdown() {
    at_once(
        |node, machine| {
            *machine.shutdown.lock().unwrap() = ("reboot".into(), 1_750_000_000_000_000);
            node.settings()
        },
        &["a shutdown (reboot) is scheduled"],
    );
}

pub(crate) fn by_dpkg() {
    let mut held = None;
    at_once(
        |node, _| {
            node.write("root/var/lib/dpkg/lock-frontend", "");
            let lock = fs::File::options()
                .write(true)
                .open(node.file("root/var/lib/dpkg/lock-frontend"))
                .unwrap();
            // Of the open file: a process does not meet locks of its own.
            let whole = libc::flock {
                l_type: i16::try_from(libc::F_WRLCK).unwrap(),
                l_whence: 0,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
            held = Some(lock);
            node.settings()
        },
        &["packages are being installed", "var/lib/dpkg/lock-frontend"],
    );
}

pub(crate) fn by_an_upgrade_that_a_hook_begins() {
    run(async {
        let (why, last) = refusal(Script::Sleeps, |node, _| {
            node.hook(
                "pre-sleep.d/20-upgrade",
                r#"mkdir -p "$node/root/var/lib/pacman" && : > "$node/root/var/lib/pacman/db.lck""#,
            );
            node.settings()
        })
        .await;
        assert_eq!(last, Step::LastObjections);
        assert_says(&why, &["packages are being installed", "db.lck"]);
    });
}

pub(crate) fn without_mem() {
    at_once(
        |node, _| {
            node.write("sys/power/state", "freeze disk\n");
            node.settings()
        },
        &["power/state does not offer `mem`"],
    );
}

pub(crate) fn with_s2idle_only() {
    at_once(
        |node, _| {
            node.write("sys/power/mem_sleep", "[s2idle]\n");
            node.settings()
        },
        &["only s2idle", "allow_s2idle"],
    );
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let node = Node::new();
        node.write("sys/power/mem_sleep", "[s2idle]\n");
        let allowed = Sleep {
            allow_s2idle: true,
            ..node.settings()
        };
        node.attempt(&bus.address(), allowed).await;
        assert_eq!(machine.orders.lock().unwrap().len(), 1, "allowed");
    });
}

pub(crate) fn without_a_bus() {
    run(async {
        let node = Node::new();
        let address = format!("unix:path={}", node.file("bus").display());
        let report = node.attempt(&address, node.settings()).await;
        let Ending::Refused(why) = report.ending else {
            panic!("{:?}", report.ending)
        };
        assert_says(&why, &["connecting to the system bus", "is dbus running?"]);
        node.assert_left_alone(None, "no bus");
        assert!(node.told().is_empty());
    });
}

pub(crate) fn by_a_silent_bus() {
    run(async {
        let node = Node::new();
        let _listens = UnixListener::bind(node.file("bus")).unwrap();
        let address = format!("unix:path={}", node.file("bus").display());
        let report = node.attempt(&address, node.settings()).await;
        let Ending::Refused(why) = report.ending else {
            panic!("{:?}", report.ending)
        };
        assert_says(&why, &["no answer within 5 s"]);
        assert!(node.told().is_empty());
    });
}

pub(crate) fn as_nobody_could_wake_it() {
    let nobody = |node: &Node, _: &Machine| Sleep {
        wake_after: None,
        ..node.settings()
    };
    at_once(
        nobody,
        &[
            "nothing could wake the host",
            "no physical network card",
            "allow_unwakeable",
        ],
    );
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let node = Node::new();
        let allowed = Sleep {
            wake_after: None,
            allow_unwakeable: true,
            ..node.settings()
        };
        let report = node.attempt(&bus.address(), allowed).await;
        assert_eq!(machine.orders.lock().unwrap().len(), 1, "allowed");
        assert!(report.steps.iter().all(|(step, _)| *step != Step::Alarm));
    });
}

pub(crate) fn as_systemd_would_try_more() {
    at_once(
        |node, _| {
            node.write(
                "root/etc/systemd/sleep.conf.d/x.conf",
                "[Sleep]\nSuspendState=mem freeze\n",
            );
            node.settings()
        },
        &["`mem freeze`", "SuspendState=mem"],
    );
}

pub(crate) fn everything_at_once() {
    at_once(
        |node, machine| {
            node.write("sys/power/state", "freeze\n");
            *machine.shutdown.lock().unwrap() = ("poweroff".into(), 1_750_000_000_000_000);
            node.settings()
        },
        &["does not offer `mem`", "a shutdown (poweroff)"],
    );
}

pub(crate) fn without_a_clock() {
    run(async {
        let (why, last) = refusal(Script::Sleeps, |node, _| {
            node.set_clock("never");
            node.settings()
        })
        .await;
        assert_eq!(last, Step::Alarm);
        assert_says(&why, &["the alarm that would wake the host cannot be set", "\"never\""]);
    });
}

pub(crate) fn by_a_wakeup_event() {
    run(async {
        let (why, last) = refusal(Script::Sleeps, |node, _| {
            // A pipe that nobody writes to: the kernel, too, answers only when no event is being processed.
            node.replace_by_pipe("sys/power/wakeup_count");
            node.settings()
        })
        .await;
        assert_eq!(last, Step::WakeupCount);
        assert_says(&why, &["a wakeup event is being processed"]);
    });
}

pub(crate) fn without_a_journal() {
    run(async {
        let (why, last) = refusal(Script::Sleeps, |node, _| {
            fs::remove_dir(node.file("state")).unwrap();
            node.write("state", "a file where a folder should be");
            node.settings()
        })
        .await;
        assert_eq!(last, Step::Objections);
        assert_says(&why, &["the journal of the attempt cannot be written"]);
    });
}

pub(crate) fn as_the_journal_goes_away() {
    run(async {
        let (why, last) = refusal(Script::Sleeps, |node, _| {
            node.hook("pre-sleep.d/20-tidy", r#"rm -r "$node/state""#);
            node.settings()
        })
        .await;
        assert_eq!(last, Step::Hooks, "no further step is begun");
        assert_says(&why, &["the journal of the attempt cannot be written"]);
    });
}
