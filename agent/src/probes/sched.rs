//! Busy time of CPUs and context switches.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use agent_ebpf::SchedCounters;
use aya::{
    Btf, Ebpf,
    maps::{MapData, PerCpuArray},
    util::{nr_cpus, online_cpus},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use tracing::debug;

use super::{reason, take, trace};
use crate::{counters::CpuTotals, procfs};

/// The counters of the attached programs.
pub(super) struct Sched {
    counters: PerCpuArray<MapData, SchedCounters>,
    /// Busy time last told, ns, by CPU; see [`Sched::read`].
    told: Vec<AtomicU64>,
}

impl Sched {
    pub(super) fn load(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, String> {
        let counters: PerCpuArray<_, SchedCounters> = take(ebpf, "VMS_SCHED")?;
        let cpus = nr_cpus().map_err(|(path, error)| format!("count the CPUs: {path}: {error}"))?;
        trace(ebpf, btf, "vms_idle", "cpu_idle")?;
        trace(ebpf, btf, "vms_sched", "sched_switch")?;
        visit_all_cpus();
        let told = (0..cpus).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { counters, told })
    }

    /// The clock is read before the slots. A CPU that leaves idle between the two comes out a moment behind the busy time it had
    /// before, so what was told is never taken back.
    pub(super) fn read(&self) -> Result<CpuTotals, String> {
        let online = online_cpus().map_err(|(path, error)| format!("list the online CPUs: {path}: {error}"))?;
        let now = monotonic_ns();
        let slots = self
            .counters
            .get(&0, 0)
            .map_err(|error| reason("read the CPU counters", &error))?;
        let mut totals = CpuTotals {
            own: procfs::own_cpu_time(),
            ..CpuTotals::default()
        };
        for cpu in online {
            let place = usize::try_from(cpu).unwrap_or(usize::MAX);
            let (slot, told) = slots
                .get(place)
                .zip(self.told.get(place))
                .ok_or_else(|| format!("CPU {cpu} is not among the possible ones"))?;
            let busy = slot.busy_ns(now).ok_or_else(|| {
                format!("CPU {cpu} has not switched since the program was attached: whether it is busy is not known")
            })?;
            let busy = told.fetch_max(busy, Ordering::Relaxed).max(busy);
            totals.busy.insert(cpu, Duration::from_nanos(busy));
        }
        totals.switches = slots.iter().map(|slot| slot.switches).sum();
        Ok(totals)
    }
}

/// Runs on every online CPU for a moment, so that each switches once: from its first switch on it is known whether a CPU is idle. A CPU
/// that cannot be visited (another cpuset) stays unknown until it switches by itself.
fn visit_all_cpus() {
    let visit = || {
        for cpu in online_cpus().unwrap_or_default() {
            let mut only = CpuSet::new();
            let visited = only
                .set(usize::try_from(cpu).unwrap_or(usize::MAX))
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
            if let Err(error) = visited {
                debug!(cpu, %error, "cannot visit this CPU; it is unknown until it switches");
            }
            // Being moved there is one switch; on the CPU this thread started on, this is it.
            thread::sleep(Duration::from_micros(1));
        }
    };
    // A thread of its own, since the affinity ends with it.
    if let Err(error) = thread::Builder::new()
        .name("visit-cpus".into())
        .spawn(visit)
        .map(thread::JoinHandle::join)
    {
        debug!(%error, "cannot visit the CPUs; each is unknown until it switches");
    }
}

fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux");
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}
