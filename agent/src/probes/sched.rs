//! Busy time of CPUs and context switches.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use agent_ebpf::SchedCounters;
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    programs::{ProgramError, RawTracePoint},
    util::{nr_cpus, online_cpus},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use tracing::debug;

use super::{missing, reason, take};
use crate::{counters::CpuTotals, procfs};

/// The programs and their tracepoints.
const PROGRAMS: [(&str, &str); 2] = [("vms_idle", "cpu_idle"), ("vms_sched", "sched_switch")];

/// The counters, and whether programs fill them.
pub(super) struct Sched {
    counters: PerCpuArray<MapData, SchedCounters>,
    /// Busy time last told, ns, by CPU; see [`Sched::read`].
    told: Vec<AtomicU64>,
    /// How often the programs were attached.
    epoch: u64,
    attached: bool,
}

impl Sched {
    /// With the programs attached.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, String> {
        let cpus = nr_cpus().map_err(|(path, error)| format!("count the CPUs: {path}: {error}"))?;
        let mut sched = Self {
            counters: take(ebpf, "VMS_SCHED")?,
            told: (0..cpus).map(|_| AtomicU64::new(0)).collect(),
            epoch: 0,
            attached: false,
        };
        sched.attach(ebpf)?;
        Ok(sched)
    }

    /// Counts from 0 on.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf) -> Result<(), String> {
        const RESET: &str = "reset the CPU counters";
        if self.attached {
            return Ok(());
        }
        let zero = PerCpuValues::try_from(vec![SchedCounters::default(); self.told.len()])
            .map_err(|error| reason(RESET, &error))?;
        self.counters.set(0, zero, 0).map_err(|error| reason(RESET, &error))?;
        for told in &self.told {
            told.store(0, Ordering::Relaxed);
        }
        let attached = PROGRAMS
            .iter()
            .try_for_each(|(name, tracepoint)| attach(ebpf, name, tracepoint));
        if let Err(why) = attached {
            unload(ebpf);
            return Err(why);
        }
        visit_all_cpus();
        self.epoch += 1;
        self.attached = true;
        Ok(())
    }

    /// Takes the programs out of the kernel.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf) {
        self.attached = false;
        unload(ebpf);
    }

    pub(super) const fn attached(&self) -> bool {
        self.attached
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
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

fn attach(ebpf: &mut Ebpf, name: &str, tracepoint: &str) -> Result<(), String> {
    let failed = |verb: &str, error: &ProgramError| {
        reason(
            &format!("{verb} {name} (needs CAP_BPF and CAP_PERFMON, and no kernel lockdown for confidentiality)"),
            error,
        )
    };
    let program = raw_tracepoint(ebpf, name)?;
    program.load().map_err(|error| failed("load", &error))?;
    program.attach(tracepoint).map_err(|error| failed("attach", &error))?;
    Ok(())
}

/// Programs that are not loaded stay so.
fn unload(ebpf: &mut Ebpf) {
    for (name, _) in PROGRAMS {
        if let Ok(program) = raw_tracepoint(ebpf, name)
            && let Err(error) = program.unload()
        {
            debug!(name, %error, "the program was not loaded");
        }
    }
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint, String> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error| reason(name, &error))
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

pub(super) fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux");
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}
