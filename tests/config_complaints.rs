//! What is said about a wrong configuration: every complaint at once, with its place and a hint, and no secret in it.

use std::path::Path;

use vmstation_agent::config::{Format, Invalid, Loaded, Policy};

fn parse(text: &str, format: Format) -> Result<Loaded, Invalid> {
    let name = match format {
        Format::Ini => "autosleep.conf",
        Format::Toml => "autosleep.toml",
    };
    Policy::parse(text, format, Path::new(name), &|_| None)
}

/// The complaints about `text`, as printed.
fn complaints(text: &str, format: Format) -> String {
    parse(text, format).expect_err("the file is wrong").to_string()
}

#[test]
fn all_complaints_about_an_ini_file_come_at_once() {
    let expected = include_str!("fixtures/broken.conf.complaints");
    assert_eq!(
        complaints(include_str!("fixtures/broken.conf"), Format::Ini) + "\n",
        expected
    );
}

#[test]
fn all_complaints_about_a_toml_file_come_at_once() {
    let expected = include_str!("fixtures/broken.toml.complaints");
    assert_eq!(
        complaints(include_str!("fixtures/broken.toml"), Format::Toml) + "\n",
        expected
    );
}

/// Each row: the form, the file, and what has to be among the complaints.
#[test]
fn each_mistake_has_its_complaint() {
    use Format::{Ini, Toml};
    let rows = [
        (
            Ini,
            "enabled=true\n",
            "1:1: error: `enabled` stands before the first section",
        ),
        (Ini, "[general]\nenabled\n", "2:1: error: `enabled` has no value"),
        (Ini, "[general]\nenabled=\n", "2:9: error: `enabled` has no value"),
        (Ini, "[general\n", "1:1: error: this section header has no `]`"),
        (
            Ini,
            "[general] x\n",
            "1:1: error: there is something after the section header",
        ),
        (Ini, "[general]\n=1\n", "2:1: error: there is no key before `=`"),
        (
            Ini,
            "[general]\n[logging]\n[general]\n",
            "3:2: error: `general` is written twice, first in line 1",
        ),
        (Ini, "[excluded_namespaces]\na\na\n", "3:1: error: `a` is listed twice"),
        (
            Ini,
            "[excluded_namespaces]\nkube-*\n",
            "2:1: error: `excluded_namespaces` cannot be `kube-*`",
        ),
        (Ini, "[excluded_namespaces]\na=1\n", "2:1: error: `a` has a value"),
        (Ini, "[prevent_sleep_labels]\na\n", "2:1: error: `a` has no value"),
        (
            Ini,
            "[prevent_sleep_labels]\na b=1\n",
            "2:1: error: `a b` is not the name of a label",
        ),
        (
            Ini,
            "[prevent_sleep_labels]\na=x y\n",
            "2:3: error: `prevent_sleep_labels` cannot be `x y`",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=2h\n",
            "hint: minutes, without a unit: 120",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=90s\n",
            "autosleep.toml takes seconds as well",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=-5\n",
            "hint: a whole number of minutes, 1 to 525600",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=0\n",
            "2:28: error: `inactivity_timeout_minutes` cannot be `0`",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=99999999999999999999\n",
            "cannot be `99999999999999999999`",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=999999999999999999\n",
            "cannot be `999999999999999999`",
        ),
        (
            Ini,
            "[general]\ngrace_period_minutes=1441\n",
            "hint: a whole number of minutes, 0 to 1440",
        ),
        (
            Ini,
            "[general]\ncheck_interval=5m\n",
            "hint: it is called `check_interval_minutes` in this form",
        ),
        (Ini, "[general]\nprobes=off\n", "hint: only autosleep.toml has it"),
        (
            Ini,
            "[general]\nmethod=log\n",
            "hint: `method` belongs in [notification]",
        ),
        (Ini, "[generall]\n", "hint: did you mean [general]?"),
        (
            Ini,
            "[activity_detection]\ncpu_threshold_percent=10 %\n",
            "hint: without the percent sign: 10",
        ),
        (
            Ini,
            "[activity_detection]\ncpu_threshold_percent=NaN\n",
            "cannot be `NaN`",
        ),
        (
            Ini,
            "[activity_detection]\ncpu_threshold_percent=inf\n",
            "cannot be `inf`",
        ),
        (
            Ini,
            "[activity_detection]\ncpu_threshold_percent=-1\n",
            "cannot be `-1`",
        ),
        (
            Ini,
            "[activity_detection]\nnetwork_threshold_bytes=1MB/s\n",
            "hint: bytes per second, without a unit: 1048576",
        ),
        (
            Ini,
            "[activity_detection]\nnetwork_interface=eth0, a/b\n",
            "2:25: error: `network_interface` cannot be `a/b`",
        ),
        (
            Ini,
            "[notification]\nwebhook_url=ftp://host/secret\n",
            "2:13: error: `webhook_url` is not a URL that can be used",
        ),
        (
            Ini,
            "[notification]\nwebhook_url=http:///secret\n",
            "2:13: error: `webhook_url` is not a URL that can be used",
        ),
        (
            Ini,
            "[notification]\nwebhook_url \"https://host/secret\"\n",
            "2:1: error: `webhook_url` has no value",
        ),
        (
            Ini,
            "[notification]\nslack_channel= #ops\n",
            "hint: write slack_channel=\"#ops\"",
        ),
        (
            Ini,
            "[notification]\nwebhook_url=\"http://a\n",
            "2:1: error: the quote that begins the value is not closed",
        ),
        (Ini, "[logging]\nlog_dir=logs\n", "hint: an absolute path"),
        (Ini, "[logging]\nmax_log_size=20000\n", "cannot be `20000`"),
        (
            Ini,
            "[logging]\nmax_log_size=99999999999G\n",
            "cannot be `99999999999G`",
        ),
        (
            Ini,
            "[logging]\nlog_level=loud\n",
            "hint: error, warn, info, debug or trace",
        ),
        (
            Ini,
            "[general]\ninactivity_timeout_minutes=3\ncheck_interval_minutes=5\n",
            "3:24: error: `check_interval_minutes` (5m) is longer than `inactivity_timeout_minutes` (3m)",
        ),
        (
            Ini,
            "[general]\ncheck_interval_minutes=121\n",
            "is longer than `inactivity_timeout_minutes` (2h by default)",
        ),
        (
            Ini,
            "[notification]\nenabled=true\nminutes_before=11\n",
            "is longer than `grace_period_minutes` (10m by default)",
        ),
        (
            Ini,
            "[notification]\nenabled=true\nmethod=slack\nwebhook_url=\n",
            "3:8: error: method `slack` needs `webhook_url`",
        ),
        (Toml, "[general\n", "1:9: error: not TOML"),
        (
            Toml,
            "[general]\nenabled = true\nenabled = false\n",
            "3:1: error: `enabled` is written twice, first in line 2",
        ),
        (
            Toml,
            "[general]\n[logging]\n[general]\n",
            "`general` is written twice, first in line 1",
        ),
        (Toml, "general = 1\n", "1:1: error: `general` has to be a section"),
        (Toml, "enabled = true\n", "hint: `enabled` belongs in [general]"),
        (Toml, "[general]\nenabled = 1\n", "2:11: error: `enabled` cannot be `1`"),
        (
            Toml,
            "[general]\ncheck_interval = \"300\"\n",
            "hint: a duration in quotes",
        ),
        (Toml, "[general]\ncheck_interval = \"500ms\"\n", "cannot be `\"500ms\"`"),
        (
            Toml,
            "[activity_detection]\nssh_ports = []\n",
            "2:13: error: `ssh_ports` cannot be `[]`",
        ),
        (
            Toml,
            "[activity_detection]\nssh_ports = [1,2,3,4,5,6,7,8,9]\n",
            "hint: a list of 1 to 8 different ports",
        ),
        (
            Toml,
            "[activity_detection]\nssh_ports = [22, 22]\n",
            "2:18: error: `22` is listed twice",
        ),
        (
            Toml,
            "[prevent_sleep_labels]\n\"a b\" = \"x\"\n",
            "2:1: error: `a b` is not the name of a label",
        ),
        (
            Toml,
            "[prevent_sleep_labels]\na = true\n",
            "2:5: error: `prevent_sleep_labels` cannot be `true`",
        ),
        (
            Toml,
            "[notification]\nenabled = true\nmethod = \"webhook\"\n",
            "3:10: error: method `webhook` needs `webhook_url`",
        ),
        (
            Toml,
            "[general]\ngrace_period = \"1m\"\n[notification]\nenabled = true\nbefore = \"2m\"\n",
            "5:10: error: `before` (2m) is longer than `grace_period` (1m)",
        ),
    ];
    for (format, text, expected) in rows {
        let said = complaints(text, format);
        assert!(said.contains(expected), "{text}\nwas told\n{said}\nnot\n{expected}");
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn a_file_full_of_mistakes_is_answered_with_a_hundred() {
    for (format, line) in [(Format::Ini, "x=1\n"), (Format::Ini, "x\n"), (Format::Toml, "=\n")] {
        let text = format!("[general]\n{}", line.repeat(200_000));
        assert_eq!(parse(&text, format).unwrap_err().complaints.len(), 100);
    }
}
