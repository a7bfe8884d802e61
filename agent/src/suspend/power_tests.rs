//! Trials of [`super`] on a temporary `/sys`.

use std::os::unix::fs::symlink;

use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(10);

fn tree(files: &[(&str, &str)]) -> (TempDir, Power) {
    let sys = TempDir::new().unwrap();
    for (path, text) in files {
        let path = sys.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let power = Power::new(sys.path().into()).with_interrupts(sys.path().join("interrupts"));
    (sys, power)
}

fn usable(state: &str, mem_sleep: &str, allow_s2idle: bool) -> Result<SleepState, String> {
    let (_sys, power) = tree(&[("power/state", state), ("power/mem_sleep", mem_sleep)]);
    power.usable(allow_s2idle)
}

#[test]
fn s8_deep_is_used_and_s2idle_only_if_allowed() {
    assert_eq!(
        usable("freeze mem disk\n", "s2idle [deep]\n", false),
        Ok(SleepState::Deep)
    );
    assert_eq!(usable("freeze mem\n", "[s2idle]\n", true), Ok(SleepState::S2Idle));
    let refused = usable("freeze mem\n", "[s2idle]\n", false).unwrap_err();
    assert!(refused.contains("allow_s2idle"), "{refused}");
}

#[test]
fn s8_deep_that_is_not_selected_is_refused_with_the_fix() {
    for mem_sleep in ["[s2idle] deep", "s2idle [shallow] deep"] {
        let refused = usable("freeze mem", mem_sleep, false).unwrap_err();
        assert!(refused.contains("mem_sleep_default=deep"), "{refused}");
    }
}

#[test]
fn s8_a_machine_without_a_sleep_state_is_refused() {
    assert!(
        usable("freeze disk", "[s2idle] deep", true)
            .unwrap_err()
            .contains("`mem`")
    );
    assert!(
        usable("freeze mem", "s2idle deep", true)
            .unwrap_err()
            .contains("no mode")
    );
    let (_sys, power) = tree(&[]);
    assert!(power.usable(true).unwrap_err().contains("cannot suspend"));
    let (_sys, power) = tree(&[("power/state", "mem")]);
    assert!(power.usable(true).unwrap_err().contains("mem_sleep"));
}

#[tokio::test]
async fn s1_the_count_read_is_the_count_armed() {
    let (sys, power) = tree(&[("power/wakeup_count", "42\n")]);
    let count = power.read_count(LATE).await.unwrap();
    assert_eq!(count, WakeupCount::At(42));
    power.arm(count).unwrap();
    assert_eq!(fs::read_to_string(sys.path().join("power/wakeup_count")).unwrap(), "42");
}

#[tokio::test]
async fn s1_an_event_in_progress_refuses() {
    let (sys, power) = tree(&[("power/state", "mem")]);
    let path = sys.path().join("power/wakeup_count");
    // Opening a pipe nobody writes to blocks, as the kernel's read does.
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    for _time in 0..2 {
        let refused = power.read_count(SOON).await.unwrap_err();
        assert!(refused.contains("being processed"), "{refused}");
    }
    fs::write(&path, "7").unwrap();
    for _look in 0..200 {
        if power.reading.load(Ordering::Acquire) {
            time::sleep(SOON).await;
        }
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(power.read_count(LATE).await, Ok(WakeupCount::Unavailable));
}

#[test]
fn s1_an_event_since_the_count_was_read_is_told() {
    let (sys, power) = tree(&[("power/state", "mem")]);
    // A kernel file that answers EINVAL to a number above 1000, and is changed by none of these.
    symlink("/proc/self/oom_score_adj", sys.path().join("power/wakeup_count")).unwrap();
    let refused = power.arm(WakeupCount::At(99_999)).unwrap_err();
    assert!(refused.contains("happened"), "{refused}");
    power.disarm().unwrap();
}

#[test]
fn a_kernel_without_the_handshake_is_no_obstacle() {
    let (sys, power) = tree(&[("power/state", "mem")]);
    power.arm(WakeupCount::Unavailable).unwrap();
    power.disarm().unwrap();
    assert!(!sys.path().join("power/wakeup_count").exists());
}

#[test]
fn s4_the_account_of_the_kernel_is_read() {
    let (_sys, power) = tree(&[
        ("power/suspend_stats/success", "3\n"),
        ("power/suspend_stats/fail", "1\n"),
        ("power/suspend_stats/last_failed_dev", "0000:00:1f.6\n"),
        ("power/suspend_stats/last_failed_errno", "-16\n"),
        ("power/suspend_stats/last_failed_step", "suspend\n"),
    ]);
    let expected = Stats {
        success: 3,
        fail: 1,
        last_failed_dev: Some("0000:00:1f.6".into()),
        last_failed_errno: Some(16),
        last_failed_step: Some("suspend".into()),
    };
    assert_eq!(power.stats(), Some(expected));
    let (_sys, power) = tree(&[]);
    assert_eq!(power.stats(), None);
}

fn source(sys: &TempDir, id: &str, name: &str, counts: [u32; 3]) {
    let folder = sys.path().join("class/wakeup").join(id);
    fs::create_dir_all(folder.join("device")).unwrap();
    fs::write(folder.join("name"), name).unwrap();
    for (file, count) in ["wakeup_count", "event_count", "active_count"].iter().zip(counts) {
        fs::write(folder.join(file), format!("{count}\n")).unwrap();
    }
}

#[test]
fn the_interrupt_and_the_source_that_woke_are_named() {
    let (sys, power) = tree(&[
        ("power/pm_wakeup_irq", "9\n"),
        (
            "interrupts",
            "            CPU0       CPU1\n   9:          5          0   IO-APIC   9-fasteoi   acpi\n  99:  0  0  x  y  z\n",
        ),
    ]);
    source(&sys, "wakeup0", "PNP0C0C:00", [0, 4, 4]);
    source(&sys, "wakeup1", "0000:00:1f.6", [0, 0, 0]);
    let before = power.wake_sources();
    source(&sys, "wakeup0", "PNP0C0C:00", [0, 5, 5]);
    source(&sys, "wakeup1", "0000:00:1f.6", [1, 1, 1]);
    let after = power.wake_sources();
    assert_eq!(
        power.wake_source(&before, &after).as_deref(),
        Some("IRQ 9 (acpi), 0000:00:1f.6")
    );
}

#[test]
fn a_device_that_had_an_event_is_named_if_nothing_better_is_known() {
    let (sys, power) = tree(&[]);
    source(&sys, "wakeup0", "PNP0C0C:00", [0, 4, 4]);
    let before = power.wake_sources();
    assert_eq!(power.wake_source(&before, &before), None);
    source(&sys, "wakeup0", "PNP0C0C:00", [0, 5, 4]);
    assert_eq!(
        power.wake_source(&before, &power.wake_sources()).as_deref(),
        Some("PNP0C0C:00")
    );
}
