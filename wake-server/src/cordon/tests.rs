use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{clock::Moment, workload::PodId};

fn node() -> ClusterNode {
    ClusterNode {
        name: "worker-01".parse().unwrap(),
        uid: "u1".into(),
        resource_version: "7".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        ready: true,
        allocatable: BTreeMap::new(),
        cordoned_by: Vec::new(),
    }
}

fn said() -> Claim<'static> {
    Claim {
        by: "master-1",
        reason: "idle for 2 h",
        wake_mac: Some("52:54:00:12:34:56".parse().unwrap()),
        now: "2026-11-22T10:00:00Z".parse().unwrap(),
    }
}

/// Applies a patch as the API server does; `None`: a conflict.
fn patched(node: &ClusterNode, patch: &Value, manager: &str) -> Option<ClusterNode> {
    let mut node = node.clone();
    let metadata = &patch["metadata"];
    if metadata["resourceVersion"] != node.resource_version.as_str() || metadata["uid"] != node.uid.as_str() {
        return None;
    }
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        match value.as_str() {
            Some(value) => node.annotations.insert(key.clone(), value.to_owned()),
            None => node.annotations.remove(key),
        };
    }
    if let Some(unschedulable) = patch.pointer("/spec/unschedulable") {
        node.unschedulable = unschedulable.as_bool().unwrap_or_default();
        node.cordoned_by = if node.unschedulable {
            vec![(manager.to_owned(), None)]
        } else {
            Vec::new()
        };
    }
    if let Some(taints) = patch.pointer("/spec/taints").and_then(Value::as_array) {
        node.taints = taints
            .iter()
            .map(|taint| Taint {
                key: taint["key"].as_str().unwrap().into(),
                value: taint["value"].as_str().unwrap_or_default().into(),
                effect: taint["effect"].as_str().unwrap().into(),
                time_added: taint["timeAdded"].as_str().map(str::to_owned),
            })
            .collect();
    }
    node.resource_version = format!("{}", node.resource_version.parse::<u64>().unwrap() + 1);
    Some(node)
}

fn ours(node: &ClusterNode, patch: &Value) -> ClusterNode {
    patched(node, patch, MANAGER).unwrap()
}

fn by_administrator(node: &ClusterNode, cordoned: bool) -> ClusterNode {
    let patch = json!({
        "metadata": { "resourceVersion": node.resource_version, "uid": node.uid },
        "spec": { "unschedulable": cordoned.then_some(true) },
    });
    patched(node, &patch, "kubectl-cordon").unwrap()
}

fn quiet() -> Evidence {
    Evidence {
        heard: Heard::Nothing,
        lease: LeaseSign::Unclear,
        standing: Standing::None,
        is_being_woken: false,
        was_woken_here: false,
        not_yet: Vec::new(),
        back_for: Duration::ZERO,
    }
}

#[test]
fn k8_cordon_and_ownership_come_in_one_patch_and_go_in_one() {
    let patch = claim(&node(), &said());
    assert_eq!(patch["spec"]["unschedulable"], true);
    assert!(patch["metadata"]["annotations"][CORDONED_BY].is_string());
    let claimed = ours(&node(), &patch);
    assert_eq!(cordon(&claimed), Cordon::Ours);

    let patch = release(&claimed, None);
    assert_eq!(patch["spec"]["unschedulable"], Value::Null);
    let released = ours(&claimed, &patch);
    assert!(!released.unschedulable && !is_marked(&released) && released.annotations.is_empty());
}

#[test]
fn k8_an_administrators_cordon_stays() {
    let cordoned = by_administrator(&node(), true);
    let patch = claim(&cordoned, &said());
    assert!(patch["spec"].is_null());
    let claimed = ours(&cordoned, &patch);
    assert_eq!(cordon(&claimed), Cordon::Others);
    let asleep = ours(&claimed, &asleep(&claimed, &said()));
    let released = ours(&asleep, &release(&asleep, None));
    assert!(released.unschedulable && !is_marked(&released));
}

#[test]
fn k8_a_cordon_that_was_taken_away_and_put_back_by_others_is_theirs() {
    let claimed = ours(&node(), &claim(&node(), &said()));
    let uncordoned = by_administrator(&claimed, false);
    assert!(is_ownership_void(&uncordoned));
    let again = by_administrator(&uncordoned, true);
    assert_eq!(cordon(&again), Cordon::Others);
    assert!(ours(&again, &release(&again, None)).unschedulable);
    // Without managers the annotation has to do: it is void as soon as it is seen without a cordon.
    let disowned = ours(&uncordoned, &disown(&uncordoned));
    let mut blind = by_administrator(&disowned, true);
    blind.cordoned_by.clear();
    assert_eq!(cordon(&blind), Cordon::Others);
}

#[test]
fn a_patch_of_an_older_reading_is_a_conflict() {
    let claimed = ours(&node(), &claim(&node(), &said()));
    assert!(patched(&claimed, &claim(&node(), &said()), MANAGER).is_none());
    let another = ClusterNode {
        uid: "u2".into(),
        ..claimed.clone()
    };
    assert!(patched(&another, &release(&claimed, None), MANAGER).is_none());
}

#[test]
fn others_taints_stay_as_they_are() {
    let foreign = Taint {
        key: "node.kubernetes.io/unreachable".into(),
        value: "v".into(),
        effect: "NoExecute".into(),
        time_added: Some("2026-11-22T09:00:00Z".into()),
    };
    let tainted = ClusterNode {
        taints: vec![foreign.clone()],
        ..node()
    };
    let asleep_now = ours(&tainted, &asleep(&tainted, &said()));
    assert_eq!(asleep_now.taints.len(), 2);
    assert_eq!(asleep_now.taints[0], foreign);
    // A second time changes nothing.
    assert!(asleep(&asleep_now, &said())["spec"].is_null());
    assert_eq!(ours(&asleep_now, &release(&asleep_now, None)).taints, [foreign]);
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let controller = Controller {
        kind: "ReplicaSet".into(),
        name: "web-1".into(),
        uid: "r1".into(),
    };
    let moved = [(controller, 2)].into();
    let claimed = ours(&node(), &claim(&node(), &said()));
    let granted = ours(&claimed, &grant(&claimed, 42, &moved, &said()));
    let record = Record::of(&granted).unwrap().unwrap();
    assert_eq!(
        record,
        Record {
            state: PowerState::Granted,
            since: Some(said().now),
            by: "master-1".into(),
            reason: "idle for 2 h".into(),
            wake_mac: said().wake_mac,
            grant: Some(42),
            moved,
        }
    );
    assert_eq!(Record::of(&node()), Ok(None));
    let strange = ClusterNode {
        annotations: annotations("hibernated", false),
        ..node()
    };
    assert_eq!(Record::of(&strange), Err(UnknownState("hibernated".into())));
}

#[test]
fn the_proof_of_a_wake_outlives_the_record() {
    let asleep_now = ours(&node(), &asleep(&node(), &said()));
    let released = ours(&asleep_now, &release(&asleep_now, Some(said().now)));
    assert_eq!(released.annotations.into_keys().collect::<Vec<_>>(), [WOKEN]);
}

/// The duty of a node with this record.
fn duty_of(state: &str, ready: bool, evidence: &Evidence) -> Duty {
    let node = ClusterNode {
        annotations: annotations(state, true),
        unschedulable: true,
        ready,
        ..node()
    };
    let record = Record::of(&node).unwrap();
    duty(&node, record.as_ref(), evidence)
}

#[test]
fn k9_a_record_that_nobody_carries_on_is_taken_back() {
    let by = |standing, heard, lease| Evidence {
        standing,
        heard,
        lease,
        ..quiet()
    };
    use Heard::{Awake, Gone, Nothing, Sleeping};
    use LeaseSign::{Renewed, Still, Unclear};
    use Standing::{Attempt, Leave, MayHaveLeave, None};
    let not = Duty::Release(Came::Not);
    for (state, standing, heard, lease, expected) in [
        ("draining", Attempt, Awake, Unclear, Duty::Wait(Why::Attempt)),
        ("draining", None, Awake, Unclear, not.clone()),
        ("draining", None, Nothing, Still, not.clone()),
        ("draining", MayHaveLeave, Gone, Still, not.clone()),
        ("draining", None, Sleeping, Still, Duty::MarkAsleep),
        // Leave is written next.
        ("draining", Leave, Awake, Renewed, Duty::Wait(Why::Leave)),
        ("draining", Leave, Sleeping, Still, Duty::MarkAsleep),
        ("granted", Leave, Awake, Renewed, Duty::Wait(Why::Leave)),
        ("granted", Leave, Sleeping, Unclear, Duty::MarkAsleep),
        ("granted", MayHaveLeave, Awake, Renewed, Duty::Wait(Why::MayHaveLeave)),
        ("granted", None, Awake, Unclear, not.clone()),
        ("granted", None, Nothing, Renewed, not.clone()),
        ("granted", None, Nothing, Unclear, Duty::Wait(Why::Unknown)),
        ("granted", None, Nothing, Still, Duty::MarkAsleep),
        ("granted", None, Gone, Still, Duty::MarkAsleep),
    ] {
        assert_eq!(
            duty_of(state, true, &by(standing, heard, lease)),
            expected,
            "{state} {standing:?} {heard:?} {lease:?}"
        );
    }
}

#[test]
fn k13_a_sleeper_is_back_only_with_a_lease_renewed_since() {
    let back = Evidence {
        heard: Heard::Awake,
        lease: LeaseSign::Renewed,
        ..quiet()
    };
    // Ready is what the kubelet said before it slept.
    for lease in [LeaseSign::Unclear, LeaseSign::Still] {
        let stale = Evidence { lease, ..back.clone() };
        assert_eq!(duty_of("asleep", true, &stale), Duty::Wait(Why::Lease));
        assert_eq!(duty_of("waking", true, &stale), Duty::Wait(Why::Lease));
    }
    assert_eq!(duty_of("asleep", false, &back), Duty::Wait(Why::NotReady));
    assert_eq!(duty_of("asleep", true, &back), Duty::Release(Came::Back));
    let cni = PodId {
        namespace: "kube-system".into(),
        name: "flannel".into(),
        uid: "p".into(),
    };
    let mut without = Evidence {
        not_yet: vec![cni.clone()],
        ..back
    };
    assert_eq!(duty_of("waking", true, &without), Duty::Wait(Why::Pods(vec![cni])));
    without.back_for = Duration::from_mins(3);
    assert_eq!(duty_of("waking", true, &without), Duty::Release(Came::Back));
}

#[test]
fn a_wake_is_on_record_while_it_is_under_way() {
    let woken = Evidence {
        heard: Heard::Sleeping,
        is_being_woken: true,
        was_woken_here: true,
        ..quiet()
    };
    assert_eq!(duty_of("asleep", true, &woken), Duty::MarkWaking);
    assert_eq!(duty_of("waking", true, &woken), Duty::Wait(Why::Woken));
    let over = Evidence {
        is_being_woken: false,
        ..woken
    };
    assert_eq!(duty_of("waking", true, &over), Duty::MarkAsleep);
    assert_eq!(duty_of("asleep", true, &over), Duty::Wait(Why::Asleep));
    let begun_by_another = Evidence {
        was_woken_here: false,
        ..over
    };
    assert_eq!(duty_of("waking", true, &begun_by_another), Duty::CarryOn);
    assert_eq!(duty_of("asleep", true, &begun_by_another), Duty::Wait(Why::Asleep));
    let back = Evidence {
        heard: Heard::Awake,
        lease: LeaseSign::Renewed,
        ..begun_by_another
    };
    assert_eq!(
        duty_of("waking", true, &back),
        Duty::Release(Came::Back),
        "it is not woken twice"
    );
}

#[test]
fn a_sleeper_whose_agent_is_silent_is_back_by_its_lease() {
    for heard in [Heard::Nothing, Heard::Gone, Heard::Sleeping] {
        let by = |lease| Evidence {
            heard,
            lease,
            ..quiet()
        };
        assert_eq!(duty_of("asleep", true, &by(LeaseSign::Still)), Duty::Wait(Why::Asleep));
        assert_eq!(
            duty_of("asleep", true, &by(LeaseSign::Unclear)),
            Duty::Wait(Why::Asleep)
        );
        assert_eq!(
            duty_of("asleep", true, &by(LeaseSign::Renewed)),
            Duty::Release(Came::Back)
        );
    }
}

#[test]
fn k13_only_a_change_of_the_lease_counts() {
    let at = |seconds| Moment::from_boot(Duration::from_secs(seconds));
    let mut watch = LeaseWatch::new(at(100));
    assert_eq!(watch.sign(at(100)), LeaseSign::Unclear);
    // What was there before is no renewal, however late its time.
    watch.observe(Some("2031-01-01T00:00:00Z"), at(101));
    watch.observe(Some("2031-01-01T00:00:00Z"), at(110));
    assert_eq!(watch.sign(at(110)), LeaseSign::Unclear);
    watch.observe(Some("2031-01-01T00:00:00Z"), at(161));
    assert_eq!(watch.sign(at(161)), LeaseSign::Still);
    watch.observe(Some("2026-11-22T10:00:00Z"), at(170));
    assert_eq!(watch.sign(at(170)), LeaseSign::Renewed);
    // One that nobody could read says nothing.
    assert_eq!(LeaseWatch::new(at(100)).sign(at(900)), LeaseSign::Unclear);
    // Nor does one that is not there, until it is.
    let mut watch = LeaseWatch::new(at(100));
    watch.observe(None, at(101));
    watch.observe(None, at(200));
    assert_eq!(watch.sign(at(200)), LeaseSign::Still);
    watch.observe(Some("2026-11-22T10:00:00Z"), at(201));
    assert_eq!(watch.sign(at(201)), LeaseSign::Renewed);
}

#[test]
fn a_node_without_a_record_is_left_alone() {
    assert_eq!(duty(&node(), None, &quiet()), Duty::Nothing);
    let cordoned = by_administrator(&node(), true);
    assert_eq!(duty(&cordoned, None, &quiet()), Duty::Nothing);
    let sleeping = Evidence {
        heard: Heard::Sleeping,
        ..quiet()
    };
    assert_eq!(duty(&node(), None, &sleeping), Duty::MarkAsleep);
}

#[derive(Clone, Debug)]
enum Happens {
    Claim,
    Grant,
    Asleep,
    AdministratorCordons(bool),
    Reconcile(Evidence),
}

fn happens() -> impl Strategy<Value = Happens> {
    let evidence = (
        prop::sample::select(vec![Heard::Nothing, Heard::Awake, Heard::Sleeping, Heard::Gone]),
        prop::sample::select(vec![LeaseSign::Unclear, LeaseSign::Renewed, LeaseSign::Still]),
        prop::sample::select(vec![
            Standing::None,
            Standing::Attempt,
            Standing::Leave,
            Standing::MayHaveLeave,
        ]),
        any::<bool>(),
    );
    let evidence = evidence.prop_map(|(heard, lease, standing, is_being_woken)| Evidence {
        heard,
        lease,
        standing,
        is_being_woken,
        ..quiet()
    });
    prop_oneof![
        Just(Happens::Claim),
        Just(Happens::Grant),
        Just(Happens::Asleep),
        any::<bool>().prop_map(Happens::AdministratorCordons),
        evidence.prop_map(Happens::Reconcile),
    ]
}

fn fulfil(node: &ClusterNode, duty: &Duty) -> ClusterNode {
    match duty {
        Duty::Nothing | Duty::Wait(_) | Duty::CarryOn => node.clone(),
        Duty::MarkAsleep => ours(node, &asleep(node, &said())),
        Duty::MarkWaking => ours(node, &waking(node, &said())),
        Duty::Release(_) => ours(node, &release(node, None)),
        Duty::Disown => ours(node, &disown(node)),
    }
}

proptest! {
    /// An administrator's cordon outlives everything, and nothing of ours stays on a node that is awake.
    #[test]
    fn k8_k9_walk(steps in prop::collection::vec(happens(), 1..40)) {
        let mut node = node();
        // The last who changed the cordon, if it was the administrator.
        let mut administrator = None;
        for step in steps {
            let record = Record::of(&node).unwrap();
            node = match step {
                Happens::Claim if record.is_none() => ours(&node, &claim(&node, &said())),
                Happens::Grant if record.as_ref().is_some_and(|record| record.state == PowerState::Draining) => {
                    ours(&node, &grant(&node, 1, &[].into(), &said()))
                }
                Happens::Asleep if record.is_some() => ours(&node, &asleep(&node, &said())),
                Happens::Claim | Happens::Grant | Happens::Asleep => node,
                Happens::AdministratorCordons(cordoned) => {
                    // kubectl leaves a node alone that is as it should be.
                    if node.unschedulable != cordoned {
                        administrator = Some(cordoned);
                        by_administrator(&node, cordoned)
                    } else {
                        node
                    }
                }
                Happens::Reconcile(evidence) => fulfil(&node, &duty(&node, record.as_ref(), &evidence)),
            };
            if cordon(&node) == Cordon::Ours {
                administrator = None;
            }
            match administrator {
                Some(true) => prop_assert!(node.unschedulable, "the administrator's cordon is gone"),
                Some(false) | None => prop_assert!(
                    !node.unschedulable || cordon(&node) == Cordon::Ours,
                    "a cordon of ours is not known as ours"
                ),
            }
        }
        // Awake, heard, its kubelet back, nobody has leave: whatever was before, nothing of ours stays.
        let awake = Evidence { heard: Heard::Awake, lease: LeaseSign::Renewed, back_for: Duration::from_mins(5), ..quiet() };
        for _ in 0..3 {
            let record = Record::of(&node).unwrap();
            node = fulfil(&node, &duty(&node, record.as_ref(), &awake));
        }
        prop_assert!(!is_marked(&node), "{node:?}");
        prop_assert_eq!(node.unschedulable, administrator == Some(true));
    }
}
