//! `vmstation-autosleep`, the node agent: puts the parts together and runs the driver.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use tokio::sync::mpsc;
use vmstation_agent::{
    config::{LoadError, Loaded, Policy},
    control::{BindError, ControlServer, DEFAULT_SOCKET},
    coordinator::{Coordinator, Pace},
    driver::{Driver, Parts},
    journal::Journal,
    lock::{InstanceLock, LockError},
    power_log,
    state_file::{DEFAULT_DIR, StateFile},
};

/// Another agent runs (`EX_TEMPFAIL` of sysexits.h).
const EXIT_LOCKED: u8 = 75;
/// The configuration is wrong (`EX_CONFIG`).
const EXIT_CONFIGURATION: u8 = 78;
/// Requests that wait for the driver; the control server bounds its clients itself.
const CALLS_WAITING: usize = 32;

/// Watches this host and decides when it may sleep.
///
/// Counts network bytes, SSH sessions and CPU use with eBPF programs, or from /proc and /sys where they cannot run. When the host has been
/// quiet for long enough, it announces a sleep, runs the hooks, looks once more and suspends the host through logind. Talk to it with
/// `vmstation-autosleep-ctl`.
#[derive(Debug, Parser)]
#[command(
    name = "vmstation-autosleep",
    version,
    after_help = "Examples:\n  \
        vmstation-autosleep --dry-run                     watch with the guide's settings, never suspend\n  \
        vmstation-autosleep --config ./autosleep.conf --state-dir /tmp/state --socket /tmp/autosleep.sock --dry-run\n\n\
        Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT stop.\n\
        Exit codes: 0 stopped, 1 failed, 2 usage, 75 another agent runs, 78 configuration."
)]
struct Arguments {
    /// Configuration file, INI (.conf) or TOML [default: autosleep.toml or autosleep.conf in /etc/vmstation/autosleep]
    #[arg(long, value_name = "FILE", env = "VMSTATION_AUTOSLEEP_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the state file; made if it is missing
    #[arg(long, value_name = "DIR", env = "VMSTATION_AUTOSLEEP_STATE_DIR", default_value = DEFAULT_DIR)]
    state_dir: PathBuf,
    /// Control socket
    #[arg(long, value_name = "PATH", env = "VMSTATION_AUTOSLEEP_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Say what would be done instead of doing it: nothing is armed, told, run or suspended
    #[arg(long, env = "VMSTATION_AUTOSLEEP_DRY_RUN", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0,
          default_missing_value = "true", default_value = "false", action = clap::ArgAction::SetTrue)]
    dry_run: bool,
    /// Count this interface; may be given several times [default: those of the configuration, else every physical one]
    #[arg(
        long,
        value_name = "IF",
        env = "VMSTATION_AUTOSLEEP_INTERFACE",
        value_delimiter = ','
    )]
    interface: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Err(error) = run(arguments) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vmstation-autosleep: {error:#}");
    ExitCode::from(exit_code(&error))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match (
        error.downcast_ref::<LockError>(),
        error.downcast_ref::<BindError>(),
        error.downcast_ref::<LoadError>(),
    ) {
        (Some(LockError::Held { .. }), _, _) | (_, Some(BindError::InUse { .. }), _) => EXIT_LOCKED,
        (_, _, Some(_)) => EXIT_CONFIGURATION,
        _ => 1,
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let loaded = load(&arguments)?;
    power_log::init(&loaded.policy.logging)?;
    let _lock = InstanceLock::acquire(&arguments.state_dir)?;
    let state = StateFile::open(&arguments.state_dir)
        .map_err(|error| format!("cannot use the state folder {}: {error}", arguments.state_dir.display()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;

    let ended = runtime.block_on(async {
        let (sender, calls) = mpsc::channel(CALLS_WAITING);
        let control = ControlServer::bind(&arguments.socket)?;
        let warnings = loaded.notes;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let node = nix::unistd::gethostname()
            .context("cannot read the host name")?
            .to_string_lossy()
            .into_owned();
        let wake_server = loaded.policy.wake_server.as_ref();
        let coordinator = Coordinator::new(wake_server, &node, Pace::default());
        let parts = Parts {
            policy: loaded.policy,
            node,
            dry_run: arguments.dry_run,
            journal: Journal::new(&arguments.state_dir),
            coordinator,
            warnings,
            reload: Box::new(move || load(&arguments).map_err(|error| error.to_string())),
        };
        let driver = Driver::new(parts, calls, state)?;
        let control = tokio::spawn(control.serve(sender));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "watching");
        // Without a service manager there is nobody to tell.
        let _untold = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        driver.run().await;
        let _untold = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // Removes the socket.
        control.abort();
        let _aborted = control.await;
        tracing::info!("stopped");
        Ok(())
    });
    // A name server that does not answer holds a thread that nobody waits for any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn load(arguments: &Arguments) -> Result<Loaded, LoadError> {
    let mut loaded = Policy::load(arguments.config.as_deref(), &|name| std::env::var(name).ok())?;
    if !arguments.interface.is_empty() {
        loaded.policy.detection.interfaces.clone_from(&arguments.interface);
    }
    Ok(loaded)
}
