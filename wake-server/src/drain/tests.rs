use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    clock::Moment,
    fit::Needs,
    workload::{Controller, Phase},
};

const WITHIN: Duration = Duration::from_secs(60);

fn at(milliseconds: u64) -> Moment {
    Moment::from_boot(Duration::from_millis(milliseconds))
}

fn id(name: &str) -> PodId {
    PodId {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-of-{name}"),
    }
}

/// Running, of a ReplicaSet.
fn pod(name: &str) -> Pod {
    Pod {
        id: id(name),
        node: Some("w1".parse().unwrap()),
        phase: Phase::Running,
        controller: Some(of("ReplicaSet")),
        is_mirror: false,
        is_terminating: false,
        is_ready: true,
        has_local_storage: false,
        labels: Default::default(),
        annotations: Default::default(),
        priority: 0,
        priority_class: None,
        uses_host_network: false,
        grace: Duration::from_secs(30),
        created: None,
        unschedulable_since: None,
        needs: Needs::default(),
    }
}

fn of(kind: &str) -> Controller {
    Controller {
        kind: kind.into(),
        name: "c".into(),
        uid: format!("uid-of-{kind}"),
    }
}

fn daemon(name: &str) -> Pod {
    Pod {
        controller: Some(of("DaemonSet")),
        ..pod(name)
    }
}

fn labelled(pod: Pod) -> Pod {
    Pod {
        labels: [("vmstation.io/prevent-sleep".to_owned(), "true".to_owned())].into(),
        ..pod
    }
}

fn drain(pods: &[Pod]) -> Drain {
    Drain::new(preflight(pods, &PodRules::default()).unwrap(), WITHIN, 7, at(0))
}

fn ids(pods: &[PodId]) -> Vec<&str> {
    pods.iter().map(|pod| pod.name.as_str()).collect()
}

fn evictions(actions: &[Action]) -> Vec<&str> {
    let names = actions.iter().filter_map(|action| match action {
        Action::Evict(pod) => Some(pod.name.as_str()),
        Action::List => None,
    });
    names.collect()
}

/// As `kubectl drain` judges the same pod with no flags but `--ignore-daemonsets`: `None`: it stays; or whether it refuses.
#[test]
fn k5_pods_are_judged_as_kubectl_drain_judges_them() {
    let with_data = |pod: Pod| Pod {
        has_local_storage: true,
        ..pod
    };
    let alone = |pod: Pod| Pod {
        controller: None,
        ..pod
    };
    let mirror = Pod {
        is_mirror: true,
        controller: None,
        ..pod("mirror")
    };
    let finished = Pod {
        phase: Phase::Succeeded,
        ..alone(pod("done"))
    };
    for (pod, refused, moved) in [
        (pod("managed"), "", true),
        (mirror, "", false),
        (daemon("daemon"), "", false),
        (with_data(daemon("daemon")), "", false),
        (finished, "", true),
        (
            alone(pod("alone")),
            "default/alone has no controller that would make it again (unmanaged_pods)",
            true,
        ),
        (
            with_data(pod("data")),
            "default/data has data in an emptyDir (delete_local_data)",
            true,
        ),
        (
            labelled(daemon("kept")),
            "default/kept has a label that prevents sleep",
            false,
        ),
    ] {
        let pods = [pod];
        match preflight(&pods, &PodRules::default()) {
            Ok(plan) => assert_eq!((refused, plan.to_move().len() == 1), ("", moved), "{pods:?}"),
            Err(refusal) => assert_eq!(refusal.to_string(), refused),
        }
        let forced = PodRules {
            unmanaged: true,
            local_data: true,
            prevent_sleep_labels: Vec::new(),
            ..PodRules::default()
        };
        assert_eq!(
            preflight(&pods, &forced).unwrap().to_move().len() == 1,
            moved,
            "{pods:?}"
        );
    }
}

#[test]
fn all_that_stands_against_it_is_named() {
    let pods: Vec<_> = (0..7)
        .map(|n| Pod {
            controller: None,
            ..pod(&format!("p{n}"))
        })
        .chain([labelled(pod("x"))])
        .collect();
    assert_eq!(
        preflight(&pods, &PodRules::default()).unwrap_err().to_string(),
        "default/x has a label that prevents sleep; default/p0, default/p1, default/p2, default/p3, default/p4 and 2 more have no \
         controller that would make them again (unmanaged_pods)"
    );
}

#[test]
fn modes_say_what_becomes_of_pods() {
    let rules = |mode| PodRules {
        mode,
        ..PodRules::default()
    };
    assert_eq!(preflight(&[pod("a")], &rules(Mode::Freeze)).unwrap().to_move(), []);
    assert_eq!(
        preflight(&[pod("a"), daemon("d")], &rules(Mode::RefuseIfPods))
            .unwrap_err()
            .any,
        [id("a")]
    );
    preflight(&[labelled(pod("a"))], &rules(Mode::Freeze)).unwrap_err();
}

#[test]
fn the_least_important_pods_leave_first() {
    let important = Pod {
        priority: 1000,
        ..pod("important")
    };
    let mut drain = drain(&[important.clone(), pod("a"), pod("b")]);
    let actions = drain.step(at(0));
    assert_eq!(evictions(&actions), ["a", "b"]);
    assert!(actions.contains(&Action::List), "one may have come before the cordon");
    for name in ["a", "b"] {
        drain.answered(&id(name), Outcome::Accepted, at(1));
    }
    drain.listed(&[important.clone(), pod("a")], at(2));
    assert_eq!(evictions(&drain.step(at(2002))), [""; 0], "a is still there");
    drain.listed(std::slice::from_ref(&important), at(2003));
    assert_eq!(evictions(&drain.step(at(2003))), ["important"]);
}

#[test]
fn k4_a_budget_is_asked_again_later_and_later() {
    let mut drain = drain(&[pod("a")]);
    drain.step(at(0));
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..6 {
        drain.answered(
            &id("a"),
            Outcome::Later {
                why: "a budget".into(),
                again_in: None,
            },
            at(now),
        );
        let asked = (now..)
            .find(|&now| !evictions(&drain.step(at(now))).is_empty())
            .unwrap();
        waits.push(asked - now);
        now = asked;
    }
    for (wait, longest) in waits.iter().zip([1000, 2000, 4000, 8000, 16000, 30000]) {
        assert!((longest / 2..=longest).contains(wait), "{waits:?}");
    }
    assert_eq!(drain.ended(), None);
    drain.step(at(60_000));
    let Some(Ended::OutOfTime { left, why }) = drain.ended() else {
        panic!("{:?}", drain.ended());
    };
    assert_eq!((ids(left), why.as_deref()), (vec!["a"], Some("default/a: a budget")));
}

#[test]
fn k4_a_server_that_says_when_is_believed() {
    let mut drain = drain(&[pod("a")]);
    drain.step(at(0));
    let later = Outcome::Later {
        why: "a budget".into(),
        again_in: Some(Duration::from_secs(10)),
    };
    drain.answered(&id("a"), later, at(0));
    assert_eq!(evictions(&drain.step(at(9_999))), [""; 0]);
    assert_eq!(evictions(&drain.step(at(10_000))), ["a"]);
}

#[test]
fn k4_two_budgets_end_it_at_once() {
    let mut drain = drain(&[pod("a"), pod("b")]);
    drain.step(at(0));
    drain.answered(&id("b"), Outcome::Never { why: "two".into() }, at(1));
    assert_eq!(drain.ended().unwrap().to_string(), "default/b cannot be evicted: two");
    assert_eq!(drain.step(at(2)), []);
}

#[test]
fn k6_another_pod_of_the_same_name_is_another_pod() {
    let mut drain = drain(&[pod("a")]);
    drain.step(at(0));
    drain.answered(&id("a"), Outcome::Accepted, at(1));
    let mut again = pod("a");
    again.id.uid = "another".into();
    drain.listed(std::slice::from_ref(&again), at(2));
    assert_eq!(drain.ended(), Some(&Ended::NewPods(vec![again.id])));
}

#[test]
fn k7_what_comes_after_the_plan_ends_it() {
    for (mode, pod, ends) in [
        (Mode::Drain, pod("new"), true),
        (Mode::Drain, daemon("new"), false),
        (Mode::Drain, labelled(daemon("new")), true),
        (Mode::Freeze, pod("new"), false),
        (Mode::Freeze, labelled(pod("new")), true),
        (Mode::RefuseIfPods, pod("new"), true),
    ] {
        let rules = PodRules {
            mode,
            ..PodRules::default()
        };
        let mut drain = Drain::new(preflight(&[], &rules).unwrap(), WITHIN, 7, at(0));
        drain.step(at(0));
        drain.listed(std::slice::from_ref(&pod), at(1));
        let expected = if ends {
            Ended::NewPods(vec![pod.id.clone()])
        } else {
            Ended::Empty
        };
        assert_eq!(drain.ended(), Some(&expected), "{mode:?} {pod:?}");
    }
}

#[test]
fn k7_a_list_from_before_the_last_change_proves_nothing() {
    let mut drain = drain(&[pod("a")]);
    drain.step(at(0));
    drain.answered(&id("a"), Outcome::Gone, at(5));
    drain.listed(&[], at(6));
    assert_eq!(drain.ended(), None);
    assert_eq!(drain.step(at(2006)), [Action::List]);
    drain.listed(&[], at(2007));
    assert_eq!(drain.ended(), Some(&Ended::Empty));
}

#[test]
fn k15_whose_pods_were_moved_is_known() {
    let mut drain = drain(&[
        pod("a"),
        pod("b"),
        Pod {
            controller: Some(of("Job")),
            ..pod("left-by-itself")
        },
    ]);
    drain.step(at(0));
    drain.answered(&id("a"), Outcome::Accepted, at(1));
    drain.answered(&id("b"), Outcome::Accepted, at(1));
    drain.answered(&id("left-by-itself"), Outcome::Gone, at(1));
    assert_eq!(*drain.moved(), [(of("ReplicaSet"), 2)].into());
}

/// What the simulated API server does next.
#[derive(Clone, Debug)]
enum Turn {
    Answer(usize, Outcome),
    List { fails: bool },
    Ends(usize),
    Comes(u8),
    Pass(u64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Accepted),
        1 => Just(Outcome::Gone),
        3 => (0..20_u64).prop_map(|seconds| Outcome::Later {
            why: "later".into(),
            again_in: (seconds > 15).then(|| Duration::from_secs(seconds)),
        }),
    ];
    let turn = prop_oneof![
        6 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Turn::Answer(which, outcome)),
        6 => any::<u8>().prop_map(|fails| Turn::List { fails: fails < 40 }),
        4 => any::<usize>().prop_map(Turn::Ends),
        1 => any::<u8>().prop_map(Turn::Comes),
        6 => (1..4000_u64).prop_map(Turn::Pass),
    ];
    prop::collection::vec(turn, 1..200)
}

proptest! {
    /// Never another pod, never too many at a time, never out of turn; empty only if it is; over by the deadline.
    #[test]
    fn walk(priorities in prop::collection::vec(0..3, 0..14_usize), turns in turns()) {
        let planned: Vec<Pod> = priorities.iter().enumerate()
            .map(|(n, priority)| Pod { priority: *priority, ..pod(&format!("p{n}")) }).collect();
        let mut drain = drain(&planned);
        let mut there = [planned.clone(), vec![daemon("stays")]].concat();
        let mut terminating: Vec<PodId> = Vec::new();
        let mut asked: Vec<PodId> = Vec::new();
        // What the API server had when it was asked.
        let mut list: Option<Vec<Pod>> = None;
        let mut now = 0;
        for turn in turns {
            for action in drain.step(at(now)) {
                match action {
                    Action::Evict(id) => {
                        let pod = planned.iter().find(|pod| pod.id == id);
                        prop_assert!(pod.is_some() && !asked.contains(&id), "{id} is not to be evicted");
                        let is_before = |other: &&Pod| other.priority < pod.unwrap().priority
                            && there.iter().any(|there| there.id == other.id);
                        prop_assert!(!planned.iter().any(|other| is_before(&other)), "{id} is not at its turn");
                        asked.push(id);
                        prop_assert!(asked.len() <= 10);
                    }
                    Action::List => {
                        prop_assert!(list.is_none());
                        list = Some(there.clone());
                    }
                }
            }
            if let Some(ended) = drain.ended() {
                if *ended == Ended::Empty {
                    prop_assert!(there.iter().all(Pod::is_daemon), "{there:?}");
                }
                prop_assert_eq!(drain.step(at(now + 1)), []);
                return Ok(());
            }
            match turn {
                Turn::Pass(milliseconds) => now += milliseconds,
                Turn::Answer(which, outcome) if !asked.is_empty() => {
                    let id = asked.swap_remove(which % asked.len());
                    let outcome = if there.iter().any(|pod| pod.id == id) { outcome } else { Outcome::Gone };
                    match outcome {
                        Outcome::Accepted => terminating.push(id.clone()),
                        Outcome::Gone => there.retain(|pod| pod.id != id),
                        Outcome::Later { .. } | Outcome::Never { .. } => {}
                    }
                    drain.answered(&id, outcome, at(now));
                }
                Turn::List { fails } => match list.take() {
                    Some(_) if fails => drain.not_listed("no answer".into(), at(now)),
                    Some(pods) => drain.listed(&pods, at(now)),
                    None => {}
                },
                Turn::Ends(which) if !terminating.is_empty() => {
                    let id = terminating.swap_remove(which % terminating.len());
                    there.retain(|pod| pod.id != id);
                }
                // Before the cordon was seen by the scheduler: in the first second.
                Turn::Comes(n) if now < 1000 && list.is_none() => there.push(pod(&format!("new{n}"))),
                Turn::Answer(..) | Turn::Ends(_) | Turn::Comes(_) => {}
            }
            prop_assert!(drain.deadline() <= at(60_000));
        }
        drain.step(at(60_000));
        prop_assert!(drain.ended().is_some());
    }
}
