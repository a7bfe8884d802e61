//! The eBPF programs of the agent: the list of them, their licence and nothing else.
//!
//! | program | hook | counts |
//! |---|---|---|
//! | `vms_net_rx`, `vms_net_tx` | tcx, or clsact below Linux 6.6 | [`net`]: frames and bytes of an interface, by [`class`] |
//! | `vms_own_rx`, `vms_own_tx` | cgroup_skb, the root | [`owner`]: bytes by cgroup |
//! | `vms_pods_rx`, `vms_pods_tx` | cgroup_skb, the pods | [`owner`]: packets and bytes of the pods, by [`class`] |
//! | `vms_idle` | raw_tp `cpu_idle` | [`sched`]: busy time of a CPU |
//! | `vms_sched` | raw_tp `sched_switch` | [`sched`]: context switches |
//! | `vms_ssh` | tp_btf `inet_sock_set_state` | [`ssh`]: connections to the SSH ports |
//! | `vms_ssh_fork` | tp_btf `sched_process_fork` | [`ssh`]: children of the SSH server |
//!
//! While the agent has armed a budget, those of [`net`] and [`sched`] also tell it, by [`edge`], of the first activity beyond it.
//!
//! They count and never judge: no threshold lives here. Names have at most 15 bytes, which is what `bpftool` shows.
//! Rust emits no CO-RE relocations, so the loader takes the offsets of kernel fields from `/sys/kernel/btf/vmlinux` and sets them as
//! frozen globals; the verifier sees them as constants.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry points hand a program its context by value"
)]

mod class;
mod edge;
mod net;
mod owner;
mod sched;
mod ssh;

// "Dual MIT/GPL": the kernel lets only GPL-compatible programs follow its pointers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
