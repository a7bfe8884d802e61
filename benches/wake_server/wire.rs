//! Sees what the server's host sends: from when on each card was called by a magic packet that is valid, in a frame or a datagram.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};
use vmstation_agent::clock::BootTime;
use vmstation_protocol::MacAddr;

/// Room for all packets of a run, bytes.
const ROOM: usize = 256 << 20;
/// Longest time until all cards are called.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the end of that is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// Offset of the payload of a frame, and of that of a datagram without IP options.
const PAYLOADS: [usize; 2] = [14, 42];

/// What was seen until each card had been called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Called {
    pub(crate) took: Duration,
    /// Magic packets, those for cards that were called before included.
    pub(crate) packets: usize,
}

/// The switch's port of that host.
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn on(port: &str) -> Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let index = if_nametoindex(port)?.cast_signed();
        // SAFETY: plain system calls; the descriptor is fresh and owned from here on, and the address lives during the call.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            let fd = OwnedFd::from_raw_fd(Errno::result(fd).context("open a packet socket")?);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = all;
            address.sll_ifindex = index;
            let length = u32::try_from(size_of_val(&address))?;
            Errno::result(libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), length)).context("bind it")?;
            fd
        };
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        let look = TimeVal::milliseconds(LOOK.as_millis().try_into()?);
        setsockopt(&socket, sockopt::ReceiveTimeout, &look)?;
        Ok(Self(socket))
    }

    /// From the beginning of `act` until the last of these cards was called for the first time.
    pub(crate) fn until_all_are_called(&self, macs: &[MacAddr], act: impl FnOnce() -> Result<()>) -> Result<Called> {
        self.forget()?;
        let began = BootTime::now();
        thread::scope(|scope| {
            let seen = scope.spawn(|| self.see(macs, began));
            act()?;
            seen.join()
                .map_err(|_| anyhow::anyhow!("the watching thread panicked"))?
        })
    }

    fn see(&self, macs: &[MacAddr], began: BootTime) -> Result<Called> {
        let mut missing: BTreeSet<[u8; 6]> = macs.iter().map(|mac| mac.bytes()).collect();
        let mut frame = [0; 2048];
        let mut packets = 0;
        while !missing.is_empty() {
            if BootTime::now().since(began) > PATIENCE {
                bail!("{} of {} cards were not called", missing.len(), macs.len());
            }
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    for mac in PAYLOADS.iter().filter_map(|at| called(frame.get(*at..length)?)) {
                        packets += 1;
                        missing.remove(&mac);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("read frames"),
            }
        }
        Ok(Called {
            took: BootTime::now().since(began),
            packets,
        })
    }

    /// What came before.
    fn forget(&self) -> Result<()> {
        let mut frame = [0; 2048];
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("read frames"),
            }
        }
    }
}

/// The card that a payload calls.
fn called(payload: &[u8]) -> Option<[u8; 6]> {
    let (start, rest) = payload.split_first_chunk::<6>()?;
    let mac = rest.first_chunk::<6>()?;
    let copies = rest.get(..96)?;
    (*start == [0xff; 6] && copies.chunks_exact(6).all(|copy| copy == mac)).then_some(*mac)
}
