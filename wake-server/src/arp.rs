//! Asks who has IPv4 addresses, on one interface, and tells the card of everybody who claims one of them (RFC 826): a node that is awake,
//! and whoever else took its address (fault W12). Reads and changes no ARP table of the kernel, and judges nobody.
//!
//! One socket for all addresses: each socket gets every ARP frame of the interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::Ipv4Addr,
    ops::Bound,
    time::Duration,
};

use nix::errno::Errno;
use tokio::time::{Interval, MissedTickBehavior, interval};
use vmstation_protocol::MacAddr;

use crate::{
    magic,
    route::{self, Interface},
    transmit::{Packet, PacketSocket, To},
};

/// EtherType of ARP (RFC 826).
const ETHER_TYPE: u16 = 0x0806;
/// Hardware: Ethernet, of 6 bytes; protocol: IPv4, of 4 bytes (RFC 826).
const ETHERNET_IPV4: [u8; 6] = [0x00, 0x01, 0x08, 0x00, 6, 4];
/// Operations (RFC 826).
const REQUEST: [u8; 2] = [0, 1];
/// Time between two questions for an address, if there are not more than [`MOST_AT_ONCE`].
const PERIOD: Duration = Duration::from_secs(1);
/// Questions of one period: every host of the network hears each of them. More addresses take turns.
const MOST_AT_ONCE: usize = 1000;
/// Length of an Ethernet header and an ARP packet, bytes.
const FRAME_LEN: usize = 42;

/// Who claims an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it claims.
    pub address: Ipv4Addr,
    /// Its card.
    pub mac: MacAddr,
}

/// The questions for addresses on one interface.
#[derive(Debug)]
pub struct ArpProbe {
    socket: PacketSocket,
    interface: Interface,
    mac: [u8; 6],
    questions: BTreeMap<Ipv4Addr, Vec<u8>>,
    /// Those that were never asked.
    fresh: BTreeSet<Ipv4Addr>,
    asked_last: Ipv4Addr,
    asking: Interval,
}

impl ArpProbe {
    /// Listens from here on. Nothing is asked before [`ArpProbe::answer`] is awaited.
    ///
    /// # Errors
    /// The interface does not exist, is no Ethernet or has no IPv4 address to ask from; `CAP_NET_RAW` is missing.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub fn open(interface: &str, address: Ipv4Addr) -> io::Result<Self> {
        let cannot = |kind, why: &str| cannot(interface, address, kind, why);
        let interfaces = route::interfaces().map_err(|error| cannot(error.kind(), &error.to_string()))?;
        let found = interfaces.into_iter().find(|known| known.name == interface);
        let found = found.ok_or_else(|| cannot(io::ErrorKind::NotFound, "this host has no such interface"))?;
        let Some(mac) = found.mac else {
            return Err(cannot(io::ErrorKind::Unsupported, "it is no Ethernet"));
        };
        let socket = PacketSocket::receiving(found.index, ETHER_TYPE).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => cannot(error.kind(), "this program lacks CAP_NET_RAW"),
            kind => cannot(kind, &error.to_string()),
        })?;
        let mut asking = interval(PERIOD);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probe = Self {
            socket,
            interface: found,
            mac,
            questions: BTreeMap::new(),
            fresh: BTreeSet::new(),
            asked_last: Ipv4Addr::UNSPECIFIED,
            asking,
        };
        probe.ask_for(address)?;
        Ok(probe)
    }

    /// Asks for this address too, from the next call of [`ArpProbe::answer`] on.
    ///
    /// # Errors
    /// The interface has no IPv4 address to ask from.
    pub fn ask_for(&mut self, address: Ipv4Addr) -> io::Result<()> {
        // Not from 0.0.0.0: to a node that is just taking its address that would be a sign of a conflict (RFC 5227, 2.1.1).
        let own = own_address(&self.interface, address).ok_or_else(|| {
            let kind = io::ErrorKind::AddrNotAvailable;
            cannot(
                &self.interface.name,
                address,
                kind,
                "it has no IPv4 address to ask from",
            )
        })?;
        self.questions.insert(address, question(self.mac, own, address));
        self.fresh.insert(address);
        Ok(())
    }

    /// Asks for it no more.
    pub fn forget(&mut self, address: Ipv4Addr) {
        self.questions.remove(&address);
        self.fresh.remove(&address);
    }

    /// The next one that claims one of the addresses; asks for each at once, and every second from then on, or as often as
    /// [`MOST_AT_ONCE`] lets it. The same card is told again whenever it answers again; where two have an address, both are told. Waits
    /// for ever if nobody has any.
    ///
    /// Cancel safe: what came in is told by the next call, and the second goes on.
    ///
    /// # Errors
    /// The interface is down or gone. It may be called again: of an interface that is up again it listens on.
    pub async fn answer(&mut self) -> io::Result<Claim> {
        let mut frame = [0; FRAME_LEN];
        loop {
            if !self.fresh.is_empty() {
                let fresh = mem::take(&mut self.fresh);
                self.ask(fresh.into_iter()).await?;
            }
            tokio::select! {
                received = self.socket.receive(&mut frame) => {
                    let claim = claim(&frame[..received?]);
                    if let Some(claim) = claim.filter(|claim| self.questions.contains_key(&claim.address)) {
                        return Ok(claim);
                    }
                }
                _ = self.asking.tick() => {
                    let turn = self.next_turn();
                    self.ask(turn.into_iter()).await?;
                }
            }
        }
    }

    fn next_turn(&mut self) -> Vec<Ipv4Addr> {
        let behind = (Bound::Excluded(self.asked_last), Bound::Unbounded);
        let behind = self.questions.range(behind).map(|(address, _)| *address);
        let before = self.questions.range(..=self.asked_last).map(|(address, _)| *address);
        let turn: Vec<_> = behind.chain(before).take(MOST_AT_ONCE).collect();
        self.asked_last = turn.last().copied().unwrap_or(self.asked_last);
        turn
    }

    async fn ask(&self, addresses: impl Iterator<Item = Ipv4Addr>) -> io::Result<()> {
        let to = To::Link {
            index: self.interface.index,
            protocol: ETHER_TYPE,
        };
        let questions = addresses.filter_map(|address| self.questions.get(&address));
        let packets: Vec<_> = questions.map(|bytes| Packet { to, bytes }).collect();
        for outcome in self.socket.send(&packets).await {
            match outcome {
                // Without room for this question there may be some for the next.
                Ok(()) | Err(Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn cannot(interface: &str, address: Ipv4Addr, kind: io::ErrorKind, why: &str) -> io::Error {
    io::Error::new(kind, format!("cannot ask for {address} on {interface}: {why}"))
}

/// The interface's address in the network of the one that is asked for, or else its first.
fn own_address(interface: &Interface, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let mut networks = interface.networks.iter();
    let around = networks.clone().find(|network| network.contains(address));
    around.or(networks.next()).map(|network| network.own)
}

fn question(mac: [u8; 6], own: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let header = [&magic::BROADCAST[..], &mac, &ETHER_TYPE.to_be_bytes()].concat();
    let packet = [
        &ETHERNET_IPV4[..],
        &REQUEST,
        &mac,
        &own.octets(),
        &[0; 6],
        &address.octets(),
    ]
    .concat();
    [header, packet].concat()
}

/// What the sender of a frame says that it has: in a reply, and as well in a question or announcement of its own.
fn claim(frame: &[u8]) -> Option<Claim> {
    let packet = frame.get(14..FRAME_LEN)?;
    let (kind, rest) = packet.split_first_chunk()?;
    let (_operation, rest) = rest.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk()?;
    let (sender, _target) = rest.split_first_chunk()?;
    let mac = MacAddr::new(*mac).ok().filter(|_| *kind == ETHERNET_IPV4)?;
    Some(Claim {
        address: Ipv4Addr::from(*sender),
        mac,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0xaf];

    #[test]
    fn a_question_is_to_everybody_and_names_who_asks() {
        let mut expected = vec![0xff; 6];
        expected.extend(MAC);
        expected.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        expected.extend(MAC);
        expected.extend([192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7]);
        assert_eq!(question(MAC, OWN, NODE), expected);
        assert_eq!(expected.len(), FRAME_LEN);
    }

    #[test]
    fn who_claims_the_address_is_told_however_it_says_so() {
        let mac = MacAddr::new(MAC).unwrap();
        let mut frame = question(MAC, NODE, OWN);
        for operation in [1, 2] {
            frame[21] = operation;
            assert_eq!(
                claim(&frame),
                Some(Claim { address: NODE, mac }),
                "what is asked for is not claimed"
            );
        }
    }

    #[test]
    fn what_is_no_arp_of_ethernet_and_ipv4_claims_nothing() {
        let frame = question(MAC, NODE, OWN);
        for at in 14..20 {
            let mut other = frame.clone();
            other[at] ^= 1;
            assert_eq!(claim(&other), None, "byte {at}");
        }
        for length in 0..FRAME_LEN {
            assert_eq!(claim(&frame[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn w1_what_is_no_card_claims_nothing() {
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert_eq!(claim(&question(mac, NODE, OWN)), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(frame in proptest::collection::vec(any::<u8>(), 0..FRAME_LEN + 1)) {
            let _seen = claim(&frame);
        }
    }
}
