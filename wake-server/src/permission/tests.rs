use proptest::prelude::*;

use super::*;

const TERMS: Terms = Terms {
    lifetime: Duration::from_secs(120),
    entering: Duration::from_secs(60),
    soon: Duration::from_secs(30),
    later: Duration::from_secs(600),
    cool_down: Duration::from_secs(900),
};

fn at(seconds: u64) -> Moment {
    Moment::from_boot(Duration::from_secs(seconds))
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn worker() -> Facts {
    Facts {
        has_mac: true,
        ..Facts::default()
    }
}

fn of_group(group: &str) -> Facts {
    Facts {
        group: Some(group.into()),
        ..worker()
    }
}

fn granted(decision: &Decision) -> u64 {
    match decision {
        Decision::Granted { grant, .. } => *grant,
        Decision::Refused { refusals, .. } => panic!("refused: {refusals:?}"),
    }
}

fn words(decision: Decision) -> (String, u64) {
    match decision.into() {
        Leave::Refused { reason, again_in_s } => (reason, again_in_s),
        Leave::Granted { grant, .. } => panic!("granted: {grant}"),
    }
}

#[test]
fn all_that_stands_against_it_is_said_at_once() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    permission.forbid(name("master-01"), "a disk is being replaced");
    let facts = Facts {
        role: Role::Master,
        has_mac: false,
        is_being_woken: true,
        group: Some("ceph".into()),
        ..Facts::default()
    };
    let (reason, again_in_s) = words(permission.ask(&name("master-01"), &facts, at(0)));
    assert_eq!(
        reason,
        "no network card of it is known, so that nothing could wake it: add it to the registry; it is a master, which its cluster \
         needs awake; it is being woken; an operator forbade it: a disk is being replaced; another node of its group (ceph) may have \
         leave from before the wake server started, for 180 s more"
    );
    assert_eq!(again_in_s, 600);
}

#[test]
fn leave_ends_by_itself() {
    let mut permission = Permission::new(TERMS, 7, at(0));
    let decision = permission.ask(&name("a"), &worker(), at(10));
    assert_eq!(Leave::from(decision), Leave::Granted { grant: 7, for_s: 120 });
    assert_eq!(permission.grant(&name("a"), at(129)), Some(7));
    assert_eq!(permission.grant(&name("a"), at(130)), None);
}

#[test]
fn who_asks_again_has_the_newer_leave_only() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    let first = granted(&permission.ask(&name("a"), &worker(), at(0)));
    let second = granted(&permission.ask(&name("a"), &worker(), at(1)));
    assert!(!permission.hand_back(&name("a"), first));
    assert!(!permission.hand_back(&name("b"), second));
    assert_eq!(permission.grant(&name("a"), at(1)), Some(second));
    assert!(permission.hand_back(&name("a"), second));
    assert_eq!(permission.grant(&name("a"), at(1)), None);
}

#[test]
fn a_group_enters_sleep_one_by_one() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    let grant = granted(&permission.ask(&name("a"), &of_group("ceph"), at(200)));
    let (reason, again_in_s) = words(permission.ask(&name("b"), &of_group("ceph"), at(210)));
    assert_eq!(
        reason,
        "a of the same group (ceph) is entering sleep: its turn comes in 170 s at most"
    );
    assert_eq!(again_in_s, 170);
    granted(&permission.ask(&name("c"), &of_group("minio"), at(210)));
    granted(&permission.ask(&name("d"), &worker(), at(210)));
    // Its leave is over, the suspend it may have begun is not.
    words(permission.ask(&name("b"), &of_group("ceph"), at(379)));
    granted(&permission.ask(&name("b"), &of_group("ceph"), at(380)));

    words(permission.ask(&name("a"), &of_group("ceph"), at(381)));
    assert!(!permission.hand_back(&name("a"), grant));
    permission.used_up(&name("b"));
    granted(&permission.ask(&name("a"), &of_group("ceph"), at(381)));
}

#[test]
fn leave_that_is_revoked_keeps_its_place() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    granted(&permission.ask(&name("a"), &of_group("ceph"), at(200)));
    permission.forbid(name("a"), "no");
    assert_eq!(permission.grant(&name("a"), at(200)), None);
    words(permission.ask(&name("b"), &of_group("ceph"), at(201)));
    // It asks, so it is not on its way.
    words(permission.ask(&name("a"), &of_group("ceph"), at(202)));
    granted(&permission.ask(&name("b"), &of_group("ceph"), at(203)));
    assert!(permission.allow(&name("a")));
    assert!(!permission.allow(&name("a")));
}

#[test]
fn after_a_start_a_group_waits_for_leave_of_before() {
    let mut permission = Permission::new(TERMS, 1, at(1000));
    assert_eq!(words(permission.ask(&name("a"), &of_group("ceph"), at(1179))).1, 1);
    granted(&permission.ask(&name("a"), &of_group("ceph"), at(1180)));
}

#[derive(Clone, Debug)]
enum Step {
    Ask { node: usize, facts: Facts },
    HandBack { node: usize, which: usize },
    Asleep(usize),
    Revoke(usize),
    Forbid(usize),
    Allow(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..4_usize;
    let facts = (any::<u8>(), 0..6_u8, 0..8_usize).prop_map(|(bits, group, min_awake)| Facts {
        role: if bits & 0x7 == 0 { Role::Master } else { Role::Worker },
        has_mac: bits & 0x38 != 0,
        is_being_woken: bits & 0xc0 == 0,
        group: (group < 2).then(|| format!("group-{group}")),
        min_awake: min_awake.saturating_sub(4),
        ..Facts::default()
    });
    let step = prop_oneof![
        6 => (node.clone(), facts).prop_map(|(node, facts)| Step::Ask { node, facts }),
        2 => (node.clone(), any::<usize>()).prop_map(|(node, which)| Step::HandBack { node, which }),
        1 => node.clone().prop_map(Step::Asleep),
        1 => node.clone().prop_map(Step::Revoke),
        1 => node.clone().prop_map(Step::Forbid),
        1 => node.prop_map(Step::Allow),
        4 => (1..200_u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A leave as the oracle remembers it.
struct Given {
    number: u64,
    at: u64,
    group: Option<String>,
    revoked: bool,
}

proptest! {
    #[test]
    fn leave_is_given_exactly_when_nothing_stands_against_it(steps in steps()) {
        let names: Vec<NodeName> = (0..4).map(|node| name(&format!("node-{node}"))).collect();
        let mut permission = Permission::new(TERMS, 1, at(0));
        let mut held: [Option<Given>; 4] = [const { None }; 4];
        let mut forbidden = [false; 4];
        let mut all = vec![0];
        let mut now = 0;
        for step in steps {
            match step {
                Step::Pass(seconds) => now += seconds,
                Step::Ask { node, mut facts } => {
                    held[node] = None;
                    facts.awake_peers = names.iter().filter(|peer| **peer != names[node]).cloned().collect();
                    let leaving = held.iter().flatten().filter(|given| now - given.at < 180).count();
                    let are_too_few = 3 - leaving < facts.min_awake;
                    let is_group_busy = facts.group.is_some()
                        && (now < 180 || held.iter().flatten().any(|given| given.group == facts.group && now - given.at < 180));
                    let against = usize::from(!facts.has_mac) + usize::from(facts.role == Role::Master)
                        + usize::from(facts.is_being_woken) + usize::from(forbidden[node]) + usize::from(is_group_busy)
                        + usize::from(are_too_few);
                    match permission.ask(&names[node], &facts, at(now)) {
                        Decision::Granted { grant, lifetime } => {
                            prop_assert_eq!(against, 0);
                            prop_assert_eq!(lifetime, TERMS.lifetime);
                            prop_assert!(!all.contains(&grant), "a number was used twice");
                            all.push(grant);
                            held[node] = Some(Given { number: grant, at: now, group: facts.group, revoked: false });
                        }
                        Decision::Refused { refusals, again_in } => {
                            prop_assert_eq!(refusals.len(), against);
                            prop_assert!(against > 0 && !again_in.is_zero() && again_in <= TERMS.later);
                        }
                    }
                }
                Step::HandBack { node, which } => {
                    let number = all[which % all.len()];
                    let is_mine = held[node].as_ref().is_some_and(|given| given.number == number);
                    let was_known = permission.hand_back(&names[node], number);
                    prop_assert!(is_mine || !was_known);
                    if is_mine {
                        held[node] = None;
                    }
                }
                Step::Asleep(node) => {
                    permission.used_up(&names[node]);
                    held[node] = None;
                }
                Step::Revoke(node) => {
                    permission.revoke(&names[node]);
                    held[node].iter_mut().for_each(|given| given.revoked = true);
                }
                Step::Forbid(node) => {
                    permission.forbid(names[node].clone(), "no");
                    forbidden[node] = true;
                    held[node].iter_mut().for_each(|given| given.revoked = true);
                }
                Step::Allow(node) => {
                    prop_assert_eq!(permission.allow(&names[node]), forbidden[node]);
                    forbidden[node] = false;
                }
            }
            for (node, given) in held.iter().enumerate() {
                let expected = given.as_ref().filter(|given| !given.revoked && now - given.at < 120).map(|given| given.number);
                prop_assert_eq!(permission.grant(&names[node], at(now)), expected);
            }
        }
    }
}

#[test]
fn k11_min_awake_is_kept_by_those_without_leave() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    let facts = |peers: &[&str]| Facts {
        awake_peers: peers.iter().copied().map(name).collect(),
        min_awake: 1,
        ..worker()
    };
    granted(&permission.ask(&name("a"), &facts(&["b", "c"]), at(200)));
    granted(&permission.ask(&name("b"), &facts(&["a", "c"]), at(201)));
    let (reason, again_in_s) = words(permission.ask(&name("c"), &facts(&["a", "b"]), at(202)));
    assert_eq!(reason, "0 other workers are awake and 1 have to be (min_awake)");
    assert_eq!(again_in_s, 30);
}

#[test]
fn what_cannot_be_woken_does_not_sleep() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    for (waking, needed, may) in [
        (Proof::None, Proof::None, true),
        (Proof::None, Proof::Armed, false),
        (Proof::Armed, Proof::Armed, true),
        (Proof::Armed, Proof::Woken, false),
        (Proof::Woken, Proof::Woken, true),
    ] {
        let facts = Facts {
            waking,
            proof_needed: needed,
            ..worker()
        };
        let decision = permission.ask(&name("a"), &facts, at(1));
        assert_eq!(
            matches!(decision, Decision::Granted { .. }),
            may,
            "{waking:?} {needed:?}"
        );
    }
}

#[test]
fn k11_a_node_that_is_being_emptied_has_its_place() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    permission.prepare(&name("a"), &of_group("ceph"), at(200)).unwrap();
    assert_eq!(permission.grant(&name("a"), at(200)), None);
    assert_eq!(permission.standing(&name("a"), at(200)), Standing::Attempt);
    // However long it takes.
    words(permission.ask(&name("b"), &of_group("ceph"), at(2000)));
    let grant = granted(&permission.grant_prepared(&name("a"), &of_group("ceph"), at(2001)));
    assert_eq!(permission.grant(&name("a"), at(2001)), Some(grant));
    assert_eq!(permission.standing(&name("a"), at(2180)), Standing::Leave);
    assert_eq!(permission.standing(&name("a"), at(2181)), Standing::None);
    // A second time there is nothing prepared.
    words(permission.grant_prepared(&name("a"), &of_group("ceph"), at(2002)));
}

#[test]
fn k4_a_node_that_could_not_be_emptied_is_left_alone() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    permission.prepare(&name("a"), &of_group("ceph"), at(200)).unwrap();
    permission.give_up(&name("a"), Some("a budget".into()), at(300));
    granted(&permission.ask(&name("b"), &of_group("ceph"), at(300)));
    permission.used_up(&name("b"));
    let (reason, again_in_s) = words(permission.ask(&name("a"), &of_group("ceph"), at(400)));
    assert_eq!(
        reason,
        "its pods could not be moved (a budget): it is left alone for 800 s more"
    );
    assert_eq!(again_in_s, 800);
    granted(&permission.ask(&name("a"), &of_group("ceph"), at(1200)));
}

#[test]
fn what_is_revoked_while_it_is_prepared_is_not_given() {
    for revoke in [Permission::revoke, |permission: &mut Permission, node: &NodeName| {
        permission.used_up(node);
    }] {
        let mut permission = Permission::new(TERMS, 1, at(0));
        permission.prepare(&name("a"), &worker(), at(200)).unwrap();
        revoke(&mut permission, &name("a"));
        words(permission.grant_prepared(&name("a"), &worker(), at(201)));
    }
    let mut permission = Permission::new(TERMS, 1, at(0));
    permission.prepare(&name("a"), &worker(), at(200)).unwrap();
    let held = Facts {
        hold: Some("a new disk".into()),
        ..worker()
    };
    let (reason, _) = words(permission.grant_prepared(&name("a"), &held, at(201)));
    assert_eq!(reason, "an operator forbade it: a new disk");
}

#[test]
fn after_a_take_over_leaves_of_before_may_hold() {
    let mut permission = Permission::new(TERMS, 1, at(0));
    assert_eq!(permission.standing(&name("a"), at(180)), Standing::None);
    permission.took_over(at(1000));
    assert_eq!(permission.standing(&name("a"), at(1179)), Standing::MayHaveLeave);
    assert_eq!(permission.standing(&name("a"), at(1180)), Standing::None);
}
