//! What a browser sends for a page of elsewhere, also one whose name was made to lead here.

use crate::{
    app,
    real::{HOST_NAME, TOKEN},
    running::{Running, generous},
};

fn wake(host: &str, headers: &str) -> String {
    format!(
        "POST /wake/worker-01 HTTP/1.1\r\nHost: {host}\r\n{headers}X-Auth-Token: {TOKEN}\r\nContent-Length: 0\r\n\r\n"
    )
}

#[test]
fn w14_a_browser_may_ask_under_our_own_names_alone() {
    let server = Running::with(app(), generous());
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "[::1]",
        "192.0.2.7",
        "localhost",
        "master",
        "master.cluster.example",
        "Master.Cluster.Example",
        HOST_NAME,
    ] {
        for headers in [
            format!("Origin: http://{host}:{port}\r\n"),
            "Sec-Fetch-Site: same-origin\r\n".to_owned(),
        ] {
            let answer = server.ask(wake(&format!("{host}:{port}"), &headers));
            assert_eq!(answer.status, 200, "{host} {headers}: {answer:?}");
        }
    }
    for host in [
        "rebound.example.net",
        "127.0.0.1.example.net",
        "power.example.org.example.net",
        "worker-01.example.net",
        "user@master",
    ] {
        for headers in [
            format!("Origin: http://{host}:{port}\r\n"),
            "Sec-Fetch-Site: same-origin\r\n".to_owned(),
            "Sec-Fetch-Site: none\r\n".to_owned(),
        ] {
            let answer = server.ask(wake(&format!("{host}:{port}"), &headers));
            assert_eq!(answer.status, 403, "{host} {headers}: {answer:?}");
            let problem = answer.problem();
            assert!(["unknown_host", "foreign_origin"].contains(&&*problem), "{problem}");
        }
    }
    let rebound = "rebound.example.net";
    let answer = server.ask(wake(rebound, &format!("Origin: http://{rebound}\r\n")));
    assert_eq!(answer.problem(), "unknown_host");
    assert!(answer.body.contains("host_names"), "it says what to do: {answer:?}");
}

#[test]
fn w14_every_request_that_changes_something_is_looked_at() {
    let server = Running::with(app(), generous());
    let headers = "Host: rebound.example.net\r\nSec-Fetch-Site: same-origin\r\n";
    for request in [
        "POST /wake/all",
        "DELETE /wake/all",
        "DELETE /wake/worker-01",
        "POST /sleep/worker-01",
        "POST /v1/nodes/worker-01/report",
        "POST /v1/nodes/worker-01/leave",
        "DELETE /v1/nodes/worker-01/leave/1",
        "PUT /status",
        "POST /nothing",
    ] {
        let answer = server.ask(format!(
            "{request} HTTP/1.1\r\n{headers}X-Auth-Token: {TOKEN}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(
            (answer.status, answer.problem()),
            (403, "unknown_host".into()),
            "{request}"
        );
    }
}

#[test]
fn w14_programs_and_readers_may_use_any_name() {
    let server = Running::with(app(), generous());
    for host in ["rebound.example.net:9876", "master:9876", "192.0.2.1"] {
        assert_eq!(server.ask(wake(host, "")).status, 200, "{host}");
        let read = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: none\r\n\r\n");
        assert_eq!(server.ask(read).status, 200, "{host}");
    }
    let foreign = server.ask(wake("master:9876", "Origin: http://elsewhere.example\r\n"));
    assert_eq!((foreign.status, foreign.problem()), (403, "foreign_origin".into()));
}
