//! Deliveries to servers on loopback that answer well, badly or not at all.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Zoned;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{
    Delivered, DeliveryError, Limiter, Notice, NoticeEvent, Notifier, QUEUE,
    limiter::{AT_MOST, SAME_WITHIN, WINDOW},
};
use crate::{clock::BootTime, config::NotificationMethod};

/// Ends a test that hangs; not a measure.
const GENEROUS: Duration = Duration::from_secs(60);
/// The part of a URL nobody may see.
const SECRET: &str = "T0SECRET";
const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// What a server does with each request after it has read it.
#[derive(Clone, Copy)]
enum Manner {
    Says(&'static str),
    /// Never answers.
    Hangs,
    /// Begins an answer that never ends.
    Pours,
}

struct Server {
    address: String,
    requests: mpsc::UnboundedReceiver<(String, Value)>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, manner, sender.clone()));
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/services/{SECRET}?token={SECRET}", self.address)
    }

    fn webhook(&self) -> NotificationMethod {
        NotificationMethod::Webhook { url: self.url() }
    }

    async fn request(&mut self) -> (String, Value) {
        timeout(GENEROUS, self.requests.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, manner: Manner, requests: mpsc::UnboundedSender<(String, Value)>) {
    let mut read = Vec::new();
    let request = loop {
        let mut part = [0; 4096];
        let Ok(length @ 1..) = stream.read(&mut part).await else {
            return;
        };
        read.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            break (head.to_owned(), body);
        }
    };
    let _test_is_over = requests.send(request);
    let mut answer = match manner {
        Manner::Says(answer) => answer.to_owned(),
        Manner::Hangs => return std::future::pending().await,
        Manner::Pours => "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n".to_owned(),
    };
    while stream.write_all(answer.as_bytes()).await.is_ok() && matches!(manner, Manner::Pours) {
        answer = "x".repeat(16 << 10);
    }
}

fn notice(event: NoticeEvent, reason: &str, sleeps_at: Option<Zoned>) -> Notice {
    Notice {
        event,
        reason: reason.into(),
        sleeps_at,
    }
}

fn at_half_past_ten() -> Zoned {
    "2026-11-22T10:30:00+01:00[+01:00]".parse().unwrap()
}

async fn test(method: NotificationMethod) -> Result<Delivered, DeliveryError> {
    let outcome = Notifier::new(method, "worker-01")
        .deliver_now(notice(NoticeEvent::Test, "a try", None))
        .await;
    if let Err(error) = &outcome {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET), "{shown}");
    }
    outcome
}

#[tokio::test]
async fn the_webhook_gets_its_document() {
    let mut server = Server::new(Manner::Says(OK)).await;
    let notifier = Notifier::new(server.webhook(), "worker-01");
    notifier.tell(notice(
        NoticeEvent::GoingToSleep,
        "idle for 2 h",
        Some(at_half_past_ten()),
    ));
    let (head, body) = server.request().await;
    assert!(
        head.starts_with(&format!("POST /services/{SECRET}?token={SECRET} HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    let time = body["time"].as_str().unwrap();
    assert!(
        time.parse::<jiff::Timestamp>().is_ok() && !time.ends_with('Z'),
        "{time}"
    );
    let expected = json!({
        "event": "going_to_sleep",
        "node": "worker-01",
        "reason": "idle for 2 h",
        "time": time,
        "sleeps_at": "2026-11-22T10:30:00+01:00",
    });
    assert_eq!(body, expected);

    notifier.tell(notice(NoticeEvent::Sleeping, "idle for 2 h", None));
    assert_eq!(server.request().await.1["sleeps_at"], Value::Null);
    assert!(notifier.drained(GENEROUS).await);
    assert_eq!(notifier.stats().sent, 2);
}

#[tokio::test]
async fn slack_gets_a_sentence_without_markup() {
    let mut server = Server::new(Manner::Says(OK)).await;
    let slack = |channel: Option<&str>| NotificationMethod::Slack {
        url: server.url(),
        channel: channel.map(Into::into),
    };
    let with_channel = Notifier::new(slack(Some("#power")), "worker-01");
    let without = Notifier::new(slack(None), "worker-01");
    with_channel.tell(notice(
        NoticeEvent::GoingToSleep,
        "<!channel> & more",
        Some(at_half_past_ten()),
    ));
    let text = "worker-01 goes to sleep at 10:30:00 +01:00: &lt;!channel&gt; &amp; more";
    assert_eq!(server.request().await.1, json!({"text": text, "channel": "#power"}));
    without.tell(notice(NoticeEvent::Awake, "", None));
    assert_eq!(server.request().await.1, json!({"text": "worker-01 is awake"}));
}

#[test]
fn the_names_of_events_are_those_of_the_document() {
    for event in [
        NoticeEvent::GoingToSleep,
        NoticeEvent::Sleeping,
        NoticeEvent::Awake,
        NoticeEvent::SleepRefused,
        NoticeEvent::SleepFailed,
        NoticeEvent::Test,
    ] {
        assert_eq!(serde_json::to_value(event).unwrap(), event.name());
    }
}

#[tokio::test]
async fn the_log_needs_no_delivery() {
    assert_eq!(test(NotificationMethod::Log).await.unwrap(), Delivered::Logged);
    let notifier = Notifier::new(NotificationMethod::Log, "worker-01");
    notifier.tell(notice(NoticeEvent::Awake, "", None));
    assert!(notifier.drained(GENEROUS).await);
    assert_eq!(notifier.stats(), super::Stats::default());
}

#[tokio::test]
async fn h5_a_redirect_is_a_failure_and_not_followed() {
    let mut elsewhere = Server::new(Manner::Says(OK)).await;
    let location = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        elsewhere.url()
    );
    let server = Server::new(Manner::Says(location.leak())).await;
    let error = test(server.webhook()).await.unwrap_err();
    assert!(
        matches!(error, DeliveryError::Redirected { status: 307, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("redirects are not followed"), "{error}");
    assert!(elsewhere.requests.try_recv().is_err());
}

#[tokio::test]
async fn h5_a_429_is_a_failure_and_not_tried_again() {
    let refusal = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let mut server = Server::new(Manner::Says(refusal)).await;
    let error = test(server.webhook()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("answered with status 429 Too Many Requests"),
        "{error}"
    );
    server.request().await;
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn h5_a_hanging_server_is_given_up() {
    let server = Server::new(Manner::Hangs).await;
    let error = timeout(GENEROUS, test(server.webhook())).await.unwrap().unwrap_err();
    assert!(matches!(error, DeliveryError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn h5_a_huge_answer_is_not_read() {
    let server = Server::new(Manner::Pours).await;
    let delivered = timeout(GENEROUS, test(server.webhook())).await.unwrap().unwrap();
    assert!(matches!(delivered, Delivered::Sent { status: 200, .. }), "{delivered}");
}

#[tokio::test]
async fn h5_nobody_there_is_a_failure_in_words() {
    let server = Server::new(Manner::Hangs).await;
    let method = server.webhook();
    let address = server.address.clone();
    server.task.abort();
    drop(server);
    tokio::task::yield_now().await;
    let error = test(method).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Unreachable { .. }), "{error}");
    let words = error.to_string();
    assert!(
        words.contains(&address) && words.contains("Connection refused"),
        "{words}"
    );
}

#[tokio::test]
async fn h5_a_certificate_nobody_trusts_is_refused_in_words() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut connection = rustls::ServerConnection::new(Arc::new(tls)).unwrap();
        let handshake = connection.complete_io(&mut stream);
        handshake.map(|_| connection.is_handshaking())
    });
    let url = format!("https://localhost:{port}/{SECRET}");
    let error = test(NotificationMethod::Webhook { url }).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Unreachable { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("certificate"), "{words}");
    assert!(
        server.join().unwrap().is_err(),
        "the agent must not accept the certificate"
    );
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn h5_no_secret_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let server = Server::new(Manner::Says("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")).await;
    let notifier = Notifier::new(server.webhook(), "worker-01");
    notifier.tell(notice(NoticeEvent::SleepFailed, "tried\nin vain", None));
    assert!(notifier.drained(GENEROUS).await);
    let stats = notifier.stats();
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("sleep_failed") && logged.contains("notice not delivered"),
        "{logged}"
    );
    assert!(stats.last_error.as_ref().unwrap().contains("500"), "{stats:?}");
    for shown in [logged, format!("{stats:?}"), format!("{notifier:?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[tokio::test]
async fn h5_telling_never_waits_and_the_queue_is_bounded() {
    let mut server = Server::new(Manner::Hangs).await;
    let notifier = Notifier::new(server.webhook(), "worker-01");
    // The runtime has one thread and nothing here yields to it: nothing is delivered meanwhile.
    for number in 0..AT_MOST {
        notifier.tell(notice(NoticeEvent::SleepRefused, &number.to_string(), None));
    }
    notifier.0.shared.state().limiter = Limiter::default();
    for number in AT_MOST..AT_MOST + 8 {
        notifier.tell(notice(NoticeEvent::SleepRefused, &number.to_string(), None));
    }
    let lost = AT_MOST + 8 - QUEUE;
    assert_eq!(notifier.stats().dropped, lost as u64);
    assert!(!notifier.drained(Duration::from_millis(1)).await);
    assert_eq!(server.request().await.1["reason"], lost.to_string());
}

#[tokio::test]
async fn h6_what_was_held_back_is_mentioned_by_the_next() {
    let mut server = Server::new(Manner::Says(OK)).await;
    let notifier = Notifier::new(server.webhook(), "worker-01");
    for _ in 0..3 {
        notifier.tell(notice(NoticeEvent::SleepRefused, "alice is logged in", None));
    }
    notifier.tell(notice(NoticeEvent::SleepFailed, "busy", None));
    assert_eq!(server.request().await.1["reason"], "alice is logged in");
    let reason = server.request().await.1["reason"].clone();
    assert_eq!(reason, "busy (2 notices before this one were held back)");
    assert_eq!(notifier.stats().suppressed, 2);
}

fn event() -> impl Strategy<Value = NoticeEvent> {
    prop::sample::select(vec![
        NoticeEvent::GoingToSleep,
        NoticeEvent::Sleeping,
        NoticeEvent::Awake,
        NoticeEvent::SleepRefused,
        NoticeEvent::SleepFailed,
    ])
}

/// What is told, how long after the one before, and what of it goes out.
#[derive(Debug)]
struct Told {
    at: Duration,
    event: NoticeEvent,
    reason: &'static str,
    out: Option<u32>,
}

fn through_a_limiter(told: Vec<(u64, NoticeEvent, &'static str)>) -> Vec<Told> {
    let mut limiter = Limiter::default();
    let mut at = Duration::ZERO;
    let admit = |(seconds, event, reason)| {
        at += Duration::from_secs(seconds);
        let out = limiter.admit(event, reason, BootTime(at));
        Told { at, event, reason, out }
    };
    told.into_iter().map(admit).collect()
}

fn notices() -> impl Strategy<Value = Vec<(u64, NoticeEvent, &'static str)>> {
    prop::collection::vec((0_u64..900, event(), prop::sample::select(vec!["a", "b"])), 0..200)
}

fn is_of_a_pair(event: NoticeEvent) -> bool {
    matches!(event, NoticeEvent::Sleeping | NoticeEvent::Awake)
}

proptest! {
    #[test]
    fn h6_no_more_than_12_go_out_within_any_hour(told in notices()) {
        let sent: Vec<_> = through_a_limiter(told).into_iter().filter(|told| told.out.is_some()).collect();
        for window in sent.windows(AT_MOST + 1) {
            // The end of a sleep is told however late it comes, in the place that was kept for it.
            prop_assert!(window[AT_MOST].at - window[0].at >= WINDOW, "{window:?}");
        }
    }

    #[test]
    fn h6_the_same_is_not_said_twice_within_10_minutes(told in notices()) {
        let sent: Vec<_> = through_a_limiter(told)
            .into_iter()
            .filter(|told| told.out.is_some() && !is_of_a_pair(told.event))
            .collect();
        for (index, later) in sent.iter().enumerate() {
            let same = |earlier: &&Told| earlier.event == later.event && earlier.reason == later.reason;
            if let Some(earlier) = sent[..index].iter().rev().find(same) {
                prop_assert!(later.at - earlier.at >= SAME_WITHIN, "{earlier:?} {later:?}");
            }
        }
    }

    #[test]
    fn h6_a_sleep_is_told_whole_or_not_at_all(told in notices()) {
        let told = through_a_limiter(told);
        let pairs: Vec<_> = told.iter().filter(|told| is_of_a_pair(told.event)).collect();
        for pair in pairs.windows(2) {
            if pair[0].event == NoticeEvent::Sleeping && pair[1].event == NoticeEvent::Awake {
                prop_assert_eq!(pair[0].out.is_some(), pair[1].out.is_some(), "{:?}", pair);
            }
        }
    }

    #[test]
    fn h6_everything_held_back_is_counted_once(told in notices()) {
        let told = through_a_limiter(told);
        let last = told.iter().rposition(|told| told.out.is_some()).map_or(0, |last| last + 1);
        let held_back = told[..last].iter().filter(|told| told.out.is_none()).count();
        let mentioned: u32 = told.iter().filter_map(|told| told.out).sum();
        prop_assert_eq!(mentioned as usize, held_back);
    }

    #[test]
    fn h6_pairs_with_room_always_pass(gaps in prop::collection::vec(400_u64..2000, 2..100)) {
        // At most 9 notices within the hour before each.
        let told = gaps.iter().enumerate().map(|(index, seconds)| match index % 2 {
            0 => (*seconds, NoticeEvent::Sleeping, "idle"),
            _ => (*seconds, NoticeEvent::Awake, "by itself"),
        });
        prop_assert!(through_a_limiter(told.collect()).iter().all(|told| told.out.is_some()));
    }
}
