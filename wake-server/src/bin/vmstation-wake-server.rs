//! `vmstation-wake-server`: puts the parts together and serves.

use std::{env, net::SocketAddr, num::NonZeroU32, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use vmstation_wake_server::{
    api::{self, Api},
    auth::{KeyError, Keys},
    config::{ConfigError, Overrides, Settings},
    descriptors,
    hub::{Hub, Parts},
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
        vmstation-wake-server --listen 0.0.0.0:9876 --token-file /etc/vmstation/wake-token\n\n\
        Signals: SIGHUP reads the registry, certificate and key again, SIGTERM and SIGINT stop.\n\
        Exit codes: 0 stopped, 1 failed, 2 usage, 78 configuration."
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Err(error) = run(arguments) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vmstation-wake-server: {error:#}");
    let is_configuration = error.is::<ConfigError>() || error.is::<RegistryErrors>() || error.is::<KeyError>();
    if is_configuration {
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    ExitCode::FAILURE
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let credentials = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let settings = Settings::load(
        arguments.config.as_deref(),
        Overrides {
            listen: arguments.listen,
            registry: arguments.registry,
            token_file: arguments.token_file,
            state_dir: arguments.state_dir,
            credentials_dir: credentials.clone(),
        },
    )?;
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
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
    let parts = Parts {
        registry_files: settings.registry.clone(),
        registry,
        lan: Arc::new(Lan::new(&settings.wake.udp_ports)),
        wake: settings.wake.clone(),
        store: Arc::new(Store::new(&settings.state_dir)),
        metrics: Arc::clone(&metrics),
        notifier: Notifier::new(settings.notify.clone()),
    };
    let hub = tokio::task::spawn_blocking(move || Hub::new(parts)).await?;
    let silence = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.watch_silence().await }
    });
    let reloads = tokio::spawn(reload(Arc::clone(&hub), tls.clone(), signal(SignalKind::hangup())?));
    let app = api::router(Arc::new(Api {
        hub,
        keys,
        metrics,
        poll_timeout: settings.limits.poll_timeout,
        allow_from: settings.allow_from.clone(),
        status_from: settings.status_from.clone(),
        host_names: host_names(&settings),
    }));
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
    reloads.abort();
    tracing::info!("stopped");
    Ok(())
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
            .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
            .init();
    }
    Ok(())
}
