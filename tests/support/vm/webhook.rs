//! What notifications are sent to: an HTTP server on loopback that keeps every document and answers 200.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;

/// Longest wait for the next byte of a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any request has, bytes.
const LONGEST: usize = 1 << 20;

/// The server. Its thread lives as long as the process.
pub(crate) struct WebhookListener {
    received: Arc<Mutex<Vec<Value>>>,
}

impl WebhookListener {
    pub(crate) fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let documents = Arc::clone(&received);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let documents = Arc::clone(&documents);
                thread::spawn(move || {
                    // A client that hangs up has told us nothing.
                    if let Some(document) = answer(&client) {
                        lock(&documents).push(document);
                    }
                });
            }
        });
        Self { received }
    }

    /// Everything received since the last [`Self::forget`], in order.
    pub(crate) fn documents(&self) -> Vec<Value> {
        lock(&self.received).clone()
    }

    /// The field `event` of each.
    pub(crate) fn events(&self) -> Vec<String> {
        let name = |document: &Value| document["event"].as_str().unwrap_or("(none)").to_string();
        self.documents().iter().map(name).collect()
    }

    pub(crate) fn forget(&self) {
        lock(&self.received).clear();
    }
}

fn lock(documents: &Mutex<Vec<Value>>) -> std::sync::MutexGuard<'_, Vec<Value>> {
    documents.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads one request and answers it; its document, if it has one.
fn answer(client: &TcpStream) -> Option<Value> {
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(client);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok().filter(|length| *length <= LONGEST)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut client = client;
    client
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .ok()?;
    serde_json::from_slice(&body).ok()
}
