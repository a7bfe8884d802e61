//! Attempts whose process is killed (faults F1, F2; acceptance 5): this program runs itself again, and that process kills itself with
//! SIGKILL at the moment it is told. Then the journal is read and undone, as the next agent does it.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::signal::{Signal, raise};
use tokio::process::Command;
use vmstation_agent::{
    attempt::{Ending, Step},
    journal::Record,
    sleeper::Report,
    suspend::rtc::{Alarm, RtcTime},
};

use crate::{
    fake_login1::{Bus, Machine, Script},
    node::{ALARM, ALL, BOOT, Deed, Moment, NOW, Node, Watch, nobody_watches, until},
    run,
};

/// Makes this program a process that dies: `DIE NODE BUS begin|recover before|after do|undo STEP`.
pub(crate) const DIE: &str = "--die-in-an-attempt";

/// Steps that are undone, in that order.
const UNDONE: [Step; 4] = [Step::Handshake, Step::Alarm, Step::Hooks, Step::Leave];
/// When an alarm of somebody else's rings that ours takes the place of.
const LATER: u64 = NOW + 9_000;

/// What the process does that dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// Sleeps.
    Begin,
    /// Undoes what another one left.
    Recover,
}

/// The process that dies.
pub(crate) fn die(mut arguments: impl Iterator<Item = String>) {
    let mut next = || arguments.next().unwrap();
    let (node, bus) = (Node::at(Path::new(&next())), next());
    let is_recovery = next() == "recover";
    let (is_before, is_done) = (next() == "before", next() == "do");
    let step = Step::ALL[next().parse::<usize>().unwrap()];
    let deed = if is_done { Deed::Do(step) } else { Deed::Undo(step) };
    let last = if is_before {
        Moment::Before(deed)
    } else {
        Moment::After(deed)
    };
    let watch: Watch = Arc::new(move |moment| {
        if moment == last {
            raise(Signal::SIGKILL).unwrap();
        }
    });
    run(async {
        let running = if is_recovery {
            let record = node.journal().load().unwrap().unwrap();
            node.recover(&bus, record, BOOT, &watch)
        } else {
            node.begin(&bus, &watch)
        };
        running.ended().await;
    });
}

fn process(node: &Node, bus: &Bus, errand: Errand, moment: Moment) -> Command {
    let (when, deed) = match moment {
        Moment::Before(deed) => ("before", deed),
        Moment::After(deed) => ("after", deed),
    };
    let (what, step) = match deed {
        Deed::Do(step) => ("do", step),
        Deed::Undo(step) => ("undo", step),
    };
    let number = Step::ALL.iter().position(|other| *other == step).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .arg(DIE)
        .arg(node.path())
        .arg(bus.address())
        .arg(if errand == Errand::Begin { "begin" } else { "recover" })
        .args([when, what, &number.to_string()])
        // Hooks are then children, and end with what started them.
        .env_remove("INVOCATION_ID")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn killed(node: &Node, bus: &Bus, errand: Errand, moment: Moment) {
    let status = process(node, bus, errand, moment).status().await.unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{moment:?}: {status}");
}

/// What the next agent does; also what it found.
async fn recovered(node: &Node, bus: &Bus, context: &str) -> (Record, Report) {
    let record = node.journal().load().unwrap();
    let record = record.unwrap_or_else(|| panic!("{context}: no journal"));
    let report = node
        .recover(&bus.address(), record.clone(), BOOT, &nobody_watches())
        .ended()
        .await;
    assert_eq!(report.ending, Ending::Interrupted, "{context}");
    (record, report)
}

/// Every moment before and after a step and the undoing of one.
fn moments() -> Vec<Moment> {
    let deeds = Step::ALL.map(Deed::Do).into_iter().chain(UNDONE.map(Deed::Undo));
    deeds
        .flat_map(|deed| [Moment::Before(deed), Moment::After(deed)])
        .collect()
}

/// What the hooks have written when everything is undone. A process that dies between the end of the hooks and the next line of its journal
/// leaves them to be run once more.
fn told(moment: Moment) -> Vec<&'static str> {
    const FIRST: &str = "first pre-sleep";
    const FAILED: &str = "last post-wake failed";
    const INTERRUPTED: &str = "last post-wake interrupted";
    match moment {
        Moment::Before(Deed::Do(step)) | Moment::After(Deed::Do(step)) if step < Step::Hooks => vec![],
        Moment::Before(Deed::Do(Step::Hooks)) => vec![INTERRUPTED],
        Moment::After(Deed::Undo(Step::Hooks)) => vec![FIRST, FAILED, INTERRUPTED],
        Moment::Before(Deed::Undo(Step::Leave)) | Moment::After(Deed::Undo(Step::Leave)) => vec![FIRST, FAILED],
        Moment::Before(_) | Moment::After(_) => vec![FIRST, INTERRUPTED],
    }
}

pub(crate) fn at_each_step() {
    killed_at_each_step(None);
}

pub(crate) fn at_each_step_with_a_later_alarm() {
    killed_at_each_step(Some(LATER));
}

fn killed_at_each_step(foreign: Option<u64>) {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let mut found = BTreeSet::new();
        let (mut with_alarm, mut armed) = (0, 0);
        for moment in moments() {
            let context = format!("{moment:?}");
            let node = Node::new();
            if let Some(rings) = foreign {
                node.set_alarm(rings);
            }
            killed(&node, &bus, Errand::Begin, moment).await;
            with_alarm += u32::from(node.alarm() == Some(ALARM));
            armed += u32::from(node.is_armed());
            let (record, _) = recovered(&node, &bus, &context).await;
            found.insert(record.step);
            node.assert_left_alone(foreign, &context);
            assert_eq!(node.told(), told(moment), "{context}");
            let ordered = matches!(moment, Moment::After(Deed::Do(Step::Suspend)))
                || matches!(moment, Moment::Before(Deed::Undo(_)) | Moment::After(Deed::Undo(_)));
            let orders = std::mem::take(&mut *machine.orders.lock().unwrap());
            assert_eq!(orders.len(), usize::from(ordered), "{context}: orders to suspend");
        }
        // From the end of the step to the beginning of its undoing.
        assert_eq!((with_alarm, armed), (12, 4), "deaths with something left behind");
        assert_eq!(found.len(), Step::ALL.len(), "{found:?}");
    });
}

pub(crate) fn in_the_recovery() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        for deed in UNDONE.map(Deed::Undo) {
            for moment in [Moment::Before(deed), Moment::After(deed)] {
                let context = format!("{moment:?}");
                let node = Node::new();
                node.set_alarm(LATER);
                killed(&node, &bus, Errand::Begin, Moment::Before(Deed::Do(Step::Suspend))).await;
                killed(&node, &bus, Errand::Recover, moment).await;
                recovered(&node, &bus, &context).await;
                node.assert_left_alone(Some(LATER), &context);
                let again = usize::from(moment == Moment::After(Deed::Undo(Step::Hooks)));
                assert_eq!(node.told().len(), 2 + again, "{context}: {:?}", node.told());
            }
        }
        assert!(machine.orders.lock().unwrap().is_empty(), "a recovery sleeps");
    });
}

pub(crate) fn during_a_hook() {
    run(async {
        let bus = Bus::start();
        let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
        let node = Node::new();
        node.hook("pre-sleep.d/10-first", r#"echo first >> "$node/told"; kill -9 $PPID"#);
        // Dies before that moment comes.
        killed(&node, &bus, Errand::Begin, Moment::After(Deed::Do(Step::Hooks))).await;
        let (record, _) = recovered(&node, &bus, "first hook").await;
        assert_eq!(record.step, Step::Hooks);
        assert_eq!(node.told(), ["first", "last post-wake interrupted"]);
        node.assert_left_alone(None, "first hook");
    });
}

pub(crate) fn while_the_alarm_is_set() {
    const REGISTER: &str = "sys/class/rtc/rtc0/wakealarm";
    run(async {
        let bus = Bus::start();
        let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
        // The other's alarm is still there; it is cleared; ours is in its place.
        for register in [format!("{LATER}\n"), String::new(), format!("{ALARM}\n")] {
            let node = Node::new();
            node.replace_by_pipe(REGISTER);
            let pipe = node.file(REGISTER);
            // Is read once for the plan; the next reading, before the alarm is set, finds nobody who writes and waits.
            let writes = thread::spawn(move || fs::write(pipe, format!("{LATER}\n")));
            let unreached = Moment::After(Deed::Do(Step::Alarm));
            let mut process = process(&node, &bus, Errand::Begin, unreached).spawn().unwrap();
            until(|| matches!(node.journal().load(), Ok(Some(Record { alarm: Some(_), .. })))).await;
            process.kill().await.unwrap();
            writes.join().unwrap().unwrap();
            fs::remove_file(node.file(REGISTER)).unwrap();
            node.write(REGISTER, &register);
            let (record, _) = recovered(&node, &bus, &register).await;
            assert_eq!(record.step, Step::Alarm);
            node.assert_left_alone(Some(LATER), &register);
        }
    });
}

pub(crate) fn during_the_suspend() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Held, &machine).await;
        let node = Node::new();
        let mut process = process(&node, &bus, Errand::Begin, Moment::After(Deed::Do(Step::Suspend)))
            .spawn()
            .unwrap();
        until(|| !machine.orders.lock().unwrap().is_empty()).await;
        process.kill().await.unwrap();
        assert!(node.is_armed() && node.alarm() == Some(ALARM));
        let (record, _) = recovered(&node, &bus, "suspend").await;
        assert_eq!(record.step, Step::Suspend);
        node.assert_left_alone(None, "suspend");
        assert_eq!(node.told(), ["first pre-sleep", "last post-wake interrupted"]);
        assert_eq!(machine.orders.lock().unwrap().len(), 1);
    });
}

pub(crate) fn at_any_time() {
    const MOMENTS: u64 = 40;
    run(async {
        let bus = Bus::start();
        let machine = Arc::<Machine>::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let mut found = 0;
        for number in 0..MOMENTS {
            let node = Node::new();
            let unreached = Moment::After(Deed::Undo(Step::Sync));
            let mut process = process(&node, &bus, Errand::Begin, unreached).spawn().unwrap();
            tokio::time::sleep(Duration::from_millis(number)).await;
            // It may be over.
            let _killed = process.kill().await;
            let context = format!("{number} ms");
            if let Some(record) = node.journal().load().unwrap() {
                found += 1;
                let ran = record.begun.contains(&Step::Hooks);
                recovered(&node, &bus, &context).await;
                let after = node.told().iter().filter(|line| line.starts_with("last")).count();
                assert!(after >= usize::from(ran) && after <= 2, "{context}: {:?}", node.told());
            }
            node.assert_left_alone(None, &context);
            assert!(std::mem::take(&mut *machine.orders.lock().unwrap()).len() <= 1);
        }
        assert!(found > 0, "none was killed in an attempt");
    });
}

pub(crate) fn before_a_reboot() {
    run(async {
        let bus = Bus::start();
        let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
        let node = Node::new();
        node.set_alarm(ALARM);
        let count = node.read("sys/power/wakeup_count");
        let record = Record {
            boot_id: "another boot".into(),
            suspended_before: Duration::ZERO,
            plan: ALL,
            step: Step::Suspend,
            begun: vec![Step::Leave, Step::Hooks, Step::Alarm, Step::Handshake],
            alarm: Some(Alarm::Ours {
                rings: RtcTime(ALARM),
                displaced: Some(RtcTime(LATER)),
            }),
            leave: None,
        };
        node.journal().write(&record).unwrap();
        let undone = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&undone);
        let watch: Watch = Arc::new(move |moment| {
            if let Moment::After(deed) = moment {
                seen.lock().unwrap().push(deed);
            }
        });
        let report = node.recover(&bus.address(), record, BOOT, &watch).ended().await;
        assert_eq!(report.ending, Ending::Interrupted);
        assert_eq!(
            *undone.lock().unwrap(),
            [Deed::Undo(Step::Alarm), Deed::Undo(Step::Leave)]
        );
        node.assert_left_alone(Some(LATER), "reboot");
        assert_eq!(
            node.read("sys/power/wakeup_count"),
            count,
            "the count of another boot is touched"
        );
        assert!(node.told().is_empty(), "hooks ran: {:?}", node.told());
    });
}
