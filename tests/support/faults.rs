//! Faults of the kernel and its network devices (E1 to E8), as an agent meets them and tells of them.
//!
//! Each trial has network and mount namespaces of its own: what it hides, attaches and detaches nobody else sees.

use std::{env, fs, net::UdpSocket, path::Path, process::Command, thread, time::Duration};

use libtest_mimic::Trial;
use nix::{net::if_::if_nametoindex, sys::signal::Signal};
use serde_json::Value;

use crate::{
    signal,
    support::{
        agent::{Agent, Home, blockers},
        namespaces::in_namespaces,
        netns::{self, FrameSender},
        trials::as_root,
        wait::eventually,
    },
    tcx,
};

const SECOND: Duration = Duration::from_secs(1);
/// Set inside the guest of `cargo xtask vm-test`, whose CPUs may be taken offline.
const GUEST: &str = "VMSTATION_GUEST";
const CPU1: &str = "/sys/devices/system/cpu/cpu1/online";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Every signal but pods, all programs attached; the CPUs of the machine may do what they like.
const EVERYTHING: &str = r#"
[general]
probes = "always"
check_interval = "1s"
[activity_detection]
check_pods = false
cpu_threshold_percent = 100
network_threshold_bytes = 100000
network_interfaces = ["lo"]
ssh_ports = [20022]
"#;

/// The network alone, looked at every few seconds.
const NETWORK: &str = r#"
[general]
probes = "always"
check_interval = "3s"
[activity_detection]
check_pods = false
check_cpu = false
check_ssh_sessions = false
"#;

pub(crate) fn trials() -> Vec<Trial> {
    let unless = |trial: Trial, lacks: Option<&str>| match lacks {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    };
    let no_hotplug = (env::var_os(GUEST).is_none() || !Path::new(CPU1).exists()).then_some("needs the guest");
    let locked = fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]"));
    vec![
        as_root("e1_each_missing_piece_costs_only_its_own_signal", each_missing_piece),
        unless(
            as_root("e1_lockdown_costs_only_its_own_signal", lockdown),
            (!locked).then_some("needs a kernel in lockdown"),
        ),
        as_root(
            "e3_other_ssh_ports_load_the_programs_anew_and_the_agent_settles",
            reload_settles,
        ),
        unless(
            as_root("e4_cpus_that_come_and_go_are_new_baselines", cpu_hotplug),
            no_hotplug,
        ),
        as_root("e5_interfaces_are_followed_within_a_second", interfaces_are_followed),
        as_root("e6_a_bridge_on_a_counted_port_is_left_out", bridge_is_left_out),
        as_root("e7_no_interface_is_activity_and_says_so", no_interface),
        as_root(
            "e8_detached_programs_are_activity_and_come_back",
            detached_programs_come_back,
        ),
    ]
}

fn each_missing_piece() {
    in_namespaces(|| {
        // The /sys of the namespace has neither.
        assert!(!Path::new("/sys/kernel/tracing/events").exists(), "tracefs is mounted");
        assert!(!Path::new("/sys/fs/cgroup/cgroup.controllers").exists());
        assert!(!Path::new("/sys/fs/cgroup/unified").exists(), "cgroup2 is mounted");
        without("nothing but tracefs and cgroup2", &[], &[]);
        without("CAP_BPF", &["bpf"], &["network", "cpu", "ssh"]);
        without("CAP_PERFMON", &["perfmon"], &["network", "cpu", "ssh"]);
        without("CAP_NET_ADMIN", &["net_admin"], &["network"]);
        netns::hide("/sys/kernel/btf");
        without("/sys/kernel/btf", &[], &["ssh"]);
    });
}

/// The signals that fall back, and no others, say that it is for want of `what`; none is unread and none is zero unseen.
fn without(what: &str, capabilities: &[&str], fall_back: &[&str]) {
    let home = Home::new(EVERYTHING);
    let inner = home.command();
    let mut command = Command::new("setpriv");
    if !capabilities.is_empty() {
        // CAP_SYS_ADMIN stands for each of them.
        let dropped: Vec<_> = capabilities
            .iter()
            .chain(&["sys_admin"])
            .map(|name| format!("-{name}"))
            .collect();
        command.args(["--bounding-set", &dropped.join(","), "--inh-caps", &dropped.join(",")]);
    }
    command.arg(inner.get_program()).args(inner.get_args());
    let agent = home.start_as(command);
    let lo = FrameSender::new("lo");
    let status = agent.status_when("counting on loopback", 20 * SECOND, |status| {
        lo.send(&netns::frame(1000, false));
        status["rates"]["cpu_percent"].is_number()
            && status["rates"]["interfaces"]["lo"]["rx_bytes_per_s"].as_f64() > Some(0.0)
    });
    for name in ["network", "cpu", "ssh"] {
        let signal = signal(&status, name);
        if fall_back.contains(&name) {
            assert_eq!(signal["source"], "fallback", "without {what}: {signal}");
            let detail = signal["detail"].as_str().unwrap();
            assert!(detail.contains(what), "without {what}: {detail}");
        } else {
            assert_eq!(signal["source"], "kernel", "without {what}: {signal}");
        }
    }
}

/// Started once the guest's kernel is in lockdown, which it cannot leave.
fn lockdown() {
    in_namespaces(|| without("lockdown", &[], &["ssh"]));
}

fn reload_settles() {
    in_namespaces(|| {
        let home = Home::new(EVERYTHING);
        let agent = home.start();
        let quiet = |status: &Value| {
            status["state"] == "quiet"
                && blockers(status).is_empty()
                && ["network", "cpu", "ssh"]
                    .iter()
                    .all(|name| signal(status, name)["source"] == "kernel")
        };
        agent.status_when("quiet", 20 * SECOND, quiet);
        for port in [20_023, 20_024] {
            let before = programs(&agent);
            assert!(!before.is_empty());
            home.configure(&EVERYTHING.replace("20022", &port.to_string()));
            agent.signal(Signal::SIGHUP);
            eventually("loaded anew", 20 * SECOND, || {
                let now = programs(&agent);
                let anew = !now.is_empty() && now.iter().all(|id| !before.contains(id));
                anew.then_some(()).ok_or_else(|| format!("{now:?}"))
            });
            agent.status_when("quiet again", 20 * SECOND, quiet);
            let (socket, sink) = (
                UdpSocket::bind("127.0.0.1:0").unwrap(),
                UdpSocket::bind("127.0.0.1:0").unwrap(),
            );
            agent.status_when("active with traffic", 20 * SECOND, |status| {
                for _ in 0..500 {
                    socket.send_to(&[0; 1400], sink.local_addr().unwrap()).unwrap();
                }
                status["state"] == "active" && blockers(status) == ["network"]
            });
            agent.status_when("quiet without it", 20 * SECOND, quiet);
        }
    });
}

fn cpu_hotplug() {
    struct Online;
    impl Drop for Online {
        fn drop(&mut self) {
            // The trial fails by its own panic, not by this.
            let _ = fs::write(CPU1, "1");
        }
    }
    let home = Home::new(EVERYTHING);
    let agent = home.start();
    let counted = |status: &Value, cpus: usize| {
        status["rates"]["cpu_percent"].is_number()
            && status["rates"]["cpus_percent"].as_object().unwrap().len() == cpus
            && signal(status, "cpu")["source"] == "kernel"
    };
    let all = thread::available_parallelism().unwrap().get();
    agent.status_when("counting all CPUs", 20 * SECOND, |status| counted(status, all));
    for _ in 0..2 {
        let _online = Online;
        fs::write(CPU1, "0").unwrap();
        agent.status_when("counting one less", 20 * SECOND, |status| counted(status, all - 1));
        fs::write(CPU1, "1").unwrap();
        agent.status_when("counting all again", 20 * SECOND, |status| counted(status, all));
    }
}

fn interfaces_are_followed() {
    in_namespaces(|| {
        let home = Home::new(&format!(
            "{}network_interfaces = [\"vms0\", \"vms9\"]\n",
            NETWORK.replace("3s", "5m")
        ));
        let agent = home.start();
        agent.status_when("awake for want of an interface", 20 * SECOND, |status| {
            blockers(status) == ["unreadable"] && status["state"] == "active"
        });
        // Checks are 10 s apart from the second on: four changes, each noticed within a second, were told by netlink.
        let runtime = netns::runtime();
        runtime.block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
        let index = if_nametoindex("vms0").unwrap();
        attached_within_a_second(&agent, "vms0", index);
        netns::ip("link set vms0 down");
        netns::ip("link set vms0 name vms9");
        netns::ip("link set vms9 up");
        attached_within_a_second(&agent, "vms9", index);
        agent.status_when("told by its new name", 30 * SECOND, |status| {
            let interfaces = status["rates"]["interfaces"].as_object().unwrap();
            interfaces.keys().eq(["vms9"]) && signal(status, "network")["source"] == "kernel"
        });
        let elsewhere = runtime.block_on(async { netns::move_away(&netns::rtnetlink(), "vms9").await });
        runtime.block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms2").await });
        let other = if_nametoindex("vms0").unwrap();
        assert_ne!(index, other);
        attached_within_a_second(&agent, "vms0", other);
        if tcx() {
            assert!(!attachments(&agent).contains(&index));
        }
        drop(elsewhere);
        runtime.block_on(async { netns::remove(&netns::rtnetlink(), "vms0").await });
        // A sample that is disturbed by the removal, a new baseline, and the sample that says so: 10 s each.
        agent.status_when("awake again for want of one", 60 * SECOND, |status| {
            blockers(status) == ["unreadable"] && status["blockers"].to_string().contains("no network interface")
        });
    });
}

fn attached_within_a_second(agent: &Agent, name: &str, index: u32) {
    eventually(&format!("attached to {name}"), SECOND, || {
        let attached = if tcx() {
            attachments(agent).iter().filter(|found| **found == index).count() == 2
        } else {
            filters(name) == 2
        };
        attached.then_some(()).ok_or_else(|| agent.log())
    });
}

fn bridge_is_left_out() {
    in_namespaces(|| {
        netns::runtime().block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
        netns::ip("link add vmsbr type bridge");
        netns::ip("link set vms0 master vmsbr");
        netns::ip("link set vmsbr up");
        let home = Home::new(&format!("{NETWORK}network_interfaces = [\"vmsbr\", \"vms0\"]\n"));
        let agent = home.start();
        let status = agent.status_when("sampled", 20 * SECOND, |status| {
            status["rates"]["over_s"].as_f64() > Some(0.0)
        });
        let interfaces = status["rates"]["interfaces"].as_object().unwrap();
        assert!(interfaces.keys().eq(["vms0"]), "{status:#}");
        assert_eq!(agent.log().matches("left out").count(), 1, "{}", agent.log());
    });
}

fn no_interface() {
    in_namespaces(|| {
        let home = Home::new(NETWORK);
        let agent = home.start();
        let status = agent.status_when("sampled twice", 20 * SECOND, |status| {
            assert_eq!(status["state"], "active", "{status:#}");
            status["blockers"].to_string().contains("no network interface")
        });
        assert_eq!(blockers(&status), ["unreadable"]);
        let what = status["blockers"][0]["what"].as_str().unwrap();
        assert!(what.contains("none is physical"), "{what}");
        assert_eq!(signal(&status, "network")["source"], "unreadable");
        assert!(agent.json("why")["blockers"][0]["what"] == what);
    });
}

fn detached_programs_come_back() {
    in_namespaces(|| {
        netns::runtime().block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
        let home = Home::new(&format!("{NETWORK}network_interfaces = [\"vms0\"]\n"));
        let agent = home.start();
        let quiet = |status: &Value| blockers(status).is_empty() && signal(status, "network")["source"] == "kernel";
        agent.status_when("quiet", 20 * SECOND, quiet);
        let index = if_nametoindex("vms0").unwrap();
        for direction in ["ingress", "egress"] {
            detach("vms0", index, direction, &agent);
            let busy = agent.status_when("awake for it", 20 * SECOND, |status| {
                status["state"] == "active" && blockers(status) == ["unreadable"]
            });
            let what = busy["blockers"][0]["what"].as_str().unwrap();
            assert!(what.contains("detached"), "{what}");
            attached_within_a_second(&agent, "vms0", index);
            agent.status_when("quiet again", 20 * SECOND, quiet);
        }
    });
}

/// As somebody else would.
fn detach(name: &str, index: u32, direction: &str, agent: &Agent) {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    };
    if tcx() {
        let link = |info: &String| {
            (number(info, "ifindex:") == Some(index)).then_some(())?;
            number(info, "link_id:")
        };
        let links: Vec<u32> = fdinfo(agent).iter().filter_map(link).collect();
        let one = if direction == "ingress" { links[0] } else { links[1] };
        run("bpftool", &["link", "detach", "id", &one.to_string()]);
    } else {
        run("tc", &["filter", "del", "dev", name, direction]);
    }
}

/// Index of the interface of each link the agent holds (tcx), 0 for what was detached.
fn attachments(agent: &Agent) -> Vec<u32> {
    fdinfo(agent)
        .iter()
        .filter_map(|info| number(info, "ifindex:"))
        .collect()
}

/// Filters of the agent on an interface (clsact).
fn filters(name: &str) -> usize {
    let on = |direction: &str| {
        let output = Command::new("tc")
            .args(["filter", "show", "dev", name, direction])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).contains("vms_net_")
    };
    ["ingress", "egress"]
        .into_iter()
        .filter(|direction| on(direction))
        .count()
}

/// Ids of the programs the agent holds.
fn programs(agent: &Agent) -> Vec<u32> {
    let of_program = |info: &&String| !info.contains("link_id:");
    fdinfo(agent)
        .iter()
        .filter(of_program)
        .filter_map(|info| number(info, "prog_id:"))
        .collect()
}

/// What /proc tells of each open file of the agent, by descriptor.
fn fdinfo(agent: &Agent) -> Vec<String> {
    let folder = format!("/proc/{}/fdinfo", agent.pid());
    let mut files: Vec<u32> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    files.sort_unstable();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(format!("{folder}/{file}")).ok())
        .collect()
}

fn number(info: &str, key: &str) -> Option<u32> {
    info.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}
