//! More packets than there is room for, and many at once.

use std::{collections::BTreeMap, process::Command};

use nix::errno::Errno;
use serde_json::Value;
use vmstation_wake_server::transmit::{NoDatagrams, NoFrames, Target};

use super::{
    capture::Capture,
    lan::{Host, MacAddress, WORKERS, at, card, master_and_worker},
};

pub(crate) fn a_thousand() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    all_arrive(&master, &wire, 1000, &[9, 7]);
}

pub(crate) fn without_room() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    queue(&master, "tbf rate 400kbit burst 300 limit 600");
    all_arrive(&master, &wire, 40, &[]);
    assert!(dropped(&master) > 0, "there was room for all: the trial tries nothing");
}

/// The frames fill the socket's own buffer.
pub(crate) fn slowly() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    queue(&master, "tbf rate 10mbit burst 2000 limit 100000000");
    all_arrive(&master, &wire, 1000, &[]);
    assert_eq!(dropped(&master), 0);
}

pub(crate) fn never_any_room() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    queue(&master, "bfifo limit 10");
    let mut sent = master.transmit(&[9], &[at(WORKERS[0], "192.0.2.11"), at(WORKERS[1], "192.0.2.12")]);
    queue(&master, "pfifo");
    assert_eq!(sent.len(), 2);
    let error = sent.remove(0).unwrap_err();
    let interface = "lan0".into();
    let errno = Errno::ENOBUFS;
    assert_eq!(error.frames, NoFrames::Refused { interface, errno });
    let to = "192.0.2.255:9".parse().unwrap();
    assert_eq!(error.datagrams, NoDatagrams::Refused { to, errno });
    assert!(sent.remove(0).is_err());
    wire.ends();
}

/// Every packet for so many nodes arrives, and nothing else.
fn all_arrive(master: &Host, wire: &Capture, nodes: u16, udp_ports: &[u16]) {
    let targets: Vec<Target> = (0..nodes).map(|node| at(mac(node), "192.0.2.11")).collect();
    let each = 2 + udp_ports.len();
    for sent in master.transmit(udp_ports, &targets) {
        let sent = sent.unwrap();
        assert_eq!((usize::try_from(sent.packets), sent.note), (Ok(each), None));
    }
    let mut seen = BTreeMap::new();
    for packet in wire.magic(each * targets.len()) {
        *seen.entry(packet.wakes.unwrap()).or_insert(0) += 1;
    }
    let expected = (0..nodes).map(|node| (card(mac(node)).to_string(), each)).collect();
    assert_eq!(seen, expected);
    wire.ends();
}

fn mac(node: u16) -> MacAddress {
    let [high, low] = node.to_be_bytes();
    [2, 0, 0, 9, high, low]
}

/// What the card's queue is.
fn queue(host: &Host, words: &str) {
    let mut command = Command::new("tc");
    command
        .args(["qdisc", "replace", "dev", "lan0", "root"])
        .args(words.split_whitespace());
    let output = host.run(|| command.output().expect("start tc"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Packets for which the queue had no room.
fn dropped(host: &Host) -> u64 {
    let mut command = Command::new("tc");
    command.args(["-s", "-j", "qdisc", "show", "dev", "lan0"]);
    let output = host.run(|| command.output().expect("start tc"));
    let queues: Value = serde_json::from_slice(&output.stdout).expect("JSON of tc");
    queues[0]["drops"].as_u64().expect("a number of drops")
}
