//! Which programs of the agent are in the kernel while the host works and while it rests.

use std::{
    collections::BTreeSet,
    fs,
    net::UdpSocket,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    agent::Home,
    namespaces::{OnDrop, in_namespaces},
    wait::eventually,
};

const SECOND: Duration = Duration::from_secs(1);

/// CPU, loopback and SSH, with the programs attached as the agent likes.
const AUTO: &str = r#"
[general]
check_interval = "30s"
[activity_detection]
check_pods = false
cpu_threshold_percent = 90
network_threshold_bytes = 1000000
network_interfaces = ["lo"]
"#;

/// Loopback is the namespace's own; the CPUs are the machine's.
pub(crate) fn a_loaded_host_has_only_the_ssh_programs() {
    in_namespaces(load_and_rest);
}

fn load_and_rest() {
    let home = Home::new(AUTO);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = OnDrop(&stop);
        let cpus = thread::available_parallelism().unwrap().get();
        for _ in 0..cpus {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        scope.spawn(|| saturate_loopback(&stop));
        let agent = home.start();
        let pid = agent.status()["pid"].as_u64().unwrap();
        eventually("only the ssh programs", 20 * SECOND, || {
            let programs = programs_of(pid);
            let only_ssh = programs == names(["vms_ssh", "vms_ssh_fork"]);
            only_ssh.then_some(()).ok_or_else(|| format!("{programs:?}"))
        });
        let loaded = agent.status();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(attached(&loaded), names(["ssh"]), "{loaded:#}");

        // The check interval, and what a loaded machine takes to notice.
        eventually("all programs", 35 * SECOND, || {
            let programs = programs_of(pid);
            let all = names([
                "vms_ssh",
                "vms_ssh_fork",
                "vms_net_rx",
                "vms_net_tx",
                "vms_idle",
                "vms_sched",
            ]);
            (programs == all).then_some(()).ok_or_else(|| format!("{programs:?}"))
        });
        let resting = agent.status();
        assert_eq!(attached(&resting), names(["ssh", "network", "cpu"]), "{resting:#}");
        assert_eq!(resting["state"], "quiet", "{resting:#}");
    });
}

fn saturate_loopback(stop: &AtomicBool) {
    let (socket, sink) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let to = sink.local_addr().unwrap();
    while !stop.load(Ordering::Relaxed) {
        socket.send_to(&[0; 1400], to).unwrap();
    }
}

/// The programs that a process holds, by `bpftool prog show`.
fn programs_of(pid: u64) -> BTreeSet<String> {
    let held: BTreeSet<u64> = fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        })
        .collect();
    let output = Command::new("bpftool")
        .args(["--json", "prog", "show"])
        .output()
        .unwrap();
    let programs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    programs
        .iter()
        .filter(|program| held.contains(&program["id"].as_u64().unwrap()))
        .map(|program| program["name"].as_str().unwrap_or("nameless").to_owned())
        .collect()
}

/// Signals whose programs are attached, as `status` tells.
fn attached(status: &Value) -> BTreeSet<String> {
    let programs = status["programs"].as_array().unwrap();
    programs
        .iter()
        .filter(|program| program["attached"] == true)
        .map(|program| program["signal"].as_str().unwrap().to_owned())
        .collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}
