//! A real agent in a folder of its own, always in dry-run, and what its control program says of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::wait::{eventually, wait_until};

/// Longest wait for the agent to end after a signal.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest wait for it to answer after its start: an emulated machine that starts others beside it reads the program from a cold disk.
const START: Duration = Duration::from_secs(120);

/// A folder for one agent after another: configuration, state, socket, logs.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

/// A running agent. Dropping it ends it.
pub(crate) struct Agent {
    child: Child,
    home: PathBuf,
}

impl Home {
    /// With this TOML configuration; logs go to the folder.
    pub(crate) fn new(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Self { folder };
        home.configure(toml);
        home
    }

    /// Replaces the configuration.
    pub(crate) fn configure(&self, toml: &str) {
        let logs = self.path().join("log");
        fs::write(
            self.path().join("autosleep.toml"),
            format!("{toml}\n[logging]\nlog_dir = {logs:?}\n"),
        )
        .unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The command that starts an agent here.
    pub(crate) fn command(&self) -> Command {
        self.command_with(&self.path().join("state"), &self.path().join("sock"))
    }

    /// The command that starts an agent with this configuration on another state folder or socket.
    pub(crate) fn command_with(&self, state_dir: &Path, socket: &Path) -> Command {
        let mut command = Command::new(binary("vmstation-autosleep"));
        command
            .arg("--dry-run")
            .args(["--config".as_ref(), self.path().join("autosleep.toml").as_os_str()])
            .args(["--state-dir".as_ref(), state_dir.as_os_str()])
            .args(["--socket".as_ref(), socket.as_os_str()])
            .stdin(Stdio::null());
        command
    }

    /// Starts an agent and waits until it answers.
    pub(crate) fn start(&self) -> Agent {
        self.start_as(self.command())
    }

    /// Starts an agent by a changed command and waits until it answers.
    pub(crate) fn start_as(&self, mut command: Command) -> Agent {
        let log = fs::File::create(self.path().join("stderr")).unwrap();
        let child = command
            .stderr(log)
            .spawn()
            .expect("build the binaries of the workspace first: `cargo xtask test` does");
        let mut agent = Agent {
            child,
            home: self.path().into(),
        };
        let answers = wait_until(START, || {
            assert!(
                agent.child.try_wait().unwrap().is_none(),
                "the agent ended: {}",
                agent.log()
            );
            agent.ctl(&["status"]).status.success()
        });
        assert!(answers, "the agent does not answer: {}", agent.log());
        agent
    }
}

impl Agent {
    /// What the control program says to `arguments`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(binary("vmstation-autosleep-ctl"))
            .args(["--socket".as_ref(), self.home.join("sock").as_os_str()])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// A control command that must work.
    pub(crate) fn order(&self, arguments: &[&str]) {
        let output = self.ctl(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The document of a control command. An agent that answers too late says so: on a CPU that is emulated and shared it may.
    pub(crate) fn json(&self, command: &str) -> Value {
        const TOO_LATE: i32 = 6;
        let ask = || self.ctl(&["--output", "json", command]);
        let output = (0..2)
            .map(|_| ask())
            .find(|output| output.status.code() != Some(TOO_LATE))
            .unwrap_or_else(ask);
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn status(&self) -> Value {
        self.json("status")
    }

    /// Waits until the status is as wanted, and returns it; fails with the last one.
    pub(crate) fn status_when(&self, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, within, || {
            let status = self.status();
            if wanted(&status) {
                Ok(status)
            } else {
                Err(format!("{status:#}\n{}", self.log()))
            }
        })
    }

    /// What it wrote to stderr.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.join("stderr")).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Ends it by a signal and waits for that.
    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let mut ended = None;
        wait_until(DEADLINE, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap_or_else(|| panic!("the agent does not end on {signal}: {}", self.log()))
    }
}

impl Drop for Agent {
    /// Politely first: on a kernel without tcx, an agent that is killed leaves its filters to the next one.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            wait_until(DEADLINE, || !matches!(self.child.try_wait(), Ok(None)));
        }
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Names in `blockers` of a document.
pub(crate) fn blockers(document: &Value) -> Vec<&str> {
    document["blockers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|blocker| blocker["signal"].as_str().unwrap())
        .collect()
}

/// A binary of the workspace: it lies beside the folder of the test's own executable, or beside that itself.
pub(crate) fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!(
                "{name} is not beside {}: build the workspace's binaries first",
                own.display()
            )
        })
}
