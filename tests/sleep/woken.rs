//! The whole chain: the agent in the guest gets leave of a real wake server and sleeps, and the server wakes it by a frame on the LAN.
//!
//! What the guest's card would do is done here: at the frame that it does not miss the machine is woken. See `cable.rs`.

use std::{path::Path, process::Command, thread, time::Duration};

use serde_json::Value;

use crate::{
    cable::Cable,
    lan::{Host, MacAddress},
    machine::wake_on_lan,
    server::{Answer, Master, TOKEN, program},
    vm::{
        bed::{LAN, bed},
        installation::{EAGER, Installation, Settings},
    },
    wait::wait_until,
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 1] = [(
    "a3_w11_a_verified_wake_of_the_suspended_guest_names_every_stage",
    a_frame_wakes_the_guest,
)];

const NODE: &str = "worker-01";
const MAC: MacAddress = [0x52, 0x54, 0x00, 0x12, 0x34, 0x04];
const REGISTRY: &str = "[[node]]\nname = \"worker-01\"\nmac = \"52:54:00:12:34:04\"\naddress = \"192.0.2.2\"\n";
/// The state is looked at often.
const SETTINGS: &str = "deadline = \"3m\"\nresend = [\"0s\", \"1s\", \"2s\", \"4s\"]
[limits]
requests_per_minute = 1_000_000
";
/// Calls that the card misses (fault W11).
const MISSED: usize = 2;
/// A suspend, a resume and everything that is awaited of them.
const LATER: Duration = Duration::from_mins(2);

/// Why there can be no LAN here.
pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for a network namespace and a tap device");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun");
    }
    let is_there = |tool: &&str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(tool).is_file())
    };
    (!["ip", "curl"].iter().all(is_there)).then_some("needs iproute2 and curl")
}

fn a_frame_wakes_the_guest() {
    let mut bed = bed();
    let host = Host::new();
    let cable = Cable::plug(&host, "lan0", &bed.cable, MAC);
    host.ip("address add 192.0.2.1/24 broadcast + dev lan0");
    host.ip("link set lan0 up");
    let master = Master::on(host, REGISTRY, SETTINGS);
    bed.channel.ask(&format!(
        "hostname {NODE}; ip link set {LAN} up; ip address replace 192.0.2.2/24 dev {LAN}"
    ));
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            interfaces: &[LAN],
            // It stays awake when it was woken.
            min_awake: "1h",
            wake_server: "url = \"http://192.0.2.1:9876\"\ntoken_file = \"/etc/vmstation/autosleep/token\"",
            ..EAGER
        },
    );
    let token = token(&master);
    agent.bed.channel.write("/etc/vmstation/autosleep/token", "600", &token);
    let before = life(&mut agent);
    agent.start();
    agent.bed.sleeps("it is idle and has leave");
    cable.sleeps();
    let is_asleep = wait_until(LATER, || master.node(NODE)["state"] == "asleep");
    assert!(is_asleep, "{:#}\n{}", master.node(NODE), master.log());
    assert_eq!(agent.bed.qmp.status(), "suspended", "and is it, too");

    let answer = woken(&master, &cable, &mut agent);
    assert_eq!(answer.status, 200, "{answer:?}\n{}", master.log());
    let wake = answer.json();
    assert_eq!((&wake["outcome"], &wake["node"]), (&"awake".into(), &NODE.into()));
    assert_eq!(
        (&wake["transport"], &wake["interface"], &wake["mac"]),
        (&"raw".into(), &"lan0".into(), &"52:54:00:12:34:04".into()),
        "{wake:#}"
    );
    let stages = stages(&wake);
    let names: Vec<_> = stages.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["frame_sent", "arp_reply", "agent_report"], "{wake:#}");
    // The agent may have been heard first.
    assert!(stages.iter().all(|(_, at)| *at >= stages[0].1), "{stages:?}");
    println!("since the request: {stages:?}");

    let status = agent.status_when("told of the wake", |status| status["sleep"]["wakes"] == 1);
    assert_eq!(status["sleep"]["last"]["outcome"], "slept", "{status:#}");
    let (boot, resumes) = life(&mut agent);
    assert_eq!(
        (boot, resumes),
        (before.0, before.1 + 1),
        "the same boot, one more resume"
    );
    let node = master.node(NODE);
    assert_eq!(node["state"], "awake", "{node:#}");
    assert_eq!(node["last_wake"], wake);
    assert_eq!(wake_on_lan(agent.bed, LAN), (true, "enabled".into()), "armed again");
}

/// What the operator's request gets, while the card misses calls and then wakes the guest.
fn woken(master: &Master, cable: &Cable, agent: &mut Installation<'_>) -> Answer {
    let token = format!("X-Auth-Token: {TOKEN}");
    let url = format!("http://master:9876/wake/{NODE}?verify=true");
    thread::scope(|scope| {
        let asked = scope.spawn(|| master.curl(&["--max-time", "300", "-X", "POST", &url, "-H", &token]));
        let is_called = || cable.calls() > MISSED;
        if wait_until(LATER, || is_called() || asked.is_finished()) && is_called() {
            assert_eq!(agent.bed.qmp.status(), "suspended");
            cable.wakes();
            agent.bed.qmp.wake();
        }
        asked.join().unwrap()
    })
}

/// The stages of a wake, in order, each with its time in milliseconds.
fn stages(wake: &Value) -> Vec<(String, Duration)> {
    let stages = wake["stages"].as_array().unwrap().iter();
    let stage = |stage: &Value| {
        let at = stage["at_ms"].as_f64().unwrap();
        (
            stage["stage"].as_str().unwrap().to_owned(),
            Duration::from_secs_f64(at / 1000.0),
        )
    };
    stages.map(stage).collect()
}

/// The boot of the guest and the suspends of it, as its kernel has them.
fn life(agent: &mut Installation<'_>) -> (String, u64) {
    let boot = agent.bed.read("/proc/sys/kernel/random/boot_id");
    let resumes = agent.bed.read("/sys/power/suspend_stats/success");
    (boot, resumes.parse().unwrap())
}

/// The token of the guest's agent, as an operator gets it.
fn token(master: &Master) -> String {
    let output = Command::new(program("vmstation-wake"))
        .args(["token", NODE, "--secret-file"])
        .arg(master.file("secret"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
