//! A node that never comes: who asked, who measures and who is told.

use std::{io::Write as _, net::TcpListener};

use serde_json::Value;
use vmstation_wake_server::notify::{Form, Notifier, Target};

use crate::{
    real::{Cards, TOKEN, with},
    running::{HANG, Running, generous},
    wait::wait_until,
};

#[test]
fn w13_a_wake_that_fails_is_answered_counted_and_told() {
    let told = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", told.local_addr().unwrap());
    let target = Target::new(Form::Webhook, &url).unwrap();
    let app = || with(Cards::Sleep, Notifier::new(vec![target]));
    let server = Running::start(app, generous(), None);

    let answer = server.ask(format!(
        "POST /wake/worker-01?verify=true HTTP/1.1\r\nHost: master\r\nX-Auth-Token: {TOKEN}\r\n\r\n"
    ));
    assert_eq!(
        (answer.status, &answer.json()["outcome"]),
        (504, &"timed_out".into()),
        "{answer:?}"
    );

    told.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_until(HANG, || {
        accepted = told.accept().ok();
        accepted.is_some()
    });
    let (mut stream, _) = accepted.expect("nobody was told");
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let notice: Value = body(&mut stream);
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert_eq!(
        (&notice["event"], &notice["node"]),
        (&"wake_failed".into(), &"worker-01".into())
    );
    assert_eq!(notice["reason"], answer.json()["message"]);

    let metrics = server.ask("GET /metrics HTTP/1.1\r\nHost: master\r\n\r\n").body;
    let counted = metrics
        .lines()
        .find(|line| line.contains("timed_out") && line.ends_with(" 1"));
    assert!(counted.is_some_and(|line| line.contains("worker-01")), "{metrics}");
}

/// The document that a request brings.
fn body(stream: &mut impl std::io::Read) -> Value {
    let mut read = Vec::new();
    loop {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).unwrap();
        assert_ne!(length, 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend(&part[..length]);
        let text = String::from_utf8_lossy(&read);
        let document = text.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body));
        if let Some(Ok(document)) = document {
            return document;
        }
    }
}
