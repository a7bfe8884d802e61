//! How a hook is started: as a child of the agent, or by systemd beside it.
//!
//! The unit of the agent is a sandbox: few capabilities, a read-only file system, no new privileges. Hooks are ordinary scripts of
//! root that could do nothing in there, so under systemd each becomes a transient service of its own, and systemd ends all it forked.
//! Owns nothing but the counter of unit names.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::Hook;

/// Time between TERM and KILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What systemd gives its services, in place of whatever the agent was started with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Longest part of a unit name that comes from the name of a hook, bytes; all of it may have 255.
const LONGEST_NAME: usize = 100;

/// Who starts hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Starter {
    /// The agent: a child in a process group of its own.
    Directly,
    /// systemd, asked by `systemd-run`, which waits and passes on the output.
    Systemd,
}

/// What can be ended: everything of one hook.
#[derive(Debug)]
pub(super) struct Started {
    group: Pid,
    unit: Option<String>,
}

impl Starter {
    /// systemd if the agent is one of its services and root, who may start others.
    pub(super) fn of_this_process() -> Self {
        let is_service = std::env::var_os("INVOCATION_ID").is_some() && Path::new("/run/systemd/system").is_dir();
        let can_ask = Path::new(SYSTEMD_RUN).exists() && nix::unistd::geteuid().is_root();
        if is_service && can_ask {
            Self::Systemd
        } else {
            Self::Directly
        }
    }

    /// The command that runs a hook, and the unit it will be if systemd starts it.
    pub(super) fn command(
        self,
        hook: &Hook,
        timeout: Duration,
        environment: &[(&str, String)],
    ) -> (Command, Option<String>) {
        let (mut command, unit) = match self {
            Self::Directly => {
                let mut command = Command::new(&hook.path);
                command.env_clear().env("PATH", PATH);
                command.envs(environment.iter().map(|(name, value)| (name, value)));
                (command, None)
            }
            Self::Systemd => {
                let unit = unit_name(&hook.name);
                let mut command = Command::new(SYSTEMD_RUN);
                command
                    .args(arguments(&unit, timeout, environment))
                    .arg("--")
                    .arg(&hook.path);
                (command, Some(unit))
            }
        };
        use std::os::unix::process::CommandExt as _;
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        (command, unit)
    }
}

/// Options of systemd-run. The agent ends a hook that is late itself; systemd does in case the agent is gone by then.
fn arguments(unit: &str, timeout: Duration, environment: &[(&str, String)]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "--quiet",
        "--wait",
        "--pipe",
        "--collect",
        "--service-type=exec",
        &format!("--unit={unit}"),
        "--description=VMStation power hook",
    ]
    .map(OsString::from)
    .into();
    let properties = [
        "KillMode=control-group".into(),
        format!("TimeoutStopSec={}", GRACE.as_secs()),
        format!("RuntimeMaxSec={}ms", (timeout + GRACE).as_millis()),
    ];
    for property in properties {
        arguments.extend(["-p".into(), property.into()]);
    }
    for (name, value) in environment {
        arguments.push(format!("--setenv={name}={value}").into());
    }
    arguments
}

/// A name no other unit has: that of the hook with what unit names may not have replaced, the agent's pid and a number.
fn unit_name(hook: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "_.-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = hook.chars().map(allowed).take(LONGEST_NAME).collect();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("vmstation-hook-{name}-{}-{number}.service", std::process::id())
}

impl Started {
    /// What a command of [`Starter::command`] became.
    pub(super) fn new(group: Pid, unit: Option<String>) -> Self {
        Self { group, unit }
    }

    /// Asks all of it to end. systemd sends KILL by itself after [`GRACE`].
    pub(super) fn ask_to_end(&self) {
        match &self.unit {
            None => self.signal(Signal::SIGTERM),
            Some(unit) => systemctl(&["stop", "--no-block", unit]),
        }
    }

    /// Ends all of it.
    pub(super) fn end(&self) {
        if let Some(unit) = &self.unit {
            systemctl(&["kill", "--signal=SIGKILL", unit]);
        }
        self.signal(Signal::SIGKILL);
    }

    /// Whether something of it is left in the process group.
    pub(super) fn is_left(&self) -> bool {
        killpg(self.group, None).is_ok()
    }

    /// The number of a group cannot be given to another as long as somebody is in it; if nobody is, there is nobody to be told.
    fn signal(&self, signal: Signal) {
        let _nobody_left = killpg(self.group, signal);
    }
}

/// Passes an order to systemd. It is not waited for: the end of `systemd-run` shows that it was followed.
fn systemctl(arguments: &[&str]) {
    let ordered = Command::new(SYSTEMCTL)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match ordered {
        // The runtime reaps it; without one, the agent is about to end.
        Ok(mut child) => {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn_blocking(move || child.wait());
            }
        }
        Err(error) => tracing::error!(%error, ?arguments, "cannot run {SYSTEMCTL}: a hook may go on running"),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::{Hook, Starter};

    #[test]
    fn h1_systemd_runs_a_hook_outside_the_sandbox_and_ends_all_it_forked() {
        let hook = Hook {
            name: "01 save;state.sh".into(),
            path: PathBuf::from("/opt/vmstation/power/pre-sleep.d/01 save;state.sh"),
        };
        let environment = [("VMSTATION_EVENT", "pre-sleep now".to_owned())];
        let (command, unit) = Starter::Systemd.command(&hook, Duration::from_millis(1500), &environment);
        let unit = unit.unwrap();
        let own = std::process::id();
        assert!(
            unit.starts_with(&format!("vmstation-hook-01_save_state.sh-{own}-")),
            "{unit}"
        );
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(command.get_program(), "/usr/bin/systemd-run");
        assert_eq!(
            arguments,
            [
                "--quiet",
                "--wait",
                "--pipe",
                "--collect",
                "--service-type=exec",
                &format!("--unit={unit}"),
                "--description=VMStation power hook",
                "-p",
                "KillMode=control-group",
                "-p",
                "TimeoutStopSec=5",
                "-p",
                "RuntimeMaxSec=6500ms",
                "--setenv=VMSTATION_EVENT=pre-sleep now",
                "--",
                "/opt/vmstation/power/pre-sleep.d/01 save;state.sh",
            ]
        );
        let (_, next) = Starter::Systemd.command(&hook, Duration::from_secs(1), &[]);
        assert_ne!(next.unwrap(), unit);
    }
}
