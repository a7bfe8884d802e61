//! Traffic of the pods together, by class, for as long as a [`PodsProbe`] lives.
//!
//! Attached to the cgroups of the pods and to no others, so that what the rest of the host does costs nothing here. A copy of the object of
//! its own: it comes and goes with those cgroups, not with the programs of [`super::Probes`].

use std::{path::PathBuf, time::Duration};

use agent_ebpf::{NetClass, NetCounters, OWNERS};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
    programs::links::FdLink,
};

use super::{fdinfo, net::traffic, owner, reason, rules::Rules, take, with_fdinfo};
use crate::{
    cgroups::Cgroup,
    clock::BootTime,
    config::Background,
    counters::{NetTotals, Traffic},
};

/// Counts the traffic of some cgroups and all below them while it lives; dropping it takes all of it out of the kernel.
pub struct PodsProbe {
    counters: PerCpuArray<MapData, NetCounters>,
    links: Vec<Attached>,
    /// The programs look there.
    _rules: Rules,
    /// Holds the programs.
    _ebpf: Ebpf,
}

/// One direction at one cgroup.
struct Attached {
    cgroup: u64,
    _link: FdLink,
    /// Tells where it is attached.
    info: PathBuf,
}

impl PodsProbe {
    /// Attaches to `cgroups`, none of which may be below another one; `background` is no user traffic.
    ///
    /// # Errors
    /// Why it cannot count, in one line.
    pub fn attach(cgroups: &[Cgroup], background: &Background) -> Result<Self, String> {
        let mut ebpf = owner::load(OWNERS)?;
        let counters = take(&mut ebpf, "VMS_PODS")?;
        let mut rules = Rules::take(&mut ebpf)?;
        rules.set(background)?;
        let mut links = Vec::new();
        for cgroup in cgroups {
            for link in owner::attach(&mut ebpf, &cgroup.folder, ["vms_pods_rx", "vms_pods_tx"])? {
                let (link, info) = with_fdinfo(link)?;
                links.push(Attached {
                    cgroup: cgroup.id,
                    _link: link,
                    info,
                });
            }
        }
        Ok(Self {
            counters,
            links,
            _rules: rules,
            _ebpf: ebpf,
        })
    }

    /// Whether it is still attached everywhere: nobody detached it, and no cgroup is gone.
    #[must_use]
    pub fn holds(&self) -> bool {
        let mut links = self.links.iter();
        // 0 when the link was detached or the cgroup is gone.
        links.all(|link| fdinfo(&link.info, "cgroup_id:") == Ok(link.cgroup))
    }

    /// What was counted since it was attached.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<NetTotals, String> {
        let mut last_user = 0;
        let mut class = |class: NetClass| {
            let slots = self.counters.get(&(class as u32), 0);
            let slots = slots.map_err(|error| reason("read the traffic of the pods", &error))?;
            last_user = slots.iter().map(|cpu| cpu.last_ns).max().unwrap_or(0).max(last_user);
            Ok::<_, String>(slots.iter().map(traffic).fold(Traffic::default(), Traffic::plus))
        };
        let (user, background, multicast) = (
            class(NetClass::User)?,
            class(NetClass::Background)?,
            class(NetClass::Multicast)?,
        );
        Ok(NetTotals {
            user,
            background,
            multicast,
            last_user: (last_user != 0).then(|| BootTime(Duration::from_nanos(last_user))),
        })
    }
}
