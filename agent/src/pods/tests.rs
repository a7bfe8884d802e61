//! The sensor against a server on the loopback that answers by a script.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{api::Verb, *};
use crate::config::KubernetesApi;

/// Far beyond every deadline of the sensor.
const AT_MOST: Duration = Duration::from_secs(60);
const NOW: BootTime = BootTime(Duration::from_secs(1000));

/// What the server does with a request.
enum Answer {
    Json(u16, Value),
    /// Nothing, on an open connection.
    Hang,
    /// A byte each second.
    Drip,
    /// Lines of a watch, until the sender is gone.
    Lines(mpsc::UnboundedReceiver<String>),
}

struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
}

/// Path with query, and credentials, of one request.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    token: String,
}

impl Server {
    async fn start(answer: impl FnMut(Asked) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let answer: Arc<Mutex<dyn FnMut(Asked) -> Answer + Send>> = Arc::new(Mutex::new(answer));
        let (list, count) = (asked.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, list.clone(), answer.clone()));
            }
        });
        let server = Self {
            address,
            asked,
            connections,
            folder: tempfile::tempdir().unwrap(),
        };
        server.write_token("first");
        server
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn write_token(&self, token: &str) {
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.address}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(self.kubeconfig(), text.to_string()).unwrap();
    }

    fn asked(&self, verb: Verb) -> Vec<String> {
        let is_watch = |path: &&String| path.contains("watch=true");
        let asked = self.asked.lock().unwrap();
        match verb {
            Verb::List => asked.iter().filter(|path| !is_watch(path)).cloned().collect(),
            Verb::Watch => asked.iter().filter(is_watch).cloned().collect(),
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<dyn FnMut(Asked) -> Answer + Send>>,
) {
    let mut data = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(count) => data.extend_from_slice(&piece[..count]),
            }
        };
        let head: Vec<u8> = data.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let token = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("authorization: bearer ")
                .map(str::to_owned)
        });
        asked.lock().unwrap().push(path.clone());
        let request = Asked {
            path,
            token: token.unwrap_or_default(),
        };
        let answer = (answer.lock().unwrap())(request);
        let written = match answer {
            Answer::Hang => {
                future::pending::<()>().await;
                return;
            }
            Answer::Json(code, body) => {
                let body = body.to_string();
                let text = format!(
                    "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(text.as_bytes()).await
            }
            Answer::Drip => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
                let mut went = stream.write_all(head.as_bytes()).await;
                while went.is_ok() {
                    went = stream.write_all(b" ").await;
                    sleep(Duration::from_secs(1)).await;
                }
                went
            }
            Answer::Lines(mut lines) => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                let mut went = stream.write_all(head.as_bytes()).await;
                while let Some(line) = lines.recv().await {
                    let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
                    went = stream.write_all(chunk.as_bytes()).await;
                }
                went.and(stream.write_all(b"0\r\n\r\n").await)
            }
        };
        if written.is_err() {
            return;
        }
    }
}

fn pod(namespace: &str, name: &str, phase: &str) -> Value {
    let metadata =
        json!({"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "resourceVersion": "5"});
    json!({"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": {"phase": phase}})
}

fn page(pods: &[Value], more: Option<&str>) -> Answer {
    let metadata = json!({"resourceVersion": "4", "continue": more});
    Answer::Json(
        200,
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods}),
    )
}

fn status(code: u16, message: &str) -> Answer {
    Answer::Json(
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}),
    )
}

struct Sensor {
    pods: Pods,
    reports: mpsc::Receiver<Report>,
}

impl Sensor {
    fn new(kubeconfig: PathBuf) -> Self {
        let policy = Policy {
            kubernetes: Kubernetes {
                api: KubernetesApi::Kubeconfig(kubeconfig),
                node: Some("node-1".into()),
            },
            ..Policy::default()
        };
        let (to, reports) = mpsc::channel(4);
        Self {
            pods: Pods::new(&policy, "host", to),
            reports,
        }
    }

    /// Takes reports until one is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Reading<PodsSeen>) -> bool) -> Reading<PodsSeen> {
        let told = async {
            loop {
                let report = self.reports.recv().await.unwrap();
                self.pods.take(report);
                let reading = self.pods.reading(NOW);
                if wanted(&reading) {
                    return reading;
                }
            }
        };
        timeout(AT_MOST, told).await.unwrap()
    }

    async fn next(&mut self) -> Reading<PodsSeen> {
        self.until(|_| true).await
    }
}

fn running(reading: &Reading<PodsSeen>) -> Vec<String> {
    reading.known().unwrap_or_else(|| panic!("{reading:?}")).running.clone()
}

fn why(reading: &Reading<PodsSeen>) -> &str {
    let Reading::Unreadable(why) = reading else {
        panic!("{reading:?}")
    };
    why
}

#[tokio::test]
async fn what_is_asked_for_and_not_in_is_doubt_and_large_lists_come_in_pages() {
    let server = Server::start(|asked| {
        if asked.path.contains("continue=next") {
            page(&[pod("shop", "b", "Running"), pod("kube-system", "c", "Running")], None)
        } else {
            page(
                &[pod("shop", "a", "Pending"), pod("shop", "done", "Succeeded")],
                Some("next"),
            )
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.ask(NOW);
    assert_eq!(why(&sensor.pods.reading(NOW)), NOT_YET);
    assert_eq!(running(&sensor.next().await), ["shop/a", "shop/b"]);
    let asked = server.asked(Verb::List);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].contains("fieldSelector=spec.nodeName%3Dnode-1"), "{asked:?}");
    assert!(asked[0].contains("limit=500"), "{asked:?}");
    assert!(
        !asked[0].contains("resourceVersion"),
        "of the moment: it is a last look before a sleep: {asked:?}"
    );
    assert_eq!(
        server.connections.load(Ordering::Relaxed),
        1,
        "one connection serves both"
    );
}

#[tokio::test]
async fn k1_a_server_that_hangs_or_drips_or_is_not_there_is_doubt_in_bounded_time() {
    for answer in [|_| Answer::Hang, |_| Answer::Drip] {
        let server = Server::start(answer).await;
        let mut sensor = Sensor::new(server.kubeconfig());
        sensor.pods.check(Watching::Yes, NOW);
        let reading = sensor.next().await;
        assert!(why(&reading).contains("has not answered within 5 s"), "{reading:?}");
        assert_eq!(server.asked(Verb::List).len(), 1, "tried once");
    }
    let server = Server::start(|_| Answer::Hang).await;
    let kubeconfig = server.kubeconfig();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let text = text.replace(&server.address, &format!("http://{}", gone.local_addr().unwrap()));
    drop(gone);
    std::fs::write(&kubeconfig, text).unwrap();
    let mut sensor = Sensor::new(kubeconfig);
    sensor.pods.check(Watching::No, NOW);
    let reading = sensor.next().await;
    assert!(why(&reading).contains("cannot be reached"), "{reading:?}");
}

#[tokio::test]
async fn k2_credentials_that_are_not_accepted_are_read_again_once() {
    let server = Server::start(|asked| match asked.token.as_str() {
        "second" => page(&[], None),
        _ => status(401, "Unauthorized"),
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::No, NOW);
    let reading = sensor.next().await;
    assert!(
        why(&reading).contains("does not accept the credentials (401"),
        "{reading:?}"
    );
    assert_eq!(server.asked(Verb::List).len(), 2, "once more, and no storm");

    server.write_token("second");
    sensor.pods.ask(NOW);
    assert_eq!(running(&sensor.next().await), [""; 0]);
    server.write_token("third");
    sensor.pods.ask(NOW);
    assert_eq!(
        running(&sensor.next().await),
        [""; 0],
        "those that are accepted are not read again"
    );
}

#[tokio::test]
async fn k2_a_token_that_is_replaced_costs_nothing() {
    let valid = Arc::new(Mutex::new("first".to_owned()));
    let known = valid.clone();
    let server = Server::start(move |asked| {
        if asked.token == *known.lock().unwrap() {
            page(&[pod("shop", "a", "Running")], None)
        } else {
            status(401, "Unauthorized")
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::No, NOW);
    assert_eq!(running(&sensor.next().await), ["shop/a"]);
    *valid.lock().unwrap() = "second".into();
    server.write_token("second");
    sensor.pods.ask(NOW);
    assert_eq!(running(&sensor.next().await), ["shop/a"], "no doubt in between");
}

#[tokio::test]
async fn k3_a_missing_right_is_named_and_asked_for_again_at_the_next_check_only() {
    let server = Server::start(|_| status(403, "pods is forbidden: User \"x\" cannot list resource \"pods\"")).await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::Yes, NOW);
    let reading = sensor.next().await;
    assert!(
        why(&reading).contains("`list`") && why(&reading).contains("`pods`"),
        "{reading:?}"
    );
    for _ in 0..20 {
        sensor.pods.check(Watching::Yes, NOW.after(Duration::from_secs(10)));
    }
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked(Verb::List).len(), 1);
    assert_eq!(server.asked(Verb::Watch).len(), 0);
    sensor
        .pods
        .check(Watching::Yes, NOW.after(Policy::default().check_interval));
    sensor.next().await;
    assert_eq!(server.asked(Verb::List).len(), 2);
}

#[tokio::test]
async fn k3_without_the_right_to_watch_the_list_is_believed_and_a_warning_says_so() {
    let server = Server::start(|asked| {
        if asked.path.contains("watch=true") {
            status(403, "pods is forbidden")
        } else {
            page(&[], None)
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::Yes, NOW);
    assert_eq!(running(&sensor.next().await), [""; 0]);
    sensor.next().await;
    let warning = sensor.pods.warning().unwrap();
    assert!(warning.contains("`watch`") && warning.contains("`pods`"), "{warning}");
    assert_eq!(running(&sensor.pods.reading(NOW)), [""; 0]);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(server.asked(Verb::Watch).len(), 1, "no storm");
}

#[tokio::test]
async fn a_watch_tells_of_a_new_pod_at_once_and_costs_no_list() {
    let (lines, feed) = mpsc::unbounded_channel();
    let mut feed = Some(feed);
    let server = Server::start(move |asked| {
        if asked.path.contains("watch=true") {
            feed.take().map_or(Answer::Hang, Answer::Lines)
        } else {
            page(&[], None)
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::Yes, NOW);
    assert_eq!(running(&sensor.next().await), [""; 0]);
    let event = |kind: &str, object: Value| lines.send(json!({"type": kind, "object": object}).to_string()).unwrap();
    event("BOOKMARK", json!({"kind": "Pod", "metadata": {"resourceVersion": "9"}}));
    event("ADDED", pod("kube-system", "proxy", "Running"));
    event("ADDED", pod("shop", "web", "Pending"));
    assert_eq!(running(&sensor.next().await), ["shop/web"], "only what matters is told");
    event("MODIFIED", pod("shop", "web", "Succeeded"));
    assert_eq!(running(&sensor.next().await), [""; 0]);
    event("DELETED", pod("shop", "web", "Succeeded"));
    let mut labelled = pod("kube-system", "backup", "Running");
    labelled["metadata"]["labels"] = json!({"vmstation.io/prevent-sleep": "true"});
    event("ADDED", labelled);
    assert_eq!(sensor.next().await.known().unwrap().preventing, ["kube-system/backup"]);
    let asked = server.asked(Verb::Watch);
    assert_eq!(asked.len(), 1);
    let parts = [
        "resourceVersion=4",
        "allowWatchBookmarks=true",
        "timeoutSeconds=290",
        "spec.nodeName%3Dnode-1",
    ];
    assert!(parts.iter().all(|part| asked[0].contains(part)), "{asked:?}");
    assert_eq!(server.asked(Verb::List).len(), 1);
}

#[tokio::test]
async fn a_place_in_history_that_is_forgotten_costs_one_list_and_no_storm() {
    let mut lists = 0;
    let mut watches = 0;
    let server = Server::start(move |asked| {
        if asked.path.contains("watch=true") {
            watches += 1;
            if watches == 1 {
                status(410, "too old resource version")
            } else {
                Answer::Hang
            }
        } else {
            lists += 1;
            let pods = if lists == 1 {
                vec![]
            } else {
                vec![pod("shop", "web", "Running")]
            };
            page(&pods, None)
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::Yes, NOW);
    let reading = sensor.until(|reading| !running(reading).is_empty()).await;
    assert_eq!(running(&reading), ["shop/web"], "what the watch missed, the list has");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(server.asked(Verb::List).len(), 2);
    assert_eq!(server.asked(Verb::Watch).len(), 1, "the next one waits");
    assert_eq!(sensor.pods.warning(), None);
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_not_begun_again_at_once() {
    let server = Server::start(|asked| {
        if asked.path.contains("watch=true") {
            Answer::Lines(mpsc::unbounded_channel().1)
        } else {
            page(&[], None)
        }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::Yes, NOW);
    sensor.next().await;
    for _ in 0..5 {
        sleep(Duration::from_millis(100)).await;
        sensor.pods.check(Watching::No, NOW);
        sleep(Duration::from_millis(100)).await;
        sensor.pods.check(Watching::Yes, NOW);
    }
    assert_eq!(server.asked(Verb::Watch).len(), 1, "however often the wish changes");
    assert_eq!(server.asked(Verb::List).len(), 1);
}

#[tokio::test]
async fn k7_a_question_is_answered_only_by_a_list_that_began_after_it() {
    let mut lists = 0;
    let server = Server::start(move |_| {
        lists += 1;
        if lists == 2 { Answer::Hang } else { page(&[], None) }
    })
    .await;
    let mut sensor = Sensor::new(server.kubeconfig());
    let first = sensor.pods.ask(NOW).unwrap();
    assert!(!sensor.pods.is_answered(first, NOW));
    sensor.next().await;
    assert!(sensor.pods.is_answered(first, NOW));
    let second = sensor.pods.ask(NOW).unwrap();
    assert!(
        !sensor.pods.is_answered(second, NOW),
        "the earlier list answers no later question"
    );
    assert!(why(&sensor.next().await).contains("has not answered"));
    assert!(sensor.pods.is_answered(second, NOW));
    let third = sensor.pods.ask(NOW).unwrap();
    let late = NOW.after(PATIENCE + Duration::from_secs(1));
    assert!(sensor.pods.is_answered(third, late), "nobody waits for ever");
    assert!(matches!(sensor.pods.reading(late), Reading::Unreadable(_)));
}

#[tokio::test]
async fn after_a_sleep_nothing_from_before_counts() {
    let server = Server::start(|_| page(&[], None)).await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::No, NOW);
    let report = sensor.reports.recv().await.unwrap();
    sensor.pods.take(report.clone());
    sensor.pods.forget();
    assert_eq!(why(&sensor.pods.reading(NOW)), NOT_YET);
    sensor.pods.check(Watching::No, NOW);
    assert!(!sensor.pods.take(report), "what another task said");
    assert_eq!(why(&sensor.pods.reading(NOW)), NOT_YET);
    assert_eq!(running(&sensor.next().await), [""; 0]);
}

#[tokio::test]
async fn a_host_that_is_told_to_have_no_pods_asks_nobody() {
    for (pods, api) in [(true, KubernetesApi::Off), (false, KubernetesApi::InCluster)] {
        let mut policy = Policy::default();
        policy.detection.pods = pods;
        policy.kubernetes.api = api;
        let mut pods = Pods::new(&policy, "host", mpsc::channel(4).0);
        pods.check(Watching::Yes, NOW);
        assert_eq!(pods.ask(NOW), None);
        assert_eq!(pods.reading(NOW), Reading::NotConfigured);
    }
}

#[tokio::test]
async fn checks_ask_for_what_the_server_has_in_memory_and_is_not_older_than_what_is_known() {
    let server = Server::start(|_| page(&[], None)).await;
    let mut sensor = Sensor::new(server.kubeconfig());
    sensor.pods.check(Watching::No, NOW);
    sensor.next().await;
    let later = NOW.after(Policy::default().check_interval);
    sensor.pods.check(Watching::No, later);
    sensor.next().await;
    let asked = server.asked(Verb::List);
    assert_eq!(asked.len(), 2, "{asked:?}");
    for (asked, version) in asked.iter().zip(["0", "4"]) {
        assert!(asked.contains(&format!("resourceVersion={version}&")), "{asked}");
        assert!(asked.contains("resourceVersionMatch=NotOlderThan"), "{asked}");
        assert!(!asked.contains("limit="), "in pages it is read from etcd: {asked}");
    }
}

#[test]
fn watches_that_were_cut_off_together_are_not_begun_again_together() {
    const HOSTS: u32 = 100;
    let hosts = || (0..HOSTS).map(|host| f64::from(host) / f64::from(HOSTS - 1));
    // One that ended in its time is begun again at once, and so is the first one after a long time.
    assert!(hosts().all(|roll| rest(Cut::No, Duration::from_secs(290), roll).is_zero()));
    assert_eq!(rest(Cut::No, Duration::from_secs(4), 0.5), Duration::from_secs(6));
    for (cut, spread) in [
        (Cut::Early, 10),
        (Cut::Failed(1), 20),
        (Cut::Failed(2), 40),
        (Cut::Failed(3), 80),
        (Cut::Failed(u32::MAX), 80),
    ] {
        for begun in [Duration::ZERO, Duration::from_secs(100)] {
            let rests: Vec<_> = hosts().map(|roll| rest(cut, begun, roll)).collect();
            let (least, most) = (rests[0], rests[rests.len() - 1]);
            assert_eq!(most - least, Duration::from_secs(spread), "{cut:?}");
            assert!(least + begun >= WATCH_EVERY, "{cut:?}: never sooner after the last one");
            let in_a_second = |from: &Duration| {
                rests
                    .iter()
                    .filter(|rest| **rest >= *from && **rest < *from + Duration::from_secs(1))
                    .count()
            };
            let busiest = rests.iter().map(in_a_second).max().unwrap();
            assert!(
                busiest <= 1 + 100 / usize::try_from(spread).unwrap(),
                "{cut:?}: {busiest} in a second"
            );
        }
    }
}

#[test]
fn chance_is_spread_evenly() {
    let rolls: Vec<_> = (0..10_000).map(|_| roll()).collect();
    assert!(rolls.iter().all(|roll| (0.0..=1.0).contains(roll)));
    for tenth in 0..10 {
        let part = f64::from(tenth) / 10.0..f64::from(tenth + 1) / 10.0;
        let count = rolls.iter().filter(|roll| part.contains(roll)).count();
        // Ten standard deviations.
        assert!((700..1300).contains(&count), "{count} in {part:?}");
    }
}
