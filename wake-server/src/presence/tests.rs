use proptest::prelude::*;
use vmstation_protocol::Activity;

use super::*;

const LIMITS: Limits = Limits {
    silence: Duration::from_secs(900),
    settle: Duration::from_secs(30),
    order: Duration::from_secs(300),
};
const SLEEPING: Activity = Activity::Sleeping;
const BUSY: Activity = Activity::Busy;

/// 2026-01-01 and so many seconds; the host has been up for so many.
fn at(seconds: u64) -> At {
    At {
        moment: Moment::from_boot(Duration::from_secs(seconds)),
        wall: wall(seconds),
    }
}

fn wall(seconds: u64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + i64::try_from(seconds).unwrap()).unwrap()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn a() -> NodeName {
    name("a")
}

fn report(activity: Activity, boot: &str, resumes: u64) -> Report {
    Report {
        schema: SCHEMA,
        node: a(),
        boot_id: boot.into(),
        resumes,
        activity,
        reasons: Vec::new(),
        ports: Vec::new(),
        role: None,
        version: "1".into(),
    }
}

fn shown(presence: &Presence, seconds: u64) -> (NodeState, Option<u64>) {
    let (state, since) = presence.state(&a(), at(seconds));
    let since = since.map(|since| u64::try_from(since.as_second() - wall(0).as_second()).unwrap());
    (state, since)
}

fn told(changes: &[Change]) -> Vec<(NodeState, NodeState, Cause)> {
    changes
        .iter()
        .map(|change| (change.from, change.to, change.cause))
        .collect()
}

#[test]
fn silence_without_a_word_is_gone() {
    let mut presence = Presence::new(LIMITS);
    assert_eq!(shown(&presence, 0), (NodeState::Unknown, None));
    let changes = presence.report(&report(BUSY, "x", 0), at(10));
    assert_eq!(
        told(&changes),
        [(NodeState::Unknown, NodeState::Awake, Cause::Reported)]
    );
    assert_eq!(presence.deadline(), Some(at(910).moment));
    assert_eq!(shown(&presence, 909), (NodeState::Awake, Some(10)));
    // Seen before anybody came to tick.
    assert_eq!(shown(&presence, 2000), (NodeState::Gone, Some(910)));
    assert_eq!(
        told(&presence.tick(at(2000))),
        [(NodeState::Awake, NodeState::Gone, Cause::Silence)]
    );
    assert_eq!(shown(&presence, 3000), (NodeState::Gone, Some(910)));
    assert_eq!(presence.deadline(), None);
}

#[test]
fn a_held_long_poll_is_no_silence() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(BUSY, "x", 0), at(0));
    presence.poll_begun(&a(), at(1));
    presence.poll_begun(&a(), at(2));
    presence.poll_ended(&a(), at(3));
    assert!(presence.is_polling(&a()));
    assert_eq!(presence.deadline(), None);
    assert_eq!(shown(&presence, 100_000), (NodeState::Awake, Some(0)));
    presence.poll_ended(&a(), at(100_000));
    assert!(!presence.is_polling(&a()));
    assert_eq!(presence.deadline(), Some(at(100_900).moment));
    // One end too many is no beginning.
    presence.poll_ended(&a(), at(100_001));
    assert!(!presence.is_polling(&a()));
}

#[test]
fn sleeping_and_then_silence_is_asleep_though_its_connection_looks_alive() {
    let mut presence = Presence::new(LIMITS);
    presence.poll_begun(&a(), at(0));
    presence.report(&report(Activity::GoingToSleep { in_s: 60 }, "x", 4), at(10));
    presence.report(&report(SLEEPING, "x", 4), at(70));
    assert_eq!(shown(&presence, 99), (NodeState::GoingToSleep, Some(10)));
    assert_eq!(shown(&presence, 100), (NodeState::Asleep, Some(100)));
    let changes = presence.poll_ended(&a(), at(300));
    assert_eq!(
        told(&changes),
        [(NodeState::GoingToSleep, NodeState::Asleep, Cause::Silence)]
    );
    assert_eq!(shown(&presence, 1_000_000), (NodeState::Asleep, Some(100)));
    let changes = presence.report(&report(BUSY, "x", 5), at(1_000_000));
    assert_eq!(told(&changes), [(NodeState::Asleep, NodeState::Awake, Cause::Woke)]);
}

#[test]
fn a_sleep_is_called_off_from_the_same_life() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(SLEEPING, "x", 4), at(0));
    let changes = presence.report(&report(BUSY, "x", 4), at(29));
    assert_eq!(
        told(&changes),
        [(NodeState::GoingToSleep, NodeState::Awake, Cause::CalledOff)]
    );
    assert_eq!(shown(&presence, 100), (NodeState::Awake, Some(29)));
}

#[test]
fn a_delayed_report_neither_puts_to_sleep_nor_takes_a_resume_back() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(BUSY, "x", 5), at(0));
    presence.report(&report(SLEEPING, "x", 4), at(1));
    assert_eq!(shown(&presence, 200), (NodeState::Awake, Some(0)));
    presence.report(&report(BUSY, "x", 4), at(2));
    assert_eq!(presence.life(&a()).unwrap().resumes, 5);
    presence.report(&report(BUSY, "y", 0), at(3));
    assert_eq!(presence.life(&a()).unwrap().resumes, 0);
}

#[test]
fn who_asks_for_orders_does_not_sleep() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(SLEEPING, "x", 4), at(0));
    presence.tick(at(30));
    let changes = presence.poll_begun(&a(), at(500));
    assert_eq!(told(&changes), [(NodeState::Asleep, NodeState::Awake, Cause::Asked)]);
}

#[test]
fn a_wake_is_shown_while_the_node_is_not_heard_of() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(SLEEPING, "x", 4), at(0));
    presence.tick(at(30));
    presence.wake_begun(&a(), at(100));
    assert_eq!(shown(&presence, 100), (NodeState::Waking, Some(100)));
    presence.wake_ended(&a(), at(280));
    assert_eq!(shown(&presence, 280), (NodeState::Asleep, Some(280)));
    presence.wake_begun(&a(), at(300));
    presence.report(&report(BUSY, "x", 5), at(310));
    assert_eq!(shown(&presence, 310), (NodeState::Awake, Some(310)));
    assert!(presence.is_being_woken(&a()));
    assert!(presence.wake_ended(&a(), at(311)).is_empty());
}

#[test]
fn a_wall_clock_that_is_set_back_makes_nothing_older() {
    let mut presence = Presence::new(LIMITS);
    presence.report(&report(BUSY, "x", 0), at(1000));
    let back = At {
        moment: at(1010).moment,
        wall: wall(0),
    };
    let changes = presence.report(&report(Activity::GoingToSleep { in_s: 60 }, "x", 0), back);
    assert_eq!(changes[0].since, wall(1000));
}

#[test]
fn orders_wait_for_their_agent_but_not_for_ever() {
    let mut presence = Presence::new(LIMITS);
    let now = at(0);
    assert_eq!(presence.orders_after(&a(), 0, now.moment), None);
    let Order::Sleep { number: first } = presence.order_sleep(&a(), now);
    let Order::Sleep { number: second } = presence.order_sleep(&a(), now);
    assert!(second > first);
    let orders = presence.orders_after(&a(), first, at(299).moment).unwrap();
    assert_eq!(orders.newest, second);
    assert_eq!(orders.orders, [Order::Sleep { number: second }]);
    assert_eq!(presence.orders_after(&a(), second, now.moment), None);
    assert_eq!(presence.orders_after(&a(), 0, at(300).moment), None);
    for _ in 0..2 * ORDERS {
        presence.order_sleep(&a(), now);
    }
    assert_eq!(presence.orders(&a(), now.moment).orders.len(), ORDERS);
    presence.report(&report(SLEEPING, "x", 0), now);
    assert_eq!(presence.orders(&a(), now.moment).orders, []);
}

#[test]
fn numbers_of_orders_rise_through_a_restart() {
    let mut presence = Presence::new(LIMITS);
    let Order::Sleep { number: before } = presence.order_sleep(&a(), at(0));
    let mut presence = Presence::restored(LIMITS, presence.unsaved(), at(1));
    // Its agent learns at once that the number it waits beyond is of no use.
    assert_eq!(presence.orders_after(&a(), before, at(1).moment).unwrap().newest, 0);
    let Order::Sleep { number: after } = presence.order_sleep(&a(), at(1));
    assert!(after > before);
}

#[test]
fn w8_a_report_cannot_fill_the_memory() {
    let mut presence = Presence::new(LIMITS);
    let mut big = report(BUSY, &"x".repeat(10_000), 0);
    big.reasons = vec!["ä".repeat(10_000); 1000];
    presence.report(&big, at(0));
    let (kept, _) = presence.last_report(&a()).unwrap();
    assert_eq!(kept.boot_id.len(), TEXT);
    assert_eq!((kept.reasons.len(), kept.reasons[0].chars().count()), (LIST, TEXT));
}

#[test]
fn only_who_is_away_is_forgotten() {
    let mut presence = Presence::new(LIMITS);
    assert!(!presence.forget(&a()));
    presence.report(&report(SLEEPING, "x", 0), at(0));
    assert!(presence.forget(&a()));
    assert_eq!(presence.deadline(), None);
    presence.report(&report(BUSY, "x", 0), at(0));
    assert!(!presence.forget(&a()));
}

#[derive(Clone, Debug)]
enum Step {
    Report {
        activity: Activity,
        resumed: u64,
        reboot: bool,
    },
    PollBegun,
    PollEnded,
    WakeBegun,
    WakeEnded,
    Pass(u64),
    Tick,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let activity = prop_oneof![
        Just(BUSY),
        Just(Activity::Quiet { idle_s: 5 }),
        Just(Activity::GoingToSleep { in_s: 60 }),
        Just(SLEEPING),
        Just(SLEEPING),
    ];
    let step = prop_oneof![
        4 => (activity, 0..2_u64, proptest::bool::weighted(0.1))
            .prop_map(|(activity, resumed, reboot)| Step::Report { activity, resumed, reboot }),
        2 => Just(Step::PollBegun),
        2 => Just(Step::PollEnded),
        1 => Just(Step::WakeBegun),
        1 => Just(Step::WakeEnded),
        3 => (0..60_u64).prop_map(Step::Pass),
        2 => (500..2000_u64).prop_map(Step::Pass),
        2 => Just(Step::Tick),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..150)
}

/// What an observer knows who remembers only what was heard.
#[derive(Default)]
struct Oracle {
    now: u64,
    heard: Option<u64>,
    polls: u32,
    woken: bool,
    /// Said `Sleeping`, and nothing else since.
    said_sleeping: bool,
    last: Option<(NodeState, Option<Timestamp>)>,
}

impl Oracle {
    fn silent_for(&self) -> Option<u64> {
        (self.polls == 0).then(|| self.heard.map_or(u64::MAX, |heard| self.now - heard))
    }

    fn judge(&mut self, presence: &Presence) -> Result<(), TestCaseError> {
        let (state, since) = presence.state(&a(), at(self.now));
        prop_assert!(since <= Some(wall(self.now)));
        if let Some((before, then)) = self.last {
            prop_assert!(
                since >= then,
                "{before:?} since {then:?} became {state:?} since {since:?}"
            );
            prop_assert!(
                before != state || since == then || self.woken,
                "the same state has another since"
            );
        }
        self.last = Some((state, since));
        let is_silent = self.silent_for().is_some_and(|silent| silent >= 900);
        match state {
            NodeState::Unknown => prop_assert!(self.heard.is_none() && !self.woken),
            NodeState::Awake => prop_assert!(!is_silent && !self.said_sleeping),
            NodeState::GoingToSleep => prop_assert!(!is_silent),
            NodeState::Asleep => prop_assert!(self.said_sleeping && !self.woken),
            NodeState::Gone => prop_assert!(is_silent && !self.said_sleeping && !self.woken),
            NodeState::Waking => prop_assert!(self.woken && (is_silent || self.said_sleeping)),
        }
        Ok(())
    }

    /// Each change begins where the last one ended, and the last one is what is shown.
    fn follows(&self, changes: &[Change], presence: &Presence) -> Result<(), TestCaseError> {
        for pair in changes.windows(2) {
            prop_assert_eq!(pair[0].to, pair[1].from);
            prop_assert!(pair[0].since <= pair[1].since);
        }
        for change in changes {
            prop_assert_ne!(change.from, change.to);
        }
        if let Some(change) = changes.last() {
            let shown = presence.state(&a(), at(self.now));
            prop_assert_eq!((change.to, Some(change.since)), shown);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn states_say_what_was_heard(steps in steps()) {
        let mut presence = Presence::new(LIMITS);
        let mut oracle = Oracle::default();
        let (mut boot, mut resumes) = (0, 0);
        let mut told = NodeState::Unknown;
        // As a store keeps it.
        let mut kept: Vec<String> = Vec::new();
        for step in steps {
            let now = at(oracle.now);
            let changes = match step {
                Step::Report { activity, resumed, reboot } => {
                    boot += u32::from(reboot);
                    resumes = if reboot { 0 } else { resumes + resumed };
                    oracle.heard = Some(oracle.now);
                    oracle.said_sleeping = activity == SLEEPING;
                    presence.report(&report(activity, &boot.to_string(), resumes), now)
                }
                Step::PollBegun => {
                    // A poll within the window of a sleep does not call it off; one after it is a node that is awake.
                    let was_asleep = oracle.said_sleeping && oracle.heard.is_some_and(|heard| oracle.now - heard >= 30);
                    oracle.said_sleeping &= !was_asleep;
                    oracle.heard = Some(oracle.now);
                    oracle.polls += 1;
                    presence.poll_begun(&a(), now)
                }
                Step::PollEnded => {
                    if oracle.polls > 0 && oracle.silent_for().is_none() && !oracle.said_sleeping {
                        oracle.heard = Some(oracle.now);
                    }
                    if oracle.polls == 0 {
                        // The server never ends what it did not begin.
                        Vec::new()
                    } else {
                        oracle.polls -= 1;
                        presence.poll_ended(&a(), now)
                    }
                }
                Step::WakeBegun => {
                    oracle.woken = true;
                    presence.wake_begun(&a(), now)
                }
                Step::WakeEnded => {
                    oracle.woken = false;
                    presence.wake_ended(&a(), now)
                }
                Step::Pass(seconds) => {
                    let before = presence.state(&a(), now);
                    oracle.now += seconds;
                    if presence.deadline().is_none_or(|deadline| at(oracle.now).moment < deadline) {
                        prop_assert_eq!(presence.state(&a(), at(oracle.now)), before, "a change before its deadline");
                    }
                    Vec::new()
                }
                Step::Tick => {
                    let changes = presence.tick(now);
                    prop_assert!(presence.deadline().is_none_or(|deadline| deadline > now.moment));
                    changes
                }
                Step::Restart => {
                    // A wake and what it showed end with the server.
                    let mut changes = presence.tick(now);
                    changes.extend(presence.wake_ended(&a(), now));
                    let unsaved = presence.unsaved();
                    if !unsaved.is_empty() {
                        kept = unsaved.iter().map(|saved| serde_json::to_string(saved).unwrap()).collect();
                    }
                    oracle.follows(&changes, &presence)?;
                    let saved = kept.iter().map(|text| serde_json::from_str(text).unwrap());
                    let was = presence.state(&a(), now).0;
                    presence = Presence::restored(LIMITS, saved, now);
                    prop_assert_eq!(presence.state(&a(), now).0, was, "a restart changed the state");
                    (oracle.polls, oracle.woken) = (0, false);
                    let is_gone = was == NodeState::Gone;
                    let is_known = oracle.heard.is_some();
                    if is_known && !is_gone && !(oracle.said_sleeping && was == NodeState::Asleep) {
                        oracle.heard = Some(oracle.now);
                    }
                    changes
                }
            };
            if let Some(first) = changes.first() {
                prop_assert_eq!(first.from, told, "a change was not told");
            }
            told = changes.last().map_or(told, |change| change.to);
            oracle.judge(&presence)?;
            oracle.follows(&changes, &presence)?;
        }
    }
}
