//! Loading, refusals, and what stays in the kernel afterwards: nothing.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
    thread,
};

use agent_ebpf::{SshCounters, SshRecordKind};
use nix::{errno::Errno, libc, sys::signal::Signal};
use vmstation_agent::{
    config::ProbeMode,
    counters::NetTotals,
    probes::{Family, Probes},
    procfs,
};

use crate::{all_running, eventually, interface, netns, this_program};

pub(crate) fn every_program_loads_and_attaches() {
    let mut probes = all_running(&[22]);
    let lo = interface("lo");
    probes.sync_interfaces(std::slice::from_ref(&lo));
    assert_eq!(probes.net()[&lo], Ok(NetTotals::default()));
    let cpu = probes.cpu().expect("every CPU is known right after loading");
    assert_eq!(
        cpu.busy.keys().collect::<Vec<_>>(),
        procfs::cpu().unwrap().busy.keys().collect::<Vec<_>>()
    );
    assert!(cpu.switches > 0 && cpu.switches < procfs::cpu().unwrap().switches);
    assert_eq!(probes.ssh().unwrap(), SshCounters::default());
    assert!(
        probes
            .ssh_records()
            .iter()
            .all(|record| record.kind == SshRecordKind::Forked as u32)
    );
}

pub(crate) fn a_killed_agent_leaves_nothing() {
    let network = bpftool_net();
    // Its pipes would keep the harness waiting if this trial ended without killing it: it dies with its parent.
    let mut agent = this_program("attached").stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    assert_eq!(ready, "ready\n");
    let objects = bpf_objects(agent.id());
    let links = if has_tcx() { 6 } else { 4 };
    for (kind, least) in [("prog_id", 6), ("map_id", 5), ("link_id", links)] {
        let found = objects.iter().filter(|(name, _)| name == kind).count();
        assert!(found >= least, "{found} {kind}: {objects:?}");
    }
    assert_eq!(still_there(&objects), objects);
    agent.kill().unwrap();
    agent.wait().unwrap();
    if !has_tcx() {
        // Filters of clsact outlive whoever made them. The next start takes them away.
        let mut next = all_running(&[22]);
        next.sync_interfaces(&[interface("lo")]);
        assert!(next.net().values().all(Result::is_ok), "{:?}", next.net());
    }
    eventually(|| still_there(&objects), &BTreeSet::new());
    assert_eq!(bpftool_net(), network);
}

/// Programs, maps and links that a process holds open: kind and id, as /proc/PID/fdinfo names them.
pub(crate) fn bpf_objects(process: u32) -> BTreeSet<(String, u32)> {
    let mut objects = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap() {
        // Closed in the meantime, as the one that lists them is.
        let Ok(info) = fs::read_to_string(entry.unwrap().path()) else {
            continue;
        };
        for line in info.lines() {
            if let Some((kind @ ("prog_id" | "map_id" | "link_id"), id)) = line.split_once(":\t") {
                objects.insert((kind.to_owned(), id.trim().parse().unwrap()));
            }
        }
    }
    objects
}

/// Those the kernel still has (bpf(2), BPF_*_GET_FD_BY_ID).
pub(crate) fn still_there(objects: &BTreeSet<(String, u32)>) -> BTreeSet<(String, u32)> {
    let exists = |(kind, id): &&(String, u32)| {
        let command: libc::c_long = match kind.as_str() {
            "prog_id" => 13,
            "map_id" => 14,
            "link_id" => 30,
            other => panic!("{other} is no kind of object"),
        };
        let attributes: [u32; 16] = std::array::from_fn(|place| if place == 0 { *id } else { 0 });
        // SAFETY: the attributes live during the call; the descriptor it returns is closed at once.
        let result = unsafe {
            Errno::result(libc::syscall(
                libc::SYS_bpf,
                command,
                &raw const attributes,
                size_of_val(&attributes),
            ))
        };
        match result {
            // SAFETY: fresh and ours.
            Ok(fd) => unsafe { libc::close(i32::try_from(fd).unwrap()) == 0 },
            Err(Errno::ENOENT) => false,
            Err(error) => panic!("look up {kind} {id}: {error}"),
        }
    };
    objects.iter().filter(exists).cloned().collect()
}

/// What `bpftool net show` says of this namespace, if there is a bpftool; those before 7.3 do not know of tcx, hence [`still_there`].
fn bpftool_net() -> Option<String> {
    let output = Command::new("bpftool").args(["net", "show"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Helper: everything attached, until it is killed.
pub(crate) fn attached() -> ExitCode {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("die with the parent");
    let mut probes = all_running(&[22]);
    probes.sync_interfaces(&[interface("lo")]);
    assert!(probes.net().values().all(Result::is_ok), "{:?}", probes.net());
    println!("ready");
    loop {
        thread::park();
    }
}

pub(crate) const NET_ADMIN: u32 = 12;
pub(crate) const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
pub(crate) const BPF: u32 = 39;

pub(crate) fn missing_capabilities_cost_only_their_family() {
    const REFUSED: Result<(), &str> = Err("Operation not permitted");
    check_report(&[SYS_ADMIN, PERFMON, BPF, NET_ADMIN], [REFUSED, REFUSED, REFUSED]);
    check_report(&[SYS_ADMIN, BPF], [REFUSED, REFUSED, REFUSED]);
    check_report(&[SYS_ADMIN, NET_ADMIN], [REFUSED, Ok(()), Ok(())]);
    // Without it the verifier lets no program calculate where a header is.
    check_report(&[SYS_ADMIN, PERFMON], [Err("CAP_PERFMON"), REFUSED, REFUSED]);
    check_report(&[SYS_ADMIN], [Ok(()), Ok(()), Ok(())]);
}

pub(crate) fn missing_btf_costs_only_what_needs_it() {
    const NO_BTF: Result<(), &str> = Err("/sys/kernel/btf/vmlinux");
    netns::hide("/sys/kernel/btf");
    check_report(&[], [Ok(()), NO_BTF, Ok(())]);
}

/// Compares the states of net, ssh and sched (or a part of the reason) of an agent without some capabilities.
fn check_report(without: &'static [u32], expected: [Result<(), &str>; 3]) {
    let mut command = this_program("report");
    drop_capabilities(&mut command, without);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let states = String::from_utf8(output.stdout).unwrap();
    let states: Vec<_> = states.lines().collect();
    assert_eq!(states.len(), expected.len(), "one line each: {states:?}");
    for (state, expected) in states.iter().zip(expected) {
        let as_expected = match expected {
            Ok(()) => *state == "runs",
            Err(reason) => *state != "runs" && state.contains(reason),
        };
        assert!(as_expected, "without {without:?}: {state:?} instead of {expected:?}");
    }
}

/// The command will not have these, whoever starts it.
pub(crate) fn drop_capabilities(command: &mut Command, without: &'static [u32]) {
    // SAFETY: only a system call between fork and exec. A capability that is not in the bounding set is not gained by root's exec.
    unsafe {
        command.pre_exec(move || {
            for capability in without {
                Errno::result(libc::prctl(
                    libc::PR_CAPBSET_DROP,
                    libc::c_ulong::from(*capability),
                    0,
                    0,
                    0,
                ))?;
            }
            Ok(())
        });
    }
}

/// Helper: says how each family is; asserts that a reading has the same state, and that the fallback delivers.
pub(crate) fn report() -> ExitCode {
    let mut probes = Probes::load(&[22], ProbeMode::Always);
    let lo = interface("lo");
    probes.sync_interfaces(std::slice::from_ref(&lo));
    assert_eq!(
        probes.net()[&lo].as_ref().map(drop).map_err(String::as_str),
        probes.state(Family::Net)
    );
    assert_eq!(
        probes.ssh().map(drop).as_ref().map_err(String::as_str),
        probes.state(Family::Ssh).as_ref().map_err(|why| *why)
    );
    assert_eq!(
        probes.cpu().map(drop).as_ref().map_err(String::as_str),
        probes.state(Family::Sched).as_ref().map_err(|why| *why)
    );
    assert_eq!(probes.ssh_fd().is_some(), probes.state(Family::Ssh).is_ok());
    assert!(procfs::cpu().is_ok());
    assert!(procfs::net(&lo).is_ok());
    for family in [Family::Net, Family::Ssh, Family::Sched] {
        println!("{}", probes.state(family).err().unwrap_or("runs"));
    }
    ExitCode::SUCCESS
}

/// 6.6 or later.
fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 6)
}
