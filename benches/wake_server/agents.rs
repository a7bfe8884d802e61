//! The agents of all nodes, on one host with many addresses: a connection of each, which reports and then holds a question for orders. And
//! clients that ask one thing after the other.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmstation_agent::clock::BootTime;
use vmstation_protocol::{Activity, NodeName, PORT, Port, Report, SCHEMA, TOKEN_HEADER, Waking};
use vmstation_wake_server::auth::{Secret, agent_token};

use crate::{
    lan::Host,
    netns,
    server::{Nodes, SECRET, TOKEN},
};

/// Addresses that they share: a server may bound the connections of each.
const ADDRESSES: u8 = 100;
/// The server's.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// All agents.
pub(crate) struct Agents {
    connections: Vec<(NodeName, String, TcpStream)>,
    reports: Vec<String>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) took: Duration,
}

/// Asks as an operator, over one connection.
pub(crate) struct Client(TcpStream);

impl Agents {
    /// Connects them.
    pub(crate) fn connect(host: &Host, nodes: &Nodes) -> Result<Self> {
        for last in 1..=ADDRESSES {
            host.ip(&format!("address add 10.0.1.{last}/8 dev lan0"));
        }
        let secret = Secret::new(SECRET).context("the secret")?;
        let server = SocketAddr::from((SERVER, PORT));
        let connections = host.run(|| {
            let sources = (1..=ADDRESSES).cycle();
            let each = nodes.names().zip(sources).map(|(name, last)| {
                let own = SocketAddr::from(([10, 0, 1, last], 0));
                let token = agent_token(&secret, &name);
                (name, token, netns::connect_from(own, server))
            });
            each.collect::<Vec<_>>()
        });
        let reports = connections.iter().zip(nodes.macs()).map(|((name, _, _), mac)| {
            let report = Report {
                schema: SCHEMA,
                node: name.clone(),
                boot_id: "6f1e1c5c-4c1e-4b0e-9f0e-6d1f5f3f9a10".into(),
                resumes: 3,
                activity: Activity::Busy,
                reasons: vec!["somebody is logged in by SSH".into()],
                ports: vec![Port {
                    interface: "eth0".into(),
                    mac,
                    waking: Waking::Armed,
                }],
                role: None,
                version: "0.1.0".into(),
            };
            serde_json::to_string(&report).map_err(Into::into)
        });
        let reports = reports.collect::<Result<_>>()?;
        Ok(Self { connections, reports })
    }

    /// Each reports, and has its answer.
    pub(crate) fn report(&self) -> Result<()> {
        for ((name, token, stream), report) in self.connections.iter().zip(&self.reports) {
            let mut stream = stream;
            stream.set_read_timeout(Some(PATIENCE))?;
            let length = report.len();
            write!(
                stream,
                "POST /v1/nodes/{name}/report HTTP/1.1\r\nHost: master\r\n{TOKEN_HEADER}: {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{report}"
            )?;
        }
        self.connections
            .iter()
            .try_for_each(|(_, _, stream)| answer(stream).map(drop))
    }

    /// Each asks for orders, of which there are none.
    pub(crate) fn hold(&self) -> Result<()> {
        for (name, token, stream) in &self.connections {
            let mut stream = stream;
            write!(
                stream,
                "GET /v1/nodes/{name}/orders?after=0 HTTP/1.1\r\nHost: master\r\n{TOKEN_HEADER}: {token}\r\n\r\n"
            )?;
        }
        Ok(())
    }

    /// Questions without an answer, on connections that are open.
    pub(crate) fn still_held(&self) -> Result<usize> {
        let mut held = 0;
        for (_, _, stream) in &self.connections {
            let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            held += usize::from(poll(&mut polled, PollTimeout::ZERO)? == 0);
        }
        Ok(held)
    }
}

impl Client {
    /// Of the server at this port.
    pub(crate) fn connect(host: &Host, port: u16) -> Result<Self> {
        let stream = host.run(|| TcpStream::connect((SERVER, port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask("GET", path)
    }

    /// Wakes, and returns once everything was begun.
    pub(crate) fn wake_all(&mut self, query: &str) -> Result<()> {
        self.ask("POST", &format!("/wake/all{query}")).map(drop)
    }

    /// Calls every wake off.
    pub(crate) fn cancel_all(&mut self) -> Result<()> {
        self.ask("DELETE", "/wake/all").map(drop)
    }

    fn ask(&mut self, method: &str, path: &str) -> Result<Answer> {
        let began = BootTime::now();
        write!(
            self.0,
            "{method} {path} HTTP/1.1\r\nHost: master\r\n{TOKEN_HEADER}: {TOKEN}\r\n\r\n"
        )?;
        let body = answer(&self.0).with_context(|| format!("{method} {path}"))?;
        Ok(Answer {
            body,
            took: BootTime::now().since(began),
        })
    }
}

/// Reads an answer, which must be 200, whole.
fn answer(mut stream: &TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        let read = stream.read(&mut buffer).context("read the answer")?;
        ensure!(read > 0, "the server closed the connection");
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).take(4096).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        ensure!(
            head.starts_with("http/1.1 200 "),
            "{head}\n{}",
            String::from_utf8_lossy(&bytes[end..])
        );
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("an answer without a length")?.trim().parse()?;
        if bytes.len() >= end + 4 + length {
            return Ok(bytes.split_off(end + 4));
        }
    }
}
