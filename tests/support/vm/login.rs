//! Logins to the guest with the host's own ssh, by a key made for this run.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait::wait_until;
use std::os::fd::AsFd;

const PROGRAM: &str = "/usr/bin/ssh";

/// Who logs in, and where.
pub(crate) struct Login {
    folder: tempfile::TempDir,
    port: u16,
}

/// A client on its way in, or a session that runs `cat`. Dropping it ends it at once.
pub(crate) struct Session {
    client: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Login {
    /// Why there can be none here.
    pub(crate) fn missing() -> Option<&'static str> {
        (!PathBuf::from(PROGRAM).exists()).then_some("needs OpenSSH's client")
    }

    /// Makes a key.
    pub(crate) fn new(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new("/usr/bin/ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.path().join("key"))
            .status()
            .unwrap();
        assert!(made.success(), "ssh-keygen ended with {made}");
        Self { folder, port }
    }

    /// For `authorized_keys`.
    pub(crate) fn public_key(&self) -> String {
        fs::read_to_string(self.folder.path().join("key.pub")).unwrap()
    }

    /// Sets out; whether it gets in shows with [`Session::is_in`].
    pub(crate) fn begin(&self) -> Session {
        let mut client = Command::new(PROGRAM)
            .args(["-F", "/dev/null", "-p", &self.port.to_string(), "-i"])
            .arg(self.folder.path().join("key"))
            .args(
                [
                    "StrictHostKeyChecking=no",
                    "UserKnownHostsFile=/dev/null",
                    "GlobalKnownHostsFile=/dev/null",
                    "IdentitiesOnly=yes",
                    "BatchMode=yes",
                    "LogLevel=ERROR",
                    "ConnectTimeout=60",
                    // The default one takes seconds on an emulated CPU.
                    "KexAlgorithms=curve25519-sha256",
                ]
                .iter()
                .flat_map(|option| ["-o", option]),
            )
            .args(["root@127.0.0.1", "echo in; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Session {
            input: client.stdin.take(),
            output: BufReader::new(client.stdout.take().unwrap()),
            client,
        }
    }

    /// Logs in; fails if that takes longer.
    pub(crate) fn open(&self, within: Duration) -> Session {
        let mut session = self.begin();
        assert!(session.is_in(within), "no login within {within:?}");
        session
    }
}

impl Session {
    /// Whether the server lets it in within the time: says so once.
    pub(crate) fn is_in(&mut self, within: Duration) -> bool {
        if !self.readable(within) {
            return false;
        }
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line == "in\n"
    }

    /// Whether the session carries bytes there and back within the time.
    pub(crate) fn is_alive(&mut self, within: Duration) -> bool {
        let Some(input) = &mut self.input else { return false };
        if input.write_all(b"x").is_err() || !self.readable(within) {
            return false;
        }
        let mut echo = [0];
        self.output.read_exact(&mut echo).is_ok() && echo == *b"x"
    }

    /// Logs out and waits for the client's end.
    pub(crate) fn close(mut self, within: Duration) {
        drop(self.input.take());
        let mut ended = None;
        wait_until(within, || {
            ended = self.client.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "ssh ended with {ended:?}");
    }

    fn readable(&self, within: Duration) -> bool {
        let pipe = self.output.get_ref().as_fd();
        let mut wanted = [PollFd::new(pipe, PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(within).unwrap();
        poll(&mut wanted, limit).unwrap() > 0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ended and reaped already if the session was closed.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
