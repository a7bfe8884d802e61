//! The contract between the kernel half and the agent: every counter, record and index that both read.
//!
//! Written once and compiled for both sides. Everything is `repr(C)` without implicit padding (asserted below), holds plain
//! integers only, and counts: no threshold and no verdict lives here.
//!
//! **Per CPU.** Counters sit in per-CPU maps, so that a program adds without atomics; the reader sums over all possible CPUs.
//! **Wrap-around.** Counters are cumulative `u64` since the map was made. At 100 Gbit/s one wraps after 46 years; a smaller
//! value than the one before therefore means a new map, and the reader takes it as a new baseline.
#![no_std]

/// Interfaces that the map of [`NetCounters`] has room for. An interface is number `ifindex % NET_SLOTS`: the program finds it with one
/// mask instead of a hash look-up. Two attached interfaces must not share a number; the loader refuses the second.
pub const NET_SLOTS: u32 = 64;

/// Cgroups that are told apart while somebody asks who uses the network, less one: [`OWNERS_MISSED`].
pub const OWNERS: u32 = 4096;

/// Key in the map of [`OwnerCounters`] for the traffic of all cgroups that it had no room for. No cgroup has this id.
pub const OWNERS_MISSED: u64 = 0;

/// Index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX` of include/net/flow.h).
pub const LOOPBACK: u32 = 1;

/// Bytes of the ring buffer of [`SshRecord`]s: room for 819 of them, each with the kernel's header of 8 bytes.
pub const SSH_RING_BYTES: u32 = 64 * 1024;

/// Most SSH ports that can be watched; unused entries are 0.
pub const SSH_PORTS: usize = 8;

/// Bytes of [`SshRecord::title`].
pub const SSH_TITLE: usize = 32;

/// What a frame is to the verdict. Every frame belongs to exactly one class.
///
/// | class | frames |
/// |---|---|
/// | user | all that no other class takes, and all that cannot be read to the end: doubt keeps the host awake |
/// | background | ARP, LLDP, 802.1X, tunnel packets without content, and what a [`NetRule`] names by port, peer or protocol |
/// | multicast | sent to an Ethernet group address, broadcast included, whatever it carries |
///
/// A frame of a tunnel ([`VXLAN_PORTS`], [`GENEVE_PORT`], IP in IP) has the class of the flow inside, one level deep, unless the rules name
/// the tunnel itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NetClass {
    /// Somebody uses the host.
    User = 0,
    /// The host and its cluster keep themselves going.
    Background = 1,
    /// To everybody or to a group.
    Multicast = 2,
}

impl NetClass {
    /// Every class.
    pub const ALL: [Self; NET_CLASSES as usize] = [Self::User, Self::Background, Self::Multicast];

    /// Slot of the map of [`NetCounters`] that has the traffic of this class on an interface.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, ifindex: u32) -> u32 {
        ifindex % NET_SLOTS * NET_CLASSES + self as u32
    }
}

/// Number of [`NetClass`]es.
pub const NET_CLASSES: u32 = 3;

/// UDP ports of VXLAN: IANA's (RFC 7348), and the one that Linux had before, still the default of Flannel and Cilium.
pub const VXLAN_PORTS: [u16; 2] = [4789, 8472];

/// UDP port of Geneve (RFC 8926).
pub const GENEVE_PORT: u16 = 6081;

/// Most peer networks of either address family that can be background.
pub const NET_CIDRS: u32 = 256;

/// Traffic of one class on one interface, seen by one CPU. One slot of a per-CPU array, see [`NetClass::slot`].
///
/// Bytes are those of the frame: Ethernet header and VLAN tag included, frame check sequence excluded. A GSO or GRO aggregate
/// (`skb->len`) counts its headers once, not once a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames (or aggregates) received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames (or aggregates) sent.
    pub tx_packets: u64,
    /// Last frame, `CLOCK_BOOTTIME` ns, to the tick of the kernel (1 to 10 ms); 0 if none. Class user only.
    pub last_ns: u64,
    /// The tick (`jiffies64`) of `last_ns`: the clock is read once a tick, not once a frame.
    pub last_tick: u64,
}

/// Which end of a connection has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// This host: somebody connects to it.
    Local,
    /// The peer: this host connects to it.
    Peer,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One bit of the map that says what is background, an array of [`NetRule::WORDS`] words of 64 bits. The agent changes it while the programs
/// run, a word at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetRule {
    /// Index of the word.
    pub word: u32,
    /// The bit in it.
    pub mask: u64,
}

impl NetRule {
    /// Words of the map.
    pub const WORDS: u32 = Self::FLAGS + 1;

    /// Words for the ports of one protocol at one end.
    const PORTS: u32 = (u16::MAX as u32 + 1) / u64::BITS;
    const PROTOCOLS: u32 = 4 * Self::PORTS;
    const FLAGS: u32 = Self::PROTOCOLS + (u8::MAX as u32 + 1) / u64::BITS;

    /// There is a network of background peers to look for in IPv4.
    pub const CIDRS_V4: Self = Self::bit(Self::FLAGS, 0);
    /// The same in IPv6.
    pub const CIDRS_V6: Self = Self::bit(Self::FLAGS, 1);

    /// A port is background. `port`: as it stands in a frame, network byte order, so that the programs need not turn it.
    #[inline(always)]
    #[must_use]
    pub const fn port(transport: Transport, side: Side, port: u16) -> Self {
        let row = match (transport, side) {
            (Transport::Tcp, Side::Local) => 0,
            (Transport::Tcp, Side::Peer) => 1,
            (Transport::Udp, Side::Local) => 2,
            (Transport::Udp, Side::Peer) => 3,
        };
        Self::bit(row * Self::PORTS, port)
    }

    /// A protocol of IP is background. TCP and UDP are not looked up here: they have ports.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(protocol: u8) -> Self {
        Self::bit(Self::PROTOCOLS, protocol as u16)
    }

    #[inline(always)]
    const fn bit(first: u32, number: u16) -> Self {
        Self {
            word: first + number as u32 / u64::BITS,
            mask: 1 << (number as u32 % u64::BITS),
        }
    }
}

/// IP packets of the sockets of one cgroup, headers of IP included. One entry of a per-CPU hash; the key is the cgroup's id, which is the
/// inode number of its folder. A batch that the network card or the kernel merged (GRO, GSO) has its headers once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OwnerCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What one CPU did since the program was attached. One slot of a per-CPU array with a single entry.
///
/// `clock` is one number on purpose: the kernel copies a slot to the reader word by word while the CPU may be switching, and a busy time
/// and a start of the running stretch in two words could be torn apart: the stretch missing, or counted twice. One word cannot.
///
/// It works like a stopwatch: leaving idle subtracts the clock, entering idle adds it. While idle it is the busy time so far; while busy
/// it is that less the moment the CPU left idle, which is negative: a CPU cannot have been busy for longer than the machine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SchedCounters {
    /// Busy time so far, ns; while busy, less the `CLOCK_MONOTONIC` ns at which the CPU left idle.
    pub clock: i64,
    /// Context switches that the kernel traces, which on some kernels are not quite all. 0: nothing is known of this CPU yet, `clock`
    /// included.
    pub switches: u64,
}

impl SchedCounters {
    /// Busy time up to `now` (`CLOCK_MONOTONIC` ns), the stretch that is running included; `None` before the first switch.
    #[must_use]
    pub fn busy_ns(&self, now: u64) -> Option<u64> {
        if self.switches == 0 {
            return None;
        }
        let busy = if self.clock < 0 {
            self.clock.saturating_add_unsigned(now)
        } else {
            self.clock
        };
        // Still negative: the CPU left idle after `now` was read.
        Some(busy.max(0).unsigned_abs())
    }
}

/// Connections to the SSH ports. One slot of a per-CPU array with a single entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SshCounters {
    /// Connections accepted by a listener on one of the ports (handshake complete).
    pub opened: u64,
    /// Of those, closed again. Those that were open before the program was attached get a record at their end, but do not count.
    pub closed: u64,
    /// Bytes received on the connections in `closed`, as `tcpi_bytes_received` of tcp_info has them: a FIN counts as one byte.
    pub rx_bytes: u64,
    /// Bytes acknowledged by the peer on the connections in `closed`, as `tcpi_bytes_acked` has them: a FIN counts as one byte.
    pub tx_bytes: u64,
    /// Last open or close, `CLOCK_BOOTTIME` ns; 0 if none.
    pub last_activity_ns: u64,
    /// Records that found the ring buffer full. The reader must then list all connections. (The loader adds the runs that the kernel
    /// skipped, because the program was interrupted by a packet that would have run it again.)
    pub lost: u64,
}

/// What an [`SshRecord`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SshRecordKind {
    /// A listener accepted a connection. Nobody is authenticated yet.
    Opened = 1,
    /// A connection ended.
    Closed = 2,
    /// An SSH server process started a child: the moment at which a session may have become authenticated. `pid` is the
    /// server process, `child` the new one.
    Forked = 3,
}

/// One record of the SSH ring buffer. Written at connection changes and forks of the SSH server only, never per packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SshRecord {
    /// `CLOCK_BOOTTIME` ns.
    pub at_ns: u64,
    /// A [`SshRecordKind`].
    pub kind: u32,
    /// Process id of the server process ([`SshRecordKind::Forked`] only, else 0).
    pub pid: u32,
    /// Process id of its new child ([`SshRecordKind::Forked`] only, else 0).
    pub child: u32,
    /// Local port, host byte order (0 for [`SshRecordKind::Forked`]).
    pub local_port: u16,
    /// Peer's port, host byte order (0 for [`SshRecordKind::Forked`]).
    pub peer_port: u16,
    /// Peer's address; IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
    pub peer: [u8; 16],
    /// What the server process called itself when it forked, up to the first 0 ([`SshRecordKind::Forked`] only, else 0): the beginning
    /// of its arguments, where sshd writes its title. It is cut off if there is no 0, and all 0 if it could not be read.
    pub title: [u8; SSH_TITLE],
}

/// Bytes of the ring buffer of [`EdgeRecord`]s, rounded up to a page by the loader: room for at least 128 of them, each with the kernel's
/// header of 8 bytes.
pub const EDGE_RING_BYTES: u32 = 4096;

/// How much may happen before the agent is told: the one entry of an array, all 0 at first.
///
/// Each CPU accounts for itself, traffic also by interface, from the arming on. The first that is beyond the budget writes an
/// [`EdgeRecord`] and sets the word of that kind to 0, so that one arming gives one record of each kind; those CPUs that were beyond it in the
/// same moment write one each.
///
/// An arming is a number that was not used before in this map, and 0 is none. The kernel copies an entry byte by byte while programs run: the
/// agent writes the amounts with both words 0 first, and then once more with the words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EdgeBudget {
    /// Bytes of class user (both directions, as [`NetCounters`] has them) on one interface on one CPU that are not told yet.
    pub traffic_bytes: u64,
    /// Busy time of one CPU that is not told yet, ns.
    pub busy_ns: u64,
    /// When it was armed, `CLOCK_MONOTONIC` ns: what a CPU did before does not count.
    pub armed_ns: u64,
    /// The arming for traffic; 0: not armed.
    pub traffic: u64,
    /// The arming for busy time; 0: not armed.
    pub cpu: u64,
}

/// What an [`EdgeRecord`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EdgeKind {
    /// User traffic beyond the budget.
    Traffic = 1,
    /// A CPU was busy beyond the budget. Noticed when it switches or enters idle.
    Cpu = 2,
}

/// One record of the ring buffer of edges. (A connection to an SSH port is told by its [`SshRecord`], armed or not.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EdgeRecord {
    /// `CLOCK_BOOTTIME` ns.
    pub at_ns: u64,
    /// An [`EdgeKind`].
    pub kind: u32,
    /// The interface, or the CPU.
    pub index: u32,
    /// Bytes, or ns, since the arming.
    pub amount: u64,
}

const _: () = assert!(size_of::<NetCounters>() == 6 * 8);
const _: () = assert!(size_of::<OwnerCounters>() == 2 * 8);
const _: () = assert!(size_of::<SchedCounters>() == 2 * 8);
const _: () = assert!(size_of::<SshCounters>() == 6 * 8);
const _: () = assert!(size_of::<SshRecord>() == 72);
const _: () = assert!(size_of::<EdgeBudget>() == 5 * 8);
const _: () = assert!(size_of::<EdgeRecord>() == 24);

#[cfg(feature = "pod")]
mod pod {
    use super::{EdgeBudget, EdgeRecord, NetCounters, OwnerCounters, SchedCounters, SshCounters, SshRecord};

    // SAFETY: repr(C) of integers without padding (sizes asserted above): every bit pattern is a value.
    unsafe impl aya::Pod for NetCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OwnerCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SchedCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SshCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SshRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EdgeBudget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EdgeRecord {}
}
