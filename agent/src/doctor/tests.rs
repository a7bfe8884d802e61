//! Facts made up for each test, and what is found of them.

use std::{io, path::Path, time::Duration};

use nix::errno::Errno;

use super::*;
use crate::{
    config::{NotificationMethod, Sleep},
    ctl::sample,
    report::{Signal, SignalSource},
    wol::{DeviceWakeup, Mac, MacSource, Modes},
};

const ROOTS: Standing = Standing {
    is_file: true,
    uid: 0,
    mode: 0o755,
};

/// A port that wakes the host.
fn port(interface: &str) -> Port {
    Port {
        interface: interface.into(),
        ifindex: 2,
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        mac_source: MacSource::Permanent,
        behind: None,
        supported: Modes::MAGIC,
        enabled: Modes::MAGIC,
        unread: None,
        device_wakeup: DeviceWakeup::Enabled,
        carrier: true,
    }
}

fn ports(read: Vec<Port>) -> Ports {
    Ports {
        wanted: Vec::new(),
        missing: Vec::new(),
        names: Ok(read.iter().map(|port| port.interface.clone()).collect()),
        counted: true,
        read: Ok(read),
        refusals: BTreeMap::new(),
    }
}

/// A host on which everything is as it should be.
fn facts() -> Facts {
    let mut status = sample::status();
    status.dry_run = false;
    status.warnings.clear();
    status.signals = vec![signal("network", SignalSource::Kernel, None)];
    let folder = |name: &str| HookFolder {
        path: Path::new("/hooks").join(name),
        standing: Some(Standing {
            is_file: false,
            ..ROOTS
        }),
        hooks: Ok(vec![("10-drain".into(), ROOTS)]),
    };
    Facts {
        configuration: Ok(Configuration {
            path: Some("/etc/autosleep.toml".into()),
            format: Format::Toml,
            notes: Vec::new(),
        }),
        settings: Sleep::default(),
        notification: None,
        probes: ProbeMode::Auto,
        agent: Agent::Answers(Box::new(status)),
        only_mem: Ok(()),
        sleep_states: SleepStates {
            states: Ok("freeze mem disk".into()),
            mem_sleep: Some("s2idle [deep]".into()),
        },
        ports: ports(vec![port("eth0")]),
        wakealarm: Some(String::new()),
        logind: Ok("yes".into()),
        hooks: vec![folder("pre-sleep.d"), folder("post-wake.d")],
        kernel: Kernel {
            release: "6.18.44-fc".into(),
            btf: true,
            cgroup2: Ok("/sys/fs/cgroup".into()),
        },
        state_folder: ("/var/lib/state".into(), StateFolder::Writable),
    }
}

fn signal(name: &str, source: SignalSource, detail: Option<&str>) -> Signal {
    Signal {
        name: name.into(),
        source,
        detail: detail.map(Into::into),
    }
}

fn all(facts: &Facts, check: Check) -> Vec<Finding> {
    let of_it = |finding: &Finding| finding.check == check;
    findings(facts).into_iter().filter(of_it).collect()
}

#[track_caller]
fn only(facts: &Facts, check: Check) -> Finding {
    let [finding] = all(facts, check).try_into().unwrap();
    finding
}

#[track_caller]
fn assert_finding(finding: &Finding, verdict: Verdict, parts: &[&str]) {
    assert_eq!(finding.verdict, verdict, "{finding:?}");
    let told = format!("{} {}", finding.what, finding.fix.as_deref().unwrap_or_default());
    for part in parts {
        assert!(told.contains(part), "{part:?} is missing in {told:?}");
    }
}

#[test]
fn a_host_in_order_has_a_finding_for_every_check_and_all_are_ok() {
    let found = findings(&facts());
    assert!(found.iter().all(|finding| finding.verdict == Verdict::Ok), "{found:#?}");
    let mut checks: Vec<_> = found.iter().map(|finding| finding.check).collect();
    checks.dedup();
    let names = checks.iter().map(|check| check.name()).collect::<Vec<_>>().join(" ");
    assert_eq!(
        names,
        "configuration agent signals sleep_states wake_on_lan rtc logind hooks notification ebpf state_folder woken_by"
    );
    for check in checks {
        assert_eq!(serde_json::to_value(check).unwrap(), check.name());
    }
}

#[test]
fn f5_a_wrong_configuration_fails_and_the_rest_is_looked_at() {
    let mut facts = facts();
    facts.configuration = Err("autosleep.toml:3:1: unknown key".into());
    assert_finding(
        &only(&facts, Check::Configuration),
        Verdict::Fail,
        &["3:1", "config check"],
    );
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Ok);
}

#[test]
fn an_agent_that_is_away_fails_and_one_that_may_not_be_asked_is_unknown() {
    let mut facts = facts();
    let path = || PathBuf::from("/run/it.sock");
    let source = || io::Error::from(io::ErrorKind::NotFound);
    facts.agent = Agent::NotReached(CallError::Unreachable {
        path: path(),
        source: source(),
    });
    assert_finding(
        &only(&facts, Check::Agent),
        Verdict::Fail,
        &["/run/it.sock", "systemctl status"],
    );
    facts.agent = Agent::NotReached(CallError::NotPermitted { path: path() });
    assert_finding(&only(&facts, Check::Agent), Verdict::Unknown, &["root"]);
    facts.agent = Agent::NotReached(CallError::TimedOut { path: path() });
    assert_finding(&only(&facts, Check::Agent), Verdict::Fail, &["no answer"]);
    facts.agent = Agent::Refuses("too many clients".into());
    assert_finding(&only(&facts, Check::Agent), Verdict::Fail, &["too many clients"]);
}

#[test]
fn e1_degraded_signals_are_named_with_their_reason() {
    let mut facts = facts();
    let mut status = sample::status();
    status.dry_run = true;
    status.warnings = vec!["power.log cannot be written".into()];
    status.signals = vec![
        signal("network", SignalSource::Fallback, Some("no CAP_BPF")),
        signal("pods", SignalSource::Unreadable, Some("no kubelet")),
        signal("cpu", SignalSource::Plain, None),
    ];
    facts.agent = Agent::Answers(Box::new(status));
    let [answers, warning] = all(&facts, Check::Agent).try_into().unwrap();
    assert_finding(&answers, Verdict::Warn, &["dry run"]);
    assert_finding(&warning, Verdict::Warn, &["power.log"]);
    let [network, pods] = all(&facts, Check::Signals).try_into().unwrap();
    assert_finding(&network, Verdict::Warn, &["network", "no CAP_BPF"]);
    assert_finding(&pods, Verdict::Fail, &["pods", "no kubelet", "does not sleep"]);
}

#[test]
fn s8_only_deep_sleep_is_enough_unless_configured() {
    let cases = [
        ("freeze mem", Some("s2idle [deep]"), [Verdict::Ok, Verdict::Ok]),
        ("freeze mem", Some("[deep]"), [Verdict::Ok, Verdict::Ok]),
        ("freeze mem", Some("[s2idle] deep"), [Verdict::Warn, Verdict::Ok]),
        ("freeze mem", Some("[s2idle]"), [Verdict::Fail, Verdict::Ok]),
        ("freeze", None, [Verdict::Fail, Verdict::Ok]),
        ("freeze disk", Some("[deep]"), [Verdict::Fail, Verdict::Ok]),
        ("standby disk", None, [Verdict::Fail, Verdict::Fail]),
        ("", None, [Verdict::Fail, Verdict::Fail]),
    ];
    for (states, mem_sleep, expected) in cases {
        let mut facts = facts();
        facts.sleep_states = SleepStates {
            states: Ok(states.into()),
            mem_sleep: mem_sleep.map(Into::into),
        };
        for (allow_s2idle, verdict) in [false, true].into_iter().zip(expected) {
            facts.settings.allow_s2idle = allow_s2idle;
            let found = only(&facts, Check::SleepStates);
            assert_eq!(
                found.verdict, verdict,
                "{states:?} {mem_sleep:?} {allow_s2idle} {found:?}"
            );
        }
    }
    let mut facts = facts();
    facts.sleep_states.states = Err("read /sys/power/state: not found".into());
    assert_eq!(host::fallback(&facts.only_mem), None);
    let tries_more = host::fallback(&Err("systemd would try `mem freeze`".into())).unwrap();
    assert_finding(&tries_more, Verdict::Warn, &["mem freeze"]);
    assert_finding(&only(&facts, Check::SleepStates), Verdict::Fail, &["cannot suspend"]);
}

#[test]
fn s10_armed_lying_and_refusing_ports_are_told_apart_in_words() {
    let mut lies = port("eth1");
    lies.device_wakeup = DeviceWakeup::Missing;
    let mut refuses = port("eth2");
    refuses.enabled = Modes::default();
    let mut facts = facts();
    facts.ports = ports(vec![port("eth0"), lies, refuses]);
    facts.ports.refusals = [("eth2".into(), "eth2 refuses g".into())].into();
    let [armed, lies, refuses] = all(&facts, Check::WakeOnLan).try_into().unwrap();
    let expected = "eth0 (52:54:00:00:00:01) armed: flag g, device wakeup enabled, carrier";
    assert_eq!((armed.verdict, armed.what.as_str()), (Verdict::Ok, expected));
    assert_finding(
        &lies,
        Verdict::Warn,
        &["eth1", "lies", "accepts g", "will not wake this host"],
    );
    assert_finding(&refuses, Verdict::Warn, &["eth2 refuses g"]);
    let by = only(&facts, Check::WokenBy);
    assert_eq!(
        (by.verdict, by.what.as_str()),
        (Verdict::Ok, "this host can be woken by: eth0")
    );
}

#[test]
fn s10_ports_that_cannot_wake_the_host_fail_when_no_other_can() {
    let mut facts = facts();
    let mut bad = port("eth0");
    bad.supported = Modes::default();
    bad.enabled = Modes::default();
    bad.carrier = false;
    facts.ports = ports(vec![bad]);
    let parts = ["does not offer g", "no carrier", "another port", "ip link set eth0 up"];
    assert_finding(&only(&facts, Check::WakeOnLan), Verdict::Fail, &parts);
    let parts = ["nobody can wake this host", "will not sleep", "allow_unwakeable"];
    assert_finding(&only(&facts, Check::WokenBy), Verdict::Fail, &parts);
    facts.settings.allow_unwakeable = true;
    assert_eq!(only(&facts, Check::WakeOnLan).verdict, Verdict::Warn);
    assert_finding(&only(&facts, Check::WokenBy), Verdict::Warn, &["sleeps all the same"]);
}

#[test]
fn s10_a_port_that_the_agent_will_arm_is_not_armed_yet() {
    let mut facts = facts();
    let mut unarmed = port("eth0");
    unarmed.enabled = Modes::default();
    unarmed.device_wakeup = DeviceWakeup::Disabled;
    facts.ports = ports(vec![unarmed]);
    let parts = [
        "not armed",
        "g (magic packet) is not set",
        "device wakeup is disabled",
        "--arm",
    ];
    assert_finding(&only(&facts, Check::WakeOnLan), Verdict::Warn, &parts);
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Ok);
    facts.settings.arm_wol = false;
    assert_finding(
        &only(&facts, Check::WakeOnLan),
        Verdict::Fail,
        &["`ethtool -s eth0 wol g`", "echo enabled"],
    );
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Fail);
    facts.settings.arm_wol = true;
    facts.ports.refusals = [("eth0".into(), "eth0 refuses g".into())].into();
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Fail);
}

#[test]
fn s10_without_the_right_to_look_the_ports_are_unknown_and_named() {
    let mut facts = facts();
    facts.ports.read = Err("needs CAP_NET_ADMIN".into());
    assert_finding(
        &only(&facts, Check::WakeOnLan),
        Verdict::Unknown,
        &["eth0", "CAP_NET_ADMIN", "sudo"],
    );
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Unknown);
}

#[test]
fn s11_an_alarm_alone_lets_the_host_sleep() {
    let mut facts = facts();
    facts.settings.wake_after = Some(Duration::from_secs(8 * 3600));
    assert_finding(&only(&facts, Check::Rtc), Verdict::Ok, &["after 8h"]);
    assert_finding(
        &only(&facts, Check::WokenBy),
        Verdict::Ok,
        &["eth0, an RTC alarm after 8h"],
    );
    facts.ports.read = Ok(vec![Port {
        carrier: false,
        ..port("eth0")
    }]);
    assert_finding(&only(&facts, Check::WokenBy), Verdict::Ok, &["woken by: an RTC alarm"]);
    facts.wakealarm = None;
    assert_finding(&only(&facts, Check::Rtc), Verdict::Fail, &["wakealarm", "8h"]);
    assert_finding(
        &only(&facts, Check::WokenBy),
        Verdict::Fail,
        &["nobody", "will not sleep"],
    );
    facts.settings.wake_after = None;
    assert_eq!(only(&facts, Check::Rtc).verdict, Verdict::Ok);
}

#[test]
fn e6_the_port_behind_a_bond_is_told_with_its_address() {
    let mut facts = facts();
    facts.ports = ports(vec![Port {
        behind: Some("bond0".into()),
        mac_source: MacSource::InUse,
        ..port("eth0")
    }]);
    facts.ports.wanted = vec!["bond0".into(), "eth9".into()];
    facts.ports.missing = vec!["eth9".into()];
    let [missing, found] = all(&facts, Check::WakeOnLan).try_into().unwrap();
    assert_finding(&missing, Verdict::Warn, &["eth9", "does not exist"]);
    assert_finding(
        &found,
        Verdict::Ok,
        &["eth0 (52:54:00:00:00:01", "behind bond0", "no permanent one"],
    );
}

#[test]
fn e7_without_a_physical_port_the_host_counts_as_active() {
    let mut facts = facts();
    facts.ports = ports(Vec::new());
    assert_finding(&only(&facts, Check::WakeOnLan), Verdict::Fail, &["counts as active"]);
    facts.ports.counted = false;
    assert_finding(
        &only(&facts, Check::WakeOnLan),
        Verdict::Fail,
        &["no packet can wake it"],
    );
    facts.ports.wanted = vec!["br0".into()];
    assert_finding(
        &only(&facts, Check::WakeOnLan),
        Verdict::Fail,
        &["no physical port lies behind br0"],
    );
    assert_eq!(only(&facts, Check::WokenBy).verdict, Verdict::Fail);
}

#[test]
fn s7_logind_must_answer_and_agree() {
    let mut facts = facts();
    facts.logind = Err("silence for 5 s".into());
    assert_finding(
        &only(&facts, Check::Logind),
        Verdict::Fail,
        &["silence", "systemd-logind"],
    );
    facts.logind = Ok("na".into());
    assert_finding(&only(&facts, Check::Logind), Verdict::Fail, &["cannot suspend"]);
    for answer in ["no", "challenge"] {
        facts.logind = Ok(answer.into());
        assert_finding(&only(&facts, Check::Logind), Verdict::Warn, &[answer, "root"]);
    }
}

#[test]
fn h4_a_hook_that_others_can_change_is_refused_and_named() {
    let mut facts = facts();
    let hook = |name: &str, change: fn(&mut Standing)| {
        let mut standing = ROOTS;
        change(&mut standing);
        (name.to_owned(), standing)
    };
    facts.hooks.truncate(1);
    facts.hooks[0].hooks = Ok(vec![
        hook("1-good", |_| {}),
        hook("2-theirs", |standing| standing.uid = 1000),
        hook("3-group", |standing| standing.mode = 0o775),
        hook("4-all", |standing| standing.mode = 0o757),
        hook("5-text", |standing| standing.mode = 0o644),
        hook("6-folder", |standing| standing.is_file = false),
    ]);
    let found = all(&facts, Check::Hooks);
    let expected: [(Verdict, &[&str]); 6] = [
        (Verdict::Ok, &["/hooks/pre-sleep.d/1-good runs"]),
        (
            Verdict::Fail,
            &["uid 1000", "refused", "chown root:root /hooks/pre-sleep.d/2-theirs"],
        ),
        (Verdict::Fail, &["mode 0775", "chmod go-w"]),
        (Verdict::Fail, &["mode 0757"]),
        (Verdict::Warn, &["not executable", "chmod +x"]),
        (Verdict::Warn, &["left out"]),
    ];
    assert_eq!(found.len(), expected.len());
    for (finding, (verdict, parts)) in found.iter().zip(expected) {
        assert_finding(finding, verdict, parts);
    }
    facts.hooks[0].standing = Some(Standing {
        is_file: false,
        uid: 0,
        mode: 0o777,
    });
    assert_finding(
        &all(&facts, Check::Hooks)[0],
        Verdict::Fail,
        &["/hooks/pre-sleep.d", "mode 0777"],
    );
    facts.hooks[0].standing = None;
    assert_finding(&only(&facts, Check::Hooks), Verdict::Ok, &["does not exist"]);
}

#[test]
fn h5_the_webhook_is_named_by_its_host_alone() {
    let mut facts = facts();
    let told = |url: &str| {
        Some(Notification {
            before: Duration::from_secs(300),
            method: NotificationMethod::Webhook { url: url.into() },
        })
    };
    facts.notification = told("https://user:pass@hooks.example/T0/secret");
    let found = only(&facts, Check::Notification);
    assert_finding(&found, Verdict::Ok, &["hooks.example is told 5m"]);
    facts.notification = told("http://hooks.example/T0/secret");
    let plain = only(&facts, Check::Notification);
    assert_finding(&plain, Verdict::Warn, &["unencrypted", "https"]);
    for finding in [found, plain] {
        assert!(!format!("{finding:?}").contains("secret") && !finding.what.contains("pass"));
    }
}

#[test]
fn e1_what_programs_lack_is_told() {
    let mut facts = facts();
    facts.kernel = Kernel {
        release: "6.1.0-30-amd64".into(),
        btf: true,
        cgroup2: Ok("/sys/fs/cgroup".into()),
    };
    assert_finding(&only(&facts, Check::Ebpf), Verdict::Ok, &["clsact"]);
    facts.kernel.release = "6.6.0".into();
    assert_finding(&only(&facts, Check::Ebpf), Verdict::Ok, &["by tcx"]);
    facts.kernel.btf = false;
    facts.kernel.cgroup2 = Err("none mounted".into());
    assert_finding(
        &only(&facts, Check::Ebpf),
        Verdict::Warn,
        &["CONFIG_DEBUG_INFO_BTF", "none mounted"],
    );
    facts.probes = ProbeMode::Off;
    assert_finding(&only(&facts, Check::Ebpf), Verdict::Ok, &["switched off"]);
}

#[test]
fn f3_a_state_folder_that_cannot_be_written_fails() {
    let mut facts = facts();
    let read_only = StateFolder::NotWritable(Errno::EROFS.desc().into());
    for (standing, verdict) in [
        (read_only, Verdict::Fail),
        (StateFolder::Missing, Verdict::Warn),
        (StateFolder::NotPermitted, Verdict::Unknown),
    ] {
        facts.state_folder.1 = standing;
        assert_finding(&only(&facts, Check::StateFolder), verdict, &["/var/lib/state"]);
    }
}
