//! qemu's own protocol: what the machine is doing, seen from outside, and what its hardware does to it.
//!
//! Owns the connection; qemu takes one at a time. Counts what qemu reports, so that a suspend nobody looked for is not missed. See
//! docs/interop/qmp-spec.rst in qemu's sources.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::wait::{eventually, wait_until};

/// Longest wait for an answer: qemu's own thread, not the guest, gives it.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection to qemu.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
    /// Times qemu said that the machine suspended.
    suspends: u32,
}

impl Qmp {
    pub(crate) fn connect(socket: &Path) -> Self {
        // qemu makes it when it has started.
        let stream = eventually("connected to qemu", ANSWER, || {
            UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))
        });
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut qmp = Self {
            reader: BufReader::new(stream),
            line: Vec::new(),
            suspends: 0,
        };
        let mut greeting = None;
        wait_until(ANSWER, || {
            greeting = qmp.message();
            greeting.is_some()
        });
        assert!(
            greeting.is_some_and(|message| !message["QMP"].is_null()),
            "qemu does not greet"
        );
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// `running`, `suspended`, `shutdown`, ..
    pub(crate) fn status(&mut self) -> String {
        self.execute("query-status", &json!({}))["status"]
            .as_str()
            .unwrap()
            .into()
    }

    /// Whether the machine came to that status in time.
    pub(crate) fn becomes(&mut self, status: &str, within: Duration) -> bool {
        wait_until(within, || self.status() == status)
    }

    /// What a magic packet, a key or the power button would do.
    pub(crate) fn wake(&mut self) {
        self.execute("system_wakeup", &json!({}));
    }

    /// Plugs the cable of a card in, or pulls it out.
    pub(crate) fn set_link(&mut self, card: &str, up: bool) {
        self.execute("set_link", &json!({ "name": card, "up": up }));
    }

    /// Times the machine has suspended since the connection was made.
    pub(crate) fn suspends(&mut self) -> u32 {
        // Events that came before the answer are counted with it.
        self.status();
        self.suspends
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let order = json!({ "execute": command, "arguments": arguments }).to_string();
        self.reader.get_mut().write_all(order.as_bytes()).unwrap();
        let mut answer = Value::Null;
        wait_until(ANSWER, || {
            while let Some(message) = self.message() {
                if message["event"] == "SUSPEND" {
                    self.suspends += 1;
                }
                if message["event"].is_null() {
                    answer = message;
                    return true;
                }
            }
            false
        });
        assert!(answer.get("return").is_some(), "qemu to {command}: {answer}");
        answer["return"].take()
    }

    /// The next message, if one is there or comes at once.
    fn message(&mut self) -> Option<Value> {
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(0) => panic!("qemu is gone"),
            Ok(_) if self.line.ends_with(b"\n") => {
                let message = serde_json::from_slice(&self.line).unwrap();
                self.line.clear();
                Some(message)
            }
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("read from qemu: {error}"),
        }
    }
}
