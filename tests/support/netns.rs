//! A private network for one test: namespaces, veth pairs and raw frames. Nothing of it leaves the namespace or outlives the process.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
    ptr, thread,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, new_connection};
use tokio::runtime::{Builder, Runtime};

/// Ethertype for local experiments (IEEE 802), which no protocol answers.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const VLAN: [u8; 4] = [0x81, 0x00, 0x00, 0x2a];

/// Moves this process, which must have one thread, into a new network and mount namespace with its own `/sys`, and takes loopback up.
pub(crate) fn enter() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("sysfs of the namespace");
    runtime().block_on(async { up(&rtnetlink(), "lo").await });
}

/// Mounts an empty folder over `path`, for this namespace.
pub(crate) fn hide(path: &str) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
}

/// No router solicitations or neighbour discovery on interfaces made from here on.
pub(crate) fn no_ipv6() {
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("disable IPv6");
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// A connection to rtnetlink; needs the runtime.
pub(crate) fn rtnetlink() -> Handle {
    let (connection, handle, _) = new_connection().expect("rtnetlink");
    tokio::spawn(connection);
    handle
}

/// A pair of connected interfaces, both up.
pub(crate) async fn veth(handle: &Handle, one: &str, other: &str) {
    handle
        .link()
        .add(LinkVeth::new(one, other).build())
        .execute()
        .await
        .expect("add veth");
    up(handle, one).await;
    up(handle, other).await;
}

pub(crate) async fn remove(handle: &Handle, name: &str) {
    let index = if_nametoindex(name).expect("interface");
    handle.link().del(index).execute().await.expect("delete interface");
}

pub(crate) async fn set_mtu(handle: &Handle, name: &str, bytes: u32) {
    let change = LinkUnspec::new_with_name(name).mtu(bytes).build();
    handle.link().change(change).execute().await.expect("set MTU");
}

/// Runs `ip`(8) with these words; they name only what is in this namespace.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("start ip");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Moves an interface into a namespace that nothing else is in, which lives as long as the file.
pub(crate) async fn move_away(handle: &Handle, name: &str) -> File {
    let elsewhere = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("new namespace");
        File::open("/proc/thread-self/ns/net").expect("open the namespace")
    });
    let elsewhere = elsewhere.join().expect("a namespace");
    let change = LinkUnspec::new_with_name(name)
        .setns_by_fd(elsewhere.as_raw_fd())
        .build();
    handle.link().change(change).execute().await.expect("move interface");
    elsewhere
}

async fn up(handle: &Handle, name: &str) {
    let up = LinkUnspec::new_with_name(name).up().build();
    handle.link().change(up).execute().await.expect("interface up");
}

/// A frame of exactly `len` bytes, at least 18, Ethernet header and VLAN tag included.
pub(crate) fn frame(len: usize, tagged: bool) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 1]);
    if tagged {
        frame.extend(VLAN);
    }
    frame.extend(EXPERIMENT);
    assert!(frame.len() <= len, "a frame of {len} bytes has no room for its header");
    frame.resize(len, 0);
    frame
}

/// A device without Ethernet header, up; what is sent into it arrives on the device as it is.
pub(crate) async fn tun(handle: &Handle, name: &str) -> File {
    let device = device(name, libc::IFF_TUN);
    up(handle, name).await;
    device
}

/// A device, down; what is sent into the file arrives on it, and what it sends is read from the file. `IFF_TAP`: an Ethernet card, `IFF_TUN`:
/// without Ethernet header.
pub(crate) fn device(name: &str, kind: libc::c_int) -> File {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("open /dev/net/tun");
    // SAFETY: the request is valid, names the device and lives during the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::try_from(from).unwrap();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(kind | libc::IFF_NO_PI).unwrap();
        Errno::result(libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &request)).expect("make a tun device");
    }
    device
}

/// Sends raw frames out of one interface.
pub(crate) struct FrameSender(OwnedFd);

impl FrameSender {
    pub(crate) fn new(interface: &str) -> Self {
        // SAFETY: plain system calls; the descriptor is fresh and owned from here on, and the address lives during the call.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            let fd = OwnedFd::from_raw_fd(Errno::result(fd).expect("packet socket"));
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_ifindex = if_nametoindex(interface).expect("interface").cast_signed();
            let len = u32::try_from(size_of_val(&address)).unwrap();
            Errno::result(libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), len)).expect("bind packet socket");
            Self(fd)
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer lives during the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(
            usize::try_from(sent),
            Ok(frame.len()),
            "send: {}",
            io::Error::last_os_error()
        );
    }
}

/// A TCP connection from a chosen address and port.
pub(crate) fn connect_from(local: SocketAddr, peer: SocketAddr) -> TcpStream {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    bind(fd.as_raw_fd(), &SockaddrStorage::from(local)).expect("bind");
    connect(fd.as_raw_fd(), &SockaddrStorage::from(peer)).expect("connect");
    TcpStream::from(fd)
}

/// Closing the connection sends RST instead of FIN.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &now).expect("SO_LINGER");
}
