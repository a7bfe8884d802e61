//! This host's interfaces, and which of them leads to an address, as the kernel says. Keeps nothing: every answer is of the moment it
//! was asked for, and of the network namespace of the thread that asked. Changes nothing and sends nothing to the network.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
};

use nix::{
    errno::Errno,
    ifaddrs::{InterfaceAddress, getifaddrs},
    libc,
    net::if_::{InterfaceFlags, if_indextoname},
    sys::socket::{SockaddrIn, SockaddrStorage},
};
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;

/// The way out of this host to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name of the interface it begins at.
    pub interface: String,
    /// Who passes packets on to the address; absent: it is on the interface's own network.
    pub gateway: Option<IpAddr>,
}

/// Why no way to an address is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The kernel has none.
    #[error("this host has no route to {address}: add one, or name the node's interface in the registry")]
    NoRoute {
        /// The address.
        address: IpAddr,
    },
    /// It is an address of this host itself.
    #[error("{address} is this host's own address: correct the node's address in the registry")]
    Own {
        /// The address.
        address: IpAddr,
    },
    /// The kernel did not answer as it should.
    #[error("cannot ask the kernel for its route to {address}: {reason}")]
    Netlink {
        /// The address.
        address: IpAddr,
        /// What went wrong.
        reason: String,
    },
}

/// The interface that leads to an address, by the kernel's routing of packets of this host's own.
///
/// # Errors
/// There is none, or the kernel cannot be asked.
///
/// # Panics
/// Outside of a tokio runtime with I/O.
pub async fn interface_to(address: IpAddr) -> Result<Route, RouteError> {
    Routes::open(address)?.interface_to(address).await
}

/// An open connection to rtnetlink, for many questions.
pub(crate) struct Routes {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Routes {
    /// `first` is the address that will be asked for first, for the message of an error.
    pub(crate) fn open(first: IpAddr) -> Result<Self, RouteError> {
        let (connection, handle, _) = new_connection().map_err(|error| netlink(first, &error))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    pub(crate) async fn interface_to(&self, address: IpAddr) -> Result<Route, RouteError> {
        let question = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        let mut answers = pin!(self.handle.route().get(question).execute());
        match answers.next().await {
            Some(Ok(answer)) => read(address, &answer),
            Some(Err(rtnetlink::Error::NetlinkError(error))) => {
                match Errno::from_raw(error.raw_code().saturating_abs()) {
                    // What the kinds of route say that lead nowhere: none, unreachable, prohibit, blackhole (ip-route(8)).
                    Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL => {
                        Err(RouteError::NoRoute { address })
                    }
                    errno => Err(netlink(address, &errno.desc())),
                }
            }
            Some(Err(error)) => Err(netlink(address, &error)),
            None => Err(netlink(address, &"no answer")),
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn netlink(address: IpAddr, reason: &dyn fmt::Display) -> RouteError {
    RouteError::Netlink {
        address,
        reason: reason.to_string(),
    }
}

fn read(address: IpAddr, answer: &RouteMessage) -> Result<Route, RouteError> {
    if answer.header.kind == RouteType::Local {
        return Err(RouteError::Own { address });
    }
    let index = answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let gateway = answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    });
    let index = index.ok_or(RouteError::NoRoute { address })?;
    let name = if_indextoname(index).map_err(|errno| netlink(address, &errno.desc()))?;
    Ok(Route {
        interface: name.to_string_lossy().into_owned(),
        gateway,
    })
}

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// The kernel's number of it.
    pub(crate) index: i32,
    /// Its address, if it is an Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) link: Link,
    /// Its IPv4 addresses, and where their networks' broadcasts go.
    pub(crate) networks: Vec<Network>,
}

/// Whether an interface can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Switched on, and with a carrier.
    Ready,
    /// Switched on without a carrier: the kernel drops what is sent, and reports success.
    NoCarrier,
    /// Switched off.
    Down,
}

/// An IPv4 address of this host with its network mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) own: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
}

impl Network {
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        self.own & self.mask == address & self.mask
    }

    /// Where its directed broadcast goes; a network of one or two addresses has none (RFC 3021).
    pub(crate) fn broadcast(self) -> Option<Ipv4Addr> {
        let hosts = !self.mask;
        (hosts.to_bits() > 1).then_some(self.own | hosts)
    }
}

/// Every interface of this host. Blocks for as long as the kernel takes to list them.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    let (links, addresses): (Vec<_>, Vec<_>) = getifaddrs()?.partition(|entry| link_address(entry).is_some());
    for entry in &links {
        found.extend(interface(entry));
    }
    for entry in &addresses {
        // An address may have a label, which is the interface's name, a colon and more (ip-address(8)).
        let name = entry.interface_name.split(':').next();
        if let Some(interface) = found.iter_mut().find(|known| Some(known.name.as_str()) == name) {
            interface.networks.extend(network(entry));
        }
    }
    Ok(found)
}

fn link_address(entry: &InterfaceAddress) -> Option<&nix::sys::socket::LinkAddr> {
    entry.address.as_ref().and_then(SockaddrStorage::as_link_addr)
}

fn interface(entry: &InterfaceAddress) -> Option<Interface> {
    let address = link_address(entry)?;
    let is_ethernet = address.hatype() == libc::ARPHRD_ETHER && address.halen() == 6;
    let has = |flag| entry.flags.contains(flag);
    Some(Interface {
        name: entry.interface_name.clone(),
        index: address.ifindex().try_into().ok()?,
        mac: address.addr().filter(|_| is_ethernet),
        // Not IFF_RUNNING: it follows the carrier up to a second later (net/core/link_watch.c).
        link: match (has(InterfaceFlags::IFF_UP), has(InterfaceFlags::IFF_LOWER_UP)) {
            (true, true) => Link::Ready,
            (true, false) => Link::NoCarrier,
            (false, _) => Link::Down,
        },
        networks: Vec::new(),
    })
}

fn network(entry: &InterfaceAddress) -> Option<Network> {
    let v4 = |address: &Option<SockaddrStorage>| address.as_ref()?.as_sockaddr_in().map(SockaddrIn::ip);
    Some(Network {
        own: v4(&entry.address)?,
        mask: v4(&entry.netmask)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(own: &str, mask: &str) -> Network {
        Network {
            own: own.parse().unwrap(),
            mask: mask.parse().unwrap(),
        }
    }

    #[test]
    fn a_network_knows_its_addresses_and_its_broadcast() {
        let lan = network("192.0.2.77", "255.255.255.192");
        assert!(lan.contains("192.0.2.64".parse().unwrap()));
        assert!(!lan.contains("192.0.2.63".parse().unwrap()));
        assert_eq!(lan.broadcast(), Some("192.0.2.127".parse().unwrap()));
    }

    #[test]
    fn a_network_of_two_has_no_broadcast() {
        assert_eq!(network("192.0.2.1", "255.255.255.255").broadcast(), None);
        assert_eq!(network("192.0.2.1", "255.255.255.254").broadcast(), None);
    }

    #[test]
    fn loopback_is_no_ethernet() {
        let lo = interfaces()
            .unwrap()
            .into_iter()
            .find(|interface| interface.name == "lo")
            .unwrap();
        assert_eq!(lo.mac, None);
    }

    #[tokio::test]
    async fn an_own_address_is_told() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(interface_to(address).await, Err(RouteError::Own { address }));
    }
}
