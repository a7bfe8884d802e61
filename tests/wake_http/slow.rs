//! Clients that take their time, and handlers that may.

use std::{
    future,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, mpsc},
    time::Duration,
};

use axum::{Router, body::Bytes, routing::get};
use tokio::sync::Notify;
use vmstation_wake_server::server::Limits;

use crate::{
    app,
    real::TOKEN,
    running::{Answer, HANG, Running, SHORT, generous, is_closed, send, statuses, until_closed},
};

const STATUS: &[u8] = b"GET /status HTTP/1.1\r\nHost: master:9876\r\n\r\n";

/// Sends the bytes again and again with pauses until the server closes; what it has said then.
fn drip(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.set_read_timeout(Some(SHORT / 10)).unwrap();
    let mut heard = Vec::new();
    let rounds = HANG.as_millis() / (SHORT / 10).as_millis();
    for byte in bytes.iter().cycle().take(rounds.try_into().unwrap()) {
        // Closed for writing may still hold an answer to read.
        let _written = stream.write_all(&[*byte]);
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => return String::from_utf8(heard).unwrap(),
            Ok(read) => heard.extend(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if is_closed(error.kind()) => return String::from_utf8(heard).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("never closed; heard {:?}", String::from_utf8_lossy(&heard));
}

#[test]
fn w4_a_silent_client_is_closed() {
    let server = Running::with(
        app(),
        Limits {
            header_timeout: SHORT,
            ..generous()
        },
    );
    assert_eq!(server.all(""), "");
}

#[test]
fn w4_half_a_head_is_closed() {
    let server = Running::with(
        app(),
        Limits {
            header_timeout: SHORT,
            ..generous()
        },
    );
    for half in [
        "G",
        "GET /status HTTP/1.1\r\n",
        "GET /status HTTP/1.1\r\nHost: master\r\nX-",
    ] {
        assert_eq!(server.all(half), "", "{half:?}");
    }
}

#[test]
fn w4_a_head_that_never_ends_is_closed() {
    let server = Running::with(
        app(),
        Limits {
            header_timeout: SHORT,
            ..generous()
        },
    );
    let mut stream = server.connect();
    send(&mut stream, b"GET /status HTTP/1.1\r\nX-Slow: ");
    assert_eq!(drip(stream, b"a"), "");
    assert_eq!(drip(server.connect(), b"\r\n"), "", "empty lines before a request");
}

#[test]
fn w4_an_idle_connection_is_closed() {
    let server = Running::with(
        app(),
        Limits {
            idle_timeout: SHORT,
            ..generous()
        },
    );
    assert_eq!(statuses(&server.all(STATUS)), [200]);
    let wake = format!("POST /wake/worker-01 HTTP/1.1\r\nX-Auth-Token: {TOKEN}\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(statuses(&server.all(wake + "GET /status HTTP/1.1\r\n\r\n")).len(), 2);
}

#[test]
fn w4_the_second_head_has_its_deadline_too() {
    let server = Running::with(
        app(),
        Limits {
            header_timeout: SHORT,
            ..generous()
        },
    );
    let mut stream = server.connect();
    send(&mut stream, STATUS);
    assert_eq!(Answer::read(&mut stream).status, 200);
    send(&mut stream, b"GET /status HTTP/1.1\r\nX-Slow: ");
    assert_eq!(drip(stream, b"a"), "");
}

#[test]
fn w4_half_a_head_behind_a_request_is_closed() {
    let server = Running::with(
        app(),
        Limits {
            header_timeout: SHORT,
            idle_timeout: SHORT,
            ..generous()
        },
    );
    assert_eq!(statuses(&server.all([STATUS, b"GET /sta"].concat())), [200]);
}

#[test]
fn w4_a_stalled_body_is_told_and_closed() {
    let server = Running::with(
        app(),
        Limits {
            body_timeout: SHORT,
            ..generous()
        },
    );
    let head = format!("POST /wake/worker-01 HTTP/1.1\r\nX-Auth-Token: {TOKEN}\r\n");
    for body in [
        "Content-Length: 10\r\n\r\n",
        "Content-Length: 10\r\n\r\n{}",
        "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ] {
        let heard = server.all(format!("{head}{body}"));
        assert_eq!(statuses(&heard).last(), Some(&408), "{body:?}: {heard}");
        assert!(heard.contains("body_too_slow"), "{heard}");
    }
    for (body, drop) in [
        ("Content-Length: 4000\r\n\r\n", "a"),
        ("Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n"),
    ] {
        let mut stream = server.connect();
        send(&mut stream, format!("{head}{body}").as_bytes());
        assert_eq!(statuses(&drip(stream, drop.as_bytes())), [408], "{body:?}");
    }
}

#[test]
fn w4_a_client_that_takes_no_answer_is_closed() {
    let (dropped, told) = mpsc::channel();
    // More than both sockets buffer.
    let large = move || {
        let witness = Witness(vec![0; 64 << 20], dropped.clone());
        async { Bytes::from_owner(witness) }
    };
    let server = Running::with(
        Router::new().route("/large", get(large)),
        Limits {
            idle_timeout: SHORT,
            ..generous()
        },
    );
    let mut stream = server.connect();
    send(&mut stream, b"GET /large HTTP/1.1\r\n\r\n");
    told.recv_timeout(HANG).expect("the answer is given up");
}

/// Tells when it is dropped.
struct Witness(Vec<u8>, mpsc::Sender<()>);

impl AsRef<[u8]> for Witness {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _nobody_asks = self.1.send(());
    }
}

/// A route that holds its answer back until it is let go, and tells when it is asked.
fn held() -> (Router, Arc<Notify>, mpsc::Receiver<()>) {
    let release = Arc::new(Notify::new());
    let held = Arc::clone(&release);
    let (tell, told) = mpsc::channel();
    let handler = move || {
        let (held, tell) = (Arc::clone(&held), tell.clone());
        async move {
            tell.send(()).unwrap();
            held.notified().await;
            "at last"
        }
    };
    (Router::new().route("/held", get(handler)), release, told)
}

#[test]
fn a_handler_is_not_cut() {
    let (app, release, asked) = held();
    let server = Running::with(
        app,
        Limits {
            header_timeout: SHORT,
            body_timeout: SHORT,
            idle_timeout: SHORT,
            ..generous()
        },
    );
    let mut stream = server.connect();
    send(&mut stream, b"GET /held HTTP/1.1\r\n\r\n");
    asked.recv_timeout(HANG).unwrap();
    for _deadline in 0..4 {
        assert_eq!(server.all(""), "", "another connection, whose deadline passes");
    }
    release.notify_one();
    assert_eq!(Answer::read(&mut stream).body, "at last");
    assert_eq!(until_closed(&mut stream), "", "and then it is idle");
}

#[test]
fn a_client_that_goes_away_ends_its_handler() {
    let (dropped, told) = mpsc::channel();
    let (tell, asked) = mpsc::channel();
    let handler = move || {
        let (witness, tell) = (Witness(Vec::new(), dropped.clone()), tell.clone());
        async move {
            tell.send(()).unwrap();
            future::pending::<()>().await;
            drop(witness);
        }
    };
    let server = Running::with(Router::new().route("/held", get(handler)), generous());
    let mut stream = server.connect();
    send(&mut stream, b"GET /held HTTP/1.1\r\n\r\n");
    asked.recv_timeout(HANG).unwrap();
    drop(stream);
    told.recv_timeout(HANG).expect("the handler is dropped");
}

#[test]
fn stopping_lets_requests_end_and_idle_connections_go() {
    let (app, release, asked) = held();
    let mut server = Running::with(app, generous());
    let mut idle = server.connect();
    send(&mut idle, b"GET /nothing HTTP/1.1\r\n\r\n");
    assert_eq!(Answer::read(&mut idle).status, 404);
    let mut busy = server.connect();
    send(&mut busy, b"GET /held HTTP/1.1\r\n\r\n");
    asked.recv_timeout(HANG).unwrap();
    server.stop();
    assert_eq!(until_closed(&mut idle), "");
    release.notify_one();
    let heard = until_closed(&mut busy);
    assert!(heard.ends_with("at last"), "{heard}");
    // The kernel may still have queued it.
    if let Ok(mut late) = TcpStream::connect(server.address) {
        send(&mut late, STATUS);
        assert_eq!(until_closed(&mut late), "", "it takes no more connections");
    }
    server.ended();
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let (app, _release, asked) = held();
    let server = Running::with(
        app,
        Limits {
            stop_within: Duration::from_millis(10),
            ..generous()
        },
    );
    let mut stream = server.connect();
    send(&mut stream, b"GET /held HTTP/1.1\r\n\r\n");
    asked.recv_timeout(HANG).unwrap();
    server.ended();
    assert_eq!(until_closed(&mut stream), "");
}
