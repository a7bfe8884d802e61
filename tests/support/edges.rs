//! The announced sleep is cancelled when somebody uses the host, not at the next look.

use std::time::Duration;

use crate::support::{
    agent::{Agent, Home, blockers},
    frames::{Host, TCP, ethernet, ipv4, tcp},
    namespaces::in_namespaces,
    netns::{self, FrameSender},
    sshd::{Login, Pam, Sshd, USER},
};

/// The build machine is no idle node: its CPU does not count. What a check finds stays so for long enough to be asked for.
const NODE: &str = r#"
[general]
inactivity_timeout = "10s"
check_interval = "10s"
grace_period = "10m"
[activity_detection]
check_pods = false
check_cpu = false
network_threshold_bytes = 1000
network_interfaces = ["vms0"]
check_ssh_sessions = false
"#;

const SECOND: Duration = Duration::from_secs(1);
const NOTICED: &str = "activity noticed by the kernel";

pub(crate) fn a_download_cancels_the_announced_sleep_when_it_begins() {
    in_namespaces(|| {
        netns::runtime().block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
        let home = Home::new(NODE);
        let agent = home.start();
        let peer = FrameSender::new("vms1");

        in_grace(&agent);
        // What nobody wants, and what is below the threshold.
        for _ in 0..1000 {
            peer.send(&ethernet(0x0806, &[0; 28]));
        }
        peer.send(&segment(500));
        let quiet = agent.status_when("sampled with them", 30 * SECOND, |status| {
            let node = &status["rates"]["interfaces"]["vms0"];
            node["user"]["rx_bytes"] == 554 && node["background"]["rx_bytes"].as_u64() > Some(40_000)
        });
        assert_eq!(quiet["state"], "grace", "{quiet:#}");
        assert!(!agent.log().contains(NOTICED), "{}", agent.log());

        // 200 kB for a user.
        for _ in 0..200 {
            peer.send(&segment(1000));
        }
        let busy = agent.status_when("active", 10 * SECOND, |status| status["state"] == "active");
        assert_eq!(blockers(&busy), ["network"], "{busy:#}");
        let why = agent.json("why");
        let what = why["blockers"][0]["what"].as_str().unwrap();
        // Of user traffic, or of all if it was measured again without a program.
        assert!(what.contains("on vms0, above"), "{why:#}");

        let log = agent.log();
        let noticed = log
            .lines()
            .find(|line| line.contains(NOTICED))
            .unwrap_or_else(|| panic!("the next look was first: {log}"));
        // It was still announced when the kernel spoke up, so nothing else has cancelled it.
        for field in ["state=grace", "interface=\"vms0\"", "after_us="] {
            assert!(noticed.contains(field), "no {field} in {noticed}");
        }
        assert_eq!(log.matches(NOTICED).count(), 1, "{log}");
        assert!(log.contains("the announced sleep is cancelled"), "{log}");
    });
}

pub(crate) fn a_login_cancels_the_announced_sleep() {
    let sshd = Sshd::start(Pam::Yes).unwrap();
    let port = sshd.port();
    let home = Home::new(&format!(
        "[general]\ninactivity_timeout = \"2s\"\ngrace_period = \"10m\"\n[activity_detection]\ncheck_pods = false\n\
         check_cpu = false\ncheck_network = false\nssh_ports = [{port}]\n"
    ));
    let agent = home.start();
    in_grace(&agent);
    // Gone again before any look at sessions could meet it.
    let login = sshd.client(USER, Login::Key, &[]).arg("true").status().unwrap();
    assert!(login.success());
    agent.status_when("cancelled", 5 * SECOND, |status| {
        status["rates"]["ssh_logins"] == 1 && agent.log().contains("the announced sleep is cancelled")
    });
}

fn in_grace(agent: &Agent) {
    agent.status_when("in the grace period", 40 * SECOND, |status| status["state"] == "grace");
}

fn segment(bytes: usize) -> Vec<u8> {
    let payload = tcp(443, 52_000, &vec![7; bytes]);
    ethernet(0x0800, &ipv4(Host(2), Host(1), TCP, &payload))
}
