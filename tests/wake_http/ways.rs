//! The same over TLS.

use std::{
    fs,
    io::{Read as _, Write as _},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
use vmstation_wake_server::server::Limits;

use crate::{
    app,
    running::{Running, SHORT, generous, send, until_closed},
};

/// A server with a certificate of its own making, and a client's configuration that trusts it.
fn server(limits: Limits) -> (Running, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server = Running::start(app, limits, Some((&certificate, &key)));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, Arc::new(config))
}

#[test]
fn requests_come_over_tls() {
    let (server, config) = server(generous());
    let client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, server.connect());
    stream
        .write_all(b"GET /status HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("ended by close_notify");
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
}

#[test]
fn w4_a_handshake_that_never_ends_is_closed() {
    let (server, _config) = server(Limits {
        header_timeout: SHORT,
        ..generous()
    });
    assert_eq!(server.all(""), "");
    // The header of a TLS record whose rest does not come.
    let mut stream = server.connect();
    send(&mut stream, &[22, 3, 1, 2, 0, 1]);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn w4_a_client_silent_after_its_handshake_is_closed() {
    let (server, config) = server(Limits {
        header_timeout: SHORT,
        ..generous()
    });
    let client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, server.connect());
    stream.write_all(b"G").unwrap();
    let mut heard = Vec::new();
    // With or without close_notify: a client that was silent is owed nothing.
    let _ended = stream.read_to_end(&mut heard);
    assert!(heard.is_empty(), "{heard:?}");
    assert_eq!(until_closed(&mut stream.sock), "");
}

#[test]
fn plain_requests_to_tls_are_closed() {
    let (server, _config) = server(generous());
    let mut stream = server.connect();
    send(&mut stream, b"GET /status HTTP/1.1\r\n\r\n");
    let mut heard = Vec::new();
    let _reset_or_not = stream.read_to_end(&mut heard);
    assert!(!heard.starts_with(b"HTTP"), "{heard:?}");
}
