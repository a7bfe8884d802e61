//! The configuration under generated files: nothing panics, every complaint has its place, migration keeps the meaning.

use std::path::Path;

use proptest::prelude::*;
use vmstation_agent::config::{Format, Invalid, Loaded, Policy, migrate};

fn parse(text: &str, format: Format) -> Result<Loaded, Invalid> {
    Policy::parse(text, format, Path::new("autosleep"), &|_| None)
}

fn comment() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(String::new()),
        1 => "[ \t]{1,3}[#;][ -~\t\u{1}é]{0,12}",
    ]
}

/// A line that is right in an INI file's section.
fn entry(key: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (value, "[ \t]{0,2}", prop::bool::ANY, comment()).prop_map(move |(value, space, quoted, comment)| {
        // Behind a space an unquoted `#channel` would be a comment.
        let mark = if quoted || value.starts_with('#') { "\"" } else { "" };
        // Behind nothing `#word` looks like a value that was meant, and is refused.
        let comment = if value.is_empty() && !quoted {
            String::new()
        } else {
            comment
        };
        format!("{space}{key}{space}={space}{mark}{value}{mark}{comment}\n")
    })
}

fn switch() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["true", "FALSE", "yes", "no", "on", "Off", "1", "0"]).prop_map(String::from)
}

fn scope() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["node", "Node", "pods", "PODS"]).prop_map(String::from)
}

fn filler() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("\n".into()),
        "[ ]?[#;][ -~]{0,12}\n",
        "\n[#;] [ -~]{0,12}\n\n"
    ]
}

fn ini_file() -> impl Strategy<Value = String> {
    let general = (
        prop::option::of(entry("enabled", switch())),
        prop::option::of(entry(
            "inactivity_timeout_minutes",
            (5u32..525_601).prop_map(|n| n.to_string()),
        )),
        prop::option::of(entry("check_interval_minutes", (1u32..6).prop_map(|n| n.to_string()))),
        prop::option::of(entry("grace_period_minutes", (5u32..1441).prop_map(|n| n.to_string()))),
    )
        .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect::<Vec<_>>());
    let detection = (
        prop::option::of(entry("check_pods", switch())),
        prop::option::of(entry("check_cpu", switch())),
        prop::option::of(entry("cpu_threshold_percent", "[0-9]{1,2}(\\.[0-9]{1,3})?")),
        prop::option::of(entry("check_network", switch())),
        prop::option::of(entry(
            "network_threshold_bytes",
            (0u64..1 << 62).prop_map(|n| n.to_string()),
        )),
        prop::option::of(entry("network_interface", "([a-z][a-z0-9.]{0,14})?")),
        prop::option::of(entry("check_ssh_sessions", switch())),
        prop::option::of(entry("cpu_scope", scope())),
        prop::option::of(entry("network_scope", scope())),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| [a, b, c, d, e, f, g, h, i].into_iter().flatten().collect::<Vec<_>>());
    let namespaces = prop::collection::btree_set("[a-z][a-z0-9]{0,8}", 0..4).prop_flat_map(|names| {
        let count = names.len();
        (Just(names), prop::collection::vec((comment(), filler()), count)).prop_map(|(names, rest)| {
            names
                .into_iter()
                .zip(rest)
                .map(|(name, (comment, filler))| format!("{name}{comment}\n{filler}"))
                .collect::<Vec<_>>()
        })
    });
    let labels =
        prop::collection::btree_map("([a-z]{1,5}/)?[a-zA-Z0-9]{1,8}", "[a-zA-Z0-9]{0,8}", 0..4).prop_map(|labels| {
            labels
                .into_iter()
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect::<Vec<_>>()
        });
    let notification = (
        prop::option::of(entry("enabled", switch())),
        prop::option::of(entry("minutes_before", (0u32..6).prop_map(|n| n.to_string()))),
        prop::option::of(entry(
            "method",
            prop::sample::select(vec!["log", "Webhook", "slack"]).prop_map(String::from),
        )),
        entry("webhook_url", "https?://[a-z]{1,8}(/[!#-~]{0,12})?"),
        prop::option::of(entry("slack_channel", "([#@][a-z\\\\']{1,9})?")),
    )
        .prop_map(|(a, b, c, d, e)| [a, b, c, Some(d), e].into_iter().flatten().collect::<Vec<_>>());
    let logging = (
        prop::option::of(entry("log_dir", "/[a-z\\\\'.#/]{0,12}")),
        prop::option::of(entry(
            "log_level",
            prop::sample::select(vec!["ERROR", "Warning", "debug"]).prop_map(String::from),
        )),
        prop::option::of(entry(
            "max_log_size",
            "[1-9][0-9]{2}[ ]?[kKmMgG](i?[bB])?|[1-9][0-9]{0,3}|[1-9][0-9]{5,7}",
        )),
        prop::option::of(entry("log_retention", (0u32..1001).prop_map(|n| n.to_string()))),
    )
        .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect::<Vec<_>>());

    let section = |name: &'static str, lines: BoxedStrategy<Vec<String>>| {
        prop::option::of((filler(), comment(), filler(), lines.prop_shuffle()).prop_map(
            move |(before, comment, after, lines)| format!("{before}[{name}]{comment}\n{after}{}", lines.concat()),
        ))
    };
    let sections = (
        section("general", general.boxed()),
        section("activity_detection", detection.boxed()),
        section("excluded_namespaces", namespaces.boxed()),
        section("prevent_sleep_labels", labels.boxed()),
        section("notification", notification.boxed()),
        section("logging", logging.boxed()),
    )
        .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f].into_iter().flatten().collect::<Vec<_>>())
        .prop_shuffle();
    (filler(), sections, filler(), prop::bool::ANY).prop_map(|(head, sections, tail, windows)| {
        let text = format!("{head}{}{tail}", sections.concat());
        if windows { text.replace('\n', "\r\n") } else { text }
    })
}

/// Text that comes close to a configuration.
fn near_miss() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[general]\n".to_owned()),
        Just("[[general]]\n".to_owned()),
        Just("[general.x]\n".to_owned()),
        Just("[excluded_namespaces]\n".to_owned()),
        Just("excluded_namespaces = [".to_owned()),
        Just("[prevent_sleep_labels]\n".to_owned()),
        Just("[notification]\nenabled = true\n".to_owned()),
        Just("general.enabled = true\n".to_owned()),
        Just("[sleep]\nwake_after = \"8h\"\n".to_owned()),
        Just("[metrics]\nlisten = \"[::1]:1\"\n".to_owned()),
        Just("[energy]\nwatts_awake = 1e400\n".to_owned()),
        Just("[wake_server]\nurl = \"http://[::1\"\n".to_owned()),
        Just("watts_asleep = 5\nhooks_folder = 5\n".to_owned()),
        Just("ssh_ports = [[1], {a=2}, 1e400]\n".to_owned()),
        Just("log_dir = 1979-05-27\n".to_owned()),
        Just("a = \"\"\"".to_owned()),
        "[a-z_]{0,20}[ ]?=[ ]?[\"'0-9a-z\\[\\]{}#;.\u{e9}]{0,8}[\r\n]{0,2}",
        "\\PC{0,8}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_and_every_complaint_lies_in_the_file(
        text in prop_oneof![near_miss(), any::<String>(), ini_file()],
        format in prop::sample::select(vec![Format::Ini, Format::Toml]),
    ) {
        if let Err(invalid) = parse(&text, format) {
            let lines = text.split('\n').count();
            prop_assert!(!invalid.complaints.is_empty());
            for complaint in &invalid.complaints {
                prop_assert!((1..=lines).contains(&complaint.line), "{invalid}");
                let length = text.split('\n').nth(complaint.line - 1).unwrap().chars().count();
                prop_assert!((1..=length + 1).contains(&complaint.column), "{invalid}");
            }
        }
    }

    #[test]
    fn a_migrated_file_means_the_same(text in ini_file()) {
        let policy = parse(&text, Format::Ini).map_err(|invalid| TestCaseError::fail(invalid.to_string()))?.policy;
        let migrated = migrate(&text, Path::new("autosleep.conf")).unwrap();
        let again = parse(&migrated, Format::Toml).map_err(|invalid| TestCaseError::fail(format!("{invalid}\n{migrated}")))?;
        prop_assert_eq!(again.policy, policy, "{}", migrated);
    }
}
