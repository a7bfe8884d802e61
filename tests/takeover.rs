//! Two real wake servers of one cluster, and the leader killed at every write of a sleep and of a wake, before it is done and after it: the
//! other finishes or takes back. No double wake, no lost cordon.
//!
//! Needs no root, and nothing leaves loopback: neither requests nor magic packets. The servers have the rights of their manifest. On the fake
//! API server, which stops the leader at each of its writes; the life in which nobody dies is passed on the real one, where
//! `KUBEBUILDER_ASSETS` names it. The agent, the card and the kubelet of the node are played.
//!
//! The cordon is lost if the node is without one while its machine sleeps, or an administrator's is gone at any time.
//!
//! A node is woken twice if the server that takes over begins more than one wake of it; or any, where neither a wake is on record that the
//! dead one had begun, nor somebody orders one; or if the cluster is told twice that it is being woken. To call again until the machine is
//! back is one wake, and to carry on what is on record too. Packets are counted where they arrive: all of them have to be those of that one
//! wake.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/cluster.rs"]
mod cluster;
#[path = "takeover/life.rs"]
mod life;
#[path = "takeover/machine.rs"]
mod machine;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "coordination/scene.rs"]
mod scene;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/wake_program.rs"]
mod wake_program;

use std::thread;

use tokio::sync::Semaphore;

use self::{
    cluster::kube_fake::Stopped,
    life::{Lived, Plan, pass, pass_undisturbed},
};

/// More writes than a life takes: in the lives with the last numbers nobody dies.
const NUMBERS: usize = 15;
/// Lives that do something at a time; most of the time they wait.
const AT_A_TIME: usize = 10;

fn plans() -> impl Iterator<Item = Plan> {
    let variants = [Stopped::Before, Stopped::After]
        .into_iter()
        .flat_map(|when| [1, 2].map(|packets| (when, packets)));
    // Those that take longest do not come last.
    let numbers = (0..NUMBERS).rev();
    numbers.flat_map(move |number| {
        variants.clone().map(move |(when, packets)| Plan {
            number,
            when,
            packets,
            is_cordoned_by_others: packets == 2,
            through_follower: number % 2 == 1,
        })
    })
}

fn lives() -> Vec<(Plan, Lived)> {
    let turns = &Semaphore::new(AT_A_TIME);
    thread::scope(|scope| {
        let started = plans().map(|plan| {
            let name = format!("{} {:?}, {} packets", plan.number, plan.when, plan.packets);
            let live = move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                (plan, runtime.block_on(pass(plan, turns)))
            };
            thread::Builder::new().name(name).spawn_scoped(scope, live).unwrap()
        });
        let lives: Vec<_> = started.collect();
        let all: Vec<_> = lives.into_iter().map(thread::ScopedJoinHandle::join).collect();
        let failed = all.iter().filter(|lived| lived.is_err()).count();
        assert_eq!(failed, 0, "lives went wrong, as said above");
        all.into_iter().flatten().collect()
    })
}

#[test]
fn nobody_dies() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(pass_undisturbed());
}

#[test]
fn whoever_takes_over_finishes_or_takes_back() {
    let lives = lives();
    for (plan, lived) in &lives {
        println!("{plan:?}: {lived:?}");
    }
    let undisturbed = lives.iter().filter(|(_, lived)| lived.died.is_none());
    let writes = undisturbed.map(|(_, lived)| lived.writes).min();
    // Two rehearsals, the cordon, two evictions, the grant, asleep, waking, back, and their Events.
    assert!(
        writes >= Some(9),
        "every write of a life is one of those that are tried: {writes:?}"
    );
    for state in ["", "draining", "granted", "asleep", "waking"] {
        let there = |(_, lived): &&(Plan, Lived)| lived.died.as_deref() == Some(state);
        assert!(
            lives.iter().any(|life| there(&life)),
            "nobody died where the node was {state:?}"
        );
    }
    let carried_on = |lived: &Lived| lived.died.as_deref() == Some("waking") && lived.wakes == 1;
    assert!(
        lives.iter().any(|(_, lived)| carried_on(lived)),
        "no wake was carried on"
    );
}
