//! Two of the real programs.

use std::{
    env, fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
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

use crate::{
    kube_fake::KubeFake,
    standing::{kubeconfig, run},
};

const TOKEN: &str = "opensesame-opensesame-opensesame";

/// Ends when it is dropped.
struct Program {
    child: Child,
    port: u16,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn program() -> PathBuf {
    let here = env::current_exe().unwrap();
    let profile = here.parent().and_then(Path::parent).unwrap();
    profile.join("vmstation-wake-server")
}

impl Program {
    fn start(folder: &Path, name: &str, fake: &KubeFake) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let token = folder.join("token");
        fs::write(&token, TOKEN).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let nodes = folder.join("nodes.toml");
        fs::write(&nodes, "[[node]]\nname = \"worker-01\"\nmac = \"02:00:00:00:00:03\"\n").unwrap();
        let access = kubeconfig(folder, &format!("{name}.kubeconfig"), &fake.url(), fake.token());
        let config = folder.join(format!("{name}.toml"));
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\nstate_dir = \"{}\"\nregistry = [\"{}\"]\n[limits]\nrequests_per_minute = 100000\n[kubernetes]\n\
             kubeconfig = \"{}\"\nadvertise = \"http://127.0.0.1:{port}\"\nlease_duration = \"5m\"\nrenew = \"200ms\"\n",
            token.display(),
            folder.join(name).display(),
            nodes.display(),
            access.display(),
        );
        fs::write(&config, text).unwrap();
        let child = Command::new(program())
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// Status line and all of the answer; empty: nobody is there.
    async fn ask(&self, method: &str, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)).await else {
            return String::new();
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-auth-token: {TOKEN}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
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

    async fn until(&self, method: &str, path: &str, words: &str) -> String {
        let mut answer = String::new();
        for _ in 0..400 {
            answer = self.ask(method, path).await;
            if answer.contains(words) {
                return answer;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{method} {path}: no {words} in {answer}");
    }

    async fn leads(&self, leads: u8) {
        let line = format!("vmstation_wake_server_is_leader {leads}\n");
        self.until("GET", "/metrics", &line).await;
    }
}

pub(crate) fn pair() {
    run(async {
        let fake = KubeFake::start();
        let folder = tempfile::tempdir().unwrap();
        let mut a = Program::start(folder.path(), "a", &fake);
        a.leads(1).await;
        let b = Program::start(folder.path(), "b", &fake);
        b.leads(0).await;
        // An order that only the leader has: it is given through the follower.
        let given = b.until("POST", "/sleep/worker-01", "HTTP/1.1 202").await;
        assert!(given.contains("\"sleep\""), "{given}");
        let orders = |answer: String| {
            answer
                .rsplit_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .unwrap_or_default()
        };
        let path = "/v1/nodes/worker-01/orders";
        let of_leader = orders(a.ask("GET", path).await);
        assert!(of_leader.contains("\"sleep\""), "{of_leader}");
        assert_eq!(orders(b.ask("GET", path).await), of_leader);
        let unknown = b.ask("POST", "/sleep/nobody").await;
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
        // The lease lasts for longer than the trial: it is given back.
        kill(Pid::from_raw(a.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(a.child.wait().unwrap().success());
        b.leads(1).await;
        let unknown = b.ask("POST", "/sleep/nobody").await;
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    });
}
