//! Sends magic packets: as Ethernet frames through the interface that leads to the node, then as UDP broadcasts. The only file with
//! `unsafe`: sendmmsg(2) and packet(7) sockets.
//!
//! Owns a raw socket, opened when it is first needed, as closing one takes milliseconds. Never decides when or how often a node is called, and never takes a
//! packet that the kernel took for one that arrived.

mod outcome;
mod way;

use std::{
    io::{self, Read as _},
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    pin::{Pin, pin},
    ptr,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::OnceCell,
    time::{Sleep, sleep},
};
use vmstation_protocol::MacAddr;

pub use self::{
    outcome::{NoDatagrams, Transmission, TransmitError},
    way::NoFrames,
};
use self::{
    outcome::{Sent, outcome, sent},
    way::{Way, asks_for},
};
use crate::{
    magic,
    route::{self, Interface, Route, RouteError, Routes},
};

/// How long one call of [`Transmitter::transmit`] waits in all, of each transport, for queues that are full.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before a packet is tried again for which a queue had no room (`ENOBUFS`).
const PAUSE: Duration = Duration::from_millis(10);
/// Most packets that one sendmmsg(2) takes (`UIO_MAXIOV`).
const MAX_BATCH: usize = 1024;

/// A card to call, and what is known of the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The card.
    pub mac: MacAddr,
    /// Its SecureOn password, 4 or 6 bytes.
    pub secure_on: Option<Vec<u8>>,
    /// Interface of this host to call through; absent: the one that leads to the address, or else to the broadcast address, or else
    /// the one of the default route.
    pub interface: Option<String>,
    /// Address of its node.
    pub address: Option<IpAddr>,
    /// Where UDP broadcasts go; absent: to the network of the address on the interface.
    pub broadcast: Option<Ipv4Addr>,
}

/// Sends magic packets from this host.
#[derive(Debug)]
pub struct Transmitter {
    udp_ports: Vec<u16>,
    raw: OnceCell<PacketSocket>,
}

impl Transmitter {
    /// Sends datagrams to each of these ports, after the frames.
    pub fn new(udp_ports: &[u16]) -> Self {
        Self {
            udp_ports: udp_ports.to_vec(),
            raw: OnceCell::new(),
        }
    }

    /// Sends to each target a frame to everybody and a frame to its card alone, then a datagram to each port; the outcomes are in the
    /// order of the targets. All frames of all targets go before the first datagram. Takes 4 s at most, and that only if queues of
    /// interfaces are full. Dropped before its end, it has sent a part.
    ///
    /// The raw socket stays in the network namespace of the first call.
    ///
    /// # Errors
    /// For each target that no packet at all was sent to.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub async fn transmit(&self, targets: &[Target]) -> Vec<Result<Transmission, TransmitError>> {
        let interfaces = route::interfaces().map_err(|error| errno(&error));
        let ways = ways(targets, &interfaces).await;
        let frames = self.send_frames(targets, &ways).await;
        let datagrams = self.send_datagrams(targets, &ways).await;
        let sent = iter::zip(frames, datagrams);
        iter::zip(iter::zip(targets, &ways), sent)
            .map(|((target, way), (frames, datagrams))| outcome(target, way, frames, datagrams))
            .collect()
    }

    async fn send_frames(&self, targets: &[Target], ways: &[Way<'_>]) -> Vec<Result<Sent<NoFrames>, NoFrames>> {
        let socket = self.raw.get_or_try_init(async || PacketSocket::raw()).await;
        let socket = socket.map_err(|error| match errno(&error) {
            Errno::EPERM => NoFrames::NotPermitted,
            errno => NoFrames::NoSocket(errno),
        });
        let socket = match socket {
            Ok(socket) => socket,
            Err(why) => {
                let of = |way: &Way<'_>| Err(way.frames.as_ref().err().unwrap_or(&why).clone());
                return ways.iter().map(of).collect();
            }
        };
        let mut frames = Vec::new();
        for (target, way) in iter::zip(targets, ways) {
            let Ok(ethernet) = &way.frames else { continue };
            let payload = magic::payload(target.mac, target.secure_on.as_deref());
            for destination in [magic::BROADCAST, target.mac.bytes()] {
                let to = To::Link {
                    index: ethernet.index,
                    protocol: magic::ETHER_TYPE,
                };
                frames.push((to, magic::frame(ethernet.mac, destination, &payload)));
            }
        }
        let frames: Vec<Packet<'_>> = frames.iter().map(|(to, bytes)| Packet { to: *to, bytes }).collect();
        let mut outcomes = socket.send(&frames).await.into_iter();
        let of = |way: &Way<'_>| {
            let ethernet = way.frames.as_ref().map_err(Clone::clone)?;
            sent(outcomes.by_ref().take(2), |errno| NoFrames::Refused {
                interface: ethernet.name.to_owned(),
                errno,
            })
        };
        ways.iter().map(of).collect()
    }

    async fn send_datagrams(
        &self,
        targets: &[Target],
        ways: &[Way<'_>],
    ) -> Vec<Result<Sent<NoDatagrams>, NoDatagrams>> {
        let socket = match PacketSocket::udp() {
            Ok(_) if self.udp_ports.is_empty() => Err(NoDatagrams::NoPorts),
            Ok(socket) => Ok(socket),
            Err(error) => Err(NoDatagrams::NoSocket(errno(&error))),
        };
        let socket = match socket {
            Ok(socket) => socket,
            Err(why) => return ways.iter().map(|_| Err(why.clone())).collect(),
        };
        let payloads: Vec<_> = targets
            .iter()
            .map(|target| magic::payload(target.mac, target.secure_on.as_deref()))
            .collect();
        let mut datagrams = Vec::new();
        for (payload, way) in iter::zip(&payloads, ways) {
            let Ok(destination) = way.datagrams else { continue };
            datagrams.extend(self.udp_ports.iter().map(|&port| Packet {
                to: To::Udp {
                    to: SocketAddrV4::new(destination.address, port),
                    through: destination.through.map(|interface| interface.index),
                },
                bytes: payload,
            }));
        }
        let mut outcomes = socket.send(&datagrams).await.into_iter();
        let of = |way: &Way<'_>| {
            let destination = way.datagrams.map_err(|interface| NoDatagrams::NoCarrier {
                interface: interface.to_owned(),
            })?;
            let ports = self.udp_ports.iter();
            let each = iter::zip(ports, outcomes.by_ref()).map(|(&port, outcome)| {
                outcome.map_err(|errno| NoDatagrams::Refused {
                    to: SocketAddrV4::new(destination.address, port),
                    errno,
                })
            });
            sent(each, |why| why)
        };
        ways.iter().map(of).collect()
    }
}

async fn ways<'a>(targets: &[Target], interfaces: &'a Result<Vec<Interface>, Errno>) -> Vec<Way<'a>> {
    let mut open = None;
    let mut ways = Vec::with_capacity(targets.len());
    for target in targets {
        let route = match asks_for(target) {
            None => None,
            Some(address) => Some(route_to(address, &mut open).await),
        };
        ways.push(Way::to(target, interfaces, route.as_ref()));
    }
    ways
}

/// Opens the connection if there is none.
pub(crate) async fn route_to(address: IpAddr, open: &mut Option<Routes>) -> Result<Route, RouteError> {
    let routes = match open.take() {
        Some(routes) => routes,
        None => Routes::open(address)?,
    };
    open.insert(routes).interface_to(address).await
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// A packet, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) to: To,
    pub(crate) bytes: &'a [u8],
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    /// Out of an interface, as a whole frame of this EtherType.
    Link { index: i32, protocol: u16 },
    /// To an address, as the payload of a datagram.
    Udp {
        to: SocketAddrV4,
        /// The interface it takes, whatever the routes say.
        through: Option<i32>,
    },
}

/// A socket for whole frames, or for datagrams.
#[derive(Debug)]
pub(crate) struct PacketSocket(AsyncFd<Socket>);

impl PacketSocket {
    /// Sends frames and receives none (packet(7): protocol 0). Needs `CAP_NET_RAW` and a runtime.
    fn raw() -> io::Result<Self> {
        Self::new(Socket::new(Domain::PACKET, Type::RAW, None)?)
    }

    /// Sends frames, and receives those of one EtherType on one interface. Needs `CAP_NET_RAW` and a runtime.
    pub(crate) fn receiving(index: i32, protocol: u16) -> io::Result<Self> {
        let socket = Self::raw()?;
        socket.0.get_ref().bind(&link(index, protocol))?;
        Ok(socket)
    }

    /// Sends datagrams, to broadcast addresses too. Needs a runtime.
    fn udp() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_broadcast(true)?;
        // Without it a datagram that a queue had no room for counts as sent (udp_send_skb in net/ipv4/udp.c).
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        Self::new(socket)
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // SAFETY: a `Socket` keeps its descriptor, open, until it is dropped; nothing here takes it out.
        let registered = unsafe { AsyncFd::register(socket) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// Reads one packet into the buffer and returns its length; of a longer one, the length of the buffer. Cancel safe.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |mut socket| socket.read(buffer))
            .await
    }

    /// Sends each packet, in order, and says of each whether the kernel took it. A packet for which there is no room is tried again for
    /// [`PATIENCE`] in all.
    pub(crate) async fn send(&self, packets: &[Packet<'_>]) -> Vec<Result<(), Errno>> {
        let mut patience = pin!(sleep(PATIENCE));
        let mut outcomes = Vec::with_capacity(packets.len());
        while let Some(rest @ [_, ..]) = packets.get(outcomes.len()..) {
            match self.send_some(rest, patience.as_mut()).await {
                Ok(sent) => outcomes.extend(iter::repeat_n(Ok(()), sent)),
                Err(Errno::ENOBUFS) if !patience.is_elapsed() => sleep(PAUSE).await,
                // The second is what became of an earlier datagram, told once.
                Err(Errno::EINTR | Errno::ECONNREFUSED) => {}
                Err(errno) => outcomes.push(Err(errno)),
            }
        }
        outcomes
    }

    /// Sends the first of these packets, or more, and returns how many; otherwise why not the first.
    async fn send_some(&self, packets: &[Packet<'_>], mut patience: Pin<&mut Sleep>) -> Result<usize, Errno> {
        loop {
            let mut ready = tokio::select! {
                biased;
                ready = self.0.writable() => ready.map_err(|error| errno(&error))?,
                () = patience.as_mut() => return Err(Errno::ENOBUFS),
            };
            let sent = ready.try_io(|socket| {
                let batch = &packets[..packets.len().min(MAX_BATCH)];
                send_batch(socket.get_ref(), batch).map_err(io::Error::from)
            });
            if let Ok(sent) = sent {
                return sent.map_err(|error| errno(&error));
            }
        }
    }
}

/// Sends the first of at most [`MAX_BATCH`] packets, or more, and returns how many; otherwise why not the first.
fn send_batch(socket: &Socket, packets: &[Packet<'_>]) -> Result<usize, Errno> {
    let mut messages: Vec<Message> = packets.iter().map(Message::new).collect();
    let mut headers: Vec<libc::mmsghdr> = messages.iter_mut().map(Message::header).collect();
    let count = headers.len().try_into().map_err(|_| Errno::EMSGSIZE)?;
    // SAFETY: the headers point into `messages` and into the packets' bytes, which live during the call and of which the kernel only
    // reads; of each header it writes the length sent.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| Errno::last())
}

/// What one message of sendmmsg(2) points to.
struct Message {
    name: SockAddr,
    bytes: libc::iovec,
    control: Option<Control>,
}

/// The control message that chooses the interface of a datagram (ip(7), `IP_PKTINFO`).
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    information: libc::in_pktinfo,
}

#[expect(clippy::cast_possible_truncation, reason = "12 bytes")]
const INFORMATION: u32 = size_of::<libc::in_pktinfo>() as _;
// SAFETY: the macros calculate with a length and touch nothing.
const CONTROL_LEN: u32 = unsafe { libc::CMSG_LEN(INFORMATION) };
const _: () = {
    // SAFETY: as above.
    assert!(size_of::<Control>() == unsafe { libc::CMSG_SPACE(INFORMATION) } as usize);
    assert!(std::mem::offset_of!(Control, information) == (CONTROL_LEN - INFORMATION) as usize);
};

impl Message {
    fn new(packet: &Packet<'_>) -> Self {
        let (name, through) = match packet.to {
            To::Link { index, protocol } => (link(index, protocol), None),
            To::Udp { to, through } => (to.into(), through),
        };
        Self {
            name,
            bytes: libc::iovec {
                iov_base: packet.bytes.as_ptr().cast_mut().cast(),
                iov_len: packet.bytes.len(),
            },
            control: through.map(Control::new),
        }
    }

    /// Points into this message, which must outlive it and stay where it is.
    fn header(&mut self) -> libc::mmsghdr {
        // SAFETY: all zeros are a header without any part (recvmsg(2)); it has private padding on some systems.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let message = &mut header.msg_hdr;
        message.msg_name = self.name.as_ptr().cast_mut().cast();
        message.msg_namelen = self.name.len();
        message.msg_iov = &raw mut self.bytes;
        message.msg_iovlen = 1;
        if let Some(control) = &mut self.control {
            message.msg_control = ptr::from_mut(control).cast();
            message.msg_controllen = size_of::<Control>() as _;
        }
        header
    }
}

impl Control {
    fn new(interface: i32) -> Self {
        // SAFETY: plain numbers, for which zero is a value; the header has private padding on some systems.
        let mut control: Self = unsafe { std::mem::zeroed() };
        control.header.cmsg_len = CONTROL_LEN as _;
        control.header.cmsg_level = libc::IPPROTO_IP;
        control.header.cmsg_type = libc::IP_PKTINFO;
        control.information.ipi_ifindex = interface;
        control
    }
}

#[expect(clippy::cast_possible_truncation, reason = "its value is 17")]
const PACKET: libc::sa_family_t = libc::AF_PACKET as _;
#[expect(clippy::cast_possible_truncation, reason = "20 bytes")]
const LINK_LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as _;

/// The destination of a whole frame is in its header: the address has only interface and EtherType (packet(7)).
fn link(index: i32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: it is a socket address, and all zeros are one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = PACKET;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index;
    // SAFETY: the storage begins with an address of this length.
    unsafe { SockAddr::new(storage, LINK_LEN) }
}
