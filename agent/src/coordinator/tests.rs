//! The client against a server on loopback that answers well, badly or not at all.

mod fake;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use vmstation_protocol::Activity;

use self::fake::{Fake, GENEROUS, Say, orders};
use super::{Board, Contact, Coordinator, Pace};
use crate::{clock::BootTime, config::WakeServer};

/// What nobody may see.
const SECRET: &str = "T0SECRET";
const LEAVE: &str = "POST /v1/nodes/worker-01/leave";
const WITHOUT: &str = "without its leave this node does not sleep";

/// A node with a token.
struct Node {
    token: PathBuf,
    _folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, format!("{SECRET}\n")).unwrap();
        Self { token, _folder: folder }
    }

    fn of(&self, url: String) -> Coordinator {
        self.at_pace(url, quick())
    }

    fn at_pace(&self, url: String, pace: Pace) -> Coordinator {
        let settings = WakeServer {
            url,
            token_file: Some(self.token.clone()),
            ca_file: None,
        };
        Coordinator::new(Some(&settings), "worker-01", pace)
    }
}

/// Tests wait for no pause; what must not happen is not waited for either.
fn quick() -> Pace {
    Pace {
        answer: GENEROUS,
        hold: GENEROUS,
        shortest_hold: Duration::ZERO,
        spacing: Duration::ZERO,
        retry_first: Duration::from_millis(2),
        retry_longest: Duration::from_millis(20),
    }
}

/// Contact, the board, and where orders come out.
fn contact(coordinator: &Coordinator) -> (Contact, Board, mpsc::Receiver<u64>) {
    let Coordinator::Server(server) = coordinator else {
        panic!("{coordinator:?}");
    };
    let (board, (sender, received)) = (Board::default(), mpsc::channel(4));
    let contact = Contact::start(Arc::clone(server), &board, sender);
    board.ports(None);
    (contact, board, received)
}

fn activity(report: &Value) -> &str {
    report["activity"]["is"].as_str().unwrap()
}

async fn asked(coordinator: Coordinator) -> Result<Option<super::Grant>, String> {
    let answer = coordinator.ask_leave("nobody uses the host").await;
    let shown = format!("{answer:?} {coordinator:?}");
    assert!(!shown.contains(SECRET), "{shown}");
    answer
}

#[tokio::test]
async fn leave_is_asked_with_the_token_of_the_moment_and_handed_back() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let coordinator = node.of(fake.url());
    let before = BootTime::now();
    let asking = tokio::spawn(asked(coordinator.clone()));
    let seen = fake.expect(LEAVE).await;
    assert_eq!(seen.token.as_deref(), Some(SECRET));
    assert_eq!(seen.body, json!({"schema": 1, "reason": "nobody uses the host"}));
    seen.answer(Say::Json(200, json!({"leave": "granted", "grant": 7, "for_s": 60})));
    let grant = asking.await.unwrap().unwrap().unwrap();
    assert_eq!(grant.number, 7);
    assert!(grant.is_over(BootTime(grant.until)) && !grant.is_over(before.after(Duration::from_secs(59))));
    assert!(grant.is_over(BootTime::now().after(Duration::from_secs(60))));

    fs::write(&node.token, "another").unwrap();
    let handing = tokio::spawn(async move { coordinator.hand_back(grant).await });
    let seen = fake.expect("DELETE /v1/nodes/worker-01/leave/7").await;
    assert_eq!(seen.token.as_deref(), Some("another"));
    seen.answer(orders(0, &[]));
    handing.await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let asking = tokio::spawn(asked(node.of(fake.url())));
    let refusal = json!({"leave": "refused", "reason": "a wake of it\n is under way", "again_in_s": 30});
    fake.expect(LEAVE).await.answer(Say::Json(200, refusal));
    let why = asking.await.unwrap().unwrap_err();
    let address = fake.address;
    assert_eq!(
        why,
        format!("the wake server at {address} refuses: a wake of it\\n is under way (to be asked again in 30 s)")
    );
}

#[tokio::test]
async fn an_answer_that_is_no_clear_yes_is_no_leave() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let problem = |status, error: &str| Say::Json(status, json!({"schema": 1, "error": error, "message": "it is so"}));
    for (say, expected) in [
        (Say::Redirect, "answers with status 307, a redirect"),
        (Say::Huge, "the answer is longer than 65536 bytes"),
        (problem(401, "unauthorized"), "does not take the token in "),
        (
            problem(401, "unauthorized"),
            "`vmstation-wake token worker-01`, it is so",
        ),
        (
            problem(404, "unknown_node"),
            "answers with status 404 Not Found: it is so",
        ),
        (
            problem(500, "broken"),
            "answers with status 500 Internal Server Error: it is so",
        ),
        (
            Say::Json(503, json!([])),
            "status 503 Service Unavailable: it does not say why",
        ),
        (Say::Text(""), "an answer that cannot be used"),
        (Say::Text("<html>granted</html>"), "an answer that cannot be used"),
        (
            Say::Json(200, json!({"leave": "granted"})),
            "an answer that cannot be used",
        ),
        (
            Say::Json(200, json!({"leave": "perhaps", "grant": 1, "for_s": 9})),
            "an answer that cannot be used",
        ),
        (
            Say::Json(200, json!({"leave": "granted", "grant": -1, "for_s": 9})),
            "an answer that cannot be used",
        ),
    ] {
        let asking = tokio::spawn(asked(node.of(fake.url())));
        fake.expect(LEAVE).await.answer(say);
        let why = asking.await.unwrap().unwrap_err();
        assert!(
            why.starts_with(&format!("the wake server at {} ", fake.address)),
            "{why}"
        );
        assert!(why.contains(expected) && why.ends_with(WITHOUT), "{why}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_leave() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let closed = tokio::spawn(asked(node.of(fake.url())));
    drop(fake.expect(LEAVE).await);
    let closed = closed.await.unwrap().unwrap_err();

    let short = Pace {
        hold: Duration::from_millis(200),
        ..quick()
    };
    let silent = tokio::spawn(asked(node.at_pace(fake.url(), short)));
    let held = fake.expect(LEAVE).await;
    let silent = silent.await.unwrap().unwrap_err();
    held.given_up().await;

    // Nobody else gets a port that is bound, and nobody listens on it.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let unreachable = asked(node.of(format!("http://{}", bound.local_addr().unwrap())))
        .await
        .unwrap_err();
    for (why, expected) in [
        (closed, "does not answer: "),
        (silent, "does not answer within 0.2 s; "),
        (unreachable, "Connection refused"),
    ] {
        assert!(why.contains(expected) && why.ends_with(WITHOUT), "{why}");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_used_is_named() {
    let (node, fake) = (Node::new(), Fake::new().await);
    for (text, expected) in [
        (Some(" \n"), "it is empty"),
        (Some("T0SECRET\r\nX: y"), "it is no line of ASCII"),
        (None, "No such file"),
    ] {
        match text {
            Some(text) => fs::write(&node.token, text).unwrap(),
            None => fs::remove_file(&node.token).unwrap(),
        }
        let why = asked(node.of(fake.url())).await.unwrap_err();
        assert!(
            why.contains(expected) && why.contains("/token") && why.ends_with(WITHOUT),
            "{why}"
        );
    }
}

/// One request over TLS: the certificate that was shown (PEM), the port, and what becomes of the connection.
fn over_tls() -> (String, u16, thread::JoinHandle<io::Result<()>>) {
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
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        let connection = rustls::ServerConnection::new(Arc::new(tls)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        // Its length is not looked at: the head alone says that the token arrived.
        let mut head = Vec::new();
        while !String::from_utf8_lossy(&head).contains(SECRET) {
            let mut part = [0; 4096];
            match stream.read(&mut part)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => head.extend_from_slice(&part[..length]),
            }
        }
        let body = r#"{"leave":"granted","grant":7,"for_s":60}"#;
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        stream.flush()
    });
    (made.cert.pem(), port, server)
}

#[tokio::test]
async fn a_server_is_believed_by_the_certificates_in_the_file_and_no_others() {
    let node = Node::new();
    let file = node.token.with_file_name("ca.pem");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    for (text, expected) in [
        (None, Ok(())),
        (Some(other.cert.pem()), Err("certificate")),
        (Some("nothing".to_owned()), Err("there is none in it")),
    ] {
        let (certificate, port, server) = over_tls();
        fs::write(&file, text.unwrap_or(certificate)).unwrap();
        let settings = WakeServer {
            url: format!("https://localhost:{port}"),
            token_file: Some(node.token.clone()),
            ca_file: Some(file.clone()),
        };
        let answer = asked(Coordinator::new(Some(&settings), "worker-01", quick())).await;
        match expected {
            Ok(()) => {
                assert_eq!(answer.unwrap().unwrap().number, 7);
                server.join().unwrap().unwrap();
            }
            Err(expected) => {
                let why = answer.unwrap_err();
                assert!(why.contains(expected) && why.ends_with(WITHOUT), "{why}");
                // It may have had no visitor.
                drop(TcpStream::connect(("127.0.0.1", port)));
                assert!(server.join().unwrap().is_err(), "the token was told");
            }
        }
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_named_has_no_leave() {
    let node = Node::new();
    let settings = WakeServer {
        url: "http://127.0.0.1:1".into(),
        token_file: Some(node.token.clone()),
        ca_file: None,
    };
    let coordinator = Coordinator::new(Some(&settings), "my_node", Pace::default());
    let why = asked(coordinator.clone()).await.unwrap_err();
    assert!(
        why.contains("\"my_node\" is no node name") && why.ends_with(WITHOUT),
        "{why}"
    );
    assert_eq!(coordinator.complaint(), Some(why));
    assert_eq!(
        asked(Coordinator::new(None, "my_node", Pace::default())).await,
        Ok(None)
    );
}

#[tokio::test]
async fn a_leave_is_handed_back_until_the_server_knows() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let grant = super::Grant {
        number: 9,
        until: Duration::ZERO,
    };
    let coordinator = node.of(fake.url());
    let handing = tokio::spawn(async move { coordinator.hand_back(grant).await });
    let what = "DELETE /v1/nodes/worker-01/leave/9";
    let broken = || Say::Json(503, Value::Null);
    fake.expect(what).await.answer(broken());
    // Nobody waits for the rest.
    handing.await.unwrap();
    fake.expect(what).await.answer(broken());
    drop(fake.expect(what).await);
    fake.expect(what).await.answer(orders(0, &[]));
}

#[tokio::test]
async fn every_change_is_reported_while_a_question_is_held() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let (contact, board, _orders) = contact(&node.of(fake.url()));
    board.activity(Activity::Busy, vec!["cpu: 80 %\u{202e}".into()], 3);
    let first = fake.report(0).await;
    assert_eq!(
        first,
        json!({
            "schema": 1, "node": "worker-01", "boot_id": crate::keeper::boot_id(), "resumes": 3, "activity": {"is": "busy"},
            "reasons": ["cpu: 80 %\\u{202e}"], "ports": [], "version": env!("CARGO_PKG_VERSION"),
        })
    );
    let held = fake.question(0).await;
    board.activity(Activity::Quiet { idle_s: 4 }, Vec::new(), 3);
    assert_eq!(fake.report(0).await["activity"], json!({"is": "quiet", "idle_s": 4}));
    board.activity(Activity::GoingToSleep { in_s: 60 }, Vec::new(), 3);
    assert_eq!(
        fake.report(0).await["activity"],
        json!({"is": "going_to_sleep", "in_s": 60})
    );

    // Before a sleep the question is dropped first, and nothing follows the report.
    board.activity(Activity::Sleeping, Vec::new(), 3);
    let caught_up = contact.caught_up(GENEROUS);
    held.given_up().await;
    assert_eq!(activity(&fake.report(0).await), "sleeping");
    timeout(GENEROUS, caught_up).await.unwrap();

    board.activity(Activity::Busy, Vec::new(), 4);
    let woken = fake.report(0).await;
    assert_eq!((activity(&woken), &woken["resumes"]), ("busy", &json!(4)));
    let held = fake.question(0).await;
    // A resume of which nobody told before.
    board.activity(Activity::Busy, Vec::new(), 5);
    held.given_up().await;
    assert_eq!(fake.report(0).await["resumes"], 5);
    let held = fake.question(0).await;
    drop(contact);
    held.given_up().await;
}

#[tokio::test]
async fn a_report_that_fails_holds_nobody_up() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let (contact, board, _orders) = contact(&node.of(fake.url()));
    board.activity(Activity::Sleeping, Vec::new(), 0);
    let caught_up = contact.caught_up(GENEROUS);
    fake.next().await.answer(Say::Text("no"));
    timeout(GENEROUS, caught_up).await.unwrap();
}

#[tokio::test]
async fn an_order_is_passed_on_once() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let (_contact, board, mut received) = contact(&node.of(fake.url()));
    board.activity(Activity::Busy, Vec::new(), 0);
    // Older than the contact: an earlier agent may have carried it out.
    fake.report(4).await;
    fake.question(4).await.answer(orders(6, &[5, 6]));
    assert_eq!(timeout(GENEROUS, received.recv()).await.unwrap(), Some(6));
    fake.question(6).await.answer(orders(6, &[5, 6]));
    fake.question(6).await.answer(orders(6, &[]));
    fake.question(6).await.answer(orders(8, &[7]));
    assert_eq!(timeout(GENEROUS, received.recv()).await.unwrap(), Some(7));
    // The server begins anew.
    fake.question(8).await.answer(orders(1, &[1]));
    fake.question(1).await.answer(orders(2, &[2]));
    assert_eq!(timeout(GENEROUS, received.recv()).await.unwrap(), Some(2));
    let held = fake.question(2).await;
    // Ordered while the host slept: whoever wakes it wants it awake.
    board.activity(Activity::Busy, Vec::new(), 1);
    held.given_up().await;
    let seen = fake.expect("POST /v1/nodes/worker-01/report").await;
    seen.answer(orders(3, &[3]));
    fake.question(3).await.answer(orders(4, &[4]));
    assert_eq!(timeout(GENEROUS, received.recv()).await.unwrap(), Some(4));
}

#[tokio::test]
async fn contact_is_taken_up_again() {
    let (node, mut fake) = (Node::new(), Fake::new().await);
    let (contact, board, mut received) = contact(&node.of(fake.url()));
    board.activity(Activity::Busy, Vec::new(), 0);
    fake.report(0).await;
    drop(fake.question(0).await);
    // A question that breaks off is followed by a report: the server may have forgotten everything.
    fake.report(0).await;
    fake.question(0).await.answer(Say::Text("no orders"));
    fake.report(0).await;
    let held = fake.question(0).await;
    assert_eq!(contact.failure(), None);

    let address = fake.stop().await;
    drop(held);
    let failed = async {
        while contact.failure().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(GENEROUS, failed).await.unwrap();
    let why = contact.failure().unwrap();
    assert!(
        why.starts_with(&format!("the wake server at {address} does not answer: ")),
        "{why}"
    );

    let mut fake = Fake::at(address).await;
    board.activity(Activity::Quiet { idle_s: 1 }, Vec::new(), 0);
    while activity(&fake.report(0).await) != "quiet" {}
    let question = fake.question(0).await;
    assert_eq!(contact.failure(), None);
    question.answer(orders(1, &[1]));
    assert_eq!(timeout(GENEROUS, received.recv()).await.unwrap(), Some(1));
}
