//! Traffic of interfaces: attaches the programs to each and reads its slot.
//!
//! Owns the attachments. tcx is tried first; where the kernel has none, clsact.

use std::{collections::BTreeMap, io::ErrorKind, path::PathBuf, time::Duration};

use agent_ebpf::{NET_SLOTS, NetClass, NetCounters};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions,
        links::FdLink,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_detach_program},
    },
    sys::SyscallError,
    util::nr_cpus,
};
use nix::{libc, net::if_::if_nametoindex};
use tracing::{debug, info, warn};

use super::{
    Way,
    clsact::{self, Clsact},
    fdinfo, missing, reason,
    rules::Rules,
    take, with_fdinfo,
};
use crate::{
    clock::BootTime,
    config::Background,
    counters::{Interface, NetTotals, Traffic},
};

/// Both directions, each with its program. The filters of clsact carry the same names.
const NET_PROGRAMS: [(&str, TcAttachType); 2] = [
    ("vms_net_rx", TcAttachType::Ingress),
    ("vms_net_tx", TcAttachType::Egress),
];

/// The programs and the interfaces they are attached to.
pub(super) struct Net {
    counters: PerCpuArray<MapData, NetCounters>,
    rules: Rules,
    /// By index of the interface.
    ports: BTreeMap<u32, Port>,
    /// How often counting began anew: at each load, and where somebody had detached the programs.
    epoch: u64,
    loaded: bool,
}

pub(super) struct Port {
    name: String,
    attached: Result<Attachment, String>,
}

/// The programs on one interface.
pub(super) enum Attachment {
    /// Since Linux 6.6. Each link with the file that tells where it is attached.
    Tcx([(FdLink, PathBuf); 2]),
    /// Before. Dropped in this order: the filters before the discipline they hang on, which is here if it is ours.
    Clsact {
        _links: [SchedClassifierLink; 2],
        _added: Option<Clsact>,
    },
}

impl Net {
    /// With the programs in the kernel, on no interface yet.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, String> {
        let mut net = Self {
            counters: take(ebpf, "VMS_NET")?,
            rules: Rules::take(ebpf)?,
            ports: BTreeMap::new(),
            epoch: 0,
            loaded: false,
        };
        net.attach_programs(ebpf)?;
        Ok(net)
    }

    /// Puts the programs into the kernel; [`Self::sync`] puts them on interfaces.
    pub(super) fn attach_programs(&mut self, ebpf: &mut Ebpf) -> Result<(), String> {
        if self.loaded {
            return Ok(());
        }
        for (name, _) in NET_PROGRAMS {
            if let Err(error) = classifier(ebpf, name)?.load() {
                self.detach_programs(ebpf);
                return Err(reason(
                    &format!("load {name} (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"),
                    &error,
                ));
            }
        }
        self.epoch += 1;
        self.loaded = true;
        Ok(())
    }

    /// Takes the programs off all interfaces and out of the kernel. What is background stays known.
    pub(super) fn detach_programs(&mut self, ebpf: &mut Ebpf) {
        self.ports.clear();
        self.loaded = false;
        for (name, _) in NET_PROGRAMS {
            if let Ok(program) = classifier(ebpf, name)
                && let Err(error) = program.unload()
            {
                debug!(name, %error, "the program was not loaded");
            }
        }
    }

    pub(super) const fn attached(&self) -> bool {
        self.loaded
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether somebody had taken the programs off an interface, where they are again.
    pub(super) fn sync(&mut self, ebpf: &mut Ebpf, wanted: &[Interface]) -> bool {
        if !self.loaded {
            return false;
        }
        let mut disturbed = false;
        self.ports.retain(|index, port| {
            let keep = wanted.iter().any(|interface| interface.index == *index);
            if !keep {
                debug!(interface = port.name, "traffic is no longer counted");
            }
            keep
        });
        for interface in wanted {
            let attached = match self.ports.remove(&interface.index) {
                Some(Port {
                    attached: Ok(attachment),
                    ..
                }) if attachment.holds(interface).is_ok() => Ok(attachment),
                before => {
                    // Out of the kernel first: its slot is about to be set to 0.
                    let before = before.map(|port| port.attached.map(drop));
                    disturbed |= before == Some(Ok(()));
                    let attached = self.attach(ebpf, interface);
                    match &attached {
                        Ok(_) => debug!(interface = interface.name, "traffic is counted"),
                        // A transition, not a heartbeat: the same reason again is not news.
                        Err(why) if before.as_ref() != Some(&Err(why.clone())) => {
                            warn!(interface = interface.name, why, "traffic cannot be counted by eBPF");
                        }
                        Err(_) => {}
                    }
                    attached
                }
            };
            let name = interface.name.clone();
            self.ports.insert(interface.index, Port { name, attached });
        }
        self.epoch += u64::from(disturbed);
        disturbed
    }

    fn attach(&mut self, ebpf: &mut Ebpf, interface: &Interface) -> Result<Attachment, String> {
        let Interface { index, name } = interface;
        let slot = index % NET_SLOTS;
        let tenant = self
            .ports
            .iter()
            .find(|(other, port)| *other % NET_SLOTS == slot && port.attached.is_ok());
        if let Some((_, port)) = tenant {
            return Err(format!(
                "{name} would share its counter with {}: their indices differ by a multiple of {NET_SLOTS}",
                port.name
            ));
        }
        if if_nametoindex(name.as_str()) != Ok(*index) {
            return Err(format!(
                "attach to {name}: interface {index} is gone or has another name"
            ));
        }
        self.reset(*index)?;
        attach(ebpf, interface)
    }

    fn reset(&mut self, index: u32) -> Result<(), String> {
        const WHAT: &str = "reset the traffic counter";
        let cpus = nr_cpus().map_err(|(path, error)| format!("{WHAT}: {path}: {error}"))?;
        for class in NetClass::ALL {
            let zero =
                PerCpuValues::try_from(vec![NetCounters::default(); cpus]).map_err(|error| reason(WHAT, &error))?;
            let slot = class.slot(index);
            self.counters.set(slot, zero, 0).map_err(|error| reason(WHAT, &error))?;
        }
        Ok(())
    }

    pub(super) fn total(&self, interface: &Interface) -> Result<NetTotals, String> {
        let port = self.ports.get(&interface.index).ok_or("not attached")?;
        let attachment = port.attached.as_ref().map_err(String::clone)?;
        // A program that somebody detached counts nothing, which must not pass for silence.
        attachment.holds(interface)?;
        let slots = |class: NetClass| {
            let slots = self.counters.get(&class.slot(interface.index), 0);
            slots.map_err(|error| reason("read the traffic counter", &error))
        };
        let sum = |slots: PerCpuValues<NetCounters>| slots.iter().map(traffic).fold(Traffic::default(), Traffic::plus);
        let user = slots(NetClass::User)?;
        let last_user = user.iter().map(|cpu| cpu.last_ns).max().unwrap_or(0);
        Ok(NetTotals {
            user: sum(user),
            background: sum(slots(NetClass::Background)?),
            multicast: sum(slots(NetClass::Multicast)?),
            last_user: (last_user != 0).then(|| BootTime(Duration::from_nanos(last_user))),
        })
    }

    /// Changes what is background, from the next frame on. The programs stay where they are.
    pub(super) fn set_background(&mut self, background: &Background) -> Result<(), String> {
        self.rules.set(background)
    }
}

pub(super) fn traffic(counters: &NetCounters) -> Traffic {
    Traffic {
        rx_bytes: counters.rx_bytes,
        rx_packets: counters.rx_packets,
        tx_bytes: counters.tx_bytes,
        tx_packets: counters.tx_packets,
    }
}

impl Attachment {
    /// Whether the programs are where they were put.
    fn holds(&self, interface: &Interface) -> Result<(), String> {
        let holds = match self {
            Self::Tcx(links) => links.iter().try_fold(true, |all, (_, info)| {
                // 0 when the link was detached or the interface is gone.
                Ok(fdinfo(info, "ifindex:")? == u64::from(interface.index) && all)
            }),
            Self::Clsact { .. } => clsact::filtered(interface.index.cast_signed())
                .map(|[received, sent]| received && sent)
                .map_err(|error| reason("list traffic filters", &error)),
        };
        match holds {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "the programs on {} were detached, or it is gone",
                interface.name
            )),
            Err(why) => Err(format!("look for the programs on {}: {why}", interface.name)),
        }
    }
}

fn attach(ebpf: &mut Ebpf, interface: &Interface) -> Result<Attachment, String> {
    let refused = |error| reason(&format!("attach to {} (needs CAP_NET_ADMIN)", interface.name), &error);
    match both_directions(ebpf, interface, || TcAttachOptions::TcxOrder(LinkOrder::last())) {
        Ok([received, sent]) => Ok(Attachment::Tcx([with_fdinfo(received)?, with_fdinfo(sent)?])),
        // What a kernel without tcx (below 6.6) says to it.
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            attach_clsact(ebpf, interface).map_err(refused)
        }
        Err(error) => Err(refused(error)),
    }
}

fn attach_clsact(ebpf: &mut Ebpf, interface: &Interface) -> Result<Attachment, ProgramError> {
    let added = Clsact::ensure(&interface.name, interface.index)?;
    for (name, direction) in NET_PROGRAMS {
        // Left by an agent that was killed.
        match qdisc_detach_program(&interface.name, direction, name) {
            Ok(()) => info!(
                interface = interface.name,
                filter = name,
                "removed a filter that a killed agent had left"
            ),
            Err(TcError::IoError(error)) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    let links = both_directions(ebpf, interface, || TcAttachOptions::Netlink(NlOptions::default()))?;
    Ok(Attachment::Clsact {
        _links: links,
        _added: added,
    })
}

fn both_directions(
    ebpf: &mut Ebpf,
    interface: &Interface,
    options: impl Fn() -> TcAttachOptions,
) -> Result<[SchedClassifierLink; 2], ProgramError> {
    let mut one = |(name, direction): (&str, TcAttachType)| {
        let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        let program: &mut SchedClassifier = program.try_into()?;
        let link = program.attach_with_options(&interface.name, direction, options())?;
        program.take_link(link)
    };
    let [received, sent] = NET_PROGRAMS;
    Ok([one(received)?, one(sent)?])
}

pub(super) fn run_over(ebpf: &Ebpf, way: Way, frame: &[u8]) -> Result<(), String> {
    let (name, _) = match way {
        Way::Received => NET_PROGRAMS[0],
        Way::Sent => NET_PROGRAMS[1],
    };
    let failed = |error: &ProgramError| reason(&format!("run {name}"), error);
    let program = ebpf.program(name).ok_or_else(|| missing(name))?;
    let program: &SchedClassifier = program.try_into().map_err(|error| failed(&error))?;
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::default()
    };
    program.test_run(options).map(drop).map_err(|error| failed(&error))
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error| reason(name, &error))
}
