//! `cargo xtask run`: the agent on this machine, in dry-run, with the live view.
//!
//! Owns the agent it started, through a supervising shell: however xtask ends, killed included, the shell notices and ends the agent.
//! Never lets the agent suspend (`--dry-run` is not optional), never touches an installed agent's files.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, mkdtemp},
};
use signal_hook::{consts, flag};

use crate::{
    build_ebpf,
    privilege::Privilege,
    step::{self, Stopwatch},
    supervise,
    workspace::Workspace,
};

/// How long the agent may take until its socket is there.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// Longest path of a Unix socket that is used as it is; the kernel's limit is 107 (unix(7)).
const SOCKET_PATH_LIMIT: usize = 100;

/// Runs the agent on this machine and shows, live, whether it is idle and why.
///
/// Builds the eBPF programs and the agent, starts it with --dry-run, the thresholds of the guide (CPU 10 %, network 1024 B/s, SSH
/// sessions) and short times, and opens the live view; when standard output is no terminal, plain lines. The machine is never
/// suspended.
///
/// Everything is built without privileges. Loading eBPF programs needs root: sudo is asked for the agent alone. Without it the agent
/// runs all the same, reads /proc and /sys instead, and says so. Ctrl-C ends both; nothing keeps running. Configuration, state and logs
/// of the run stay in target/run for reading.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Quiet time before the grace period
    #[arg(long, default_value = "60s")]
    timeout: String,
    /// Time between announcing the sleep and the (pretended) suspend
    #[arg(long, default_value = "20s")]
    grace: String,
    /// Interface to watch instead of the physical ones; may be repeated
    #[arg(long)]
    interface: Vec<String>,
    /// Further arguments of vmstation-autosleep
    #[arg(last = true)]
    agent: Vec<String>,
}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let built = build_ebpf::build(workspace)?;
    eprintln!("eBPF toolchain: {}", built.toolchain);
    let mut build = workspace.cargo();
    build.args(["build", "--package", "vmstation-agent", "--bins"]);
    step::run(workspace, "build-agent", "building the agent", &mut build)?;

    let stop = Stop::listen()?;
    let place = Place::prepare(workspace, arguments)?;
    let privilege = privilege();
    let agent = Agent::start(workspace, &place, privilege, arguments)?;
    let outcome = watch(workspace, &place, privilege, agent, &stop);
    place.clean();
    outcome
}

/// Shows the live view until it ends or a signal comes, then ends the agent.
fn watch(
    workspace: &Workspace,
    place: &Place,
    privilege: Privilege,
    mut agent: Agent,
    stop: &Stop,
) -> Result<ExitCode> {
    if let Some(status) = agent.wait_for_socket(place, stop)? {
        bail!(
            "the agent ended at its start, {status}:\n{}\n(full log: {})",
            step::tail(&place.log),
            place.log.display()
        );
    }
    if stop.is_asked() {
        return agent.end(place);
    }
    share_socket(place, privilege)?;

    let mut view = Command::new(workspace.target.join("debug/vmstation-autosleep-ctl"));
    view.arg("--socket")
        .arg(&place.socket)
        .arg("watch")
        .stdin(Stdio::null());
    let mut view = view.spawn().context("start vmstation-autosleep-ctl watch")?;
    let mut ended_alone = None;
    let seen = loop {
        if let Some(status) = view.try_wait().context("wait for the live view")? {
            break status;
        }
        if ended_alone.is_none() && !stop.is_asked() {
            ended_alone = agent.ended()?;
        }
        if stop.is_asked() || ended_alone.is_some() {
            // Ctrl-C reached the view as well; a signal to xtask alone did not.
            thread::sleep(2 * POLL);
            let view_id = i32::try_from(view.id()).context("the process id of the live view")?;
            // An error means that it has ended.
            let _ = kill(Pid::from_raw(view_id), Signal::SIGTERM);
            break view.wait().context("wait for the live view")?;
        }
        thread::sleep(POLL);
    };
    // A Ctrl-C may reach the agent and the view before it reaches this process.
    thread::sleep(2 * POLL);
    let asked = stop.is_asked();
    let code = agent.end(place)?;
    if ended_alone.is_some() && !asked {
        bail!(
            "the agent ended by itself:\n{}\n(full log: {})",
            step::tail(&place.log),
            place.log.display()
        );
    }
    if !seen.success() && !asked {
        bail!("the live view ended with {seen}");
    }
    Ok(code)
}

/// Signals that mean: stop.
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [consts::SIGINT, consts::SIGTERM, consts::SIGHUP] {
            flag::register(signal, Arc::clone(&asked)).context("listen for signals")?;
        }
        Ok(Self(asked))
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Files of the run.
struct Place {
    config: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    /// Made for the socket alone, if its path would be too long otherwise.
    socket_folder: Option<PathBuf>,
}

impl Place {
    fn prepare(workspace: &Workspace, arguments: &Arguments) -> Result<Self> {
        let folder = workspace.target.join("run");
        let (state, logs) = (folder.join("state"), folder.join("log"));
        // A hold or a `disable` of an earlier run would hide what this one is to show.
        if state.exists() {
            fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
        }
        // Made by this user even if root writes into them: this user can then remove them.
        for path in [&state, &logs] {
            fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        let config = folder.join("autosleep.toml");
        fs::write(&config, configuration(arguments, &logs)?).with_context(|| format!("write {}", config.display()))?;
        let mut socket = folder.join("agent.sock");
        let mut socket_folder = None;
        if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            let made =
                mkdtemp(&env::temp_dir().join("vmstation-run-XXXXXX")).context("make a folder for the socket")?;
            socket = made.join("agent.sock");
            socket_folder = Some(made);
        }
        Ok(Self {
            config,
            state,
            socket,
            log: folder.join("agent.log"),
            socket_folder,
        })
    }

    fn clean(&self) {
        if let Some(folder) = &self.socket_folder {
            // The agent removes its socket; what cannot be removed is an empty folder in the folder for temporary files.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The guide's thresholds with times short enough to watch. Strings are written as TOML writes them; the agent checks them.
fn configuration(arguments: &Arguments, logs: &Path) -> Result<String> {
    let logs = logs.to_str().context("the target folder's path is not UTF-8")?;
    let mut text = String::from("# Written by `cargo xtask run`.\n[general]\nenabled = true\n");
    writeln!(text, "inactivity_timeout = {}", quoted(&arguments.timeout))?;
    writeln!(text, "grace_period = {}", quoted(&arguments.grace))?;
    text.push_str(
        "check_interval = \"2s\"\nmin_awake = \"10s\"\n\n[activity_detection]\ncpu_threshold_percent = 10\nnetwork_threshold_bytes = 1024\n",
    );
    text.push_str("check_ssh_sessions = true\n");
    writeln!(text, "\n[logging]\nlog_dir = {}", quoted(logs))?;
    Ok(text)
}

/// A basic string of TOML (toml.io, "String").
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(control))),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

/// Root if it can be had; says so if not.
fn privilege() -> Privilege {
    let privilege = Privilege::find();
    match privilege.obtain("to start the agent, which loads eBPF programs") {
        Ok(()) => privilege,
        Err(why) => {
            eprintln!("running without eBPF programs, on /proc and /sys: {why}");
            Privilege::None
        }
    }
}

/// Lets the user who called reach a socket that sudo's agent made for root. The agent still lets only root change anything.
fn share_socket(place: &Place, privilege: Privilege) -> Result<()> {
    match privilege {
        Privilege::Root | Privilege::None => Ok(()),
        Privilege::Sudo | Privilege::SudoAsks => {
            let mut command = privilege.command("chown", &[]);
            command.arg(Uid::current().to_string()).arg(&place.socket);
            let output = step::output(&mut command)?;
            if !output.status.success() {
                bail!(
                    "cannot share the agent's socket: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(())
        }
    }
}

/// The agent and the shell that supervises it.
struct Agent {
    supervisor: Child,
}

impl Agent {
    fn start(workspace: &Workspace, place: &Place, privilege: Privilege, arguments: &Arguments) -> Result<Self> {
        let log = File::create(&place.log).with_context(|| format!("write {}", place.log.display()))?;
        let mut command = supervise::command(privilege, &[]);
        command.arg(workspace.target.join("debug/vmstation-autosleep"));
        command.arg("--dry-run").arg("--config").arg(&place.config);
        command
            .arg("--state-dir")
            .arg(&place.state)
            .arg("--socket")
            .arg(&place.socket);
        for interface in &arguments.interface {
            command.args(["--interface", interface]);
        }
        command.args(arguments.agent.iter().map(OsStr::new));
        let supervisor = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("share the log file")?)
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        Ok(Self { supervisor })
    }

    /// Waits until the agent can be asked. `Some` if it ended instead.
    fn wait_for_socket(&mut self, place: &Place, stop: &Stop) -> Result<Option<ExitStatus>> {
        let since = Stopwatch::start();
        while !place.socket.exists() && !stop.is_asked() {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if since.elapsed() > START_LIMIT {
                bail!(
                    "the agent made no socket within {} s (log: {})",
                    START_LIMIT.as_secs(),
                    place.log.display()
                );
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.supervisor.try_wait().context("wait for the agent")
    }

    /// Ends the agent, by force if it must be, and says how that went.
    fn end(mut self, place: &Place) -> Result<ExitCode> {
        for signal in ["TERM", "KILL"] {
            self.tell(signal);
            let since = Stopwatch::start();
            while since.elapsed() < STOP_LIMIT {
                if self.ended()?.is_some() {
                    let killed = signal == "KILL";
                    eprintln!(
                        "agent ended{}; its log: {}",
                        if killed { ", by force" } else { "" },
                        place.log.display()
                    );
                    return Ok(if killed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
                }
                thread::sleep(POLL);
            }
        }
        bail!("the agent does not end (log: {})", place.log.display())
    }

    /// Through the supervisor: an ordinary user may not send signals to root's agent.
    fn tell(&mut self, signal: &str) {
        if let Some(input) = &mut self.supervisor.stdin {
            // An error means that the supervisor has ended, and with it the agent.
            let _ = writeln!(input, "{signal}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_toml_wants_them() {
        assert_eq!(quoted("60s"), r#""60s""#);
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000A""#);
    }

    #[test]
    fn the_configuration_has_the_times_asked_for_and_the_guides_thresholds() {
        let arguments = Arguments {
            timeout: "5m".into(),
            grace: "1s".into(),
            interface: vec![],
            agent: vec![],
        };
        let text = configuration(&arguments, Path::new("/t/run/log")).unwrap();
        for line in [
            "inactivity_timeout = \"5m\"",
            "grace_period = \"1s\"",
            "cpu_threshold_percent = 10",
            "network_threshold_bytes = 1024",
            "log_dir = \"/t/run/log\"",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
