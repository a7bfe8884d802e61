//! The order to suspend and who objects to it, against a logind that suspends nothing, on a bus of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support {
    #[expect(dead_code, reason = "the attempts of `attempt` use more of it")]
    pub(crate) mod fake_login1;
}

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use support::fake_login1::{Bus, Inhibitor, Machine, NIGHT, Script, missing};
use tempfile::TempDir;
use tokio::runtime;
use vmstation_agent::{
    inhibit::{Objection, PackageLocks, objections},
    suspend::{Ended, Logind, NotSlept, SuspendError},
};

/// Ends a trial that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes this program hold a record lock until its input ends.
const HOLD: &str = "--hold-a-record-lock";

fn main() {
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() == Some(HOLD) {
        return hold(Path::new(&arguments.next().unwrap()));
    }
    let tests: [(&str, fn()); 20] = [
        ("s2_root_is_held_up_by_inhibitors", root_is_held_up),
        ("s2_a_block_inhibitor_is_named", a_block_inhibitor_is_named),
        ("s2_a_demand_for_authentication_means_inhibited", inhibited_252),
        ("s2_a_block_inhibitor_lock_means_inhibited", inhibited_257),
        ("s3_a_delay_inhibitor_is_waited_for", a_delay_inhibitor_is_waited_for),
        ("s4_a_failed_suspend_tells_errno_and_step", a_failed_suspend),
        ("s5_a_fake_success_is_told", a_fake_success),
        ("s6_doubled_signals_end_one_suspend", doubled_signals),
        ("s6_a_lost_signal_is_made_up_for_by_the_clocks", a_lost_signal),
        ("s6_a_bus_that_dies_is_made_up_for_by_the_clocks", a_bus_that_dies),
        ("s6_the_end_of_another_suspend_is_not_ours", the_end_of_another),
        ("s7_without_a_bus_it_is_said", no_bus),
        ("s7_without_logind_it_is_said", no_logind),
        ("s7_a_silent_bus_has_a_deadline", a_silent_bus),
        ("s7_a_deaf_logind_has_a_deadline", a_deaf_logind),
        ("s7_an_order_without_an_answer_has_a_deadline", an_unanswered_order),
        ("s7_no_answer_about_objections_is_an_objection", no_answer_objects),
        ("s9_a_scheduled_shutdown_is_an_objection", a_scheduled_shutdown),
        ("s9_the_holder_of_a_package_lock_is_named", the_holder_of_a_lock),
        ("s16_a_suspend_under_way_is_told_apart", under_way),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        if missing() {
            trial.with_kind("needs dbus-daemon").with_ignored_flag(true)
        } else {
            trial
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs a trial's future.
fn run(trial: impl Future<Output = ()>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, trial).await.expect("the trial hangs") });
}

/// Orders a suspend of a machine whose logind follows the script, and waits for its end, up to `limit`.
async fn ended(script: Script, limit: Duration) -> Ended {
    let bus = Bus::start();
    let machine = Arc::default();
    let _served = bus.logind(script, &machine).await;
    let mut logind = Logind::connect_to(&bus.address()).await.unwrap();
    let before = machine.look();
    logind.suspend().await.unwrap();
    logind.ended(&before, || machine.look(), limit).await
}

async fn refusal(script: Script) -> SuspendError {
    let bus = Bus::start();
    let _served = bus.logind(script, &Arc::default()).await;
    let logind = Logind::connect_to(&bus.address()).await.unwrap();
    logind.suspend().await.unwrap_err()
}

fn not_slept(ended: Ended) -> NotSlept {
    match ended {
        Ended::NotSlept(not) => not,
        Ended::Slept { r#for: time } => panic!("slept for {time:?}"),
    }
}

fn slept() -> Ended {
    Ended::Slept { r#for: NIGHT }
}

fn no_locks() -> (TempDir, PackageLocks) {
    let root = TempDir::new().unwrap();
    let locks = PackageLocks::new(root.path().into());
    (root, locks)
}

fn inhibitor(what: &str, who: &str, mode: &str) -> Inhibitor {
    (what.into(), who.into(), "copying".into(), mode.into(), 0, 42)
}

fn root_is_held_up() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::default();
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let mut logind = Logind::connect_to(&bus.address()).await.unwrap();
        let before = machine.look();
        logind.suspend().await.unwrap();
        assert_eq!(logind.ended(&before, || machine.look(), LIMIT).await, slept());
        assert_eq!(*machine.orders.lock().unwrap(), [1], "SD_LOGIND_ROOT_CHECK_INHIBITORS");
    });
}

fn a_block_inhibitor_is_named() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::new(Machine::default());
        *machine.inhibitors.lock().unwrap() = vec![
            inhibitor("sleep", "NetworkManager", "delay"),
            inhibitor("idle", "player", "block"),
            inhibitor("shutdown:sleep", "backup", "block"),
        ];
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let logind = Logind::connect_to(&bus.address()).await.unwrap();
        let (_root, locks) = no_locks();
        let told: Vec<String> = objections(&logind, &locks)
            .await
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told, ["inhibited by backup (uid 0, pid 42): copying"]);
    });
}

fn inhibited_252() {
    run(async {
        let refusal = refusal(Script::Blocked).await;
        assert!(matches!(refusal, SuspendError::Inhibited(_)), "{refusal:?}");
    });
}

fn inhibited_257() {
    run(async {
        let refusal = refusal(Script::BlockedByLock).await;
        assert!(matches!(refusal, SuspendError::Inhibited(_)), "{refusal:?}");
    });
}

fn a_delay_inhibitor_is_waited_for() {
    run(async {
        let delay = Duration::from_millis(2_500);
        assert_eq!(ended(Script::Delayed(delay), LIMIT).await, slept());
    });
}

fn a_failed_suspend() {
    run(async {
        let not = not_slept(ended(Script::Busy, LIMIT).await);
        assert_eq!(
            (not.errno, not.step.as_deref(), not.fake),
            (Some(16), Some("freeze"), false)
        );
        assert!(not.why.contains("EBUSY"), "{not}");
    });
}

fn a_fake_success() {
    run(async {
        assert!(not_slept(ended(Script::Fake, LIMIT).await).fake);
    });
}

fn doubled_signals() {
    run(async {
        assert_eq!(ended(Script::Doubled, LIMIT).await, slept());
    });
}

fn a_lost_signal() {
    run(async {
        assert_eq!(ended(Script::Lost, LIMIT).await, slept());
    });
}

fn a_bus_that_dies() {
    run(async {
        let mut bus = Bus::start();
        let machine = Arc::default();
        let served = bus.logind(Script::Delayed(LIMIT), &machine).await;
        let mut logind = Logind::connect_to(&bus.address()).await.unwrap();
        let before = machine.look();
        logind.suspend().await.unwrap();
        bus.stop();
        drop(served);
        let sleeper = Arc::clone(&machine);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            sleeper.sleep();
        });
        assert_eq!(logind.ended(&before, || machine.look(), LIMIT).await, slept());
    });
}

fn the_end_of_another() {
    run(async {
        let not = not_slept(ended(Script::StaleEnd, Duration::from_secs(2)).await);
        assert!(not.why.contains("nothing happened within 2 s"), "{not}");
    });
}

fn no_bus() {
    run(async {
        let folder = TempDir::new().unwrap();
        let address = format!("unix:path={}", folder.path().join("none").display());
        let error = Logind::connect_to(&address).await.unwrap_err();
        assert!(matches!(error, SuspendError::NoBus(_)), "{error:?}");
    });
}

fn no_logind() {
    run(async {
        let bus = Bus::start();
        let error = Logind::connect_to(&bus.address()).await.unwrap_err();
        assert!(matches!(error, SuspendError::NoLogind(_)), "{error:?}");
    });
}

fn a_silent_bus() {
    run(async {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("bus");
        let _listens = UnixListener::bind(&socket).unwrap();
        let address = format!("unix:path={}", socket.display());
        let error = Logind::connect_to(&address).await.unwrap_err();
        assert!(matches!(error, SuspendError::Silent { .. }), "{error:?}");
    });
}

fn a_deaf_logind() {
    run(async {
        let bus = Bus::start();
        let _served = bus.logind(Script::Deaf, &Arc::default()).await;
        let error = Logind::connect_to(&bus.address()).await.unwrap_err();
        assert!(matches!(error, SuspendError::Silent { .. }), "{error:?}");
    });
}

fn an_unanswered_order() {
    run(async {
        let error = refusal(Script::Silent).await;
        assert!(
            matches!(
                error,
                SuspendError::Silent {
                    asked: "SuspendWithFlags"
                }
            ),
            "{error:?}"
        );
    });
}

fn no_answer_objects() {
    run(async {
        let mut bus = Bus::start();
        let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
        let logind = Logind::connect_to(&bus.address()).await.unwrap();
        bus.stop();
        let (_root, locks) = no_locks();
        let told = objections(&logind, &locks).await;
        assert!(
            matches!(told.as_slice(), [Objection::Unknown { .. }, Objection::Unknown { .. }]),
            "{told:?}"
        );
    });
}

fn a_scheduled_shutdown() {
    run(async {
        let bus = Bus::start();
        let machine = Arc::new(Machine::default());
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let logind = Logind::connect_to(&bus.address()).await.unwrap();
        let (_root, locks) = no_locks();
        assert_eq!(objections(&logind, &locks).await, []);
        let at_us = 1_750_000_000_000_000;
        *machine.shutdown.lock().unwrap() = ("reboot".into(), at_us);
        let expected = Objection::Shutdown {
            kind: "reboot".into(),
            at_us,
        };
        assert_eq!(objections(&logind, &locks).await, [expected]);
    });
}

fn under_way() {
    run(async {
        let refusal = refusal(Script::InProgress).await;
        assert!(matches!(refusal, SuspendError::InProgress(_)), "{refusal:?}");
        let bus = Bus::start();
        let machine = Arc::new(Machine::default());
        machine.preparing.store(true, Ordering::SeqCst);
        let _served = bus.logind(Script::Sleeps, &machine).await;
        let error = Logind::connect_to(&bus.address()).await.unwrap_err();
        assert!(matches!(error, SuspendError::InProgress(_)), "{error:?}");
    });
}

fn the_holder_of_a_lock() {
    let (root, locks) = no_locks();
    let lock = root.path().join("var/lib/dpkg/lock-frontend");
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    File::create(&lock).unwrap();
    let mut holder = Command::new(env::current_exe().unwrap())
        .arg(HOLD)
        .arg(&lock)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It ends when its input does: at the latest with this program.
    let input = holder.stdin.take();
    let mut told = String::new();
    BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut told)
        .unwrap();
    let held = locks.held();
    drop(input);
    holder.wait().unwrap();
    assert_eq!(told, "held\n");
    let pid = i32::try_from(holder.id()).unwrap();
    match held.as_slice() {
        [
            Objection::PackageUpgrade {
                lock: named,
                holder: Some((by, command)),
            },
        ] => {
            assert_eq!((named, *by), (&lock, pid));
            assert!(command.starts_with("power"), "{command}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(locks.held(), []);
}

fn hold(lock: &Path) {
    let file = File::options().write(true).open(lock).unwrap();
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&whole)).unwrap();
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
