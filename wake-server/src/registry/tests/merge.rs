//! What agents report, beside what the files say.

use vmstation_protocol::{Activity, Port, SCHEMA, Waking};

use super::*;

pub(super) fn report(node: &str, role: Option<Role>, ports: &[(&str, Waking)]) -> Report {
    Report {
        schema: SCHEMA,
        node: name(node),
        boot_id: "boot".into(),
        resumes: 0,
        activity: Activity::Busy,
        reasons: Vec::new(),
        ports: ports
            .iter()
            .map(|&(text, waking)| Port {
                interface: "eth0".into(),
                mac: mac(text),
                waking,
            })
            .collect(),
        role,
        version: "0".into(),
    }
}

#[test]
fn agents_add_what_the_files_do_not_say() {
    let files = registry("a.conf", "a|192.0.2.1|52:54:00:00:00:01|eth0\n");
    let reports = [
        report(
            "a",
            Some(Role::Storage),
            &[
                ("52:54:00:00:00:04", Waking::Unable),
                ("52:54:00:00:00:03", Waking::Disarmed),
                ("52:54:00:00:00:02", Waking::Armed),
                ("52:54:00:00:00:01", Waking::Disarmed),
            ],
        ),
        report(
            "new",
            None,
            &[
                ("52:54:00:00:00:05", Waking::Armed),
                ("52:54:00:00:00:05", Waking::Unable),
            ],
        ),
    ];
    let merged = files.merged(reports.iter());
    assert_eq!(
        lines(&merged),
        [
            "a storage 52:54:00:00:00:02 52:54:00:00:00:01 52:54:00:00:00:03 52:54:00:00:00:04 192.0.2.1",
            "new worker 52:54:00:00:00:05",
        ]
    );
    assert_eq!(merged.conflicts(), [""; 0]);
    assert_eq!(merged.by_mac(mac("52:54:00:00:00:05")).unwrap().name, name("new"));
    assert_eq!(files.nodes().len(), 1, "the registry of the files is what it was");
}

#[test]
fn w1_what_agents_claim_against_the_files_is_told_and_not_taken() {
    let files = registry(
        "r.toml",
        "[[node]]\nname='a'\nrole='master'\nmac='52:54:00:00:00:01'\n[[node]]\nname='b'\nmac='52:54:00:00:00:02'\n",
    );
    let reports = [
        report(
            "b",
            None,
            &[
                ("52:54:00:00:00:01", Waking::Armed),
                ("52:54:00:00:00:02", Waking::Armed),
            ],
        ),
        report("a", Some(Role::Worker), &[("52:54:00:00:00:09", Waking::Armed)]),
        report(
            "d",
            None,
            &[
                ("52:54:00:00:00:07", Waking::Armed),
                ("52:54:00:00:00:08", Waking::Armed),
            ],
        ),
        report("c", None, &[("52:54:00:00:00:07", Waking::Armed)]),
    ];
    let merged = files.merged(reports.iter());
    assert_eq!(
        lines(&merged),
        [
            "a master 52:54:00:00:00:09 52:54:00:00:00:01",
            "b worker 52:54:00:00:00:02",
            "c worker",
            "d worker 52:54:00:00:00:08",
        ]
    );
    assert_eq!(
        merged.conflicts(),
        [
            "52:54:00:00:00:01 is configured for a (r.toml:4), and the agent of b reports it as its own: b is not woken by it",
            "the agents of c and d report 52:54:00:00:00:07 as their own: none of them is woken by it",
            "a is a master (r.toml:3), and its agent says that it is a worker: the file holds",
            "52:54:00:00:00:01 is configured for a (r.toml:4), and is none of the cards its agent reports",
        ]
    );
    assert!(merged.by_mac(mac("52:54:00:00:00:07")).is_none());
    assert_eq!(merged.by_mac(mac("52:54:00:00:00:01")).unwrap().name, name("a"));
    let mut backwards = reports.to_vec();
    backwards.reverse();
    assert_eq!(
        files.merged(backwards.iter()).conflicts(),
        merged.conflicts(),
        "the order of reports decides nothing"
    );
}
