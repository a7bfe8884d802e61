//! What is sent, and said, where no frame can be.

use nix::{errno::Errno, libc};
use vmstation_protocol::Transport;
use vmstation_wake_server::{
    arp::ArpProbe,
    transmit::{NoDatagrams, NoFrames, Target, TransmitError, Transmitter},
};

use super::{
    capture::Capture,
    lan::{Host, IMPOSTOR, WORKERS, at, card, master_and_worker, run, switch},
    netns::ip,
};

pub(crate) fn not_permitted() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let targets = [at(WORKERS[0], "192.0.2.11")];
    let (sent, probe) = master.run(|| {
        become_nobody();
        run(async {
            let sent = Transmitter::new(&[9, 7]).transmit(&targets).await.remove(0);
            let probe = ArpProbe::open("lan0", "192.0.2.11".parse().unwrap());
            (sent, probe.unwrap_err().to_string())
        })
    });
    let sent = sent.unwrap();
    assert_eq!((sent.transport, sent.packets), (Transport::Udp, 2));
    assert_eq!(sent.interface.as_deref(), Some("lan0"));
    for said in [sent.note.unwrap(), probe] {
        assert!(said.contains("lacks CAP_NET_RAW"), "{said}");
    }
    for packet in wire.magic(2) {
        assert_eq!(packet.protocols, "eth:ethertype:ip:udp:wol");
        assert_eq!(packet.wakes, Some(card(WORKERS[0]).to_string()));
    }
    wire.ends();
}

/// This thread alone, by the bare system call: libc's would change every thread. Its capabilities go with its user.
fn become_nobody() {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: a plain system call with numbers.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    Errno::result(changed).expect("become nobody");
}

pub(crate) fn interface_down() {
    let (master, _worker) = master_and_worker();
    switch("second");
    let gateway = Host::new();
    master.plug("second", "lan1", [2, 0, 0, 0, 0, 2], Some("198.51.100.1/24"));
    gateway.plug("second", "lan0", IMPOSTOR, Some("198.51.100.254/24"));
    master.ip("route add default via 198.51.100.254");
    master.ip("link set lan0 down");
    let wire = Capture::at(&gateway, "lan0", (&master, "lan1"));
    let sent = master.call(&[9], through("lan0"));
    assert_eq!((sent.transport, sent.packets), (Transport::Udp, 1));
    assert_eq!(sent.interface, None, "the routes decide");
    let note = sent.note.unwrap();
    assert!(note.contains("lan0 is down: `ip link set lan0 up`"), "{note}");
    let datagram = wire.until(|packet| packet.wakes.is_some());
    assert_eq!(datagram.bytes[30..34], [192, 0, 2, 255]);
}

pub(crate) fn interface_unknown() {
    let (master, worker) = master_and_worker();
    let wire = Capture::at(&worker, "lan0", (&master, "lan0"));
    let sent = master.call(&[9], through("lan9"));
    assert_eq!((sent.transport, sent.packets), (Transport::Udp, 1));
    let note = sent.note.unwrap();
    assert!(note.contains("this host has no interface lan9"), "{note}");
    wire.magic(1);
    wire.ends();
}

pub(crate) fn no_way_out() {
    let (master, _worker) = master_and_worker();
    master.ip("link set lan0 down");
    let expected = TransmitError {
        mac: card(WORKERS[0]),
        frames: NoFrames::Down {
            interface: "lan0".into(),
        },
        datagrams: NoDatagrams::Refused {
            to: "192.0.2.255:9".parse().unwrap(),
            errno: Errno::ENETUNREACH,
        },
    };
    assert_eq!(master.transmit(&[9], &[through("lan0")]), [Err(expected)]);
}

pub(crate) fn no_carrier() {
    switch("lan");
    let master = Host::new();
    let port = master.plug("lan", "lan0", [2, 0, 0, 0, 0, 1], Some("192.0.2.1/24"));
    ip(&format!("link set {port} down"));
    let interface = || "lan0".to_owned();
    let expected = TransmitError {
        mac: card(WORKERS[0]),
        frames: NoFrames::NoCarrier { interface: interface() },
        datagrams: NoDatagrams::NoCarrier { interface: interface() },
    };
    for target in [through("lan0"), at(WORKERS[0], "192.0.2.11")] {
        assert_eq!(master.transmit(&[9], &[target]), [Err(expected.clone())]);
    }
}

fn through(interface: &str) -> Target {
    Target {
        interface: Some(interface.into()),
        ..at(WORKERS[0], "192.0.2.11")
    }
}
