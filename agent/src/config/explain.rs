//! What a policy means, in sentences.

use std::time::Duration;

use humantime::format_duration;

use super::{
    Background, Energy, HookFailure, Kubernetes, KubernetesApi, Metrics, NotificationMethod, Policy, ProbeMode, Scope,
    Sleep, SshNamespaces, WakeServer,
};

/// A summary for people, several lines. Shows of a webhook's URL only the host: the rest often is its password.
pub fn explain(policy: &Policy) -> String {
    let Policy {
        enabled,
        inactivity_timeout,
        check_interval,
        grace_period,
        min_awake,
        detection,
        excluded_namespaces,
        prevent_sleep_labels,
        notification,
        logging,
        probes,
        sleep,
        wake_server,
        metrics,
        energy,
        kubernetes,
    } = policy;
    let mut lines = Vec::new();
    let never = if *enabled {
        ""
    } else {
        "never sleeps, because [general] enabled is false; else: "
    };
    let grace = match *grace_period {
        Duration::ZERO => "at once".into(),
        grace => format!("{} after announcing it", format_duration(grace)),
    };
    lines.push(format!(
        "{never}sleeps after {} of quiet, {grace}; checks every {}; stays awake at least {} after waking",
        format_duration(*inactivity_timeout),
        format_duration(*check_interval),
        format_duration(*min_awake),
    ));

    lines.push("quiet means".into());
    let labels: Vec<_> = prevent_sleep_labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    lines.push(if detection.pods {
        let namespaces: Vec<_> = excluded_namespaces.iter().map(String::as_str).collect();
        let outside = match namespaces.as_slice() {
            [] => "no pod runs".into(),
            names => format!("no pod runs outside {}", names.join(", ")),
        };
        match labels.as_slice() {
            [] => format!("  pods: {outside}"),
            labels => format!(
                "  pods: {outside}, and none anywhere is labelled {}",
                labels.join(" or ")
            ),
        }
    } else {
        "  pods: not looked at".into()
    });
    lines.extend(detection.pods.then(|| asking(kubernetes)).flatten());
    lines.push(match detection.cpu_percent {
        Some(percent) => {
            let who = match detection.cpu_scope {
                Scope::Node => "",
                Scope::Pods => "pods use ",
            };
            format!("  cpu: {who}at most {percent} % of all CPUs")
        }
        None => "  cpu: not looked at".into(),
    });
    lines.push(match detection.network_bytes_per_sec {
        Some(limit) => format!(
            "  network: at most {limit} bytes per second of user traffic {}\n    background: {}",
            match (detection.network_scope, detection.interfaces.as_slice()) {
                (Scope::Pods, _) => "of all pods together".into(),
                (Scope::Node, []) => "on every physical interface".into(),
                (Scope::Node, names) => format!("on {}", names.join(", ")),
            },
            uncounted(&detection.background),
        ),
        None => "  network: not looked at".into(),
    });
    lines.push(match &detection.ssh {
        Some(ssh) => {
            let ports: Vec<_> = ssh.ports.iter().map(ToString::to_string).collect();
            let cap = match ssh.idle_cap {
                Some(cap) => format!("idle for less than {}", format_duration(cap)),
                None => "however long it has been idle".into(),
            };
            let elsewhere = match ssh.namespaces {
                SshNamespaces::Host => "",
                SshNamespaces::All => "; no login in pods and containers",
            };
            format!("  ssh: no session on port {}, {cap}{elsewhere}", ports.join(", "))
        }
        None => "  ssh: not looked at".into(),
    });

    lines.push(match notification {
        None => "tells nobody before a sleep".into(),
        Some(notification) => {
            let to = match &notification.method {
                NotificationMethod::Log => "the log".into(),
                NotificationMethod::Webhook { url } => format!("the webhook at {}", host(url)),
                NotificationMethod::Slack { url, channel: None } => format!("Slack at {}", host(url)),
                NotificationMethod::Slack {
                    url,
                    channel: Some(channel),
                } => format!("Slack channel {channel} at {}", host(url)),
            };
            format!("tells {to} {} before a sleep", format_duration(notification.before))
        }
    });
    lines.push(format!(
        "logs to {}, level {}, rotated above {} bytes, {} kept",
        logging.dir.join("power.log").display(),
        logging.level.as_str().to_lowercase(),
        logging.max_size,
        logging.retention,
    ));
    lines.push(match probes {
        ProbeMode::Auto => "eBPF programs: attached while their answer could change the verdict".into(),
        ProbeMode::Always => "eBPF programs: always attached".into(),
        ProbeMode::Off => "eBPF programs: never, /proc and /sys only".into(),
    });
    lines.extend(going_to_sleep(sleep));
    lines.extend(wake_server.as_ref().map(leave));
    lines.extend(figures(metrics));
    lines.extend(watts(energy));
    lines.join("\n")
}

/// `None`: as on any host.
fn asking(kubernetes: &Kubernetes) -> Option<String> {
    let Kubernetes { api, node } = kubernetes;
    let with = match api {
        KubernetesApi::Auto if node.is_none() => return None,
        KubernetesApi::Off => return Some("    the Kubernetes API is not asked: this host has no pods".into()),
        KubernetesApi::Auto => "with the credentials that are found".into(),
        KubernetesApi::InCluster => "with the credentials of the agent's own pod".into(),
        KubernetesApi::Kubeconfig(path) => format!("with {}", path.display()),
    };
    let node = node.as_deref().unwrap_or("the kubelet's or the host's name");
    Some(format!("    the Kubernetes API is asked {with} for the pods of {node}"))
}

fn going_to_sleep(sleep: &Sleep) -> Vec<String> {
    let Sleep {
        allow_s2idle,
        arm_wol,
        allow_unwakeable,
        wake_after,
        hook_timeout,
        hook_failure,
        hooks_folder,
    } = sleep;
    let state = match allow_s2idle {
        true => "suspends to RAM, or to idle where there is no deep state",
        false => "suspends to RAM only",
    };
    let wol = match arm_wol {
        true => "Wake-on-LAN is armed before",
        false => "Wake-on-LAN is left as it is",
    };
    let alarm = wake_after.map_or_else(String::new, |after| {
        format!("; the hardware clock wakes the host after {}", format_duration(after))
    });
    let unwakeable = match allow_unwakeable {
        true => "; sleeps even if nothing is known that could wake it",
        false => "",
    };
    let failure = match hook_failure {
        HookFailure::Continue => "one that fails does not hinder the sleep",
        HookFailure::Veto => "one that fails before the sleep keeps the host awake",
    };
    vec![
        format!("{state}; {wol}{alarm}{unwakeable}"),
        format!(
            "hooks: pre-sleep.d and post-wake.d in {}, each at most {}; {failure}",
            hooks_folder.display(),
            format_duration(*hook_timeout),
        ),
    ]
}

fn leave(server: &WakeServer) -> String {
    let WakeServer {
        url,
        token_file,
        ca_file,
    } = server;
    let token = match token_file {
        Some(path) => format!("the token in {}", path.display()),
        None => "no token".into(),
    };
    let trust = match ca_file {
        Some(path) => format!(", trusted by {}", path.display()),
        None => String::new(),
    };
    format!("sleeps only with the leave of the wake server at {url}{trust}, asked with {token}")
}

fn figures(metrics: &Metrics) -> Option<String> {
    let Metrics { listen, textfile } = metrics;
    let served = listen.map(|listen| format!("served at http://{listen}/metrics"));
    let written = textfile.as_ref().map(|path| format!("written to {}", path.display()));
    let ways: Vec<_> = served.into_iter().chain(written).collect();
    (!ways.is_empty()).then(|| format!("metrics: {}", ways.join(", ")))
}

fn watts(energy: &Energy) -> Option<String> {
    match (energy.watts_awake, energy.watts_asleep) {
        (None, None) => None,
        (Some(awake), None) => Some(format!("energy: {awake} W awake")),
        (None, Some(asleep)) => Some(format!("energy: {asleep} W asleep")),
        (Some(awake), Some(asleep)) => Some(format!("energy: {awake} W awake, {asleep} W asleep")),
    }
}

/// What does not count; a port once, whatever its protocols and directions.
fn uncounted(background: &Background) -> String {
    let mut ports: Vec<_> = background.ports.iter().map(|rule| rule.port).collect();
    ports.dedup();
    let words = |items: Vec<String>| items.join(", ");
    let mut parts = vec!["broadcast, multicast, ARP and LLDP".to_owned()];
    if !ports.is_empty() {
        parts.push(format!(
            "ports {}",
            words(ports.iter().map(ToString::to_string).collect())
        ));
    }
    if !background.protocols.is_empty() {
        parts.push(words(background.protocols.iter().map(ToString::to_string).collect()));
    }
    if !background.cidrs.is_empty() {
        parts.push(format!(
            "peers in {}",
            words(background.cidrs.iter().map(ToString::to_string).collect())
        ));
    }
    parts.join("; ")
}

/// Host and port of an http or https URL.
pub(crate) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}
