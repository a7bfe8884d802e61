//! The program itself, on a socket that it is passed: what it says in its log, and what it reads again. Nobody is woken.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
use tempfile::TempDir;

use crate::{
    real::TOKEN,
    running::{Answer, HANG, send, statuses, until_closed},
    wait::wait_until,
};

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: master:9876\r\nConnection: close\r\n\r\n";

/// It, and its files; both end with the value.
struct Program {
    address: SocketAddr,
    folder: TempDir,
    child: Child,
}

impl Program {
    /// With this configuration, in the folder.
    fn start(folder: TempDir, settings: &str) -> Self {
        Self::start_by(Command::new(binary()), folder, settings)
    }

    /// The same, by a command that takes the arguments and becomes it.
    fn start_by(mut command: Command, folder: TempDir, settings: &str) -> Self {
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let child = command
            .arg("--config")
            .arg(file("wake-server.toml", settings))
            .arg("--registry")
            .arg(file("nodes.toml", ""))
            .arg("--token-file")
            .arg(file("token", TOKEN))
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", "0")
            .env("NO_COLOR", "1")
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .stdin(OwnedFd::from(listener))
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .expect("build the binaries of the workspace first: `cargo xtask test` does");
        let program = Self { address, folder, child };
        // From here on no signal finds it without its handlers.
        program.told("serving");
        program
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits for these words in the log, and gives its line.
    fn told(&self, words: &str) -> String {
        assert!(
            wait_until(HANG, || self.log().contains(words)),
            "{words}: {}",
            self.log()
        );
        self.log().lines().find(|line| line.contains(words)).unwrap().to_owned()
    }

    fn reload(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream
    }

    /// What comes until it closes.
    fn all(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        send(&mut stream, bytes.as_ref());
        until_closed(&mut stream)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, if it failed.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn binary() -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join("vmstation-wake-server")
}

#[test]
fn every_request_that_the_server_itself_refuses_leaves_a_line() {
    let limits = "[limits]\nbody_timeout = \"100ms\"\nbody_bytes = 1024\n";
    let post = "POST /wake/a%0ab?c=secret HTTP/1.1\r\nHost: master\r\n";
    for (request, status, line) in [
        (
            format!("{post}Content-Length: 1025\r\n\r\n"),
            413,
            "method=POST path=\"/wake/a%0ab\" status=413",
        ),
        (
            format!("{post}Content-Length: 10\r\n\r\n{{}}"),
            408,
            "method=POST path=\"/wake/a%0ab\" status=408",
        ),
        (
            format!("{post}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
            400,
            "method=POST path=\"/wake/a%0ab\" status=400",
        ),
        ("\u{1b}[31m\r\n\r\n".to_owned(), 400, "what is no request refused"),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: a\r\n".repeat(65)),
            431,
            "message head is too large",
        ),
    ] {
        let program = Program::start(tempfile::tempdir().unwrap(), limits);
        let heard = program.all(&request);
        assert_eq!(statuses(&heard), [status], "{heard}");
        let told = program.told(line);
        for part in ["INFO audit:", "refused", "client=127.0.0.1", "left_out=0"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let log = program.log();
        assert!(!log.contains("secret") && !log.contains('\u{1b}'), "{log}");
    }
}

#[test]
fn w8_a_flood_leaves_few_lines_with_a_count() {
    const REQUESTS: usize = 400;
    let program = Program::start(tempfile::tempdir().unwrap(), "[limits]\nrequests_per_minute = 1\n");
    let mut stream = program.connect();
    let flood = "GET /status HTTP/1.1\r\nHost: master\r\n\r\n";
    for number in 0..REQUESTS {
        send(&mut stream, flood.as_bytes());
        assert_eq!(Answer::read(&mut stream).status, if number == 0 { 200 } else { 429 });
    }
    // Whatever was left out is counted in the next line, which comes with a refusal of a later second.
    let counted = || {
        let log = program.log();
        let left_out = log.lines().filter_map(|line| line.split("left_out=").nth(1));
        let left_out = left_out.map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap());
        left_out.fold((0, 0), |(lines, left), more| (lines + 1, left + more))
    };
    let mut sent = REQUESTS - 1;
    let is_told = wait_until(HANG, || {
        send(&mut stream, flood.as_bytes());
        let refused = Answer::read(&mut stream).status == 429;
        sent += usize::from(refused);
        let (lines, left_out) = counted();
        refused && lines > 1 && lines + left_out == sent
    });
    assert!(is_told, "{sent} refused, {:?} told: {}", counted(), program.log());
    let (lines, left_out) = counted();
    assert!(left_out > lines, "{lines} lines, {left_out} left out");
}

#[test]
fn connections_that_are_refused_leave_a_line() {
    let folder = || tempfile::tempdir().unwrap();
    let elsewhere = Program::start(folder(), "allow_from = [\"192.0.2.0/24\"]\n");
    assert_eq!(elsewhere.all(HEALTH), "");
    let told = elsewhere.told("connection refused");
    assert!(told.contains("INFO audit:") && told.contains("allow_from"), "{told}");

    let few = Program::start(folder(), "[limits]\nconnections_per_client = 1\n");
    let mut only = few.connect();
    // It stays open.
    send(&mut only, HEALTH.replace("Connection: close\r\n", "").as_bytes());
    assert_eq!(Answer::read(&mut only).status, 200);
    assert_eq!(few.all(HEALTH), "");
    let told = few.told("connection refused");
    assert!(told.contains("limits.connections_per_client"), "{told}");
}

#[test]
fn w8_as_many_descriptors_as_it_may_have_and_a_warning_if_they_are_few() {
    for (connections, is_warned) in [(190, false), (200, true)] {
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -Sn 128 && ulimit -Hn 256 && exec \"$0\" \"$@\""])
            .arg(binary());
        let settings = format!("[limits]\nconnections = {connections}\nconnections_per_client = 9\n");
        let program = Program::start_by(command, tempfile::tempdir().unwrap(), &settings);
        let limits = fs::read_to_string(format!("/proc/{}/limits", program.child.id())).unwrap();
        let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let words: Vec<_> = open_files.split_whitespace().collect();
        assert_eq!(words[3..5], ["256", "256"], "{open_files}");
        // It stands before what the program told when it was ready.
        let log = program.log();
        let warning = log
            .lines()
            .find(|line| line.contains("WARN") && line.contains("LimitNOFILE=264"));
        assert_eq!(warning.is_some(), is_warned, "{log}");
    }
}

/// A certificate of its own making, and its key, PEM.
fn pair() -> (rcgen::Certificate, [String; 2]) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = [made.cert.pem(), made.signing_key.serialize_pem()];
    (made.cert, pem)
}

/// What a client hears that trusts this certificate alone; none: it does not trust the server.
fn heard_with(program: &Program, trusted: &rcgen::Certificate) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, program.connect());
    stream.write_all(HEALTH.as_bytes()).ok()?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("ended by close_notify");
    Some(heard)
}

#[test]
fn a_new_certificate_is_taken_at_sighup_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    let write = |[chain, private]: &[String; 2]| {
        fs::write(&certificate, chain).unwrap();
        fs::write(&key, private).unwrap();
    };
    let ((first, first_pem), (second, second_pem)) = (pair(), pair());
    write(&first_pem);
    let settings = format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let program = Program::start(folder, &settings);
    let is_answered = |trusted| heard_with(&program, trusted).is_some_and(|heard| statuses(&heard) == [200]);
    assert!(is_answered(&first) && !is_answered(&second));

    // Two of different pairs, as between two writes of whoever renews them.
    write(&[second_pem[0].clone(), first_pem[1].clone()]);
    program.reload();
    let told = program.told("those before stay in force");
    assert!(told.contains("ERROR") && told.contains("cert.pem"), "{told}");
    assert!(is_answered(&first) && !is_answered(&second));

    write(&second_pem);
    program.reload();
    program.told("certificate and key read again");
    assert!(is_answered(&second) && !is_answered(&first));
}
