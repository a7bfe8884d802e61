//! The configuration: both forms of the file, what they mean, and what is said about a wrong one.

use std::{fs, path::Path, time::Duration};

use vmstation_agent::config::{
    Format, HookFailure, Invalid, IpProtocol, Kubernetes, KubernetesApi, LoadError, Loaded, NotificationMethod, Policy,
    ProbeMode, Scope, Sleep, SshNamespaces, WakeServer, explain, migrate, schema,
};

const GUIDE: &str = include_str!("fixtures/guide.conf");
const DEPLOYED: &str = include_str!("fixtures/deployed.conf");
const FULL_TOML: &str = include_str!("fixtures/full.toml");
const MINUTE: Duration = Duration::from_secs(60);

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse(text: &str, format: Format) -> Result<Loaded, Invalid> {
    let name = match format {
        Format::Ini => "autosleep.conf",
        Format::Toml => "autosleep.toml",
    };
    Policy::parse(text, format, Path::new(name), &no_env)
}

fn ini(text: &str) -> Policy {
    parse(text, Format::Ini).expect("the INI file is right").policy
}

fn toml(text: &str) -> Policy {
    parse(text, Format::Toml).expect("the TOML file is right").policy
}

/// The complaints about `text`, as printed.
fn complaints(text: &str, format: Format) -> String {
    parse(text, format).expect_err("the file is wrong").to_string()
}

#[test]
fn the_guides_file_means_what_it_says() {
    let policy = ini(GUIDE);
    assert!(policy.enabled);
    assert_eq!(policy.inactivity_timeout, 120 * MINUTE);
    assert_eq!(policy.check_interval, 5 * MINUTE);
    assert_eq!(policy.grace_period, 10 * MINUTE);
    assert!(policy.detection.pods);
    assert_eq!(policy.detection.cpu_percent, Some(10.0));
    assert_eq!(policy.detection.network_bytes_per_sec, Some(1024));
    assert!(policy.detection.interfaces.is_empty());
    let ssh = policy.detection.ssh.unwrap();
    assert_eq!(
        (ssh.ports, ssh.namespaces, ssh.idle_cap),
        (vec![22], SshNamespaces::Host, None)
    );
    let namespaces: Vec<_> = policy.excluded_namespaces.iter().map(String::as_str).collect();
    assert_eq!(namespaces, ["kube-system", "logging", "monitoring"]);
    let notification = policy.notification.unwrap();
    assert_eq!(notification.before, 5 * MINUTE);
    let url = "http://your-webhook-url".into();
    assert_eq!(notification.method, NotificationMethod::Webhook { url });
    assert_eq!(policy.logging, Policy::default().logging);
    assert_eq!(policy.probes, ProbeMode::Auto);
}

#[test]
fn the_deployed_longer_form_means_what_it_says() {
    let loaded = parse(DEPLOYED, Format::Ini).unwrap();
    let policy = loaded.policy;
    assert!(policy.enabled);
    assert_eq!(policy.inactivity_timeout, 240 * MINUTE);
    assert_eq!(policy.check_interval, 10 * MINUTE);
    assert_eq!(policy.grace_period, 15 * MINUTE);
    assert!(policy.detection.pods);
    assert_eq!(policy.detection.cpu_percent, Some(2.5));
    assert_eq!(policy.detection.network_bytes_per_sec, Some(512));
    assert_eq!(policy.detection.interfaces, ["eth0"]);
    assert_eq!(policy.detection.ssh, None);
    let namespaces: Vec<_> = policy.excluded_namespaces.iter().map(String::as_str).collect();
    assert_eq!(
        namespaces,
        [
            "cert-manager",
            "kube-node-lease",
            "kube-public",
            "kube-system",
            "monitoring"
        ]
    );
    let labels: Vec<_> = policy
        .prevent_sleep_labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        labels,
        [
            ("app.kubernetes.io/always-on", "true"),
            ("vmstation.io/prevent-sleep", "true")
        ]
    );
    let notification = policy.notification.unwrap();
    assert_eq!(notification.before, 5 * MINUTE);
    assert_eq!(
        notification.method,
        NotificationMethod::Slack {
            url: "https://hooks.example.com/T0/B0;x#top".into(),
            channel: Some("#ops-alerts".into()),
        }
    );
    assert_eq!(policy.logging.dir, Path::new("/var/log/vm station"));
    assert_eq!(policy.logging.level.as_str(), "INFO");
    assert_eq!(policy.logging.max_size, 100 << 20);
    assert_eq!(policy.logging.retention, 7);
    assert_eq!(loaded.notes, ["`max_log_size=100` is read as 104857600 bytes"]);
}

#[test]
fn every_toml_setting_means_what_it_says() {
    let policy = toml(FULL_TOML);
    assert_eq!(policy.inactivity_timeout, 120 * MINUTE);
    assert_eq!(policy.check_interval, Duration::from_secs(30));
    assert_eq!(policy.grace_period, Duration::from_secs(90));
    assert_eq!(policy.min_awake, 3 * MINUTE);
    assert_eq!(policy.probes, ProbeMode::Off);
    assert!(!policy.detection.pods);
    assert_eq!(policy.detection.cpu_percent, Some(12.5));
    assert_eq!(
        (policy.detection.cpu_scope, policy.detection.network_scope),
        (Scope::Pods, Scope::Node)
    );
    assert_eq!(policy.detection.network_bytes_per_sec, Some(4096));
    assert_eq!(policy.detection.interfaces, ["eth0", "enp3s0"]);
    let background = &policy.detection.background;
    let ports: Vec<_> = background.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["8443/tcp in", "9443/tcp out", "51820/udp"]);
    assert_eq!((background.cidrs.len(), background.protocols.len()), (2, 2));
    let ssh = policy.detection.ssh.unwrap();
    assert_eq!((ssh.ports, ssh.namespaces), (vec![22, 2222], SshNamespaces::All));
    assert_eq!(ssh.idle_cap, Some(12 * 60 * MINUTE));
    assert_eq!(policy.excluded_namespaces.len(), 2);
    assert_eq!(policy.prevent_sleep_labels["tier"], "critical");
    let notification = policy.notification.unwrap();
    assert_eq!(notification.before, MINUTE);
    assert_eq!(
        notification.method,
        NotificationMethod::Slack {
            url: "https://hooks.example.com/T0/B0#top".into(),
            channel: Some("#ops".into()),
        }
    );
    assert_eq!(policy.logging.level.as_str(), "DEBUG");
    assert_eq!(policy.logging.max_size, 64 << 20);
    assert_eq!(policy.logging.retention, 3);
    assert_eq!(
        policy.sleep,
        Sleep {
            allow_s2idle: true,
            arm_wol: false,
            allow_unwakeable: true,
            wake_after: Some(8 * 60 * MINUTE),
            hook_timeout: Duration::from_secs(20),
            hook_failure: HookFailure::Veto,
            hooks_folder: "/srv/hooks".into(),
        }
    );
    assert_eq!(
        policy.wake_server,
        Some(WakeServer {
            url: "https://master:9443".into(),
            token_file: Some("/etc/vmstation/autosleep/token".into()),
            ca_file: Some("/etc/vmstation/autosleep/ca.pem".into()),
        })
    );
    assert_eq!(policy.metrics.listen, Some("127.0.0.1:9877".parse().unwrap()));
    let textfile = "/var/lib/node_exporter/vmstation.prom";
    assert_eq!(policy.metrics.textfile.as_deref(), Some(Path::new(textfile)));
    let energy = (policy.energy.watts_awake, policy.energy.watts_asleep);
    assert_eq!(energy, (Some(45.0), Some(2.5)));
    let kubeconfig = "/etc/vmstation/autosleep/kubeconfig";
    assert_eq!(policy.kubernetes.api, KubernetesApi::Kubeconfig(kubeconfig.into()));
    assert_eq!(policy.kubernetes.node.as_deref(), Some("node-1"));
    let summary = explain(&toml(FULL_TOML));
    for said in [
        "suspends to RAM, or to idle where there is no deep state; Wake-on-LAN is left as it is; \
         the hardware clock wakes the host after 8h; sleeps even if nothing is known that could wake it\n",
        "in /srv/hooks, each at most 20s; one that fails before the sleep keeps the host awake\n",
        "sleeps only with the leave of the wake server at https://master:9443, trusted by /etc/vmstation/autosleep/ca.pem, \
         asked with the token in /etc/vmstation/autosleep/token\n",
        "metrics: served at http://127.0.0.1:9877/metrics, written to /var/lib/node_exporter/vmstation.prom\n",
        "energy: 45 W awake, 2.5 W asleep",
    ] {
        assert!(summary.contains(said), "{said}\nnot in\n{summary}");
    }
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
    for text in [GUIDE, DEPLOYED] {
        let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        assert_eq!(ini(&windows), ini(text));
    }
    let windows = format!("\u{feff}{}", FULL_TOML.replace('\n', "\r\n"));
    assert_eq!(toml(&windows), toml(FULL_TOML));
    let wrong = complaints("\u{feff}[general]\r\nenabled=maybe\r\n", Format::Ini);
    assert!(
        wrong.starts_with("autosleep.conf:2:9: error: `enabled` cannot be `maybe`\n"),
        "{wrong}"
    );
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(ini(""), Policy::default());
    assert_eq!(toml(""), Policy::default());
}

#[test]
fn a_switch_that_is_off_takes_its_signal_out() {
    let policy = ini(
        "[general]\nenabled=off\n[activity_detection]\ncheck_pods=0\ncheck_cpu=false\ncpu_threshold_percent=5\n\
        check_network=no\ncheck_ssh_sessions=Off\n[notification]\nenabled=false\nmethod=webhook\n[excluded_namespaces]\n",
    );
    assert!(!policy.enabled);
    assert!(!policy.detection.pods);
    assert_eq!(policy.detection.cpu_percent, None);
    assert_eq!(policy.detection.network_bytes_per_sec, None);
    assert_eq!(policy.detection.ssh, None);
    assert_eq!(policy.notification, None);
    assert!(policy.excluded_namespaces.is_empty());
}

#[test]
fn a_value_nobody_wrote_is_never_complained_about() {
    let policy = ini("[general]\ninactivity_timeout_minutes=1\ngrace_period_minutes=2\n[notification]\nenabled=true\n");
    assert_eq!(policy.check_interval, MINUTE);
    assert_eq!(policy.notification.unwrap().before, 2 * MINUTE);
}

#[test]
fn comment_signs_inside_a_value_stay() {
    let url = |value: &str| {
        let text = format!("[notification]\nenabled=true\nwebhook_url={value}\n");
        match ini(&text).notification.unwrap().method {
            NotificationMethod::Webhook { url } => url,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(url("http://a/#b;c"), "http://a/#b;c");
    assert_eq!(url(" http://a/#b ;c"), "http://a/#b");
    assert_eq!(url("\"http://a/#b\"#c"), "http://a/#b");
    assert_eq!(url("'http://a/?x=\"1\"'\t; c"), "http://a/?x=\"1\"");
    assert_eq!(url("http://a/?x=1=2"), "http://a/?x=1=2");
}

#[test]
fn the_environment_goes_before_the_file_and_is_checked_alike() {
    let load = |variables: &[(&str, &str)]| {
        let env = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Policy::parse(GUIDE, Format::Ini, Path::new("autosleep.conf"), &env)
    };
    let loaded = load(&[
        ("INACTIVITY_TIMEOUT_MINUTES", "60"),
        ("CHECK_INTERVAL_MINUTES", " 1 "),
        ("GRACE_PERIOD_MINUTES", "7"),
        ("CPU_THRESHOLD_PERCENT", "33.5"),
        ("NETWORK_THRESHOLD_BYTES", "5000"),
        ("NETWORK_INTERFACE", "eth1,eth2"),
    ])
    .unwrap();
    let policy = loaded.policy;
    assert_eq!(policy.inactivity_timeout, 60 * MINUTE);
    assert_eq!(policy.check_interval, MINUTE);
    assert_eq!(policy.grace_period, 7 * MINUTE);
    assert_eq!(policy.detection.cpu_percent, Some(33.5));
    assert_eq!(policy.detection.network_bytes_per_sec, Some(5000));
    assert_eq!(policy.detection.interfaces, ["eth1", "eth2"]);
    assert_eq!(loaded.notes.len(), 6);

    assert_eq!(load(&[("GRACE_PERIOD_MINUTES", "")]).unwrap().policy, ini(GUIDE));
    assert_eq!(
        load(&[("CPU_THRESHOLD_PERCENT", "101"), ("GRACE_PERIOD_MINUTES", "1h")])
            .unwrap_err()
            .to_string(),
        "environment: error: `GRACE_PERIOD_MINUTES` cannot be `1h`\n  hint: minutes, without a unit: 60\n\
         environment: error: `CPU_THRESHOLD_PERCENT` cannot be `101`\n  hint: a percentage of all CPUs without a sign, 0 to 100"
    );
    assert_eq!(
        load(&[("INACTIVITY_TIMEOUT_MINUTES", "3")]).unwrap_err().to_string(),
        "autosleep.conf:4:24: error: `check_interval_minutes` (5m) is longer than `INACTIVITY_TIMEOUT_MINUTES` (3m)\n  hint: at most 3m"
    );
}

#[test]
fn the_folder_decides_which_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);

    let neither = Policy::load_folder(folder.path(), &no_env).unwrap();
    assert_eq!((neither.policy, neither.path), (Policy::default(), None));
    assert_eq!(neither.notes.len(), 1);

    fs::write(path("autosleep.conf"), GUIDE).unwrap();
    let conf = Policy::load_folder(folder.path(), &no_env).unwrap();
    assert_eq!(conf.path, Some(path("autosleep.conf")));
    assert_eq!((conf.policy, conf.format), (ini(GUIDE), Format::Ini));
    assert!(conf.notes.is_empty(), "{:?}", conf.notes);

    fs::write(path("autosleep.toml"), FULL_TOML).unwrap();
    let both = Policy::load_folder(folder.path(), &no_env).unwrap();
    assert_eq!(both.path, Some(path("autosleep.toml")));
    assert_eq!((both.policy, both.format), (toml(FULL_TOML), Format::Toml));
    assert!(
        both.notes[0].contains("autosleep.conf is there too"),
        "{:?}",
        both.notes
    );
}

#[test]
fn a_file_of_another_name_is_read_by_its_contents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    for (text, format) in [(GUIDE, Format::Ini), (FULL_TOML, Format::Toml), (DEPLOYED, Format::Ini)] {
        fs::write(&path, text).unwrap();
        let loaded = Policy::load(Some(&path), &no_env).unwrap();
        assert_eq!(loaded.format, format);
        assert!(loaded.notes.last().unwrap().contains("going by its contents"));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_not_an_invalid_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("autosleep.conf");
    let load = || Policy::load(Some(&path), &no_env).unwrap_err();
    assert!(matches!(load(), LoadError::Read { .. }));
    fs::write(&path, b"[general]\nenabled=\xff\n").unwrap();
    assert!(matches!(load(), LoadError::NotUtf8 { line: 2, .. }));
    fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert!(matches!(load(), LoadError::TooLong { .. }));
    fs::write(&path, "[general]\nenabled=x\n").unwrap();
    assert!(matches!(load(), LoadError::Invalid(invalid) if invalid.path == path));
}

#[test]
fn migrated_fixtures_mean_the_same_and_keep_their_comments() {
    for text in [GUIDE, DEPLOYED, ""] {
        let migrated = migrate(text, Path::new("autosleep.conf")).unwrap();
        assert_eq!(toml(&migrated), ini(text), "{migrated}");
    }
    let migrated = migrate(DEPLOYED, Path::new("autosleep.conf")).unwrap();
    for kept in [
        "# Auto-sleep of this node",
        "[general] # when to sleep",
        "inactivity_timeout = \"240m\" # 4 hours",
        "check_interval = \"10m\" # ten",
        "network_interfaces = [\"eth0\"]",
        "    \"kube-public\", # cluster information",
        "# and ours",
        "\"app.kubernetes.io/always-on\" = \"true\" # quoted",
        "webhook_url = \"https://hooks.example.com/T0/B0;x#top\" # keep secret",
        "max_log_size = \"100M\"",
    ] {
        assert!(migrated.contains(kept), "{kept}\nnot in\n{migrated}");
    }
    let broken = migrate("[general]\nenabled=x\n", Path::new("old.conf")).unwrap_err();
    assert_eq!(broken.path, Path::new("old.conf"));
}

#[test]
fn the_schema_knows_every_setting_and_its_default() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    let mut defaults = String::new();
    let mut settings = 0;
    let properties = |value: &serde_json::Value| value["properties"].as_object().unwrap().clone();
    let (sections, lists): (Vec<_>, Vec<_>) = properties(&schema)
        .into_iter()
        .partition(|(_, value)| value["properties"].is_object());
    for (name, value) in &lists {
        assert!(value["description"].is_string(), "{name}: {value}");
        let default = match name.as_str() {
            "prevent_sleep_labels" => "{ \"vmstation.io/prevent-sleep\" = \"true\" }".to_owned(),
            _ => value["default"].to_string(),
        };
        defaults += &format!("{name} = {default}\n");
    }
    for (section, value) in &sections {
        assert_eq!(value["additionalProperties"], false);
        defaults += &format!("[{section}]\n");
        for (key, value) in properties(value) {
            settings += 1;
            assert!(value["description"].is_string(), "{key}: {value}");
            assert!(!value.to_string().contains("null"), "{key}: {value}");
            if let Some(default) = value.get("default") {
                defaults += &format!("{key} = {default}\n");
            }
        }
    }
    assert_eq!((sections.len(), settings, lists.len()), (10, 48, 2));
    assert_eq!(toml(&defaults), Policy::default());
    assert_eq!(
        schema["properties"]["activity_detection"]["properties"]["cpu_threshold_percent"]["maximum"],
        100
    );
    let rows = schema["properties"]["network_background"]["properties"]["defaults"]["x-defaults"]
        .as_array()
        .expect("the table of defaults");
    assert!(rows.len() > 25);
    for row in rows {
        assert!(
            row["rule"].is_string() && row["reason"].as_str().is_some_and(|reason| reason.len() > 10),
            "{row}"
        );
    }
}

#[test]
fn background_is_the_defaults_and_what_is_written() {
    let rules = |policy: &Policy| -> Vec<_> {
        policy
            .detection
            .background
            .ports
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let defaults = Policy::default().detection.background;
    let more = toml("[network_background]\nports = [\"8080/tcp in\", \"51820/udp\"]\nprotocols = [\"gre\", 103]\n");
    assert_eq!(rules(&more).len(), defaults.ports.len() + 2);
    let protocols = &more.detection.background.protocols;
    assert!(protocols.contains(&IpProtocol(47)) && protocols.contains(&IpProtocol(103)));
    assert!(protocols.is_superset(&defaults.protocols));

    // SSH is background by default, as long as its sessions are a signal of their own.
    assert!(rules(&toml("[activity_detection]\nssh_ports = [2222]\n")).contains(&"2222/tcp in".into()));
    assert!(!rules(&toml("[activity_detection]\nssh_ports = [2222]\n")).contains(&"22/tcp in".into()));
    assert!(!rules(&ini("[activity_detection]\ncheck_ssh_sessions=false\n")).contains(&"22/tcp in".into()));

    let own = toml("[network_background]\ndefaults = false\ncidrs = [\"10.0.0.0/8\", \"fd00::1\"]\n")
        .detection
        .background;
    assert!(own.ports.is_empty() && own.protocols.is_empty());
    let cidrs: Vec<_> = own.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "fd00::1/128"]);
    assert_eq!(ini("").detection.background, defaults);
}

#[test]
fn background_that_cannot_be_is_complained_about() {
    let wrong = complaints(
        "[network_background]\ndefaults = \"yes\"\nports = [\"http\", \"0/tcp\", \"80/sctp\", \"80/tcp up\", \"80/tcp\", \"80/tcp\"]\n\
         cidrs = [\"10.1.2.3/8\", \"0.0.0.0/0\", \"10.0.0.0/40\"]\nprotocols = [\"tcp\", 6, 17, 256]\nport = []\n",
        Format::Toml,
    );
    for expected in [
        "autosleep.toml:2:12: error: `defaults` cannot be",
        "autosleep.toml:3:10: error: `ports` cannot be `\"http\"`",
        "`ports` cannot be `\"0/tcp\"`",
        "`ports` cannot be `\"80/sctp\"`",
        "`ports` cannot be `\"80/tcp up\"`",
        "`\"80/tcp\"` is listed twice",
        "hint: the network's first address: \"10.0.0.0/8\"",
        "`check_network = false` ignores all traffic",
        "`cidrs` cannot be `\"10.0.0.0/40\"`",
        "`protocols` cannot be `\"tcp\"`",
        "`protocols` cannot be `6`",
        "`protocols` cannot be `17`",
        "`protocols` cannot be `256`",
        "autosleep.toml:6:1: error: unknown key `port` in [network_background]\n  hint: did you mean `ports`?",
    ] {
        assert!(wrong.contains(expected), "{expected}\nnot in\n{wrong}");
    }
    let many: Vec<_> = (0..=256)
        .map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256))
        .collect();
    let many = format!("[network_background]\ncidrs = [{}]\n", many.join(", "));
    assert_eq!(complaints(&many, Format::Toml).matches("error:").count(), 1);
    let ini = complaints("[network_background]\nports=80/tcp\n", Format::Ini);
    assert!(ini.contains("only autosleep.toml has it"), "{ini}");
}

#[test]
fn either_form_says_whose_use_counts() {
    let policy = ini("[activity_detection]\ncpu_scope=Pods\nnetwork_scope=pods\n");
    let scopes = (policy.detection.cpu_scope, policy.detection.network_scope);
    assert_eq!(scopes, (Scope::Pods, Scope::Pods));
    let summary = explain(&policy);
    assert!(summary.contains("pods use at most 10 % of all CPUs"), "{summary}");
    assert!(
        summary.contains("at most 1024 bytes per second of user traffic of all pods together\n"),
        "{summary}"
    );
    let unknown = complaints("[activity_detection]\ncpu_scope = cluster\n", Format::Ini);
    assert!(unknown.contains("node or pods"), "{unknown}");
    // Nothing else can tell the traffic of pods.
    let blind = "[general]\nprobes = \"off\"\n[activity_detection]\nnetwork_scope = \"pods\"\n";
    let blind = complaints(blind, Format::Toml);
    assert!(blind.contains("4:17") && blind.contains("`probes` is off"), "{blind}");
    complaints("[activity_detection]\ncpu_scope = \"Pods\"\n", Format::Toml);
}

#[test]
fn the_summary_tells_everything_but_the_webhooks_secret() {
    assert_eq!(
        explain(&ini(GUIDE)),
        "sleeps after 2h of quiet, 10m after announcing it; checks every 5m; stays awake at least 5m after waking\n\
         quiet means\n  \
           pods: no pod runs outside kube-system, logging, monitoring, and none anywhere is labelled vmstation.io/prevent-sleep=true\n  \
           cpu: at most 10 % of all CPUs\n  \
           network: at most 1024 bytes per second of user traffic on every physical interface\n    \
             background: broadcast, multicast, ARP and LLDP; ports 22, 53, 67, 68, 123, 179, 546, 547, 2379, 2380, 3784, 4240, \
             5353, 5473, 6443, 7946, 9100, 9876, 10249, 10250, 10256, 10257, 10259; icmp, igmp, icmpv6, eigrp, ospf, vrrp\n  \
           ssh: no session on port 22, however long it has been idle\n\
         tells the webhook at your-webhook-url 5m before a sleep\n\
         logs to /var/log/vmstation/power.log, level info, rotated above 10485760 bytes, 5 kept\n\
         eBPF programs: attached while their answer could change the verdict\n\
         suspends to RAM only; Wake-on-LAN is armed before\n\
         hooks: pre-sleep.d and post-wake.d in /opt/vmstation/power, each at most 1m; one that fails does not hinder the sleep"
    );
    let deployed = ini(DEPLOYED);
    assert!(!explain(&deployed).contains("T0"));
    let debug = format!("{deployed:?}");
    assert!(debug.contains("hooks.example.com") && !debug.contains("T0"), "{debug}");
}

#[test]
fn figures_for_everybody_are_pointed_out() {
    let notes = |listen: &str| {
        let text = format!("[metrics]\nlisten = \"{listen}\"\n");
        parse(&text, Format::Toml).unwrap().notes.join("\n")
    };
    assert_eq!(notes("127.0.0.1:9877") + &notes("[::1]:9877"), "");
    for open in ["0.0.0.0:9877", "192.168.1.9:9877", "[::]:9877"] {
        assert!(notes(open).contains("there is no password"), "{open}");
    }
}

#[test]
fn the_kubernetes_api_is_found_as_written() {
    let parsed = |text: &str| parse(&format!("[kubernetes]\n{text}"), Format::Toml).unwrap().policy;
    assert_eq!(parsed("").kubernetes, Kubernetes::default());
    assert_eq!(
        parsed("api = \"in-cluster\"\n").kubernetes.api,
        KubernetesApi::InCluster
    );
    assert_eq!(parsed("node = \"a.b-1\"\n").kubernetes.node.as_deref(), Some("a.b-1"));
    let off = parsed("api = \"off\"\n");
    assert_eq!(off.kubernetes.api, KubernetesApi::Off);
    assert!(
        explain(&off).contains("the Kubernetes API is not asked"),
        "{}",
        explain(&off)
    );
}

#[test]
fn f5_a_kubernetes_section_that_cannot_be_is_complained_about() {
    let cases = [
        ("api = \"yes\"", "hint: \"auto\", \"in-cluster\" or \"off\""),
        ("kubeconfig = \"kubeconfig\"", "an absolute path"),
        ("node = \"Node-1\"", "the name of a node"),
        ("node = \"a,spec.nodeName=b\"", "the name of a node"),
        (
            "api = \"off\"\nkubeconfig = \"/k\"",
            "`kubeconfig` in [kubernetes] means nothing unless `api` is auto",
        ),
        ("nodes = \"a\"", "did you mean `node`?"),
    ];
    for (text, said) in cases {
        let wrong = complaints(&format!("[kubernetes]\n{text}\n"), Format::Toml);
        assert!(wrong.contains(said), "{text}: {wrong}");
    }
}

#[test]
fn a_wake_server_is_taken_as_written() {
    let parsed = |url: &str| parse(&format!("[wake_server]\nurl = \"{url}\"\n"), Format::Toml).unwrap();
    for (url, taken) in [
        ("https://master:9876", "https://master:9876"),
        ("http://10.0.0.1:9876/", "http://10.0.0.1:9876"),
        ("HTTPS://[fd00::1]:9876", "HTTPS://[fd00::1]:9876"),
    ] {
        let loaded = parsed(url);
        assert_eq!(loaded.policy.wake_server.unwrap().url, taken);
        assert!(loaded.notes.join("\n").contains("has no `token_file`"));
    }
    for web in ["https://master", "https://master:443", "http://master:80"] {
        let loaded = parsed(web);
        assert!(loaded.notes.join("\n").contains("counts as traffic"), "{web}");
        let ports = &loaded.policy.detection.background.ports;
        assert!(ports.iter().all(|rule| ![80, 443].contains(&rule.port)), "{web}");
    }
    let plain = "[wake_server]\nurl = \"http://master:9876\"\nca_file = \"/ca.pem\"\n";
    let notes = parse(plain, Format::Toml).unwrap().notes.join("\n");
    assert!(notes.contains("`ca_file` in [wake_server] means nothing"), "{notes}");
}

#[test]
fn f5_a_wake_server_that_cannot_be_is_complained_about() {
    for url in [
        "",
        "master",
        "master:9876",
        "ftp://master:9876",
        "https://",
        "https://:9876",
        "https://master:",
        "https://master:0",
        "https://master:99999",
        "https://master:9876/wake",
        "https://master:9876?x",
        "https://master:9876/#x",
        "https://user:T0SECRET@master:9876",
        "https://mas ter:9876",
    ] {
        let wrong = complaints(&format!("[wake_server]\nurl = \"{url}\"\n"), Format::Toml);
        assert!(wrong.starts_with("autosleep.toml:2:7: error: `url` "), "{url}: {wrong}");
        assert!(!wrong.contains("T0SECRET"), "{wrong}");
    }
    let wrong = complaints(
        "[wake_server]\ntoken_file = \"token\"\nca_file = \"/ca.pem\"\ntoken = \"T\"\n[wakeserver]\n",
        Format::Toml,
    );
    for expected in [
        "autosleep.toml:2:14: error: `token_file` cannot be `\"token\"`\n  hint: an absolute path",
        "autosleep.toml:3:11: error: `ca_file` in [wake_server] means nothing without `url`\n  hint: set `url` to http://",
        "autosleep.toml:4:1: error: unknown key `token` in [wake_server]",
        "error: unknown section `wakeserver`\n  hint: did you mean [wake_server]?",
    ] {
        assert!(wrong.contains(expected), "{expected}\nnot in\n{wrong}");
    }
}

#[test]
fn f5_a_sleep_that_cannot_be_is_complained_about() {
    let wrong = complaints(
        "[sleep]\nallow_s2idle = \"yes\"\nwake_after = \"1s\"\nhook_timeout = \"2h\"\nhook_failure = \"abort\"\n\
         hooks_folder = \"hooks\"\nwake_afterr = \"1h\"\n[metrics]\nlisten = \"9877\"\ntextfile = \"/x/vmstation.txt\"\n\
         [energy]\nwatts_awake = -1\nwatts_asleep = 10001\n",
        Format::Toml,
    );
    for expected in [
        "autosleep.toml:2:16: error: `allow_s2idle` cannot be `\"yes\"`\n  hint: true or false",
        "autosleep.toml:3:14: error: `wake_after` cannot be `\"1s\"`\n  hint: a duration in quotes, \"2s\" to \"30d\"",
        "autosleep.toml:4:16: error: `hook_timeout` cannot be `\"2h\"`",
        "autosleep.toml:5:16: error: `hook_failure` cannot be `\"abort\"`\n  hint: \"continue\" or \"veto\"",
        "autosleep.toml:6:16: error: `hooks_folder` cannot be `\"hooks\"`\n  hint: an absolute path",
        "autosleep.toml:7:1: error: unknown key `wake_afterr` in [sleep]\n  hint: did you mean `wake_after`?",
        "autosleep.toml:9:10: error: `listen` cannot be `\"9877\"`\n  hint: an address and a port",
        "autosleep.toml:10:12: error: `textfile` cannot be `\"/x/vmstation.txt\"`\n  hint: an absolute path ending in .prom",
        "autosleep.toml:12:15: error: `watts_awake` cannot be `-1`\n  hint: a number of watts, 0 to 10000",
        "autosleep.toml:13:16: error: `watts_asleep` cannot be `10001`",
    ] {
        assert!(wrong.contains(expected), "{expected}\nnot in\n{wrong}");
    }
    assert_eq!(wrong.matches("error:").count(), 10, "{wrong}");
    for (text, expected) in [
        ("[sleep]\nwake_after = \"31d\"\n", "2:14: error: `wake_after` cannot be"),
        (
            "[sleep]\nhook_timeout = \"0s\"\n",
            "2:16: error: `hook_timeout` cannot be",
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:0\"\n",
            "2:10: error: `listen` cannot be",
        ),
        (
            "[metrics]\nlisten = \"localhost:9877\"\n",
            "2:10: error: `listen` cannot be",
        ),
        (
            "[metrics]\ntextfile = \"/x/.prom\"\n",
            "2:12: error: `textfile` cannot be",
        ),
        (
            "[metrics]\ntextfile = \"x.prom\"\n",
            "2:12: error: `textfile` cannot be",
        ),
        ("[energy]\nwatts_awake = nan\n", "2:15: error: `watts_awake` cannot be"),
        (
            "[energy]\nwatts_awake = 3\nwatts_asleep = 3\n",
            "3:16: error: `watts_asleep` (3) is not below `watts_awake` (3)",
        ),
    ] {
        let wrong = complaints(text, Format::Toml);
        assert!(wrong.contains(expected), "{expected}\nnot in\n{wrong}");
        assert_eq!(wrong.matches("error:").count(), 1, "{wrong}");
    }
    let ini = complaints("[sleep]\nwake_after=8h\n", Format::Ini);
    assert!(ini.contains("only autosleep.toml has it"), "{ini}");
}
