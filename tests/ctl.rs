//! The command line against the real control socket, with a fake driver behind it: what is shown, what arrives, how it exits. Needs no root,
//! but for the one test that is ignored without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getuid},
};
use serde_json::{Value, json};
use vmstation_agent::{
    control::{RefusalCode, Request, Response},
    report::{self, SignalSource, Status, Why},
};

use crate::support::fake_agent::{Agent, binary, ctl, status, why};

/// What several test programs share.
mod support {
    pub(crate) mod fake_agent;
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn documents_are_told_exactly_as_json() {
    let agent = Agent::obliging();
    let told = agent.ctl(&["--output", "json", "status"]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(serde_json::from_slice::<Status>(&told.stdout).unwrap(), status());
    let told = agent.ctl(&["why", "--output=json"]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(serde_json::from_slice::<Why>(&told.stdout).unwrap(), why());
    let told = agent.ctl(&["--output", "json", "reset"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&told.stdout).unwrap(),
        json!({"message": "reset done"})
    );
}

#[test]
fn people_are_told_state_and_blockers_without_colour_in_a_pipe() {
    let agent = Agent::obliging();
    let told = agent.ctl(&["status"]);
    assert!(told.status.success(), "{told:?}");
    let shown = out(&told);
    for part in [
        "worker-01",
        "active for 12 s, kept awake by network",
        "in   5.1 kB/s",
        "0 s of 2 h, then 10 min grace",
    ] {
        assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
    }
    assert!(!shown.contains('\x1b'), "{shown:?}");
    let shown = out(&agent.ctl(&["why"]));
    for part in [
        "since   12 s ago",
        "5.1 kB/s, limit 1.0 kB/s",
        "by      rsync",
        "remedy  less than",
        "\nTo sleep: less than",
    ] {
        assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
    }
}

#[test]
fn every_change_arrives_with_who_asked() {
    let agent = Agent::obliging();
    let hold = |seconds, reason: Option<&str>| Request::Hold {
        seconds,
        reason: reason.map(Into::into),
    };
    let cases: [(&[&str], Request); 7] = [
        (&["enable"], Request::Enable),
        (&["disable"], Request::Disable),
        (&["reset"], Request::Reset),
        (&["release"], Request::Release),
        (&["notify", "test"], Request::NotifyTest),
        (&["hold", "2h"], hold(7200, None)),
        (
            &["hold", "1d 12h", "--reason", "a 'quoted'\n$(reason)"],
            hold(129_600, Some("a 'quoted'\n$(reason)")),
        ),
    ];
    for (arguments, request) in &cases {
        let child = ctl(&agent.socket(), arguments).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let told = child.wait_with_output().unwrap();
        assert!(told.status.success(), "{told:?}");
        assert_eq!(out(&told), format!("{} done\n", request.name()));
        let (_, peer) = agent.seen().last().cloned().unwrap();
        assert_eq!((peer.uid, u32::try_from(peer.pid).unwrap()), (getuid().as_raw(), pid));
    }
    let arrived: Vec<_> = agent.seen().into_iter().map(|(request, _)| request).collect();
    assert_eq!(arrived, cases.map(|(_, request)| request));
}

#[test]
fn wrong_usage_exits_2_and_never_arrives() {
    let agent = Agent::obliging();
    let long = "x".repeat(300);
    let cases: [&[&str]; 8] = [
        &[],
        &["sleep-now"],
        &["hold"],
        &["hold", "0s"],
        &["hold", "31d"],
        &["hold", "two hours"],
        &["hold", "1h", "--reason", &long],
        &["--output", "yaml", "status"],
    ];
    for arguments in cases {
        let told = agent.ctl(arguments);
        assert_eq!(told.status.code(), Some(2), "{arguments:?} {told:?}");
        assert!(
            told.stdout.is_empty() && !told.stderr.is_empty(),
            "{arguments:?} {told:?}"
        );
    }
    assert!(agent.seen().is_empty());
    let told = agent.ctl(&["--output", "json", "hold", "31d"]);
    let error: Value = serde_json::from_slice(&told.stderr).unwrap();
    assert_eq!(error["code"], 2);
    assert!(error["error"].as_str().unwrap().contains("30 days"), "{error}");
}

#[test]
fn help_teaches() {
    let agent = Agent::obliging();
    let told = agent.ctl(&["--help"]);
    assert!(told.status.success());
    for part in ["Examples:", "hold 2h", "Exit status:", "VMSTATION_AUTOSLEEP_SOCKET"] {
        assert!(out(&told).contains(part), "{part:?} is missing in\n{}", out(&told));
    }
}

#[test]
fn refusals_have_their_exit_codes() {
    for (code, exit) in [
        (RefusalCode::NotPermitted, 3),
        (RefusalCode::Busy, 3),
        (RefusalCode::Failed, 1),
        (RefusalCode::Timeout, 6),
        (RefusalCode::Stopping, 4),
    ] {
        let agent = Agent::answering(move |_| {
            Some(Response::Refused {
                code,
                message: "not\x1b[2J today".into(),
            })
        });
        let told = agent.ctl(&["status"]);
        assert_eq!(told.status.code(), Some(exit), "{code:?} {told:?}");
        assert_eq!(err(&told), "error: not\\u{1b}[2J today\n");
        let told = agent.ctl(&["--output", "json", "status"]);
        let error: Value = serde_json::from_slice(&told.stderr).unwrap();
        assert_eq!(error, json!({"error": "not\x1b[2J today", "code": exit}));
        assert!(told.stdout.is_empty());
    }
}

#[test]
fn no_agent_exits_4_and_says_what_to_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [folder.path().join("none"), stale] {
        for arguments in [["status"], ["watch"]] {
            let told = ctl(&socket, &arguments).output().unwrap();
            assert_eq!(told.status.code(), Some(4), "{told:?}");
            assert!(
                err(&told).contains("systemctl status vmstation-autosleep.service"),
                "{told:?}"
            );
        }
    }
}

#[test]
fn the_socket_may_come_from_the_environment() {
    let agent = Agent::obliging();
    let told = Command::new(binary())
        .arg("status")
        .env("VMSTATION_AUTOSLEEP_SOCKET", agent.socket())
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
}

#[test]
fn a_driver_that_does_not_answer_exits_6() {
    let agent = Agent::answering(|_| None);
    let told = agent.ctl(&["status"]);
    assert_eq!(told.status.code(), Some(6), "{told:?}");
    assert!(err(&told).contains("did not answer within"), "{told:?}");
}

#[test]
fn a_server_that_does_not_answer_exits_6() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("silent");
    let _listening = UnixListener::bind(&socket).unwrap();
    let told = ctl(&socket, &["status"]).output().unwrap();
    assert_eq!(told.status.code(), Some(6), "{told:?}");
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

#[test]
fn watch_prints_lines_and_ends_on_interrupt() {
    let agent = Agent::obliging();
    let mut watch = ctl(&agent.socket(), &["watch", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line = lines.next().unwrap().unwrap();
        assert!(
            line.starts_with("active for 12 s, kept awake by network; idle 0 s; cpu 3.1 %; eth0 in 5.1 kB/s"),
            "{line}"
        );
        assert!(!line.contains('\x1b'), "{line:?}");
    }
    interrupt(&watch);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn watch_prints_documents_and_ends_with_the_agent() {
    let mut agent = Agent::obliging();
    let mut watch = ctl(&agent.socket(), &["--output", "json", "watch", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Status>(&line).unwrap(), status());
    }
    agent.stop();
    let told = watch.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(err(&told).contains("the agent has gone away"), "{told:?}");
}

#[test]
fn watch_ends_when_nobody_reads() {
    let agent = Agent::obliging();
    let mut watch = ctl(&agent.socket(), &["watch", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(watch.stdout.take());
    let told = watch.wait_with_output().unwrap();
    assert_eq!((told.status.code(), err(&told).as_str()), (Some(0), ""));
}

#[test]
fn watch_redraws_in_place_and_gives_the_terminal_back() {
    let agent = Agent::obliging();
    let size = nix::pty::Winsize {
        ws_row: 8,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = nix::pty::openpty(&size, None).unwrap();
    let mut watch = ctl(&agent.socket(), &["watch", "--interval", "100ms"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdout(pty.slave)
        .spawn()
        .unwrap();
    let mut terminal = File::from(pty.master);
    let mut shown = String::new();
    let mut part = [0; 4096];
    let mut read = |shown: &mut String| {
        // The end of a pseudo-terminal is an error (EIO).
        let length = terminal.read(&mut part).unwrap_or(0);
        shown.push_str(&String::from_utf8_lossy(&part[..length]));
        length
    };
    while shown.matches("\x1b[H").count() < 3 {
        assert_ne!(read(&mut shown), 0, "{shown:?}");
    }
    interrupt(&watch);
    while read(&mut shown) > 0 {}
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert!(shown.starts_with("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H"), "{shown:?}");
    let (live, left) = shown
        .rsplit_once("\x1b[?7h\x1b[?25h\x1b[?1049l")
        .expect("the terminal is given back");
    assert_eq!(live.matches("\x1b[?1049h").count(), 1);
    for frame in live.split("\x1b[H").skip(1) {
        assert!(frame.matches("\r\n").count() < 8, "higher than the terminal: {frame:?}");
    }
    assert!(left.contains("kept awake"), "{left:?}");
}

/// `config` asks no agent.
fn config(arguments: &[&str], file: &Path) -> Output {
    let mut command = ctl(Path::new("/nonexistent"), &["config"]);
    command.args(arguments).arg(file).output().unwrap()
}

#[test]
fn a_configuration_is_explained_and_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let ini = folder.path().join("autosleep.conf");
    fs::write(&ini, "# our hosts\n[general]\ninactivity_timeout_minutes=30\n").unwrap();
    let told = config(&["check"], &ini);
    assert!(told.status.success(), "{told:?}");
    assert!(
        out(&told).contains("autosleep.conf (INI) is valid\n") && out(&told).contains("30m"),
        "{told:?}"
    );
    let told = config(&["check", "--output", "json"], &ini);
    let checked: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((&checked["format"], &checked["path"]), (&json!("ini"), &json!(ini)));

    let told = config(&["migrate"], &ini);
    assert!(told.status.success(), "{told:?}");
    assert!(out(&told).contains("# our hosts"), "{told:?}");
    let toml = folder.path().join("autosleep.toml");
    fs::write(&toml, &told.stdout).unwrap();
    let told = config(&["check"], &toml);
    assert!(told.status.success(), "{told:?}");
    assert!(
        out(&told).contains("autosleep.toml (TOML) is valid\n") && out(&told).contains("30m"),
        "{told:?}"
    );
    assert_eq!(config(&["migrate"], &toml).status.code(), Some(2));
}

#[test]
fn all_that_is_wrong_with_a_configuration_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let ini = folder.path().join("autosleep.conf");
    fs::write(
        &ini,
        "[general]\ninactivity_timeout_minute=30\ngrace_period_minutes=soon\n",
    )
    .unwrap();
    for verb in ["check", "migrate"] {
        let told = config(&[verb], &ini);
        assert_eq!(told.status.code(), Some(78), "{told:?}");
        assert!(told.stdout.is_empty());
        for part in [
            "autosleep.conf:2:1: error: ",
            "autosleep.conf:3:22: error: ",
            "inactivity_timeout_minutes",
        ] {
            assert!(err(&told).contains(part), "{part:?} is missing in\n{}", err(&told));
        }
        let told = config(&[verb, "--output=json"], &ini);
        let error: Value = serde_json::from_slice(&told.stderr).unwrap();
        assert_eq!(
            (&error["code"], error["complaints"].as_array().unwrap().len()),
            (&json!(78), 2),
            "{error}"
        );
        assert_eq!(error["complaints"][0]["line"], 2);
    }
    let told = config(&["check"], &folder.path().join("none.conf"));
    assert_eq!(told.status.code(), Some(78), "{told:?}");
    assert!(err(&told).contains("No such file"), "{told:?}");
}

#[test]
fn the_schema_is_one() {
    let told = ctl(Path::new("/nonexistent"), &["config", "schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert!(schema["$schema"].as_str().unwrap().contains("2020-12"), "{schema}");
    assert!(schema["properties"]["general"].is_object(), "{schema}");
}

/// A host without agent or bus, whose `/sys` and state are in a folder: no port, only suspend to idle.
struct PoorHost(tempfile::TempDir);

impl PoorHost {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for path in ["sys/class/net", "sys/power", "state"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("sys/power/state"), "freeze mem\n").unwrap();
        fs::write(folder.path().join("sys/power/mem_sleep"), "[s2idle]\n").unwrap();
        fs::write(
            folder.path().join("autosleep.toml"),
            "[general]\ngrace_period = \"1m\"\n",
        )
        .unwrap();
        Self(folder)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn doctor(&self, socket: &Path, arguments: &[&str]) -> Output {
        let bus = format!("unix:path={}", self.path("bus").display());
        let mut command = ctl(socket, &["doctor"]);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus).args(arguments);
        command.arg("--config").arg(self.path("autosleep.toml"));
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--sys").arg(self.path("sys")).output().unwrap()
    }

    /// The findings of these checks, each as verdict and what it says.
    fn found(&self, socket: &Path, check: &str) -> Vec<(String, String)> {
        let told = self.doctor(socket, &["--output", "json"]);
        let findings: Vec<Value> = serde_json::from_slice(&told.stdout).unwrap();
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let of_it = findings.iter().filter(|finding| finding["check"] == check);
        of_it
            .map(|finding| (text(finding, "verdict"), text(finding, "what")))
            .collect()
    }
}

#[test]
fn e7_s8_s10_doctor_needs_no_agent_and_says_why_the_host_does_not_sleep() {
    let host = PoorHost::new();
    let nobody = Path::new("/nonexistent");
    for arguments in [&[][..], &["--arm"]] {
        let told = host.doctor(nobody, arguments);
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        assert!(err(&told).contains("checks fail"), "{told:?}");
        let lines: Vec<_> = out(&told).lines().map(str::to_owned).collect();
        for [verdict, check, part] in [
            ["ok", "configuration", "autosleep.toml (TOML) is valid"],
            ["fail", "agent", "cannot reach the agent at /nonexistent"],
            ["fail", "sleep_states", "allow_s2idle = true"],
            ["fail", "wake_on_lan", "counts as active and never sleeps"],
            ["ok", "rtc", "no alarm"],
            ["fail", "logind", "no answer on the system bus"],
            ["ok", "notification", "nobody is told"],
            ["ok", "state_folder", "is writable"],
            [
                "fail",
                "woken_by",
                "nobody can wake this host, so it will not sleep. Fix: ",
            ],
        ] {
            let start = format!("{verdict:8}{check} ");
            let is_it = |line: &&String| line.starts_with(&start) && line.contains(part);
            assert_eq!(lines.iter().filter(is_it).count(), 1, "{start}.. {part} in {lines:#?}");
        }
    }
}

#[test]
fn f5_doctor_goes_on_after_a_wrong_configuration() {
    let host = PoorHost::new();
    fs::write(host.path("autosleep.toml"), "[general]\nenabeld = true\n").unwrap();
    let [(verdict, what)] = host
        .found(Path::new("/nonexistent"), "configuration")
        .try_into()
        .unwrap();
    assert_eq!(verdict, "fail");
    assert!(what.contains("enabeld") && what.contains(":2:"), "{what}");
    assert_eq!(host.found(Path::new("/nonexistent"), "woken_by").len(), 1);
}

#[test]
fn e1_doctor_names_what_the_agent_cannot_read() {
    let host = PoorHost::new();
    let agent = Agent::answering(|_| {
        let mut told = status();
        told.signals = vec![report::Signal {
            name: "pods".into(),
            source: SignalSource::Unreadable,
            detail: Some("no kubelet".into()),
        }];
        Some(Response::Status(Box::new(told)))
    });
    let [(verdict, what)] = host.found(&agent.socket(), "signals").try_into().unwrap();
    assert_eq!(verdict, "fail");
    assert!(what.contains("pods") && what.contains("no kubelet"), "{what}");
    let [(verdict, what)] = host.found(&agent.socket(), "agent").try_into().unwrap();
    assert_eq!(
        (verdict.as_str(), what.as_str()),
        ("ok", "vmstation-autosleep 0.1.0 (pid 812) answers")
    );
}

#[test]
fn s7_doctor_does_not_wait_for_ever_for_a_silent_bus() {
    let host = PoorHost::new();
    let _bus = UnixListener::bind(host.path("bus")).unwrap();
    let [(verdict, what)] = host.found(Path::new("/nonexistent"), "logind").try_into().unwrap();
    assert_eq!(verdict, "fail");
    assert!(what.contains("silence for 5 s"), "{what}");
}
