//! Counts bytes by whose sockets sent or received them: by cgroup while somebody asks who it is, and of the pods together where they alone
//! count. Lets every packet pass.
//!
//! These hooks see IP packets at the sockets of the host and of all its containers: no Ethernet header, no ARP, nothing that the host only
//! forwards and nothing of packet sockets. What stays on a loopback device does not count, as it does not for the node.

use agent_ebpf::{LOOPBACK, NetClass, NetCounters, OWNERS, OWNERS_MISSED, OwnerCounters};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{PerCpuArray, PerCpuHashMap},
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_skb_cgroup_id},
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};

use crate::class::{Way, classify_packet};

/// The packet goes on.
const PASS: i32 = 1;

/// A hash costs more than a slot for each cgroup would, but needs no table of cgroups kept up to date, and it is there for half a second.
/// Not preallocated: there may be many CPUs, and few cgroups are busy.
#[btf_map]
static VMS_OWN: PerCpuHashMap<u64, OwnerCounters, { OWNERS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

/// By class.
#[btf_map]
static VMS_PODS: PerCpuArray<NetCounters, { agent_ebpf::NET_CLASSES as usize }> = PerCpuArray::new();

#[cgroup_skb(ingress)]
pub(crate) fn vms_own_rx(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = owner(ctx.skb.skb) {
        counters.rx_bytes += u64::from(ctx.len());
    }
    PASS
}

#[cgroup_skb(egress)]
pub(crate) fn vms_own_tx(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = owner(ctx.skb.skb) {
        counters.tx_bytes += u64::from(ctx.len());
    }
    PASS
}

#[cgroup_skb(ingress)]
pub(crate) fn vms_pods_rx(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = pods(ctx.skb.skb, Way::Received) {
        counters.rx_bytes += u64::from(ctx.len());
        counters.rx_packets += 1;
    }
    PASS
}

#[cgroup_skb(egress)]
pub(crate) fn vms_pods_tx(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = pods(ctx.skb.skb, Way::Sent) {
        counters.tx_bytes += u64::from(ctx.len());
        counters.tx_packets += 1;
    }
    PASS
}

/// The counters of the cgroup of the packet's socket. A full table counts for [`OWNERS_MISSED`], which the agent has put there before.
#[inline(always)]
fn owner(skb: *mut __sk_buff) -> Option<&'static mut OwnerCounters> {
    if is_loopback(skb) {
        return None;
    }
    // SAFETY: the context of this run.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    let slot = match VMS_OWN.get_ptr_mut(cgroup) {
        Some(slot) => Some(slot),
        None => {
            // Refused because another CPU was first, or because there is no room: looking again tells.
            let _refused = VMS_OWN.insert(cgroup, OwnerCounters::default(), BPF_NOEXIST.into());
            VMS_OWN
                .get_ptr_mut(cgroup)
                .or_else(|| VMS_OWN.get_ptr_mut(OWNERS_MISSED))
        }
    };
    // SAFETY: the slot belongs to this CPU. A task that sends can be interrupted by a packet of the same cgroup between reading and writing;
    // that one packet is then lost for the ranking.
    slot.map(|slot| unsafe { &mut *slot })
}

/// The counters of the packet's class.
#[inline(always)]
fn pods(skb: *mut __sk_buff, way: Way) -> Option<&'static mut NetCounters> {
    if is_loopback(skb) {
        return None;
    }
    let class = classify_packet(skb, way);
    // SAFETY: as above; what an interruption loses is a packet of a flow that goes on.
    let counters = VMS_PODS
        .get_ptr_mut(class as u32)
        .map(|counters| unsafe { &mut *counters })?;
    match class {
        NetClass::User => {
            // SAFETY: take nothing, return numbers.
            let tick = unsafe { bpf_jiffies64() };
            if tick != counters.last_tick {
                counters.last_tick = tick;
                // SAFETY: as above.
                counters.last_ns = unsafe { bpf_ktime_get_boot_ns() };
            }
        }
        NetClass::Background | NetClass::Multicast => {}
    }
    Some(counters)
}

#[inline(always)]
fn is_loopback(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context of this run.
    unsafe { (*skb).ifindex == LOOPBACK }
}
