use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    Affinity, Doubt, HostPort, Judgement, Needs, Operator, OursOrNot, Requirement, Room, Taint, Term, Toleration,
    TolerationOperator, Why, fits, room_elsewhere,
};
use crate::workload::{ClusterNode, Phase, Pod, PodId};

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn taint(key: &str, value: &str, effect: &str) -> Taint {
    Taint {
        time_added: None,
        key: key.to_owned(),
        value: value.to_owned(),
        effect: effect.to_owned(),
    }
}

pub(crate) fn node(name: &str, cpu: i128) -> ClusterNode {
    ClusterNode {
        name: name.parse().unwrap(),
        uid: format!("uid-{name}"),
        resource_version: "1".to_owned(),
        labels: map(&[("disk", "ssd"), ("cores", "8")]),
        annotations: BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        ready: true,
        allocatable: [("cpu".to_owned(), cpu), ("pods".to_owned(), 110_000)].into(),
        cordoned_by: Vec::new(),
    }
}

pub(crate) fn pod(name: &str, cpu: i128) -> Pod {
    Pod {
        id: PodId {
            namespace: "games".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        },
        node: None,
        phase: Phase::Pending,
        controller: None,
        is_mirror: false,
        is_terminating: false,
        is_ready: false,
        has_local_storage: false,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        priority: 0,
        priority_class: None,
        uses_host_network: false,
        grace: std::time::Duration::from_secs(30),
        created: None,
        unschedulable_since: Some(jiff::Timestamp::UNIX_EPOCH),
        needs: Needs {
            requests: [("cpu".to_owned(), cpu)].into(),
            ..Needs::default()
        },
    }
}

fn asks(requests: &[(&str, i128)]) -> Needs {
    let requests = requests
        .iter()
        .map(|(name, amount)| ((*name).to_owned(), *amount))
        .collect();
    Needs {
        requests,
        ..Needs::default()
    }
}

#[test]
fn a_resource_that_the_node_does_not_list_does_not_fit() {
    let room = Room::new(&node("a", 1000), []);
    assert_eq!(fits(&asks(&[("cpu", 1000)]), &room), Ok(Judgement::Sure));
    let lacks = |resource: &str, asked, left| {
        Err(vec![Why::Lacks {
            resource: resource.to_owned(),
            asked,
            left,
        }])
    };
    assert_eq!(fits(&asks(&[("cpu", 1001)]), &room), lacks("cpu", 1001, 1000));
    assert_eq!(
        fits(&asks(&[("nvidia.com/gpu", 1000)]), &room),
        lacks("nvidia.com/gpu", 1000, 0)
    );
    assert_eq!(fits(&asks(&[("nvidia.com/gpu", 0)]), &room), Ok(Judgement::Sure));
    let mut placeless = node("a", 1000);
    placeless.allocatable.remove("pods");
    assert_eq!(fits(&asks(&[]), &Room::new(&placeless, [])), lacks("pods", 1000, 0));
}

#[test]
fn finished_pods_leave_their_room() {
    let mut done = pod("done", 900);
    done.phase = Phase::Succeeded;
    let running = pod("running", 300);
    let room = Room::new(&node("a", 1000), [&done, &running]);
    assert_eq!((room.left["cpu"], room.left["pods"]), (700, 109_000));
}

#[test]
fn tolerations_match_as_the_scheduler_matches_them() {
    use TolerationOperator::{Equal, Exists, Gt, Lt};
    let dedicated = taint("dedicated", "games", "NoSchedule");
    for (key, operator, value, effect, expected) in [
        ("dedicated", Equal, "games", "NoSchedule", true),
        ("dedicated", Equal, "games", "", true),
        ("dedicated", Equal, "web", "", false),
        ("dedicated", Exists, "", "", true),
        ("dedicated", Exists, "", "NoExecute", false),
        ("other", Exists, "", "", false),
        ("", Exists, "", "", true),
        ("", Exists, "", "NoExecute", false),
        ("dedicated", Gt, "1", "", false),
        ("dedicated", Lt, "1", "", false),
    ] {
        let toleration = Toleration {
            key: key.to_owned(),
            operator,
            value: value.to_owned(),
            effect: effect.to_owned(),
        };
        let needs = Needs {
            tolerations: vec![toleration],
            ..Needs::default()
        };
        let mut room = Room::new(&node("a", 1000), []);
        room.taints = vec![dedicated.clone()];
        assert_eq!(
            fits(&needs, &room).is_ok(),
            expected,
            "{key} {operator:?} {value} {effect}"
        );
    }
    for (operator, bound, value, expected) in [
        (Gt, "949", "950", true),
        (Gt, "950", "950", false),
        (Gt, "-1", "0", true),
        (Lt, "951", "950", true),
        (Lt, "950", "950", false),
        (Lt, "5", "", false),
        (Lt, "5.5", "5", false),
    ] {
        let toleration = Toleration {
            key: "sla".to_owned(),
            operator,
            value: bound.to_owned(),
            effect: "NoExecute".to_owned(),
        };
        assert_eq!(
            toleration.tolerates(&taint("sla", value, "NoExecute")),
            expected,
            "{value} {operator:?} {bound}"
        );
    }
    let mut room = Room::new(&node("a", 1000), []);
    room.taints = vec![taint("slow", "", "PreferNoSchedule")];
    assert!(fits(&Needs::default(), &room).is_ok());
    room.unschedulable = true;
    assert_eq!(fits(&Needs::default(), &room), Err(vec![Why::Cordoned]));
}

#[test]
fn required_node_affinity_is_matched() {
    let labels = map(&[("disk", "ssd"), ("cores", "8")]);
    let requirement = |key: &str, operator, values: &[&str]| Requirement {
        key: key.to_owned(),
        operator,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    for (key, operator, values, expected) in [
        ("disk", Operator::In, &["hdd", "ssd"][..], true),
        ("disk", Operator::In, &["hdd"], false),
        ("gone", Operator::In, &["hdd"], false),
        ("disk", Operator::NotIn, &["ssd"], false),
        ("gone", Operator::NotIn, &["ssd"], true),
        ("disk", Operator::Exists, &[], true),
        ("gone", Operator::Exists, &[], false),
        ("disk", Operator::DoesNotExist, &[], false),
        ("gone", Operator::DoesNotExist, &[], true),
        ("cores", Operator::Gt, &["7"], true),
        ("cores", Operator::Gt, &["8"], false),
        ("cores", Operator::Lt, &["9"], true),
        ("cores", Operator::Lt, &["8"], false),
        ("disk", Operator::Gt, &["1"], false),
        ("cores", Operator::Gt, &["1", "2"], false),
        ("gone", Operator::Lt, &["1"], false),
        ("disk", Operator::Unknown, &["ssd"], false),
    ] {
        let term = Term {
            labels: vec![requirement(key, operator, values)],
            fields: Vec::new(),
        };
        assert_eq!(
            Affinity { terms: vec![term] }.matches("a", &labels),
            expected,
            "{key} {operator:?} {values:?}"
        );
    }
    let by_field = |field: &str, name: &str| Term {
        labels: Vec::new(),
        fields: vec![requirement(field, Operator::In, &[name])],
    };
    let matches = |terms: Vec<Term>| Affinity { terms }.matches("a", &labels);
    assert!(matches(vec![by_field("metadata.name", "a")]));
    assert!(!matches(vec![by_field("metadata.name", "b")]));
    assert!(!matches(vec![by_field("metadata.uid", "a")]));
    assert!(matches(vec![
        by_field("metadata.name", "b"),
        by_field("metadata.name", "a")
    ]));
    assert!(!matches(vec![]));
    assert!(!matches(vec![Term::default()]));
}

#[test]
fn a_port_is_taken_once() {
    let port = |address: &str, protocol: &str, port| HostPort {
        address: address.to_owned(),
        protocol: protocol.to_owned(),
        port,
    };
    let mut room = Room::new(&node("a", 1000), []);
    room.ports = vec![port("10.0.0.1", "TCP", 80)];
    for (asked, expected) in [
        (port("0.0.0.0", "TCP", 80), false),
        (port("10.0.0.1", "TCP", 80), false),
        (port("10.0.0.2", "TCP", 80), true),
        (port("0.0.0.0", "UDP", 80), true),
        (port("0.0.0.0", "TCP", 81), true),
    ] {
        let needs = Needs {
            ports: vec![asked.clone()],
            ..Needs::default()
        };
        assert_eq!(fits(&needs, &room).is_ok(), expected, "{asked:?}");
    }
}

#[test]
fn k8_an_administrators_cordon_stays_when_the_node_is_awake() {
    let mut sleeping = node("a", 1000);
    sleeping.unschedulable = true;
    sleeping.taints = vec![
        taint("vmstation.io/asleep", "", "NoSchedule"),
        taint("node.kubernetes.io/unreachable", "", "NoExecute"),
        Taint::cordon(),
    ];
    let fits_once_awake = |cordon| fits(&Needs::default(), &Room::once_awake(&sleeping, [], cordon));
    assert_eq!(fits_once_awake(OursOrNot::Ours), Ok(Judgement::Sure));
    assert_eq!(
        fits_once_awake(OursOrNot::NotOurs),
        Err(vec![Why::Cordoned, Why::Taint(Taint::cordon())])
    );
}

#[test]
fn pods_to_move_find_room_by_priority() {
    let (mut important, minor) = (pod("important", 800), pod("a-minor", 800));
    important.priority = 10;
    let one = [(node("b", 1000), Vec::new())];
    let homeless = room_elsewhere(&[minor.clone(), important.clone()], &one).unwrap_err();
    assert_eq!(homeless.len(), 1);
    assert_eq!(homeless[0].0, minor.id);
    let two = [(node("b", 1000), Vec::new()), (node("c", 1000), Vec::new())];
    assert_eq!(
        room_elsewhere(&[minor.clone(), important.clone()], &two),
        Ok(Vec::new())
    );
    important.needs.doubts = vec![Doubt::Spread];
    assert_eq!(
        room_elsewhere(&[minor.clone(), important.clone()], &two),
        Ok(vec![(important.id, vec![Doubt::Spread])])
    );
    assert_eq!(
        room_elsewhere(std::slice::from_ref(&minor), &[]),
        Err(vec![(minor.id, vec![Why::NoNode])])
    );
}

proptest! {
    #[test]
    fn more_room_never_fits_less(asked in 0_i128..50, left in -50_i128..50, more in 0_i128..50) {
        let mut room = Room::new(&node("a", left), []);
        let before = fits(&asks(&[("cpu", asked)]), &room).is_ok();
        prop_assert_eq!(before, asked == 0 || asked <= left);
        *room.left.get_mut("cpu").unwrap() += more;
        prop_assert!(!before || fits(&asks(&[("cpu", asked)]), &room).is_ok());
    }
}
