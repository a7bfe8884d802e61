//! Magic packets and ARP on the wire: a master, workers and an impostor in network namespaces on bridges, seen by tshark and compared
//! with what etherwake and wakeonlan send.
//!
//! Needs root. No packet leaves the namespaces, and they end with the trial, however it ends.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "wire/answers.rs"]
mod answers;
#[path = "wire/capture.rs"]
mod capture;
#[path = "wire/fallback.rs"]
mod fallback;
#[path = "wire/lan.rs"]
mod lan;
#[path = "wire/many.rs"]
mod many;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/netns.rs"]
mod netns;
#[path = "wire/packets.rs"]
mod packets;
#[path = "wire/ways.rs"]
mod ways;

use std::{env, panic::resume_unwind, thread};

use libtest_mimic::{Arguments, Trial};

const TRIALS: [(&str, fn()); 23] = [
    (
        "frames_are_magic_to_tshark_and_equal_etherwakes",
        packets::frames_equal_etherwakes,
    ),
    (
        "datagrams_are_magic_to_tshark_and_equal_wakeonlans",
        packets::datagrams_equal_wakeonlans,
    ),
    ("secure_on_passwords_are_as_etherwake_sends_them", packets::secure_on),
    (
        "a_frame_to_everybody_and_one_to_the_card_are_sent",
        packets::both_frames,
    ),
    ("of_two_lans_the_one_with_the_node_is_taken", ways::of_two_lans),
    ("the_configured_interface_is_taken", ways::as_configured),
    ("a_bare_mac_is_called_by_the_default_route", ways::of_a_bare_mac),
    ("an_interface_without_address_calls_everybody", ways::without_address),
    ("an_ipv6_address_leads_to_its_interface", ways::of_an_ipv6_address),
    ("where_no_route_leads_it_is_said", ways::that_do_not_exist),
    ("no_frame_goes_to_a_node_behind_a_gateway", ways::behind_a_gateway),
    ("w10_without_cap_net_raw_udp_alone_is_sent", fallback::not_permitted),
    (
        "w10_with_the_interface_down_udp_takes_another_route",
        fallback::interface_down,
    ),
    (
        "w10_an_interface_that_is_not_there_is_named",
        fallback::interface_unknown,
    ),
    (
        "w10_without_any_way_out_nothing_is_said_to_be_sent",
        fallback::no_way_out,
    ),
    ("w10_without_a_carrier_nothing_is_said_to_be_sent", fallback::no_carrier),
    ("w10_packets_without_room_are_tried_again", many::without_room),
    ("w10_a_queue_that_stays_full_is_told", many::never_any_room),
    ("a_slow_card_is_waited_for", many::slowly),
    ("w9_packets_for_1000_nodes_all_arrive", many::a_thousand),
    ("w12_whoever_has_the_address_is_told", answers::whoever_has_the_address),
    (
        "answers_are_heard_after_the_interface_was_down",
        answers::after_the_interface_was_down,
    ),
    ("silence_is_no_answer", answers::silence),
];

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing();
    let trials = TRIALS.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            in_namespaces(test);
            Ok(())
        });
        match &missing {
            None => trial,
            Some(what) => trial.with_kind(format!("needs {what}")).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// On a thread with namespaces of its own, which are the switches of the trial.
fn in_namespaces(trial: fn()) {
    let trial = thread::spawn(move || {
        netns::enter();
        netns::no_ipv6();
        trial();
    });
    trial.join().unwrap_or_else(|panic| resume_unwind(panic));
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    let tools = ["ip", "tc", "tshark", "etherwake", "wakeonlan"];
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    tools.into_iter().find(|tool| !is_there(tool))
}
