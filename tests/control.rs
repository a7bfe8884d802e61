//! How the control socket bears clients that misbehave: malformed, endless, slow, too many, deaf. Needs no root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use vmstation_agent::{control::Response, report::Status};

use crate::support::fake_agent::{Agent, status};

/// What several test programs share.
mod support {
    pub(crate) mod fake_agent;
}

fn connect(agent: &Agent) -> UnixStream {
    let stream = UnixStream::connect(agent.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// The one line the server sends, and then the end of the connection.
fn answer(mut stream: &UnixStream) -> Value {
    let mut text = String::new();
    BufReader::new(&mut stream).read_line(&mut text).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["protocol"], 1);
    answer["response"].clone()
}

fn ask(agent: &Agent, line: &str) -> Value {
    let mut stream = connect(agent);
    stream.write_all(line.as_bytes()).unwrap();
    answer(&stream)
}

#[test]
fn a_driver_that_drops_the_question_is_stopping() {
    let agent = Agent::obliging();
    assert_eq!(
        ask(&agent, "{\"protocol\":1,\"request\":\"reset\"}\n"),
        json!({"done": {"message": "reset done"}})
    );
    let mut stopping = Agent::answering(|_| None);
    let mut stream = connect(&stopping);
    stream.write_all(b"{\"protocol\":1,\"request\":\"status\"}\n").unwrap();
    while stopping.seen().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    stopping.stop();
    let mut rest = Vec::new();
    let _ended = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(!stopping.socket().exists(), "the socket is left behind");
}

#[test]
fn malformed_requests_are_answered_and_never_arrive() {
    let agent = Agent::obliging();
    let too_long = format!("{{\"protocol\":1,\"request\":\"status\"{}}}\n", " ".repeat(4096));
    let endless = "x".repeat(1 << 20);
    for (line, code) in [
        ("nonsense\n", "bad_request"),
        (
            "{\"protocol\":1,\"request\":\"status\",\"force\":true}\n",
            "bad_request",
        ),
        (
            "{\"protocol\":1,\"request\":{\"hold\":{\"seconds\":0}}}\n",
            "bad_request",
        ),
        ("\u{0}\u{0}\n", "bad_request"),
        ("{\"protocol\":7,\"request\":\"status\"}\n", "unsupported_protocol"),
        (&too_long, "too_large"),
    ] {
        assert_eq!(ask(&agent, line)["refused"]["code"], code, "{line:.80}");
    }
    let stream = connect(&agent);
    // The server answers and closes long before it has taken all of it.
    let _cut_short = (&stream).write_all(endless.as_bytes());
    assert_eq!(answer(&stream)["refused"]["code"], "too_large");
    assert!(agent.seen().is_empty());
    assert!(agent.ctl(&["status"]).status.success(), "the server has had enough");
}

#[test]
fn a_request_in_pieces_or_without_its_line_feed_is_understood() {
    let agent = Agent::obliging();
    let mut stream = connect(&agent);
    for piece in ["{\"protocol\"", ":1,\"request\":", "\"reset\"}"] {
        stream.write_all(piece.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(answer(&stream), json!({"done": {"message": "reset done"}}));
}

#[test]
fn too_many_clients_are_turned_away_and_slow_ones_timed_out() {
    let agent = Agent::obliging();
    let silent: Vec<_> = (0..32).map(|_| connect(&agent)).collect();
    // Turned away without having asked: at once, not after a deadline.
    for _ in 0..100 {
        assert_eq!(answer(&connect(&agent))["refused"]["code"], "busy");
    }
    let told = agent.ctl(&["status"]);
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    for stream in &silent {
        assert_eq!(answer(stream)["refused"]["code"], "timeout");
    }
    assert!(agent.seen().is_empty());
    assert!(agent.ctl(&["status"]).status.success(), "the places are not free again");
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let agent = Agent::answering(|_| {
        Some(Response::Status(Box::new(Status {
            warnings: vec!["w".repeat(1000); 3000],
            ..status()
        })))
    });
    let mut stream = connect(&agent);
    stream.write_all(b"{\"protocol\":1,\"request\":\"status\"}\n").unwrap();
    // Longer than the server waits for its answer to be taken.
    thread::sleep(Duration::from_secs(7));
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken).unwrap();
    assert!(
        taken.len() < 3_000_000 && !taken.ends_with(b"\n"),
        "{} bytes",
        taken.len()
    );
    assert!(
        agent.ctl(&["status"]).status.success(),
        "a whole answer of that size is refused"
    );
}
