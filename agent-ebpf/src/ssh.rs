//! Counts the connections to the SSH ports, and writes a record when one opens or closes and when the SSH server forks.
//!
//! Only the server's side counts: a connection is one that a listener accepted, in the network namespace that [`SSH_NETNS`] names. It is remembered in its socket (the kernel frees
//! that with the socket), so that its end counts once and that of a client's socket never. Who is authenticated is for the agent to find out.

use agent_ebpf::{SSH_PORTS, SSH_RING_BYTES, SSH_TITLE, SshCounters, SshRecord, SshRecordKind};
use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::{PerCpuArray, RingBuf, SkStorage},
    helpers::{
        bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_probe_read_user, bpf_sk_storage_get, bpf_skc_to_tcp_sock,
    },
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};

#[btf_map]
static VMS_SSH: PerCpuArray<SshCounters, 1> = PerCpuArray::new();

#[btf_map]
static VMS_SSH_RING: RingBuf<SshRecord, { SSH_RING_BYTES as usize }> = RingBuf::new();

/// Marks a socket whose opening was counted.
#[btf_map]
static VMS_SSH_SOCKS: SkStorage<u32> = SkStorage::new();

/// The ports; unused ones are 0.
#[unsafe(no_mangle)]
static SSH_PORT: Global<[u16; SSH_PORTS]> = Global::new([0; SSH_PORTS]);

/// Inode number of the network namespace that counts; 0: all do.
#[unsafe(no_mangle)]
static SSH_NETNS: Global<u32> = Global::new(0);

/// Offsets in `struct sock`, the parts of `struct sock_common` included.
#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_NET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_PEER_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_PEER_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_PEER_V6: Global<u32> = Global::new(0);
/// Offset in `struct inet_sock`. The local port as `skc_num` has it is gone when a socket closes.
#[unsafe(no_mangle)]
static INET_LOCAL_PORT: Global<u32> = Global::new(0);
/// Offsets in `struct tcp_sock`.
#[unsafe(no_mangle)]
static TCP_RECEIVED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_ACKED: Global<u32> = Global::new(0);
/// Offsets in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_MM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_COMM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_NSPROXY: Global<u32> = Global::new(0);
/// Offset in `struct nsproxy`.
#[unsafe(no_mangle)]
static NSPROXY_NET: Global<u32> = Global::new(0);
/// Offset of the `struct ns_common` in `struct net`, and of the inode number in that.
#[unsafe(no_mangle)]
static NET_NS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NS_INUM: Global<u32> = Global::new(0);
/// Offset in `struct mm_struct`.
#[unsafe(no_mangle)]
static MM_ARG_START: Global<u32> = Global::new(0);

const AF_INET: u16 = 2;
/// States of include/net/tcp_states.h.
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const CLOSE: i32 = 7;
const LISTEN: i32 = 10;

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn vms_ssh(ctx: BtfTracePointContext) -> i32 {
    let (sk, before, after): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let kind = if before == SYN_RECV && after == ESTABLISHED {
        SshRecordKind::Opened
    } else if after == CLOSE && !matches!(before, CLOSE | LISTEN | SYN_SENT | SYN_RECV) {
        SshRecordKind::Closed
    } else {
        return 0;
    };
    // The kernel's own check and cast, after which a program may read the fields of `struct tcp_sock` directly; null if it is none, such as
    // one of MPTCP or SCTP, which fire the same tracepoint.
    // SAFETY: a socket of the tracepoint.
    let tcp: *const u8 = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) }.cast_const().cast();
    if tcp.is_null() {
        return 0;
    }
    // SAFETY: the offset is that of a `u16`; the verifier checks it against `struct tcp_sock`. Network byte order.
    let port = u16::from_be(unsafe { read(tcp, &INET_LOCAL_PORT) });
    if port != 0 && SSH_PORT.load().contains(&port) && is_ours(sk, &SOCK_NET) {
        count(&ctx, kind, sk, tcp, port);
    }
    0
}

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`; the parent is the current task.
#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn vms_ssh_fork(ctx: BtfTracePointContext) -> i32 {
    let (parent, child): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    // `sshd`, and since OpenSSH 9.8 `sshd-session` and `sshd-auth`. Read in place: the helper that copies the name takes 60 ns of every
    // fork on the host.
    // SAFETY: the offset is that of the name, which has 16 bytes; the verifier checks it against `struct task_struct`.
    let [b's', b's', b'h', b'd'] = (unsafe { read::<[u8; 4]>(parent, &TASK_COMM) }) else {
        return 0;
    };
    // SAFETY: the offsets are those of `pid_t` fields; the verifier checks them against `struct task_struct`.
    let (pid, tgid) = unsafe { (read::<u32>(child, &TASK_PID), read::<u32>(child, &TASK_TGID)) };
    // SAFETY: the helper checks the address.
    let namespaces = unsafe { bpf_probe_read_kernel(at::<*const u8>(parent, &TASK_NSPROXY)) };
    if !namespaces.map_or(true, |namespaces| is_ours(namespaces, &NSPROXY_NET)) {
        return 0;
    }
    let Some(counters) = counters() else { return 0 };
    if pid == tgid {
        let record = SshRecord {
            at_ns: now(),
            kind: SshRecordKind::Forked as u32,
            pid: ctx.tgid(),
            child: pid,
            title: title(parent).unwrap_or_default(),
            ..SshRecord::default()
        };
        tell(&ctx, counters, record);
    }
    0
}

/// Whether the network namespace counts to which `holder` points at an offset. One that cannot be read does: doubt keeps the host awake.
#[inline(always)]
fn is_ours(holder: *const u8, offset: &Global<u32>) -> bool {
    let ours = SSH_NETNS.load();
    if ours == 0 {
        return true;
    }
    // SAFETY: the helpers check the addresses.
    let number = unsafe {
        bpf_probe_read_kernel(at::<*const u8>(holder, offset)).and_then(|net| {
            let common: *const u8 = at(net, &NET_NS);
            bpf_probe_read_kernel(at::<u32>(common, &NS_INUM))
        })
    };
    number.map_or(true, |number| number == ours)
}

/// The beginning of the arguments of the current process: sshd keeps its title there. By the time the agent looks it may be gone.
#[inline(always)]
fn title(current: *const u8) -> Result<[u8; SSH_TITLE], i32> {
    // SAFETY: the offset is that of a pointer, checked by the verifier; the helpers check the other addresses.
    unsafe {
        let mm: *const u8 = read(current, &TASK_MM);
        let arguments: u64 = bpf_probe_read_kernel(at(mm, &MM_ARG_START))?;
        bpf_probe_read_user(arguments as *const [u8; SSH_TITLE])
    }
}

#[inline(always)]
fn count(ctx: &BtfTracePointContext, kind: SshRecordKind, sk: *const u8, tcp: *const u8, port: u16) {
    let Some(counters) = counters() else { return };
    let at_ns = now();
    counters.last_activity_ns = at_ns;
    match kind {
        SshRecordKind::Opened => {
            counters.opened += 1;
            if !mark(sk, BPF_SK_STORAGE_GET_F_CREATE.into()) {
                // Its end will not be counted: out of memory.
                counters.lost += 1;
            }
        }
        SshRecordKind::Closed => {
            if mark(sk, 0) {
                counters.closed += 1;
                // SAFETY: the offsets are those of `u64` fields, checked by the verifier.
                unsafe {
                    counters.rx_bytes += read::<u64>(tcp, &TCP_RECEIVED);
                    counters.tx_bytes += read::<u64>(tcp, &TCP_ACKED);
                }
            }
        }
        SshRecordKind::Forked => return,
    }
    let record = SshRecord {
        at_ns,
        kind: kind as u32,
        pid: 0,
        child: 0,
        local_port: port,
        // SAFETY: as in `vms_ssh`. The field is in network byte order.
        peer_port: u16::from_be(unsafe { read(sk, &SOCK_PEER_PORT) }),
        peer: peer(sk),
        title: [0; SSH_TITLE],
    };
    tell(ctx, counters, record);
}

#[inline(always)]
fn tell(ctx: &BtfTracePointContext, counters: &mut SshCounters, record: SshRecord) {
    if let Some(mut place) = VMS_SSH_RING.reserve(0) {
        place.write(record);
        place.submit(0);
    } else {
        counters.lost += 1;
        if counters.lost == 1 {
            aya_log_ebpf::warn!(ctx, "ssh records are lost: the ring buffer is full");
        }
    }
}

/// Whether the socket is marked; with the create flag it is afterwards, unless the kernel has no memory.
#[inline(always)]
fn mark(sk: *const u8, flags: u64) -> bool {
    let map = (&raw const VMS_SSH_SOCKS).cast_mut().cast();
    // SAFETY: the map and the socket are valid, and no value is given.
    !unsafe { bpf_sk_storage_get(map, sk.cast_mut().cast(), core::ptr::null_mut(), flags) }.is_null()
}

#[inline(always)]
fn counters() -> Option<&'static mut SshCounters> {
    // SAFETY: the slot belongs to this CPU. The kernel does not run a tracing program inside itself: it skips that run.
    VMS_SSH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

#[inline(always)]
fn peer(sk: *const u8) -> [u8; 16] {
    // SAFETY: as in `vms_ssh`.
    unsafe {
        if read::<u16>(sk, &SOCK_FAMILY) == AF_INET {
            let [a, b, c, d] = read::<[u8; 4]>(sk, &SOCK_PEER_V4);
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
        } else {
            bpf_probe_read_kernel(at(sk, &SOCK_PEER_V6)).unwrap_or([0; 16])
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
fn at<T>(base: *const u8, offset: &Global<u32>) -> *const T {
    base.wrapping_add(offset.load() as usize).cast()
}

/// A direct load through a pointer of the tracepoint.
///
/// # Safety
/// At `offset` lies a `T`.
#[inline(always)]
unsafe fn read<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: the caller's promise.
    unsafe { *at::<T>(base, offset) }
}
