use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Moment {
    Moment::from_boot(Duration::from_secs(1000 + seconds))
}

fn card(last: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn life(resumes: u64) -> Life {
    Life {
        boot_id: "boot".into(),
        resumes,
    }
}

fn plan(verify: bool, proof: Option<Stage>) -> WakePlan {
    WakePlan {
        node: "worker-01".parse().unwrap(),
        macs: vec![card(1), card(2)],
        resend: vec![Duration::ZERO, SECOND, 4 * SECOND],
        deadline: 60 * SECOND,
        verify,
        proof,
        ready: false,
        answers: proof.is_some(),
        before: (proof == Some(Stage::AgentReport)).then(|| life(3)),
    }
}

fn sent() -> Event {
    Event::Sent(Sent {
        transport: Transport::Raw,
        interface: Some("lan0".into()),
        packets: 4,
        note: None,
    })
}

fn begun(verify: bool, proof: Option<Stage>) -> Wake {
    let (wake, actions) = Wake::begin(plan(verify, proof), at(0));
    assert_eq!(actions, [Action::Send]);
    wake
}

fn reached(wake: &Wake) -> Vec<Stage> {
    wake.stages().iter().map(|stage| stage.stage).collect()
}

#[test]
fn the_chain_is_walked_to_the_agents_report() {
    let mut wake = begun(true, Some(Stage::AgentReport));
    for (event, seconds, stages, outcome) in [
        (sent(), 0, vec![Stage::FrameSent], WakeOutcome::Waking),
        (
            Event::Answered(card(2)),
            9,
            vec![Stage::FrameSent, Stage::ArpReply],
            WakeOutcome::Waking,
        ),
        (
            Event::Heard(life(4)),
            12,
            vec![Stage::FrameSent, Stage::ArpReply, Stage::AgentReport],
            WakeOutcome::Awake,
        ),
    ] {
        assert_eq!(wake.handle(event, at(seconds)), []);
        assert_eq!((reached(&wake), wake.outcome()), (stages, outcome));
    }
    assert!(wake.is_over());
    assert_eq!(wake.stages()[1].at_ms, 9_000.0);
    assert_eq!(wake.message(), "awake: its agent reports");
}

#[test]
fn who_waits_for_a_node_of_a_cluster_waits_until_it_is_ready() {
    let of_cluster = |verify| {
        let plan = WakePlan {
            ready: true,
            ..plan(verify, Some(Stage::AgentReport))
        };
        let (mut wake, _) = Wake::begin(plan, at(0));
        wake.handle(sent(), at(0));
        wake.handle(Event::Answered(card(1)), at(9));
        wake.handle(Event::Heard(life(4)), at(10));
        wake
    };
    let mut wake = of_cluster(true);
    assert_eq!(wake.outcome(), WakeOutcome::Waking);
    assert_eq!(wake.deadline(), Some(at(60)), "a node that runs is sent nothing");
    let mut too_late = wake.clone();
    wake.handle(Event::Ready, at(30));
    assert_eq!(wake.outcome(), WakeOutcome::Awake);
    assert_eq!(wake.message(), "awake: Kubernetes has it as Ready");
    assert_eq!(wake.stages().last().map(|stage| stage.at_ms), Some(30_000.0));

    too_late.handle(Event::Tick, at(60));
    assert_eq!(too_late.outcome(), WakeOutcome::TimedOut);
    assert_eq!(
        too_late.message(),
        "not proved within 1m: its agent reports, but not: Kubernetes has it as Ready"
    );

    assert_eq!(of_cluster(false).outcome(), WakeOutcome::Awake, "nobody waits");
}

#[test]
fn w11_packets_are_sent_again_until_it_is_proved() {
    let mut wake = begun(true, Some(Stage::ArpReply));
    wake.handle(sent(), at(0));
    for (seconds, again) in [
        (0, false),
        (1, true),
        (3, false),
        (4, true),
        (5, false),
        (7, true),
        (9, false),
        (10, true),
    ] {
        let actions = wake.handle(Event::Tick, at(seconds));
        assert_eq!(!actions.is_empty(), again, "after {seconds} s");
    }
    assert_eq!(wake.deadline(), Some(at(13)), "the last interval goes on");
    wake.handle(sent(), at(10));
    assert_eq!(wake.packets(), 8);
    wake.handle(Event::Answered(card(1)), at(11));
    assert_eq!(wake.outcome(), WakeOutcome::Awake);
    assert_eq!(wake.deadline(), None);
}

#[test]
fn w12_who_is_not_the_node_proves_nothing_and_is_named() {
    let mut wake = begun(true, Some(Stage::ArpReply));
    wake.handle(sent(), at(0));
    wake.handle(Event::Answered(card(9)), at(1));
    assert_eq!(reached(&wake), [Stage::FrameSent]);
    wake.handle(Event::Tick, at(60));
    assert_eq!(wake.outcome(), WakeOutcome::TimedOut);
    assert_eq!(
        wake.message(),
        "not proved within 1m: the packet was sent, but not: its card answers for its address; its address is answered by \
         02:00:00:00:00:09, which is no card of this node"
    );
}

#[test]
fn a_report_from_before_proves_nothing() {
    for (heard, proves) in [
        (life(3), false),
        (life(2), false),
        (life(4), true),
        (
            Life {
                boot_id: "another".into(),
                resumes: 0,
            },
            true,
        ),
    ] {
        let mut wake = begun(true, Some(Stage::AgentReport));
        wake.handle(Event::Heard(heard.clone()), at(0));
        assert_eq!(reached(&wake), [], "nothing was sent");
        wake.handle(sent(), at(0));
        wake.handle(Event::Answered(card(1)), at(0));
        wake.handle(Event::Heard(heard), at(1));
        assert_eq!(wake.is_over(), proves);
    }
}

#[test]
fn an_agent_that_speaks_first_lets_its_card_answer() {
    let mut wake = begun(true, Some(Stage::AgentReport));
    wake.handle(sent(), at(0));
    assert_eq!(wake.handle(Event::Heard(life(4)), at(9)), [Action::Ask]);
    assert_eq!(wake.handle(Event::Heard(life(4)), at(9)), [], "it is asked once");
    wake.handle(Event::Answered(card(9)), at(9));
    assert_eq!((wake.outcome(), wake.deadline()), (WakeOutcome::Waking, Some(at(11))));
    let (mut answered, mut silent, mut stopped) = (wake.clone(), wake.clone(), wake);
    answered.handle(Event::Answered(card(2)), at(10));
    let times: Vec<_> = answered.stages().iter().map(|stage| stage.at_ms).collect();
    assert_eq!(times, [0.0, 10_000.0, 9_000.0]);
    assert_eq!(
        reached(&answered),
        [Stage::FrameSent, Stage::ArpReply, Stage::AgentReport]
    );
    // Its word is proof enough.
    assert_eq!(silent.handle(Event::Tick, at(10)), []);
    assert!(!silent.is_over());
    silent.handle(Event::Tick, at(11));
    assert_eq!(reached(&silent), [Stage::FrameSent, Stage::AgentReport]);
    stopped.handle(Event::Cancel, at(10));
    for wake in [answered, silent, stopped] {
        assert_eq!((wake.outcome(), wake.is_over()), (WakeOutcome::Awake, true));
    }
    // Who cannot be asked is not waited for.
    let plan = WakePlan {
        answers: false,
        ..plan(true, Some(Stage::AgentReport))
    };
    let (mut deaf, _) = Wake::begin(plan, at(0));
    deaf.handle(sent(), at(0));
    assert_eq!(deaf.handle(Event::Heard(life(4)), at(9)), []);
    assert_eq!((deaf.outcome(), deaf.is_over()), (WakeOutcome::Awake, true));
}

#[test]
fn w13_a_node_that_never_comes_ends_at_the_deadline() {
    for (proof, words) in [
        (Some(Stage::AgentReport), "but not: its agent reports"),
        (None, "nothing to prove it by"),
    ] {
        let mut wake = begun(true, proof);
        wake.handle(sent(), at(0));
        wake.handle(Event::Tick, at(59));
        assert!(!wake.is_over());
        wake.handle(Event::Tick, at(60));
        assert_eq!(wake.outcome(), WakeOutcome::TimedOut);
        assert!(wake.message().contains(words), "{}", wake.message());
    }
}

#[test]
fn w10_what_could_not_be_sent_is_sent_again() {
    let down = || Event::NotSent("lan0 is down".into());
    for (verify, meanwhile, after) in [
        (true, WakeOutcome::Waking, WakeOutcome::Waking),
        (false, WakeOutcome::NotSent, WakeOutcome::Sent),
    ] {
        let mut wake = begun(verify, Some(Stage::ArpReply));
        wake.handle(down(), at(0));
        assert_eq!((wake.outcome(), wake.is_over()), (meanwhile, false));
        assert_eq!(wake.deadline(), Some(at(1)));
        assert_eq!(wake.handle(Event::Tick, at(1)), [Action::Send]);
        let mut later = wake.clone();
        later.handle(sent(), at(1));
        assert_eq!((later.outcome(), later.is_over()), (after, false));
        wake.handle(down(), at(1));
        assert_eq!(wake.handle(Event::Tick, at(4)), [Action::Send]);
        assert!(!wake.is_over(), "the last one is on its way");
        wake.handle(down(), at(4));
        assert_eq!((wake.outcome(), wake.is_over()), (WakeOutcome::NotSent, true));
        assert_eq!(wake.message(), "nothing could be sent; lan0 is down");
    }
}

#[test]
fn w10_who_asks_for_no_proof_hears_at_once_that_nothing_was_sent() {
    let mut wake = begun(false, Some(Stage::ArpReply));
    wake.handle(Event::NotSent("lan0 is down".into()), at(0));
    assert_eq!(
        wake.message(),
        "nothing could be sent yet, it is tried again; lan0 is down"
    );
    wake.handle(Event::Verify, at(0));
    assert_eq!(wake.outcome(), WakeOutcome::Waking, "who wants a proof waits on");
    wake.handle(Event::Tick, at(60));
    assert_eq!(wake.outcome(), WakeOutcome::NotSent, "out of time, with no packet sent");
}

#[test]
fn w10_a_later_failure_ends_nothing() {
    let mut wake = begun(true, Some(Stage::ArpReply));
    wake.handle(sent(), at(0));
    wake.handle(Event::NotSent("lan0 is down".into()), at(1));
    assert!(!wake.is_over(), "the first ones may have arrived");
}

#[test]
fn without_a_wish_for_proof_it_is_sent_at_once_and_goes_on() {
    let mut wake = begun(false, Some(Stage::ArpReply));
    wake.handle(sent(), at(0));
    assert_eq!((wake.outcome(), wake.is_over()), (WakeOutcome::Sent, false));
    let mut proved = wake.clone();
    proved.handle(Event::Answered(card(1)), at(2));
    assert_eq!((proved.outcome(), proved.is_over()), (WakeOutcome::Awake, true));
    assert_eq!(wake.handle(Event::Tick, at(1)), [Action::Send]);
    assert_eq!(wake.handle(Event::Tick, at(4)), [Action::Send]);
    assert!(wake.deadline() <= Some(at(4)));
    wake.handle(Event::Tick, at(4));
    assert_eq!((wake.outcome(), wake.is_over()), (WakeOutcome::Sent, true));
}

#[test]
fn a_later_wish_for_proof_gets_its_own_time() {
    let mut wake = begun(false, Some(Stage::ArpReply));
    wake.handle(sent(), at(0));
    wake.handle(Event::Verify, at(3));
    assert_eq!(wake.outcome(), WakeOutcome::Waking);
    wake.handle(Event::Tick, at(60));
    assert!(!wake.is_over());
    wake.handle(Event::Tick, at(63));
    assert_eq!(wake.outcome(), WakeOutcome::TimedOut);
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(sent()),
        1 => Just(Event::NotSent("down".into())),
        1 => (1..5_u8).prop_map(|last| Event::Answered(card(last))),
        1 => (1..6_u64).prop_map(|resumes| Event::Heard(life(resumes))),
        4 => Just(Event::Tick),
        1 => Just(Event::Verify),
        1 => Just(Event::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes: proved only by a card of the node or a later life, stages in order and once, nothing sent after the end, and an
    /// end by the deadline.
    #[test]
    fn walks_are_legal(
        verify: bool,
        proof in prop_oneof![Just(None), Just(Some(Stage::ArpReply)), Just(Some(Stage::AgentReport))],
        events in prop::collection::vec((any_event(), 0..20_u64), 0..40),
    ) {
        let mut wake = begun(verify, proof);
        let (mut now, mut latest) = (0, 60);
        let (mut is_sent, mut answered, mut heard, mut asked) = (false, false, false, verify);
        for (event, seconds) in events {
            now += seconds;
            if wake.is_over() {
                prop_assert_eq!(wake.handle(event, at(now)), []);
                continue;
            }
            is_sent |= matches!(event, Event::Sent(_));
            answered |= is_sent && matches!(event, Event::Answered(mac) if mac == card(1) || mac == card(2));
            heard |= is_sent && matches!(&event, Event::Heard(life) if wake.plan.before.is_none() || life.resumes > 3);
            if event == Event::Verify && !asked {
                (asked, latest) = (true, now + 60);
            }
            let is_tick = event == Event::Tick;
            let actions = wake.handle(event, at(now));
            prop_assert!(is_tick || !actions.contains(&Action::Send));
            prop_assert!(wake.stages().is_sorted_by(|one, next| one.stage < next.stage));
            if is_tick {
                prop_assert!(wake.is_over() || now < latest, "still there {now} of {latest}");
            }
            if wake.outcome() == WakeOutcome::Awake {
                let is_proved = match proof {
                    Some(Stage::AgentReport) => heard,
                    Some(_) => heard || answered,
                    None => false,
                };
                prop_assert!(is_proved);
            }
            prop_assert!(wake.outcome() != WakeOutcome::NotSent || !is_sent);
        }
    }
}
