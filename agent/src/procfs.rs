//! The kernel's plain counters, from `/proc` and `/sys`: what is known while no program is attached, or where none can run.
//!
//! Holds no state and never guesses: what cannot be read is an error, never a zero.

use std::{fs, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::counters::{CpuTotals, Interface, Traffic};

/// Busy time of every online CPU from `/proc/stat` (see proc_stat(5)), to the tick: 1/100 s on most machines. It can step back by as
/// much.
///
/// Busy is the time awake that was neither `idle` nor `iowait`: those two the kernel measures, while the columns of who used the CPU are
/// guessed at each tick, which misses what runs between ticks. So it includes steal, time in which the CPU had work and the hypervisor
/// ran something else: a host that waits for its turn is not idle.
///
/// # Errors
/// Why `/proc/stat` could not be read or understood.
pub fn cpu() -> Result<CpuTotals, String> {
    let text = fs::read_to_string("/proc/stat").map_err(|error| format!("read /proc/stat: {error}"))?;
    let awake = monotonic();
    let hertz = ::procfs::ticks_per_second();
    let mut totals = CpuTotals {
        own: own_cpu_time(),
        ..CpuTotals::default()
    };
    let mut switches = None;
    for line in text.lines() {
        let Some((key, values)) = line.split_once(' ') else {
            continue;
        };
        if key == "ctxt" {
            switches = values.trim().parse().ok();
        } else if let Some(number) = key.strip_prefix("cpu").filter(|number| !number.is_empty()) {
            let busy = number.parse().ok().zip(idle_ticks(values));
            let (number, ticks) = busy.ok_or_else(|| format!("/proc/stat has a line unlike proc_stat(5): {line:?}"))?;
            totals
                .busy
                .insert(number, awake.saturating_sub(ticks_long(ticks, hertz)));
        }
    }
    totals.switches = switches.ok_or("/proc/stat has no context switches (`ctxt`)")?;
    if totals.busy.is_empty() {
        return Err("/proc/stat names no CPU".into());
    }
    Ok(totals)
}

/// Traffic of an interface from `/sys/class/net/IF/statistics`. What counts as a byte is up to its driver: usually the frame without its
/// check sequence.
///
/// # Errors
/// Why it could not be read.
pub fn net(interface: &Interface) -> Result<Traffic, String> {
    let read = |counter: &str| {
        let path = format!("/sys/class/net/{}/statistics/{counter}", interface.name);
        let text = fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
        text.trim()
            .parse::<u64>()
            .map_err(|error| format!("read {path}: {text:?}: {error}"))
    };
    Ok(Traffic {
        rx_bytes: read("rx_bytes")?,
        rx_packets: read("rx_packets")?,
        tx_bytes: read("tx_bytes")?,
        tx_packets: read("tx_packets")?,
    })
}

/// CPU time of this process so far, all threads.
#[must_use]
pub fn own_cpu_time() -> Duration {
    let time =
        clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("CLOCK_PROCESS_CPUTIME_ID exists since Linux 2.6.12");
    Duration::from(time)
}

/// Time since boot, without suspends.
/// A process and those it descends from, itself first; only itself if they cannot be read.
pub fn ancestors(pid: i32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = pid;
    // A chain longer than that is none; a process that is gone ends it.
    while next > 1 && found.len() < 256 {
        found.push(next.unsigned_abs());
        next = procfs::process::Process::new(next)
            .and_then(|process| process.stat())
            .map_or(0, |stat| stat.ppid);
    }
    found
}

fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux");
    Duration::from(time)
}

/// Fields: user nice system idle iowait irq softirq steal guest guest_nice.
fn idle_ticks(values: &str) -> Option<u64> {
    let mut fields = values.split_ascii_whitespace().map(|ticks| ticks.parse::<u64>().ok());
    let [idle, iowait] = [fields.nth(3)??, fields.next()??];
    Some(idle + iowait)
}

fn ticks_long(ticks: u64, hertz: u64) -> Duration {
    const NANOS: u64 = 1_000_000_000;
    Duration::from_secs(ticks / hertz) + Duration::from_nanos(ticks % hertz * NANOS / hertz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_idle_and_iowait() {
        assert_eq!(
            idle_ticks(" 1 20 300 4000000 5000000 60000 700000 8000000 9 9"),
            Some(9_000_000)
        );
        assert_eq!(idle_ticks("1 2 3 4"), None, "iowait is missing");
        assert_eq!(idle_ticks("1 2 3 4 x"), None);
    }

    #[test]
    fn ticks_become_time_without_overflow() {
        assert_eq!(ticks_long(250, 100), Duration::from_millis(2500));
        assert_eq!(ticks_long(u64::MAX, 100).as_secs(), u64::MAX / 100);
    }

    #[test]
    fn this_machine_is_read() {
        let totals = cpu().unwrap();
        assert!(!totals.busy.is_empty());
        assert!(totals.switches > 0);
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_and_never_zero() {
        let gone = Interface {
            index: 4_000_000,
            name: "nosuchif0".into(),
        };
        let why = net(&gone).unwrap_err();
        assert!(why.contains("nosuchif0"), "{why}");
    }
}
