//! Notices, and what takes them badly: servers on loopback.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use vmstation_protocol::{MacAddr, SCHEMA};

use super::*;

const SECRET: &str = "hunter2";
/// Ends a test that hangs.
const HANG: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Gives every request this answer, or none.
struct Server {
    address: String,
    heard: mpsc::UnboundedReceiver<(String, Value)>,
    task: AbortHandle,
}

impl Server {
    async fn start(answer: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), tell.clone()));
            }
        });
        let task = task.abort_handle();
        Self { address, heard, task }
    }

    fn target(&self, form: Form) -> Target {
        Target::new(
            form,
            &format!("http://{}/services/{SECRET}?token={SECRET}", self.address),
        )
        .unwrap()
    }

    async fn heard(&mut self) -> (String, Value) {
        timeout(HANG, self.heard.recv()).await.expect("nothing came").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Option<String>, tell: mpsc::UnboundedSender<(String, Value)>) {
    let mut read = String::new();
    loop {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).await.unwrap();
        read.push_str(std::str::from_utf8(&part[..length]).unwrap());
        let Some((head, body)) = read.split_once("\r\n\r\n") else {
            continue;
        };
        let Ok(body) = serde_json::from_str(body) else { continue };
        tell.send((head.to_owned(), body)).unwrap();
        break;
    }
    match answer {
        Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
        None => std::future::pending().await,
    }
}

fn wake(node: &str, outcome: WakeOutcome) -> WakeDocument {
    WakeDocument {
        schema: SCHEMA,
        node: node.parse().unwrap(),
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]).unwrap(),
        began: "2026-11-22T10:30:00Z".into(),
        outcome,
        stages: Vec::new(),
        transport: None,
        interface: None,
        packets: 7,
        message: "no answer to ARP <!channel>".into(),
    }
}

fn notice() -> Notice {
    Notice::of(&wake("worker-01", WakeOutcome::TimedOut), 0)
}

#[tokio::test]
async fn w13_a_wake_that_failed_is_told_and_no_other() {
    let (mut webhook, mut slack) = (
        Server::start(Some(OK.into())).await,
        Server::start(Some(OK.into())).await,
    );
    let notifier = Notifier::new(vec![webhook.target(Form::Webhook), slack.target(Form::Slack)]);
    for outcome in [
        WakeOutcome::Waking,
        WakeOutcome::Sent,
        WakeOutcome::Awake,
        WakeOutcome::Cancelled,
    ] {
        notifier.tell(&wake("worker-01", outcome));
    }
    notifier.tell(&wake("worker-02", WakeOutcome::TimedOut));
    notifier.tell(&wake("worker-03", WakeOutcome::NotSent));
    let (head, body) = webhook.heard().await;
    let path = format!("POST /services/{SECRET}?token={SECRET} HTTP/1.1\r\n");
    assert!(head.starts_with(&path), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    let time = body["time"].as_str().unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    let expected = json!({
        "event": "wake_failed",
        "node": "worker-02",
        "reason": "no answer to ARP <!channel>",
        "time": time,
    });
    assert_eq!(body, expected);
    let text = "worker-02 could not be woken: no answer to ARP &lt;!channel&gt;";
    assert_eq!(slack.heard().await.1, json!({ "text": text }));
    assert_eq!(webhook.heard().await.1["node"], "worker-03");
}

#[tokio::test]
async fn h5_a_redirect_is_not_followed() {
    let mut elsewhere = Server::start(Some(OK.into())).await;
    let location = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
        elsewhere.address
    );
    let server = Server::start(Some(location)).await;
    let error = deliver(&server.target(Form::Webhook), &notice()).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Redirected(307)), "{error}");
    assert!(elsewhere.heard.try_recv().is_err());
}

#[tokio::test]
async fn h5_a_refusal_is_a_failure_and_not_tried_again() {
    let mut server = Server::start(Some("HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n".into())).await;
    let error = deliver(&server.target(Form::Webhook), &notice()).await.unwrap_err();
    assert!(
        matches!(error, DeliveryError::Refused(StatusCode::TOO_MANY_REQUESTS)),
        "{error}"
    );
    server.heard().await;
    assert!(server.heard.try_recv().is_err());
}

#[tokio::test]
async fn h5_a_server_that_hangs_holds_nothing_up() {
    let (mut hangs, mut answers) = (Server::start(None).await, Server::start(Some(OK.into())).await);
    let notifier = Notifier::new(vec![hangs.target(Form::Webhook), answers.target(Form::Webhook)]);
    for number in 0..100 {
        // More than the queue takes: it is lost, and not waited for.
        notifier.tell(&wake(&format!("worker-{number}"), WakeOutcome::TimedOut));
    }
    assert_eq!(hangs.heard().await.1["node"], "worker-0");
    assert_eq!(
        answers.heard().await.1["node"],
        "worker-0",
        "after the deadline of the first"
    );
}

#[tokio::test]
async fn h5_no_error_tells_the_secret() {
    let server = Server::start(None).await;
    let target = server.target(Form::Webhook);
    assert_eq!(format!("{target:?}"), "Webhook at 127.0.0.1");
    server.task.abort();
    drop(server);
    tokio::task::yield_now().await;
    let error = deliver(&target, &notice()).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Unreachable(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
}

#[test]
fn h6_repetition_is_held_back_and_counted() {
    let at = |seconds| Moment::from_boot(Duration::from_secs(seconds));
    let name = |number: usize| format!("worker-{number}").parse::<NodeName>().unwrap();
    let mut limiter = Limiter::default();
    assert_eq!(limiter.admit(&name(0), at(0)), Some(0));
    assert_eq!(
        limiter.admit(&name(0), at(599)),
        None,
        "the same node within 10 minutes"
    );
    assert_eq!(limiter.admit(&name(0), at(600)), Some(1));
    for number in 2..AT_MOST {
        assert_eq!(limiter.admit(&name(number), at(700)), Some(0));
    }
    assert_eq!(limiter.admit(&name(99), at(3599)), None, "the hour has had its share");
    assert_eq!(limiter.admit(&name(99), at(3600)), Some(1), "the first is an hour ago");
}

#[test]
fn a_url_has_a_host() {
    for url in [
        "https://hooks.example.org/a",
        "http://192.0.2.1:8080",
        "https://[2001:db8::1]/",
    ] {
        assert!(Target::new(Form::Webhook, url).is_some(), "{url}");
    }
    for url in [
        "",
        "hooks.example.org",
        "/path",
        "ftp://hooks.example.org",
        "https://",
        "https:///a",
    ] {
        assert!(Target::new(Form::Webhook, url).is_none(), "{url}");
    }
}
