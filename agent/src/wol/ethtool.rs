//! The ethtool requests that Wake-on-LAN needs, in the network namespace of the calling thread. Holds one socket; judges nothing.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::Mac;

/// `ETHTOOL_GWOL`, `ETHTOOL_SWOL`, `ETHTOOL_GPERMADDR` (linux/ethtool.h).
const GET_WOL: u32 = 5;
const SET_WOL: u32 = 6;
const GET_PERMANENT_ADDRESS: u32 = 0x20;

/// `MAX_ADDR_LEN` (linux/netdevice.h).
const LONGEST_ADDRESS: u32 = 32;

/// Wake-on-LAN modes of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WolInfo {
    pub(super) supported: u32,
    pub(super) enabled: u32,
    /// Password of mode `s`; kept as it is.
    pub(super) password: [u8; 6],
}

/// What answers: the kernel, or a test.
pub(super) trait Ethtool {
    fn wol(&self, interface: &str) -> Result<WolInfo, Errno>;
    /// `supported` is ignored.
    fn set_wol(&self, interface: &str, wol: &WolInfo) -> Result<(), Errno>;
    /// `None`: the driver has none.
    fn permanent_address(&self, interface: &str) -> Result<Option<Mac>, Errno>;
}

/// `struct ethtool_wolinfo`.
#[repr(C)]
struct WolRequest {
    command: u32,
    supported: u32,
    enabled: u32,
    password: [u8; 6],
}

/// `struct ethtool_perm_addr` with room for any address.
#[repr(C)]
struct AddressRequest {
    command: u32,
    size: u32,
    address: [u8; LONGEST_ADDRESS as usize],
}

/// A request that SIOCETHTOOL takes: begins with its command, and the kernel reads and writes no more than the structure.
///
/// # Safety
/// The type is one of the kernel's for the command that every value of it carries.
unsafe trait Request {}

// SAFETY: `struct ethtool_wolinfo` of linux/ethtool.h, made with GET_WOL and SET_WOL only.
unsafe impl Request for WolRequest {}
// SAFETY: `struct ethtool_perm_addr`; `size` says how many bytes follow, and that many do. Made with GET_PERMANENT_ADDRESS only.
unsafe impl Request for AddressRequest {}

const _: () = assert!(size_of::<WolRequest>() == 20 && size_of::<AddressRequest>() == 8 + LONGEST_ADDRESS as usize);

/// The kernel.
#[derive(Debug)]
pub(super) struct Kernel(OwnedFd);

impl Kernel {
    /// Any socket takes the request; every kernel has this family.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Self(socket(AddressFamily::Unix, SockType::Datagram, flags, None)?))
    }

    fn ask<R: Request>(&self, interface: &str, request: &mut R) -> Result<(), Errno> {
        // SAFETY: all bytes zero is a value of this plain C structure.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = interface.as_bytes();
        // The last byte stays zero: it ends the name.
        if name.len() >= ifreq.ifr_name.len() {
            return Err(Errno::ENODEV);
        }
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        ifreq.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
        // SAFETY: the descriptor is open; `ifreq` and what it points to live during the call and are exclusively ours, and `Request`
        // promises that the kernel stays within it.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut ifreq) };
        Errno::result(done).map(drop)
    }
}

impl Ethtool for Kernel {
    fn wol(&self, interface: &str) -> Result<WolInfo, Errno> {
        let mut request = WolRequest {
            command: GET_WOL,
            supported: 0,
            enabled: 0,
            password: [0; 6],
        };
        self.ask(interface, &mut request)?;
        Ok(WolInfo {
            supported: request.supported,
            enabled: request.enabled,
            password: request.password,
        })
    }

    fn set_wol(&self, interface: &str, wol: &WolInfo) -> Result<(), Errno> {
        let mut request = WolRequest {
            command: SET_WOL,
            supported: wol.supported,
            enabled: wol.enabled,
            password: wol.password,
        };
        self.ask(interface, &mut request)
    }

    fn permanent_address(&self, interface: &str) -> Result<Option<Mac>, Errno> {
        let mut request = AddressRequest {
            command: GET_PERMANENT_ADDRESS,
            size: LONGEST_ADDRESS,
            address: [0; LONGEST_ADDRESS as usize],
        };
        self.ask(interface, &mut request)?;
        let [a, b, c, d, e, f, ..] = request.address;
        Ok((request.size == 6).then(|| Mac::known([a, b, c, d, e, f])).flatten())
    }
}
