//! The `clsact` queueing discipline that classifiers hang on below Linux 6.6, which has no tcx.
//!
//! Adds one where there is none and takes that, and only that, away again. A filter of ours survives a `kill -9` (nothing but netlink
//! removes it); [`super`] removes leftovers by name before it attaches.

use std::io;

use aya::programs::tc::{TcError, qdisc_add_clsact};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::libc;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};
use tracing::warn;

/// Where filters hang.
const PARENTS: [TcHandle; 2] = [
    TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_INGRESS,
    },
    TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_EGRESS,
    },
];

/// A discipline that this process added; removed on drop, unless somebody else has put a filter there by then.
#[derive(Debug)]
pub(super) struct Clsact {
    index: i32,
}

impl Clsact {
    /// Makes sure that the interface has one. `None`: it had one already, which is not ours to remove.
    pub(super) fn ensure(name: &str, index: u32) -> Result<Option<Self>, TcError> {
        match qdisc_add_clsact(name) {
            Ok(()) => Ok(i32::try_from(index).ok().map(|index| Self { index })),
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        match remove_if_unused(self.index) {
            Ok(()) => {}
            // The interface is gone, and its discipline with it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) => {}
            Err(error) => {
                warn!(interface = self.index, %error, "cannot remove the clsact discipline that the agent added");
            }
        }
    }
}

/// Whether any filter, ours or not, hangs on the discipline of the interface in each direction: `[received, sent]`.
pub(super) fn filtered(index: i32) -> io::Result<[bool; 2]> {
    let filtered = |parent| -> io::Result<bool> {
        let mut message = TcMessage::with_index(index);
        message.header.parent = parent;
        Ok(request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)? > 0)
    };
    let [received, sent] = PARENTS.map(filtered);
    Ok([received?, sent?])
}

fn remove_if_unused(index: i32) -> io::Result<()> {
    if filtered(index)?.contains(&true) {
        return Ok(());
    }
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK)?;
    Ok(())
}

/// Sends one request and waits for the end of the answer; the number of objects in it.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<usize> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&bytes, 0)?;
    let mut objects = 0;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(objects),
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(objects), |_| Err(error.to_io())),
                NetlinkPayload::InnerMessage(_) => objects += 1,
                // The enum may grow; whatever else comes is not an answer.
                _ => {}
            }
            let length = usize::try_from(message.header.length)
                .unwrap_or(usize::MAX)
                .next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
