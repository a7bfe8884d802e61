//! Counts the busy time of each CPU and its context switches. Reads the clock only where a CPU enters or leaves idle.
//!
//! Idle is what the kernel itself enters and leaves as such (`cpu_idle`), not the absence of a task: switches of some tasks are not
//! traced on every kernel, and one that is missed would leave a CPU busy, or idle, until the next.
//!
//! Raw tracepoints: they follow no pointer, so they need no type information, which takes 40 MB and 100 ms to read, and can come and go
//! while the agent runs.

use agent_ebpf::SchedCounters;
use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};

use crate::edge;

#[btf_map]
static VMS_SCHED: PerCpuArray<SchedCounters, 1> = PerCpuArray::new();

/// `PWR_EVENT_EXIT` of include/trace/events/power.h.
const EXIT: u32 = u32::MAX;

/// `TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn vms_sched(_: RawTracePointContext) -> i32 {
    if let Some(slot) = slot() {
        if slot.switches == 0 {
            // Whatever it did before: it is awake now, and says so when it goes idle.
            slot.clock = -now();
        }
        slot.switches += 1;
        edge::switches(slot.clock);
    }
    0
}

/// `TP_PROTO(unsigned int state, unsigned int cpu_id)`
#[raw_tracepoint(tracepoint = "cpu_idle")]
pub(crate) fn vms_idle(ctx: RawTracePointContext) -> i32 {
    if let Some(slot) = slot() {
        let state: u32 = ctx.arg(0);
        let busy = slot.clock < 0;
        // Twice the same is once, so that one that was missed does not turn the stopwatch round.
        if state == EXIT && !busy {
            edge::left_idle(slot.clock);
            slot.clock -= now();
        } else if state != EXIT && busy {
            let now = now();
            edge::enters_idle(slot.clock, now);
            slot.clock += now;
        }
    }
    0
}

#[inline(always)]
fn slot() -> Option<&'static mut SchedCounters> {
    // SAFETY: the slot belongs to this CPU, and both programs run with interrupts off.
    VMS_SCHED.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

#[inline(always)]
fn now() -> i64 {
    // SAFETY: a helper without arguments. The clock fits an `i64` for 292 years of uptime.
    unsafe { bpf_ktime_get_ns() }.cast_signed()
}
