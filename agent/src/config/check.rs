//! Whether what is written makes sense: ranges, names, contradictions. Makes the [`Policy`].
//!
//! What is not written gets the guide's value, shortened where a setting that is written demands it, so that a value nobody wrote is never
//! complained about.

mod power;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use agent_ebpf::{NET_CIDRS, SSH_PORTS};
use humantime::format_duration;
use toml::Spanned;

use super::{
    Background, Cidr, Detection, Logging, Notification, NotificationMethod, Policy, ProbeMode, Scope, SshDetection,
    SshNamespaces, WakeServer,
    complaint::{Complaints, quote},
    file::{
        ActivityDetection, ConfigFile, DetectionOverrides, LoggingSection, NetworkBackground, NotificationSection,
        Overrides,
    },
    setting::Setting,
    value::{Hint, Method, Namespaces, Origin, Probes, ScopeName, Slot, Span},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
// Numbers of protocols of IP.
const TCP: u8 = 6;
const UDP: u8 = 17;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wrong goes to `complaints`, what is worth knowing to `notes`. The policy is meaningless after a complaint.
pub(super) fn policy(
    file: ConfigFile,
    overrides: Overrides,
    complaints: &mut Complaints<'_>,
    notes: &mut Vec<String>,
) -> Policy {
    let default = Policy::default();
    let mut check = Check { complaints, notes };
    let general = file.general;
    let wake_server = check.wake_server(file.wake_server);

    check.scopes(&general.probes, &file.activity_detection);
    let inactivity = check.span(
        Setting::InactivityTimeout,
        general.inactivity_timeout,
        overrides.inactivity_timeout,
        SECOND..=365 * DAY,
    );
    let interval = check.span(
        Setting::CheckInterval,
        general.check_interval,
        overrides.check_interval,
        SECOND..=DAY,
    );
    let grace = check.span(
        Setting::GracePeriod,
        general.grace_period,
        overrides.grace_period,
        Duration::ZERO..=DAY,
    );
    let min_awake = check.span(Setting::MinAwake, general.min_awake, Slot::Absent, Duration::ZERO..=DAY);
    check.at_most(
        (Setting::CheckInterval, &interval),
        (Setting::InactivityTimeout, &inactivity, default.inactivity_timeout),
    );
    let inactivity_timeout = inactivity.or(default.inactivity_timeout);

    Policy {
        enabled: check.any(Setting::Enabled, general.enabled).or(default.enabled),
        inactivity_timeout,
        check_interval: interval.or(default.check_interval.min(inactivity_timeout)),
        notification: check.notification(file.notification, &grace),
        grace_period: grace.or(default.grace_period),
        min_awake: min_awake.or(default.min_awake),
        detection: {
            let mut detection = check.detection(file.activity_detection, file.network_background, overrides.detection);
            detection
                .background
                .ports
                .extend(wake_server.as_ref().and_then(WakeServer::traffic));
            detection
        },
        excluded_namespaces: check
            .list(Setting::ExcludedNamespaces, file.excluded_namespaces, is_namespace)
            .map_or(default.excluded_namespaces, BTreeSet::from_iter),
        prevent_sleep_labels: file
            .prevent_sleep_labels
            .map_or(default.prevent_sleep_labels, |labels| check.labels(labels)),
        logging: check.logging(file.logging),
        probes: match check.any(Setting::Probes, general.probes).good() {
            Some(Probes::Auto) => ProbeMode::Auto,
            Some(Probes::Always) => ProbeMode::Always,
            Some(Probes::Off) => ProbeMode::Off,
            None => default.probes,
        },
        sleep: check.sleep(file.sleep),
        wake_server,
        metrics: check.metrics(file.metrics),
        energy: check.energy(file.energy),
        kubernetes: check.kubernetes(file.kubernetes),
    }
}

/// A value that has been checked.
enum Checked<T> {
    Absent,
    /// Complained about: it takes part in no further check.
    Bad,
    Good(T, Origin),
}

impl<T> Checked<T> {
    fn good(self) -> Option<T> {
        match self {
            Self::Good(value, _) => Some(value),
            Self::Absent | Self::Bad => None,
        }
    }

    fn or(self, default: T) -> T {
        self.good().unwrap_or(default)
    }

    const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

struct Check<'c, 't> {
    complaints: &'c mut Complaints<'t>,
    notes: &'c mut Vec<String>,
}

impl Check<'_, '_> {
    fn any<T>(&mut self, setting: Setting, slot: Slot<T>) -> Checked<T> {
        self.one(setting, slot, |_| Ok(()))
    }

    fn one<T>(&mut self, setting: Setting, slot: Slot<T>, valid: impl FnOnce(&T) -> Result<(), Hint>) -> Checked<T> {
        let (origin, hint) = match slot {
            Slot::Absent => return Checked::Absent,
            Slot::Refused(origin, hint) => (origin, hint),
            Slot::Given(value, origin) => match valid(&value) {
                Ok(()) => return Checked::Good(value, origin),
                Err(hint) => (origin, hint),
            },
        };
        self.refuse(setting, &origin, hint);
        Checked::Bad
    }

    /// The environment's value if there is one; the file's is checked all the same.
    fn either<T>(
        &mut self,
        setting: Setting,
        written: Slot<T>,
        variable: Slot<T>,
        valid: impl Fn(&T) -> Result<(), Hint>,
    ) -> Checked<T> {
        let written = self.one(setting, written, &valid);
        match self.one(setting, variable, &valid) {
            Checked::Absent => written,
            variable @ (Checked::Bad | Checked::Good(..)) => variable,
        }
    }

    fn span(
        &mut self,
        setting: Setting,
        written: Slot<Span>,
        variable: Slot<Span>,
        range: RangeInclusive<Duration>,
    ) -> Checked<Duration> {
        match self.either(setting, written, variable, |span| within(span.0, &range)) {
            Checked::Absent => Checked::Absent,
            Checked::Bad => Checked::Bad,
            Checked::Good(Span(duration), origin) => Checked::Good(duration, origin),
        }
    }

    /// All good values; each may come once.
    fn list<T: Ord + Clone>(
        &mut self,
        setting: Setting,
        list: Option<Vec<Slot<T>>>,
        mut valid: impl FnMut(&T) -> Result<(), Hint>,
    ) -> Option<Vec<T>> {
        let mut seen = BTreeSet::new();
        let mut values = Vec::new();
        for slot in list? {
            let Checked::Good(value, origin) = self.one(setting, slot, &mut valid) else {
                continue;
            };
            if !seen.insert(value.clone()) {
                let written = self.written(&origin);
                self.about(
                    &origin,
                    format!("{} is listed twice", quote(&written)),
                    Some("list it once".into()),
                );
            }
            values.push(value);
        }
        Some(values)
    }

    fn labels(&mut self, labels: BTreeMap<Spanned<String>, Slot<String>>) -> BTreeMap<String, String> {
        const SETTING: Setting = Setting::PreventSleepLabels;
        let mut good = BTreeMap::new();
        for (name, slot) in labels {
            // The key has no origin of its own; its value tells the form of the file.
            let (Slot::Given(_, origin) | Slot::Refused(origin, _)) = &slot else {
                continue;
            };
            if !is_label_name(name.get_ref()) {
                let hint = SETTING.takes(origin).to_owned();
                let message = format!("{} is not the name of a label", quote(name.get_ref()));
                self.complaints.at(name.span().start, message, Some(hint));
            }
            if let Some(value) = self.one(SETTING, slot, is_label_value).good() {
                good.insert(name.into_inner(), value);
            }
        }
        good
    }

    /// Complains if `value` is written and longer than `limit`, written or not.
    fn at_most(
        &mut self,
        (setting, value): (Setting, &Checked<Duration>),
        (limit_setting, limit, default): (Setting, &Checked<Duration>, Duration),
    ) {
        let Checked::Good(value, origin) = value else {
            return;
        };
        let (limit, name, by_default) = match limit {
            Checked::Bad => return,
            Checked::Absent => (default, limit_setting.name(origin), " by default"),
            Checked::Good(limit, origin) => (*limit, limit_setting.name(origin), ""),
        };
        if *value <= limit || self.complaints.any_broken() {
            return;
        }
        let message = format!(
            "{} ({}) is longer than {} ({}{by_default})",
            quote(setting.name(origin)),
            format_duration(*value),
            quote(name),
            format_duration(limit),
        );
        self.about(origin, message, Some(format!("at most {}", format_duration(limit))));
    }

    fn detection(
        &mut self,
        written: ActivityDetection,
        background: NetworkBackground,
        variables: DetectionOverrides,
    ) -> Detection {
        let default = Policy::default().detection;
        let cpu = self.either(
            Setting::CpuThreshold,
            written.cpu_threshold_percent,
            variables.cpu_threshold_percent,
            |percent| valid((0.0..=100.0).contains(percent)),
        );
        let network = self.either(
            Setting::NetworkThreshold,
            written.network_threshold_bytes,
            variables.network_threshold_bytes,
            |_| Ok(()),
        );
        let cpu_scope = self.any(Setting::CpuScope, written.cpu_scope);
        let network_scope = self.any(Setting::NetworkScope, written.network_scope);
        let named = self.list(Setting::NetworkInterfaces, written.network_interfaces, is_interface);
        let interfaces = self
            .list(Setting::NetworkInterfaces, variables.network_interfaces, is_interface)
            .or(named);
        let ports = self.ports(written.ssh_ports);
        let namespaces = self.any(Setting::SshNamespaces, written.ssh_namespaces);
        let idle_cap = self.span(
            Setting::SshIdleCap,
            written.ssh_idle_cap,
            Slot::Absent,
            MINUTE..=365 * DAY,
        );

        let ssh = self
            .any(Setting::CheckSshSessions, written.check_ssh_sessions)
            .or(true)
            .then(|| SshDetection {
                ports,
                namespaces: match namespaces.good() {
                    Some(Namespaces::All) => SshNamespaces::All,
                    Some(Namespaces::Host) | None => SshNamespaces::Host,
                },
                idle_cap: idle_cap.good(),
            });

        Detection {
            pods: self.any(Setting::CheckPods, written.check_pods).or(default.pods),
            cpu_percent: self
                .any(Setting::CheckCpu, written.check_cpu)
                .or(true)
                .then(|| cpu.good().or(default.cpu_percent))
                .flatten(),
            cpu_scope: cpu_scope.good().map_or(default.cpu_scope, Scope::from),
            network_scope: network_scope.good().map_or(default.network_scope, Scope::from),
            network_bytes_per_sec: self
                .any(Setting::CheckNetwork, written.check_network)
                .or(true)
                .then(|| network.good().or(default.network_bytes_per_sec))
                .flatten(),
            interfaces: interfaces.unwrap_or_default(),
            background: self.background(background, ssh.as_ref().map_or(&[], |ssh| &ssh.ports)),
            ssh,
        }
    }

    /// The traffic of pods is in no plain counter, and on no interface in particular.
    fn scopes(&mut self, probes: &Slot<Probes>, written: &ActivityDetection) {
        let Slot::Given(ScopeName::Pods, origin) = &written.network_scope else {
            return;
        };
        if let Slot::Given(Probes::Off, _) = probes {
            let message = "`network_scope` is pods, whose traffic only eBPF programs can tell, and `probes` is off";
            let hint = "leave `probes` out, or take `network_scope = \"node\"`";
            self.about(origin, message.into(), Some(hint.into()));
        }
        if written
            .network_interfaces
            .as_ref()
            .is_some_and(|names| !names.is_empty())
        {
            let note = "the interfaces in [activity_detection] do not matter while `network_scope` is pods";
            self.notes.push(note.into());
        }
    }

    fn background(&mut self, written: NetworkBackground, ssh_ports: &[u16]) -> Background {
        let mut background = if self.any(Setting::BackgroundDefaults, written.defaults).or(true) {
            Background::of_a_node(ssh_ports)
        } else {
            Background::default()
        };
        let ports = self.list(Setting::BackgroundPorts, written.ports, |rule| valid(rule.port != 0));
        let protocols = self.list(Setting::BackgroundProtocols, written.protocols, |protocol| {
            valid(!matches!(protocol.0, TCP | UDP))
        });
        let mut room = [NET_CIDRS; 2];
        let cidrs = self.list(Setting::BackgroundCidrs, written.cidrs, |cidr| {
            is_network(cidr)?;
            let room = &mut room[usize::from(cidr.network().is_ipv6())];
            *room = room.checked_sub(1).ok_or(None)?;
            Ok(())
        });
        background.ports.extend(ports.into_iter().flatten());
        background.protocols.extend(protocols.into_iter().flatten());
        background.cidrs.extend(cidrs.into_iter().flatten());
        background
    }

    fn ports(&mut self, written: Option<Spanned<Vec<Slot<u16>>>>) -> Vec<u16> {
        let Some(list) = written else {
            return vec![22];
        };
        let origin = Origin::Toml(list.span());
        let list = list.into_inner();
        if list.is_empty() || list.len() > SSH_PORTS {
            self.refuse(Setting::SshPorts, &origin, None);
        }
        self.list(Setting::SshPorts, Some(list), |&port| valid(port != 0))
            .unwrap_or_default()
    }

    fn notification(&mut self, written: NotificationSection, grace: &Checked<Duration>) -> Option<Notification> {
        const BEFORE: Duration = Duration::from_secs(5 * 60);
        let default_grace = Policy::default().grace_period;
        let enabled = self.any(Setting::NotificationEnabled, written.enabled);
        let before = self.span(
            Setting::NotificationBefore,
            written.before,
            Slot::Absent,
            Duration::ZERO..=DAY,
        );
        let method = self.any(Setting::NotificationMethod, written.method);
        let url = self.one(Setting::WebhookUrl, written.webhook_url, is_url_or_empty);
        let channel = self.one(Setting::SlackChannel, written.slack_channel, |channel| {
            valid(!channel.contains(char::is_control))
        });

        let says_more = [before.is_absent(), method.is_absent(), url.is_absent()].contains(&false);
        if enabled.is_absent() && says_more {
            let note = "[notification] does not say `enabled = true`: nobody is told before a sleep";
            self.notes.push(note.into());
        }
        if !enabled.or(false) {
            return None;
        }
        self.at_most(
            (Setting::NotificationBefore, &before),
            (Setting::GracePeriod, grace, default_grace),
        );
        let grace = match grace {
            Checked::Good(grace, _) => *grace,
            Checked::Absent | Checked::Bad => default_grace,
        };
        Some(Notification {
            before: before.or(BEFORE.min(grace)),
            method: self.method(method, url, channel.good())?,
        })
    }

    /// `None` after a complaint.
    fn method(
        &mut self,
        method: Checked<Method>,
        url: Checked<String>,
        channel: Option<String>,
    ) -> Option<NotificationMethod> {
        let url = match url {
            Checked::Good(url, _) => Some(url).filter(|url| !url.is_empty()),
            Checked::Absent => None,
            Checked::Bad => return None,
        };
        let (method, origin) = match method {
            Checked::Good(method, origin) => (method, origin),
            Checked::Bad => return None,
            Checked::Absent => {
                return Some(url.map_or(NotificationMethod::Log, |url| NotificationMethod::Webhook { url }));
            }
        };
        match (method, url) {
            (Method::Log, _) => Some(NotificationMethod::Log),
            (Method::Webhook, Some(url)) => Some(NotificationMethod::Webhook { url }),
            (Method::Slack, Some(url)) => Some(NotificationMethod::Slack {
                url,
                channel: channel.filter(|channel| !channel.is_empty()),
            }),
            (Method::Webhook | Method::Slack, None) => {
                if !self.complaints.any_broken() {
                    let name = self.written(&origin);
                    self.about(
                        &origin,
                        format!("method {} needs `webhook_url`", quote(name.trim_matches('"'))),
                        Some("set `webhook_url` to an http:// or https:// URL, or `method` to log".into()),
                    );
                }
                None
            }
        }
    }

    fn logging(&mut self, written: LoggingSection) -> Logging {
        let default = Policy::default().logging;
        let dir = self.one(Setting::LogDir, written.log_dir, |dir| {
            valid(dir.starts_with('/') && !dir.contains(char::is_control))
        });
        let size = self.one(Setting::MaxLogSize, written.max_log_size, |size| {
            valid((64 << 10..=1 << 40).contains(&size.0))
        });
        if let Checked::Good(size, origin @ Origin::Ini(_)) = &size
            && self.written(origin).bytes().all(|byte| byte.is_ascii_digit())
        {
            let note = format!("`max_log_size={}` is read as {} bytes", self.written(origin), size.0);
            self.notes.push(note);
        }
        Logging {
            dir: dir.good().map_or(default.dir, PathBuf::from),
            level: self
                .any(Setting::LogLevel, written.log_level)
                .good()
                .map_or(default.level, Into::into),
            max_size: size.good().map_or(default.max_size, |size| size.0),
            retention: self
                .one(Setting::LogRetention, written.log_retention, |&files| {
                    valid(files <= 1000)
                })
                .or(default.retention),
        }
    }

    fn refuse(&mut self, setting: Setting, origin: &Origin, hint: Hint) {
        let name = quote(setting.name(origin));
        let written = self.written(origin);
        let message = if written.is_empty() {
            format!("{name} has no value")
        } else if setting.is_secret() {
            format!("{name} is not a URL that can be used")
        } else {
            format!("{name} cannot be {}", quote(&written))
        };
        self.about(
            origin,
            message,
            Some(hint.unwrap_or_else(|| setting.takes(origin).into())),
        );
    }

    fn about(&mut self, origin: &Origin, message: String, hint: Hint) {
        match origin {
            Origin::Ini(span) | Origin::Toml(span) => self.complaints.at(span.start, message, hint),
            Origin::Variable(_) => self.complaints.variable(message, hint),
        }
    }

    fn written(&self, origin: &Origin) -> String {
        match origin {
            Origin::Ini(span) | Origin::Toml(span) => self.complaints.written(span.clone()).to_owned(),
            Origin::Variable(value) => value.clone(),
        }
    }
}

const fn valid(is_valid: bool) -> Result<(), Hint> {
    if is_valid { Ok(()) } else { Err(None) }
}

fn within(duration: Duration, range: &RangeInclusive<Duration>) -> Result<(), Hint> {
    valid(range.contains(&duration))
}

fn is_network(cidr: &Cidr) -> Result<(), Hint> {
    if cidr.prefix() == 0 {
        return Err(Some(
            "a network that is not everything; `check_network = false` ignores all traffic".into(),
        ));
    }
    let masked = cidr.masked();
    if masked == *cidr {
        Ok(())
    } else {
        Err(Some(format!("the network's first address: \"{masked}\"")))
    }
}

/// A DNS label (RFC 1123), as Kubernetes has it for namespaces.
#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_namespace(name: &String) -> Result<(), Hint> {
    let word = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let ends = !name.starts_with('-') && !name.ends_with('-');
    valid((1..=63).contains(&name.len()) && word && ends)
}

/// `IFNAMSIZ` and `dev_valid_name` of the kernel's net/core/dev.c.
fn is_interface(name: &String) -> Result<(), Hint> {
    let characters = name
        .chars()
        .all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':'));
    valid((1..=15).contains(&name.len()) && characters && name != "." && name != "..")
}

/// `prefix/name`, the prefix a DNS name; see "Labels and Selectors" in the documentation of Kubernetes.
fn is_label_name(name: &str) -> bool {
    let (prefix, name) = match name.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, name),
    };
    let prefix_is_good = prefix.is_none_or(|prefix| {
        prefix.len() <= 253
            && prefix.split('.').all(|part| is_label_word(part) && !part.contains('_'))
            && !prefix.contains(|c: char| c.is_ascii_uppercase())
    });
    prefix_is_good && is_label_word(name)
}

/// Empty, or as a label's name.
#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_label_value(value: &String) -> Result<(), Hint> {
    valid(value.is_empty() || is_label_word(value))
}

fn is_label_word(word: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=63).contains(&word.len())
        && word.chars().all(inner)
        && word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_url_or_empty(url: &String) -> Result<(), Hint> {
    let host = ["http://", "https://"].into_iter().find_map(|scheme| {
        let is_scheme = url
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        is_scheme.then(|| url[scheme.len()..].split(['/', '?', '#']).next().unwrap_or_default())
    });
    let has_host = host.is_some_and(|host| {
        !host
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .trim_start_matches(':')
            .is_empty()
    });
    let characters = url.chars().all(|c| c.is_ascii_graphic());
    valid(url.is_empty() || has_host && characters)
}
