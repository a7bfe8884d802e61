//! A wake server of this process, and clients that write bytes.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU32,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::Router;
use serde_json::Value;
use tokio::{runtime, sync::oneshot};
use vmstation_wake_server::server::{Limits, Reach, Tls, listen, serve};

/// Ends a test that hangs. No test waits for it.
pub(crate) const HANG: Duration = Duration::from_secs(20);
/// A deadline that a test waits for.
pub(crate) const SHORT: Duration = Duration::from_millis(50);

/// Limits that no test reaches.
pub(crate) fn generous() -> Limits {
    Limits {
        connections: 1024,
        connections_per_client: 1024,
        header_timeout: HANG * 10,
        body_timeout: HANG * 10,
        idle_timeout: HANG * 10,
        body_bytes: 4096,
        requests_per_minute: NonZeroU32::new(1_000_000).unwrap(),
        allow_from: None,
        stop_within: HANG,
    }
}

/// A server. It stops when it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn with(app: Router, limits: Limits) -> Self {
        Self::start(|| app, limits, None)
    }

    /// With routes that are made where they are served, and with TLS: PEM files of certificate and key.
    pub(crate) fn start(
        app: impl FnOnce() -> Router + Send + 'static,
        limits: Limits,
        tls: Option<(&std::path::Path, &std::path::Path)>,
    ) -> Self {
        let tls = tls.map(|(certificate, key)| Arc::new(Tls::load(certificate, key).unwrap()));
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listeners = listen("127.0.0.1:0".parse().unwrap(), Reach::Loopback).unwrap();
                tell.send(listeners[0].local_addr().unwrap()).unwrap();
                serve(listeners, tls, app(), limits, async { drop(stopped.await) }).await;
            });
        });
        Self {
            address: told.recv_timeout(HANG).unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Begins to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for the end.
    pub(crate) fn ended(mut self) {
        self.stop();
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream
    }

    /// Sends these bytes and takes what comes until the server closes.
    pub(crate) fn all(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        send(&mut stream, bytes.as_ref());
        until_closed(&mut stream)
    }

    /// The same of a server that lets its client finish: no reset may cost it the answer.
    pub(crate) fn all_unreset(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        heard
    }

    /// The one answer to one request.
    pub(crate) fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, bytes.as_ref());
        Answer::read(&mut stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "the server panicked");
        }
    }
}

/// Writes; a server that has closed already is no mistake.
pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Ok(()) => {}
        Err(error) if is_closed(error.kind()) => {}
        Err(error) => panic!("{error}"),
    }
}

/// What comes until the server closes, which it has to.
pub(crate) fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if is_closed(error.kind()) => {}
        Err(error) => panic!("not closed ({error}) after {:?}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8(bytes).unwrap()
}

pub(crate) fn is_closed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Statuses of all answers in what a server sent. A refusal may give back what is no name, and so the beginning of a status line.
pub(crate) fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.")
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .collect()
}

/// One answer, read by its Content-Length.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In small letters.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(stream: &mut TcpStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            let read = stream.read(&mut byte).unwrap();
            assert_eq!(read, 1, "closed after {:?}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
            let (digits, _) = rest.split_once("\r\n").unwrap();
            digits.parse().unwrap()
        });
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        Self {
            status: statuses(&head.to_ascii_uppercase())[0],
            body: String::from_utf8(body).unwrap(),
            head,
        }
    }

    pub(crate) fn json(&self) -> Value {
        assert!(self.head.contains("\r\ncontent-type: application/json\r\n"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The word of a refusal.
    pub(crate) fn problem(&self) -> String {
        let problem: vmstation_protocol::Problem = serde_json::from_value(self.json()).unwrap();
        assert_eq!(problem.schema, vmstation_protocol::SCHEMA);
        assert!(!problem.message.is_empty());
        problem.error
    }
}
