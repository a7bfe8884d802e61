//! The names of all settings in both forms of the file and in the environment, and what each takes, in words.
//!
//! The one list of known keys: readers and hints use it.

use super::{
    complaint::{nearest, quote},
    value::Origin,
};

/// A setting of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    Enabled,
    InactivityTimeout,
    CheckInterval,
    GracePeriod,
    MinAwake,
    Probes,
    CheckPods,
    CheckCpu,
    CpuThreshold,
    CpuScope,
    CheckNetwork,
    NetworkThreshold,
    NetworkScope,
    NetworkInterfaces,
    BackgroundDefaults,
    BackgroundPorts,
    BackgroundCidrs,
    BackgroundProtocols,
    CheckSshSessions,
    SshPorts,
    SshNamespaces,
    SshIdleCap,
    ExcludedNamespaces,
    PreventSleepLabels,
    NotificationEnabled,
    NotificationBefore,
    NotificationMethod,
    WebhookUrl,
    SlackChannel,
    LogDir,
    LogLevel,
    MaxLogSize,
    LogRetention,
    AllowS2idle,
    ArmWol,
    AllowUnwakeable,
    WakeAfter,
    HookTimeout,
    HookFailure,
    HooksFolder,
    WakeServerUrl,
    WakeServerTokenFile,
    WakeServerCaFile,
    MetricsListen,
    MetricsTextfile,
    WattsAwake,
    WattsAsleep,
    KubernetesApi,
    KubernetesKubeconfig,
    KubernetesNode,
}

/// Where a setting stands and what it takes. No name: the form lacks it, or the section itself is the setting.
pub(super) struct Row {
    pub(super) section: &'static str,
    pub(super) ini: Option<&'static str>,
    pub(super) toml: Option<&'static str>,
    pub(super) variable: Option<&'static str>,
    /// What the INI form and the environment take.
    takes: &'static str,
    /// What the TOML form takes, if it differs.
    toml_takes: Option<&'static str>,
}

/// All sections, in the order of the guide.
pub(super) const SECTIONS: [&str; 12] = [
    "general",
    "activity_detection",
    "network_background",
    "excluded_namespaces",
    "prevent_sleep_labels",
    "notification",
    "logging",
    "sleep",
    "wake_server",
    "metrics",
    "energy",
    "kubernetes",
];

const SWITCH: &str = "true or false (also yes or no, on or off, 1 or 0)";
const TOML_SWITCH: &str = "true or false, without quotes";

impl Setting {
    pub(super) const ALL: [Self; 50] = [
        Self::Enabled,
        Self::InactivityTimeout,
        Self::CheckInterval,
        Self::GracePeriod,
        Self::MinAwake,
        Self::Probes,
        Self::CheckPods,
        Self::CheckCpu,
        Self::CpuThreshold,
        Self::CpuScope,
        Self::CheckNetwork,
        Self::NetworkThreshold,
        Self::NetworkScope,
        Self::NetworkInterfaces,
        Self::BackgroundDefaults,
        Self::BackgroundPorts,
        Self::BackgroundCidrs,
        Self::BackgroundProtocols,
        Self::CheckSshSessions,
        Self::SshPorts,
        Self::SshNamespaces,
        Self::SshIdleCap,
        Self::ExcludedNamespaces,
        Self::PreventSleepLabels,
        Self::NotificationEnabled,
        Self::NotificationBefore,
        Self::NotificationMethod,
        Self::WebhookUrl,
        Self::SlackChannel,
        Self::LogDir,
        Self::LogLevel,
        Self::MaxLogSize,
        Self::LogRetention,
        Self::AllowS2idle,
        Self::ArmWol,
        Self::AllowUnwakeable,
        Self::WakeAfter,
        Self::HookTimeout,
        Self::HookFailure,
        Self::HooksFolder,
        Self::WakeServerUrl,
        Self::WakeServerTokenFile,
        Self::WakeServerCaFile,
        Self::MetricsListen,
        Self::MetricsTextfile,
        Self::WattsAwake,
        Self::WattsAsleep,
        Self::KubernetesApi,
        Self::KubernetesKubeconfig,
        Self::KubernetesNode,
    ];

    pub(super) const fn row(self) -> Row {
        const fn same(section: &'static str, key: &'static str, takes: &'static str) -> Row {
            Row {
                section,
                ini: Some(key),
                toml: Some(key),
                variable: None,
                takes,
                toml_takes: None,
            }
        }
        const fn switch(section: &'static str, key: &'static str) -> Row {
            Row {
                toml_takes: Some(TOML_SWITCH),
                ..same(section, key, SWITCH)
            }
        }
        const fn minutes(
            section: &'static str,
            [ini, toml]: [&'static str; 2],
            variable: Option<&'static str>,
            [takes, toml_takes]: [&'static str; 2],
        ) -> Row {
            Row {
                toml: Some(toml),
                variable,
                toml_takes: Some(toml_takes),
                ..same(section, ini, takes)
            }
        }
        const fn toml_only(section: &'static str, key: &'static str, takes: &'static str) -> Row {
            Row {
                ini: None,
                ..same(section, key, takes)
            }
        }
        const fn scope(section: &'static str, key: &'static str) -> Row {
            Row {
                toml_takes: Some("\"node\" or \"pods\""),
                ..same(section, key, "node or pods")
            }
        }
        const fn whole_section(section: &'static str, takes: &'static str) -> Row {
            Row {
                ini: None,
                toml: None,
                ..same(section, "", takes)
            }
        }

        match self {
            Self::Enabled => switch("general", "enabled"),
            Self::InactivityTimeout => minutes(
                "general",
                ["inactivity_timeout_minutes", "inactivity_timeout"],
                Some("INACTIVITY_TIMEOUT_MINUTES"),
                [
                    "a whole number of minutes, 1 to 525600",
                    "a duration in quotes, \"1s\" to \"365d\", such as \"120m\"",
                ],
            ),
            Self::CheckInterval => minutes(
                "general",
                ["check_interval_minutes", "check_interval"],
                Some("CHECK_INTERVAL_MINUTES"),
                [
                    "a whole number of minutes, 1 to 1440",
                    "a duration in quotes, \"1s\" to \"1d\", such as \"5m\"",
                ],
            ),
            Self::GracePeriod => minutes(
                "general",
                ["grace_period_minutes", "grace_period"],
                Some("GRACE_PERIOD_MINUTES"),
                [
                    "a whole number of minutes, 0 to 1440",
                    "a duration in quotes, \"0s\" to \"1d\", such as \"10m\"",
                ],
            ),
            Self::Probes => toml_only("general", "probes", "\"auto\", \"always\" or \"off\""),
            Self::CheckPods => switch("activity_detection", "check_pods"),
            Self::CheckCpu => switch("activity_detection", "check_cpu"),
            Self::CpuThreshold => Row {
                variable: Some("CPU_THRESHOLD_PERCENT"),
                ..same(
                    "activity_detection",
                    "cpu_threshold_percent",
                    "a percentage of all CPUs without a sign, 0 to 100",
                )
            },
            Self::CheckNetwork => switch("activity_detection", "check_network"),
            Self::NetworkThreshold => Row {
                variable: Some("NETWORK_THRESHOLD_BYTES"),
                ..same(
                    "activity_detection",
                    "network_threshold_bytes",
                    "a whole number of bytes per second, such as 1024",
                )
            },
            Self::CpuScope => scope("activity_detection", "cpu_scope"),
            Self::NetworkScope => scope("activity_detection", "network_scope"),
            Self::NetworkInterfaces => Row {
                toml: Some("network_interfaces"),
                variable: Some("NETWORK_INTERFACE"),
                toml_takes: Some("a list of interface names, such as [\"eth0\"]"),
                ..same(
                    "activity_detection",
                    "network_interface",
                    "an interface name of at most 15 characters, such as eth0; several with commas between",
                )
            },
            Self::BackgroundDefaults => toml_only("network_background", "defaults", TOML_SWITCH),
            Self::BackgroundPorts => toml_only(
                "network_background",
                "ports",
                "a list of ports 1 to 65535 with protocol and, if it matters, direction, such as [\"8080/tcp in\", \"123/udp\"]",
            ),
            Self::BackgroundCidrs => toml_only(
                "network_background",
                "cidrs",
                "a list of at most 256 networks, such as [\"10.0.0.0/24\", \"fd00::/8\"]",
            ),
            Self::BackgroundProtocols => toml_only(
                "network_background",
                "protocols",
                "a list of protocols of IP, such as [\"gre\", 103]; tcp and udp have `ports`",
            ),
            Self::CheckSshSessions => switch("activity_detection", "check_ssh_sessions"),
            Self::SshPorts => toml_only(
                "activity_detection",
                "ssh_ports",
                "a list of 1 to 8 different ports, each 1 to 65535, such as [22]",
            ),
            Self::SshNamespaces => toml_only("activity_detection", "ssh_namespaces", "\"host\" or \"all\""),
            Self::MinAwake => toml_only(
                "general",
                "min_awake",
                "a duration in quotes, \"0s\" to \"1d\", such as \"5m\"",
            ),
            Self::SshIdleCap => toml_only(
                "activity_detection",
                "ssh_idle_cap",
                "a duration in quotes, \"1m\" to \"365d\", such as \"12h\"",
            ),
            Self::ExcludedNamespaces => Row {
                toml_takes: Some(
                    "a list of names of at most 63 lower case letters, digits and `-`, such as [\"kube-system\"]",
                ),
                ..whole_section(
                    "excluded_namespaces",
                    "one name a line: at most 63 lower case letters, digits and `-`, such as kube-system",
                )
            },
            Self::PreventSleepLabels => Row {
                toml_takes: Some("a Kubernetes label, such as \"vmstation.io/prevent-sleep\" = \"true\""),
                ..whole_section(
                    "prevent_sleep_labels",
                    "a Kubernetes label, such as vmstation.io/prevent-sleep=true",
                )
            },
            Self::NotificationEnabled => switch("notification", "enabled"),
            Self::NotificationBefore => minutes(
                "notification",
                ["minutes_before", "before"],
                None,
                [
                    "a whole number of minutes, 0 up to the grace period",
                    "a duration in quotes, \"0s\" up to the grace period, such as \"5m\"",
                ],
            ),
            Self::NotificationMethod => same("notification", "method", "log, webhook or slack"),
            Self::WebhookUrl => same("notification", "webhook_url", "an http:// or https:// URL with a host"),
            Self::SlackChannel => same("notification", "slack_channel", "a channel, such as #ops"),
            Self::LogDir => same("logging", "log_dir", "an absolute path, such as /var/log/vmstation"),
            Self::LogLevel => same("logging", "log_level", "error, warn, info, debug or trace"),
            Self::MaxLogSize => Row {
                toml_takes: Some("a size in quotes, \"64K\" to \"1024G\", such as \"10M\", or a number of bytes"),
                ..same(
                    "logging",
                    "max_log_size",
                    "a size, 64K to 1024G, such as 10M; up to 10000 without a unit: MiB, above: bytes",
                )
            },
            Self::LogRetention => same("logging", "log_retention", "a whole number of files, 0 to 1000"),
            Self::AllowS2idle => toml_only("sleep", "allow_s2idle", TOML_SWITCH),
            Self::ArmWol => toml_only("sleep", "arm_wol", TOML_SWITCH),
            Self::AllowUnwakeable => toml_only("sleep", "allow_unwakeable", TOML_SWITCH),
            Self::WakeAfter => toml_only(
                "sleep",
                "wake_after",
                "a duration in quotes, \"2s\" to \"30d\", such as \"8h\"",
            ),
            Self::HookTimeout => toml_only(
                "sleep",
                "hook_timeout",
                "a duration in quotes, \"1s\" to \"1h\", such as \"60s\"",
            ),
            Self::HookFailure => toml_only("sleep", "hook_failure", "\"continue\" or \"veto\""),
            Self::HooksFolder => toml_only(
                "sleep",
                "hooks_folder",
                "an absolute path, such as \"/opt/vmstation/power\"",
            ),
            Self::WakeServerUrl => toml_only(
                "wake_server",
                "url",
                "http:// or https://, a host and a port, without a path, such as \"https://master:9876\"",
            ),
            Self::WakeServerTokenFile => toml_only(
                "wake_server",
                "token_file",
                "an absolute path, such as \"/etc/vmstation/autosleep/token\"",
            ),
            Self::WakeServerCaFile => toml_only(
                "wake_server",
                "ca_file",
                "an absolute path, such as \"/etc/vmstation/autosleep/ca.pem\"",
            ),
            Self::MetricsListen => toml_only(
                "metrics",
                "listen",
                "an address and a port from 1 to 65535 in quotes, such as \"127.0.0.1:9877\"",
            ),
            Self::MetricsTextfile => toml_only(
                "metrics",
                "textfile",
                "an absolute path ending in .prom, such as \"/var/lib/node_exporter/vmstation.prom\"",
            ),
            Self::WattsAwake => toml_only("energy", "watts_awake", "a number of watts, 0 to 10000, such as 45"),
            Self::WattsAsleep => toml_only("energy", "watts_asleep", "a number of watts, 0 to 10000, such as 3"),
            Self::KubernetesApi => toml_only("kubernetes", "api", "\"auto\", \"in-cluster\" or \"off\""),
            Self::KubernetesKubeconfig => toml_only(
                "kubernetes",
                "kubeconfig",
                "an absolute path, such as \"/etc/vmstation/autosleep/kubeconfig\"",
            ),
            Self::KubernetesNode => toml_only(
                "kubernetes",
                "node",
                "the name of a node, as `kubectl get nodes` shows it, such as \"node-1\"",
            ),
        }
    }

    /// As the reader wrote it.
    pub(super) fn name(self, origin: &Origin) -> &'static str {
        let row = self.row();
        let name = match origin {
            Origin::Ini(_) => row.ini,
            Origin::Toml(_) => row.toml,
            Origin::Variable(_) => row.variable,
        };
        name.unwrap_or(row.section)
    }

    /// What it takes, in words.
    pub(super) fn takes(self, origin: &Origin) -> &'static str {
        let row = self.row();
        match origin {
            Origin::Ini(_) | Origin::Variable(_) => row.takes,
            Origin::Toml(_) => row.toml_takes.unwrap_or(row.takes),
        }
    }

    /// Whether the value must not be repeated in a message: a URL may have a password in it, a webhook's often is one.
    pub(super) const fn is_secret(self) -> bool {
        matches!(self, Self::WebhookUrl | Self::WakeServerUrl)
    }
}

/// The two forms of the file, for look-ups by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Ini,
    Toml,
}

impl Form {
    const fn key(self, row: &Row) -> Option<&'static str> {
        match self {
            Self::Ini => row.ini,
            Self::Toml => row.toml,
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Ini => Self::Toml,
            Self::Toml => Self::Ini,
        }
    }

    /// The setting called `key` in `section`.
    pub(super) fn setting(self, section: &str, key: &str) -> Option<Setting> {
        Setting::ALL
            .into_iter()
            .find(|setting| setting.row().section == section && self.key(&setting.row()) == Some(key))
    }

    /// A hint for a key that `section` does not have.
    pub(super) fn suggest_key(self, section: &str, key: &str) -> Option<String> {
        let rows = || Setting::ALL.into_iter().map(Setting::row);
        let known = |row: &Row| self.key(row).filter(|_| row.section == section);
        if let Some(row) = rows().find(|row| self.key(row) == Some(key)) {
            return Some(format!("`{key}` belongs in [{}]", row.section));
        }
        if let Some(row) = rows().find(|row| self.other().key(row) == Some(key)) {
            return Some(match (self.key(&row), self) {
                (Some(name), Self::Ini | Self::Toml) => format!("it is called `{name}` in this form of the file"),
                (None, Self::Ini) => "only autosleep.toml has it; `config migrate` makes one from this file".into(),
                (None, Self::Toml) => format!("only autosleep.conf has `{key}`"),
            });
        }
        if let Some(name) = nearest(key, rows().filter_map(|row| known(&row))) {
            return Some(format!("did you mean `{name}`?"));
        }
        let all: Vec<_> = rows().filter_map(|row| known(&row)).map(quote).collect();
        Some(format!("[{section}] has {}", all.join(", ")))
    }
}

/// A hint for a section that does not exist.
pub(super) fn suggest_section(name: &str) -> String {
    match nearest(name, SECTIONS) {
        Some(section) => format!("did you mean [{section}]?"),
        None => format!(
            "the sections are {}",
            SECTIONS.map(|section| format!("[{section}]")).join(", ")
        ),
    }
}
