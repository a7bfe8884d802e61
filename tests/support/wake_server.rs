//! A wake server on loopback that answers as it is told, holds questions for orders, and keeps what it was asked.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method, and path below that of the node.
    pub(crate) what: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    /// Number of the newest order to sleep.
    newest: u64,
    stopped: bool,
}

/// Ends with the last of its requests when it is dropped.
pub(crate) struct WakeServer {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
    listening: Option<JoinHandle<()>>,
}

impl WakeServer {
    /// One that answers whoever asks leave with this document.
    pub(crate) fn start(leave: Value) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let shared = Arc::clone(&state);
        let listening = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.0.lock().unwrap().stopped {
                    return;
                }
                let (shared, leave) = (Arc::clone(&shared), leave.clone());
                // A client that goes away is its own affair.
                thread::spawn(move || serve(stream?, &shared, &leave));
            }
        });
        Self {
            address,
            state,
            listening: Some(listening),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.0.lock().unwrap().asked.clone()
    }

    /// Methods and paths.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.what).collect()
    }

    /// Orders a sleep.
    pub(crate) fn order_sleep(&self) {
        self.state.0.lock().unwrap().newest += 1;
        self.state.1.notify_all();
    }
}

impl Drop for WakeServer {
    fn drop(&mut self) {
        self.state.0.lock().unwrap().stopped = true;
        self.state.1.notify_all();
        // It waits for somebody.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            let _ended = listening.join();
        }
    }
}

fn serve(stream: TcpStream, (state, changed): &(Mutex<State>, Condvar), leave: &Value) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body)?;
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let below = path.strip_prefix("/v1/nodes/").and_then(|path| path.split_once('/'));
    let what = below.map_or_else(|| path.to_owned(), |(_, below)| below.to_owned());

    let mut state = state.lock().unwrap();
    state.asked.push(Asked {
        what: format!("{method} {what}"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let answer = if what == "leave" {
        leave.clone()
    } else {
        let after = what
            .strip_prefix("orders?after=")
            .map(|after| after.parse::<u64>().unwrap());
        if let Some(after) = after {
            state = changed
                .wait_while(state, |state| state.newest <= after && !state.stopped)
                .unwrap();
        }
        let newer = (after.unwrap_or(state.newest) + 1)..=state.newest;
        let orders: Vec<_> = newer
            .map(|number| json!({"order": "sleep", "number": number}))
            .collect();
        json!({"schema": 1, "newest": state.newest, "orders": orders})
    };
    drop(state);
    let answer = answer.to_string();
    let length = answer.len();
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
    )
}
