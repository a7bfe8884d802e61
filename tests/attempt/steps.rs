//! Attempts that go on to the suspend: the order of steps and hooks, the alarm, and how a suspend fails.

use std::sync::{Arc, Mutex};

use vmstation_agent::{
    attempt::{Ending, Step},
    config::{HookFailure, Sleep},
};

use crate::{
    fake_login1::{Bus, Machine, Script},
    node::{ALARM, Deed, Moment, NOW, Node, Watch, nobody_watches, until, watch},
    run,
};

pub(crate) fn in_order() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let node = Node::new();
        let line = r#"echo "$(basename "$0") $VMSTATION_EVENT $VMSTATION_NODE $VMSTATION_OUTCOME" >> "$node/told""#;
        for hook in [
            "pre-sleep.d/10-first",
            "pre-sleep.d/20-second",
            "post-wake.d/10-last",
            "post-wake.d/20-very-last",
        ] {
            node.hook(hook, line);
        }
        let (told, at_suspend) = (node.file("told"), Arc::new(Mutex::new(None)));
        let (log, seen) = watch();
        let looks = Arc::clone(&at_suspend);
        let watch: Watch = Arc::new(move |moment| {
            log(moment);
            if moment == Moment::Before(Deed::Do(Step::Suspend)) {
                *looks.lock().unwrap() = Some(std::fs::read_to_string(&told).unwrap());
            }
        });
        let report = node.begin(&bus.address(), &watch).ended().await;
        // The clocks of this machine cannot be made to say that it slept.
        assert!(matches!(report.ending, Ending::Failed(_)), "{:?}", report.ending);
        assert!(report.window.is_some());
        assert_eq!(
            at_suspend.lock().unwrap().as_deref(),
            Some("10-first pre-sleep node1 \n20-second pre-sleep node1 \n")
        );
        assert_eq!(
            node.told()[2..],
            ["10-last post-wake node1 failed", "20-very-last post-wake node1 failed"]
        );
        let deeds = Step::ALL
            .map(Deed::Do)
            .into_iter()
            .chain([Step::Handshake, Step::Alarm, Step::Hooks, Step::Leave].map(Deed::Undo));
        let expected: Vec<_> = deeds
            .flat_map(|deed| [Moment::Before(deed), Moment::After(deed)])
            .collect();
        assert_eq!(*seen.lock().unwrap(), expected);
        assert_eq!(
            report.steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            Step::ALL
        );
        assert_eq!(machine.orders.lock().unwrap().len(), 1);
        node.assert_left_alone(None, "after all");
    });
}

pub(crate) fn vetoed_by_a_hook() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let node = Node::new();
        node.hook("pre-sleep.d/20-backup", "exit 7");
        let veto = Sleep {
            hook_failure: HookFailure::Veto,
            ..node.settings()
        };
        let report = node.attempt(&bus.address(), veto).await;
        let expected = "the pre-sleep hook 20-backup: failed with exit status 7";
        assert_eq!(report.ending, Ending::Refused(expected.into()));
        assert_eq!(node.told(), ["first pre-sleep", "last post-wake refused"]);
        assert!(machine.orders.lock().unwrap().is_empty());
        node.assert_left_alone(None, "veto");
        // Unless told otherwise, the sleep goes on.
        node.attempt(&bus.address(), node.settings()).await;
        assert_eq!(machine.orders.lock().unwrap().len(), 1);
    });
}

/// The alarm at the moment of the order to suspend, and afterwards.
async fn alarms(foreign: Option<u64>) -> (Option<u64>, Option<u64>) {
    let bus = Bus::start();
    let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
    let node = Arc::new(Node::new());
    if let Some(rings) = foreign {
        node.set_alarm(rings);
    }
    let at_suspend = Arc::new(Mutex::new(None));
    let (looks, sees) = (Arc::clone(&at_suspend), Arc::clone(&node));
    let watch: Watch = Arc::new(move |moment| {
        if moment == Moment::Before(Deed::Do(Step::Suspend)) {
            *looks.lock().unwrap() = sees.alarm();
        }
    });
    node.begin(&bus.address(), &watch).ended().await;
    let then = *at_suspend.lock().unwrap();
    (then, node.alarm())
}

pub(crate) fn with_an_alarm() {
    run(async {
        assert_eq!(alarms(None).await, (Some(ALARM), None));
    });
}

pub(crate) fn with_an_earlier_alarm() {
    run(async {
        let earlier = Some(NOW + 60);
        assert_eq!(alarms(earlier).await, (earlier, earlier));
    });
}

pub(crate) fn with_a_later_alarm() {
    run(async {
        let later = Some(NOW + 9_000);
        assert_eq!(alarms(later).await, (Some(ALARM), later));
    });
}

/// How a suspend ends during which the kernel counts this.
async fn ending(counts: &[(&str, &str)]) -> Ending {
    let bus = Bus::start();
    let machine = Arc::<Machine>::default();
    let _served = bus.logind(Script::Held, &machine).await;
    let node = Node::new();
    let running = node.begin(&bus.address(), &nobody_watches());
    let suspends = async {
        until(|| !machine.orders.lock().unwrap().is_empty()).await;
        for (file, text) in counts {
            node.write(&format!("sys/power/suspend_stats/{file}"), text);
        }
        machine.let_go.notify_one();
    };
    let ((), report) = tokio::join!(suspends, running.ended());
    node.assert_left_alone(None, "after a suspend that failed");
    assert_eq!(node.told(), ["first pre-sleep", "last post-wake failed"]);
    report.ending
}

pub(crate) fn failed_by_the_kernel() {
    run(async {
        let counts = [
            ("fail", "1\n"),
            ("last_failed_errno", "-16\n"),
            ("last_failed_step", "freeze\n"),
        ];
        let Ending::Failed(why) = ending(&counts).await else {
            panic!("not failed")
        };
        assert!(why.contains("`freeze`") && why.contains("EBUSY"), "{why}");
    });
}

pub(crate) fn faked_by_the_kernel() {
    run(async {
        let Ending::Failed(why) = ending(&[("success", "4\n")]).await else {
            panic!("not failed")
        };
        assert!(why.contains("no time was spent suspended"), "{why}");
    });
}
