//! The real program: one wake server of several, on a loopback address of its own.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

const TOKEN: &str = "opensesame-opensesame-opensesame";

/// Killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> PathBuf {
    let here = env::current_exe().unwrap();
    let profile = here.parent().and_then(Path::parent).unwrap();
    profile.join("vmstation-wake-server")
}

/// An address that nothing else in this process has: a port that is free there stays so.
fn free() -> SocketAddr {
    static GIVEN: AtomicU16 = AtomicU16::new(1);
    let [high, low] = GIVEN.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, 1, high, low), 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Status line and all of the answer to a request of an operator, or of an agent; empty: nobody is there.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return String::new();
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-auth-token: {TOKEN}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_string(&mut answer).await
    };
    match asked.await {
        Ok(_) => answer,
        Err(_) => String::new(),
    }
}

impl Program {
    /// Has its files in the folder, as `name`. `nodes`: the registry; `access`: a kubeconfig; `settings`: the rest of `[kubernetes]`, and
    /// the sections after it.
    pub(crate) fn start(folder: &Path, name: &str, nodes: &str, access: &Path, settings: &str) -> Self {
        let address = free();
        let file = |kind: &str, text: &str| {
            let path = folder.join(format!("{name}.{kind}"));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let (token, nodes) = (file("token", TOKEN), file("nodes.toml", nodes));
        let config = file(
            "toml",
            &format!(
                "listen = \"{address}\"\ntoken_file = {token:?}\nstate_dir = {:?}\nregistry = [{nodes:?}]\n[limits]\n\
                 requests_per_minute = 1_000_000\n[kubernetes]\nkubeconfig = {access:?}\nadvertise = \"http://{address}\"\n{settings}",
                folder.join(name),
            ),
        );
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(program())
            .arg("--config")
            .arg(config)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("build the binaries of the workspace first: `cargo xtask test` does");
        Self { child, address, log }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it said of itself.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    /// As [`ask`], without a body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> String {
        ask(self.address, method, path, "").await
    }

    /// Asks until the answer has these words.
    pub(crate) async fn until(&self, method: &str, path: &str, words: &str) -> String {
        let mut answer = String::new();
        for _ in 0..400 {
            answer = self.ask(method, path).await;
            if answer.contains(words) {
                return answer;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{method} {path}: no {words} in {answer}\n{}", self.log());
    }

    /// Until it leads, or does not.
    pub(crate) async fn leads(&self, leads: u8) {
        let line = format!("vmstation_wake_server_is_leader {leads}\n");
        self.until("GET", "/metrics", &line).await;
    }
}
