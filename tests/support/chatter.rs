//! A node that only keeps itself and its cluster going is quiet; one download is not (fault X4).

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    agent::{Agent, Home, blockers},
    frames::{Host, TCP, UDP, ethernet, ethernet_to, ipv4, tcp, udp},
    namespaces::{OnDrop, in_namespaces},
    netns::{self, FrameSender},
    sshd::{Login, Pam, Sshd, USER},
};

/// The guide's threshold for traffic, and times that a test can wait for. The build machine is no idle node: its CPU does not count. What a
/// check finds stays so for long enough to be asked for.
const NODE: &str = r#"
[general]
inactivity_timeout = "17s"
check_interval = "10s"
grace_period = "60s"
[activity_detection]
check_pods = false
check_cpu = false
network_interfaces = ["vms0"]
"#;

const SECOND: Duration = Duration::from_secs(1);
const THRESHOLD: f64 = 1024.0;
const IPV4: u16 = 0x0800;
const NODE_ADDRESS: Host = Host(1);
const PEER_ADDRESS: Host = Host(2);

/// Both ends of the node's cable.
struct Cable {
    /// Port of the node's SSH server.
    ssh: u16,
    node: FrameSender,
    peer: FrameSender,
}

pub(crate) fn chatter_is_quiet_and_a_download_is_not() {
    in_namespaces(|| with_chatter(22, watch));
}

/// With a real server on loopback, which is attacked too.
pub(crate) fn chatter_is_quiet_and_a_login_is_not() {
    in_namespaces(|| {
        let sshd = Sshd::start(Pam::Yes).unwrap();
        with_chatter(sshd.port(), |_, agent, _| watch_login(agent, &sshd));
    });
}

/// On a cable of the namespace's own.
fn with_chatter(ssh: u16, watch: impl FnOnce(&Home, &Agent, &Cable)) {
    netns::runtime().block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
    let cable = Cable {
        ssh,
        node: FrameSender::new("vms0"),
        peer: FrameSender::new("vms1"),
    };
    let home = Home::new(&node_with(ssh));
    let agent = home.start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| cable.chatter(&over));
        // Also when an assertion fails: the scope waits for the thread.
        let _ends = OnDrop(&over);
        watch(&home, &agent, &cable);
    });
}

fn node_with(ssh: u16) -> String {
    format!("{NODE}ssh_ports = [{ssh}]\n")
}

fn watch_login(agent: &Agent, sshd: &Sshd) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| attack(sshd.port(), &over));
        let _ends = OnDrop(&over);
        agent.status_when("in the grace period", 60 * SECOND, |status| {
            assert!(!blockers(status).contains(&"ssh"), "{status:#}");
            status["state"] == "grace"
        });
        let session = sshd.open(USER, Login::Key).unwrap();
        let busy = agent.status_when("active", SECOND, |status| {
            status["state"] == "active" && blockers(status).contains(&"ssh")
        });
        let sessions = busy["rates"]["ssh_sessions"].as_array().unwrap();
        assert!(sessions.len() == 1 && sessions[0]["user"] == USER, "{busy:#}");
        let why = agent.json("why");
        assert!(why["blockers"].to_string().contains(USER), "{why:#}");
        session.close().unwrap();
        agent.status_when("quiet again", 30 * SECOND, |status| blockers(status).is_empty());
    });
}

/// 50 attempts a second that get no further than the server's greeting, until it is over.
fn attack(port: u16, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let attempt = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut attempt| {
            attempt.set_read_timeout(Some(SECOND))?;
            attempt.write_all(b"SSH-2.0-attempt\r\n")?;
            attempt.read(&mut [0; 64])
        });
        // The server turns some away when it has too many; those are attempts too.
        drop(attempt);
        thread::sleep(Duration::from_millis(20));
    }
}

fn watch(home: &Home, agent: &Agent, cable: &Cable) {
    let quiet = agent.status_when("in the grace period", 40 * SECOND, |status| {
        assert!(
            !blockers(status).contains(&"network") || rate(status, "user").is_none(),
            "{status:#}"
        );
        status["state"] == "grace"
    });
    let node = &quiet["rates"]["interfaces"]["vms0"];
    let total = |class: &str| node[class]["rx_bytes"].as_u64().unwrap() + node[class]["tx_bytes"].as_u64().unwrap();
    assert_eq!(total("user"), 0, "{quiet:#}");
    // Counted without classes, each second of this would have kept the node awake.
    assert!(rate(&quiet, "background").unwrap() > 10.0 * THRESHOLD, "{quiet:#}");
    assert!(
        total("background") > 1_000_000 && total("multicast") > 1000,
        "{quiet:#}"
    );
    assert_eq!(node["last_user_s"], Value::Null);

    cable.download();
    let busy = agent.status_when("active", 5 * SECOND, |status| status["state"] == "active");
    assert_eq!(blockers(&busy), ["network"]);
    assert!(rate(&busy, "user").unwrap() > THRESHOLD, "{busy:#}");
    assert!(
        busy["rates"]["interfaces"]["vms0"]["last_user_s"].as_f64().unwrap() < 5.0,
        "{busy:#}"
    );
    let why = agent.json("why");
    let what = why["blockers"][0]["what"].as_str().unwrap();
    // Of user traffic, or of all if it was measured again without a program.
    assert!(what.contains("on vms0, above"), "{why:#}");
    assert!(agent.log().contains("cancelled"), "{}", agent.log());

    // What is configured holds from the next frame on.
    agent.status_when("quiet again", 30 * SECOND, |status| blockers(status).is_empty());
    home.configure(&format!(
        "{}\n[network_background]\ndefaults = false\n",
        node_with(cable.ssh)
    ));
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    let told = agent.status_when("kept awake by what was background", 30 * SECOND, |status| {
        rate(status, "user") > Some(10.0 * THRESHOLD) && blockers(status) == ["network"]
    });
    assert_eq!(told["signals"][0]["source"], "kernel", "{told:#}");
}

/// Bytes per second of a class, both directions; `None` before the second reading.
fn rate(status: &Value, class: &str) -> Option<f64> {
    let class = &status["rates"]["interfaces"]["vms0"][class];
    Some(class["rx_bytes_per_s"].as_f64()? + class["tx_bytes_per_s"].as_f64()?)
}

impl Cable {
    /// Once a second, until it is over.
    fn chatter(&self, over: &AtomicBool) {
        for second in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            if second % 10 == 0 {
                // The kubelet renews its lease at the API server.
                self.ask(&tcp(50_000, 6443, &[1; 1400]), &tcp(6443, 50_000, &[2; 900]));
            }
            if second % 15 == 5 {
                // node-exporter is scraped: about 90 kB.
                self.answer(&tcp(40_000, 9100, &[3; 300]), &tcp(9100, 40_000, &[4; 1400]));
                for _ in 0..64 {
                    self.node
                        .send(&packet(NODE_ADDRESS, PEER_ADDRESS, TCP, &tcp(9100, 40_000, &[4; 1400])));
                }
            }
            // 50 attempts to log in.
            for attempt in 0..50 {
                for _ in 0..4 {
                    self.answer(
                        &tcp(41_000 + attempt, self.ssh, &[5; 500]),
                        &tcp(self.ssh, 41_000 + attempt, &[6; 700]),
                    );
                }
            }
            self.peer.send(&ethernet_to([0xff; 6], 0x0806, &[0; 28]));
            self.node.send(&ethernet(0x0806, &[0; 28]));
            let mdns = ipv4(PEER_ADDRESS, Host(251), UDP, &udp(5353, 5353, &[0; 120]));
            self.peer.send(&ethernet_to([1, 0, 0x5e, 0, 0, 0xfb], IPV4, &mdns));
            thread::sleep(SECOND);
        }
    }

    /// The node asks and is answered.
    fn ask(&self, question: &[u8], answer: &[u8]) {
        self.node.send(&packet(NODE_ADDRESS, PEER_ADDRESS, TCP, question));
        self.peer.send(&packet(PEER_ADDRESS, NODE_ADDRESS, TCP, answer));
    }

    /// The node is asked and answers.
    fn answer(&self, question: &[u8], answer: &[u8]) {
        self.peer.send(&packet(PEER_ADDRESS, NODE_ADDRESS, TCP, question));
        self.node.send(&packet(NODE_ADDRESS, PEER_ADDRESS, TCP, answer));
    }

    /// 200 kB for a user.
    fn download(&self) {
        for _ in 0..200 {
            self.peer
                .send(&packet(PEER_ADDRESS, NODE_ADDRESS, TCP, &tcp(443, 52_000, &[7; 1000])));
        }
    }
}

fn packet(from: Host, to: Host, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV4, &ipv4(from, to, protocol, payload))
}
