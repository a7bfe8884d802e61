//! What the sensors bring home: cumulative counters and the list of SSH sessions, each with where it was read.
//!
//! Plain data. [`crate::probes`] and [`crate::procfs`] fill it, [`crate::sample`] turns two of them into rates.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use crate::clock::BootTime;

/// One signal as it was read: a value and its source, or the reason there is none. Never a zero that stands for "could not look".
#[derive(Clone, Debug, PartialEq)]
pub enum Reading<T> {
    /// Read.
    Known {
        /// The value.
        value: T,
        /// Who told.
        source: Source,
    },
    /// Could not be read; why. Keeps the host awake.
    Unreadable(String),
    /// Nobody asked for this signal (configuration).
    NotConfigured,
}

/// Where a value was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Our eBPF program.
    Kernel,
    /// The kernel's plain counters: the program is not attached, or not for long enough.
    Plain,
    /// `/proc`, `/sys` or netlink, because the program does not run; why.
    Fallback(String),
    /// The Kubernetes API.
    Kubernetes,
}

/// A cumulative signal that two can tell: the kernel's plain counters, which never stop counting, and our program, while it is attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Twofold<P, C> {
    /// The plain counters.
    pub plain: Reading<P>,
    /// What the program counted.
    pub program: Program<C>,
}

/// What a program counted.
#[derive(Clone, Debug, PartialEq)]
pub enum Program<C> {
    /// It counts.
    Counts {
        /// Since it was attached.
        value: C,
        /// Which attachment that was: values of different ones have nothing to do with each other.
        epoch: u64,
    },
    /// It is not attached, because its answer could not change the verdict.
    Away,
    /// It cannot run; why.
    Failed(String),
}

/// Traffic by interface; the program tells its classes apart.
pub type NetReading = Twofold<BTreeMap<Interface, Traffic>, BTreeMap<Interface, NetTotals>>;

/// A network interface: the index identifies it, the name is for people (names can change).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Kernel's index, > 0; 0 for all pods together, which are no interface but are counted like one.
    pub index: u32,
    /// Name at the time of the reading.
    pub name: String,
}

/// Cumulative traffic of one interface by class; see [`agent_ebpf::NetClass`] for what belongs to which. Where nothing tells the
/// classes apart, all of it is user traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetTotals {
    /// Somebody uses the host, or that cannot be ruled out.
    pub user: Traffic,
    /// The host and its cluster keep themselves going.
    pub background: Traffic,
    /// Broadcast and multicast.
    pub multicast: Traffic,
    /// Last frame of class user, to 10 ms; `None`: none since the counting began, or not known.
    pub last_user: Option<BootTime>,
}

/// Cumulative traffic; see [`agent_ebpf::NetCounters`] for what a byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
}

/// Cumulative CPU use of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTotals {
    /// Busy time by CPU number. Only CPUs that are online.
    pub busy: BTreeMap<u32, Duration>,
    /// Context switches on all CPUs.
    pub switches: u64,
    /// CPU time the agent itself used, to be left out.
    pub own: Duration,
    /// CPU time of the pods by cgroup, if only they count.
    pub pods: Option<BTreeMap<String, Duration>>,
}

/// An authenticated SSH session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who logged in, if known.
    pub user: Option<String>,
    /// Peer's address.
    pub peer: IpAddr,
    /// Peer's port.
    pub peer_port: u16,
    /// Server process that owns the connection, 0 if unknown.
    pub pid: u32,
    /// Time since the kernel last sent or received a byte of payload on it.
    pub idle: Duration,
}

/// What is known of SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshSeen {
    /// Sessions that are open.
    pub sessions: Vec<Session>,
    /// Latest moment at which a session is known to have begun, done something that shows in the kernel's records, or ended, however short
    /// it was. The last byte of a session that is open is in [`Session::idle`].
    pub last_activity: Option<BootTime>,
    /// Sessions authenticated since the agent started, those already open at its start included.
    pub logins: u64,
}

/// What is known of the pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodsSeen {
    /// `namespace/name` of pods that count as activity.
    pub running: Vec<String>,
    /// `namespace/name` of pods with a prevent-sleep label.
    pub preventing: Vec<String>,
}

/// Everything the sensors read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Counters {
    /// When.
    pub at: BootTime,
    /// Traffic.
    pub net: NetReading,
    /// CPU use.
    pub cpu: Twofold<CpuTotals, CpuTotals>,
    /// SSH sessions.
    pub ssh: Reading<SshSeen>,
    /// Pods.
    pub pods: Reading<PodsSeen>,
}

impl NetTotals {
    /// All classes together.
    #[must_use]
    pub const fn all(&self) -> Traffic {
        self.user.plus(self.background).plus(self.multicast)
    }
}

impl NetTotals {
    /// Adds what was counted between two readings.
    pub const fn shift(&mut self, before: &Self, after: &Self) {
        self.user = self.user.plus(after.user.minus(before.user));
        self.background = self.background.plus(after.background.minus(before.background));
        self.multicast = self.multicast.plus(after.multicast.minus(before.multicast));
    }
}

impl Traffic {
    /// The difference to an earlier reading; see [`Traffic::plus`].
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.wrapping_sub(earlier.rx_bytes),
            rx_packets: self.rx_packets.wrapping_sub(earlier.rx_packets),
            tx_bytes: self.tx_bytes.wrapping_sub(earlier.tx_bytes),
            tx_packets: self.tx_packets.wrapping_sub(earlier.tx_packets),
        }
    }

    /// The sum. Counters wrap around; see [`agent_ebpf`].
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.wrapping_add(other.rx_bytes),
            rx_packets: self.rx_packets.wrapping_add(other.rx_packets),
            tx_bytes: self.tx_bytes.wrapping_add(other.tx_bytes),
            tx_packets: self.tx_packets.wrapping_add(other.tx_packets),
        }
    }
}

impl<P, C> Twofold<P, C> {
    /// Nobody asked for it.
    pub const NOT_CONFIGURED: Self = Self {
        plain: Reading::NotConfigured,
        program: Program::Away,
    };
}

impl<T> Reading<T> {
    /// The value, if it was read.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unreadable(_) | Self::NotConfigured => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("eBPF"),
            Self::Plain => f.write_str("plain counters"),
            Self::Fallback(why) => write!(f, "fallback: {why}"),
            Self::Kubernetes => f.write_str("Kubernetes API"),
        }
    }
}
