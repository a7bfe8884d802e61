//! Hosts on the LANs of one trial: network namespaces, each on bridges in the trial's own. The kernel removes them, and every link,
//! with the last file and thread in them: at the end of the trial, also of one that panics.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    panic::resume_unwind,
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use vmstation_protocol::MacAddr;
use vmstation_wake_server::transmit::{Target, Transmission, TransmitError, Transmitter};

use super::netns::{ip, no_ipv6, runtime};

pub(crate) const MASTER: MacAddress = [2, 0, 0, 0, 0, 1];
pub(crate) const WORKERS: [MacAddress; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
pub(crate) const IMPOSTOR: MacAddress = [2, 0, 0, 0, 6, 6];

/// When a trial hangs.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) type MacAddress = [u8; 6];

/// A host.
pub(crate) struct Host(File);

/// A switch with nothing plugged in.
pub(crate) fn switch(name: &str) {
    ip(&format!("link add {name} type bridge"));
    ip(&format!("link set {name} up"));
}

/// A master with 192.0.2.1 and a worker with 192.0.2.11 on one LAN, `lan0` on both; `port0` leads to the master.
pub(crate) fn master_and_worker() -> (Host, Host) {
    switch("lan");
    let (master, worker) = (Host::new(), Host::new());
    master.plug("lan", "lan0", MASTER, Some("192.0.2.1/24"));
    worker.plug("lan", "lan0", WORKERS[0], Some("192.0.2.11/24"));
    (master, worker)
}

impl Host {
    pub(crate) fn new() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("new namespace");
            no_ipv6();
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        });
        Self(namespace.join().expect("a namespace"))
    }

    /// Does it on this host; what it starts runs on this host, too.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let on_host = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            act()
        };
        thread::scope(|scope| scope.spawn(on_host).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs `ip`(8) on this host.
    pub(crate) fn ip(&self, words: &str) {
        self.run(|| ip(words));
    }

    /// An interface of this host on a switch, up; returns the name of the switch's port.
    pub(crate) fn plug(&self, switch: &str, interface: &str, mac: MacAddress, address: Option<&str>) -> String {
        static PORTS: AtomicU32 = AtomicU32::new(0);
        let port = format!("port{}", PORTS.fetch_add(1, Ordering::Relaxed));
        let namespace = format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd());
        ip(&format!("link add {port} type veth peer name {port}x"));
        ip(&format!("link set {port} master {switch} up"));
        ip(&format!(
            "link set {port}x netns {namespace} name {interface} address {}",
            card(mac)
        ));
        if let Some(address) = address {
            self.ip(&format!("address add {address} broadcast + dev {interface}"));
        }
        self.ip(&format!("link set {interface} up"));
        port
    }

    /// Sends from this host.
    pub(crate) fn transmit(&self, udp_ports: &[u16], targets: &[Target]) -> Vec<Result<Transmission, TransmitError>> {
        self.run(|| run(Transmitter::new(udp_ports).transmit(targets)))
    }

    /// Sends to one target, which works.
    pub(crate) fn call(&self, udp_ports: &[u16], target: Target) -> Transmission {
        let mut sent = self.transmit(udp_ports, &[target]);
        sent.pop().expect("an outcome").unwrap()
    }
}

/// Runs a future on this thread alone.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let bounded = async { tokio::time::timeout(LIMIT, future).await.expect("the trial hangs") };
    runtime().block_on(bounded)
}

pub(crate) fn card(mac: MacAddress) -> MacAddr {
    MacAddr::new(mac).unwrap()
}

/// A card of which nothing else is known.
pub(crate) fn bare(mac: MacAddress) -> Target {
    Target {
        mac: card(mac),
        secure_on: None,
        interface: None,
        address: None,
        broadcast: None,
    }
}

/// A card of a node with an address.
pub(crate) fn at(mac: MacAddress, address: &str) -> Target {
    Target {
        address: Some(address.parse().unwrap()),
        ..bare(mac)
    }
}

/// What every magic packet for the card contains, counted out here by itself.
pub(crate) fn magic(mac: MacAddress) -> Vec<u8> {
    [[0xff; 6].to_vec(), mac.repeat(16)].concat()
}
