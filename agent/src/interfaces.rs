//! Which network interfaces count, and the moment that set may have changed.
//!
//! Reads `/sys/class/net` and listens to rtnetlink; never changes an interface. The caller owns the list and compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::counters::Interface;

const FOLDER: &str = "/sys/class/net";

/// The interfaces of `named` that exist; if none is named, every physical one: those with a parent on a bus
/// (`/sys/class/net/IF/device`). Bonds, bridges, VLANs and the like have none and do not count, since their ports do; nor does
/// loopback, unless it is named. One that lies on top of another of them is left out, see [`left_out`].
///
/// # Errors
/// `/sys/class/net` could not be listed.
pub fn select(named: &[String]) -> io::Result<Vec<Interface>> {
    let names = if named.is_empty() {
        physical(Path::new(FOLDER))?
    } else {
        named.to_vec()
    };
    let mut interfaces: Vec<_> = names.into_iter().filter_map(existing).collect();
    interfaces.sort();
    interfaces.dedup();
    let uppers = uppers_of(&interfaces)?;
    interfaces.retain(|interface| !uppers.contains_key(&interface.name));
    Ok(interfaces)
}

/// Those of `named` that lie on top of another one (a bridge and its port, a VLAN and its device), each with that one: what they carry
/// passes there too and would count twice.
///
/// # Errors
/// As in [`select`].
pub fn left_out(named: &[String]) -> io::Result<BTreeMap<String, String>> {
    let interfaces: Vec<_> = named.iter().cloned().filter_map(existing).collect();
    uppers_of(&interfaces)
}

/// Upper interfaces, each with one below it of the same list. One with a parent on a bus is a port of its own, whatever is below it.
fn uppers_of(interfaces: &[Interface]) -> io::Result<BTreeMap<String, String>> {
    let mut uppers = BTreeMap::new();
    let upper = |interface: &&Interface| !is_physical(Path::new(FOLDER), &interface.name);
    for Interface { name, .. } in interfaces.iter().filter(upper) {
        let below = all_below(name)?;
        if let Some(other) = interfaces.iter().find(|other| below.contains(&other.name)) {
            uppers.insert(name.clone(), other.name.clone());
        }
    }
    Ok(uppers)
}

/// Everything below an interface, by the links `lower_NAME` in its folder. The kernel nests at most 8 deep (`MAX_NEST_DEV`).
fn all_below(name: &str) -> io::Result<BTreeSet<String>> {
    let (mut found, mut next) = (BTreeSet::new(), vec![name.to_owned()]);
    while let Some(name) = next.pop() {
        for below in directly_below(Path::new(FOLDER), &name)? {
            if found.insert(below.clone()) {
                next.push(below);
            }
        }
    }
    Ok(found)
}

/// What the interface `name` of `folder` (`/sys/class/net`) lies on, one level down; nothing if it is gone.
///
/// # Errors
/// Its folder could not be listed.
pub(crate) fn directly_below(folder: &Path, name: &str) -> io::Result<Vec<String>> {
    let folder = folder.join(name);
    let files = match fs::read_dir(&folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!("list {}: {error}", folder.display()),
            ));
        }
    };
    let mut found = Vec::new();
    for file in files {
        if let Ok(file) = file?.file_name().into_string()
            && let Some(below) = file.strip_prefix("lower_")
        {
            found.push(below.to_owned());
        }
    }
    Ok(found)
}

/// Whether the interface `name` of `folder` (`/sys/class/net`) has a parent on a bus.
pub(crate) fn is_physical(folder: &Path, name: &str) -> bool {
    folder.join(name).join("device").exists()
}

/// Every physical interface of `folder` (`/sys/class/net`).
///
/// # Errors
/// The folder could not be listed.
pub(crate) fn physical(folder: &Path) -> io::Result<Vec<String>> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("list {}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        // Interface names are bytes without slash; one that is not UTF-8 cannot be configured either.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && is_physical(folder, &name)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// `None` for one that is gone: interfaces come and go.
fn existing(name: String) -> Option<Interface> {
    let index = if_nametoindex(name.as_str()).ok()?;
    Some(Interface { index, name })
}

/// Tells when interfaces were added, removed, renamed or changed (rtnetlink(7), group `RTMGRP_LINK`).
#[derive(Debug)]
pub struct LinkWatch {
    socket: AsyncFd<OwnedFd>,
}

impl LinkWatch {
    /// Begins to listen in the network namespace of the calling thread. List the interfaces after this, so that no change falls between.
    ///
    /// # Errors
    /// No socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(
            socket.as_raw_fd(),
            &NetlinkAddr::new(0, libc::RTMGRP_LINK.unsigned_abs()),
        )?;
        // SAFETY: an `OwnedFd` is open and the same for as long as it lives, and the `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Waits for a change; however many there were since the last call, they count as one.
    ///
    /// Cancel-safe: messages are taken after the last point at which it can be dropped.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let changed = drain(ready.get_inner())?;
            ready.clear_ready();
            if changed {
                return Ok(());
            }
        }
    }
}

/// Takes all messages that wait; whether there were any. Their content does not matter: the caller lists what there is.
fn drain(socket: &OwnedFd) -> io::Result<bool> {
    let mut changed = false;
    loop {
        // What does not fit into the buffer is dropped with its message.
        match recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
            Ok(_) => changed = true,
            Err(Errno::EAGAIN) => return Ok(changed),
            Err(Errno::EINTR) => {}
            // More messages than the socket holds: some are lost, so something changed.
            Err(Errno::ENOBUFS) => changed = true,
            Err(error) => return Err(io::Error::other(format!("listen to rtnetlink: {error}"))),
        }
    }
}
