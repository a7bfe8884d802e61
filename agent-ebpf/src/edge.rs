//! Tells the agent of the first activity beyond a budget, then of nothing more until it arms again.
//!
//! The agent owns the budget and decides what it is; the programs of [`crate::net`] and [`crate::sched`] bring what is to be accounted.
//! Each CPU accounts for itself, so that none waits for another: activity that is spread over CPUs within their budgets is for the
//! agent's next look. While nothing is armed, an event costs one look into an array.

use core::ptr;

use agent_ebpf::{EDGE_RING_BYTES, EdgeBudget, EdgeKind, EdgeRecord, NET_SLOTS};
use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    macros::btf_map,
};

#[btf_map]
static VMS_EDGE: Array<EdgeBudget, 1> = Array::new();

#[btf_map]
static VMS_EDGE_RING: RingBuf<EdgeRecord, { EDGE_RING_BYTES as usize }> = RingBuf::new();

/// By slot of the interface, as in the map of `NetCounters`.
#[btf_map]
static VMS_EDGE_NET: PerCpuArray<Spent, { NET_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
static VMS_EDGE_CPU: PerCpuArray<Stopwatch, 1> = PerCpuArray::new();

/// User traffic of one interface on one CPU.
#[repr(C)]
struct Spent {
    /// The arming it is for; of any other it is void.
    arming: u64,
    bytes: u64,
}

/// Where the busy time of one CPU stood.
#[repr(C)]
struct Stopwatch {
    /// The arming it is for; of any other it is void.
    arming: u64,
    /// Busy time that does not count, ns.
    base: i64,
    /// The tick at which the clock was read last.
    tick: u64,
}

/// A frame of class user.
#[inline(always)]
pub(crate) fn traffic(ifindex: u32, bytes: u64) {
    let Some(budget) = budget() else { return };
    let Some(arming) = budget.traffic.arming() else { return };
    let Some(spent) = VMS_EDGE_NET.get_ptr_mut(ifindex % NET_SLOTS) else {
        return;
    };
    // SAFETY: the slot belongs to this CPU; bottom halves, where both directions run, do not interrupt each other.
    let spent = unsafe { &mut *spent };
    if spent.arming != arming {
        *spent = Spent { arming, bytes: 0 };
    }
    spent.bytes += bytes;
    if spent.bytes > budget.traffic_bytes {
        budget.traffic.disarm();
        tell(EdgeKind::Traffic, ifindex, spent.bytes);
    }
}

/// This CPU leaves idle; `clock`: its busy time so far.
#[inline(always)]
pub(crate) fn left_idle(clock: i64) {
    if let Some((budget, arming)) = armed_for_cpu()
        && let Some(stopwatch) = stopwatch()
    {
        start(stopwatch, arming, &budget, clock);
    }
}

/// This busy CPU enters idle; `clock`: that of `SchedCounters` before.
#[inline(always)]
pub(crate) fn enters_idle(clock: i64, now: i64) {
    if let Some((budget, arming)) = armed_for_cpu()
        && let Some(stopwatch) = stopwatch()
    {
        account(stopwatch, arming, &budget, clock, now);
    }
}

/// This CPU switches; `clock`: that of `SchedCounters`. A CPU that never enters idle is noticed here, to the tick of the kernel.
#[inline(always)]
pub(crate) fn switches(clock: i64) {
    if clock >= 0 {
        return;
    }
    if let Some((budget, arming)) = armed_for_cpu()
        && let Some(stopwatch) = stopwatch()
    {
        // SAFETY: takes nothing, returns a number.
        let tick = unsafe { bpf_jiffies64() };
        if tick != stopwatch.tick {
            stopwatch.tick = tick;
            // SAFETY: as above. The clock fits an `i64` for 292 years of uptime.
            let now = unsafe { bpf_ktime_get_ns() }.cast_signed();
            account(stopwatch, arming, &budget, clock, now);
        }
    }
}

#[inline(always)]
fn account(stopwatch: &mut Stopwatch, arming: u64, budget: &Budget, clock: i64, now: i64) {
    start(stopwatch, arming, budget, clock);
    // Negative if the counters began anew since.
    let spent = (clock + now - stopwatch.base).max(0).cast_unsigned();
    if spent > budget.busy_ns {
        budget.cpu.disarm();
        // SAFETY: takes nothing, returns a number.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        tell(EdgeKind::Cpu, cpu, spent);
    }
}

/// Of a CPU that was busy when the budget was armed (it has not left idle since, or it would have come here) what was before does not count.
#[inline(always)]
fn start(stopwatch: &mut Stopwatch, arming: u64, budget: &Budget, clock: i64) {
    if stopwatch.arming != arming {
        stopwatch.arming = arming;
        stopwatch.base = if clock < 0 {
            (clock + budget.armed_ns).max(0)
        } else {
            clock
        };
    }
}

/// [`EdgeBudget`] as it stands.
struct Budget {
    traffic: Word,
    cpu: Word,
    traffic_bytes: u64,
    busy_ns: u64,
    armed_ns: i64,
}

/// In the map, where the agent and all CPUs write: what is read is never what was read before. The compiler has no compare-and-swap for these
/// programs, so CPUs that disarm in the same moment all tell.
struct Word(*mut u64);

impl Word {
    #[inline(always)]
    fn arming(&self) -> Option<u64> {
        // SAFETY: an element of an array map stays where it is, aligned to 8 bytes.
        match unsafe { ptr::read_volatile(self.0) } {
            0 => None,
            arming => Some(arming),
        }
    }

    #[inline(always)]
    fn disarm(&self) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(self.0, 0) }
    }
}

#[inline(always)]
fn budget() -> Option<Budget> {
    let budget = VMS_EDGE.get_ptr_mut(0)?;
    // SAFETY: an element of the map; the agent writes the amounts while neither word is set.
    unsafe {
        Some(Budget {
            traffic: Word(&raw mut (*budget).traffic),
            cpu: Word(&raw mut (*budget).cpu),
            traffic_bytes: (*budget).traffic_bytes,
            busy_ns: (*budget).busy_ns,
            armed_ns: (*budget).armed_ns.cast_signed(),
        })
    }
}

#[inline(always)]
fn armed_for_cpu() -> Option<(Budget, u64)> {
    let budget = budget()?;
    let arming = budget.cpu.arming()?;
    Some((budget, arming))
}

#[inline(always)]
fn stopwatch() -> Option<&'static mut Stopwatch> {
    // SAFETY: the slot belongs to this CPU, and the programs that come here run with interrupts off.
    VMS_EDGE_CPU.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// A full ring buffer has records enough to wake the agent.
#[inline(always)]
fn tell(kind: EdgeKind, index: u32, amount: u64) {
    if let Some(mut place) = VMS_EDGE_RING.reserve(0) {
        place.write(EdgeRecord {
            // SAFETY: takes nothing, returns a number.
            at_ns: unsafe { bpf_ktime_get_boot_ns() },
            kind: kind as u32,
            index,
            amount,
        });
        place.submit(0);
    }
}
