//! `wake-server.toml`: how the wake server is set up.
//!
//! Reads the file and the command line's share, and makes checked [`Settings`] of them, or tells everything that is wrong at once.
//! Never reads a token, a certificate or a registry: who uses them does.

pub mod kubernetes;
mod sleep;
mod values;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use thiserror::Error;
use vmstation_protocol::PORT;

use self::{
    kubernetes::kubernetes,
    values::{
        HOUR, MINUTE, SECOND, absolute, absolute_text, count, duration, file, host_names, networks, socket, time,
    },
};
pub use self::{
    kubernetes::{Access, KubernetesSettings},
    sleep::{DemandRules, Mode, PodRules, SleepSettings},
};
use crate::{
    complaint::{Complaint, Complaints, Place, Source, read_text, write_all},
    keys::{self, Keys},
    notify::{Form, Target},
};

/// The configuration, unless another is named.
pub const FILE: &str = "/etc/vmstation/wake-server.toml";
/// The registry, if it exists and no other is named.
pub const REGISTRY: &str = "/etc/vmstation/wol-registry.conf";
/// Name of the systemd credential that holds the operators' token.
pub const TOKEN_CREDENTIAL: &str = "wake-token";
/// Longest file, bytes.
const LONGEST: u64 = 1 << 20;

/// What a wake server goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens; not beyond loopback without `token_file`.
    pub listen: SocketAddr,
    /// File with the operators' token: the configured one, or else the systemd credential [`TOKEN_CREDENTIAL`].
    pub token_file: Option<PathBuf>,
    /// File with the secret that agents' tokens are derived from.
    pub secret_file: Option<PathBuf>,
    /// Folder for what outlives a restart.
    pub state_dir: PathBuf,
    /// Files that say who is who. Unless named they exist.
    pub registry: Vec<PathBuf>,
    /// Who may use the API; `None`: everybody.
    pub allow_from: Option<Vec<IpNet>>,
    /// Who may see the status and the page; `None`: as `allow_from`.
    pub status_from: Option<Vec<IpNet>>,
    /// Names that people's browsers reach this server by, besides those without a dot; in small letters.
    pub host_names: Vec<String>,
    /// TLS; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// How nodes are woken.
    pub wake: WakeSettings,
    /// Which may sleep, and what becomes of their pods.
    pub sleep: SleepSettings,
    /// What clients may cost.
    pub limits: Limits,
    /// Who hears of wakes that failed.
    pub notify: Vec<Target>,
    /// The cluster, and who of several wake servers leads.
    pub kubernetes: KubernetesSettings,
}

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// How nodes are woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeSettings {
    /// A wake that is not proved by then has failed; 1s to 1h.
    pub deadline: Duration,
    /// Time between two nodes of a wake of all, for the sake of their inrush current; at most 1m.
    pub stagger: Duration,
    /// When magic packets go out, after the beginning: ascending, at least one, all before the deadline.
    pub resend: Vec<Duration>,
    /// UDP ports they go to: at least one, none twice, in this order.
    pub udp_ports: Vec<u16>,
    /// Shortest time between two wakes of one node; at most 1h.
    pub node_interval: Duration,
}

/// What clients may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests of one client; 1 to 1,000,000.
    pub requests_per_minute: u32,
    /// Connections of all clients; 1 to 1,000,000.
    pub connections: usize,
    /// Connections of one client; 1 to 1,000,000. Agents behind one address translation are one client.
    pub connections_per_client: usize,
    /// The head of a request has to be there by then; 100ms to 10m.
    pub header_timeout: Duration,
    /// And its body; 100ms to 10m.
    pub body_timeout: Duration,
    /// A connection may wait for its next request for so long; 100ms to 1h.
    pub idle_timeout: Duration,
    /// An agent's question for orders is held for so long; less than a proxy in between waits for an answer; 100ms to 5m.
    pub poll_timeout: Duration,
    /// Longest body of a request, bytes; 1 KiB to 16 MiB.
    pub body_bytes: usize,
}

impl Default for WakeSettings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_mins(3),
            stagger: Duration::from_millis(200),
            resend: [0, 1, 2, 4, 8, 15, 30].map(Duration::from_secs).into(),
            udp_ports: vec![9, 7],
            node_interval: Duration::from_secs(5),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_minute: 120,
            connections: 16384,
            connections_per_client: 256,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            poll_timeout: Duration::from_mins(5),
            body_bytes: 65536,
        }
    }
}

/// What goes before the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--registry`; empty: not given.
    pub registry: Vec<PathBuf>,
    /// `--token-file`
    pub token_file: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// systemd's `$CREDENTIALS_DIRECTORY`: holds the token if neither the command line nor the file names one.
    pub credentials_dir: Option<PathBuf>,
}

/// A configuration that cannot be used: everything that is wrong with it. The program exits with 78 (`EX_CONFIG` of sysexits.h).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigError {
    /// At least one, in the order of the file.
    pub complaints: Vec<Complaint>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_all(&self.complaints, f)
    }
}

impl Settings {
    /// Reads `path`, or else [`FILE`], which may be missing: then the defaults hold.
    ///
    /// # Errors
    /// A file that cannot be read, or everything that is wrong with it.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(FILE));
        // A link that leads nowhere is there: whoever made it wanted a file.
        let is_missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        if path.is_none() && std::fs::symlink_metadata(file).as_ref().is_err_and(is_missing) {
            return Self::parse("", file, overrides);
        }
        let text = read_text(file, LONGEST).map_err(|complaint| ConfigError {
            complaints: vec![complaint],
        })?;
        Self::parse(&text, file, overrides)
    }

    /// Reads `text`, which stands in `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source::new(path, text);
        let mut complaints = Complaints::default();
        let document = keys::document(&source, &mut complaints);
        let mut keys = Keys::new(&source, &document, "");
        let settings = read(&mut keys, overrides, &mut complaints);
        keys.finish(&mut complaints);
        complaints
            .finish(settings)
            .map_err(|complaints| ConfigError { complaints })
    }

    /// Whether this client may use the API.
    pub fn allows_api(&self, client: IpAddr) -> bool {
        is_within(self.allow_from.as_deref(), client)
    }

    /// Whether this client may see the status and the page.
    pub fn allows_status(&self, client: IpAddr) -> bool {
        is_within(self.status_from.as_deref().or(self.allow_from.as_deref()), client)
    }

    /// Whether anything this client sends is worth reading.
    pub fn allows_anything(&self, client: IpAddr) -> bool {
        self.allows_api(client) || self.allows_status(client)
    }
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn is_within(networks: Option<&[IpNet]>, client: IpAddr) -> bool {
    let client = client.to_canonical();
    networks.is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
}

fn read(keys: &mut Keys<'_, '_>, overrides: Overrides, complaints: &mut Complaints) -> Settings {
    let listen = keys.read(
        "listen",
        "an address and a port, as \"127.0.0.1:9876\"",
        complaints,
        socket,
    );
    // Not shown: it may be the token itself.
    let mut hidden = |key| keys.secret(key, "an absolute path", complaints, absolute_text);
    let token_file = hidden("token_file");
    let secret_file = hidden("secret_file");
    let state_dir = file(keys, "state_dir", complaints);
    let registry = keys.list("registry", "a list of absolute paths", complaints, absolute);
    let allow_from = networks(keys, "allow_from", complaints);
    let status_from = networks(keys, "status_from", complaints);
    let host_names = host_names(keys, complaints);
    let tls = keys
        .table("tls", complaints)
        .and_then(|section| tls(section, complaints));
    let wake = keys
        .table("wake", complaints)
        .map(|section| wake(section, complaints))
        .unwrap_or_default();
    let sleep = keys
        .table("sleep", complaints)
        .map(|section| sleep::sleep(section, complaints))
        .unwrap_or_default();
    let limits = keys
        .table("limits", complaints)
        .map(|section| limits(section, complaints))
        .unwrap_or_default();
    let notify = keys
        .table("notify", complaints)
        .map(|section| notify(section, complaints))
        .unwrap_or_default();
    let kubernetes = keys
        .table("kubernetes", complaints)
        .map(|section| kubernetes(section, complaints))
        .unwrap_or_default();

    let credential = overrides.credentials_dir.map(|folder| folder.join(TOKEN_CREDENTIAL));
    let token_file = overrides
        .token_file
        .or(token_file)
        .or(credential.filter(|path| path.exists()));
    let listen = match overrides.listen {
        Some(listen) => (listen, Place::whole("--listen")),
        None => {
            let place = keys.place("listen").unwrap_or(Place::whole("listen"));
            (listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))), place)
        }
    };
    if !listen.0.ip().to_canonical().is_loopback() && token_file.is_none() {
        complaints.add(
            listen.1,
            format!("{} is reached from other hosts, and there is no token", listen.0),
            format!(
                "write token_file = \"/etc/vmstation/wake-token\", or the systemd credential {TOKEN_CREDENTIAL}, or listen on 127.0.0.1"
            ),
        );
    }
    let named = registry.map(|files| files.into_iter().map(|(path, _)| path).collect());
    Settings {
        listen: listen.0,
        token_file,
        secret_file,
        state_dir: overrides
            .state_dir
            .or(state_dir)
            .unwrap_or_else(|| "/var/lib/vmstation/wake-server".into()),
        registry: (!overrides.registry.is_empty())
            .then_some(overrides.registry)
            .or(named)
            .unwrap_or_else(|| {
                [REGISTRY]
                    .map(PathBuf::from)
                    .into_iter()
                    .filter(|path| path.exists())
                    .collect()
            }),
        allow_from,
        status_from,
        host_names: host_names.unwrap_or_default(),
        tls,
        wake,
        sleep,
        limits,
        notify,
        kubernetes,
    }
}

fn tls(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> Option<TlsFiles> {
    let written = ["certificate", "key"].map(|key| keys.place(key));
    let certificate = file(&mut keys, "certificate", complaints);
    let key = file(&mut keys, "key", complaints);
    match written {
        [Some(place), None] => complaints.add(
            place,
            "a certificate without its key",
            "write key = \"/path\"".to_owned(),
        ),
        [None, Some(place)] => complaints.add(
            place,
            "a key without its certificate",
            "write certificate = \"/path\"".to_owned(),
        ),
        [Some(_), Some(_)] | [None, None] => {}
    }
    keys.finish(complaints);
    Some(TlsFiles {
        certificate: certificate?,
        key: key?,
    })
}

fn wake(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> WakeSettings {
    let default = WakeSettings::default();
    let deadline = duration(&mut keys, "deadline", SECOND..=HOUR, complaints).unwrap_or(default.deadline);
    let stagger = duration(&mut keys, "stagger", Duration::ZERO..=MINUTE, complaints).unwrap_or(default.stagger);
    let node_interval =
        duration(&mut keys, "node_interval", Duration::ZERO..=HOUR, complaints).unwrap_or(default.node_interval);
    let resend = resend(&mut keys, deadline, complaints).unwrap_or_else(|| {
        // A short deadline cuts the default short.
        default.resend.into_iter().filter(|&at| at < deadline).collect()
    });
    let udp_ports = udp_ports(&mut keys, complaints).unwrap_or(default.udp_ports);
    keys.finish(complaints);
    WakeSettings {
        deadline,
        stagger,
        resend,
        udp_ports,
        node_interval,
    }
}

fn resend(keys: &mut Keys<'_, '_>, deadline: Duration, complaints: &mut Complaints) -> Option<Vec<Duration>> {
    const MOST: usize = 100;
    let place = keys.place("resend")?;
    let times = keys.list(
        "resend",
        "a list of times after the beginning, as [\"0s\", \"1s\", \"4s\"]",
        complaints,
        |value| time(value, &(Duration::ZERO..=HOUR)),
    )?;
    if times.is_empty() || times.len() > MOST {
        complaints.add(place, format!("`resend` takes 1 to {MOST} times"), None);
    }
    for ((before, _), (after, place)) in times.iter().zip(times.iter().skip(1)) {
        if after <= before {
            complaints.add(
                place.clone(),
                "`resend` has to ascend",
                "each is the time after the beginning, not after the one before".to_owned(),
            );
        }
    }
    if let Some((at, place)) = times.iter().find(|(at, _)| *at >= deadline) {
        complaints.add(
            place.clone(),
            format!(
                "a packet after {} goes out when the deadline, {}, is over",
                humantime::format_duration(*at),
                humantime::format_duration(deadline)
            ),
            "leave it out, or lengthen `deadline`".to_owned(),
        );
    }
    Some(times.into_iter().map(|(at, _)| at).collect())
}

fn udp_ports(keys: &mut Keys<'_, '_>, complaints: &mut Complaints) -> Option<Vec<u16>> {
    const MOST: usize = 8;
    let place = keys.place("udp_ports")?;
    let ports = keys.list("udp_ports", "a list of ports, as [9, 7]", complaints, |value| {
        u16::try_from(keys::number(value)?)
            .ok()
            .filter(|&port| port > 0)
            .ok_or(None)
    })?;
    if ports.is_empty() || ports.len() > MOST {
        complaints.add(place, format!("`udp_ports` takes 1 to {MOST} ports"), None);
    }
    let mut seen = BTreeSet::new();
    for (port, place) in &ports {
        if !seen.insert(*port) {
            complaints.add(place.clone(), format!("port {port} is written twice"), None);
        }
    }
    Some(ports.into_iter().map(|(port, _)| port).collect())
}

fn limits(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> Limits {
    const SHORT: Duration = Duration::from_millis(100);
    let default = Limits::default();
    let limits = Limits {
        requests_per_minute: count(&mut keys, "requests_per_minute", 1..=1_000_000, complaints)
            .unwrap_or(default.requests_per_minute),
        connections: count(&mut keys, "connections", 1..=1_000_000, complaints).unwrap_or(default.connections),
        connections_per_client: count(&mut keys, "connections_per_client", 1..=1_000_000, complaints)
            .unwrap_or(default.connections_per_client),
        header_timeout: duration(&mut keys, "header_timeout", SHORT..=10 * MINUTE, complaints)
            .unwrap_or(default.header_timeout),
        body_timeout: duration(&mut keys, "body_timeout", SHORT..=10 * MINUTE, complaints)
            .unwrap_or(default.body_timeout),
        idle_timeout: duration(&mut keys, "idle_timeout", SHORT..=HOUR, complaints).unwrap_or(default.idle_timeout),
        poll_timeout: duration(&mut keys, "poll_timeout", SHORT..=5 * MINUTE, complaints)
            .unwrap_or(default.poll_timeout),
        body_bytes: count(&mut keys, "body_bytes", 1 << 10..=16 << 20, complaints).unwrap_or(default.body_bytes),
    };
    keys.finish(complaints);
    limits
}

/// Not shown: what follows the host in such a URL often is a password.
fn notify(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> Vec<Target> {
    let mut target = |key, form| {
        let takes = "an http:// or https:// URL with a host";
        keys.secret(key, takes, complaints, |url| Target::new(form, url).ok_or(None))
    };
    let targets = [target("webhook", Form::Webhook), target("slack", Form::Slack)];
    keys.finish(complaints);
    targets.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
