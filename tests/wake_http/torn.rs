//! Requests that are too large, or that two readers would take apart differently.

use crate::{
    app,
    real::TOKEN,
    running::{Running, generous, statuses},
};

fn wake(headers: &str, body: &str) -> String {
    format!("POST /wake/worker-01 HTTP/1.1\r\nHost: master:9876\r\nX-Auth-Token: {TOKEN}\r\n{headers}\r\n{body}")
}

#[test]
fn w5_too_large_a_head_is_431() {
    let server = Running::with(app(), generous());
    let long = "a".repeat(100 << 10);
    let thousand: String = (0..1000).map(|number| format!("X-{number}: a\r\n")).collect();
    let many = "X-A: a\r\n".repeat(65);
    for headers in [
        format!("X-Long: {long}\r\n"),
        format!("{long}: a\r\n"),
        thousand,
        many,
        long.clone(),
    ] {
        let heard = server.all_unreset(format!("GET /status HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!(statuses(&heard), [431], "{}", &headers[..20]);
    }
    let heard = server.all_unreset(format!("GET /{long} HTTP/1.1\r\n\r\n"));
    assert!(matches!(statuses(&heard)[..], [414 | 431]), "{heard}");
    let heard = server.all_unreset("a".repeat(100 << 10));
    assert!(matches!(statuses(&heard)[..], [400 | 431]), "{heard}");
}

#[test]
fn w5_too_long_a_body_is_413() {
    let server = Running::with(app(), generous());
    let long = "a".repeat(4097);
    let fits = "a".repeat(4096);
    for (headers, body) in [
        ("Content-Length: 4097\r\n", String::new()),
        ("Content-Length: 4097\r\nExpect: 100-continue\r\n", String::new()),
        ("Content-Length: 18446744073709551613\r\n", String::new()),
        ("Content-Length: 4097\r\n", long.clone()),
        ("Transfer-Encoding: chunked\r\n", format!("1001\r\n{long}\r\n0\r\n\r\n")),
        ("Transfer-Encoding: chunked\r\n", "1\r\na\r\n".repeat(4097)),
    ] {
        let heard = server.all_unreset(wake(headers, &body));
        assert_eq!(statuses(&heard), [413], "{headers:?}: {heard}");
        assert!(
            heard.contains("\r\nconnection: close\r\n") && heard.contains("body_too_large"),
            "{heard}"
        );
    }
    let answer = server.ask(wake("Content-Length: 4096\r\n", &fits));
    assert!(!matches!(answer.status, 413 | 500..), "{answer:?}");
}

/// Where a second request would be seen by a reader who takes the first apart differently.
const SMUGGLED: &str = "GET /status HTTP/1.1\r\nHost: master:9876\r\n\r\n";

#[test]
fn w6_two_lengths_are_one_request_or_none() {
    let server = Running::with(app(), generous());
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let whole = chunked.len();
    for headers in [
        format!("Content-Length: {whole}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {whole}\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {whole}\r\nConnection: keep-alive\r\n"),
        format!("transfer-encoding: Chunked\r\nCONTENT-LENGTH: {whole}\r\n"),
    ] {
        let heard = server.all(wake(&headers, &chunked));
        assert_eq!(statuses(&heard).len(), 1, "{headers:?}: {heard}");
        assert!(statuses(&heard)[0] < 500, "{heard}");
    }
    for headers in [
        "Content-Length: 0\r\nContent-Length: 44\r\n",
        "Content-Length: 44\r\nContent-Length: 0\r\n",
        "Content-Length: 0, 44\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x0\r\n",
        "Content-Length: 0 0\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length:\r\n",
        "Content-Length : 0\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Content-Length: 0\r\n",
    ] {
        let heard = server.all(wake(headers, SMUGGLED));
        assert_eq!(statuses(&heard), [400], "{headers:?}: {heard}");
    }
}

#[test]
fn w6_the_same_length_twice_is_that_length() {
    let server = Running::with(app(), generous());
    let length = SMUGGLED.len();
    let twice = format!("Content-Length: {length}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    let heard = server.all(wake(&twice, SMUGGLED));
    assert_eq!(statuses(&heard).len(), 1, "{heard}");
}

#[test]
fn w6_malformed_chunks_close() {
    let server = Running::with(app(), generous());
    for body in [
        "x\r\n",
        "-1\r\n",
        "fffffffffffffffff\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
    ] {
        let heard = server.all(wake("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUGGLED}")));
        assert_eq!(statuses(&heard), [400], "{body:?}: {heard}");
    }
    let old = format!("POST /wake/worker-01 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}");
    assert_eq!(statuses(&server.all(old)), [400]);
}
