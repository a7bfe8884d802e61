//! The configuration as it is written, with TOML's names and structure: both forms of the file are read into it, and the JSON Schema
//! describes it. [`super::check`] makes the policy of it and forgets the text.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Deserialize;
use toml::Spanned;

use super::{
    background::{Cidr, IpProtocol, PortRule, ProtocolForm, defaults_for_people},
    complaint::quote,
    ini::{self, Word},
    setting::Setting,
    value::{
        ApiForm, FromText, Level, LogSize, Method, Namespaces, OnHookFailure, Origin, Probes, ScopeName, Slot, Span,
    },
};

/// The JSON Schema (draft 2020-12) of `autosleep.toml`, with descriptions, ranges and defaults.
pub fn schema() -> serde_json::Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<ConfigFile>()
        .to_value()
}

/// `autosleep.toml`: when this host goes to sleep.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "autosleep.toml")]
pub(super) struct ConfigFile {
    /// Pods in these namespaces never count as activity.
    #[schemars(extend("default" = ["kube-system", "monitoring", "logging"]), with = "BTreeSet<Namespace>")]
    pub(super) excluded_namespaces: Option<Vec<Slot<String>>>,
    pub(super) general: General,
    pub(super) activity_detection: ActivityDetection,
    pub(super) network_background: NetworkBackground,
    /// A pod with one of these labels keeps the node awake, in every namespace.
    #[schemars(extend("default" = {"vmstation.io/prevent-sleep": "true"}), with = "BTreeMap<String, String>")]
    pub(super) prevent_sleep_labels: Option<BTreeMap<Spanned<String>, Slot<String>>>,
    pub(super) notification: NotificationSection,
    pub(super) logging: LoggingSection,
    pub(super) sleep: SleepSection,
    pub(super) wake_server: WakeServerSection,
    pub(super) metrics: MetricsSection,
    pub(super) energy: EnergySection,
    pub(super) kubernetes: KubernetesSection,
}

/// When to sleep.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct General {
    /// Whether the agent may ever put the host to sleep.
    #[schemars(extend("default" = true))]
    pub(super) enabled: Slot<bool>,
    /// Quiet time before the grace period; 1s to 365d.
    #[schemars(extend("default" = "120m"))]
    pub(super) inactivity_timeout: Slot<Span>,
    /// Time between two checks of everything; 1s to 1d, at most the inactivity timeout.
    #[schemars(extend("default" = "5m"))]
    pub(super) check_interval: Slot<Span>,
    /// Time between announcing a sleep and sleeping; 0s to 1d.
    #[schemars(extend("default" = "10m"))]
    pub(super) grace_period: Slot<Span>,
    /// Stay awake at least this long after a resume; 0s to 1d.
    #[schemars(extend("default" = "5m"))]
    pub(super) min_awake: Slot<Span>,
    /// Whether eBPF programs are used.
    #[schemars(extend("default" = "auto"))]
    pub(super) probes: Slot<Probes>,
}

/// What counts as activity.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct ActivityDetection {
    /// Whether running pods count.
    #[schemars(extend("default" = true))]
    pub(super) check_pods: Slot<bool>,
    /// Whether CPU use counts.
    #[schemars(extend("default" = true))]
    pub(super) check_cpu: Slot<bool>,
    /// Busy share of all CPUs, in percent, above which the host is busy.
    #[schemars(range(min = 0, max = 100), extend("default" = 10))]
    pub(super) cpu_threshold_percent: Slot<f64>,
    /// Whose CPU use counts; see `network_scope`.
    #[schemars(extend("default" = "node"))]
    pub(super) cpu_scope: Slot<ScopeName>,
    /// Whether network traffic counts.
    #[schemars(extend("default" = true))]
    pub(super) check_network: Slot<bool>,
    /// Bytes per second of user traffic (see `[network_background]`), both directions, above which an interface is busy.
    #[schemars(range(min = 0), extend("default" = 1024))]
    pub(super) network_threshold_bytes: Slot<u64>,
    /// Whose traffic counts. `pods` takes no notice of the system's services and needs a kubelet: without one the node stays awake.
    #[schemars(extend("default" = "node"))]
    pub(super) network_scope: Slot<ScopeName>,
    /// Interfaces to count; none: every physical one.
    #[schemars(extend("default" = []), with = "BTreeSet<InterfaceName>")]
    pub(super) network_interfaces: Option<Vec<Slot<String>>>,
    /// Whether SSH sessions count.
    #[schemars(extend("default" = true))]
    pub(super) check_ssh_sessions: Slot<bool>,
    /// Ports of the SSH server.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1)), extend("default" = [22]), with = "BTreeSet<u16>")]
    pub(super) ssh_ports: Option<Spanned<Vec<Slot<u16>>>>,
    /// Network namespaces whose SSH servers count: the agent's own, or those of pods and containers too, where a login is activity at
    /// the moment it happens.
    #[schemars(extend("default" = "host"))]
    pub(super) ssh_namespaces: Slot<Namespaces>,
    /// A session idle for longer than this stops counting; 1m to 365d. Without it a session counts for ever.
    pub(super) ssh_idle_cap: Slot<Span>,
}

/// Traffic that does not count as activity. Broadcast, multicast, ARP, LLDP and 802.1X never do.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct NetworkBackground {
    /// Whether what an idle Kubernetes node says and hears is background too; `x-defaults` lists it with the reasons.
    #[schemars(extend("default" = true, "x-defaults" = defaults_for_people()))]
    pub(super) defaults: Slot<bool>,
    /// Connections by port: `port/protocol`, then `in` (somebody connects to this host), `out` (this host connects) or nothing (both).
    #[schemars(extend("default" = []), with = "BTreeSet<PortForm>")]
    pub(super) ports: Option<Vec<Slot<PortRule>>>,
    /// Everything from and to peers in these networks, at most 256 of IPv4 and 256 of IPv6.
    #[schemars(extend("default" = []), with = "BTreeSet<CidrForm>")]
    pub(super) cidrs: Option<Vec<Slot<Cidr>>>,
    /// Everything in these protocols of IP, by name or by number; not tcp and udp, which have ports.
    #[schemars(extend("default" = []), with = "Vec<ProtocolForm>")]
    pub(super) protocols: Option<Vec<Slot<IpProtocol>>>,
}

/// Whom to tell before sleeping.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct NotificationSection {
    /// Whether anybody is told.
    #[schemars(extend("default" = false))]
    pub(super) enabled: Slot<bool>,
    /// This long before the sleep; 0s up to the grace period.
    #[schemars(extend("default" = "5m"))]
    pub(super) before: Slot<Span>,
    /// Where to. Without it `webhook` if there is a URL, else `log`.
    pub(super) method: Slot<Method>,
    /// URL of the webhook or of Slack's incoming webhook; empty: none.
    #[schemars(regex(pattern = "^(https?://.+)?$"))]
    pub(super) webhook_url: Slot<String>,
    /// Slack channel, if not the webhook's own.
    pub(super) slack_channel: Slot<String>,
}

/// The agent's `power.log`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct LoggingSection {
    /// Folder of `power.log`, an absolute path.
    #[schemars(regex(pattern = "^/"), extend("default" = "/var/log/vmstation"))]
    pub(super) log_dir: Slot<String>,
    /// Least important message that is logged.
    #[schemars(extend("default" = "info"))]
    pub(super) log_level: Slot<Level>,
    /// Rotated above this size; 64K to 1024G. Units are powers of 1024, a number without one is bytes.
    #[schemars(extend("default" = "10M"))]
    pub(super) max_log_size: Slot<LogSize>,
    /// Rotated files kept.
    #[schemars(range(min = 0, max = 1000), extend("default" = 5))]
    pub(super) log_retention: Slot<u32>,
}

/// How the host goes to sleep and comes back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct SleepSection {
    /// Whether s2idle will do where the host has no deep suspend.
    #[schemars(extend("default" = false))]
    pub(super) allow_s2idle: Slot<bool>,
    /// Whether Wake-on-LAN is switched on before the host sleeps.
    #[schemars(extend("default" = true))]
    pub(super) arm_wol: Slot<bool>,
    /// Whether the host may sleep although nothing is known that could wake it.
    #[schemars(extend("default" = false))]
    pub(super) allow_unwakeable: Slot<bool>,
    /// The hardware clock wakes the host after this time; 2s to 30d. Without it it does not.
    pub(super) wake_after: Slot<Span>,
    /// Longest time of one hook; 1s to 1h.
    #[schemars(extend("default" = "60s"))]
    pub(super) hook_timeout: Slot<Span>,
    /// What the failure of a hook before the sleep means.
    #[schemars(extend("default" = "continue"))]
    pub(super) hook_failure: Slot<OnHookFailure>,
    /// Folder with `pre-sleep.d` and `post-wake.d`, an absolute path.
    #[schemars(regex(pattern = "^/"), extend("default" = "/opt/vmstation/power"))]
    pub(super) hooks_folder: Slot<String>,
}

/// The wake server, which is told what this host does, orders it to sleep, and wakes it. Without its leave the host does not sleep.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct WakeServerSection {
    /// Its address, such as https://master:9876; without it there is no wake server.
    #[schemars(regex(pattern = "^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@]+/?$"))]
    pub(super) url: Slot<String>,
    /// File with the token of this node (`vmstation-wake token NODE` makes it), an absolute path; read at each request. Without it requests carry none.
    #[schemars(regex(pattern = "^/"))]
    pub(super) token_file: Slot<String>,
    /// File with the certificates (PEM) that the server's own must be signed by, an absolute path. Without it those that the system trusts.
    #[schemars(regex(pattern = "^/"))]
    pub(super) ca_file: Slot<String>,
}

/// Who is told the figures.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct MetricsSection {
    /// Address and port where Prometheus can fetch them; without it nowhere. There is no password: prefer 127.0.0.1.
    #[schemars(with = "ListenForm")]
    pub(super) listen: Slot<SocketAddr>,
    /// File of node_exporter's textfile collector, an absolute path ending in .prom; without it none is written.
    #[schemars(regex(pattern = "^/(.*/)?[^/]+\\.prom$"))]
    pub(super) textfile: Slot<String>,
}

/// What the host draws, for the energy a sleep saves.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct EnergySection {
    /// Watts awake and idle. Without it as the processor measures itself (RAPL), where it does.
    #[schemars(range(min = 0, max = 10000))]
    pub(super) watts_awake: Slot<f64>,
    /// Watts asleep, less than awake. Without it 3.
    #[schemars(range(min = 0, max = 10000))]
    pub(super) watts_asleep: Slot<f64>,
}

/// Where this node's pods are asked for, if `check_pods` is on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct KubernetesSection {
    /// How the Kubernetes API is found. `auto`: the credentials of the pod that the agent runs in, else a kubeconfig of the agent or of the
    /// kubelet, where one is; a host without any, on which no kubelet runs, has no pods. `off`: it has none in any case.
    #[schemars(extend("default" = "auto"))]
    pub(super) api: Slot<ApiForm>,
    /// File with the address and the credentials, an absolute path; in place of looking for one.
    #[schemars(regex(pattern = "^/"))]
    pub(super) kubeconfig: Slot<String>,
    /// Name of this node in the cluster. Without it the kubelet's, else the host's in lower case.
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"))]
    pub(super) node: Slot<String>,
}

/// Address and port.
#[derive(JsonSchema)]
#[schemars(inline)]
struct ListenForm(
    #[expect(dead_code, reason = "describes a form; never made")]
    #[schemars(regex(pattern = "^([0-9.]+|\\[[0-9a-fA-F:.]+(%[0-9]+)?\\]):[0-9]{1,5}$"))]
    String,
);

/// Connections by port.
#[derive(JsonSchema)]
#[schemars(inline)]
struct PortForm(
    #[expect(dead_code, reason = "describes a form; never made")]
    #[schemars(regex(pattern = "^[0-9]{1,5}/(tcp|udp)( (in|out))?$"))]
    String,
);

/// A network or an address.
#[derive(JsonSchema)]
#[schemars(inline)]
struct CidrForm(
    #[expect(dead_code, reason = "describes a form; never made")]
    #[schemars(regex(pattern = "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"))]
    String,
);

/// Name of a namespace.
#[derive(JsonSchema)]
#[schemars(inline)]
struct Namespace(
    #[expect(dead_code, reason = "describes a form; never made")]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    String,
);

/// Name of a network interface.
#[derive(JsonSchema)]
#[schemars(inline)]
struct InterfaceName(
    #[expect(dead_code, reason = "describes a form; never made")]
    #[schemars(regex(pattern = "^[^\\s/:]{1,15}$"))]
    String,
);

/// What the environment sets in place of the file.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) inactivity_timeout: Slot<Span>,
    pub(super) check_interval: Slot<Span>,
    pub(super) grace_period: Slot<Span>,
    pub(super) detection: DetectionOverrides,
}

/// The same of `[activity_detection]`.
#[derive(Debug, Default)]
pub(super) struct DetectionOverrides {
    pub(super) cpu_threshold_percent: Slot<f64>,
    pub(super) network_threshold_bytes: Slot<u64>,
    pub(super) network_interfaces: Option<Vec<Slot<String>>>,
}

impl Overrides {
    /// Reads the variables that are set and not empty, and notes each.
    pub(super) fn read(variable: &dyn Fn(&str) -> Option<String>, notes: &mut Vec<String>) -> Self {
        let mut text = |setting: Setting| {
            let name = setting.row().variable?;
            let text = variable(name).map(|text| text.trim().to_owned())?;
            (!text.is_empty()).then(|| {
                notes.push(format!(
                    "{name}={} of the environment goes before the file",
                    quote(&text)
                ));
                text
            })
        };
        fn slot<T: FromText>(text: Option<String>) -> Slot<T> {
            text.map_or(Slot::Absent, |text| Slot::read(&text, Origin::Variable(text.clone())))
        }
        Self {
            inactivity_timeout: slot(text(Setting::InactivityTimeout)),
            check_interval: slot(text(Setting::CheckInterval)),
            grace_period: slot(text(Setting::GracePeriod)),
            detection: DetectionOverrides {
                cpu_threshold_percent: slot(text(Setting::CpuThreshold)),
                network_threshold_bytes: slot(text(Setting::NetworkThreshold)),
                network_interfaces: text(Setting::NetworkInterfaces).map(|names| {
                    ini::interfaces(Word { text: &names, start: 0 })
                        .map(|name| slot(Some(name.text.to_owned())))
                        .collect()
                }),
            },
        }
    }
}
