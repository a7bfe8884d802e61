//! Busy time by the programs is busy time by `/proc/stat`.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use vmstation_agent::{clock::BootTime, probes::Probes, procfs};

use crate::all_running;

pub(crate) fn a_pinned_loop_is_one_busy_cpu() {
    let probes = all_running(&[]);
    let cpu = *probes.cpu().unwrap().busy.keys().next_back().unwrap();
    // Ends with the process.
    thread::spawn(move || {
        let mut only = CpuSet::new();
        only.set(usize::try_from(cpu).unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &only).unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    thread::sleep(Duration::from_millis(100));
    let shares = compare_with_proc_stat(&probes);
    assert!(shares[&cpu] > 95.0, "CPU {cpu} was kept busy: {shares:?}");
}

pub(crate) fn an_idle_machine_is_as_idle_as_proc_stat_says() {
    compare_with_proc_stat(&all_running(&[]));
}

/// Busy share of every CPU over 5 s, percent, by our programs; asserts that `/proc/stat` differs by at most 2 percentage points.
fn compare_with_proc_stat(probes: &Probes) -> BTreeMap<u32, f64> {
    let read = || {
        (
            BootTime::now(),
            probes.cpu().unwrap(),
            idle_by_proc_stat(),
            procfs::cpu().unwrap(),
        )
    };
    let before = read();
    thread::sleep(Duration::from_secs(5));
    let after = read();
    let share = |before: Duration, after: Duration, over: Duration| (after - before).div_duration_f64(over) * 100.0;
    let over = after.0.since(before.0);
    let mut shares = BTreeMap::new();
    for (cpu, busy) in &after.1.busy {
        let ours = share(before.1.busy[cpu], *busy, over);
        let theirs = 100.0 - share(before.2[cpu], after.2[cpu], over);
        let fallback = share(before.3.busy[cpu], after.3.busy[cpu], over);
        println!(
            "CPU {cpu}: busy {ours:.2} % by eBPF, {theirs:.2} % by the idle time of /proc/stat, {fallback:.2} % by the fallback"
        );
        assert!((ours - theirs).abs() <= 2.0);
        shares.insert(*cpu, ours);
    }
    assert!(shares.keys().eq(after.2.keys()), "the same CPUs are online");
    shares
}

/// Idle and I/O wait time by CPU. The kernel measures these; busy time it estimates on most configurations, from what runs when it ticks.
fn idle_by_proc_stat() -> BTreeMap<u32, Duration> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("cpu").filter(|rest| !rest.starts_with(' ')));
    let idle = |line: &str| {
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap())
            .collect();
        // A tick is 1/100 s on every architecture that Debian has.
        (
            u32::try_from(fields[0]).unwrap(),
            Duration::from_millis((fields[4] + fields[5]) * 10),
        )
    };
    lines.map(idle).collect()
}
