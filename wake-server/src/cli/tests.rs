use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread::{self, JoinHandle},
};

use vmstation_protocol::{WakeDocument, WakeOutcome};

use super::*;

/// Answers as many requests as it has answers, and hands back their heads.
fn server(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = thread::spawn(move || {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            stream.write_all(answer.as_bytes()).unwrap();
            heads.push(head.join("\n"));
        }
        heads
    });
    (url, heads)
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn wake(outcome: WakeOutcome) -> WakeDocument {
    WakeDocument {
        schema: SCHEMA,
        node: "worker-01".parse().unwrap(),
        mac: "52:54:00:12:34:af".parse().unwrap(),
        began: "2026-11-22T12:00:00Z".to_owned(),
        outcome,
        stages: Vec::new(),
        transport: None,
        interface: None,
        packets: 0,
        message: "said \u{1b}[2J".to_owned(),
    }
}

fn json(outcome: WakeOutcome) -> String {
    serde_json::to_string(&wake(outcome)).unwrap()
}

fn problem() -> String {
    r#"{"schema":1,"error":"any","message":"why"}"#.to_owned()
}

fn exit_of(url: &str, arguments: &[&str], alone: Option<Alone>) -> Result<(), Exit> {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "sesame\n").unwrap();
    let file = token.path().to_str().unwrap();
    let all = ["vmstation-wake", "--server", url, "--token-file", file, "--delay", "0"];
    let arguments = Arguments::try_parse_from(all.iter().chain(arguments)).unwrap();
    execute(&arguments, alone).map_err(|failure| failure.exit)
}

#[test]
fn the_exit_status_says_how_it_went() {
    let outcome = |status, outcome| answer(status, "application/json", &json(outcome));
    let refused = |status| answer(status, "application/json", &problem());
    for (answer, exit) in [
        (outcome("200 OK", WakeOutcome::Sent), Ok(())),
        (outcome("200 OK", WakeOutcome::Awake), Ok(())),
        (outcome("502 Bad Gateway", WakeOutcome::NotSent), Err(Exit::Failed)),
        (
            outcome("504 Gateway Timeout", WakeOutcome::TimedOut),
            Err(Exit::TimedOut),
        ),
        (outcome("409 Conflict", WakeOutcome::Cancelled), Err(Exit::Refused)),
        (refused("400 Bad Request"), Err(Exit::Usage)),
        (refused("401 Unauthorized"), Err(Exit::Unauthorized)),
        (refused("403 Forbidden"), Err(Exit::Refused)),
        (refused("404 Not Found"), Err(Exit::Failed)),
        (refused("409 Conflict"), Err(Exit::Refused)),
        (refused("429 Too Many Requests"), Err(Exit::Refused)),
        (refused("302 Found"), Err(Exit::Failed)),
        (answer("200 OK", "text/html", "<html>"), Err(Exit::Failed)),
        (String::new(), Err(Exit::Unreachable)),
    ] {
        let (url, heads) = server(vec![answer.clone()]);
        assert_eq!(exit_of(&url, &["worker-01"], None), exit, "{answer}");
        let heads = heads.join().unwrap();
        assert!(heads[0].starts_with("POST /wake/worker-01 HTTP/1.1\n"), "{heads:?}");
        assert!(heads[0].contains("\nx-auth-token: sesame"), "{heads:?}");
    }
}

#[test]
fn a_proof_is_waited_for_as_events() {
    let events = |last| {
        let (first, last) = (json(WakeOutcome::Waking), json(last));
        let body = format!("event: wake\ndata: {first}\n\n:\n\nevent: wake\ndata: {last}\n\n");
        answer("200 OK", "text/event-stream", &body)
    };
    for (last, exit) in [
        (WakeOutcome::Awake, Ok(())),
        (WakeOutcome::TimedOut, Err(Exit::TimedOut)),
        (WakeOutcome::Waking, Err(Exit::Failed)),
    ] {
        let (url, heads) = server(vec![events(last)]);
        assert_eq!(exit_of(&url, &["52-54-00-12-34-AF", "--verify"], None), exit);
        let heads = heads.join().unwrap();
        let first = "POST /wake/52:54:00:12:34:af?verify=true HTTP/1.1\naccept: text/event-stream";
        assert!(heads[0].starts_with(first), "{heads:?}");
    }
}

#[test]
fn what_failed_is_tried_again_as_often_as_wanted() {
    let failed = || answer("502 Bad Gateway", "application/json", &json(WakeOutcome::NotSent));
    let sent = answer("200 OK", "application/json", &json(WakeOutcome::Sent));
    let (url, heads) = server(vec![failed(), failed(), sent]);
    assert_eq!(exit_of(&url, &["worker-01", "--retries", "2"], None), Ok(()));
    assert_eq!(heads.join().unwrap().len(), 3);

    let (url, heads) = server(vec![failed(), failed()]);
    assert_eq!(exit_of(&url, &["worker-01", "--retries", "1"], None), Err(Exit::Failed));
    assert_eq!(heads.join().unwrap().len(), 2);

    let denied = answer("401 Unauthorized", "application/json", &problem());
    let (url, heads) = server(vec![denied]);
    assert_eq!(
        exit_of(&url, &["worker-01", "--retries", "9"], None),
        Err(Exit::Unauthorized)
    );
    assert_eq!(heads.join().unwrap().len(), 1, "a token does not become right");
}

#[test]
fn masters_are_woken_before_workers() {
    let all = WakeAllDocument {
        schema: SCHEMA,
        nodes: vec![wake(WakeOutcome::Sent)],
        without_mac: Vec::new(),
    };
    let all = answer("200 OK", "application/json", &serde_json::to_string(&all).unwrap());
    let (url, heads) = server(vec![all.clone(), all]);
    assert_eq!(exit_of(&url, &["--workers", "--masters"], None), Ok(()));
    let heads = heads.join().unwrap();
    assert!(heads[0].starts_with("POST /wake/all?role=master "), "{heads:?}");
    assert!(heads[1].starts_with("POST /wake/all?role=worker "), "{heads:?}");
}

#[test]
fn a_node_that_cannot_be_woken_is_a_failure() {
    let all = WakeAllDocument {
        schema: SCHEMA,
        nodes: Vec::new(),
        without_mac: vec!["worker-02".parse().unwrap()],
    };
    let all = WakeAllDocument {
        nodes: vec![wake(WakeOutcome::Sent), wake(WakeOutcome::TimedOut)],
        ..all
    };
    let failure = waking::Woken::of(all).failure.unwrap();
    assert_eq!(failure.exit, Exit::TimedOut);
    assert!(
        failure
            .message
            .contains("worker-01: not proved awake in time; no MAC address of worker-02")
    );
}

#[test]
fn without_a_server_it_is_done_alone() {
    fn alone(wanted: &Wanted, verify: bool) -> Result<WakeAllDocument, String> {
        assert_eq!((wanted, verify), (&Wanted::All, true));
        Ok(WakeAllDocument {
            schema: SCHEMA,
            nodes: vec![wake(WakeOutcome::Awake)],
            without_mac: Vec::new(),
        })
    }
    fn unable(_wanted: &Wanted, _verify: bool) -> Result<WakeAllDocument, String> {
        Err("no registry".to_owned())
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let arguments = ["--all", "--verify"];
    assert_eq!(exit_of(&nobody, &arguments, None), Err(Exit::Unreachable));
    assert_eq!(exit_of(&nobody, &arguments, Some(alone)), Ok(()));
    assert_eq!(exit_of(&nobody, &arguments, Some(unable)), Err(Exit::Failed));

    // A server that refuses is there: what it refuses is not done behind its back.
    let (url, heads) = server(vec![answer("403 Forbidden", "application/json", &problem())]);
    assert_eq!(exit_of(&url, &arguments, Some(alone)), Err(Exit::Refused));
    drop(heads.join().unwrap());
}

#[test]
fn a_status_is_found_by_name_and_by_card() {
    let status = r#"{"schema":1,"time":"","conflicts":[],"nodes":[{"name":"worker-01","role":"worker",
        "macs":["52:54:00:12:34:af"],"address":null,"state":"asleep","since":null,"last_report":null,"reasons":["a\u001bb"],
        "last_wake":null}]}"#;
    for (arguments, exit) in [
        (["--status", "worker-01"], Ok(())),
        (["--status", "5254.0012.34af"], Ok(())),
        (["--status", "worker-02"], Err(Exit::Failed)),
        (["--list", "--trace"], Ok(())),
    ] {
        let (url, heads) = server(vec![answer("200 OK", "application/json", status)]);
        assert_eq!(exit_of(&url, &arguments, None), exit);
        assert!(heads.join().unwrap()[0].starts_with("GET /status "));
    }
    let status: Status = serde_json::from_str(status).unwrap();
    assert_eq!(
        show::node(&status.nodes[0]),
        "worker-01 (worker): asleep since -, last report -\n  awake for: a\\u{1b}b"
    );
    let list = show::list(&status);
    assert!(
        list.contains("worker-01") && list.contains("52:54:00:12:34:af"),
        "{list}"
    );
}

#[test]
fn what_a_server_says_does_not_reach_the_terminal_as_it_is() {
    let all = WakeAllDocument {
        schema: SCHEMA,
        nodes: vec![wake(WakeOutcome::Sent)],
        without_mac: Vec::new(),
    };
    assert_eq!(show::wakes(&all), "worker-01: sent, not proved; said \\u{1b}[2J");
}

#[test]
fn wrong_usage_is_told() {
    for arguments in [
        &[][..],
        &["all"],
        &["--all", "worker-01"],
        &["--all", "--workers"],
        &["--list", "--verify"],
        &["ff:ff:ff:ff:ff:ff"],
        &["../etc"],
        &["worker-01", "--delay", "-1"],
        &["worker-01", "--delay", "nan"],
        &["worker-01", "--token", "secret"],
    ] {
        let all = ["vmstation-wake"].iter().chain(arguments);
        assert!(Arguments::try_parse_from(all).is_err(), "{arguments:?}");
    }
}

#[test]
fn w7_an_empty_token_file_is_a_fault_of_the_configuration() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(
        operators_token(Some(empty.path())).unwrap_err().exit,
        Exit::Configuration
    );
    let missing = empty.path().with_extension("missing");
    assert_eq!(operators_token(Some(&missing)).unwrap_err().exit, Exit::Configuration);
}
