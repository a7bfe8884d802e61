//! Takes connections and hands their requests to the application, whole and in time. Owns the sockets and the tasks of the connections;
//! never knows what a request means.
//!
//! ```text
//! accept ──> allow_from ──> connection caps ─> TLS ──> head ──> share of the client ──> body ──> application
//!            closed unread   closed unread      \_______ each within its time and size ______/   takes its time
//! ```
//!
//! A connection beyond the cap is accepted and closed at once: left in the queue of the kernel it would wait without knowing for what,
//! and so would everybody behind it. Whatever is refused here leaves a line in the log ([`audit`]).

mod audit;
mod connection;
mod listening;
mod patience;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, error, info, warn};
use vmstation_protocol::{Problem, SCHEMA};

use self::audit::Audit;
pub use self::{
    audit::shown,
    listening::{ListenError, Reach, listen},
    tls::{Tls, TlsError},
};
use crate::limits::{Clients, Place, Places};

/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time, of all clients.
    pub connections: usize,
    /// Connections at a time, of one client.
    pub connections_per_client: usize,
    /// From the first byte of a request to the end of its head; from the beginning of a connection to the end of its first head, and
    /// for the TLS handshake before.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Between two requests of a connection, and for a client that does not take its answer.
    pub idle_timeout: Duration,
    /// Longest body, bytes.
    pub body_bytes: usize,
    /// Requests of one client.
    pub requests_per_minute: NonZeroU32,
    /// Networks that may connect at all; `None`: everybody.
    pub allow_from: Option<Vec<IpNet>>,
    /// How long requests under way may take when the server stops.
    pub stop_within: Duration,
}

impl Limits {
    fn allows(&self, client: IpAddr) -> bool {
        self.allow_from
            .as_ref()
            .is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
    }
}

/// Where a request comes from, an extension of every request. An IPv4 address is always written as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub IpAddr);

/// What all connections share.
struct Server {
    app: TowerToHyperService<Router>,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    clients: Clients,
    places: Arc<Places>,
    audit: Audit,
}

/// A connection that may speak.
struct Admitted {
    stream: TcpStream,
    client: IpAddr,
    /// Its place among the connections.
    place: Place,
}

/// Serves until `shutdown` is over: then takes no more connections, lets go those without a request, and waits for the others, for
/// [`Limits::stop_within`] at most. Tells the service manager when it is ready and when it stops.
///
/// A request is not cut while the application works on it, whatever that takes, unless the client goes away: then the handler is dropped
/// where it awaits. So is everything if the future of this function is.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<Arc<Tls>>,
    app: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let stop_within = limits.stop_within;
    let server = Arc::new(Server {
        app: TowerToHyperService::new(app),
        tls,
        clients: Clients::new(limits.requests_per_minute),
        places: Arc::new(Places::new(limits.connections, limits.connections_per_client)),
        limits,
        audit: Audit::default(),
    });
    let (stop, stopping) = watch::channel(false);
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, Arc::clone(&server), stopping.clone()));
    }
    tell_service_manager(&[NotifyState::Ready]);
    shutdown.await;
    tell_service_manager(&[NotifyState::Stopping]);
    stop.send_replace(true);
    let all_ended = async { while accepting.join_next().await.is_some() {} };
    if timeout(stop_within, all_ended).await.is_err() {
        info!(after = ?stop_within, "closed the connections whose requests were not over");
        accepting.shutdown().await;
    }
}

/// Tells systemd, if it wants to hear: `READY=1`, `STOPPING=1`, `STATUS=`.
pub fn tell_service_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot tell the service manager");
    }
}

/// An answer that is not what was asked for.
pub fn problem(status: StatusCode, error: &str, message: impl Into<String>) -> Response {
    let problem = Problem {
        schema: SCHEMA,
        error: error.to_owned(),
        message: message.into(),
    };
    (status, Json(problem)).into_response()
}

/// One socket and its connections, until all of them have ended after `stopping`.
async fn accept(listener: TcpListener, server: Arc<Server>, mut stopping: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let until = stopping.clone();
    loop {
        let accepted = tokio::select! {
            // Once it stops, what waits in the queue is not taken.
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next() => {
                tell_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(admitted) = server.admit(stream, peer) {
                    connections.spawn(Arc::clone(&server).converse(admitted, until.clone()));
                }
            }
            Err(error) if is_of_the_client(&error) => debug!(%error, "a client was gone before it was accepted"),
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        tell_panic(ended);
    }
}

impl Server {
    /// Closes, unread, what comes from elsewhere or is too much.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Admitted> {
        let client = peer.ip().to_canonical();
        if !self.limits.allows(client) {
            self.audit
                .connection(client, &"its address is in none of the networks of allow_from");
            return None;
        }
        match self.places.take(client) {
            Ok(place) => Some(Admitted { stream, client, place }),
            Err(full) => {
                self.audit.connection(client, &full);
                None
            }
        }
    }

    async fn converse(self: Arc<Self>, admitted: Admitted, stopping: watch::Receiver<bool>) {
        let Admitted { stream, client, place } = admitted;
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%client, %error, "cannot set TCP_NODELAY");
        }
        match &self.tls {
            None => connection::converse(&self, stream, client, stopping).await,
            Some(tls) => match timeout(self.limits.header_timeout, tls.acceptor().accept(stream)).await {
                Ok(Ok(stream)) => connection::converse(&self, stream, client, stopping).await,
                Ok(Err(error)) => debug!(%client, %error, "no TLS connection came about"),
                Err(_elapsed) => debug!(%client, "no TLS connection came about in time"),
            },
        }
        drop(place);
    }
}

/// Whether an accept failed for the sake of that one connection (accept(2)).
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn tell_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection ended by a panic; this is a mistake in the server");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(allow_from: Option<&[&str]>) -> Limits {
        Limits {
            connections: 1,
            connections_per_client: 1,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            body_bytes: 0,
            requests_per_minute: NonZeroU32::MIN,
            allow_from: allow_from.map(|networks| networks.iter().map(|text| text.parse().unwrap()).collect()),
            stop_within: Duration::ZERO,
        }
    }

    #[test]
    fn networks_are_told_apart() {
        let allows = |limits: &Limits, client: &str| limits.allows(client.parse().unwrap());
        let open = limits(None);
        assert!(allows(&open, "203.0.113.1") && allows(&open, "2001:db8::1"));
        let none = limits(Some(&[]));
        assert!(!allows(&none, "127.0.0.1"));
        let some = limits(Some(&["192.0.2.0/24", "2001:db8::/32"]));
        assert!(allows(&some, "192.0.2.255") && allows(&some, "2001:db8:ffff::1"));
        assert!(!allows(&some, "192.0.3.0") && !allows(&some, "2001:db9::1"));
    }
}
