//! What the benches compare the agent's programs with: programs that do nothing, and what others do at every switch. Never part of the
//! agent; `cargo xtask build-ebpf` puts them into an object of their own.
//!
//! | program | hook | does |
//! |---|---|---|
//! | `bench_tc_empty` | tcx | lets the frame pass |
//! | `bench_raw_empty` | any raw tracepoint | nothing |
//! | `bench_btf_empty` | any tp_btf | nothing |
//! | `bench_ktime` | raw tracepoint `sched_switch` | reads the clock at every switch and adds up, in a slot of the CPU |
//! | `bench_hash` | raw tracepoint `sched_switch` | the same for each task, in a hash: how `cpudist` and its kind account |
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry points hand a program its context by value"
)]

use aya_ebpf::{
    btf_maps::{HashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint, classifier, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TcContext},
};

/// `TCX_NEXT`.
const NEXT: i32 = -1;
const TASKS: usize = 16_384;

/// Time of the last switch and time between switches, ns.
#[repr(C)]
struct Slot {
    last: u64,
    sum: u64,
}

#[btf_map]
static BENCH_SLOT: PerCpuArray<Slot, 1> = PerCpuArray::new();

/// When a task came onto its CPU, by the address of the task.
#[btf_map]
static BENCH_START: HashMap<u64, u64, TASKS> = HashMap::new();

/// Time on a CPU, by the address of the task.
#[btf_map]
static BENCH_SUM: HashMap<u64, u64, TASKS> = HashMap::new();

#[classifier]
pub(crate) fn bench_tc_empty(_: TcContext) -> i32 {
    NEXT
}

#[raw_tracepoint]
pub(crate) fn bench_raw_empty(_: RawTracePointContext) -> i32 {
    0
}

#[btf_tracepoint]
pub(crate) fn bench_btf_empty(_: BtfTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn bench_ktime(_: RawTracePointContext) -> i32 {
    if let Some(slot) = BENCH_SLOT.get_ptr_mut(0) {
        let now = now();
        // SAFETY: the slot belongs to this CPU, and switches do not interrupt each other.
        let slot = unsafe { &mut *slot };
        slot.sum += now - slot.last;
        slot.last = now;
    }
    0
}

/// `TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn bench_hash(ctx: RawTracePointContext) -> i32 {
    let (prev, next): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    let now = now();
    if let Some(start) = BENCH_START.get_ptr(prev) {
        // SAFETY: the entry of a task that leaves its CPU is nobody else's.
        let ran = now - unsafe { *start };
        if let Some(sum) = BENCH_SUM.get_ptr_mut(prev) {
            // SAFETY: as above.
            unsafe { *sum += ran };
        } else {
            // A full map leaves a task out.
            let _full = BENCH_SUM.insert(prev, ran, 0);
        }
    }
    let _full = BENCH_START.insert(next, now, 0);
    0
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

// The kernel lets only GPL-compatible programs trace.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
