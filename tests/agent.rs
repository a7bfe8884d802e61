//! The agent as a whole: the real binary, the real kernel, its control program. Never suspends: always in dry-run.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support {
    pub(crate) mod agent;
    #[expect(dead_code, reason = "the tests of the kernel half use more of it")]
    pub(crate) mod cgroups;
    pub(crate) mod chatter;
    pub(crate) mod edges;
    pub(crate) mod escalation;
    #[expect(dead_code, reason = "the attempts to sleep use more of it")]
    pub(crate) mod fake_login1;
    pub(crate) mod faults;
    #[expect(dead_code, reason = "the tests of the kernel half use more of it")]
    pub(crate) mod frames;
    pub(crate) mod full_disk;
    pub(crate) mod namespaces;
    #[expect(dead_code, reason = "the tests of the kernel half use more of it")]
    pub(crate) mod netns;
    pub(crate) mod notify;
    pub(crate) mod reports;
    pub(crate) mod scope;
    pub(crate) mod sshd;
    pub(crate) mod talker;
    pub(crate) mod trials;
    pub(crate) mod wait;
    pub(crate) mod wake_server;
}

use std::{
    collections::BTreeSet,
    fs,
    net::UdpSocket,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{
    agent::{Home, binary, blockers},
    sshd::{Login, Pam, Sshd, USER},
    trials::{anywhere, as_root, with_bus, with_sshd},
};
use vmstation_agent::clock::BootTime;

const SECOND: Duration = Duration::from_secs(1);
/// A login is seen, and its end is, within this time.
const SEEN: Duration = SECOND;

/// Quiet at once: nothing is looked at. Sleeps after a few seconds.
const QUIET: &str = r#"
[general]
inactivity_timeout = "2s"
check_interval = "1s"
grace_period = "2s"
min_awake = "1s"
[activity_detection]
check_pods = false
check_cpu = false
check_network = false
check_ssh_sessions = false
"#;

/// Watches loopback traffic only.
const LOOPBACK: &str = r#"
[general]
inactivity_timeout = "3s"
check_interval = "1s"
grace_period = "60s"
[activity_detection]
check_pods = false
check_cpu = false
network_threshold_bytes = 100000
network_interfaces = ["lo"]
check_ssh_sessions = false
"#;

/// Everything, on loopback, with every program in the kernel however busy the host is.
const ALL: &str = r#"
[general]
check_interval = "1s"
probes = "always"
[activity_detection]
network_interfaces = ["lo"]
"#;

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = vec![
        anywhere(
            "a_quiet_host_goes_through_grace_to_a_dry_run_suspend",
            a_quiet_host_sleeps,
        ),
        anywhere("traffic_in_the_grace_period_cancels_it", traffic_cancels),
        anywhere("hold_and_disable_survive_kill_and_restart", hold_and_disable_survive),
        anywhere("f4_a_second_agent_exits_75", second_agent),
        anywhere(
            "f5_a_wrong_configuration_exits_78_with_all_complaints",
            wrong_configuration,
        ),
        anywhere("f5_a_failed_reload_keeps_the_old_configuration", failed_reload),
        anywhere("f2_a_corrupt_state_is_set_aside", corrupt_state),
        anywhere("f3_without_a_state_folder_the_host_stays_awake", no_state_folder),
        as_root(
            "f3_a_full_or_read_only_state_folder_keeps_the_host_awake",
            support::full_disk::a_full_or_read_only_state_folder_keeps_the_host_awake,
        ),
        as_root(
            "a_loaded_host_has_only_the_ssh_programs_and_a_resting_one_all",
            support::escalation::a_loaded_host_has_only_the_ssh_programs,
        ),
        anywhere("e1_without_programs_each_signal_falls_back_and_says_why", fallbacks),
        as_root(
            "e1_without_capabilities_each_signal_falls_back_and_says_why",
            unprivileged,
        ),
        as_root("the_programs_carry_every_signal", programs_carry_every_signal),
        as_root(
            "x4_chatter_is_quiet_and_a_download_is_not",
            support::chatter::chatter_is_quiet_and_a_download_is_not,
        ),
        with_sshd(
            "x4_chatter_and_failed_logins_are_quiet_and_a_login_is_not",
            support::chatter::chatter_is_quiet_and_a_login_is_not,
        ),
        as_root(
            "why_names_the_pod_that_uses_the_network",
            support::talker::why_names_the_pod_that_uses_the_network,
        ),
        as_root(
            "only_pods_count_where_only_pods_are_asked_for",
            support::scope::only_pods_count_where_only_pods_are_asked_for,
        ),
        as_root(
            "a_download_cancels_the_announced_sleep_when_it_begins",
            support::edges::a_download_cancels_the_announced_sleep_when_it_begins,
        ),
        anywhere(
            "h5_notify_test_says_what_became_of_it",
            support::notify::notify_test_says_what_became_of_it,
        ),
        anywhere(
            "h5_a_certificate_the_system_trusts_is_accepted",
            support::notify::a_certificate_the_system_trusts_is_accepted,
        ),
        anywhere(
            "notify_test_says_that_the_log_has_it",
            support::notify::notify_test_says_that_the_log_has_it,
        ),
        anywhere(
            "the_wake_server_is_told_what_the_host_does",
            support::reports::the_wake_server_is_told_what_the_host_does,
        ),
        anywhere(
            "an_order_of_the_wake_server_is_carried_out",
            support::reports::an_order_of_the_wake_server_is_carried_out,
        ),
        with_bus(
            "the_report_of_a_sleep_comes_after_its_leave_and_last",
            support::reports::the_report_of_a_sleep_comes_after_its_leave_and_last,
        ),
        anywhere(
            "a_wake_server_that_is_gone_is_told",
            support::reports::a_wake_server_that_is_gone_is_told,
        ),
        with_sshd(
            "a_login_cancels_the_announced_sleep",
            support::edges::a_login_cancels_the_announced_sleep,
        ),
        with_sshd("ssh_logins_count_at_once_and_stop_at_logout", sessions_count),
        with_sshd("x6_a_login_shorter_than_any_interval_is_activity", short_login_counts),
        with_sshd("x1_failed_logins_are_no_activity", failed_logins_do_not_count),
        as_root("c1_another_user_may_read_but_not_change", another_user_reads_only),
        as_root("e2_kill_9_leaves_no_program_behind", kill_leaves_nothing),
    ];
    trials.extend(support::faults::trials());
    // One after another: they watch the same loopback.
    libtest_mimic::run(
        &libtest_mimic::Arguments {
            test_threads: Some(1),
            ..arguments
        },
        trials,
    )
    .exit();
}

fn a_quiet_host_sleeps() {
    let home = Home::new(QUIET);
    let agent = home.start();
    agent.status_when("in the grace period", 20 * SECOND, |status| status["state"] == "grace");
    let slept = agent.status_when("suspended (dry run)", 20 * SECOND, |status| status["suspends"] == 1);
    assert_eq!(slept["dry_run"], true);
    agent.status_when("suspended again", 20 * SECOND, |status| status["suspends"] == 2);
    assert!(agent.end(Signal::SIGTERM).success());
    assert!(!home.path().join("sock").exists(), "the socket stays behind");

    let log = fs::read_to_string(home.path().join("log/power.log")).unwrap();
    let story = ["from=quiet to=grace", "to=suspending", "the host would be suspended"];
    let mut rest = log.as_str();
    for line in story {
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("no {line:?} in its place in {log}"));
        rest = &rest[at..];
    }
    let state = fs::read_to_string(home.path().join("state/state")).unwrap();
    for line in ["LAST_ACTIVITY=", "SLEEP_PENDING=", "SLEEP_ENABLED=true", "LAST_CHECK="] {
        assert!(state.contains(line), "no {line} in {state}");
    }
}

fn traffic_cancels() {
    // What a check finds stays so for long enough to be asked for.
    let slow = LOOPBACK.replace("\"1s\"", "\"10s\"").replace("\"3s\"", "\"10s\"");
    let home = Home::new(&slow);
    let agent = home.start();
    agent.status_when("in the grace period", 40 * SECOND, |status| status["state"] == "grace");

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..2000 {
        socket.send_to(&[0; 1000], sink.local_addr().unwrap()).unwrap();
    }
    let busy = agent.status_when("active", 10 * SECOND, |status| status["state"] == "active");
    assert_eq!(blockers(&busy), ["network"]);
    let blocker = &busy["blockers"][0];
    assert!(blocker["what"].as_str().unwrap().contains("on lo"), "{blocker}");
    assert!(
        blocker["value"].as_f64().unwrap() > blocker["limit"].as_f64().unwrap(),
        "{blocker}"
    );
    assert!(agent.log().contains("cancelled"), "{}", agent.log());
    let why = agent.json("why");
    let to_sleep = why["to_sleep"].as_str().unwrap();
    // Of user traffic, or of all if that was measured again without a program.
    assert!(
        to_sleep.starts_with("less than 100000 B/s") && to_sleep.contains(" on lo; then"),
        "{why}"
    );
}

fn hold_and_disable_survive() {
    let home = Home::new(QUIET);
    let agent = home.start();
    agent.order(&["hold", "1h", "--reason", "backup"]);
    assert_eq!(blockers(&agent.status())[0], "hold");
    agent.end(Signal::SIGKILL);

    let agent = home.start();
    let held = agent.status();
    assert_eq!(held["hold"]["reason"], "backup");
    let left = held["hold"]["remaining_s"].as_f64().unwrap();
    assert!(left > 3500.0 && left <= 3600.0, "{left}");
    agent.order(&["release"]);
    agent.order(&["disable"]);
    agent.end(Signal::SIGKILL);

    let agent = home.start();
    let disabled = agent.status();
    assert_eq!(
        (&disabled["hold"], &disabled["disabled_by_operator"]),
        (&Value::Null, &Value::Bool(true))
    );
    assert_eq!(blockers(&disabled), ["disabled"]);
    agent.order(&["enable"]);
    agent.status_when("suspended (dry run)", 20 * SECOND, |status| status["suspends"] == 1);
}

fn second_agent() {
    let home = Home::new(QUIET);
    let _first = home.start();
    // The lock decides, not the socket.
    let mut second = home.command_with(&home.path().join("state"), &home.path().join("other"));
    let output = second.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(75),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("another agent"));
}

fn wrong_configuration() {
    let home = Home::new("[general]\ninactivity_timeout = \"-5m\"\nchek_interval = \"1m\"\n");
    let output = home.command().output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(
        told.contains("autosleep.toml:2:") && told.contains("autosleep.toml:3:1"),
        "{told}"
    );
    assert!(told.contains("check_interval"), "no hint at the nearest key in {told}");
}

fn failed_reload() {
    let home = Home::new(QUIET);
    let agent = home.start();
    home.configure("[general]\ninactivity_timeout = \"soon\"\n");
    agent.signal(Signal::SIGHUP);
    let warned = agent.status_when("warned", 10 * SECOND, |status| {
        status["warnings"].to_string().contains("autosleep.toml:2:")
    });
    assert_eq!(warned["inactivity_timeout_s"], 2.0);

    home.configure(&QUIET.replace("inactivity_timeout = \"2s\"", "inactivity_timeout = \"7s\""));
    agent.signal(Signal::SIGHUP);
    let reloaded = agent.status_when("reloaded", 10 * SECOND, |status| status["inactivity_timeout_s"] == 7.0);
    assert_eq!(reloaded["warnings"], Value::Array(vec![]));
}

fn corrupt_state() {
    let home = Home::new(QUIET);
    home.start().end(Signal::SIGTERM);
    let file = home.path().join("state/state");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let agent = home.start();
    let status = agent.status();
    assert!(status["warnings"].to_string().contains("state.corrupt"), "{status}");
    assert_eq!(
        fs::read(home.path().join("state/state.corrupt")).unwrap(),
        whole[..whole.len() / 2]
    );
}

fn no_state_folder() {
    // sysfs takes no new folder, not even from root.
    let home = Home::new(QUIET);
    let agent = home.start_as(home.command_with("/sys/kernel/vmstation".as_ref(), &home.path().join("sock")));
    let status = agent.status_when("blocked by its state", 20 * SECOND, |status| {
        blockers(status) == ["state"]
    });
    assert!(
        status["blockers"][0]["what"]
            .as_str()
            .unwrap()
            .contains("/sys/kernel/vmstation"),
        "{status}"
    );
    let refused = agent.ctl(&["hold", "1h"]);
    assert!(
        !refused.status.success(),
        "a hold that does not survive a restart was called done"
    );
}

fn fallbacks() {
    let home = Home::new("[general]\nprobes = \"off\"\ncheck_interval = \"1s\"\n");
    let agent = home.start();
    let status = agent.status_when("sampled", 20 * SECOND, |status| {
        status["rates"]["cpu_percent"].is_number()
    });
    assert_all_fall_back(&status, "off");
    assert_eq!(signal(&status, "pods")["source"], "not_configured");
}

fn unprivileged() {
    let home = Home::new(ALL);
    for folder in ["", "state", "log"] {
        let path = home.path().join(folder);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let inner = home.command();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let agent = home.start_as(command);
    let status = agent.status_when("sampled", 20 * SECOND, |status| {
        status["rates"]["cpu_percent"].is_number()
    });
    assert_all_fall_back(&status, "ermi");
    assert!(agent.log().contains("eBPF program does not run"), "{}", agent.log());
}

/// Network, CPU and SSH are read elsewhere, with a reason that contains `why`.
fn assert_all_fall_back(status: &Value, why: &str) {
    for name in ["network", "cpu", "ssh"] {
        let signal = signal(status, name);
        assert_eq!(signal["source"], "fallback", "{signal}");
        assert!(signal["detail"].as_str().unwrap().contains(why), "{signal}");
    }
}

fn programs_carry_every_signal() {
    let home = Home::new(ALL);
    let agent = home.start();
    let status = agent.status_when("sampled", 20 * SECOND, |status| {
        status["rates"]["cpu_percent"].is_number()
    });
    for name in ["network", "cpu", "ssh"] {
        assert_eq!(signal(&status, name)["source"], "kernel", "{status:#}");
    }
    assert_eq!(status["warnings"], Value::Array(vec![]));
}

fn signal<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["signals"]
        .as_array()
        .unwrap()
        .iter()
        .find(|signal| signal["name"] == name)
        .unwrap()
}

fn another_user_reads_only() {
    const NOBODY: u32 = 65_534;
    let home = Home::new(QUIET);
    let agent = home.start();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(home.path(), 0o755);
    // The build may lie where others may not look.
    let ctl = home.path().join("ctl");
    fs::copy(binary("vmstation-autosleep-ctl"), &ctl).unwrap();
    let socket = home.path().join("sock");
    let told = |command: &str| {
        let mut ctl = Command::new(&ctl);
        ctl.arg("--socket").arg(&socket).arg(command).uid(NOBODY).gid(NOBODY);
        let output = ctl.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, why) = told("status");
    assert!(
        code == Some(3) && why.contains("permission denied"),
        "kept out by the mode of the socket: {code:?} {why}"
    );
    // Let in, as a member of its group would be.
    open(&socket, 0o666);
    assert_eq!(told("status").0, Some(0));
    for change in ["enable", "disable", "reset", "release"] {
        let (code, why) = told(change);
        assert!(
            code == Some(3) && why.contains("is for root: uid 65534 may read"),
            "{change}: {code:?} {why}"
        );
    }
    assert_eq!(agent.status()["disabled_by_operator"], false);
}

/// SSH alone, with the guide's five minutes between checks: whatever is seen sooner was told by the kernel.
fn ssh_only(sshd: &Sshd) -> Home {
    let port = sshd.port();
    Home::new(&format!(
        "[activity_detection]\ncheck_pods = false\ncheck_cpu = false\ncheck_network = false\nssh_ports = [{port}]\n"
    ))
}

fn open_sessions(status: &Value) -> usize {
    status["rates"]["ssh_sessions"].as_array().unwrap().len()
}

fn sessions_count() {
    for pam in [Pam::Yes, Pam::No] {
        sessions_count_with(pam);
    }
}

fn sessions_count_with(pam: Pam) {
    let sshd = Sshd::start(pam).unwrap();
    let home = ssh_only(&sshd);
    let older = sshd.open(USER, Login::Key).unwrap();
    let agent = home.start();
    agent.status_when("counting the older session", SEEN, |status| open_sessions(status) == 1);
    older.close().unwrap();
    agent.status_when("quiet", SEEN, |status| {
        open_sessions(status) == 0 && blockers(status).is_empty()
    });

    for (user, login) in [
        (USER, Login::Key),
        (USER, Login::Password),
        ("root", Login::Key),
        ("root", Login::Password),
    ] {
        let session = sshd.open(user, login).unwrap();
        let busy = agent.status_when("counting", SEEN, |status| {
            open_sessions(status) == 1 && blockers(status) == ["ssh"]
        });
        assert_eq!(busy["rates"]["ssh_sessions"][0]["user"], user);
        assert_eq!(busy["state"], "active");
        session.close().unwrap();
        agent.status_when("quiet", SEEN, |status| {
            open_sessions(status) == 0 && blockers(status).is_empty()
        });
    }
    // Nothing is started that the kernel could tell of; without PAM, root's does not even fork.
    for user in [USER, "root"] {
        let mut forwarding = sshd.client(user, Login::Key, &["-N"]).spawn().unwrap();
        agent.status_when("counting a session without a command", 5 * SECOND, |status| {
            open_sessions(status) == 1 && blockers(status) == ["ssh"]
        });
        forwarding.kill().unwrap();
        forwarding.wait().unwrap();
        agent.status_when("quiet", SEEN, |status| {
            open_sessions(status) == 0 && blockers(status).is_empty()
        });
    }
    assert_eq!(agent.status()["rates"]["ssh_logins"], 7);
}

fn short_login_counts() {
    let sshd = Sshd::start(Pam::Yes).unwrap();
    let home = ssh_only(&sshd);
    let agent = home.start();
    for logins in 1..=20 {
        agent.status_when("idle again", 10 * SECOND, |status| {
            blockers(status).is_empty() && status["idle_s"].as_f64() > Some(0.5)
        });
        let began = BootTime::now();
        let login = sshd.client(USER, Login::Key, &[]).arg("true").status().unwrap();
        assert!(login.success());
        let after = agent.status_when("seen", SEEN, |status| status["rates"]["ssh_logins"] == logins);
        assert!(
            after["idle_s"].as_f64().unwrap() < BootTime::now().since(began).as_secs_f64(),
            "the last activity is older than the login: {after:#}"
        );
    }
}

fn failed_logins_do_not_count() {
    let sshd = Sshd::start(Pam::Yes).unwrap();
    let home = ssh_only(&sshd);
    let agent = home.start();
    let before = agent.status_when("sampled", 10 * SECOND, |status| status["last_check_s"].is_number());
    for user in [USER, "root", "nobody-by-that-name"] {
        assert!(
            !sshd
                .client(user, Login::WrongPassword(3), &[])
                .arg("true")
                .status()
                .unwrap()
                .success()
        );
    }
    let after = agent.status();
    assert_eq!(after["rates"]["ssh_logins"], 0);
    assert!(
        after["idle_s"].as_f64() > before["idle_s"].as_f64(),
        "a failed login is activity: {after:#}"
    );
}

fn kill_leaves_nothing() {
    let home = Home::new(ALL);
    let before = loaded();
    let agent = home.start();
    let ours = loaded().difference(&before).cloned().collect::<Vec<_>>().join("\n");
    for name in ["vms_net_rx", "vms_net_tx", "vms_sched", "vms_ssh"] {
        assert!(ours.contains(name), "{name} is not loaded: {ours}");
    }
    agent.end(Signal::SIGKILL);
    if !tcx() {
        // Filters of clsact outlive whoever made them; the next agent takes them away.
        home.start().end(Signal::SIGTERM);
    }
    // The kernel takes programs down in the background.
    support::wait::eventually("as before", 10 * SECOND, || {
        let left: Vec<_> = loaded().difference(&before).cloned().collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

/// Whether the kernel has tcx (6.6), whose attachments end with their process.
fn tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

/// What bpftool lists: programs, links, and what hangs on network interfaces.
fn loaded() -> BTreeSet<String> {
    let lists = ["prog", "link", "net"].map(|what| {
        let output = Command::new("bpftool")
            .args(["--json", what, "show"])
            .output()
            .expect("bpftool is installed by `cargo xtask setup`");
        assert!(
            output.status.success(),
            "bpftool {what} show: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        list.into_iter()
            .map(move |entry| format!("{what}: {entry}"))
            .collect::<Vec<_>>()
    });
    lists.into_iter().flatten().collect()
}
