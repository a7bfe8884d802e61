//! A wake server on a master, and what curl gets from it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    lan::{Host, MASTER, WORKERS, card, switch},
    wait::wait_until,
};

pub(crate) const TOKEN: &str = "your-token";
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
const DEADLINE: Duration = Duration::from_secs(20);

/// A master with a wake server, two workers that the registry knows, one LAN.
pub(crate) struct Master {
    pub(crate) host: Host,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

/// What curl got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl Master {
    /// With a server that has `[wake]` settings of a trial.
    pub(crate) fn new(wake: &str) -> Self {
        switch("lan");
        let host = Host::new();
        host.plug("lan", "lan0", MASTER, Some("192.0.2.1/24"));
        Self::on(host, &nodes(), wake)
    }

    /// With a server on a host that is plugged in already, and a registry.
    pub(crate) fn on(host: Host, registry: &str, wake: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut master = Self {
            host,
            folder,
            child: None,
        };
        master.write("token", TOKEN);
        master.write("secret", SECRET);
        master.write("nodes.toml", registry);
        master.write(
            "wake-server.toml",
            &format!(
                "secret_file = {:?}\n[wake]\nnode_interval = \"10ms\"\n{wake}\n",
                master.file("secret")
            ),
        );
        master.start();
        master
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(self.file(name), text).unwrap();
        fs::set_permissions(self.file(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))
            .unwrap();
        let mut command = Command::new(program("vmstation-wake-server"));
        command
            .args(["--config".as_ref(), self.file("wake-server.toml").as_os_str()])
            .args(["--listen", "0.0.0.0:9876"])
            .args(["--registry".as_ref(), self.file("nodes.toml").as_os_str()])
            .args(["--token-file".as_ref(), self.file("token").as_os_str()])
            .args(["--state-dir".as_ref(), self.file("state").as_os_str()])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stderr(log);
        let start = || {
            command
                .spawn()
                .expect("build the binaries of the workspace first: `cargo xtask test` does")
        };
        self.child = Some(self.host.run(start));
        let answers = wait_until(DEADLINE, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the server ended: {}",
                fs::read_to_string(self.file("log")).unwrap()
            );
            self.host.run(|| get("http://master:9876/health")).status == 200
        });
        assert!(answers, "the server does not answer: {}", self.log());
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn reload(&self) {
        let child = self.child.as_ref().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap()
    }

    /// What curl gets with these arguments, on the master, where `master` is its own name.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Answer {
        self.host.run(|| curl(arguments))
    }

    /// A request with the operators' token.
    pub(crate) fn post(&self, path: &str) -> Answer {
        let token = format!("X-Auth-Token: {TOKEN}");
        self.curl(&["-X", "POST", &format!("http://master:9876{path}"), "-H", &token])
    }

    /// The same that takes something back.
    pub(crate) fn delete(&self, path: &str) -> Answer {
        let token = format!("X-Auth-Token: {TOKEN}");
        self.curl(&["-X", "DELETE", &format!("http://master:9876{path}"), "-H", &token])
    }

    /// A node in the status.
    pub(crate) fn node(&self, name: &str) -> Value {
        let status = self.curl(&["http://master:9876/status"]).json();
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .find(|node| node["name"] == name)
            .cloned()
            .unwrap_or_default()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// The registry: both workers.
pub(crate) fn nodes() -> String {
    let node = |number: usize| {
        let mac = card(WORKERS[number - 1]);
        format!("[[node]]\nname = \"worker-0{number}\"\nmac = \"{mac}\"\naddress = \"192.0.2.1{number}\"\n")
    };
    node(1) + &node(2)
}

fn get(url: &str) -> Answer {
    curl(&[url])
}

fn curl(arguments: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--resolve",
            "master:9876:127.0.0.1",
        ])
        .args(["--write-out", "\n%{http_code}"])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (text, status) = text.rsplit_once('\n').unwrap();
    Answer {
        status: status.parse().unwrap(),
        text: text.to_owned(),
    }
}

/// A program of the workspace.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join(name)
}
