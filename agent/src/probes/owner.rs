//! Bytes by cgroup, for as long as an [`OwnerProbe`] lives.
//!
//! A copy of the object of its own, not a part of [`super::Probes`]: it is made in the task that answers one question and dies with it,
//! whether the answer was sent or not, and nothing of it waits in the kernel for a question that nobody asks. Each question costs some
//! 20 ms and, during them, 20 MB for the object, and for half a second the maps of the other programs, which stay empty.

use std::{collections::BTreeMap, fs::File, path::Path};

use agent_ebpf::{OWNERS, OWNERS_MISSED, OwnerCounters};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, cgroup_skb::CgroupSkbLink},
    util::nr_cpus,
};

use super::{PROGRAMS, missing, not_built, reason, take};
use crate::memory;

/// Counts the traffic of every cgroup while it lives; dropping it takes all of it out of the kernel.
pub struct OwnerProbe {
    counters: PerCpuHashMap<MapData, u64, OwnerCounters>,
    _links: [CgroupSkbLink; 2],
    /// Holds the programs.
    _ebpf: Ebpf,
}

/// Traffic since the probe was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerTraffic {
    /// By the id of the cgroup: the inode number of its folder.
    pub by_cgroup: BTreeMap<u64, OwnerCounters>,
    /// Of all cgroups that there was no room for.
    pub missed: OwnerCounters,
}

impl OwnerProbe {
    /// Attaches to the cgroup whose folder is `root`, for it and all below it.
    ///
    /// Others may be attached there as well, before or after, and all of them see every packet; only a program that was attached with
    /// neither `BPF_F_ALLOW_MULTI` nor `BPF_F_ALLOW_OVERRIDE` wants to be alone, and then this is refused.
    ///
    /// # Errors
    /// Why it cannot count, in one line.
    pub fn attach(root: &Path) -> Result<Self, String> {
        Self::attach_with_room(root, OWNERS)
    }

    /// The same for fewer cgroups than [`OWNERS`]; at least 1, which is for what the others have.
    ///
    /// # Errors
    /// Why it cannot count, in one line.
    pub fn attach_with_room(root: &Path, cgroups: u32) -> Result<Self, String> {
        let mut ebpf = load(cgroups)?;
        let mut counters: PerCpuHashMap<_, u64, OwnerCounters> = take(&mut ebpf, "VMS_OWN")?;
        let cpus = nr_cpus().map_err(|(path, error)| format!("count the CPUs: {path}: {error}"))?;
        let zero = vec![OwnerCounters::default(); cpus].try_into();
        let zero = zero.map_err(|error| reason("make room for what the table misses", &error))?;
        counters
            .insert(OWNERS_MISSED, zero, 0)
            .map_err(|error| reason("make room for what the table misses", &error))?;
        let links = attach(&mut ebpf, root, ["vms_own_rx", "vms_own_tx"])?;
        Ok(Self {
            counters,
            _links: links,
            _ebpf: ebpf,
        })
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<OwnerTraffic, String> {
        let mut traffic = OwnerTraffic::default();
        for entry in &self.counters {
            let (cgroup, slots) = entry.map_err(|error| reason("read the traffic of the cgroups", &error))?;
            let sum = slots.iter().fold(OwnerCounters::default(), |sum, cpu| OwnerCounters {
                rx_bytes: sum.rx_bytes.wrapping_add(cpu.rx_bytes),
                tx_bytes: sum.tx_bytes.wrapping_add(cpu.tx_bytes),
            });
            if cgroup == OWNERS_MISSED {
                traffic.missed = sum;
            } else {
                traffic.by_cgroup.insert(cgroup, sum);
            }
        }
        Ok(traffic)
    }
}

/// A copy of the object, without programs in the kernel.
pub(super) fn load(cgroups: u32) -> Result<Ebpf, String> {
    let programs = PROGRAMS.ok_or_else(not_built)?;
    let ebpf = EbpfLoader::new()
        .btf(None)
        .map_max_entries("VMS_OWN", cgroups)
        .load(programs);
    memory::give_back(Some(programs));
    ebpf.map_err(|error| reason("create the maps of the eBPF programs (needs CAP_BPF)", &error))
}

/// Attaches the programs of both directions to the cgroup at `folder`, after loading them if that has not been done.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    folder: &Path,
    [received, sent]: [&str; 2],
) -> Result<[CgroupSkbLink; 2], String> {
    let cgroup = File::open(folder).map_err(|error| format!("open {}: {error}", folder.display()))?;
    let mut one = |name: &str, direction| {
        let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut CgroupSkb = program.try_into().map_err(|error| reason(name, &error))?;
        if program.fd().is_err() {
            let loaded = program.load();
            loaded.map_err(|error| reason(&format!("load {name} (needs CAP_BPF)"), &error))?;
        }
        let what = |error| {
            reason(
                &format!("attach {name} to {} (needs CAP_NET_ADMIN)", folder.display()),
                &error,
            )
        };
        let link = program
            .attach(&cgroup, direction, CgroupAttachMode::Single)
            .map_err(what)?;
        program.take_link(link).map_err(what)
    };
    Ok([
        one(received, CgroupSkbAttachType::Ingress)?,
        one(sent, CgroupSkbAttachType::Egress)?,
    ])
}
