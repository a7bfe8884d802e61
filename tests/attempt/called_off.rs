//! Attempts that are called off (fault S1): at any moment on the way, in a hook, during the suspend.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use nix::unistd::{pipe, write};
use tokio::task::yield_now;
use vmstation_agent::{
    attempt::{Ending, Step},
    sleeper::SSH_MOVED,
};

use crate::{
    fake_login1::{Bus, Machine, Script},
    node::{Deed, Moment, Node, nobody_watches, until, watch},
    run,
};

const ATTEMPTS: u64 = 200;
/// The most turns of the runtime that a call comes after the beginning of a step.
const LONGEST: u64 = 40;
const WHY: &str = "a login";

/// Numbers that are the same in every run (splitmix64).
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn at_any_moment() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let (mut stopped_at, mut too_late) = (BTreeSet::new(), 0);
        for number in 0..ATTEMPTS {
            let draw = random(number);
            let step = Step::ALL[usize::try_from(draw % 12).unwrap()];
            let turns = (draw >> 32) % LONGEST;
            let context = format!("attempt {number}, called off {turns} turns into {step}");
            machine.orders.lock().unwrap().clear();
            match called_off_in(step, turns, &bus, &machine, &context).await {
                Some(last) => {
                    stopped_at.insert(last);
                }
                None => too_late += 1,
            }
        }
        assert!(stopped_at.len() >= 8, "calls were heard only in {stopped_at:?}");
        assert!(too_late > 0, "no call came after the order");
    });
}

/// Calls an attempt off so many turns of the runtime after a step began. The step that heard it; `None`: it came after the order to suspend.
async fn called_off_in(step: Step, turns: u64, bus: &Bus, machine: &Machine, context: &str) -> Option<Step> {
    let node = Node::new();
    let (watch, seen) = watch();
    let has_begun = |step| seen.lock().unwrap().contains(&Moment::Before(Deed::Do(step)));
    let running = node.begin(&bus.address(), &watch);
    let handle = running.handle.clone();
    let calls_off = async {
        while !has_begun(step) {
            yield_now().await;
        }
        for _turn in 0..turns {
            yield_now().await;
        }
        // One thread does all of this: nothing comes between these two.
        let is_ordered = has_begun(Step::Suspend);
        handle.call_off(WHY.into());
        is_ordered
    };
    let (is_ordered, report) = tokio::join!(calls_off, running.ended());
    if is_ordered {
        let ending = &report.ending;
        assert!(
            matches!(ending, Ending::Aborted(_) | Ending::Failed(_)),
            "{context}: {ending:?}"
        );
    } else {
        assert!(!has_begun(Step::Suspend), "{context}: suspended");
        assert_eq!(report.ending, Ending::Aborted(WHY.into()), "{context}");
    }
    assert_eq!(
        machine.orders.lock().unwrap().len(),
        usize::from(is_ordered),
        "{context}: orders to suspend"
    );
    if has_begun(Step::Hooks) {
        let told = node.told();
        let last = told.iter().filter(|line| line.starts_with("last")).count();
        assert_eq!(last, 1, "{context}: {told:?}");
    }
    assert_undone(&seen.lock().unwrap(), context);
    node.assert_left_alone(None, context);
    let heard = report.steps.last().map(|(step, _)| *step);
    heard.filter(|_| !is_ordered)
}

/// What was done and leaves something behind is undone, last first.
fn assert_undone(seen: &[Moment], context: &str) {
    let mut done = Vec::new();
    for moment in seen {
        match *moment {
            Moment::Before(Deed::Do(step)) if step.is_undone() => done.push(step),
            Moment::After(Deed::Undo(step)) if done.last() == Some(&step) => {
                done.pop();
            }
            Moment::Before(_) | Moment::After(_) => {}
        }
    }
    assert!(done.is_empty(), "{context}: {done:?} not undone in {seen:?}");
}

pub(crate) fn during_the_suspend() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Held, &machine).await;
        let node = Node::new();
        let running = node.begin(&bus.address(), &nobody_watches());
        let (handle, veto) = (running.handle.clone(), Arc::clone(&running.veto));
        let calls_off = async {
            until(|| !machine.orders.lock().unwrap().is_empty()).await;
            let veto = veto.lock().unwrap().clone().unwrap();
            assert!(!veto.is_raised().unwrap());
            handle.call_off(WHY.into());
            until(|| veto.is_raised().unwrap()).await;
            assert!(
                node.is_armed(),
                "it is the armed count that lets the veto stop the kernel"
            );
            machine.let_go.notify_one();
            veto
        };
        let (veto, report) = tokio::join!(calls_off, running.ended());
        assert_eq!(report.ending, Ending::Aborted(WHY.into()));
        assert!(!veto.is_raised().unwrap(), "the veto holds the host awake for ever");
        node.assert_left_alone(None, "after the suspend");
        assert_eq!(node.told(), ["first pre-sleep", "last post-wake aborted"]);
    });
}

pub(crate) fn by_a_login_nobody_has_heard_of() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Held, &machine).await;
        let mut node = Node::new();
        let (login, logs_in) = pipe().unwrap();
        node.login = Some(login);
        let running = node.begin(&bus.address(), &nobody_watches());
        let veto = Arc::clone(&running.veto);
        let logs_in = async {
            until(|| !machine.orders.lock().unwrap().is_empty()).await;
            let veto = veto.lock().unwrap().clone().unwrap();
            assert!(!veto.is_raised().unwrap());
            write(&logs_in, b"x").unwrap();
            assert!(veto.is_raised().unwrap());
            machine.let_go.notify_one();
        };
        let ((), report) = tokio::join!(logs_in, running.ended());
        assert_eq!(report.ending, Ending::Aborted(SSH_MOVED.into()));
        node.assert_left_alone(None, "after the suspend");
        assert_eq!(node.told(), ["first pre-sleep", "last post-wake aborted"]);
    });
}

pub(crate) fn in_a_hook_that_hangs() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let node = Node::new();
        node.hook(
            "pre-sleep.d/10-first",
            r#"echo $$ > "$node/pid.new"; mv "$node/pid.new" "$node/pid"; exec sleep 3600"#,
        );
        let running = node.begin(&bus.address(), &nobody_watches());
        let handle = running.handle.clone();
        let calls_off = async {
            until(|| node.file("pid").exists()).await;
            handle.call_off(WHY.into());
        };
        let ((), report) = tokio::join!(calls_off, running.ended());
        assert_eq!(report.ending, Ending::Aborted(WHY.into()));
        assert_eq!(node.told(), ["last post-wake aborted"]);
        let hook = PathBuf::from("/proc").join(node.read("pid").trim());
        until(|| !hook.exists()).await;
        assert!(machine.orders.lock().unwrap().is_empty());
        node.assert_left_alone(None, "after the hook");
    });
}
