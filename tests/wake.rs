//! The real wake server on a master in a network namespace, asked with curl as the guide does; workers, a worker's card that listens
//! while its host sleeps, and an impostor on the same LAN.
//!
//! Needs root. No packet leaves the namespaces, and they end with the trial, however it ends.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "wake/card.rs"]
mod card;
#[path = "wake/document.rs"]
mod document;
#[expect(dead_code, reason = "the suite of the packets uses more of it")]
#[path = "wire/lan.rs"]
mod lan;
#[path = "support/namespaces.rs"]
mod namespaces;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/netns.rs"]
mod netns;
#[path = "wake/requests.rs"]
mod requests;
#[path = "wake/server.rs"]
mod server;
#[path = "wake/verified.rs"]
mod verified;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/wait.rs"]
mod wait;

use std::env;

use libtest_mimic::{Arguments, Trial};

const DOCUMENT: &str = "a7_the_document_of_the_routes_is_true";
const TRIALS: [(&str, fn()); 11] = [
    ("the_guides_requests_work_as_written", requests::of_the_guide),
    ("w2_w3_w7_who_and_what_is_not_known_is_refused", requests::refused),
    ("a_mac_address_stands_for_its_node", requests::by_mac),
    ("f5_a_wrong_registry_keeps_the_one_before", requests::reloaded),
    ("f1_what_is_known_outlives_kill_9", requests::killed),
    ("w9_who_calls_all_off_and_how_many_is_told", requests::called_off),
    (
        "w11_a_card_that_misses_the_first_packets_is_woken",
        verified::at_the_third_call,
    ),
    ("w12_an_impostor_is_named_and_not_believed", verified::impostor),
    ("w13_every_stage_is_told_as_it_comes", verified::followed),
    ("an_agent_is_ordered_and_granted", verified::agent),
    (DOCUMENT, document::is_true),
];

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing();
    let trials = TRIALS.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            namespaces::in_namespaces(test);
            Ok(())
        });
        let lacks_program = name == DOCUMENT && document::program().is_none();
        let missing = missing.or_else(|| lacks_program.then_some("schemathesis, which `cargo xtask setup` installs"));
        match missing {
            None => trial,
            Some(what) => trial.with_kind(format!("needs {what}")).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    ["ip", "curl"].into_iter().find(|tool| !is_there(tool))
}
