//! Names that are none, and tokens that are none.

use crate::{
    app,
    real::TOKEN,
    running::{Running, generous},
};

fn wake(name: &str, headers: &str) -> Vec<u8> {
    format!("POST /wake/{name} HTTP/1.1\r\nHost: master:9876\r\n{headers}Content-Length: 0\r\n\r\n").into_bytes()
}

#[test]
fn w3_what_is_no_name_is_refused_and_not_given_back() {
    let server = Running::with(app(), generous());
    let token = format!("X-Auth-Token: {TOKEN}\r\n");
    for name in [
        "%2f..%2f..%2fetc%2fpasswd",
        "..%2f..",
        "%2e%2e",
        "%00",
        "worker-01%00",
        "%0d%0aX-Injected:%20yes",
        "worker-01%0d%0a%0d%0aHTTP/1.1%20200%20OK",
        "%ff%fe",
        "%c3%a9",
        "%zz",
        "%",
        "%3cscript%3e",
        "a%20b",
    ] {
        let answer = server.ask(wake(name, &token));
        assert!(matches!(answer.status, 400 | 404), "{name}: {answer:?}");
        answer.problem();
        assert!(!answer.head.contains("x-injected"), "{name}: {answer:?}");
        let raw = ['\0', '\r', '\n', '<'];
        assert!(
            !answer.body.contains(raw) || name.contains("script"),
            "{name}: {answer:?}"
        );
    }
    for name in ["../../etc/passwd", "a/b", "", "%2f/..", "//"] {
        assert!(matches!(server.ask(wake(name, &token)).status, 400 | 404), "{name}");
    }
    for name in ["a\0b", "a b", "a\u{7f}", "a\r\nb"] {
        let statuses = crate::running::statuses(&server.all(wake(name, &token)));
        assert_eq!(statuses, [400], "{name:?}");
    }
}

#[test]
fn w7_every_wrong_token_gets_the_same_answer() {
    let server = Running::with(app(), generous());
    let refusal = |headers: &[u8]| {
        let mut request = b"POST /wake/worker-01 HTTP/1.1\r\nHost: master:9876\r\n".to_vec();
        request.extend(headers);
        request.extend(b"Content-Length: 0\r\n\r\n");
        let answer = server.ask(request);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.problem(), "unauthorized");
        let head: Vec<_> = answer
            .head
            .lines()
            .filter(|line| !line.starts_with("date:"))
            .map(str::to_owned)
            .collect();
        (head, answer.body)
    };
    let missing = refusal(b"");
    for headers in [
        &b"X-Auth-Token: wrong\r\n"[..],
        b"X-Auth-Token:\r\n",
        b"X-Auth-Token: \xff\xfe\r\n",
        b"X-Auth-Token: opensesam\xc3\xa9\r\n",
        b"X-Auth-Token: opensesame\r\nX-Auth-Token: opensesame\r\n",
        b"X-Auth-Token: opensesame\r\nx-auth-token: wrong\r\n",
        b"X-Auth-Token: opensesame, opensesame\r\n",
        b"X-Auth-Token: worker-01:00\r\n",
        b"Authorization: Bearer opensesame\r\n",
    ] {
        assert_eq!(refusal(headers), missing, "{:?}", String::from_utf8_lossy(headers));
    }
    let right = server.ask(wake("worker-01", "X-Auth-Token: opensesame\r\n"));
    assert!(!matches!(right.status, 401 | 500..), "{right:?}");
}
