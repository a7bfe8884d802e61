//! Whatever is written and reported, no card is made up and none has two owners.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vmstation_protocol::Waking;

use super::{inventory::HOSTS_YML, merge::report, *};

/// Words that registries are made of, so that mutations come near to being right.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("52:54:00:00:00:01"),
        Just("52-54-00-00-00-02"),
        Just("525400000003"),
        Just("01:00:5e:00:00:01"),
        Just("wol_mac"),
        Just("ansible_host=192.0.2.1"),
        Just("wol_mac=52:54:00:00:00:04"),
        Just("a"),
        Just("worker[01:03]"),
        Just("[a]\n"),
        Just("[a:children]\n"),
        Just("[a:vars]\n"),
        Just("[[node]]\n"),
        Just("name = \"a\"\n"),
        Just("mac = \"52:54:00:00:00:05\"\n"),
        Just("all:\n"),
        Just("hosts:\n"),
        Just("children:\n"),
        Just("  "),
        Just("    "),
        Just(" "),
        Just("\n"),
        Just("\r\n"),
        Just("|"),
        Just("="),
        Just(": "),
        Just("#"),
        Just(" # "),
        Just("\""),
        Just("'"),
        Just("\\"),
        Just("{"),
        Just("}"),
        Just("]"),
        Just("&a "),
        Just("*a"),
        Just("<<: "),
        Just("\0"),
        Just("\u{feff}"),
        Just("ä"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

const PATHS: [&str; 5] = ["r.toml", "r.conf", "r.yml", "r.ini", "r"];

/// Every MAC address that is written in `text`, in whichever form.
fn macs_in(text: &str) -> BTreeSet<MacAddr> {
    let text = text.to_ascii_lowercase();
    [17, 14, 12]
        .into_iter()
        .flat_map(|length| (0..text.len()).map(move |at| (at, at + length)))
        .filter_map(|(from, to)| text.get(from..to)?.parse().ok())
        .collect()
}

proptest! {
    #[test]
    fn f6_no_card_is_made_up(text in pieces(), path in proptest::sample::select(&PATHS[..])) {
        if let Ok(registry) = Registry::parse(&text, Path::new(path)) {
            let written = macs_in(&text);
            let mut seen = BTreeSet::new();
            for mac in registry.nodes().flat_map(|node| node.macs.clone()) {
                prop_assert!(written.contains(&mac), "{mac} is nowhere in {text:?}");
                prop_assert!(seen.insert(mac), "{mac} twice in {text:?}");
            }
        }
    }

    #[test]
    fn f6_anything_is_read_or_refused_with_a_place(text in ".{0,80}", path in proptest::sample::select(&PATHS[..])) {
        if let Err(errors) = Registry::parse(&text, Path::new(path)) {
            for complaint in &errors.complaints {
                prop_assert_eq!(complaint.place.path.as_path(), Path::new(path));
                // To YAML a carriage return ends a line too.
                prop_assert!(complaint.place.line <= text.matches(['\n', '\r']).count() + 2);
            }
            prop_assert!(!errors.complaints.is_empty());
        }
    }

    #[test]
    fn f6_a_mutated_registry_names_no_other_card(
        at in 0..HOSTS_YML.len(),
        // Without backslashes: within quotes YAML writes a character, or goes on in the next line, with them.
        put in "[ -\\[\\]-~\n]{0,3}",
        cut in 0..3_usize,
    ) {
        let text: String = HOSTS_YML[..at].chars().chain(put.chars()).chain(HOSTS_YML[at..].chars().skip(cut)).collect();
        if let Ok(registry) = Registry::parse(&text, Path::new("hosts.yml")) {
            let written = macs_in(&text);
            for mac in registry.nodes().flat_map(|node| &node.macs) {
                prop_assert!(written.contains(mac), "{mac} is nowhere in {text}");
            }
        }
    }

    #[test]
    fn w1_no_card_has_two_owners_after_a_merge(claims in proptest::collection::vec((0..4_u8, 1..5_u8, 0..3_u8), 0..12)) {
        let files = registry("a.conf", "n0||52:54:00:00:00:01|\nn1||52:54:00:00:00:02|\n");
        let reports: Vec<Report> = claims
            .iter()
            .map(|(node, card, waking)| {
                let waking = [Waking::Armed, Waking::Disarmed, Waking::Unable][usize::from(*waking)];
                report(&format!("n{node}"), None, &[(&format!("52:54:00:00:00:{card:02x}"), waking)])
            })
            .collect();
        let merged = files.merged(reports.iter());
        let mut owners = BTreeMap::new();
        for node in merged.nodes() {
            for mac in &node.macs {
                prop_assert_eq!(owners.insert(*mac, node.name.clone()), None);
                prop_assert_eq!(&merged.by_mac(*mac).unwrap().name, &node.name);
            }
        }
        prop_assert_eq!(owners.get(&mac("52:54:00:00:00:01")), Some(&name("n0")));
        prop_assert_eq!(owners.get(&mac("52:54:00:00:00:02")), Some(&name("n1")));
    }
}
