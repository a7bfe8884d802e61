//! tshark at an interface of a host.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    lan::Host,
    netns::{self, FrameSender},
};

/// Longest time to wait for a packet that is to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time after which another frame is sent to see whether tshark captures.
const AGAIN: Duration = Duration::from_millis(100);
/// Lengths of the frames that mark beginning and end, bytes; no packet of a trial is one of them.
const BEGIN: usize = 61;
const END: usize = 62;

/// A packet as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Ethernet header and all.
    pub(crate) bytes: Vec<u8>,
    /// What tshark takes it for, `eth:ethertype:wol`.
    pub(crate) protocols: String,
    /// The card it wakes, as tshark reads it.
    pub(crate) wakes: Option<String>,
    /// The SecureOn password, as tshark finds it.
    pub(crate) password: Option<Vec<u8>>,
}

/// A capture under way.
pub(crate) struct Capture {
    tshark: Child,
    packets: Receiver<Packet>,
    marker: FrameSender,
}

impl Capture {
    /// Captures at an interface of a host; returns when a frame from another host's interface on the same LAN was captured.
    pub(crate) fn at(host: &Host, interface: &str, from: (&Host, &str)) -> Self {
        let mut command = Command::new("tshark");
        command.args(["-l", "-n", "-Q", "-x", "-T", "ek", "-B", "32", "-a", "duration:120"]);
        // Ports 7 and 9 have protocols of their own.
        command.args(["-o", "udp.try_heuristic_first:TRUE", "-i", interface]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut tshark = host.run(move || command.spawn().expect("start tshark"));
        let lines = BufReader::new(tshark.stdout.take().unwrap()).lines();
        let (found, packets) = channel();
        thread::spawn(move || {
            let packets = lines.map_while(Result::ok).filter_map(|line| read(&line));
            for packet in packets {
                if found.send(packet).is_err() {
                    break;
                }
            }
        });
        let marker = from.0.run(|| FrameSender::new(from.1));
        let capture = Self {
            tshark,
            packets,
            marker,
        };
        capture.begun();
        capture
    }

    fn begun(&self) {
        for _ in 0..PATIENCE.as_millis() / AGAIN.as_millis() {
            self.marker.send(&netns::frame(BEGIN, false));
            match self.packets.recv_timeout(AGAIN) {
                Ok(packet) if packet.bytes.len() == BEGIN => return,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("tshark ended"),
            }
        }
        panic!("tshark captures nothing");
    }

    /// The next packet but for the marks of the beginning.
    fn next(&self) -> Packet {
        loop {
            let packet = self.packets.recv_timeout(PATIENCE).expect("a packet");
            if packet.bytes.len() != BEGIN {
                return packet;
            }
        }
    }

    /// The next magic packets; panics when something else comes than what hosts and switches say by themselves.
    pub(crate) fn magic(&self, count: usize) -> Vec<Packet> {
        let is_chatter = |packet: &Packet| {
            ["arp", "igmp", "icmpv6"]
                .iter()
                .any(|said| packet.protocols.contains(said))
        };
        let mut packets = Vec::new();
        while packets.len() < count {
            let packet = self.next();
            if !is_chatter(&packet) {
                assert!(packet.wakes.is_some(), "no magic packet: {packet:?}");
                packets.push(packet);
            }
        }
        packets
    }

    /// The next packet of which it is true.
    pub(crate) fn until(&self, is_it: impl Fn(&Packet) -> bool) -> Packet {
        loop {
            let packet = self.next();
            assert_ne!(packet.bytes.len(), END, "it did not come");
            if is_it(&packet) {
                return packet;
            }
        }
    }

    /// Nothing else that wakes somebody came.
    pub(crate) fn ends(&self) {
        self.marker.send(&netns::frame(END, false));
        loop {
            let packet = self.next();
            if packet.bytes.len() == END {
                return;
            }
            assert_eq!(packet.wakes, None, "one more magic packet: {packet:?}");
        }
    }
}

impl Drop for Capture {
    /// Asked, and not killed: it removes its file.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.tshark.id()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ended = self.tshark.wait();
    }
}

/// A line of tshark's `ek` format; some announce an index.
fn read(line: &str) -> Option<Packet> {
    let line: Value = serde_json::from_str(line).expect("JSON of tshark");
    let layers = line.get("layers")?;
    let wol = &layers["wol"];
    Some(Packet {
        bytes: unhex(layers["frame_raw"].as_str()?),
        protocols: layers["frame"]["frame_frame_protocols"].as_str()?.to_owned(),
        wakes: wol["wol_wol_mac"].as_array().map(|cards| sixteen_times(cards)),
        // What tshark 4.0 shows of one of four bytes is something else.
        password: wol["wol_wol_passwd_raw"].as_str().map(unhex),
    })
}

fn sixteen_times(cards: &[Value]) -> String {
    assert_eq!(cards, vec![cards[0].clone(); 16]);
    cards[0].as_str().expect("a card").to_owned()
}

fn unhex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}
