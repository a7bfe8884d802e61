//! The policy of a sleep itself: how the host goes to sleep and comes back, who gives leave, who is told the figures, and what a sleep
//! saves. Plain data.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use agent_ebpf::Transport;
use hyper::{Uri, http::uri::InvalidUri};

use super::background::{Direction, PortRule};

/// Ports of the web: traffic to them is not all the wake server's.
const WEB: [u16; 2] = [80, 443];

/// How the host goes to sleep and comes back (`[sleep]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// Whether s2idle will do where the host has no deep suspend.
    pub allow_s2idle: bool,
    /// Whether Wake-on-LAN is switched on before the host sleeps.
    pub arm_wol: bool,
    /// Whether the host may sleep although nothing is known that could wake it.
    pub allow_unwakeable: bool,
    /// The hardware clock wakes the host after this time; 2 s to 30 d. `None`: it does not.
    pub wake_after: Option<Duration>,
    /// Longest time of one hook; 1 s to 1 h.
    pub hook_timeout: Duration,
    /// What the failure of a hook before the sleep means.
    pub hook_failure: HookFailure,
    /// Folder with `pre-sleep.d` and `post-wake.d`, an absolute path.
    pub hooks_folder: PathBuf,
}

/// What the failure of a hook before the sleep means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookFailure {
    /// It is logged; the host sleeps.
    Continue,
    /// The host stays awake.
    Veto,
}

/// The wake server, which is told what the host does, and without whose leave it does not sleep (`[wake_server]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeServer {
    /// `http` or `https`, host, and port if one is written; no path, no slash at its end.
    pub url: String,
    /// File with the token of this node, an absolute path. `None`: requests carry none.
    pub token_file: Option<PathBuf>,
    /// File with the certificates (PEM) that a server at `https` is trusted by, an absolute path. `None`: those the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// Who is told the figures (`[metrics]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are served over HTTP; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// The file of node_exporter's textfile collector they are written to, absolute, ending in `.prom`; `None`: none.
    pub textfile: Option<PathBuf>,
}

/// What the host draws (`[energy]`), watts from 0 to 10000, `watts_asleep` below `watts_awake`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energy {
    /// Awake and idle; `None`: as measured, where that can be.
    pub watts_awake: Option<f64>,
    /// Asleep; `None`: 3 W.
    pub watts_asleep: Option<f64>,
}

impl WakeServer {
    /// The connections of this host to it, which are no activity. `None`: its port is one of the web, where its own are not told from
    /// others.
    pub(super) fn traffic(&self) -> Option<PortRule> {
        let uri: Result<Uri, InvalidUri> = self.url.parse();
        let port = uri.ok()?.port_u16().filter(|port| !WEB.contains(port))?;
        Some(PortRule {
            port,
            transport: Transport::Tcp,
            direction: Direction::Out,
        })
    }
}

impl Default for Sleep {
    fn default() -> Self {
        Self {
            allow_s2idle: false,
            arm_wol: true,
            allow_unwakeable: false,
            wake_after: None,
            hook_timeout: Duration::from_secs(60),
            hook_failure: HookFailure::Continue,
            hooks_folder: PathBuf::from("/opt/vmstation/power"),
        }
    }
}
