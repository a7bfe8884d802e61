//! The policy of the agent: what the configuration file says, validated.
//!
//! ```text
//! autosleep.conf --ini--------+
//!                             +--> ConfigFile --check--> Policy
//! autosleep.toml --toml_form--+        ^
//! environment -------------------------+
//! ```
//! Parse, validate, forget the text: nothing behind [`Policy`] sees a file. All that is wrong with a file is reported together, each with
//! line, column and hint ([`Invalid`]). Never reads the process environment itself: the caller passes a look-up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

mod background;
mod check;
mod complaint;
mod explain;
mod file;
mod ini;
mod kubernetes;
mod migrate;
mod power;
mod setting;
mod toml_form;
mod value;

pub use background::{Background, Cidr, Direction, IpProtocol, PortRule};
pub use complaint::{Complaint, Invalid};
pub use explain::explain;
pub(crate) use explain::host as url_host;
pub use file::schema;
pub use kubernetes::{Kubernetes, KubernetesApi};
pub use migrate::migrate;
pub use power::{Energy, HookFailure, Metrics, Sleep, WakeServer};

/// Folder of `autosleep.conf` and `autosleep.toml`.
pub const FOLDER: &str = "/etc/vmstation/autosleep";

/// Bytes of the longest file that is read.
pub const LONGEST: u64 = 1 << 20;

/// What counts as activity, how long to wait, and whom to tell. Every field is valid by construction of the loader.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether the agent may ever put the host to sleep (`[general] enabled`).
    pub enabled: bool,
    /// Quiet time before the grace period; 1 min to 365 d, in TOML from 1 s.
    pub inactivity_timeout: Duration,
    /// Time between two checks of everything; 1 s to 1 d.
    pub check_interval: Duration,
    /// Time between announcing a sleep and sleeping; 0 to 1 d.
    pub grace_period: Duration,
    /// Stay awake at least this long after a resume; 0 to 1 d.
    pub min_awake: Duration,
    /// What counts as activity.
    pub detection: Detection,
    /// Pods in these namespaces never count as activity.
    pub excluded_namespaces: BTreeSet<String>,
    /// A pod with one of these labels (name, value) keeps the node awake, in every namespace.
    pub prevent_sleep_labels: BTreeMap<String, String>,
    /// Whom to tell before sleeping; `None` if notification is off.
    pub notification: Option<Notification>,
    /// Logs.
    pub logging: Logging,
    /// Whether eBPF programs are used.
    pub probes: ProbeMode,
    /// How the host goes to sleep and comes back.
    pub sleep: Sleep,
    /// Who gives leave to sleep; `None`: nobody need be asked.
    pub wake_server: Option<WakeServer>,
    /// Who is told the figures.
    pub metrics: Metrics,
    /// What the host draws.
    pub energy: Energy,
    /// Where this node's pods are asked for.
    pub kubernetes: Kubernetes,
}

/// What counts as activity; `None` or `false`: not looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Pods of user namespaces.
    pub pods: bool,
    /// Busy share of all CPUs, in percent (0 to 100), above which the host is busy.
    pub cpu_percent: Option<f64>,
    /// Whose CPU time that is.
    pub cpu_scope: Scope,
    /// Bytes per second of user traffic, both directions, above which an interface is busy, or the pods together are.
    pub network_bytes_per_sec: Option<u64>,
    /// Whose traffic that is.
    pub network_scope: Scope,
    /// Interfaces to count; empty: every physical one.
    pub interfaces: Vec<String>,
    /// Traffic that is no activity.
    pub background: Background,
    /// SSH sessions.
    pub ssh: Option<SshDetection>,
}

/// Whose use is compared with a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the node's.
    Node,
    /// That of its pods alone, as their cgroups tell; what the system's services do is no activity.
    Pods,
}

/// Which SSH sessions count.
#[derive(Clone, Debug, PartialEq)]
pub struct SshDetection {
    /// Ports of the SSH server: 1 to [`agent_ebpf::SSH_PORTS`] of them, none 0.
    pub ports: Vec<u16>,
    /// Where the SSH server runs.
    pub namespaces: SshNamespaces,
    /// A session idle for longer than this stops counting; `None`: it counts for ever.
    pub idle_cap: Option<Duration>,
}

/// Network namespaces whose SSH servers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SshNamespaces {
    /// That of the agent.
    #[default]
    Host,
    /// Those of pods and containers too: a login there is activity at the moment it happens. Only the sessions of the agent's own
    /// namespace can be listed, so no session elsewhere counts for as long as it is open.
    All,
}

/// How and when to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Notification {
    /// This long before the sleep, within the grace period.
    pub before: Duration,
    /// Where to.
    pub method: NotificationMethod,
}

/// Where a notification goes. Its `Debug` shows of a URL only the host: the rest often is a password.
#[derive(Clone, PartialEq, Eq)]
pub enum NotificationMethod {
    /// The log only.
    Log,
    /// POST of a JSON document.
    Webhook {
        /// http or https URL.
        url: String,
    },
    /// Slack incoming webhook.
    Slack {
        /// http or https URL.
        url: String,
        /// Channel, if not the webhook's own.
        channel: Option<String>,
    },
}

/// Where the agent writes `power.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Folder of `power.log`.
    pub dir: PathBuf,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: tracing::Level,
    /// Rotated above this size, bytes.
    pub max_size: u64,
    /// Rotated files kept.
    pub retention: u32,
}

/// Whether eBPF programs are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeMode {
    /// Attached only while their answer could change the verdict.
    Auto,
    /// Attached while the agent runs.
    Always,
    /// Never: `/proc` and `/sys` only.
    Off,
}

/// A policy and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What the file says.
    pub policy: Policy,
    /// The file; `None`: there is none and the guide's values hold.
    pub path: Option<PathBuf>,
    /// How the file was read.
    pub format: Format,
    /// What an administrator should know, one sentence each: which file was taken, which variable goes before it.
    pub notes: Vec<String>,
}

/// Form of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The guide's `autosleep.conf`.
    Ini,
    /// `autosleep.toml`
    Toml,
}

/// Why there is no policy.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read, or is missing although it was named.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is longer than [`LONGEST`].
    #[error("the configuration {} is longer than {LONGEST} bytes: is it the right file?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("the configuration {}, line {line}, is not UTF-8: save it as UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first byte that is not, from 1.
        line: usize,
    },
    /// The file was read and is wrong. The binaries exit with 78 (`EX_CONFIG` of sysexits.h).
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Policy {
    /// Loads `path`, or else the file in [`FOLDER`] (see [`Policy::load_folder`]). `env` looks up an environment variable.
    ///
    /// # Errors
    /// A file that cannot be read, or is wrong.
    pub fn load(path: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, LoadError> {
        match path {
            Some(path) => Self::load_file(path, env),
            None => Self::load_folder(Path::new(FOLDER), env),
        }
    }

    /// Loads `autosleep.toml` or else `autosleep.conf` of `folder`; without either, the guide's values hold.
    ///
    /// # Errors
    /// A file that exists and cannot be read, or is wrong.
    pub fn load_folder(folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, LoadError> {
        let (toml, ini) = (folder.join("autosleep.toml"), folder.join("autosleep.conf"));
        match (is_there(&toml)?, is_there(&ini)?) {
            (true, false) => Self::load_file(&toml, env),
            (false, true) => Self::load_file(&ini, env),
            (true, true) => {
                let mut loaded = Self::load_file(&toml, env)?;
                loaded
                    .notes
                    .push(format!("{} is there too and not read", ini.display()));
                Ok(loaded)
            }
            (false, false) => {
                let mut loaded = Self::parse("", Format::Ini, &ini, env)?;
                loaded.path = None;
                loaded.notes.insert(
                    0,
                    format!(
                        "no {} and no autosleep.toml beside it: the defaults hold",
                        ini.display()
                    ),
                );
                Ok(loaded)
            }
        }
    }

    /// Reads `text`, which stands in `path`. Touches no file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        format: Format,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Invalid> {
        let text = without_bom(text);
        let mut complaints = complaint::Complaints::new(text);
        let mut notes = Vec::new();
        let file = match format {
            Format::Ini => ini::read(text, &mut complaints),
            Format::Toml => toml_form::read(text, &mut complaints),
        };
        let overrides = file::Overrides::read(env, &mut notes);
        let policy = check::policy(file, overrides, &mut complaints, &mut notes);
        let loaded = Loaded {
            policy,
            path: Some(path.to_owned()),
            format,
            notes,
        };
        complaints.finish(path, loaded)
    }

    fn load_file(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, LoadError> {
        let text = read_text(path)?;
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("conf" | "ini") => Format::Ini,
            Some("toml") => Format::Toml,
            Some(_) | None => return Ok(Self::parse_either(&text, path, env)?),
        };
        Ok(Self::parse(&text, format, path, env)?)
    }

    /// Takes the form in which `text` has fewer mistakes: a short INI file can be TOML too.
    fn parse_either(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Invalid> {
        let mistakes =
            |read: &Result<Loaded, Invalid>| read.as_ref().map_or_else(|invalid| invalid.complaints.len(), |_| 0);
        let ini = Self::parse(text, Format::Ini, path, env);
        let toml = Self::parse(text, Format::Toml, path, env);
        let mut loaded = if mistakes(&toml) < mistakes(&ini) { toml } else { ini }?;
        loaded.notes.push(format!(
            "{} ends neither in .conf nor in .toml; going by its contents it is {}",
            path.display(),
            loaded.format,
        ));
        Ok(loaded)
    }
}

/// A link that leads nowhere is there: whoever made it wanted a file.
fn is_there(path: &Path) -> Result<bool, LoadError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(source) => Err(LoadError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn read_text(path: &Path) -> Result<String, LoadError> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|source| LoadError::Read {
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 > LONGEST {
        return Err(LoadError::TooLong { path: path.into() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        LoadError::NotUtf8 {
            path: path.into(),
            line: good.iter().filter(|&&byte| byte == b'\n').count() + 1,
        }
    })
}

fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

impl fmt::Debug for NotificationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("Log"),
            Self::Webhook { url } => f.debug_struct("Webhook").field("host", &url_host(url)).finish(),
            Self::Slack { url, channel } => f
                .debug_struct("Slack")
                .field("host", &url_host(url))
                .field("channel", channel)
                .finish(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ini => "INI",
            Self::Toml => "TOML",
        })
    }
}

impl Default for Policy {
    /// The guide's values.
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            enabled: true,
            inactivity_timeout: 120 * MINUTE,
            check_interval: 5 * MINUTE,
            grace_period: 10 * MINUTE,
            min_awake: 5 * MINUTE,
            detection: Detection {
                pods: true,
                cpu_percent: Some(10.0),
                cpu_scope: Scope::Node,
                network_bytes_per_sec: Some(1024),
                network_scope: Scope::Node,
                interfaces: Vec::new(),
                background: Background::of_a_node(&[22]),
                ssh: Some(SshDetection {
                    ports: vec![22],
                    namespaces: SshNamespaces::Host,
                    idle_cap: None,
                }),
            },
            excluded_namespaces: ["kube-system", "monitoring", "logging"].map(String::from).into(),
            prevent_sleep_labels: [("vmstation.io/prevent-sleep".into(), "true".into())].into(),
            notification: None,
            logging: Logging {
                dir: PathBuf::from("/var/log/vmstation"),
                level: tracing::Level::INFO,
                max_size: 10 << 20,
                retention: 5,
            },
            probes: ProbeMode::Auto,
            sleep: Sleep::default(),
            wake_server: None,
            metrics: Metrics::default(),
            energy: Energy::default(),
            kubernetes: Kubernetes::default(),
        }
    }
}
