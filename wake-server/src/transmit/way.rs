//! How a node can be called from this host: through which interface, and where datagrams go. Pure: decides from what is known of
//! interfaces and routes, and sends nothing.

use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use super::Target;
use crate::route::{Interface, Link, Network, Route, RouteError};

/// Why no Ethernet frame was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFrames {
    /// Raw sockets are for those with the capability.
    #[error("this program lacks CAP_NET_RAW: add AmbientCapabilities=CAP_NET_RAW to its unit, or start it as root")]
    NotPermitted,
    /// There is no raw socket for another reason.
    #[error("cannot open a raw socket: {}", .0.desc())]
    NoSocket(Errno),
    /// What interfaces there are is not known.
    #[error("cannot list this host's interfaces: {}", .0.desc())]
    NotListed(Errno),
    /// Configured, and not there.
    #[error("this host has no interface {interface}: correct the node's interface in the registry")]
    Unknown {
        /// The interface.
        interface: String,
    },
    /// Switched off.
    #[error("{interface} is down: `ip link set {interface} up`")]
    Down {
        /// The interface.
        interface: String,
    },
    /// Nothing is at the other end.
    #[error("{interface} has no carrier: plug the cable in")]
    NoCarrier {
        /// The interface.
        interface: String,
    },
    /// A tunnel, loopback, or the like.
    #[error("{interface} is no Ethernet: name one in the registry that the node is on")]
    NotEthernet {
        /// The interface.
        interface: String,
    },
    /// The node is in another network, which no frame of this host reaches.
    #[error("{address} is behind the gateway {gateway}: wake it from a host of its own network")]
    Behind {
        /// The node's address.
        address: IpAddr,
        /// Who passes packets on to it.
        gateway: IpAddr,
    },
    /// No way is known.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The kernel refused to send.
    #[error("cannot send through {interface}: {}", .errno.desc())]
    Refused {
        /// The interface.
        interface: String,
        /// Why.
        errno: Errno,
    },
}

/// How one node can be called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way<'a> {
    /// The Ethernet for frames to it.
    pub(super) frames: Result<Ethernet<'a>, NoFrames>,
    /// Where datagrams for it go; the interface without carrier, if they would be lost there.
    pub(super) datagrams: Result<Destination<'a>, &'a str>,
}

/// An interface that can send frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ethernet<'a> {
    pub(super) name: &'a str,
    pub(super) index: i32,
    pub(super) mac: [u8; 6],
}

/// Where datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination<'a> {
    pub(super) address: Ipv4Addr,
    /// The interface they are to take, whatever the routes say.
    pub(super) through: Option<&'a Interface>,
}

/// The address whose route tells the interface, unless one is configured.
pub(super) fn asks_for(target: &Target) -> Option<IpAddr> {
    let known = target.address.or(target.broadcast.map(IpAddr::V4));
    target
        .interface
        .is_none()
        .then(|| known.unwrap_or(Ipv4Addr::BROADCAST.into()))
}

impl<'a> Way<'a> {
    /// `route` is that of [`asks_for`], if it asks.
    pub(super) fn to(
        target: &Target,
        interfaces: &'a Result<Vec<Interface>, Errno>,
        route: Option<&Result<Route, RouteError>>,
    ) -> Self {
        let chosen = choose(target, interfaces, route);
        let all = interfaces.as_ref().map_or(&[][..], Vec::as_slice);
        Self {
            datagrams: datagrams(target, chosen.as_ref(), all),
            frames: chosen.and_then(ethernet),
        }
    }
}

fn choose<'a>(
    target: &Target,
    interfaces: &'a Result<Vec<Interface>, Errno>,
    route: Option<&Result<Route, RouteError>>,
) -> Result<&'a Interface, NoFrames> {
    let route = route.map(|route| route.as_ref().map_err(Clone::clone)).transpose()?;
    if let (Some(address), Some(gateway)) = (target.address, route.and_then(|route| route.gateway)) {
        return Err(NoFrames::Behind { address, gateway });
    }
    let name = target.interface.as_ref().or(route.map(|route| &route.interface));
    let interfaces = interfaces.as_ref().map_err(|errno| NoFrames::NotListed(*errno))?;
    let found = interfaces.iter().find(|interface| Some(&interface.name) == name);
    found.ok_or_else(|| NoFrames::Unknown {
        interface: name.cloned().unwrap_or_default(),
    })
}

fn ethernet(interface: &Interface) -> Result<Ethernet<'_>, NoFrames> {
    let name = || interface.name.clone();
    match (interface.link, interface.mac) {
        (Link::Down, _) => Err(NoFrames::Down { interface: name() }),
        (Link::NoCarrier, _) => Err(NoFrames::NoCarrier { interface: name() }),
        (Link::Ready, None) => Err(NoFrames::NotEthernet { interface: name() }),
        (Link::Ready, Some(mac)) => Ok(Ethernet {
            name: &interface.name,
            index: interface.index,
            mac,
        }),
    }
}

fn datagrams<'a>(
    target: &Target,
    chosen: Result<&&'a Interface, &NoFrames>,
    all: &'a [Interface],
) -> Result<Destination<'a>, &'a str> {
    let (through, behind) = match chosen {
        Ok(interface) => match interface.link {
            Link::NoCarrier => return Err(&interface.name),
            Link::Ready => (Some(*interface), false),
            // The routes through it are gone; others may be left.
            Link::Down => (None, false),
        },
        Err(NoFrames::Behind { .. }) => (None, true),
        Err(_) => (None, false),
    };
    let own = through.and_then(|interface| broadcast(interface, target.address));
    let address = target.broadcast.or(own).unwrap_or_else(|| match target.address {
        Some(IpAddr::V4(address)) if behind => address,
        Some(address) => all
            .iter()
            .find_map(|interface| broadcast_around(interface, address))
            .unwrap_or(Ipv4Addr::BROADCAST),
        None => Ipv4Addr::BROADCAST,
    });
    // A broadcast of another network goes where its route leads.
    let through = through.filter(|interface| {
        address == Ipv4Addr::BROADCAST
            || interface
                .networks
                .iter()
                .any(|network| network.broadcast() == Some(address))
    });
    Ok(Destination { address, through })
}

/// The broadcast of the interface's network that the address is in; otherwise of its first one.
fn broadcast(interface: &Interface, address: Option<IpAddr>) -> Option<Ipv4Addr> {
    let around = address.and_then(|address| broadcast_around(interface, address));
    around.or_else(|| interface.networks.iter().find_map(|network| network.broadcast()))
}

fn broadcast_around(interface: &Interface, address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V4(address) = address else { return None };
    let contains = |network: &&Network| network.contains(address);
    interface.networks.iter().find(contains)?.broadcast()
}

#[cfg(test)]
mod tests {
    use vmstation_protocol::MacAddr;

    use super::*;

    const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const LAN_BROADCAST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const AFAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    fn interface(name: &str, index: i32, own: &[[u8; 4]]) -> Interface {
        Interface {
            name: name.into(),
            index,
            mac: Some(LAN_MAC),
            link: Link::Ready,
            networks: own
                .iter()
                .map(|&own| Network {
                    own: own.into(),
                    mask: Ipv4Addr::new(255, 255, 255, 0),
                })
                .collect(),
        }
    }

    fn lans() -> Vec<Interface> {
        vec![
            interface("lan0", 2, &[[198, 51, 100, 1], [192, 0, 2, 1]]),
            interface("lan1", 3, &[[10, 0, 0, 1]]),
            interface("bare", 4, &[]),
        ]
    }

    fn target() -> Target {
        Target {
            mac: MacAddr::new([0x52, 0x54, 0, 0x12, 0x34, 0xaf]).unwrap(),
            secure_on: None,
            interface: None,
            address: None,
            broadcast: None,
        }
    }

    fn route(interface: &str, gateway: Option<[u8; 4]>) -> Result<Route, RouteError> {
        Ok(Route {
            interface: interface.into(),
            gateway: gateway.map(IpAddr::from),
        })
    }

    type Frames = Result<String, NoFrames>;
    type Datagrams = Result<(Ipv4Addr, Option<String>), String>;

    /// Interface of the frames, address of the datagrams and their interface; why not, in the place of each.
    fn way(target: &Target, lans: Vec<Interface>, route: Option<&Result<Route, RouteError>>) -> (Frames, Datagrams) {
        let interfaces = Ok(lans);
        let way = Way::to(target, &interfaces, route);
        let datagrams = way.datagrams.map_err(str::to_owned);
        (
            way.frames.map(|ethernet| ethernet.name.to_owned()),
            datagrams.map(|to| (to.address, to.through.map(|through| through.name.clone()))),
        )
    }

    #[test]
    fn the_route_is_asked_for_what_is_known_unless_an_interface_is_configured() {
        let mut target = target();
        assert_eq!(asks_for(&target), Some(Ipv4Addr::BROADCAST.into()));
        target.broadcast = Some(LAN_BROADCAST);
        assert_eq!(asks_for(&target), Some(LAN_BROADCAST.into()));
        target.address = Some(NODE.into());
        assert_eq!(asks_for(&target), Some(NODE.into()));
        target.interface = Some("lan0".into());
        assert_eq!(asks_for(&target), None);
    }

    #[test]
    fn a_node_on_a_lan_is_called_there_and_by_the_broadcast_around_its_address() {
        let target = Target {
            address: Some(NODE.into()),
            ..target()
        };
        let seen = way(&target, lans(), Some(&route("lan0", None)));
        let expected = (LAN_BROADCAST, Some("lan0".into()));
        assert_eq!(seen, (Ok("lan0".into()), Ok(expected)));
    }

    #[test]
    fn the_configured_interface_is_taken_whatever_the_address_says() {
        let target = Target {
            interface: Some("lan1".into()),
            address: Some(NODE.into()),
            ..target()
        };
        let expected = (Ipv4Addr::new(10, 0, 0, 255), Some("lan1".into()));
        assert_eq!(way(&target, lans(), None), (Ok("lan1".into()), Ok(expected)));
    }

    #[test]
    fn an_interface_without_addresses_sends_to_everybody_there() {
        let target = Target {
            interface: Some("bare".into()),
            ..target()
        };
        let expected = (Ipv4Addr::BROADCAST, Some("bare".into()));
        assert_eq!(way(&target, lans(), None), (Ok("bare".into()), Ok(expected)));
    }

    #[test]
    fn a_broadcast_of_another_network_goes_where_its_route_leads() {
        let other = Ipv4Addr::new(203, 0, 113, 255);
        let target = Target {
            interface: Some("lan0".into()),
            broadcast: Some(other),
            ..target()
        };
        assert_eq!(way(&target, lans(), None), (Ok("lan0".into()), Ok((other, None))));
    }

    #[test]
    fn no_frame_goes_to_a_node_behind_a_gateway() {
        let gateway = [192, 0, 2, 254];
        let target = Target {
            address: Some(AFAR.into()),
            ..target()
        };
        let (frames, datagrams) = way(&target, lans(), Some(&route("lan0", Some(gateway))));
        assert_eq!(
            frames,
            Err(NoFrames::Behind {
                address: AFAR.into(),
                gateway: gateway.into()
            })
        );
        assert_eq!(datagrams, Ok((AFAR, None)));
    }

    #[test]
    fn w10_what_cannot_carry_frames_is_named() {
        let refused = |interface: &str, change: fn(&mut Interface)| {
            let mut lans = lans();
            change(&mut lans[0]);
            let target = Target {
                interface: Some(interface.into()),
                address: Some(NODE.into()),
                ..target()
            };
            let (frames, datagrams) = way(&target, lans, None);
            (frames.unwrap_err(), datagrams)
        };
        let lan0 = || "lan0".to_owned();
        let by_route = Ok((LAN_BROADCAST, None));
        assert_eq!(
            refused("lan0", |lan0| lan0.link = Link::Down),
            (NoFrames::Down { interface: lan0() }, by_route.clone())
        );
        assert_eq!(
            refused("lan0", |lan0| lan0.link = Link::NoCarrier),
            (NoFrames::NoCarrier { interface: lan0() }, Err(lan0()))
        );
        assert_eq!(
            refused("lan0", |lan0| lan0.mac = None),
            (
                NoFrames::NotEthernet { interface: lan0() },
                Ok((LAN_BROADCAST, Some(lan0())))
            )
        );
        assert_eq!(
            refused("lan9", |_| ()),
            (
                NoFrames::Unknown {
                    interface: "lan9".into()
                },
                by_route
            )
        );
    }

    #[test]
    fn without_a_route_it_is_said_and_everybody_is_called() {
        let error = RouteError::NoRoute { address: AFAR.into() };
        let target = Target {
            address: Some(AFAR.into()),
            ..target()
        };
        let seen = way(&target, lans(), Some(&Err(error.clone())));
        assert_eq!(seen, (Err(NoFrames::Route(error)), Ok((Ipv4Addr::BROADCAST, None))));
    }

    #[test]
    fn without_a_list_of_interfaces_it_is_said() {
        let none = Err(Errno::EMFILE);
        let way = Way::to(&target(), &none, Some(&route("lan0", None)));
        assert_eq!(way.frames, Err(NoFrames::NotListed(Errno::EMFILE)));
    }
}
