//! What a packet costs with programs on the interface it comes in by: a flood of small UDP packets from another host, which is a
//! network namespace behind a veth pair.

use std::{
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkUnspec;

use crate::{
    figure::Figure,
    kernel::{Attached, Hook, Object},
    measure::{added, column, estimate, interleaved, nanos_each, pin},
    netns,
};

/// The interface of this host.
pub(crate) const OWN: &str = "vms0";
const THEIRS: &str = "vms1";
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THEIR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PREFIX: u8 = 24;
/// Not one that is background by default.
const PORT: u16 = 5001;
/// A small packet: 60 bytes with its headers.
const PAYLOAD: [u8; 18] = [0; 18];

/// Two hosts. Nobody reads what arrives: the sockets' buffers are full after a moment, and the rest is dropped there.
pub(crate) struct Hosts {
    own: UdpSocket,
    theirs: UdpSocket,
}

impl Hosts {
    /// Within the namespace of this process, see [`netns::enter`].
    pub(crate) fn new() -> Result<Self> {
        netns::no_ipv6();
        let (namespace, of_peer) = mpsc::channel::<Result<File>>();
        let (moved, is_moved) = mpsc::channel::<()>();
        let peer = thread::spawn(move || -> Result<UdpSocket> {
            let own = unshare(CloneFlags::CLONE_NEWNET)
                .context("make a network namespace")
                .and_then(|()| Ok(File::open("/proc/thread-self/ns/net")?));
            namespace.send(own)?;
            is_moved.recv()?;
            netns::no_ipv6();
            address(THEIRS, THEIR_ADDRESS)?;
            // The socket keeps the namespace.
            socket(THEIR_ADDRESS, OWN_ADDRESS)
        });
        let namespace = of_peer.recv()??;
        netns::runtime().block_on(async {
            let handle = netns::rtnetlink();
            netns::veth(&handle, OWN, THEIRS).await;
            let away = LinkUnspec::new_with_name(THEIRS).setns_by_fd(namespace.as_raw_fd());
            handle
                .link()
                .change(away.build())
                .execute()
                .await
                .context("move an interface")
        })?;
        address(OWN, OWN_ADDRESS)?;
        moved.send(())?;
        let theirs = peer
            .join()
            .map_err(|_| anyhow::anyhow!("the peer's thread panicked"))??;
        Ok(Self {
            own: socket(OWN_ADDRESS, THEIR_ADDRESS)?,
            theirs,
        })
    }

    /// Packets to this host.
    pub(crate) fn receive(&self, count: usize) {
        flood(&self.theirs, count);
    }

    /// Packets from this host.
    pub(crate) fn send(&self, count: usize) {
        flood(&self.own, count);
    }

    /// Time of one packet to this host, from the sender's system call to the receiver's socket, after a run-up.
    pub(crate) fn nanos_per_packet(&self, count: usize) -> f64 {
        self.receive(count / 8);
        nanos_each(count, || self.receive(count))
    }
}

fn flood(from: &UdpSocket, count: usize) {
    for _ in 0..count {
        from.send(&PAYLOAD).expect("the veth pair takes packets");
    }
}

fn socket(own: Ipv4Addr, peer: Ipv4Addr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((own, PORT)).context("bind a UDP socket")?;
    socket.connect((peer, PORT))?;
    Ok(socket)
}

fn address(interface: &str, address: Ipv4Addr) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        handle
            .link()
            .change(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await?;
        handle.address().add(index, address.into(), PREFIX).execute().await?;
        anyhow::Ok(())
    })
}

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    const NOTHING: usize = 0;
    const EMPTY: usize = 1;
    const CLASSES: usize = 2;
    const ROUNDS: usize = 300;
    const PACKETS: usize = 5000;
    pin(0);
    let hosts = Hosts::new()?;
    let (mut agent, mut bench) = (Object::agent()?, Object::bench()?);
    let mut attach = |variant: usize| -> Result<Vec<Attached>> {
        Ok(match variant {
            EMPTY => vec![
                bench.attach("bench_tc_empty", Hook::Received(OWN))?,
                bench.attach("bench_tc_empty", Hook::Sent(OWN))?,
            ],
            CLASSES => vec![
                agent.attach("vms_net_rx", Hook::Received(OWN))?,
                agent.attach("vms_net_tx", Hook::Sent(OWN))?,
            ],
            _ => Vec::new(),
        })
    };
    for variant in 0..3 {
        attach(variant)?;
    }
    let rows = interleaved::<3>(ROUNDS, |variant| {
        let _attached = attach(variant).expect("it could be attached before");
        hosts.nanos_per_packet(PACKETS)
    });
    let rate = |rows: &[[f64; 3]]| 1e6 / column(NOTHING)(rows);
    let share = |rows: &[[f64; 3]]| added(CLASSES, NOTHING)(rows) / column(NOTHING)(rows) * 100.0;
    Ok(vec![
        Figure::new(
            "packets",
            "a received packet with nothing attached",
            "ns",
            estimate(&rows, column(NOTHING)),
        ),
        Figure::new("packets", "the same as rate", "kpps", estimate(&rows, rate)),
        Figure::new(
            "packets",
            "added by an empty tcx program",
            "ns",
            estimate(&rows, added(EMPTY, NOTHING)),
        )
        .plotted(),
        Figure::new(
            "packets",
            "added by the classes",
            "ns",
            estimate(&rows, added(CLASSES, NOTHING)),
        )
        .plotted(),
        Figure::new(
            "packets",
            "the same as share of the packet",
            "%",
            estimate(&rows, share),
        ),
        Figure::new(
            "packets",
            "classes over empty",
            "ns",
            estimate(&rows, added(CLASSES, EMPTY)),
        ),
    ])
}
