//! A root shell in the guest that is no login: it comes by a virtio port, and outlives a suspend.
//!
//! One command at a time, each with a deadline, which the guest keeps too. What is to run on is started with [`Channel::start`].

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::wait::{eventually, wait_until};

/// How much longer than the guest we wait: the machine may be suspended, or late.
const GRACE: Duration = Duration::from_secs(15);
/// For a command that looks at something.
const SHORT: Duration = Duration::from_secs(60);

/// The shell.
pub(crate) struct Channel {
    stream: UnixStream,
    pending: Vec<u8>,
    last_id: u64,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// As a shell has it: 124 if its time was up.
    pub(crate) status: i32,
    /// Standard output and error.
    pub(crate) text: String,
}

impl Channel {
    pub(crate) fn connect(socket: &Path) -> Self {
        // qemu makes it when it has started.
        let stream = eventually("connected to the guest", GRACE, || {
            UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))
        });
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self {
            stream,
            pending: Vec::new(),
            // Answers to an earlier connection's commands are nobody's.
            last_id: u64::from(std::process::id()) << 20,
        }
    }

    /// Runs a script for a time; `None` if there is no answer: the guest does not run.
    pub(crate) fn attempt(&mut self, script: &str, within: Duration) -> Option<Output> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        let order = format!("{id} {} {}\n", within.as_secs().max(1), base64(script.as_bytes()));
        self.stream.write_all(order.as_bytes()).unwrap();
        let mut answer = None;
        wait_until(within + GRACE, || {
            self.read();
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let line = String::from_utf8(line).unwrap();
                let mut words = line.split_whitespace();
                if words.next() == Some(&id) {
                    let status = words.next().unwrap().parse().unwrap();
                    let text = from_base64(words.next().unwrap_or_default());
                    answer = Some(Output { status, text });
                }
            }
            answer.is_some()
        });
        answer
    }

    /// Runs a script in a guest that is awake.
    pub(crate) fn run(&mut self, script: &str, within: Duration) -> Output {
        self.attempt(script, within)
            .unwrap_or_else(|| panic!("the guest does not answer within {within:?} to: {script}"))
    }

    /// What a short script that must work says.
    pub(crate) fn ask(&mut self, script: &str) -> String {
        let output = self.run(script, SHORT);
        assert_eq!(output.status, 0, "{script}: {}", output.text);
        output.text.trim_end().into()
    }

    /// Starts a script and leaves it running, as a service of its own.
    pub(crate) fn start(&mut self, name: &str, script: &str) {
        let job = format!(
            "bash /run/{name}.script </dev/null >/run/{name}.out 2>&1\necho $? >/run/{name}.new\nmv /run/{name}.new /run/{name}.status\n"
        );
        self.ask(&format!(
            "rm -f /run/{name}.status /run/{name}.out\n\
             base64 -d <<<{} >/run/{name}.script\n\
             base64 -d <<<{} >/run/{name}.job\n\
             systemctl reset-failed {name} 2>/dev/null\n\
             systemd-run --quiet --collect --unit={name} bash /run/{name}.job",
            base64(script.as_bytes()),
            base64(job.as_bytes())
        ));
    }

    /// How a started script ended, if it has and the guest says so within a time.
    pub(crate) fn ended(&mut self, name: &str, within: Duration) -> Option<Output> {
        let answer = self.attempt(
            &format!("test -f /run/{name}.status && cat /run/{name}.status /run/{name}.out"),
            within,
        )?;
        let (status, text) = answer.text.split_once('\n').filter(|_| answer.status == 0)?;
        Some(Output {
            status: status.parse().unwrap(),
            text: text.into(),
        })
    }

    /// How a started script ended; fails if it has not in time.
    pub(crate) fn finish(&mut self, name: &str, within: Duration) -> Output {
        let mut output = None;
        wait_until(within, || {
            output = self.ended(name, SHORT);
            output.is_some()
        });
        output.unwrap_or_else(|| panic!("{name} has not ended within {within:?}"))
    }

    /// Writes a file, readable by all and, if it is a program, executable.
    pub(crate) fn write(&mut self, path: &str, mode: &str, text: &str) {
        self.ask(&format!(
            "mkdir -p \"$(dirname '{path}')\" && base64 -d <<<'{}' >'{path}.new' && chmod {mode} '{path}.new' && mv '{path}.new' '{path}'",
            base64(text.as_bytes())
        ));
    }

    fn read(&mut self) {
        let mut some = [0; 4096];
        match self.stream.read(&mut some) {
            Ok(0) => panic!("the guest is gone"),
            Ok(count) => self.pending.extend(&some[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("read from the guest: {error}"),
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

fn from_base64(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = ALPHABET.iter().position(|known| *known == digit).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
            bits &= (1 << count) - 1;
        }
    }
    let mut printable = String::new();
    for chunk in bytes.utf8_chunks() {
        write!(printable, "{}", chunk.valid()).unwrap();
        if !chunk.invalid().is_empty() {
            printable.push(char::REPLACEMENT_CHARACTER);
        }
    }
    printable
}
