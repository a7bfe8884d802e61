//! Valid requests of every kind with random damage, against a server in a process of its own: what it holds on to is seen in its memory.

use std::{
    ffi::OsStr,
    fs, future,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime,
    task::JoinSet,
    time::timeout,
};
use vmstation_wake_server::server::{Limits, Reach, listen, serve};

use crate::{
    app,
    real::TOKEN,
    running::{HANG, SHORT, generous, is_closed, statuses},
    service::{Service, block_on},
    wait::wait_until,
};

const SEED: u64 = 0x5745_414b_4550_5321;
const REQUESTS: usize = 10_000;
const WARM_UP: usize = 2_000;
const AT_A_TIME: usize = 64;
/// Growth of memory that is none, bytes. A connection that is not given back holds 10 KiB and more, eight times as much in all.
const FLAT: usize = 10 << 20;
/// Ends the server of a test that was killed.
const LIFE: Duration = Duration::from_mins(15);

#[test]
fn a4_10000_mutations_are_answered_or_closed_and_leave_nothing() {
    if Service::is_this() {
        return block_on(be_the_server());
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Service::start(
        "mutations::a4_10000_mutations_are_answered_or_closed_and_leave_nothing",
        listener,
        OsStr::new(""),
    );
    let mut random = Random(SEED);
    let mut told = Told::default();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        send_all(&mut random, WARM_UP, address, &mut told).await;
        let warm = resident(&server);
        send_all(&mut random, REQUESTS - WARM_UP, address, &mut told).await;
        let grown = resident(&server).saturating_sub(warm);
        println!("{told:?}; {warm} bytes after the warm-up, {grown} more at the end");
        assert!(grown < FLAT, "{grown} bytes more than after the warm-up");
    });
    // Both outcomes are there: the damage is neither everything nor nothing.
    assert!(told.done > REQUESTS / 10 && told.refused > REQUESTS / 10, "{told:?}");
    let held = || fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    assert!(
        wait_until(HANG, || held() < AT_A_TIME),
        "{} descriptors are held",
        held()
    );
}

async fn be_the_server() {
    let limits = Limits {
        header_timeout: SHORT,
        body_timeout: SHORT,
        idle_timeout: SHORT,
        ..generous()
    };
    let listeners = listen("192.0.2.1:1".parse().unwrap(), Reach::Loopback).unwrap();
    let shutdown = async { drop(timeout(LIFE, future::pending::<()>()).await) };
    serve(listeners, None, app(), limits, shutdown).await;
}

#[derive(Debug, Default)]
struct Told {
    done: usize,
    refused: usize,
    silent: usize,
}

async fn send_all(random: &mut Random, number: usize, address: SocketAddr, told: &mut Told) {
    let valid = valid();
    let mut under_way: JoinSet<Vec<u16>> = JoinSet::new();
    for _ in 0..number {
        if under_way.len() == AT_A_TIME {
            count(told, &under_way.join_next().await.unwrap().unwrap());
        }
        let bytes = mutated(random, &valid);
        under_way.spawn(exchange(address, bytes));
    }
    while let Some(ended) = under_way.join_next().await {
        count(told, &ended.unwrap());
    }
}

fn count(told: &mut Told, statuses: &[u16]) {
    match statuses.iter().find(|status| **status >= 200) {
        Some(200..400) => told.done += 1,
        Some(_) => told.refused += 1,
        None => told.silent += 1,
    }
}

/// Sends and listens until the server closes.
async fn exchange(address: SocketAddr, bytes: Vec<u8>) -> Vec<u16> {
    let bytes = Arc::new(bytes);
    let sent = Arc::clone(&bytes);
    let conversation = async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        match stream.write_all(&sent).await {
            Ok(()) => {}
            Err(error) if is_closed(error.kind()) || error.kind() == ErrorKind::NotConnected => {}
            Err(error) => panic!("{error}"),
        }
        let mut heard = Vec::new();
        match stream.read_to_end(&mut heard).await {
            Ok(_) => {}
            Err(error) if is_closed(error.kind()) => {}
            Err(error) => panic!("{error}"),
        }
        heard
    };
    let shown = || String::from_utf8_lossy(&bytes).escape_debug().to_string();
    let heard = timeout(HANG, conversation)
        .await
        .unwrap_or_else(|_| panic!("not closed: {}", shown()));
    let statuses = statuses(&String::from_utf8(heard).unwrap());
    assert!(statuses.iter().all(|status| *status < 500), "{statuses:?}: {}", shown());
    statuses
}

/// One of each kind. Not those that are held or never end by design (orders, events).
fn valid() -> Vec<Vec<u8>> {
    let operator = format!("HTTP/1.1\r\nHost: master:9876\r\nX-Auth-Token: {TOKEN}\r\n");
    let wake = format!("POST /wake/worker-01 {operator}");
    let status = "GET /status HTTP/1.1\r\nHost: master:9876\r\nAccept: */*\r\n\r\n";
    let read = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: master:9876\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!("POST {path} {operator}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    [
        status.to_owned(),
        "GET /status HTTP/1.0\r\n\r\n".into(),
        "GET http://master:9876/status?verbose=1 HTTP/1.1\r\nHost: master:9876\r\nConnection: close\r\n\r\n".into(),
        read("/"),
        read("/page.js"),
        read("/metrics"),
        read("/openapi.json"),
        "HEAD /health HTTP/1.1\r\nHost: master:9876\r\n\r\n".into(),
        format!("{wake}Content-Length: 0\r\n\r\n"),
        format!("{wake}Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{{\"verify\":true}}"),
        format!("{wake}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("{wake}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;ext=1\r\n!\r\n0\r\nTrailer: a\r\n\r\n"),
        format!("{wake}Origin: http://master:9876\r\nSec-Fetch-Site: same-origin\r\n\r\n"),
        format!("{status}{wake}Content-Length: 2\r\n\r\n{{}}{status}"),
        "POST /wake/worker-01?verify=true HTTP/1.1\r\nHost: master:9876\r\nContent-Length: 0\r\n\r\n".into(),
        post("/wake/worker-01?verify=true", ""),
        post("/wake/02:00:00:00:00:03", ""),
        format!("POST /wake/worker-01?verify=1 {operator}Accept: text/event-stream\r\n\r\n"),
        post("/wake/all?role=worker", ""),
        format!("DELETE /wake/worker-01 {operator}\r\n"),
        post("/sleep/storage-01", ""),
        post("/v1/nodes/storage-01/report", REPORT),
        post("/v1/nodes/storage-01/leave", "{\"schema\":1,\"reason\":\"quiet\"}"),
        format!("DELETE /v1/nodes/storage-01/leave/1 {operator}\r\n"),
    ]
    .map(String::into_bytes)
    .into()
}

/// What an agent says.
const REPORT: &str = "{\"schema\":1,\"node\":\"storage-01\",\"boot_id\":\"b\",\"resumes\":0,\"activity\":{\"is\":\"busy\"},\
    \"reasons\":[\"a\"],\"ports\":[],\"version\":\"0.1.0\"}";

/// What takes readers of HTTP apart.
const WORDS: [&str; 20] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    "\r\n\r\n",
    ": ",
    "%00",
    "%2f..",
    "\u{e9}",
    "HTTP/1.1",
    "HTTP/2.0",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: upgrade\r\nUpgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "ffffffffffffffff\r\n",
    "0\r\n\r\n",
];

fn mutated(random: &mut Random, valid: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = valid[random.below(valid.len())].clone();
    for _ in 0..=random.below(2) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(24)).min(bytes.len());
        match random.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.byte()),
            2 => bytes.truncate(at),
            3 => {
                let again = bytes[at..end].repeat(1 + random.below(50));
                drop(bytes.splice(at..at, again));
            }
            4 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            _flip => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes
}

/// splitmix64 (<https://prng.di.unimi.it/splitmix64.c>): the same requests in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Memory of the server, bytes: the second field of `statm` (proc(5)).
fn resident(server: &Service) -> usize {
    let statm = fs::read_to_string(format!("/proc/{}/statm", server.id())).unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
