//! What became of the packets for one target, and the words for it. Pure.

use std::net::SocketAddrV4;

use nix::errno::Errno;
use vmstation_protocol::{MacAddr, Transport};

use super::{
    Target,
    way::{NoFrames, Way},
};

/// Packets for one [`Target`] that the kernel took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// How they went.
    pub transport: Transport,
    /// Through which interface; absent: as the routes of this host say.
    pub interface: Option<String>,
    /// How many.
    pub packets: u32,
    /// What could not be sent and why, in words.
    pub note: Option<String>,
}

/// No packet for a [`Target`] was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no magic packet for {mac} was sent. Frames: {frames}. UDP: {datagrams}")]
pub struct TransmitError {
    /// The card.
    pub mac: MacAddr,
    /// Why no frame.
    pub frames: NoFrames,
    /// Why no datagram.
    pub datagrams: NoDatagrams,
}

/// Why no UDP datagram was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDatagrams {
    /// None is configured.
    #[error("no ports are configured: set `udp_ports = [9, 7]`")]
    NoPorts,
    /// It would be lost in an interface without anything at the other end.
    #[error("{interface} has no carrier")]
    NoCarrier {
        /// The interface.
        interface: String,
    },
    /// There is no socket.
    #[error("cannot open a socket: {}", .0.desc())]
    NoSocket(Errno),
    /// The kernel refused to send.
    #[error("cannot send to {to}: {}", .errno.desc())]
    Refused {
        /// Where it was to go.
        to: SocketAddrV4,
        /// Why not.
        errno: Errno,
    },
}

/// Packets of one kind for one target, at least one of which was sent.
pub(super) struct Sent<E> {
    packets: u32,
    /// Why another one was not.
    failed: Option<E>,
}

/// Takes exactly as many outcomes as there are.
pub(super) fn sent<E, F>(outcomes: impl Iterator<Item = Result<(), F>>, why: impl Fn(F) -> E) -> Result<Sent<E>, E> {
    let (mut packets, mut failed) = (0, None);
    for outcome in outcomes {
        match outcome {
            Ok(()) => packets += 1,
            Err(error) => failed = Some(why(error)),
        }
    }
    match failed {
        Some(failed) if packets == 0 => Err(failed),
        failed => Ok(Sent { packets, failed }),
    }
}

pub(super) fn outcome(
    target: &Target,
    way: &Way<'_>,
    frames: Result<Sent<NoFrames>, NoFrames>,
    datagrams: Result<Sent<NoDatagrams>, NoDatagrams>,
) -> Result<Transmission, TransmitError> {
    let counts = [
        frames.as_ref().map_or(0, |sent| sent.packets),
        datagrams.as_ref().map_or(0, |sent| sent.packets),
    ];
    let (transport, interface) = match (&frames, &datagrams) {
        (Ok(_), _) => (Transport::Raw, way.frames.as_ref().ok().map(|ethernet| ethernet.name)),
        (Err(_), Ok(_)) => {
            let through = way.datagrams.ok().and_then(|destination| destination.through);
            (Transport::Udp, through.map(|interface| interface.name.as_str()))
        }
        (Err(frames), Err(datagrams)) => {
            return Err(TransmitError {
                mac: target.mac,
                frames: frames.clone(),
                datagrams: datagrams.clone(),
            });
        }
    };
    let notes = [
        match frames {
            Ok(sent) => sent.failed.map(|why| format!("only one of two frames was sent: {why}")),
            Err(why) => Some(format!("sent by UDP alone, no frames: {why}")),
        },
        match datagrams {
            Ok(sent) => sent.failed.map(|why| format!("not to every UDP port: {why}")),
            // Who configured no port expects nothing else.
            Err(NoDatagrams::NoPorts) => None,
            Err(why) => Some(format!("sent as frames alone, no UDP: {why}")),
        },
    ];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(Transmission {
        transport,
        interface: interface.map(str::to_owned),
        packets: counts.iter().sum(),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::transmit::way::{Destination, Ethernet};

    const WAY: Way<'static> = Way {
        frames: Ok(Ethernet {
            name: "lan0",
            index: 2,
            mac: [2, 0, 0, 0, 0, 1],
        }),
        datagrams: Ok(Destination {
            address: Ipv4Addr::BROADCAST,
            through: None,
        }),
    };

    fn of(
        frames: Result<Sent<NoFrames>, NoFrames>,
        datagrams: Result<Sent<NoDatagrams>, NoDatagrams>,
    ) -> Result<Transmission, TransmitError> {
        let target = Target {
            mac: MacAddr::new([0x52, 0x54, 0, 0x12, 0x34, 0xaf]).unwrap(),
            secure_on: None,
            interface: None,
            address: None,
            broadcast: None,
        };
        outcome(&target, &WAY, frames, datagrams)
    }

    fn no_room() -> NoFrames {
        NoFrames::Refused {
            interface: "lan0".into(),
            errno: Errno::ENOBUFS,
        }
    }

    #[test]
    fn what_was_sent_is_counted_and_what_was_not_is_said() {
        let half = sent([Ok(()), Err(Errno::ENOBUFS)].into_iter(), |_| no_room());
        let all = sent([Ok(()), Ok(())].into_iter(), |why: NoDatagrams| why);
        let transmission = of(half, all).unwrap();
        assert_eq!((transmission.transport, transmission.packets), (Transport::Raw, 3));
        let note = "only one of two frames was sent: cannot send through lan0: No buffer space available";
        assert_eq!(transmission.note.as_deref(), Some(note));
    }

    #[test]
    fn without_configured_ports_frames_alone_are_nothing_to_tell() {
        let both = sent([Ok(()), Ok(())].into_iter(), |why: NoFrames| why);
        let transmission = of(both, Err(NoDatagrams::NoPorts)).unwrap();
        assert_eq!((transmission.packets, transmission.note), (2, None));
    }

    #[test]
    fn w10_udp_alone_is_told_with_the_reason() {
        let one = sent([Ok(())].into_iter(), |why: NoDatagrams| why);
        let transmission = of(Err(NoFrames::NotPermitted), one).unwrap();
        assert_eq!((transmission.transport, transmission.packets), (Transport::Udp, 1));
        assert!(transmission.note.unwrap().contains("lacks CAP_NET_RAW"));
    }

    #[test]
    fn w10_nothing_sent_is_an_error_with_both_reasons() {
        let none = sent([Err(Errno::ENOBUFS); 2].into_iter(), |_| no_room());
        let error = of(none, Err(NoDatagrams::NoPorts)).unwrap_err().to_string();
        for why in ["52:54:00:12:34:af", "No buffer space", "no ports are configured"] {
            assert!(error.contains(why), "{error}");
        }
    }
}
