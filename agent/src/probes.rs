//! Loads the eBPF programs, attaches them and reads what they count. The only file, with its folder, that names aya.
//!
//! Owns the programs, their maps and their attachments; dropping [`Probes`] takes all of it out of the kernel, and so does the death of
//! the process (on Linux 6.6 or later; see [`clsact`] for the older ones). Never fails as a whole: each [`Family`] runs, or says
//! why not, and [`crate::procfs`] and netlink stand in for it. Judges nothing.

mod clsact;
mod edge;
mod kernel_types;
mod net;
mod owner;
mod pods;
mod rules;
mod sched;
mod ssh;

use std::{
    collections::BTreeMap,
    error::Error,
    fs, io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use agent_ebpf::{SSH_PORTS, SshCounters, SshRecord};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapError},
    programs::{
        BtfTracePoint,
        links::{FdLink, LinkError},
    },
};
use aya_log::EbpfLogger;
use tracing::{info, warn};

use crate::{
    config::{Background, ProbeMode, SshNamespaces},
    counters::{CpuTotals, Interface, NetTotals},
    edges::{Budget, Edge},
    memory,
    printable::with_causes,
};
use edge::Edges;
use kernel_types::{KernelTypes, KernelTypesError};
use net::Net;
pub use owner::{OwnerProbe, OwnerTraffic};
pub use pods::PodsProbe;
use sched::Sched;
use ssh::Ssh;

#[cfg(vmstation_ebpf)]
static PROGRAMS: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("VMSTATION_EBPF_EMBEDDED")));
#[cfg(not(vmstation_ebpf))]
static PROGRAMS: Option<&[u8]> = None;

/// The kernel's own part of a record in a ring buffer (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEADER: usize = 8;

/// Frozen globals of the programs that hold the offset of a kernel field: global, structure, field. A `sock` begins with its `sock_common`.
const OFFSETS: [(&str, &str, &str); 17] = [
    ("TASK_PID", "task_struct", "pid"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_MM", "task_struct", "mm"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_NSPROXY", "task_struct", "nsproxy"),
    ("NSPROXY_NET", "nsproxy", "net_ns"),
    ("NET_NS", "net", "ns"),
    ("NS_INUM", "ns_common", "inum"),
    ("MM_ARG_START", "mm_struct", "arg_start"),
    ("SOCK_FAMILY", "sock_common", "skc_family"),
    ("SOCK_NET", "sock_common", "skc_net"),
    ("SOCK_PEER_PORT", "sock_common", "skc_dport"),
    ("SOCK_PEER_V4", "sock_common", "skc_daddr"),
    ("SOCK_PEER_V6", "sock_common", "skc_v6_daddr"),
    ("INET_LOCAL_PORT", "inet_sock", "inet_sport"),
    ("TCP_RECEIVED", "tcp_sock", "bytes_received"),
    ("TCP_ACKED", "tcp_sock", "bytes_acked"),
];

/// Programs that count the same thing and stand or fall together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Traffic of interfaces.
    Net,
    /// Connections to the SSH ports.
    Ssh,
    /// Busy time of CPUs.
    Sched,
}

impl Family {
    /// Names of its programs, as `bpftool prog show` has them.
    #[must_use]
    pub const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Net => &["vms_net_rx", "vms_net_tx"],
            Self::Ssh => &["vms_ssh", "vms_ssh_fork"],
            Self::Sched => &["vms_idle", "vms_sched"],
        }
    }
}

/// What running programs has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Times they ran.
    pub runs: u64,
    /// Time they ran for.
    pub time: Duration,
}

/// Direction of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To this host.
    Received,
    /// From this host.
    Sent,
}

/// The programs in the kernel and what they count.
pub struct Probes {
    families: Result<Families, String>,
    wanted: Vec<Interface>,
}

struct Families {
    net: Result<Net, String>,
    ssh: Result<Ssh, String>,
    sched: Result<Sched, String>,
    edges: Result<Edges, String>,
    /// Warnings of the programs themselves, if they can be had.
    log: Option<EbpfLogger<KernelLog>>,
    ebpf: Ebpf,
}

impl Probes {
    /// Like [`Self::load_with`], for SSH in the network namespace of the calling thread.
    #[must_use]
    pub fn load(ssh_ports: &[u16], mode: ProbeMode) -> Self {
        Self::load_with(ssh_ports, SshNamespaces::Host, mode)
    }

    /// Loads and attaches whatever this kernel and this process's privileges allow. Interfaces come with [`Self::sync_interfaces`].
    ///
    /// `ssh_ports`: at most [`SSH_PORTS`], none 0. Takes some 100 ms and, while it runs, 40 MB, for the kernel's type information.
    #[must_use]
    pub fn load_with(ssh_ports: &[u16], ssh_namespaces: SshNamespaces, mode: ProbeMode) -> Self {
        let families = match (mode, PROGRAMS) {
            (ProbeMode::Off, _) => Err("switched off (`probes = \"off\"`)".into()),
            (ProbeMode::Auto | ProbeMode::Always, None) => Err(not_built()),
            (ProbeMode::Auto | ProbeMode::Always, Some(programs)) => {
                Families::load(programs, ssh_ports, ssh_namespaces)
            }
        };
        // The kernel's type information, 40 MB, is gone by now.
        memory::give_back(PROGRAMS);
        Self {
            families,
            wanted: Vec::new(),
        }
    }

    /// Whether a family can run: it does, or it was taken out by [`Self::detach`].
    ///
    /// # Errors
    /// Why not, in one line.
    pub fn state(&self, family: Family) -> Result<(), &str> {
        let families = self.families.as_ref().map_err(String::as_str)?;
        match family {
            Family::Net => families.net.as_ref().map(drop),
            Family::Ssh => families.ssh.as_ref().map(drop),
            Family::Sched => families.sched.as_ref().map(drop),
        }
        .map_err(String::as_str)
    }

    /// Whether the programs of a family are in the kernel.
    #[must_use]
    pub fn attached(&self, family: Family) -> bool {
        let Ok(families) = &self.families else { return false };
        match family {
            Family::Net => families.net.as_ref().is_ok_and(Net::attached),
            Family::Ssh => families.ssh.is_ok(),
            Family::Sched => families.sched.as_ref().is_ok_and(Sched::attached),
        }
    }

    /// Puts the programs of a family back into the kernel, where they count from 0. The ssh family is always there. What cannot be put
    /// back says why in [`Self::state`] from then on.
    pub fn attach(&mut self, family: Family) {
        let Ok(families) = &mut self.families else { return };
        let ebpf = &mut families.ebpf;
        match family {
            Family::Net => {
                let attached = families.net.as_mut().map(|net| {
                    net.attach_programs(ebpf)?;
                    net.sync(ebpf, &self.wanted);
                    Ok(())
                });
                if let Ok(Err(why)) = attached {
                    families.net = Err(why);
                }
            }
            Family::Ssh => {}
            Family::Sched => {
                if let Ok(Err(why)) = families.sched.as_mut().map(|sched| sched.attach(ebpf)) {
                    families.sched = Err(why);
                }
            }
        }
    }

    /// Takes the programs of a family out of the kernel; its counters are not told until they are back. The ssh family stays: it runs
    /// only when a connection changes.
    pub fn detach(&mut self, family: Family) {
        let Ok(families) = &mut self.families else { return };
        match family {
            Family::Net => {
                if let Ok(net) = &mut families.net {
                    net.detach_programs(&mut families.ebpf);
                }
            }
            Family::Ssh => {}
            Family::Sched => {
                if let Ok(sched) = &mut families.sched {
                    sched.detach(&mut families.ebpf);
                }
            }
        }
    }

    /// Times that the counting of a family began anew: counters of two readings belong together where it is the same.
    #[must_use]
    pub fn epoch(&self, family: Family) -> u64 {
        let Ok(families) = &self.families else { return 0 };
        match family {
            Family::Net => families.net.as_ref().map_or(0, Net::epoch),
            Family::Ssh => 0,
            Family::Sched => families.sched.as_ref().map_or(0, Sched::epoch),
        }
    }

    /// What the programs of a family have cost since they were attached. The kernel counts it only while `kernel.bpf_stats_enabled` is
    /// 1 (sysctl), and leaves out what it takes to call them: some 50 ns a run. `None`: nothing is attached, or nothing was counted.
    #[must_use]
    pub fn cost(&self, family: Family) -> Option<Cost> {
        let families = self.families.as_ref().ok()?;
        let cost = family
            .programs()
            .iter()
            .filter_map(|name| families.ebpf.program(name)?.info().ok())
            .fold(Cost::default(), |sum, info| Cost {
                runs: sum.runs + info.run_count(),
                time: sum.time + info.run_time(),
            });
        (cost.runs > 0).then_some(cost)
    }

    /// Attaches to interfaces that are not attached to yet and leaves those no longer wanted. A fresh attachment counts from 0; so does
    /// one that somebody had detached, which is said by `true`. An interface that cannot be attached to says why in [`Self::net`], and is
    /// tried again here.
    pub fn sync_interfaces(&mut self, wanted: &[Interface]) -> bool {
        self.wanted = wanted.to_vec();
        match &mut self.families {
            Ok(Families { net: Ok(net), ebpf, .. }) => net.sync(ebpf, wanted),
            Ok(_) | Err(_) => false,
        }
    }

    /// The interfaces of the last [`Self::sync_interfaces`].
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.wanted
    }

    /// Changes what is background traffic, from the next frame on; before the first call nothing is that has a port or needs a protocol.
    ///
    /// # Errors
    /// Why the program does not run, or could not be told: what it counts as user traffic may then be background.
    pub fn set_background(&mut self, background: &Background) -> Result<(), String> {
        let families = self.families.as_mut().map_err(|why| why.clone())?;
        families
            .net
            .as_mut()
            .map_err(|why| why.clone())?
            .set_background(background)
    }

    /// Has the kernel run the program of one direction over a frame that nobody sends; it counts for loopback, which has to be attached.
    ///
    /// # Errors
    /// Why it could not run, such as a frame shorter than an Ethernet header.
    pub fn run_over(&self, way: Way, frame: &[u8]) -> Result<(), String> {
        let families = self.families.as_ref().map_err(String::clone)?;
        families.net.as_ref().map_err(String::clone)?;
        net::run_over(&families.ebpf, way, frame)
    }

    /// Traffic of every interface of the last [`Self::sync_interfaces`], or why it is not counted.
    #[must_use]
    pub fn net(&self) -> BTreeMap<Interface, Result<NetTotals, String>> {
        let total = |interface: &Interface| {
            let families = self.families.as_ref().map_err(String::clone)?;
            let net = families.net.as_ref().map_err(String::clone)?;
            net.total(interface)
        };
        self.wanted
            .iter()
            .map(|interface| (interface.clone(), total(interface)))
            .collect()
    }

    /// Busy time of every online CPU since the program was attached, never less than told before, and context switches.
    ///
    /// # Errors
    /// Why they are not known.
    pub fn cpu(&self) -> Result<CpuTotals, String> {
        let families = self.families.as_ref().map_err(String::clone)?;
        families.sched.as_ref().map_err(String::clone)?.read()
    }

    /// Connections to the SSH ports since the program was attached.
    ///
    /// # Errors
    /// Why they are not known.
    pub fn ssh(&self) -> Result<SshCounters, String> {
        let families = self.families.as_ref().map_err(String::clone)?;
        let ssh = families.ssh.as_ref().map_err(String::clone)?;
        ssh.total(&families.ebpf)
    }

    /// Readable when [`Self::ssh_records`] has something to take. `None` if the ssh family does not run. To wait on it while taking
    /// records, duplicate it (`try_clone_to_owned`).
    #[must_use]
    pub fn ssh_fd(&self) -> Option<BorrowedFd<'_>> {
        let ssh = self.families.as_ref().ok()?.ssh.as_ref().ok()?;
        Some(ssh.fd())
    }

    /// Takes the records that wait, oldest first; at most as many as the ring buffer holds, so that a flood cannot hold the caller. After
    /// that many, call again before waiting: [`Self::ssh_fd`] tells of records that come, not of those that are left.
    pub fn ssh_records(&mut self) -> Vec<SshRecord> {
        let Ok(Families { ssh: Ok(ssh), log, .. }) = &mut self.families else {
            return Vec::new();
        };
        let records = ssh.take_records();
        // The programs warn only of a full ring buffer, and then there are records.
        if let Some(log) = log {
            log.flush();
        }
        records
    }

    /// From now on, the first activity beyond the budget is told once, in place of any budget before. Traffic is noticed where the net
    /// family is attached, busy CPUs where the sched family is; a CPU that never switches meanwhile is not.
    ///
    /// # Errors
    /// Why the programs could not be told: nothing or the wrong amount may then be noticed.
    pub fn arm_edges(&mut self, budget: Budget) -> Result<(), String> {
        let families = self.families.as_mut().map_err(|why| why.clone())?;
        families.edges()?.arm(budget)
    }

    /// Nothing is told from now on. Records from before may still wait.
    ///
    /// # Errors
    /// Why the programs could not be told.
    pub fn disarm_edges(&mut self) -> Result<(), String> {
        let families = self.families.as_mut().map_err(|why| why.clone())?;
        families.edges()?.disarm()
    }

    /// Readable when [`Self::edge_records`] has something to take; otherwise like [`Self::ssh_fd`].
    #[must_use]
    pub fn edge_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.families.as_ref().ok()?.edges.as_ref().ok()?.fd())
    }

    /// Takes the records that wait, oldest first: one of each kind for each arming, or one of each CPU that was beyond the budget in the same
    /// moment.
    pub fn edge_records(&mut self) -> Vec<Edge> {
        let Ok(Families { edges: Ok(edges), .. }) = &mut self.families else {
            return Vec::new();
        };
        edges.take_records(&self.wanted)
    }
}

impl Families {
    fn edges(&mut self) -> Result<&mut Edges, String> {
        self.edges.as_mut().map_err(|why| why.clone())
    }

    fn load(programs: &[u8], ssh_ports: &[u16], ssh_namespaces: SshNamespaces) -> Result<Self, String> {
        let fields = offsets().map_err(|error| reason("find the kernel's fields", &error));
        let netns = match ssh_namespaces {
            SshNamespaces::Host => own_netns(),
            SshNamespaces::All => Ok(0),
        };
        let btf = Btf::from_sys_fs().map_err(|error| reason("read the kernel's type information (BTF)", &error));
        let mut ports = [0; SSH_PORTS];
        if ssh_ports.len() > ports.len() {
            return Err(format!(
                "{} SSH ports are configured; at most {SSH_PORTS} can be watched",
                ssh_ports.len()
            ));
        }
        ports[..ssh_ports.len()].copy_from_slice(ssh_ports);
        let mut loader = EbpfLoader::new();
        // No relocations: the programs have none.
        loader.btf(None).override_global("SSH_PORT", &ports, true);
        if let Ok(netns) = &netns {
            loader.override_global("SSH_NETNS", netns, true);
        }
        if let Ok(fields) = &fields {
            for ((global, ..), offset) in OFFSETS.iter().zip(fields) {
                loader.override_global(global, offset, true);
            }
        }
        let mut ebpf = loader
            .load(programs)
            .map_err(|error| reason("create the maps of the eBPF programs (needs CAP_BPF)", &error))?;
        // First: programs that are loaded need the maps open.
        let edges = Edges::open(&mut ebpf);
        let net = Net::load(&mut ebpf);
        let btf = btf.as_ref().map_err(String::clone);
        let ssh = fields.and(netns).and_then(|_| Ssh::load(&mut ebpf, btf.clone()?));
        let sched = Sched::load(&mut ebpf);
        // Last: a failure here closes the map, and a program that uses a closed map cannot be loaded any more.
        let log = EbpfLogger::init_with_logger(&mut ebpf, KernelLog)
            .inspect_err(|error| info!(%error, "warnings of the eBPF programs will not be seen"))
            .ok();
        Ok(Self {
            net,
            ssh,
            sched,
            edges,
            log,
            ebpf,
        })
    }
}

/// Inode number of the network namespace of the calling thread (namespaces(7)); 0 on a kernel that has only one.
fn own_netns() -> Result<u32, String> {
    const PATH: &str = "/proc/thread-self/ns/net";
    match fs::metadata(PATH) {
        Ok(metadata) => {
            u32::try_from(metadata.ino()).map_err(|error| reason(&format!("take the number of {PATH}"), &error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/thread-self").unwrap_or(false) => {
            Ok(0)
        }
        Err(error) => Err(reason(&format!("look at {PATH}"), &error)),
    }
}

/// Where the fields of [`OFFSETS`] lie in this kernel.
fn offsets() -> Result<[u32; OFFSETS.len()], KernelTypesError> {
    let types = KernelTypes::read()?;
    let mut offsets = [0; OFFSETS.len()];
    for (offset, (_, structure, field)) in offsets.iter_mut().zip(OFFSETS) {
        *offset = types.offset(structure, field)?;
    }
    Ok(offsets)
}

/// Loads and attaches a program of a tracepoint.
fn trace(ebpf: &mut Ebpf, btf: &Btf, name: &str, tracepoint: &str) -> Result<(), String> {
    let what = |verb: &str| {
        format!("{verb} {name} (needs CAP_BPF and CAP_PERFMON, and no kernel lockdown for confidentiality)")
    };
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error| reason(name, &error))?;
    program
        .load(tracepoint, btf)
        .map_err(|error| reason(&what("load"), &error))?;
    program.attach().map_err(|error| reason(&what("attach"), &error))?;
    Ok(())
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, String> {
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(|error| reason(&format!("open the map {name}"), &error))
}

fn not_built() -> String {
    "built without eBPF programs: run `cargo xtask build-ebpf`, then build again".into()
}

fn missing(name: &str) -> String {
    format!("the eBPF object has no {name}: it is not of this version, build it again")
}

/// A number from a file of /proc/PID/fdinfo.
fn fdinfo(path: &Path, key: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|value| value.trim().parse().ok());
    value.ok_or_else(|| format!("{} has no {key}", path.display()))
}

/// A link and the file that tells where it is attached, found among this process's own: aya does not tell the descriptor.
fn with_fdinfo<L>(link: L) -> Result<(FdLink, PathBuf), String>
where
    FdLink: TryFrom<L, Error = LinkError>,
{
    const FOLDER: &str = "/proc/self/fdinfo";
    let link = FdLink::try_from(link).map_err(|error| reason("open the link", &error))?;
    let id = link.info().map_err(|error| reason("ask for the link", &error))?.id();
    let files = fs::read_dir(FOLDER).map_err(|error| format!("list {FOLDER}: {error}"))?;
    let mut paths = files.filter_map(Result::ok).map(|file| file.path());
    let path = paths.find(|path| fdinfo(path, "link_id:") == Ok(u64::from(id)));
    path.map(|path| (link, path))
        .ok_or_else(|| format!("{FOLDER} does not show link {id}"))
}

/// What was attempted and the whole chain of causes, in one line.
fn reason(attempted: &str, error: &dyn Error) -> String {
    format!("{attempted}: {}", chain(error))
}

/// In one line. A verifier's log is cut to its end, where the refusal is.
fn chain(error: &dyn Error) -> String {
    const MOST: usize = 400;
    let text = with_causes(error);
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    let line = line.strip_suffix(". Verifier output:").unwrap_or(&line);
    match line.char_indices().rev().nth(MOST) {
        None => line.to_owned(),
        Some((start, _)) => format!("..{}", &line[start..]),
    }
}

/// Passes the programs' own warnings on.
struct KernelLog;

impl log::Log for KernelLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        warn!(message = %record.args(), "eBPF program");
    }

    fn flush(&self) {}
}
