//! Too many requests, too many connections, and the wrong networks.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU32,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{net::TcpSocket, runtime};
use vmstation_wake_server::server::Limits;

use crate::{
    app,
    running::{Answer, HANG, Running, generous, send, statuses, until_closed},
    wait::wait_until,
};

const STATUS: &[u8] = b"GET /status HTTP/1.1\r\nHost: master:9876\r\n\r\n";

#[test]
fn w8_a_flood_is_429_with_the_time_to_wait() {
    let share = 5;
    let server = Running::with(
        app(),
        Limits {
            requests_per_minute: NonZeroU32::new(share).unwrap(),
            ..generous()
        },
    );
    let mut stream = server.connect();
    for _ in 0..share {
        send(&mut stream, STATUS);
        assert_eq!(Answer::read(&mut stream).status, 200);
    }
    // On the same connection, and on another one.
    send(&mut stream, STATUS);
    for answer in [Answer::read(&mut stream), server.ask(STATUS)] {
        assert_eq!(answer.status, 429, "{answer:?}");
        assert_eq!(answer.problem(), "too_many_requests");
        let after: u64 = answer
            .head
            .split("\r\nretry-after: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=12).contains(&after), "a minute has {share}: {after}");
    }
    let from_elsewhere = TcpStream::connect(server.address);
    assert!(from_elsewhere.is_ok(), "it is the requests that are refused");
}

#[test]
fn w8_connections_beyond_the_cap_are_closed_at_once() {
    let server = Running::with(
        app(),
        Limits {
            connections: 4,
            ..generous()
        },
    );
    let mut within: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for stream in &mut within {
        send(stream, STATUS);
        assert_eq!(Answer::read(stream).status, 200);
    }
    for _ in 0..100 {
        assert_eq!(until_closed(&mut server.connect()), "");
    }
    for stream in &mut within {
        send(stream, STATUS);
        assert_eq!(Answer::read(stream).status, 200, "those within are not concerned");
    }
    let last = within.pop().unwrap();
    last.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(until_closed(&mut { last }), "");
    let is_free = (0..1000).any(|_| {
        let mut bytes = STATUS.to_vec();
        bytes.splice(bytes.len() - 2.., *b"Connection: close\r\n\r\n");
        // The place is free a moment after the client has seen the end.
        let answered = statuses(&server.all(bytes)) == [200];
        if !answered {
            std::thread::sleep(Duration::from_millis(5));
        }
        answered
    });
    assert!(is_free, "a place that is left is free again");
}

#[test]
fn w8_one_client_does_not_take_the_places_of_others() {
    let server = Running::with(
        app(),
        Limits {
            connections_per_client: 2,
            ..generous()
        },
    );
    let mut within: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    for stream in &mut within {
        send(stream, STATUS);
        assert_eq!(Answer::read(stream).status, 200);
    }
    for _ in 0..10 {
        assert_eq!(until_closed(&mut server.connect()), "", "a third is closed");
    }
    let other = connect_from("127.0.0.2", server.address);
    let mut other = other.expect("the whole of 127.0.0.0/8 is this host");
    send(&mut other, STATUS);
    assert_eq!(
        Answer::read(&mut other).status,
        200,
        "another client has places of its own"
    );
    drop(within);
    let is_free = wait_until(HANG, || {
        let mut again = server.connect();
        send(&mut again, STATUS);
        let mut first = [0];
        again.read(&mut first).is_ok_and(|read| read == 1)
    });
    assert!(is_free, "a place that is left is free again");
}

/// A connection from another address of this host.
fn connect_from(address: &str, server: SocketAddr) -> io::Result<TcpStream> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0))?;
        socket.connect(server).await?.into_std()
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(HANG))?;
    Ok(stream)
}

#[test]
fn another_network_is_closed_unread() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let app = axum::Router::new().fallback(async || ASKED.store(true, Ordering::Relaxed));
    let from = |networks: &[&str]| Limits {
        allow_from: Some(networks.iter().map(|text| text.parse().unwrap()).collect()),
        ..generous()
    };
    let server = Running::with(app.clone(), from(&["192.0.2.0/24", "::1/128"]));
    assert_eq!(until_closed(&mut server.connect()), "");
    assert_eq!(server.all(STATUS), "");
    server.ended();
    assert!(!ASKED.load(Ordering::Relaxed));
    let server = Running::with(app, from(&["192.0.2.0/24", "127.0.0.0/8"]));
    assert_eq!(server.ask(STATUS).status, 200);
    assert!(ASKED.load(Ordering::Relaxed));
}
