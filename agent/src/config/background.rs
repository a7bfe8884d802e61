//! Which traffic is no activity: the host and its cluster keeping themselves going (fault X4).
//!
//! [`DEFAULTS`] is the one table of what that is on a Kubernetes node and why; `config schema` shows it. Holds rules, never counts.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use agent_ebpf::{Side, Transport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Traffic that does not count as activity, beside what the kernel half takes for background or multicast whatever is configured (see
/// [`agent_ebpf::NetClass`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Background {
    /// Connections by port.
    pub ports: BTreeSet<PortRule>,
    /// Everything from and to peers in these networks; at most [`agent_ebpf::NET_CIDRS`] of either address family.
    pub cidrs: BTreeSet<Cidr>,
    /// Everything in these protocols of IP.
    pub protocols: BTreeSet<IpProtocol>,
}

/// Connections by port and direction: `6443/tcp out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRule {
    /// Port, > 0.
    pub port: u16,
    /// Protocol.
    pub transport: Transport,
    /// Who opens the connection.
    pub direction: Direction,
}

/// Who opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// A peer: the port is this host's.
    In,
    /// This host: the port is the peer's.
    Out,
    /// Either.
    Both,
}

/// A network: `10.0.0.0/24`, `fd00::/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// A protocol of IP, by name or by number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "ProtocolForm")]
pub struct IpProtocol(pub u8);

/// One default and its reason.
struct Default {
    rule: Rule,
    reason: &'static str,
}

enum Rule {
    Port(u16, &'static [Transport], Direction),
    Protocol(u8),
    /// The ports of the SSH server, as long as its sessions are watched.
    Ssh,
}

const TCP: &[Transport] = &[Transport::Tcp];
const UDP: &[Transport] = &[Transport::Udp];
const EITHER: &[Transport] = &[Transport::Tcp, Transport::Udp];

const fn port(port: u16, transports: &'static [Transport], direction: Direction, reason: &'static str) -> Default {
    Default {
        rule: Rule::Port(port, transports, direction),
        reason,
    }
}

const fn protocol(number: u8, reason: &'static str) -> Default {
    Default {
        rule: Rule::Protocol(number),
        reason,
    }
}

/// What an idle Kubernetes node says and hears all day.
const DEFAULTS: [Default; 29] = [
    port(
        6443,
        TCP,
        Direction::Out,
        "API server: the kubelet renews its lease every 10 s, watches stay open",
    ),
    port(
        10250,
        TCP,
        Direction::In,
        "kubelet: probes, metrics, `kubectl logs` and `exec`",
    ),
    port(10249, TCP, Direction::In, "kube-proxy: metrics"),
    port(10256, TCP, Direction::In, "kube-proxy: health checks of load balancers"),
    port(
        10257,
        TCP,
        Direction::In,
        "controller manager: metrics and health checks",
    ),
    port(10259, TCP, Direction::In, "scheduler: metrics and health checks"),
    port(9100, TCP, Direction::In, "node-exporter: scraped every 15 s or so"),
    port(2379, TCP, Direction::Both, "etcd: its clients are API servers"),
    port(2380, TCP, Direction::Both, "etcd: heartbeats between its members"),
    port(123, UDP, Direction::Both, "NTP: the clock"),
    port(
        53,
        EITHER,
        Direction::Out,
        "DNS of the host itself: whoever uses the answer makes traffic of his own",
    ),
    port(5353, UDP, Direction::Both, "mDNS: answers to a single host"),
    port(67, UDP, Direction::Both, "DHCP: the lease"),
    port(68, UDP, Direction::Both, "DHCP: the lease"),
    port(546, UDP, Direction::Both, "DHCPv6: the lease"),
    port(547, UDP, Direction::Both, "DHCPv6: the lease"),
    port(
        179,
        TCP,
        Direction::Both,
        "BGP keep-alives of the network plugin (Calico, MetalLB)",
    ),
    port(5473, TCP, Direction::Both, "Typha: watches of Calico"),
    port(3784, UDP, Direction::Both, "BFD: whether a link or tunnel is up"),
    port(4240, TCP, Direction::Both, "health checks between the agents of Cilium"),
    port(
        7946,
        EITHER,
        Direction::Both,
        "member list of MetalLB: which speakers are alive",
    ),
    port(
        9876,
        TCP,
        Direction::Both,
        "the wake server: our own reports and orders",
    ),
    protocol(1, "ICMP: pings of monitoring, errors; health checks of tunnels"),
    protocol(2, "IGMP: membership in multicast groups"),
    protocol(58, "ICMPv6: neighbours, routers, pings"),
    protocol(88, "EIGRP: routers that say they are alive"),
    protocol(89, "OSPF: routers that say they are alive"),
    protocol(112, "VRRP: who has the shared address (keepalived)"),
    Default {
        rule: Rule::Ssh,
        reason: "SSH: sessions are a signal of their own, failed logins are none at all",
    },
];

impl Background {
    /// What [`DEFAULTS`] says. `ssh_ports`: of the SSH server, empty if nobody looks at its sessions.
    pub(super) fn of_a_node(ssh_ports: &[u16]) -> Self {
        let mut background = Self::default();
        for Default { rule, .. } in &DEFAULTS {
            match *rule {
                Rule::Port(port, transports, direction) => {
                    background.ports.extend(transports.iter().map(|&transport| PortRule {
                        port,
                        transport,
                        direction,
                    }));
                }
                Rule::Protocol(number) => {
                    background.protocols.insert(IpProtocol(number));
                }
                Rule::Ssh => background.ports.extend(ssh_ports.iter().map(|&port| PortRule {
                    port,
                    transport: Transport::Tcp,
                    direction: Direction::In,
                })),
            }
        }
        background
    }
}

/// [`DEFAULTS`] for people.
#[derive(Serialize)]
pub(super) struct DefaultRow {
    /// As the configuration has it.
    rule: String,
    reason: &'static str,
}

pub(super) fn defaults_for_people() -> Vec<DefaultRow> {
    let row = |Default { rule, reason }: &Default| {
        let rules = match *rule {
            Rule::Port(port, transports, direction) => transports
                .iter()
                .map(|&transport| {
                    PortRule {
                        port,
                        transport,
                        direction,
                    }
                    .to_string()
                })
                .collect(),
            Rule::Protocol(number) => vec![IpProtocol(number).to_string()],
            Rule::Ssh => vec!["every one of `ssh_ports`, in, while `check_ssh_sessions` is true".into()],
        };
        rules.into_iter().map(|rule| DefaultRow { rule, reason })
    };
    DEFAULTS.iter().flat_map(row).collect()
}

impl PortRule {
    /// The ends at which the port makes a connection background.
    pub const fn sides(&self) -> &'static [Side] {
        match self.direction {
            Direction::In => &[Side::Local],
            Direction::Out => &[Side::Peer],
            Direction::Both => &[Side::Local, Side::Peer],
        }
    }
}

impl Cidr {
    /// Its first address.
    pub const fn network(&self) -> IpAddr {
        self.network
    }

    /// Leading bits that addresses in it have in common; 0 to 32 or 128.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The network this address is in: the bits behind the prefix are 0.
    pub(super) const fn masked(&self) -> Self {
        let network = match self.network {
            IpAddr::V4(address) => {
                let mask = match u32::MAX.checked_shl(32 - self.prefix as u32) {
                    Some(mask) => mask,
                    None => 0,
                };
                IpAddr::V4(std::net::Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = match u128::MAX.checked_shl(128 - self.prefix as u32) {
                    Some(mask) => mask,
                    None => 0,
                };
                IpAddr::V6(std::net::Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Self {
            network,
            prefix: self.prefix,
        }
    }
}

impl FromStr for PortRule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, rest) = text.split_once('/').ok_or("no protocol")?;
        let (transport, direction) = rest.split_once(' ').unwrap_or((rest, ""));
        Ok(Self {
            port: number.parse().map_err(|_| "not a port")?,
            transport: match transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => return Err("neither tcp nor udp"),
            },
            direction: match direction.trim() {
                "" => Direction::Both,
                "in" => Direction::In,
                "out" => Direction::Out,
                _ => return Err("neither in nor out"),
            },
        })
    }
}

impl TryFrom<String> for PortRule {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let direction = match self.direction {
            Direction::In => " in",
            Direction::Out => " out",
            Direction::Both => "",
        };
        write!(f, "{}/{transport}{direction}", self.port)
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(|_| "not an address")?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(prefix) => prefix.parse().map_err(|_| "not a number of bits")?,
        };
        if prefix > most {
            return Err("more bits than an address has");
        }
        Ok(Self { network, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

const PROTOCOLS: [(&str, u8); 12] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("eigrp", 88),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
];

/// As TOML has it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum ProtocolForm {
    /// Its number.
    Number(u8),
    /// Its name.
    Name(String),
}

impl TryFrom<ProtocolForm> for IpProtocol {
    type Error = &'static str;

    fn try_from(form: ProtocolForm) -> Result<Self, Self::Error> {
        match form {
            ProtocolForm::Number(number) => Ok(Self(number)),
            ProtocolForm::Name(name) => {
                let known = PROTOCOLS.iter().find(|(known, _)| *known == name);
                known.map(|(_, number)| Self(*number)).ok_or("not a known name")
            }
        }
    }
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_reads_back_from_what_people_are_shown() {
        let background = Background::of_a_node(&[]);
        let mut read = Background::default();
        for DefaultRow { rule, reason } in defaults_for_people() {
            assert!(!reason.is_empty());
            if let Ok(port) = rule.parse() {
                read.ports.insert(port);
            } else if let Ok(protocol) = ProtocolForm::Name(rule.clone()).try_into() {
                read.protocols.insert(protocol);
            } else {
                assert!(rule.contains("ssh_ports"), "{rule}");
            }
        }
        assert_eq!(read, background);
        let with_ssh = Background::of_a_node(&[2222]);
        let more: Vec<_> = with_ssh
            .ports
            .difference(&background.ports)
            .map(PortRule::to_string)
            .collect();
        assert_eq!(more, ["2222/tcp in"]);
    }

    #[test]
    fn networks_are_masked() {
        for (written, masked) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/0", "0.0.0.0/0"),
            ("fd12:3456::1/8", "fd00::/8"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(written.parse::<Cidr>().unwrap().masked().to_string(), masked);
        }
        for wrong in ["10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/-1", "", "/8"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
