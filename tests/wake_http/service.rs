//! The server as a service: the manager's socket, and what it is told.

use std::{
    env,
    ffi::OsStr,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command},
    sync::Arc,
};

use axum::{Router, routing::post};
use tokio::{runtime, sync::Notify, time::timeout};
use vmstation_wake_server::server::{ListenError, Reach, listen, serve};

use crate::{
    app,
    running::{HANG, generous, send, statuses, until_closed},
};

/// Makes this program the service.
const AS_SERVICE: &str = "VMSTATION_TEST_AS_SERVICE";

#[test]
fn a_service_takes_the_managers_socket_and_tells_it() {
    if Service::is_this() {
        return block_on(be_the_service());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut service = Service::start(
        "service::a_service_takes_the_managers_socket_and_tells_it",
        listener,
        path.as_os_str(),
    );

    let told = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(told().trim_end(), "READY=1");
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        send(&mut stream, request.as_bytes());
        statuses(&until_closed(&mut stream))
    };
    assert_eq!(ask("GET /status HTTP/1.1\r\nConnection: close\r\n\r\n"), [200]);
    assert_eq!(ask("POST /stop HTTP/1.1\r\nConnection: close\r\n\r\n"), [200]);
    assert_eq!(told().trim_end(), "STOPPING=1");
    assert!(service.0.wait().unwrap().success());
}

#[test]
fn w7_a_socket_that_is_passed_reaches_no_farther_without_a_token() {
    if Service::is_this() {
        return block_on(async {
            // Nothing is bound if the passed one is used.
            let refused = listen("192.0.2.1:1".parse().unwrap(), Reach::Loopback).unwrap_err();
            let ListenError::Unguarded { address } = refused else {
                panic!("{refused}");
            };
            assert!(address.ip().is_unspecified());
        });
    }
    // On every address, and yet reached by none: nobody knows the port, and it is closed before anything is accepted.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut service = Service::start(
        "service::w7_a_socket_that_is_passed_reaches_no_farther_without_a_token",
        listener,
        OsStr::new(""),
    );
    assert!(service.0.wait().unwrap().success());
}

pub(crate) fn block_on(future: impl Future<Output = ()>) {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

async fn be_the_service() {
    let stop = Arc::new(Notify::new());
    let asked = Arc::clone(&stop);
    let stopping = Router::new().route("/stop", post(async move || asked.notify_one()));
    let listeners = listen("192.0.2.1:1".parse().unwrap(), Reach::Loopback).unwrap();
    let shutdown = async { timeout(HANG, stop.notified()).await.unwrap() };
    serve(listeners, None, app().merge(stopping), generous(), shutdown).await;
}

/// This program again, with one test. Ends with the value.
pub(crate) struct Service(Child);

impl Service {
    /// The socket is standard input, and the first that is passed: listenfd lets a manager name the number.
    pub(crate) fn start(test: &str, listener: TcpListener, notify: &OsStr) -> Self {
        let service = Command::new(env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(AS_SERVICE, "1")
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", "0")
            .env("NOTIFY_SOCKET", notify)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        Self(service)
    }

    /// Whether this process is it.
    pub(crate) fn is_this() -> bool {
        env::var_os(AS_SERVICE).is_some()
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}
