//! Cgroups for one test, and a network whose sockets can be in them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process,
};

use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
};
use vmstation_agent::cgroups as host;

use super::{
    frames::{Host, UDP, ethernet_to, ipv4, udp},
    netns,
};

/// Of the node's end of the cable, `vms0`. 192.0.2.2 is at the other end, `vms1`, and nobody answers there.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE: Host = Host(1);
const PEER: Host = Host(2);

/// A container of pod 8f3c0a52-11d2-4c0e-9d1e-6f2a7b9c0d1e as the kubelet and containerd make it.
pub(crate) const CONTAINER: &str = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8f3c0a52_11d2_4c0e_9d1e_6f2a7b9c0d1e.slice/\
     cri-containerd-4be1c4cba2c74f1a9d1a0b6b6ed37df24be1c4cba2c74f1a9d1a0b6b6ed37df2.scope";

/// A folder of cgroups of this test's own, removed when dropped.
pub(crate) struct Cgroups {
    root: PathBuf,
    own: PathBuf,
}

impl Cgroups {
    /// Mounts the host's cgroup v2 in this namespace and makes a cgroup there.
    pub(crate) fn new() -> Self {
        let none = None::<&str>;
        let root = PathBuf::from("/sys/fs/cgroup");
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), none).expect("mount cgroup2");
        let own = root.join(format!("vmstation-test-{}", process::id()));
        fs::create_dir(&own).expect("make a cgroup");
        Self { root, own }
    }

    /// Where all cgroups of the host are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A cgroup below the test's own.
    pub(crate) fn make(&self, path: &str) -> PathBuf {
        let folder = self.own.join(path);
        fs::create_dir_all(&folder).expect("make a cgroup");
        folder
    }

    /// Does something in a cgroup: what is made there is that cgroup's for ever.
    pub(crate) fn inside<T>(&self, folder: &Path, work: impl FnOnce() -> T) -> T {
        let enter = |folder: &Path| fs::write(folder.join("cgroup.procs"), "0").expect("enter the cgroup");
        enter(folder);
        let made = work();
        enter(&self.root);
        made
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // A test that failed may still be in one of them.
        let _left = fs::write(self.root.join("cgroup.procs"), "0");
        for cgroup in host::all(&self.own).iter().rev() {
            let _removed = fs::remove_dir(&cgroup.folder);
        }
    }
}

/// A cable between `vms0`, which has [`ADDRESS`], and `vms1`.
pub(crate) fn network() {
    netns::no_ipv6();
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        netns::veth(&handle, "vms0", "vms1").await;
        let node = if_nametoindex("vms0").unwrap();
        let added = handle.address().add(node, IpAddr::V4(ADDRESS), 24);
        added.execute().await.expect("add an address");
    });
}

/// A frame that brings a packet of UDP to a socket of the node, which has `interface`.
pub(crate) fn frame_to(interface: &str, socket: &UdpSocket, bytes: usize) -> Vec<u8> {
    let mac = fs::read_to_string(format!("/sys/class/net/{interface}/address")).unwrap();
    let mac: Vec<u8> = mac
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let port = socket.local_addr().unwrap().port();
    let mut packet = ipv4(PEER, NODE, UDP, &udp(50_001, port, &vec![0; bytes]));
    let words = packet[..20]
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]));
    let sum: u32 = words.map(u32::from).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    ethernet_to(mac.try_into().unwrap(), 0x0800, &packet)
}
