//! The eBPF programs in the running kernel, with real traffic, real connections and real load.
//!
//! Needs root and the programs built in. Every trial is a process of its own, in network and mount namespaces of its own: this binary runs
//! itself again. It needs nothing of the build tree, so that it can be copied into a virtual machine with another kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "kernel/classes.rs"]
mod classes;
#[path = "kernel/connections.rs"]
mod connections;
#[path = "kernel/edges.rs"]
mod edges;
#[path = "support/frames.rs"]
mod frames;
#[path = "kernel/lifecycle.rs"]
mod lifecycle;
#[path = "kernel/load.rs"]
mod load;
#[path = "support/netns.rs"]
mod netns;
#[path = "kernel/owners.rs"]
mod owners;
#[path = "kernel/traffic.rs"]
mod traffic;
#[path = "kernel/wol.rs"]
mod wol;

use std::{
    env,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::unistd::Uid;
use vmstation_agent::{
    clock::BootTime,
    config::ProbeMode,
    counters::Interface,
    interfaces,
    probes::{Family, Probes},
};

/// Names the trial, or the helper of a trial, that this process is.
const ROLE: &str = "VMSTATION_KERNEL_TEST";

const TRIALS: [(&str, fn()); 36] = [
    (
        "every_program_loads_and_attaches",
        lifecycle::every_program_loads_and_attaches,
    ),
    (
        "one_frame_is_counted_to_the_byte",
        traffic::one_frame_is_counted_to_the_byte,
    ),
    (
        "100000_frames_are_counted_to_the_byte",
        traffic::many_frames_are_counted_to_the_byte,
    ),
    (
        "e5_an_added_interface_counts_within_a_second_and_a_removed_one_is_dropped",
        traffic::interfaces_come_and_go,
    ),
    (
        "interfaces_that_share_a_slot_are_refused",
        traffic::interfaces_that_share_a_slot_are_refused,
    ),
    (
        "every_flow_is_in_its_class_to_the_byte",
        classes::every_flow_is_in_its_class_to_the_byte,
    ),
    (
        "rules_change_without_attaching_again",
        classes::rules_change_without_attaching_again,
    ),
    (
        "packets_without_ethernet_have_classes",
        classes::packets_without_ethernet_have_classes,
    ),
    (
        "fuzzed_frames_are_in_exactly_one_class",
        classes::fuzzed_frames_are_in_exactly_one_class,
    ),
    ("a_pinned_loop_is_one_busy_cpu", load::a_pinned_loop_is_one_busy_cpu),
    (
        "an_idle_machine_is_as_idle_as_proc_stat_says",
        load::an_idle_machine_is_as_idle_as_proc_stat_says,
    ),
    (
        "ssh_connections_and_bytes_are_exact",
        connections::ssh_connections_and_bytes_are_exact,
    ),
    (
        "ssh_counts_the_listening_side_only",
        connections::ssh_counts_the_listening_side_only,
    ),
    (
        "ssh_connections_from_before_end_with_a_record",
        connections::ssh_connections_from_before_end_with_a_record,
    ),
    ("ssh_server_forks_are_told", connections::ssh_server_forks_are_told),
    (
        "ssh_in_another_network_namespace_does_not_count",
        connections::ssh_in_another_network_namespace_does_not_count,
    ),
    (
        "a_flood_of_connections_is_counted_and_bounded",
        connections::a_flood_of_connections_is_counted_and_bounded,
    ),
    (
        "e5_a_renamed_interface_keeps_its_counters_and_a_moved_one_is_dropped",
        traffic::interfaces_are_renamed_and_moved,
    ),
    (
        "e6_a_frame_over_bridge_or_macvlan_counts_once",
        traffic::bridge_and_macvlan_count_once,
    ),
    (
        "e6_a_frame_over_bond_or_vlan_counts_once",
        traffic::bond_and_vlan_count_once,
    ),
    (
        "a_full_ring_buffer_is_counted",
        connections::a_full_ring_buffer_is_counted,
    ),
    (
        "bytes_are_the_cgroups_of_their_sockets",
        owners::bytes_are_the_cgroups_of_their_sockets,
    ),
    (
        "cgroups_without_room_are_counted_together",
        owners::cgroups_without_room_are_counted_together,
    ),
    (
        "pods_are_counted_by_class_and_nobody_else_is",
        owners::pods_are_counted_by_class_and_nobody_else_is,
    ),
    (
        "fuzzed_packets_of_pods_are_in_exactly_one_class",
        owners::fuzzed_packets_of_pods_are_in_exactly_one_class,
    ),
    (
        "e1_missing_capabilities_are_the_reason_why_nobody_is_named",
        owners::missing_capabilities_are_the_reason,
    ),
    (
        "e1_a_question_cut_short_leaves_nothing_attached",
        owners::a_question_cut_short_leaves_nothing_attached,
    ),
    (
        "traffic_beyond_the_budget_is_told_once",
        edges::traffic_beyond_the_budget_is_told_once,
    ),
    (
        "traffic_that_is_not_the_users_is_never_told",
        edges::traffic_that_is_not_the_users_is_never_told,
    ),
    (
        "cpus_that_are_beyond_it_together_tell_once_each_at_most",
        edges::cpus_that_are_beyond_it_together_tell_once_each_at_most,
    ),
    (
        "a_burst_is_told_without_what_was_before",
        edges::a_burst_is_told_without_what_was_before,
    ),
    (
        "a_cpu_that_never_idles_is_told_while_it_switches",
        edges::a_cpu_that_never_idles_is_told_while_it_switches,
    ),
    (
        "e2_a_killed_agent_leaves_nothing",
        lifecycle::a_killed_agent_leaves_nothing,
    ),
    (
        "e1_missing_capabilities_cost_only_their_family",
        lifecycle::missing_capabilities_cost_only_their_family,
    ),
    (
        "e1_missing_btf_costs_only_what_needs_it",
        lifecycle::missing_btf_costs_only_what_needs_it,
    ),
    (
        "s10_virtual_interfaces_have_no_wol_and_lead_to_no_port",
        wol::virtual_interfaces_have_no_wol_and_lead_to_no_port,
    ),
];

fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Err(_) => run_trials(),
        Ok("attached") => lifecycle::attached(),
        Ok("report") => lifecycle::report(),
        Ok("owner") => owners::attach_or_say_why(),
        Ok(name) => {
            let (_, trial) = TRIALS.iter().find(|(trial, _)| *trial == name).expect("a trial");
            netns::enter();
            trial();
            ExitCode::SUCCESS
        }
    }
}

fn run_trials() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Trials load the machine and compare with what /proc/stat says of it.
    arguments.test_threads = Some(1);
    let cannot = why_not();
    let trials = TRIALS.iter().map(|(name, _)| {
        let trial = Trial::test(*name, || run_in_child(name));
        let lacks = || name.contains("bond").then(bond_and_vlan_missing).flatten();
        match cannot.or_else(lacks) {
            None => trial,
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn why_not() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        return Some("not run: needs root");
    }
    let probes = Probes::load(&[], ProbeMode::Always);
    let built = !probes
        .state(Family::Net)
        .is_err_and(|why| why.starts_with("built without"));
    (!built).then_some("not run: built without eBPF programs")
}

/// Tried in a namespace that ends with the command. Loads the modules where there are some.
fn bond_and_vlan_missing() -> Option<&'static str> {
    let script = "ip link add vmsbond type bond && ip link add link vmsbond name vmsvlan type vlan id 42";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    let works = tried.is_ok_and(|output| output.status.success());
    (!works).then_some("not run: the kernel has no bond or no VLAN devices")
}

fn run_in_child(name: &str) -> Result<(), Failed> {
    let output = this_program(name).output()?;
    if output.status.success() {
        return Ok(());
    }
    let [said, complained] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Err(format!("{}\n{said}{complained}", output.status).into())
}

fn this_program(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role).env("RUST_BACKTRACE", "0");
    command
}

fn all_running(ssh_ports: &[u16]) -> Probes {
    let probes = Probes::load(ssh_ports, ProbeMode::Always);
    for family in [Family::Net, Family::Ssh, Family::Sched] {
        assert_eq!(probes.state(family), Ok(()), "{family:?}");
    }
    probes
}

fn interface(name: &str) -> Interface {
    let found = interfaces::select(&[name.to_owned()]).unwrap();
    found
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("no interface {name}"))
}

/// Waits, 10 s at most, until what is seen is what is expected.
fn eventually<T: PartialEq + std::fmt::Debug>(mut see: impl FnMut() -> T, expected: &T) {
    let start = BootTime::now();
    loop {
        let seen = see();
        if seen == *expected {
            return;
        }
        assert!(
            BootTime::now().since(start) < Duration::from_secs(10),
            "saw {seen:?}, expected {expected:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}
