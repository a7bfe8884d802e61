//! Several wake servers and one API server that fails as it is told: who acts, who follows, and what each says when it cannot.
//!
//! Needs nothing. Everything is on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "election/examined.rs"]
mod examined;
#[path = "election/handed_over.rs"]
mod handed_over;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/kube_fake.rs"]
mod kube_fake;
#[path = "election/programs.rs"]
mod programs;
#[path = "election/standing.rs"]
mod standing;
#[expect(dead_code, reason = "the suite of take-overs uses more of it")]
#[path = "support/wake_program.rs"]
mod wake_program;
#[path = "election/way.rs"]
mod way;

use libtest_mimic::{Arguments, Trial};

const TRIALS: [(&str, fn()); 9] = [
    ("a_leader_that_dies_is_followed_by_another", handed_over::killed),
    (
        "k1_a_leader_that_is_cut_off_ceases_before_another_acts",
        handed_over::cut_off,
    ),
    ("resigning_hands_over_at_once", handed_over::resigned),
    ("an_api_server_that_restarts_changes_no_leader", handed_over::restarted),
    ("k1_an_api_server_that_is_out_of_reach_is_named", examined::unreachable),
    ("k2_credentials_that_are_refused_are_named", examined::unauthorized),
    ("k3_the_right_that_is_missing_is_named", examined::forbidden),
    ("doctor_tells_who_leads", examined::lease),
    ("a_follower_passes_on_and_takes_over", programs::pair),
];

fn main() {
    let arguments = Arguments::from_args();
    let trials = TRIALS
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
