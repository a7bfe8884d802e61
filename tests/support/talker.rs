//! `why` names who uses the network: a pod, by its container's cgroup.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{
    agent::{Home, blockers},
    cgroups::{ADDRESS, CONTAINER, Cgroups, frame_to, network},
    namespaces::{OnDrop, in_namespaces},
    netns::FrameSender,
};

const NODE: &str = r#"
[general]
check_interval = "1s"
[activity_detection]
check_pods = false
check_cpu = false
check_ssh_sessions = false
network_interfaces = ["vms0"]
"#;

pub(crate) fn why_names_the_pod_that_uses_the_network() {
    in_namespaces(|| {
        network();
        let cgroups = Cgroups::new();
        let pod = cgroups.make(CONTAINER);
        let socket = cgroups.inside(&pod, || std::net::UdpSocket::bind((ADDRESS, 0)).unwrap());
        let frame = frame_to("vms0", &socket, 1000);
        let home = Home::new(NODE);
        let agent = home.start();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let sender = FrameSender::new("vms1");
                while !over.load(Ordering::Relaxed) {
                    sender.send(&frame);
                    thread::sleep(Duration::from_millis(1));
                }
            });
            // Also when an assertion fails: the scope waits for the thread.
            let _ends = OnDrop(&over);
            agent.status_when("busy", Duration::from_secs(20), |status| {
                blockers(status) == ["network"] && status["blockers"][0]["value"].as_f64() > Some(10_000.0)
            });
            let why = agent.json("why");
            let by = why["blockers"][0]["by"].as_array().unwrap();
            let pod = "pod 8f3c0a52-11d2-4c0e-9d1e-6f2a7b9c0d1e container 4be1c4cba2c7 (containerd): ";
            let named = by.iter().find_map(|line| line.as_str().unwrap().strip_prefix(pod));
            let rate = named.and_then(|rate| rate.split_once(" B/s received, 0 B/s sent"));
            let rate: f64 = rate.unwrap_or_else(|| panic!("{why:#}")).0.parse().unwrap();
            assert!(rate > 10_000.0, "{why:#}");

            // With the programs off, it says why nobody is named.
            home.configure(&NODE.replace("[general]", "[general]\nprobes = \"off\""));
            agent.signal(Signal::SIGHUP);
            agent.status_when("busy without programs", Duration::from_secs(20), |status| {
                blockers(status) == ["network"] && status["signals"][0]["source"] == "fallback"
            });
            let why = agent.json("why");
            let by = why["blockers"][0]["by"][0].as_str().unwrap();
            assert!(
                by.starts_with("cannot tell: ") && by.contains("switched off"),
                "{why:#}"
            );
        });
    });
}
