//! Through which interface packets go.

use std::fs;

use vmstation_protocol::Transport;
use vmstation_wake_server::{
    route::{self, Route, RouteError},
    transmit::Target,
};

use super::{
    capture::Capture,
    lan::{Host, IMPOSTOR, MASTER, WORKERS, at, bare, card, master_and_worker, run, switch},
};

/// Address of the master's second card.
const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The worker of [`master_and_worker`], and another with 198.51.100.12 on a second LAN, `lan1` of the master.
fn two_lans() -> (Host, Host, Host) {
    let (master, worker) = master_and_worker();
    switch("second");
    master.plug("second", "lan1", SECOND, Some("198.51.100.1/24"));
    let other = Host::new();
    other.plug("second", "lan0", WORKERS[1], Some("198.51.100.12/24"));
    (master, worker, other)
}

pub(crate) fn of_two_lans() {
    let (master, worker, other) = two_lans();
    let wires = [
        Capture::at(&worker, "lan0", (&master, "lan0")),
        Capture::at(&other, "lan0", (&master, "lan1")),
    ];
    let nodes = [
        (WORKERS[0], "192.0.2.11", "lan0"),
        (WORKERS[1], "198.51.100.12", "lan1"),
    ];
    let targets = nodes.map(|(mac, address, _)| at(mac, address));
    let sent = master.transmit(&[9], &targets);
    for (((mac, address, interface), wire), sent) in nodes.iter().zip(&wires).zip(sent) {
        assert_eq!(sent.unwrap().interface.as_deref(), Some(*interface));
        for packet in wire.magic(3) {
            assert_eq!(packet.wakes, Some(card(*mac).to_string()));
        }
        let route = master.run(|| run(route::interface_to(address.parse().unwrap())));
        let expected = Route {
            interface: (*interface).into(),
            gateway: None,
        };
        assert_eq!(route, Ok(expected));
    }
    wires.iter().for_each(Capture::ends);
}

pub(crate) fn as_configured() {
    let (master, worker, other) = two_lans();
    let [here, there] = [
        Capture::at(&worker, "lan0", (&master, "lan0")),
        Capture::at(&other, "lan0", (&master, "lan1")),
    ];
    let target = Target {
        interface: Some("lan1".into()),
        ..at(WORKERS[0], "192.0.2.11")
    };
    let sent = master.call(&[9], target);
    assert_eq!((sent.interface.as_deref(), sent.note), (Some("lan1"), None));
    let seen = there.magic(3);
    // To the second LAN's broadcast, as the packet goes there.
    assert_eq!(seen[2].bytes[30..34], [198, 51, 100, 255]);
    here.ends();
    there.ends();
}

pub(crate) fn of_a_bare_mac() {
    let (master, worker, other) = two_lans();
    master.ip("route add default via 198.51.100.254");
    let [here, there] = [
        Capture::at(&worker, "lan0", (&master, "lan0")),
        Capture::at(&other, "lan0", (&master, "lan1")),
    ];
    let sent = master.call(&[9], bare(WORKERS[1]));
    assert_eq!(
        (sent.transport, sent.interface.as_deref(), sent.note),
        (Transport::Raw, Some("lan1"), None)
    );
    there.magic(3);
    here.ends();
    there.ends();
}

pub(crate) fn without_address() {
    switch("lan");
    let (master, worker) = (Host::new(), Host::new());
    master.plug("lan", "lan0", MASTER, None);
    worker.plug("lan", "lan0", WORKERS[0], None);
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let target = Target {
        interface: Some("lan0".into()),
        ..bare(WORKERS[0])
    };
    let sent = master.call(&[9], target);
    assert_eq!((sent.packets, sent.note), (3, None));
    let datagram = &wire.magic(3)[2];
    assert_eq!(datagram.bytes[30..34], [255; 4]);
    wire.ends();
}

pub(crate) fn behind_a_gateway() {
    let (master, _worker) = master_and_worker();
    let gateway = Host::new();
    gateway.plug("lan", "lan0", IMPOSTOR, Some("192.0.2.254/24"));
    master.ip("route add default via 192.0.2.254");
    let wire = Capture::at(&gateway, "lan0", (&master, "lan0"));
    let sent = master.call(&[9], at(WORKERS[1], "203.0.113.7"));
    assert_eq!((sent.transport, sent.packets), (Transport::Udp, 1));
    let note = sent.note.unwrap();
    assert!(note.contains("203.0.113.7 is behind the gateway 192.0.2.254"), "{note}");
    let datagram = wire.until(|packet| packet.wakes.is_some());
    assert_eq!(datagram.bytes[..6], IMPOSTOR, "to the gateway");
    assert_eq!(datagram.bytes[30..34], [203, 0, 113, 7]);
    wire.ends();
}

pub(crate) fn of_an_ipv6_address() {
    let (master, worker, other) = two_lans();
    master.run(|| fs::write("/proc/sys/net/ipv6/conf/lan1/disable_ipv6", "0").unwrap());
    master.ip("address add 2001:db8::1/64 dev lan1 nodad");
    let [here, there] = [
        Capture::at(&worker, "lan0", (&master, "lan0")),
        Capture::at(&other, "lan0", (&master, "lan1")),
    ];
    let sent = master.call(&[9], at(WORKERS[1], "2001:db8::12"));
    assert_eq!(
        (sent.transport, sent.interface.as_deref(), sent.note),
        (Transport::Raw, Some("lan1"), None)
    );
    let seen = there.magic(3);
    assert_eq!(seen[2].bytes[30..34], [198, 51, 100, 255], "the datagram is IPv4");
    here.ends();
    there.ends();
}

pub(crate) fn that_do_not_exist() {
    let (master, _worker) = master_and_worker();
    for kind in ["unreachable", "prohibit", "blackhole", "throw"] {
        master.ip(&format!("route replace {kind} 203.0.113.0/24"));
        let address = "203.0.113.7".parse().unwrap();
        let route = master.run(|| run(route::interface_to(address)));
        assert_eq!(route, Err(RouteError::NoRoute { address }), "{kind}");
    }
    let address = "192.0.2.1".parse().unwrap();
    let route = master.run(|| run(route::interface_to(address)));
    assert_eq!(route, Err(RouteError::Own { address }));
}
