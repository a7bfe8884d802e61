//! What is in the packets.

use std::process::Command;

use vmstation_protocol::Transport;
use vmstation_wake_server::transmit::Target;

use super::{
    capture::{Capture, Packet},
    lan::{Host, MASTER, MacAddress, WORKERS, at, card, magic, master_and_worker},
};

const BROADCAST: MacAddress = [0xff; 6];
/// Headers of Ethernet, IPv4 without options, and UDP, bytes.
const UDP_HEADERS: usize = 14 + 20 + 8;

pub(crate) fn both_frames() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let sent = master.call(&[], at(WORKERS[0], "192.0.2.11"));
    assert_eq!((sent.transport, sent.packets), (Transport::Raw, 2));
    assert_eq!((sent.interface.as_deref(), sent.note), (Some("lan0"), None));
    let seen = wire.magic(2);
    for (packet, destination) in seen.iter().zip([BROADCAST, WORKERS[0]]) {
        let expected = [&destination[..], &MASTER, &[0x08, 0x42], &magic(WORKERS[0])].concat();
        assert_eq!(packet.bytes, expected);
    }
    wire.ends();
}

pub(crate) fn frames_equal_etherwakes() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    master.call(&[], at(WORKERS[0], "192.0.2.11"));
    let ours = wire.magic(2);
    for packet in &ours {
        assert_eq!(packet.protocols, "eth:ethertype:wol");
        assert_eq!(packet.wakes, Some(card(WORKERS[0]).to_string()));
        assert_eq!(packet.password, None);
    }
    etherwake(&master, &["-b"]);
    etherwake(&master, &[]);
    assert_eq!(wire.magic(2), ours);
}

pub(crate) fn datagrams_equal_wakeonlans() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let sent = master.call(&[9, 7], at(WORKERS[0], "192.0.2.11"));
    assert_eq!((sent.transport, sent.packets), (Transport::Raw, 4));
    let ours = &wire.magic(4)[2..];
    for (packet, port) in ours.iter().zip(["9", "7"]) {
        assert_eq!(packet.protocols, "eth:ethertype:ip:udp:wol");
        assert_eq!(packet.wakes, Some(card(WORKERS[0]).to_string()));
        let mut command = Command::new("wakeonlan");
        command.args(["-i", "192.0.2.255", "-p", port, &card(WORKERS[0]).to_string()]);
        run(&master, command);
        let theirs = &wire.magic(1)[0];
        assert_eq!(addressed(packet), addressed(theirs), "port {port}");
        assert_eq!(packet.bytes[UDP_HEADERS..], magic(WORKERS[0]));
        assert_eq!(packet.bytes[UDP_HEADERS..], theirs.bytes[UDP_HEADERS..]);
    }
    wire.ends();
}

pub(crate) fn secure_on() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let passwords: [(&[u8], &str); 2] = [
        (&[0x00, 0x22, 0x44, 0x66, 0x88, 0xaa], "00:22:44:66:88:aa"),
        (&[192, 0, 2, 99], "192.0.2.99"),
    ];
    for (password, text) in passwords {
        let target = Target {
            secure_on: Some(password.to_vec()),
            ..at(WORKERS[0], "192.0.2.11")
        };
        master.call(&[9], target);
        let ours = wire.magic(3);
        for packet in &ours {
            assert_eq!(packet.password.as_deref(), Some(password), "{packet:?}");
            assert!(packet.bytes.ends_with(&[&magic(WORKERS[0]), password].concat()));
        }
        etherwake(&master, &["-b", "-p", text]);
        etherwake(&master, &["-p", text]);
        assert_eq!(wire.magic(2), ours[..2]);
    }
    wire.ends();
}

/// Of a datagram: the frame's destination, and IP address and port it goes to.
fn addressed(packet: &Packet) -> (&[u8], &[u8], &[u8]) {
    let bytes = &packet.bytes;
    (&bytes[..6], &bytes[30..34], &bytes[36..38])
}

fn etherwake(host: &Host, options: &[&str]) {
    let mut command = Command::new("etherwake");
    command
        .args(["-i", "lan0"])
        .args(options)
        .arg(card(WORKERS[0]).to_string());
    run(host, command);
}

fn run(host: &Host, mut command: Command) {
    let output = host.run(|| command.output().expect("start it"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
