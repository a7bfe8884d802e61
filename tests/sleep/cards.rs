//! Who can wake the guest: three network cards, one of which does as it says.

use std::{thread, time::Duration};

use crate::{
    machine::wake_on_lan,
    vm::{
        bed::{ARMED, LYING, NAP, REFUSING, bed},
        installation::{Installation, Settings},
    },
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 1] = [("a3_s10_three_cards_one_of_which_wakes_the_guest", three_cards)];

fn three_cards() {
    let mut bed = bed();
    let suspends = bed.qmp.suspends();
    for (card, sleeps) in [(ARMED, true), (LYING, false), (REFUSING, false)] {
        let cards = [card];
        let mut agent = Installation::new(
            &mut bed,
            &Settings {
                interfaces: &cards,
                ..Settings::default()
            },
        );
        agent.start();
        // A driver that refuses shows only when it is tried.
        let doctor = agent.ctl("doctor --arm");
        let words = doctor.text.lines().find(|line| line.contains(card));
        let words = words.unwrap_or_else(|| panic!("nothing about {card}: {}", doctor.text));
        println!("doctor: {}", words.trim());
        agent.order_sleep("");
        if sleeps {
            assert!(!words.contains("will not wake"), "{words}");
            agent.bed.sleeps("its card is armed");
            thread::sleep(NAP);
            agent.bed.wake();
            let order = agent.order_ended();
            assert_eq!(order.status, 0, "{}", order.text);
            assert_eq!(
                wake_on_lan(agent.bed, card),
                (true, "enabled".into()),
                "armed after the wake"
            );
        } else {
            let order = agent.order_ended();
            assert_eq!(order.status, 3, "{}\n{}", order.text, agent.log());
            assert!(order.text.contains(card), "{}", order.text);
            let verb = if card == LYING { "lies" } else { "refuses" };
            assert!(words.contains(verb), "{words}");
            assert_eq!(agent.status()["sleep"]["last"]["outcome"], "refused");
            let doctor = agent.ctl("doctor");
            assert!(doctor.text.contains("wake"), "{}", doctor.text);
        }
        agent.stop();
    }
    assert_eq!(bed.qmp.suspends(), suspends + 1);
    // The cable of a card that would not wake it anyway: the doctor names it too.
    let cards = [REFUSING];
    let mut agent = Installation::new(
        &mut bed,
        &Settings {
            interfaces: &cards,
            ..Settings::default()
        },
    );
    agent.bed.qmp.set_link("refusing", false);
    agent.start();
    thread::sleep(Duration::from_secs(3));
    let doctor = agent.ctl("doctor").text;
    agent.bed.qmp.set_link("refusing", true);
    assert!(doctor.contains("carrier"), "{doctor}");
}
