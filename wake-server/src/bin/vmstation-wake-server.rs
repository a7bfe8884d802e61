//! `vmstation-wake-server`: puts the parts together and serves.

use std::{
    env,
    io::{self, Write as _},
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use vmstation_wake_server::{
    api::{self, Api},
    auth::{KeyError, Keys},
    cluster::{
        Cluster,
        connect::{self, ConnectError, Connection},
        election::{self, Election, Leadership},
    },
    config::{ConfigError, Overrides, Settings},
    descriptors, doctor,
    forward::Forward,
    hub::{Hub, Kubernetes, Parts},
    lan::Lan,
    metrics::Metrics,
    notify::Notifier,
    registry::{Registry, RegistryErrors},
    server::{self, Limits, Reach, Tls},
    store::Store,
};

/// The configuration is wrong (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIGURATION: u8 = 78;
/// How long requests that are under way may take when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Wakes nodes, proves that they are awake, and says which may sleep.
///
/// Serves the HTTP API, the status page and the agents' reports on one port. Reads /etc/vmstation/wake-server.toml if it is there; without a
/// token of operators it listens on loopback alone.
#[derive(Debug, Parser)]
#[command(
    name = "vmstation-wake-server",
    version,
    after_help = "Examples:\n  \
        vmstation-wake-server --registry ./nodes.toml --state-dir ./state        on loopback, port 9876\n  \
        vmstation-wake-server --listen 0.0.0.0:9876 --token-file /etc/vmstation/wake-token\n  \
        vmstation-wake-server doctor                     does it get at the cluster, and what to fix\n\n\
        Signals: SIGHUP reads the registry, certificate and key again, SIGTERM and SIGINT stop.\n\
        Exit codes: 0 stopped or all is well, 1 failed, 2 usage, 4 API server unreachable, 5 rights or credentials, 78 configuration."
)]
struct Arguments {
    /// Configuration file [default: /etc/vmstation/wake-server.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "VMSTATION_WAKE_SERVER_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR", env = "VMSTATION_WAKE_SERVER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Registry of nodes: TOML, wol-registry.conf or an Ansible inventory; may be given several times
    #[arg(long, value_name = "FILE")]
    registry: Vec<PathBuf>,
    /// File with the operators' token
    #[arg(long, value_name = "FILE", env = "VMSTATION_WAKE_SERVER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Folder of what outlives a restart
    #[arg(long, value_name = "DIR", env = "VMSTATION_WAKE_SERVER_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks whether the cluster can be used, says what to fix, and changes nothing
    Doctor {
        /// For people or machines
        #[arg(long, value_enum, default_value_t)]
        output: doctor::Output,
    },
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let ended = match arguments.command.take() {
        Some(Command::Doctor { output }) => examine(arguments, output),
        None => run(arguments).map(|()| ExitCode::SUCCESS),
    };
    let error = match ended {
        Ok(code) => return code,
        Err(error) => error,
    };
    eprintln!("vmstation-wake-server: {error:#}");
    let is_configuration = error.is::<ConfigError>()
        || error.is::<RegistryErrors>()
        || error.is::<KeyError>()
        || error.is::<ConnectError>();
    if is_configuration {
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    ExitCode::FAILURE
}

/// `doctor`
fn examine(arguments: Arguments, output: doctor::Output) -> anyhow::Result<ExitCode> {
    let config = arguments.config.clone();
    let findings = runtime()?.block_on(doctor::run(config.as_deref(), arguments.overrides(credentials())));
    let text = doctor::shown(findings.found(), output)?;
    writeln!(io::stdout(), "{text}").context("cannot write")?;
    Ok(ExitCode::from(findings.exit().code()))
}

impl Arguments {
    fn overrides(self, credentials_dir: Option<PathBuf>) -> Overrides {
        Overrides {
            listen: self.listen,
            registry: self.registry,
            token_file: self.token_file,
            state_dir: self.state_dir,
            credentials_dir,
        }
    }
}

fn credentials() -> Option<PathBuf> {
    env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("cannot start the runtime")
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let credentials = credentials();
    let config = arguments.config.clone();
    let settings = Settings::load(config.as_deref(), arguments.overrides(credentials.clone()))?;
    let registry = Registry::load(&settings.registry)?;
    let keys = Keys::load(
        settings.token_file.as_deref(),
        settings.secret_file.as_deref(),
        credentials.as_deref(),
    )?;
    log()?;
    for note in registry.notes().iter().chain(registry.conflicts()) {
        tracing::warn!("{note}");
    }
    descriptors::raise(settings.limits.connections);
    let runtime = runtime()?;
    let served = runtime.block_on(serve(settings, registry, keys));
    // A route look-up that does not answer holds nobody up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(settings: Settings, registry: Registry, keys: Keys) -> anyhow::Result<()> {
    let reach = if keys.knows_operators() {
        Reach::Networks
    } else {
        Reach::Loopback
    };
    let listeners = server::listen(settings.listen, reach)?;
    let tls = settings.tls.as_ref();
    let tls = tls
        .map(|tls| Tls::load(&tls.certificate, &tls.key).map(Arc::new))
        .transpose()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let metrics = Arc::new(Metrics::new());
    let (kubernetes, election) = election(&settings).await?.unzip();
    let parts = Parts {
        registry_files: settings.registry.clone(),
        registry,
        lan: Arc::new(Lan::new(&settings.wake.udp_ports)),
        wake: settings.wake.clone(),
        sleep: settings.sleep.clone(),
        kubernetes,
        store: Arc::new(Store::new(&settings.state_dir)),
        metrics: Arc::clone(&metrics),
        notifier: Notifier::new(settings.notify.clone()),
    };
    let hub = tokio::task::spawn_blocking(move || Hub::new(parts)).await?;
    let silence = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.watch_silence().await }
    });
    let cluster = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.keep_cluster().await }
    });
    let reloads = tokio::spawn(reload(Arc::clone(&hub), tls.clone(), signal(SignalKind::hangup())?));
    let api = Arc::new(Api {
        hub,
        keys,
        metrics,
        poll_timeout: settings.limits.poll_timeout,
        allow_from: settings.allow_from.clone(),
        status_from: settings.status_from.clone(),
        host_names: host_names(&settings),
    });
    let (app, counting) = match &election {
        Some((election, forward)) => {
            let counting = tokio::spawn(count(election.leadership(), Arc::clone(&api.metrics)));
            (api::router_of_one(api, forward), Some(counting))
        }
        None => (api::router(api), None),
    };
    for listener in &listeners {
        tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), version = env!("CARGO_PKG_VERSION"), "serving");
    }
    let limits = Limits {
        connections: settings.limits.connections,
        connections_per_client: settings.limits.connections_per_client,
        header_timeout: settings.limits.header_timeout,
        body_timeout: settings.limits.body_timeout,
        idle_timeout: settings.limits.idle_timeout,
        body_bytes: settings.limits.body_bytes,
        requests_per_minute: NonZeroU32::new(settings.limits.requests_per_minute).unwrap_or(NonZeroU32::MAX),
        allow_from: allow_from(&settings),
        stop_within: STOP_WITHIN,
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server::serve(listeners, tls, app, limits, stop).await;
    silence.abort();
    cluster.abort();
    reloads.abort();
    if let Some((election, _)) = election {
        election.resign().await;
    }
    if let Some(counting) = counting {
        counting.abort();
    }
    tracing::info!("stopped");
    Ok(())
}

/// Stands for election if there is a cluster. Without one this server is alone, and acts. The API server is asked later: this one starts
/// while that one is down.
async fn election(settings: &Settings) -> anyhow::Result<Option<(Kubernetes, (Election, Arc<Forward>))>> {
    let kubernetes = &settings.kubernetes;
    if !connect::is_configured(kubernetes) {
        return Ok(None);
    }
    let connection = Arc::new(Connection::new(kubernetes).await?);
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let identity = election::identity(host.as_deref().unwrap_or("wake-server"));
    let election = Election::start(Arc::clone(&connection), kubernetes, identity.clone());
    let forward = Forward::new(&identity, election.leadership(), kubernetes, settings.into()).await;
    let forward = forward
        .map_err(anyhow::Error::msg)
        .context("cannot ask other wake servers")?;
    let cluster = Kubernetes::new(Cluster::new(connection, identity), election.leadership());
    Ok(Some((cluster, (election, Arc::new(forward)))))
}

async fn count(mut leadership: watch::Receiver<Leadership>, metrics: Arc<Metrics>) {
    loop {
        metrics.observe_leadership(&leadership.borrow_and_update());
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Who may connect at all: whoever may do anything.
fn allow_from(settings: &Settings) -> Option<Vec<ipnet::IpNet>> {
    let allowed = settings.allow_from.as_ref()?;
    let status = settings.status_from.iter().flatten();
    Some(allowed.iter().chain(status).copied().collect())
}

/// Names that browsers may reach this server by: those that are configured, and the one this host has itself.
fn host_names(settings: &Settings) -> Vec<String> {
    let mut names = settings.host_names.clone();
    match nix::unistd::gethostname() {
        Ok(name) => names.extend(name.into_string().ok()),
        Err(error) => tracing::warn!(%error, "cannot read the name of this host"),
    }
    names
}

/// SIGHUP: the registry again, then certificate and key.
async fn reload(hub: Arc<Hub>, tls: Option<Arc<Tls>>, mut hangup: tokio::signal::unix::Signal) {
    while hangup.recv().await.is_some() {
        server::tell_service_manager(&[NotifyState::Reloading]);
        let reloaded = {
            let hub = Arc::clone(&hub);
            tokio::task::spawn_blocking(move || hub.reload()).await
        };
        match reloaded {
            Ok(Ok(())) => tracing::info!("registry read again"),
            Ok(Err(errors)) => {
                tracing::error!("the registry was not read again, the one before stays in force: {errors}");
            }
            Err(error) => tracing::error!(%error, "the registry was not read again"),
        }
        if let Some(tls) = &tls {
            let tls = Arc::clone(tls);
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(())) => tracing::info!("certificate and key read again"),
                Ok(Err(error)) => {
                    tracing::error!(%error, "certificate and key were not read again, those before stay in force");
                }
                Err(error) => tracing::error!(%error, "certificate and key were not read again"),
            }
        }
        server::tell_service_manager(&[NotifyState::Ready]);
    }
}

/// To the journal under systemd, to standard error elsewhere. `RUST_LOG` says what.
fn log() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if env::var_os("JOURNAL_STREAM").is_some() {
        registry
            .with(tracing_journald::layer().context("cannot log to the journal")?)
            .init();
    } else {
        registry
            .with(tracing_subscriber::fmt::layer().with_writer(io::stderr))
            .init();
    }
    Ok(())
}
