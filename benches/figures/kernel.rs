//! The eBPF programs of the agent and of the benches, one by one in the kernel. The only file of the benches that names aya.
//!
//! What is attached here leaves the kernel with the value that stands for it, or with the process.

use std::{collections::BTreeSet, fs, os::fd::OwnedFd, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        LinkOrder, Program, ProgramInfo, TcAttachType, loaded_programs,
        raw_trace_point::RawTracePointLink,
        tc::{SchedClassifierLink, TcAttachOptions},
        tp_btf::BtfTracePointLink,
    },
    sys::{Stats, enable_stats},
};
use vmstation_agent::probes::{Family, Probes};

/// Where a program runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook<'a> {
    /// A tracepoint: what its kind (raw or BTF) is says the program.
    Tracepoint(&'a str),
    /// tcx ingress of an interface, after all others.
    Received(&'a str),
    /// tcx egress.
    Sent(&'a str),
}

/// An attachment; dropping it detaches.
pub(crate) enum Attached {
    Raw(#[expect(dead_code, reason = "held for its drop")] RawTracePointLink),
    Btf(#[expect(dead_code, reason = "held for its drop")] BtfTracePointLink),
    Tc(#[expect(dead_code, reason = "held for its drop")] SchedClassifierLink),
}

/// Programs of one object with maps of their own.
pub(crate) struct Object(Ebpf);

/// Times a program ran, and for how long in all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

impl Runs {
    fn of(info: &ProgramInfo) -> Self {
        Self {
            count: info.run_count(),
            time: info.run_time(),
        }
    }

    /// Mean ns of a run since `before`; `None`: it did not run.
    pub(crate) fn mean_since(self, before: Self) -> Option<f64> {
        let count = self.count.checked_sub(before.count).filter(|count| *count > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let count = count as f64;
        Some((self.time - before.time).as_secs_f64() * 1e9 / count)
    }
}

impl Object {
    /// The programs of the agent.
    pub(crate) fn agent() -> Result<Self> {
        Self::load("vmstation-probes")
    }

    /// What they are compared with.
    pub(crate) fn bench() -> Result<Self> {
        Self::load("vmstation-bench-probes")
    }

    fn load(name: &str) -> Result<Self> {
        let path = object(name)?;
        let bytes =
            fs::read(&path).with_context(|| format!("read {}: run `cargo xtask build-ebpf`", path.display()))?;
        let loaded = EbpfLoader::new().btf(None).load(&bytes);
        Ok(Self(loaded.with_context(|| format!("create the maps of {name}"))?))
    }

    /// Attaches a program; the first time, has the kernel verify it, too.
    pub(crate) fn attach(&mut self, name: &str, hook: Hook<'_>) -> Result<Attached> {
        let program = self.0.program_mut(name).with_context(|| format!("no program {name}"))?;
        let attached = match (program, hook) {
            (Program::RawTracePoint(program), Hook::Tracepoint(tracepoint)) => {
                if program.fd().is_err() {
                    program.load()?;
                }
                let link = program.attach(tracepoint)?;
                Attached::Raw(program.take_link(link)?)
            }
            (Program::BtfTracePoint(program), Hook::Tracepoint(tracepoint)) => {
                if program.fd().is_err() {
                    program.load(tracepoint, &Btf::from_sys_fs()?)?;
                }
                let link = program.attach()?;
                Attached::Btf(program.take_link(link)?)
            }
            (Program::SchedClassifier(program), Hook::Received(interface) | Hook::Sent(interface)) => {
                if program.fd().is_err() {
                    program.load()?;
                }
                let side = match hook {
                    Hook::Sent(_) => TcAttachType::Egress,
                    Hook::Received(_) | Hook::Tracepoint(_) => TcAttachType::Ingress,
                };
                let options = TcAttachOptions::TcxOrder(LinkOrder::last());
                let link = program.attach_with_options(interface, side, options)?;
                Attached::Tc(program.take_link(link)?)
            }
            _ => bail!("{name} cannot be attached to {hook:?}"),
        };
        Ok(attached)
    }

    /// What the kernel counted of a program while [`count_runs`]' result is held.
    pub(crate) fn runs(&self, name: &str) -> Result<Runs> {
        let program = self.0.program(name).with_context(|| format!("no program {name}"))?;
        Ok(Runs::of(&program.info()?))
    }
}

/// That the programs of a family can run here.
pub(crate) fn ensure_runs(probes: &Probes, family: Family) -> Result<()> {
    let state = probes.state(family).map_err(str::to_owned);
    state.map_err(|why| anyhow!("the programs of {family:?} do not run: {why}"))
}

/// What the kernel counted of a program that another part of this process loaded.
pub(crate) fn runs_of_own(name: &str) -> Result<Runs> {
    let own = own_program_ids()?;
    for info in loaded_programs() {
        // One that went away meanwhile is not ours.
        let Ok(info) = info else { continue };
        if info.name_as_str() == Some(name) && own.contains(&info.id()) {
            return Ok(Runs::of(&info));
        }
    }
    bail!("this process has no program {name} loaded")
}

fn own_program_ids() -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The folder's own descriptor is closed by the time it is looked at.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// Has the kernel count runs and their time as long as the result lives (`BPF_ENABLE_STATS`). It costs two clock readings a run.
pub(crate) fn count_runs() -> Result<OwnedFd> {
    Ok(enable_stats(Stats::RunTime)?)
}

/// An object beside this executable, in the target folder.
fn object(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .map(|folder| folder.join("ebpf").join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("target/ebpf/{name} is missing: run `cargo xtask build-ebpf`"))
}
