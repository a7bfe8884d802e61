//! Who answers for an address.

use std::{collections::BTreeSet, net::Ipv4Addr};

use vmstation_protocol::MacAddr;
use vmstation_wake_server::arp::ArpProbe;

use super::{
    capture::Capture,
    lan::{Host, IMPOSTOR, WORKERS, card, master_and_worker, run},
    netns::ip,
};

const WORKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);

pub(crate) fn whoever_has_the_address() {
    let (master, worker) = master_and_worker();
    let other = Host::new();
    other.plug("lan", "lan0", WORKERS[1], Some("192.0.2.12/24"));
    assert_eq!(told(&master, 1), BTreeSet::from([card(WORKERS[0])]), "the worker alone");

    let impostor = Host::new();
    impostor.plug("lan", "lan0", IMPOSTOR, Some("192.0.2.11/24"));
    let both = BTreeSet::from([card(WORKERS[0]), card(IMPOSTOR)]);
    assert_eq!(told(&master, 2), both, "both have it");

    worker.ip("link set lan0 down");
    assert_eq!(told(&master, 1), BTreeSet::from([card(IMPOSTOR)]), "the impostor alone");
}

/// The first so many different cards that the probe tells.
fn told(master: &Host, count: usize) -> BTreeSet<MacAddr> {
    master.run(|| {
        run(async {
            let mut probe = ArpProbe::open("lan0", WORKER).unwrap();
            let mut told = BTreeSet::new();
            while told.len() < count {
                told.insert(probe.answer().await.unwrap().mac);
            }
            told
        })
    })
}

/// Asked for twice, and nobody is told.
pub(crate) fn silence() {
    let nobodys = Ipv4Addr::new(192, 0, 2, 99);
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let is_question = move |bytes: &[u8]| bytes[12..14] == [0x08, 0x06] && bytes[38..42] == nobodys.octets();
    let asked_twice = move || {
        for _ in 0..2 {
            let question = wire.until(|packet| packet.bytes.len() >= 42 && is_question(&packet.bytes));
            assert_eq!(question.bytes[28..32], [192, 0, 2, 1], "from the master's own address");
        }
    };
    master.run(|| {
        run(async {
            let mut probe = ArpProbe::open("lan0", nobodys).unwrap();
            tokio::select! {
                told = probe.answer() => panic!("{told:?}"),
                asked = tokio::task::spawn_blocking(asked_twice) => asked.unwrap(),
            }
        });
    });
    for (interface, why) in [("lan9", "no such interface"), ("lo", "no Ethernet")] {
        let error = master.run(|| run(async { ArpProbe::open(interface, nobodys).unwrap_err().to_string() }));
        assert!(error.contains(why), "{error}");
    }
}

pub(crate) fn after_the_interface_was_down() {
    let (master, _worker) = master_and_worker();
    master.run(|| {
        run(async {
            let mut probe = ArpProbe::open("lan0", WORKER).unwrap();
            assert_eq!(probe.answer().await.unwrap().mac, card(WORKERS[0]));
            ip("link set lan0 down");
            while probe.answer().await.is_ok() {}
            ip("link set lan0 up");
            let told = loop {
                if let Ok(told) = probe.answer().await {
                    break told.mac;
                }
            };
            assert_eq!(told, card(WORKERS[0]));
        });
    });
}
