//! The text is what Prometheus can read, its counters never fall, and no client can harm the server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Notices, Trigger, Triggers, render,
    server::{MAX_CLIENTS, listen, serve},
    write_textfile,
};
use crate::{ctl::sample, report::Status};

/// Longest wait for anything that has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Name and labels of a series, with its value; and the type of each family.
#[derive(Debug, Default)]
struct Exposition {
    series: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Exposition {
    /// The rules of OpenMetrics 1.0 as far as they concern counters and gauges.
    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(help.len() > 5 && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(parsed.types.insert(name.into(), kind.into()), None, "{line}");
                family = name.into();
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let expected = match parsed.types[&family].as_str() {
                    "counter" => format!("{family}_total"),
                    _ => family.clone(),
                };
                assert_eq!(name, expected, "{line}");
                assert!(labels.ends_with('}') && !labels.contains('\\'), "{line}");
                let value: f64 = value.parse().expect("a number");
                assert!(value.is_finite() && value >= 0.0, "{line}");
                assert_eq!(parsed.series.insert(series.into(), value), None, "{line}");
            }
        }
        assert!(
            helped.iter().eq(parsed.types.keys()),
            "a family lacks its help or its type"
        );
        parsed
    }

    fn get(&self, series: &str) -> f64 {
        *self
            .series
            .get(series)
            .unwrap_or_else(|| panic!("no {series} in {self:#?}"))
    }

    fn sum(&self, name: &str) -> f64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        self.series.keys().filter(of).map(|series| self.series[series]).sum()
    }
}

fn rendered(status: Status, triggers: &Triggers) -> Exposition {
    Exposition::parse(&render(status, triggers, Notices::default()))
}

#[test]
fn the_text_says_what_status_says() {
    let mut triggers = Triggers::default();
    triggers.note([Trigger::Ssh, Trigger::Network, Trigger::Ssh]);
    triggers.note([Trigger::Network]);
    let notices = Notices {
        sent: 4,
        failed: 3,
        suppressed: 2,
        dropped: 1,
    };
    let text = Exposition::parse(&render(sample::status(), &triggers, notices));
    for (series, value) in [
        ("vmstation_sleep_events_total", 12.0),
        ("vmstation_wake_events_total", 12.0),
        ("vmstation_failed_attempts_total{kind=\"failed\"}", 1.0),
        ("vmstation_failed_attempts_total{kind=\"refused\"}", 4.0),
        ("vmstation_failed_attempts_total{kind=\"aborted\"}", 2.0),
        ("vmstation_external_suspends_total", 3.0),
        ("vmstation_asleep_seconds_total", 298_800.0),
        ("vmstation_energy_saved_joules_total", 18_720_000.0),
        ("vmstation_activity_triggers_total{signal=\"network\"}", 2.0),
        ("vmstation_activity_triggers_total{signal=\"ssh\"}", 1.0),
        ("vmstation_activity_triggers_total{signal=\"pods\"}", 0.0),
        ("vmstation_idle_seconds", 725.0),
        ("vmstation_state{state=\"quiet\"}", 1.0),
        ("vmstation_state{state=\"active\"}", 0.0),
        ("vmstation_blocked{signal=\"ssh\"}", 1.0),
        ("vmstation_blocked{signal=\"hold\"}", 0.0),
        ("vmstation_signal_source{signal=\"ssh\",source=\"fallback\"}", 1.0),
        ("vmstation_signal_source{signal=\"ssh\",source=\"kernel\"}", 0.0),
        ("vmstation_signal_source{signal=\"network\",source=\"kernel\"}", 1.0),
        ("vmstation_probe_attached{family=\"network\"}", 1.0),
        ("vmstation_probe_attached{family=\"cpu\"}", 0.0),
        ("vmstation_notifications_total{outcome=\"sent\"}", 4.0),
        ("vmstation_notifications_total{outcome=\"dropped\"}", 1.0),
        ("vmstation_sleep_enabled", 1.0),
        ("vmstation_dry_run", 1.0),
        ("vmstation_build_info{version=\"0.1.0\"}", 1.0),
    ] {
        assert!((text.get(series) - value).abs() < 1e-6, "{series}: {text:#?}");
    }
    assert!((text.sum("vmstation_state") - 1.0).abs() < 1e-9, "one state at a time");
}

#[test]
fn energy_that_is_not_known_has_no_series() {
    let mut status = sample::status();
    status.sleep.saved_kwh = None;
    let text = rendered(status, &Triggers::default());
    assert!(!text.types.contains_key("vmstation_energy_saved_joules"));
}

#[test]
fn every_state_is_listed() {
    for name in ["active", "quiet", "grace", "confirming", "suspending", "waiting"] {
        let mut status = sample::status();
        status.state = serde_json::from_value(name.into()).unwrap();
        let text = rendered(status, &Triggers::default());
        let series = format!("vmstation_state{{state=\"{name}\"}}");
        assert!((text.get(&series) - 1.0).abs() < 1e-9, "{name}");
    }
}

#[test]
fn names_of_the_host_become_no_series() {
    let mut status = sample::status();
    let names = |status: &Status| rendered(status.clone(), &Triggers::default()).series.len();
    let before = names(&status);
    let mut more = status.blockers[0].clone();
    more.what = "pod default/x".into();
    status.blockers.extend(vec![more; 50]);
    let eth0 = status.rates.interfaces["eth0"];
    status
        .rates
        .interfaces
        .extend((0..50).map(|n| (format!("veth{n}"), eth0)));
    assert_eq!(names(&status), before);
}

#[test]
fn counters_never_fall() {
    let mut triggers = Triggers::default();
    let mut status = sample::status();
    let mut before: BTreeMap<String, f64> = BTreeMap::new();
    for step in 0..20_u32 {
        let text = rendered(status.clone(), &triggers);
        for (series, value) in text.series.into_iter().filter(|(series, _)| series.contains("_total")) {
            let last = before.insert(series.clone(), value).unwrap_or(0.0);
            assert!(value >= last, "{series} fell from {last} to {value}");
        }
        triggers.note(Trigger::ALL.into_iter().take(step as usize % 7));
        status.sleep.sleeps += u64::from(step);
        status.sleep.refused += 1;
        status.sleep.asleep_s += 0.001;
        status.sleep.saved_kwh = status.sleep.saved_kwh.map(|kwh| kwh + 1e-9);
    }
}

#[test]
fn the_textfile_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmstation.prom");
    write_textfile(&path, "old\n").unwrap();
    // Whoever has the old file open reads the old text to its end.
    let mut reader = fs::File::open(&path).unwrap();
    let new = render(sample::status(), &Triggers::default(), Notices::default());
    write_textfile(&path, &new).unwrap();
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!((old.as_str(), fs::read_to_string(&path).unwrap()), ("old\n", new));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o755, 0o644);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "temporary files stay");

    let nowhere = folder.path().join("no/such/folder/x.prom");
    assert_eq!(
        write_textfile(&nowhere, "x").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

/// A server with a driver that counts how often it is asked. Dropping it ends both.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let running = thread::spawn(move || {
            runtime().block_on(async {
                let (asker, mut asks) = mpsc::channel::<oneshot::Sender<String>>(1);
                let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let driver = async {
                    while let Some(reply) = asks.recv().await {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let _gone = reply.send("# EOF\n".into());
                    }
                };
                tokio::select! {
                    () = serve(listener, asker) => {}
                    () = driver => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address: address.recv_timeout(PATIENCE).unwrap(),
            asked,
            stop: Some(stop),
            running: Some(running),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        rest(&mut stream)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A server that panicked has said so.
        let _ended = self.running.take().map(thread::JoinHandle::join);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Everything until the server closes the connection; a reset is a close too.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server did not close the connection: {error}"),
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn only_get_metrics_is_answered_and_only_it_asks_the_driver() {
    let server = Server::start();
    let answer = server.ask("GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n# EOF\n"), "{answer}");
    assert_eq!(server.asked(), 1);
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "405"),
        ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics\r\n\r\n", "400"),
        ("\u{16}\u{3}\u{1} not HTTP\r\n\r\n", "400"),
    ] {
        let answer = server.ask(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert_eq!(answer.contains("allow: GET\r\n"), status == "405", "{answer}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let answer = server.ask(&long);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(server.asked(), 1);
}

#[test]
fn silent_clients_are_bounded_in_number_and_closed_in_time() {
    let server = Server::start();
    let mut silent: Vec<_> = (0..MAX_CLIENTS).map(|_| server.connect()).collect();
    // One of them has begun and does not go on.
    silent[0].write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
    // One more is closed without an answer.
    assert_eq!(rest(&mut server.connect()), "");
    // The server closes them all by itself.
    for client in &mut silent {
        let said = rest(client);
        assert!(!said.contains(" 200 "), "{said}");
    }
    let answer = server.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    let server = Server::start();
    for _ in 0..3 * MAX_CLIENTS {
        let mut client = server.connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // Half of a connection at a time: the answer has nobody to go to, and its end is waited for.
        client.shutdown(Shutdown::Write).unwrap();
        let _ended = rest(&mut client);
    }
    let answer = server.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn an_agent_that_does_not_answer_is_said_to_be_unavailable() {
    let runtime = runtime();
    runtime.block_on(async {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (asker, mut asks) = mpsc::channel::<oneshot::Sender<String>>(1);
        let serving = tokio::spawn(serve(listener, asker));
        let client = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            rest(&mut stream)
        });
        drop(asks.recv().await.unwrap());
        let answer = client.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        // The server ends with the driver.
        drop(asks);
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    });
}

#[test]
fn an_address_that_is_taken_is_named() {
    let server = Server::start();
    let runtime = runtime();
    let _entered = runtime.enter();
    let error = listen(server.address).unwrap_err().to_string();
    assert!(
        error.contains(&server.address.to_string()) && error.contains("listen"),
        "{error}"
    );
}
