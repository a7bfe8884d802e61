//! Counts the frames and bytes of an interface, in both directions, in a per-CPU slot for each class. Lets every
//! frame pass.

use agent_ebpf::{NET_CLASSES, NET_SLOTS, NetClass, NetCounters};
use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::{btf_map, classifier},
    programs::TcContext,
};

use crate::{
    class::{Way, classify},
    edge,
};

/// `TCX_NEXT` on tcx, `TC_ACT_UNSPEC` on clsact: no verdict, the programs and filters of others run as if we were not there.
const NEXT: i32 = -1;

/// Length of a VLAN tag. The kernel keeps the tag beside the frame, where `skb->len` does not count it.
const VLAN_TAG: u32 = 4;

#[btf_map]
static VMS_NET: PerCpuArray<NetCounters, { (NET_SLOTS * NET_CLASSES) as usize }> = PerCpuArray::new();

#[classifier]
pub(crate) fn vms_net_rx(ctx: TcContext) -> i32 {
    if let Some(counters) = counters(&ctx, Way::Received) {
        counters.rx_bytes += frame_len(&ctx);
        counters.rx_packets += 1;
    }
    NEXT
}

#[classifier]
pub(crate) fn vms_net_tx(ctx: TcContext) -> i32 {
    if let Some(counters) = counters(&ctx, Way::Sent) {
        counters.tx_bytes += frame_len(&ctx);
        counters.tx_packets += 1;
    }
    NEXT
}

/// The counters of the frame's class.
#[inline(always)]
fn counters(ctx: &TcContext, way: Way) -> Option<&'static mut NetCounters> {
    // SAFETY: the context is the `__sk_buff` of this run.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let class = classify(ctx, way);
    // SAFETY: the slot belongs to this CPU; bottom halves, where both directions run, do not interrupt each other.
    let counters = VMS_NET
        .get_ptr_mut(class.slot(ifindex))
        .map(|counters| unsafe { &mut *counters })?;
    match class {
        NetClass::User => {
            date(counters);
            edge::traffic(ifindex, frame_len(ctx));
        }
        NetClass::Background | NetClass::Multicast => {}
    }
    Some(counters)
}

/// Notes when the last frame was. Reading the clock costs more than all the rest, reading the tick nearly nothing.
#[inline(always)]
fn date(counters: &mut NetCounters) {
    // SAFETY: takes nothing, returns a number.
    let tick = unsafe { bpf_jiffies64() };
    if tick != counters.last_tick {
        counters.last_tick = tick;
        // SAFETY: takes nothing, returns a number.
        counters.last_ns = unsafe { bpf_ktime_get_boot_ns() };
    }
}

#[inline(always)]
fn frame_len(ctx: &TcContext) -> u64 {
    // SAFETY: the context is the `__sk_buff` of this run.
    let skb = unsafe { &*ctx.skb.skb };
    u64::from(skb.len + if skb.vlan_present == 0 { 0 } else { VLAN_TAG })
}
