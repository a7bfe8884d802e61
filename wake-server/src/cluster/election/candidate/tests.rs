//! Several candidates and one Lease, with the time as an argument.

use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(15);

fn at(seconds: u64) -> Moment {
    Moment::from_boot(Duration::from_secs(seconds))
}

fn candidate(identity: &str) -> Candidate {
    Candidate::new(identity.to_owned(), LEASE)
}

fn record(version: u64, holder: Option<&str>, transitions: u64) -> Record {
    Record {
        version: version.to_string(),
        holder: holder.map(str::to_owned),
        url: None,
        duration: Some(LEASE),
        transitions,
    }
}

fn follows(candidate: &Candidate, now: Moment) -> Option<String> {
    match candidate.leadership(now) {
        Leadership::Following { leader } => leader.map(|leader| leader.identity),
        Leadership::Acting(term) => panic!("acts: {term:?}"),
    }
}

#[test]
fn a_lease_of_another_is_taken_when_it_was_not_renewed_for_its_whole_time() {
    let mut us = candidate("us");
    us.looked(Some(record(7, Some("them"), 3)), at(100), at(101));
    assert_eq!(us.step(), Step::Wait);
    assert_eq!(follows(&us, at(101)), Some("them".into()));
    us.looked(Some(record(7, Some("them"), 3)), at(115), at(116));
    assert_eq!(us.step(), Step::Wait, "seen at 101 first");
    us.looked(Some(record(7, Some("them"), 3)), at(116), at(116));
    let version = "7".to_owned();
    assert_eq!(
        us.step(),
        Step::Write {
            version,
            fence: Fence(4)
        }
    );
}

#[test]
fn a_renewal_begins_the_wait_anew() {
    let mut us = candidate("us");
    us.looked(Some(record(7, Some("them"), 3)), at(100), at(100));
    us.looked(Some(record(8, Some("them"), 3)), at(114), at(114));
    us.looked(Some(record(8, Some("them"), 3)), at(128), at(128));
    assert_eq!(us.step(), Step::Wait);
}

#[test]
fn who_did_not_look_for_long_does_not_count_that_time() {
    let mut us = candidate("us");
    us.looked(Some(record(7, Some("them"), 3)), at(100), at(100));
    // This host slept, and they renewed.
    us.looked(Some(record(9, Some("them"), 3)), at(5000), at(5000));
    assert_eq!(us.step(), Step::Wait);
}

#[test]
fn the_right_to_act_ends_a_third_of_the_lease_before_another_has_it() {
    let mut us = candidate("us");
    us.looked(Some(record(1, None, 0)), at(10), at(10));
    us.writes();
    us.written(record(2, Some("us"), 1), at(10));
    let acts = |us: &Candidate, now| us.leadership(now).fence(now);
    assert_eq!(acts(&us, at(10)), Some(Fence(1)));
    assert_eq!(acts(&us, at(19)), Some(Fence(1)));
    assert_eq!(acts(&us, at(20)), None, "15 s, less a third");
    assert_eq!(us.at_most(Duration::from_secs(9), at(18)), Duration::from_secs(2));
    let told = us.leadership(at(19));
    assert_eq!(
        told.fence(at(21)),
        None,
        "what was told before is not believed for ever"
    );
}

#[test]
fn a_write_without_an_answer_is_looked_up_before_the_next() {
    let mut us = candidate("us");
    us.looked(None, at(10), at(10));
    assert_eq!(us.step(), Step::Create { fence: Fence(1) });
    us.writes();
    assert!(us.has_to_look());
    us.looked(Some(record(2, Some("us"), 1)), at(12), at(12));
    assert_eq!(us.leadership(at(12)).fence(at(12)), None, "it is ours, but since when?");
    let version = "2".to_owned();
    assert_eq!(
        us.step(),
        Step::Write {
            version,
            fence: Fence(1)
        }
    );
    us.written(record(3, Some("us"), 1), at(13));
    assert!(!us.has_to_look());
    assert_eq!(us.leadership(at(13)).fence(at(13)), Some(Fence(1)));
}

#[test]
fn a_lease_that_another_took_is_not_acted_on() {
    let mut us = candidate("us");
    us.looked(None, at(10), at(10));
    us.written(record(2, Some("us"), 1), at(10));
    us.writes();
    us.looked(Some(record(5, Some("them"), 2)), at(12), at(12));
    assert_eq!(follows(&us, at(12)), Some("them".into()));
    assert_eq!(us.step(), Step::Wait);
}

#[test]
fn a_lease_that_was_deleted_goes_on_counting() {
    let mut us = candidate("us");
    us.looked(Some(record(7, Some("them"), 41)), at(100), at(100));
    us.looked(None, at(103), at(103));
    assert_eq!(us.step(), Step::Create { fence: Fence(42) });
}

#[test]
fn a_leader_that_is_silent_is_none() {
    let mut us = candidate("us");
    us.looked(Some(record(7, Some("them"), 3)), at(100), at(100));
    assert_eq!(follows(&us, at(115)), Some("them".into()));
    assert_eq!(follows(&us, at(116)), None);
}

/// One of the things that happen to one of three candidates.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// It looks and does what is to be done; the answer arrives.
    Turn(usize),
    /// The write is done, the answer is lost.
    AnswerLost(usize),
    /// The API server is out of its reach.
    CutOff,
    /// It looks, and its write waits for long.
    Late(usize, u64),
}

fn happens() -> impl Strategy<Value = (u64, Happens)> {
    let what = prop_oneof![
        4 => (0..3usize).prop_map(Happens::Turn),
        1 => (0..3usize).prop_map(Happens::AnswerLost),
        1 => Just(Happens::CutOff),
        1 => (0..3usize, 0..40u64).prop_map(|(who, late)| Happens::Late(who, late)),
    ];
    (0..9u64, what)
}

/// The API server: a write of another version than the one that is there is refused.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    version: u64,
}

impl Server {
    fn write(&mut self, who: &str, step: &Step) -> Option<Record> {
        let there = self.lease.as_ref().map(|lease| lease.version.clone());
        let fence = match step {
            Step::Wait => return None,
            Step::Create { fence } if there.is_none() => *fence,
            Step::Write { version, fence } if there.as_ref() == Some(version) => *fence,
            Step::Create { .. } | Step::Write { .. } => return None,
        };
        self.version += 1;
        let written = record(self.version, Some(who), fence.0);
        self.lease = Some(written.clone());
        Some(written)
    }
}

proptest! {
    #[test]
    fn never_two_act_at_once_and_fences_ascend(walk in proptest::collection::vec(happens(), 1..200)) {
        let names = ["a", "b", "c"];
        let mut candidates = names.map(candidate);
        let mut server = Server::default();
        let mut now = 1000;
        let mut late: Vec<(u64, usize, Step, u64)> = Vec::new();
        let mut last: Option<(usize, Fence)> = None;
        for (pause, happens) in walk {
            now += pause;
            let (due, rest): (Vec<_>, Vec<_>) = late.into_iter().partition(|&(at, ..)| at <= now);
            late = rest;
            for (_, who, step, sent) in due {
                if let Some(written) = server.write(names[who], &step) {
                    candidates[who].written(written, at(sent));
                }
            }
            let (Happens::Turn(who) | Happens::AnswerLost(who) | Happens::Late(who, _)) = happens else {
                continue;
            };
            // One request at a time.
            if late.iter().any(|&(_, other, ..)| other == who) {
                continue;
            }
            if candidates[who].has_to_look() {
                candidates[who].looked(server.lease.clone(), at(now), at(now));
            }
            let step = candidates[who].step();
            if step != Step::Wait {
                candidates[who].writes();
                match happens {
                    Happens::Turn(_) => {
                        if let Some(written) = server.write(names[who], &step) {
                            candidates[who].written(written, at(now));
                        }
                    }
                    Happens::AnswerLost(_) => drop(server.write(names[who], &step)),
                    Happens::Late(_, by) => late.push((now + by, who, step, now)),
                    Happens::CutOff => {}
                }
            }
            let acting: Vec<_> = (0..3)
                .filter_map(|who| Some((who, candidates[who].leadership(at(now)).fence(at(now))?)))
                .collect();
            prop_assert!(acting.len() <= 1, "at {now}: {acting:?}");
            if let (Some(&(who, fence)), Some((before, old))) = (acting.first(), last) {
                prop_assert!(if who == before { fence >= old } else { fence > old }, "{last:?}, then {acting:?}");
            }
            last = acting.first().copied().or(last);
        }
    }
}
