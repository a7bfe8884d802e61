//! The TCP connections to the SSH ports, from the kernel's socket diagnostics (sock_diag(7)). Owns nothing: a netlink socket lives for
//! one listing, so that no late answer can be taken for another's.
//!
//! The kernel filters by local port and state and tells when the last byte went each way. `/proc/net/tcp` would tell neither, at ten
//! times the price.

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

/// One accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The kernel's name for the socket, never used twice.
    pub(super) cookie: [u8; 8],
    /// By which processes hold it; 0 while nobody has accepted it, and once everybody has closed it.
    pub(super) inode: u64,
    /// Whether both sides can still talk.
    pub(super) established: bool,
    /// Port of the server.
    pub(super) local_port: u16,
    /// Peer's address; IPv4 never as IPv4-mapped IPv6.
    pub(super) peer: IpAddr,
    /// Peer's port.
    pub(super) peer_port: u16,
    /// Time since the last byte of payload, either way.
    pub(super) idle: Duration,
}

/// Where connections are listed.
pub(super) trait Connections {
    /// Connections, established or about to end, whose local port is one of `ports`; all TCP connections if `ports` is empty.
    fn list(&self, ports: &[u16]) -> io::Result<Vec<Connection>>;
    /// Inodes of the sockets that listen on one of `ports`; of all listening TCP sockets if `ports` is empty.
    fn listeners(&self, ports: &[u16]) -> io::Result<Vec<u64>>;
}

/// The connections of this network namespace.
#[derive(Debug)]
pub(super) struct HostConnections;

/// The kernel answers a dump at once; this only bounds the loss of an answer.
const ANSWER_WITHIN_S: i64 = 2;

/// Everything a server can have accepted, up to the end; not TIME_WAIT, which belongs to nobody.
const ACCEPTED: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING);

impl Connections for HostConnections {
    fn list(&self, ports: &[u16]) -> io::Result<Vec<Connection>> {
        list(ports, &ACCEPTED)
    }

    fn listeners(&self, ports: &[u16]) -> io::Result<Vec<u64>> {
        Ok(list(ports, &StateFlags::LISTEN)?
            .into_iter()
            .map(|listener| listener.inode)
            .collect())
    }
}

fn list(ports: &[u16], states: &StateFlags) -> io::Result<Vec<Connection>> {
    const ANY_PORT: &[u16] = &[0];
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for &port in if ports.is_empty() { ANY_PORT } else { ports } {
            dump(family, port, states, &mut sockets)?;
        }
    }
    Ok(sockets)
}

/// Adds the sockets of one family and local port (0: any).
fn dump(family: u8, local_port: u16, states: &StateFlags, connections: &mut Vec<Connection>) -> io::Result<()> {
    let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    netlink.bind_auto()?;
    netlink.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN_S))?;
    netlink.send(&request(family, local_port, states), 0)?;
    loop {
        let (answer, _) = netlink.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[length..];
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    connections.push(Connection::from(*response));
                }
                NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => return Err(io::Error::other("the kernel's answer was cut off")),
                NetlinkPayload::Noop | NetlinkPayload::InnerMessage(_) => {}
                _ => return Err(io::Error::other("the kernel's answer is of an unknown kind")),
            }
        }
    }
}

fn request(family: u8, local_port: u16, states: &StateFlags) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut socket_id = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    socket_id.source_port = local_port;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: states.clone(),
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

impl From<InetResponse> for Connection {
    fn from(response: InetResponse) -> Self {
        let tcp_info = response
            .nlas
            .iter()
            .find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
        let id = &response.header.socket_id;
        Self {
            cookie: id.cookie,
            inode: response.header.inode.into(),
            established: response.header.state == TCP_ESTABLISHED,
            local_port: id.source_port,
            peer: id.destination_address.to_canonical(),
            peer_port: id.destination_port,
            // Unknown is "just now": doubt keeps the host awake.
            idle: tcp_info.and_then(|info| last_byte(info)).unwrap_or_default(),
        }
    }
}

/// Time since the last byte of payload: `tcpi_last_data_sent` and `tcpi_last_data_recv` of `struct tcp_info` (`linux/tcp.h`), ms.
fn last_byte(tcp_info: &[u8]) -> Option<Duration> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECV: usize = 52;
    let millis = |at: usize| Some(u32::from_ne_bytes(tcp_info.get(at..at + 4)?.try_into().ok()?));
    Some(Duration::from_millis(
        millis(LAST_DATA_SENT)?.min(millis(LAST_DATA_RECV)?).into(),
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::{fd::AsRawFd, unix::fs::MetadataExt},
        thread::sleep,
    };

    use super::*;

    fn inode(stream: &TcpStream) -> u64 {
        fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd()))
            .unwrap()
            .ino()
    }

    /// The server's side only, its peer, its inode, its age; for IPv4, IPv6 and IPv4 on an IPv6 listener.
    #[test]
    fn lists_accepted_connections() {
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let listener = match TcpListener::bind(listen) {
                Err(_) if listen.contains(':') && !fs::exists("/proc/net/if_inet6").unwrap() => continue,
                listener => listener.unwrap(),
            };
            let port = listener.local_addr().unwrap().port();
            let mut client = TcpStream::connect((connect, port)).unwrap();
            let (mut server, _) = listener.accept().unwrap();

            let listed = HostConnections.list(&[port]).unwrap();
            let [connection] = listed.as_slice() else {
                panic!("{listen}: {listed:?}")
            };
            assert_eq!(connection.inode, inode(&server));
            assert_eq!(connection.peer, connect.parse::<IpAddr>().unwrap());
            assert_eq!(connection.peer_port, client.local_addr().unwrap().port());
            assert!(connection.established);

            sleep(Duration::from_millis(300));
            let silent = HostConnections.list(&[port]).unwrap();
            assert!(silent[0].idle >= Duration::from_millis(250), "{silent:?}");
            assert_eq!(silent[0].cookie, connection.cookie);
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            let typed = HostConnections.list(&[port]).unwrap();
            assert!(typed[0].idle < silent[0].idle, "{typed:?}");

            drop(client);
            server.read_exact(&mut [0]).unwrap_err();
            let ended = HostConnections.list(&[port]).unwrap();
            assert!(!ended[0].established, "{ended:?}");
            drop(server);
            let gone = HostConnections.list(&[port]).unwrap();
            assert!(gone.iter().all(|connection| connection.inode == 0), "{gone:?}");
        }
    }

    #[test]
    fn nobody_has_accepted_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(HostConnections.list(&[port]).unwrap(), []);
        let inode_of_listener = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()))
            .unwrap()
            .ino();
        assert_eq!(HostConnections.listeners(&[port]).unwrap(), [inode_of_listener]);
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(
            HostConnections
                .list(&[port])
                .unwrap()
                .iter()
                .all(|connection| connection.inode == 0)
        );
        let everything = HostConnections.list(&[]).unwrap();
        assert!(everything.iter().any(|connection| connection.inode == inode(&client)));
    }

    #[test]
    fn the_later_of_the_two_directions() {
        let mut info = [0xff; 104];
        info[44..48].copy_from_slice(&7000u32.to_ne_bytes());
        info[52..56].copy_from_slice(&300u32.to_ne_bytes());
        assert_eq!(last_byte(&info), Some(Duration::from_millis(300)));
        assert_eq!(last_byte(&info[..50]), None);
    }
}
