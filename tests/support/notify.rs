//! `notify test` through a real agent: to a server on loopback, to nobody, and to the log.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::agent::Home;

/// The part of the URL nobody may see.
const SECRET: &str = "T0SECRET";
/// Ends a test that hangs; not a measure.
const GENEROUS: Duration = Duration::from_secs(60);

fn configuration(notification: &str) -> String {
    format!("[general]\ncheck_interval = \"1s\"\n[activity_detection]\nnetwork_interfaces = [\"lo\"]\n{notification}")
}

fn webhook(port: u16) -> String {
    configuration(&format!(
        "[notification]\nenabled = true\nmethod = \"webhook\"\nwebhook_url = \"http://127.0.0.1:{port}/{SECRET}\"\n"
    ))
}

pub(crate) fn notify_test_says_what_became_of_it() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let home = Home::new(&webhook(port));
    let agent = home.start();
    let server = thread::spawn(move || answer_once(&listener));
    let output = agent.ctl(&["notify", "test"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {}", agent.log());
    assert!(
        said.starts_with(&format!("delivered to 127.0.0.1:{port} with status 200 in ")),
        "{said}"
    );
    let body = server.join().unwrap();
    assert_eq!(body["event"], "test");
    assert_eq!(body["node"], agent.status()["node"]);

    // Nobody listens any more.
    let output = agent.ctl(&["notify", "test"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot reach 127.0.0.1:{port}")), "{said}");
    let log = agent.log();
    assert!(log.contains("notice"), "{log}");
    assert!(!log.contains(SECRET) && !said.contains(SECRET), "{log}{said}");
}

pub(crate) fn notify_test_says_that_the_log_has_it() {
    let home = Home::new(&configuration(""));
    let agent = home.start();
    let output = agent.ctl(&["notify", "test"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("written to the log"), "{said}");
    assert!(agent.log().contains("asked for by"), "{}", agent.log());
}

/// The certificate is trusted only through `SSL_CERT_FILE`, as one of a private authority is through `/etc/ssl`.
pub(crate) fn a_certificate_the_system_trusts_is_accepted() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let home = Home::new(&configuration(&format!(
        "[notification]\nenabled = true\nmethod = \"webhook\"\nwebhook_url = \"https://localhost:{port}/{SECRET}\"\n"
    )));
    let trusted = home.path().join("trusted.pem");
    fs::write(&trusted, made.cert.pem()).unwrap();
    let mut command = home.command();
    command.env("SSL_CERT_FILE", &trusted);
    let agent = home.start_as(command);
    let server = thread::spawn(move || {
        let connection = rustls::ServerConnection::new(Arc::new(tls)).unwrap();
        take_request(&mut rustls::StreamOwned::new(connection, accept(&listener)))
    });
    let output = agent.ctl(&["notify", "test"]);
    let (said, failed) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        said.starts_with(&format!("delivered to localhost:{port} with status 200")),
        "{said}{failed}"
    );
    assert_eq!(server.join().unwrap()["event"], "test");
}

/// The document of the one request, which is answered with 200.
fn answer_once(listener: &TcpListener) -> Value {
    take_request(&mut accept(listener))
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(GENEROUS)).unwrap();
    stream
}

fn take_request(stream: &mut (impl Read + Write)) -> Value {
    let mut read = Vec::new();
    loop {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).unwrap();
        assert!(length > 0, "the request ends too early");
        read.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&read);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
            return body;
        }
    }
}
