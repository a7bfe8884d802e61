//! A worker's card while its host sleeps: it hears magic packets and, at the one that it does not miss, wakes its host, which then has
//! its address.

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
    unistd::read,
};

use crate::lan::{Host, MacAddress, magic};

/// EtherType of magic packets, as a socket wants it: in network byte order.
const MAGIC: u16 = 0x0842_u16.to_be();
/// How often the trial's end is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Listens on a sleeping host until `over`; wakes it at packet number `at`. How many it heard.
pub(crate) fn listens(host: &Host, mac: MacAddress, address: &str, at: usize, over: &AtomicBool) -> usize {
    let socket = host.run(|| {
        // SAFETY: a plain system call; the descriptor is fresh and owned from here on.
        unsafe {
            let fd = Errno::result(libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                MAGIC.into(),
            ))
            .unwrap();
            OwnedFd::from_raw_fd(fd)
        }
    });
    setsockopt(
        &socket,
        ReceiveTimeout,
        &TimeVal::milliseconds(LOOK.as_millis().try_into().unwrap()),
    )
    .unwrap();
    let mut heard = 0;
    let mut frame = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        match read(&socket, &mut frame) {
            Ok(length) => {
                // Those to everybody alone: each call is one of them and one to the card.
                let is_call = frame[..6] == [0xff; 6] && frame[14..length].starts_with(&magic(mac));
                heard += usize::from(is_call);
                if is_call && heard == at {
                    host.ip(&format!("address add {address}/24 dev lan0"));
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("read descriptor {}: {error}", socket.as_raw_fd()),
        }
    }
    heard
}
