//! Configurations, right and wrong.

use proptest::prelude::*;

use vmstation_protocol::Role;

use super::*;
use crate::permission::{Proof, Terms};

fn parse(text: &str) -> Result<Settings, String> {
    parse_with(text, Overrides::default())
}

fn parse_with(text: &str, overrides: Overrides) -> Result<Settings, String> {
    Settings::parse(text, Path::new("w.toml"), overrides).map_err(|error| error.to_string())
}

#[test]
fn nothing_written_is_the_defaults() {
    let settings = parse("").unwrap();
    assert_eq!(settings.listen, "127.0.0.1:9876".parse().unwrap());
    assert_eq!(settings.state_dir, Path::new("/var/lib/vmstation/wake-server"));
    assert_eq!(
        (settings.token_file, settings.secret_file, settings.tls),
        (None, None, None)
    );
    assert_eq!((settings.allow_from, settings.status_from), (None, None));
    assert_eq!(settings.wake, WakeSettings::default());
    assert_eq!(settings.sleep, SleepSettings::default());
    assert_eq!(settings.kubernetes, KubernetesSettings::default());
    assert_eq!(settings.limits, Limits::default());
    assert!(settings.registry.iter().all(|path| path.exists()));
}

#[test]
fn everything_can_be_written() {
    let settings = parse(
        r#"
listen = "[::]:9999"
token_file = "/etc/vmstation/token"
secret_file = "/etc/vmstation/secret"
state_dir = "/var/lib/x"
registry = ["/etc/vmstation/hosts.yml", "/etc/vmstation/wol-registry.conf"]
allow_from = ["192.0.2.0/24", "2001:db8::1"]
status_from = ["0.0.0.0/0"]
host_names = ["Power.example.org"]
[tls]
certificate = "/c.pem"
key = "/k.pem"
[wake]
deadline = "1m 30s"
stagger = "0s"
resend = ["0s", "500ms", "1m"]
udp_ports = [9]
node_interval = "1s"
[sleep]
first_time = "woken"
leave = "1m"
cool_down = "0s"
pods = "freeze"
drain_deadline = "30s"
unmanaged_pods = true
delete_local_data = true
wake_on_demand = false
wake_for_moved = true
demand_settle = "1s"
demand_cooldown = "1m"
prevent_sleep_labels = ["keep=awake", "x="]
[sleep.min_awake]
worker = 2
[limits]
requests_per_minute = 1_000
connections = 10
connections_per_client = 5
header_timeout = "1s"
body_timeout = "2s"
idle_timeout = "3s"
poll_timeout = "4s"
body_bytes = 1024
[notify]
webhook = "https://hooks.example.org/a"
slack = "http://192.0.2.1:8080/b"
[kubernetes]
namespace = "power"
"#,
    )
    .unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(
        settings,
        Settings {
            listen: "[::]:9999".parse().unwrap(),
            token_file: Some("/etc/vmstation/token".into()),
            secret_file: Some("/etc/vmstation/secret".into()),
            state_dir: "/var/lib/x".into(),
            registry: vec![
                "/etc/vmstation/hosts.yml".into(),
                "/etc/vmstation/wol-registry.conf".into()
            ],
            allow_from: Some(vec![
                "192.0.2.0/24".parse().unwrap(),
                "2001:db8::1/128".parse().unwrap()
            ]),
            status_from: Some(vec!["0.0.0.0/0".parse().unwrap()]),
            host_names: vec!["power.example.org".into()],
            tls: Some(TlsFiles {
                certificate: "/c.pem".into(),
                key: "/k.pem".into(),
            }),
            wake: WakeSettings {
                deadline: seconds(90),
                stagger: seconds(0),
                resend: vec![seconds(0), Duration::from_millis(500), seconds(60)],
                udp_ports: vec![9],
                node_interval: seconds(1),
            },
            sleep: SleepSettings {
                min_awake: [(Role::Worker, 2)].into(),
                first_time: Proof::Woken,
                terms: Terms {
                    lifetime: seconds(60),
                    cool_down: Duration::ZERO,
                    ..Terms::default()
                },
                pods: PodRules {
                    mode: Mode::Freeze,
                    drain_deadline: seconds(30),
                    unmanaged: true,
                    local_data: true,
                    prevent_sleep_labels: vec![("keep".into(), "awake".into()), ("x".into(), String::new())],
                },
                demand: DemandRules {
                    on: false,
                    moved: true,
                    settle: seconds(1),
                    cooldown: seconds(60),
                },
            },
            limits: Limits {
                requests_per_minute: 1000,
                connections: 10,
                connections_per_client: 5,
                header_timeout: seconds(1),
                body_timeout: seconds(2),
                idle_timeout: seconds(3),
                poll_timeout: seconds(4),
                body_bytes: 1024,
            },
            notify: vec![
                Target::new(Form::Webhook, "https://hooks.example.org/a").unwrap(),
                Target::new(Form::Slack, "http://192.0.2.1:8080/b").unwrap(),
            ],
            kubernetes: KubernetesSettings {
                namespace: "power".into(),
                ..KubernetesSettings::default()
            },
        }
    );
}

#[test]
fn f5_all_that_is_wrong_is_told_at_once_with_line_and_hint() {
    assert_eq!(
        parse(
            r#"listen = ":9876"
tokn_file = "/x"
state_dir = "relative"
registry = "/etc/vmstation/hosts.yml"
allow_from = ["192.0.2.1/24", "nonsense", 5]
status_from = []
[tls]
certificate = "/c.pem"
[wake]
deadline = 180
stagger = "-1s"
resend = ["0s", "2s", "1s", "5m"]
udp_ports = [0, 70000]
node_interval = "2h"
[limits]
requests_per_minute = 0
connections = 99999999999999999999
header_timeout = "5 parsecs"
body_bytes = "64k"
idle_timeout = "0s"
[limit]
"#
        )
        .unwrap_err(),
        "\
w.toml:1:10: error: `listen` cannot be `\":9876\"`
  hint: with an address: \"127.0.0.1:9876\", or \"0.0.0.0:9876\"
w.toml:2:1: error: unknown key `tokn_file`
  hint: did you mean `token_file`?
w.toml:3:13: error: `state_dir` cannot be `\"relative\"`
  hint: it takes an absolute path
w.toml:4:12: error: `registry` cannot be `\"/etc/vmstation/hosts.yml\"`
  hint: it takes a list of absolute paths
w.toml:5:15: error: `allow_from` cannot be `\"192.0.2.1/24\"`
  hint: \"192.0.2.0/24\" is the network, \"192.0.2.1\" the host
w.toml:5:31: error: `allow_from` cannot be `\"nonsense\"`
  hint: it takes a list of networks, as [\"192.0.2.0/24\", \"2001:db8::/32\"]
w.toml:5:43: error: `allow_from` cannot be `5`
  hint: it takes a list of networks, as [\"192.0.2.0/24\", \"2001:db8::/32\"]
w.toml:6:1: error: `status_from` takes 1 to 1024 networks
  hint: without the key everybody may
w.toml:8:1: error: a certificate without its key
  hint: write key = \"/path\"
w.toml:10:12: error: `deadline` cannot be `180`
  hint: with its unit: \"180s\"
w.toml:11:11: error: `stagger` cannot be `\"-1s\"`
  hint: it takes a time with its unit, 0s to 1m
w.toml:12:23: error: `resend` has to ascend
  hint: each is the time after the beginning, not after the one before
w.toml:12:29: error: a packet after 5m goes out when the deadline, 3m, is over
  hint: leave it out, or lengthen `deadline`
w.toml:13:14: error: `udp_ports` cannot be `0`
  hint: it takes a list of ports, as [9, 7]
w.toml:13:17: error: `udp_ports` cannot be `70000`
  hint: it takes a list of ports, as [9, 7]
w.toml:14:17: error: `node_interval` cannot be `\"2h\"`
  hint: it takes a time with its unit, 0s to 1h
w.toml:16:23: error: `requests_per_minute` cannot be `0`
  hint: it takes a whole number, 1 to 1000000
w.toml:17:15: error: `connections` cannot be `99999999999999999999`
  hint: it takes a whole number, 1 to 1000000
w.toml:18:18: error: `header_timeout` cannot be `\"5 parsecs\"`
  hint: it takes a time with its unit, 100ms to 10m
w.toml:19:14: error: `body_bytes` cannot be `\"64k\"`
  hint: it takes a whole number, 1024 to 16777216
w.toml:20:16: error: `idle_timeout` cannot be `\"0s\"`
  hint: it takes a time with its unit, 100ms to 1h
w.toml:21:2: error: unknown key `limit`
  hint: did you mean `limits`?"
    );
    assert_eq!(
        parse("state_dir = '/a'\nstate_dir = '/b'\n[tls]\nkey='/k'\nkey2=\n").unwrap_err(),
        "\
w.toml:2:1: error: `state_dir` is written twice
w.toml:4:1: error: a key without its certificate
  hint: write certificate = \"/path\"
w.toml:5:1: error: unknown key `key2` in [tls]
  hint: did you mean `key`?
w.toml:5:6: error: not TOML: string values must be quoted, expected literal string"
    );
    for (text, hint) in [
        ("listen='localhost:80'", "an address: \"127.0.0.1:80\""),
        ("listen='*:80'", "or \"0.0.0.0:80\""),
        ("listen=80", "with an address: \"127.0.0.1:80\""),
        ("listen='::1'", "with a port: \"[::1]:9876\""),
        ("wake=5", "write [wake]"),
        ("[wake]\nudp_ports=[9,9]", "port 9 is written twice"),
        ("[wake]\nudp_ports=[]", "1 to 8 ports"),
        ("[wake]\nresend=[]", "1 to 100 times"),
        (
            "host_names=['power.example.org:9876']",
            "names of this server without ports",
        ),
        ("host_names='power.example.org'", "as [\"power.example.org\"]"),
        ("[limits]\nconnections_per_client=0", "1 to 1000000"),
    ] {
        let complaints = parse(text).unwrap_err();
        assert!(complaints.contains(hint), "{complaints}");
    }
}

#[test]
fn a_token_written_where_its_file_is_named_is_not_shown() {
    let complaints = parse("token_file = 'hunter2'\nsecret_file = 5\ntoken = 'hunter2'").unwrap_err();
    assert!(!complaints.contains("hunter2"), "{complaints}");
    assert!(
        complaints.contains("w.toml:1:14: error: `token_file` cannot be what is written here"),
        "{complaints}"
    );
    assert!(
        complaints.contains("w.toml:2:15:") && complaints.contains("did you mean `token_file`?"),
        "{complaints}"
    );
}

#[test]
fn the_secret_of_a_webhook_is_not_shown() {
    let complaints = parse("[notify]\nwebhook = 'ftp://hooks.example.org/hunter2'\nslack = 'hunter2'").unwrap_err();
    assert!(!complaints.contains("hunter2"), "{complaints}");
    assert!(
        complaints.contains("w.toml:2:11: error: `webhook` cannot be what is written here"),
        "{complaints}"
    );
    assert!(
        complaints.contains("w.toml:3:9:") && complaints.contains("https:// URL with a host"),
        "{complaints}"
    );
    let settings = parse("[notify]\nwebhook = 'https://hooks.example.org/hunter2'").unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
}

#[test]
fn a_short_deadline_shortens_the_default_schedule() {
    let settings = parse("[wake]\ndeadline='5s'").unwrap();
    assert_eq!(settings.wake.resend, [0, 1, 2, 4].map(Duration::from_secs));
}

#[test]
fn w7_beyond_loopback_there_has_to_be_a_token() {
    for listen in ["0.0.0.0:9876", "[::]:9876", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
        let text = format!("# who\nlisten = '{listen}'\n");
        let complaints = parse(&text).unwrap_err();
        assert!(complaints.starts_with("w.toml:2:1: error:"), "{complaints}");
        assert!(complaints.contains("there is no token"), "{complaints}");
        assert!(parse(&format!("{text}token_file='/t'")).is_ok());
    }
    for listen in ["127.0.0.1:9876", "[::1]:0", "127.3.2.1:9876", "[::ffff:127.0.0.1]:1"] {
        assert!(parse(&format!("listen = '{listen}'")).is_ok(), "{listen}");
    }
    let overrides = Overrides {
        listen: Some("0.0.0.0:1".parse().unwrap()),
        ..Overrides::default()
    };
    let complaints = parse_with("", overrides).unwrap_err();
    assert!(
        complaints.starts_with("--listen: error: 0.0.0.0:1 is reached from other hosts"),
        "{complaints}"
    );
}

#[test]
fn the_command_line_goes_before_the_file_and_both_before_the_credential() {
    let folder = tempfile::tempdir().unwrap();
    let credential = folder.path().join(TOKEN_CREDENTIAL);
    let with = |token_file: Option<&str>| Overrides {
        listen: Some("0.0.0.0:1".parse().unwrap()),
        registry: vec!["r.toml".into()],
        token_file: token_file.map(PathBuf::from),
        state_dir: Some("state".into()),
        credentials_dir: Some(folder.path().into()),
    };
    assert!(parse_with("", with(None)).is_err(), "the credential is not there");
    std::fs::write(&credential, "t").unwrap();
    let token = |text, overrides| parse_with(text, overrides).unwrap().token_file.unwrap();
    assert_eq!(token("", with(None)), credential);
    assert_eq!(token("token_file='/file'", with(None)), Path::new("/file"));
    assert_eq!(token("token_file='/file'", with(Some("line"))), Path::new("line"));
    let settings = parse_with("listen='127.0.0.1:5'\nregistry=['/x']\nstate_dir='/y'", with(None)).unwrap();
    assert_eq!(settings.listen.port(), 1);
    assert_eq!(settings.registry, [Path::new("r.toml")]);
    assert_eq!(settings.state_dir, Path::new("state"));
}

#[test]
fn networks_say_who_may() {
    let settings = parse("allow_from=['192.0.2.0/24']\nstatus_from=['198.51.100.0/24']").unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (client, api, status) in [
        ("192.0.2.7", true, false),
        ("::ffff:192.0.2.7", true, false),
        ("198.51.100.1", false, true),
        ("203.0.113.1", false, false),
        ("2001:db8::1", false, false),
    ] {
        assert_eq!(settings.allows_api(ip(client)), api, "{client}");
        assert_eq!(settings.allows_status(ip(client)), status, "{client}");
        assert_eq!(settings.allows_anything(ip(client)), api || status, "{client}");
    }
    let settings = parse("allow_from=['192.0.2.0/24']").unwrap();
    assert!(settings.allows_status(ip("192.0.2.7")) && !settings.allows_status(ip("198.51.100.1")));
    assert!(parse("").unwrap().allows_api(ip("2001:db8::1")));
}

#[test]
fn f6_a_file_with_a_bom_and_crlf_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.toml");
    std::fs::write(&path, "\u{feff}# x\r\nstate_dir = \"/a\" # inline\r\n").unwrap();
    let settings = Settings::load(Some(&path), Overrides::default()).unwrap();
    assert_eq!(settings.state_dir, Path::new("/a"));
    std::fs::write(&path, "x = 'a\0'").unwrap();
    assert!(
        Settings::load(Some(&path), Overrides::default())
            .unwrap_err()
            .to_string()
            .contains(":1:7: error: a NUL byte")
    );
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(
        Settings::load(Some(&path), Overrides::default())
            .unwrap_err()
            .to_string()
            .contains("longer than 1048576")
    );
    let missing = folder.path().join("missing.toml");
    let error = Settings::load(Some(&missing), Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing.toml: error: cannot be read"), "{error}");
}

proptest! {
    #[test]
    fn f5_anything_is_read_or_refused(text in "(\\[(wake|limits|tls)\\]\n|listen|deadline|resend|=|\"5s\"|\\[|\\]|,|0|-|\n|.){0,30}") {
        if let Err(error) = Settings::parse(&text, Path::new("w.toml"), Overrides::default()) {
            prop_assert!(!error.complaints.is_empty());
        }
    }

    #[test]
    fn what_is_accepted_keeps_its_promises(deadline in 0..4000_u64, times in proptest::collection::vec(0..4000_u64, 0..5)) {
        let resend: Vec<String> = times.iter().map(|at| format!("\"{at}s\"")).collect();
        let text = format!("[wake]\ndeadline = \"{deadline}s\"\nresend = [{}]\n", resend.join(","));
        if let Ok(Settings { wake, .. }) = parse(&text) {
            prop_assert!(wake.resend.is_sorted() && !wake.resend.is_empty());
            prop_assert!(wake.resend.iter().all(|&at| at < wake.deadline));
            prop_assert!(wake.deadline >= SECOND && wake.deadline <= HOUR);
        }
    }
}
