use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{Decision, Demand, DemandPolicy, DoubtfulPods, MovedPods, NoWake, Sleeper, WakeState, World};
use crate::{
    fit::{
        Doubt, OursOrNot,
        tests::{node, pod},
    },
    workload::{Controller, Pod},
};

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap()
}

fn sleeper(name: &str, cpu: i128, since: i64) -> Sleeper {
    Sleeper {
        node: node(name, cpu),
        pods: Vec::new(),
        since: at(since),
        cordon: OursOrNot::Ours,
        moved: [].into(),
        wake: WakeState::Asleep,
    }
}

fn world(pending: Vec<Pod>, awake: &[i128], sleeping: Vec<Sleeper>) -> World {
    let awake = awake
        .iter()
        .enumerate()
        .map(|(index, cpu)| (node(&format!("up{index}"), *cpu), Vec::new()))
        .collect();
    World {
        pending,
        awake,
        sleeping,
    }
}

fn woken(decision: &Decision) -> Vec<&str> {
    decision.wake.iter().map(|wake| wake.node.as_str()).collect()
}

fn decide(world: &World) -> Decision {
    Demand::new(DemandPolicy::default()).decide(world, at(1000))
}

#[test]
fn the_least_sufficient_node_is_woken_then_the_longest_asleep_then_by_name() {
    let pick = |sleeping| woken(&decide(&world(vec![pod("p", 500)], &[], sleeping))).join(",");
    assert_eq!(
        pick(vec![
            sleeper("big", 4000, 1),
            sleeper("small", 600, 9),
            sleeper("tiny", 400, 1)
        ]),
        "small"
    );
    assert_eq!(pick(vec![sleeper("a", 600, 9), sleeper("b", 600, 1)]), "b");
    assert_eq!(pick(vec![sleeper("b", 600, 1), sleeper("a", 600, 1)]), "a");
    assert_eq!(pick(vec![sleeper("a", 400, 1)]), "");
}

#[test]
fn several_pods_share_the_node_that_serves_most() {
    let pending = vec![pod("p", 500), pod("q", 500)];
    let decision = decide(&world(
        pending,
        &[],
        vec![sleeper("big", 1000, 1), sleeper("small", 500, 1)],
    ));
    assert_eq!(woken(&decision), ["big"]);
    assert_eq!(decision.wake[0].pods.len(), 2);
}

#[test]
fn a_pod_that_fits_an_awake_node_wakes_nothing_but_takes_its_room() {
    let pending = vec![pod("p", 500), pod("q", 500)];
    let decision = decide(&world(pending, &[600], vec![sleeper("a", 600, 1)]));
    assert_eq!(woken(&decision), ["a"]);
    assert_eq!(
        decision.waiting,
        [(pod("p", 0).id, NoWake::FitsAwake("up0".parse().unwrap()))]
    );
}

#[test]
fn a_pod_counts_only_when_the_scheduler_has_refused_it_for_a_while() {
    let mut young = pod("p", 1);
    for (since, expected) in [
        (None, NoWake::NotRefused),
        (Some(at(996)), NoWake::Settling),
        (Some(at(2000)), NoWake::Settling),
    ] {
        young.unschedulable_since = since;
        let decision = decide(&world(vec![young.clone()], &[], vec![sleeper("a", 600, 1)]));
        assert_eq!(decision.waiting, [(young.id.clone(), expected)]);
    }
    young.unschedulable_since = Some(at(995));
    assert_eq!(
        woken(&decide(&world(vec![young], &[], vec![sleeper("a", 600, 1)]))),
        ["a"]
    );
}

fn of_a_set(name: &str) -> Pod {
    Pod {
        controller: Some(Controller {
            kind: "ReplicaSet".to_owned(),
            name: "r".to_owned(),
            uid: "r".to_owned(),
        }),
        ..pod(name, 1)
    }
}

#[test]
fn k15_pods_that_our_own_drain_evicted_wake_nothing_unless_configured() {
    let mut moved = of_a_set("p");
    moved.created = Some(at(59));
    let mut asleep = sleeper("a", 600, 1);
    asleep.moved = [("r".to_owned(), 1)].into();
    let world = world(vec![moved.clone()], &[], vec![asleep, sleeper("b", 600, 1)]);
    assert_eq!(
        decide(&world).waiting,
        [(moved.id, NoWake::Moved("a".parse().unwrap()))]
    );
    assert!(decide(&world).wake.is_empty());
    let policy = DemandPolicy {
        moved: MovedPods::Wake,
        ..DemandPolicy::default()
    };
    assert_eq!(Demand::new(policy).decide(&world, at(1000)).wake.len(), 1);
}

#[test]
fn more_pods_of_a_set_that_was_moved_are_demand() {
    let mut asleep = sleeper("a", 600, 1);
    asleep.moved = [("r".to_owned(), 1)].into();
    let mut later = of_a_set("p");
    later.created = Some(at(62));
    let world = |pending| world(pending, &[], vec![asleep.clone()]);
    assert_eq!(woken(&decide(&world(vec![later]))), ["a"]);
    // Of two that were made at the time, one stands for the one that was moved.
    let decision = decide(&world(vec![of_a_set("p"), of_a_set("q")]));
    assert_eq!(decision.wake[0].pods, [pod("q", 1).id]);
}

#[test]
fn k15_pods_in_the_place_of_those_that_sleep_with_their_node_wake_nothing() {
    let gone = |name| Pod {
        is_terminating: true,
        ..of_a_set(name)
    };
    let made = |name| Pod {
        created: Some(at(900)),
        ..of_a_set(name)
    };
    let mut asleep = sleeper("a", 600, 1);
    asleep.pods = vec![gone("p"), gone("q"), of_a_set("r")];
    let world = |pending| world(pending, &[], vec![asleep.clone()]);
    let decision = decide(&world(vec![made("s"), made("t")]));
    assert!(decision.wake.is_empty(), "{decision:?}");
    let decision = decide(&world(vec![made("s"), made("t"), made("u")]));
    assert_eq!(decision.wake[0].pods, [made("u").id]);
}

#[test]
fn a_wake_under_way_and_a_node_just_woken_count_as_room() {
    let mut coming = sleeper("a", 600, 1);
    coming.wake = WakeState::UnderWay;
    let decision = decide(&world(vec![pod("p", 500)], &[], vec![coming, sleeper("b", 600, 1)]));
    assert_eq!(
        decision.waiting,
        [(pod("p", 0).id, NoWake::Coming("a".parse().unwrap()))]
    );
    assert!(decision.wake.is_empty());

    let world = world(
        vec![pod("p", 500)],
        &[],
        vec![sleeper("a", 600, 1), sleeper("b", 600, 2)],
    );
    let mut demand = Demand::new(DemandPolicy::default());
    assert_eq!(woken(&demand.decide(&world, at(1000))), ["a"]);
    assert!(demand.decide(&world, at(1001)).wake.is_empty());
    assert!(demand.decide(&world, at(1299)).wake.is_empty());
    assert_eq!(woken(&demand.decide(&world, at(1300))), ["a"]);
}

#[test]
fn a_doubtful_pod_wakes_ever_more_seldom() {
    let mut doubtful = pod("p", 500);
    doubtful.needs.doubts = vec![Doubt::PodAffinity];
    let world = world(vec![doubtful], &[4000], vec![sleeper("a", 600, 1)]);
    let mut demand = Demand::new(DemandPolicy::default());
    let mut wakes = Vec::new();
    for minute in 0..240 {
        if !demand
            .decide(&world, at(1000) + SignedDuration::from_mins(minute))
            .wake
            .is_empty()
        {
            wakes.push(minute);
        }
    }
    assert_eq!(wakes, [0, 5, 15, 35, 75, 135, 195]);
    let policy = DemandPolicy {
        doubtful: DoubtfulPods::Wait,
        ..DemandPolicy::default()
    };
    assert_eq!(
        Demand::new(policy).decide(&world, at(1000)).waiting[0].1,
        NoWake::Doubtful
    );
}

proptest! {
    #[test]
    fn no_wake_is_in_vain_and_none_is_left_out(
        pods in prop::collection::vec((1_i128..10, 0_i32..3), 0..5),
        awake in prop::collection::vec(0_i128..10, 0..3),
        asleep in prop::collection::vec((0_i128..15, 0_i64..3), 0..4),
    ) {
        let pending: Vec<Pod> = pods.iter().enumerate().map(|(index, (cpu, priority))| {
            Pod { priority: *priority, ..pod(&format!("p{index}"), *cpu) }
        }).collect();
        let sleeping: Vec<Sleeper> = asleep.iter().enumerate()
            .map(|(index, (cpu, since))| sleeper(&format!("s{index}"), *cpu, *since)).collect();
        let mut world = world(pending, &awake, sleeping);
        let decision = decide(&world);
        // Each pod is answered once, and all that a node is woken for fits it together.
        let served: usize = decision.wake.iter().map(|wake| wake.pods.len()).sum();
        prop_assert_eq!(served + decision.waiting.len(), pods.len());
        let cpu = |id: &crate::workload::PodId| world.pending.iter().find(|pod| pod.id == *id).unwrap().needs.requests["cpu"];
        for wake in &decision.wake {
            let node = world.sleeping.iter().find(|sleeper| sleeper.node.name == wake.node).unwrap();
            prop_assert!(!wake.pods.is_empty());
            prop_assert!(wake.pods.iter().map(cpu).sum::<i128>() <= node.node.allocatable["cpu"]);
        }
        // A lone pod: woken for exactly if no awake node has room and a sleeping one has; then the smallest.
        if let [(cpu, _)] = pods[..] {
            let smallest = asleep.iter().map(|(size, _)| *size).filter(|size| *size >= cpu).min();
            let expected = smallest.filter(|_| awake.iter().all(|size| *size < cpu));
            let sizes: Vec<i128> = decision.wake.iter().map(|wake| {
                world.sleeping.iter().find(|sleeper| sleeper.node.name == wake.node).unwrap().node.allocatable["cpu"]
            }).collect();
            prop_assert_eq!(sizes, expected.into_iter().collect::<Vec<_>>());
        }
        // A pod left without a node fits none that stays asleep, by itself.
        for (id, why) in &decision.waiting {
            if matches!(why, NoWake::NoFit(_)) {
                let rest = world.sleeping.iter().filter(|sleeper| !decision.wake.iter().any(|wake| wake.node == sleeper.node.name));
                prop_assert!(rest.map(|sleeper| sleeper.node.allocatable["cpu"]).all(|size| size < cpu(id)));
            }
        }
        // The order of the lists does not matter.
        world.pending.reverse();
        world.awake.reverse();
        world.sleeping.reverse();
        prop_assert_eq!(&decide(&world), &decision);
        // No node is woken again within the cooldown.
        let mut demand = Demand::new(DemandPolicy { cooldown: Duration::from_secs(60), ..DemandPolicy::default() });
        let first = demand.decide(&world, at(1000));
        let again = demand.decide(&world, at(1059));
        prop_assert!(woken(&again).iter().all(|name| !woken(&first).contains(name)));
    }
}
