//! The LAN that the guest's card `ens-lan` is plugged into: a tap device on a host, and the cable between the two. While the guest sleeps,
//! its card hears nothing but calls to it: magic packets, which are told from other frames here and not by what sends them.
//!
//! Owns the tap, the near end of the cable and the thread that carries frames; all of them end with it. Never wakes the guest.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    lan::{Host, MacAddress},
    netns::device,
    vm::bed::CableEnds,
};

/// How often the end is looked for, milliseconds.
const LOOK: u16 = 100;
/// A frame of a LAN without jumbo frames, with its VLAN tag, bytes; and some room.
const LONGEST: usize = 2048;

/// The card of the guest as the LAN sees it.
struct Card {
    mac: MacAddress,
    sleeps: AtomicBool,
    /// Calls that it heard while it slept.
    calls: AtomicUsize,
    /// Whether the trial is over.
    over: AtomicBool,
}

/// The LAN.
pub(crate) struct Cable {
    card: Arc<Card>,
    ends: CableEnds,
    carrier: Option<JoinHandle<()>>,
}

impl Cable {
    /// Plugs a card of the guest into the host's new interface, which is left down. The guest is awake.
    pub(crate) fn plug(host: &Host, interface: &str, ends: &CableEnds, mac: MacAddress) -> Self {
        let tap = host.run(|| device(interface, nix::libc::IFF_TAP));
        fcntl(&tap, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let cable = UnixDatagram::bind(&ends.lan).unwrap();
        cable.connect(&ends.guest).unwrap();
        cable.set_nonblocking(true).unwrap();
        let card = Arc::new(Card {
            mac,
            sleeps: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let its = Arc::clone(&card);
        Self {
            card,
            ends: ends.clone(),
            carrier: Some(thread::spawn(move || carry(&tap, &cable, &its))),
        }
    }

    /// The guest sleeps from here on.
    pub(crate) fn sleeps(&self) {
        self.card.sleeps.store(true, Ordering::Relaxed);
    }

    /// The guest is about to wake.
    pub(crate) fn wakes(&self) {
        self.card.sleeps.store(false, Ordering::Relaxed);
    }

    /// Calls that came while the guest slept.
    pub(crate) fn calls(&self) -> usize {
        self.card.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.card.over.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            // What went wrong in it was printed, and nothing came through from then on.
            let _ended = carrier.join();
        }
        // The folder goes with the guest.
        let _removed = fs::remove_file(&self.ends.lan);
    }
}

/// Carries frames until the trial is over.
fn carry(mut tap: &File, cable: &UnixDatagram, card: &Card) {
    let mut frame = [0; LONGEST];
    while !card.over.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(cable.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::from(LOOK)).unwrap();
        if let Some(length) = passed(tap.read(&mut frame)) {
            let frame = &frame[..length];
            if !card.sleeps.load(Ordering::Relaxed) {
                // qemu takes none while the guest cannot: that one is lost, as on any LAN.
                passed(cable.send(frame));
            } else if is_call(frame, card.mac) {
                card.calls.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(length) = passed(cable.recv(&mut frame)) {
            // A card that is down takes none.
            drop(tap.write(&frame[..length]));
        }
    }
}

/// Bytes that went; `None` if that would have to be waited for.
fn passed(done: std::io::Result<usize>) -> Option<usize> {
    match done {
        Ok(length) => Some(length),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        // EIO: the card is down.
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => None,
        Err(error) => panic!("cannot carry a frame: {error}"),
    }
}

/// Whether a frame wakes the card: to everybody, of EtherType 0x0842, its payload six times ff and 16 times the card's address. The server
/// sends each call to the card alone, too; that one is not counted.
fn is_call(frame: &[u8], mac: MacAddress) -> bool {
    let Some((header, payload)) = frame.split_at_checked(14) else {
        return false;
    };
    let to_everybody = header[..6] == [0xff; 6];
    let is_magic = header[12..] == [0x08, 0x42];
    let Some((beginning, cards)) = payload.split_at_checked(6) else {
        return false;
    };
    to_everybody
        && is_magic
        && beginning == [0xff; 6]
        && cards.len() >= 16 * 6
        && cards.chunks(6).take(16).all(|card| card == mac)
}
