//! A real sshd on loopback with a throw-away host key and throw-away accounts, and clients for it.
//!
//! Root only. The server lives in a private mount namespace in which `/etc/passwd`, `/etc/shadow`, `/etc/group`, `/etc/pam.d` and `/run`
//! are the fixture's own; the host's are never touched, and its accounts cannot log in. So it does with an sshd that is unpacked
//! and not installed: `VMSTATION_SSHD` names it. [`Sshd`] and [`Session`] own their processes and end them when dropped; nobody else's.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// An account of the fixture that is not root.
pub(crate) const USER: &str = "vmtest";

const INSTALLED_SSHD: &str = "/usr/sbin/sshd";
/// `openssl passwd -6 -salt vmstation secret`
const PASSWORD: &str = "secret";
const PASSWORD_HASH: &str =
    "$6$vmstation$OJOkff9yqOvM7ybFhcYaqsGhnCXiFomleDE1B9QKyNVhojtM0.imVbhit9m6d7mYAz7QanEX/4FElXfgFF6j70";

/// Whether the server asks PAM, with pam_loginuid as Debian does, or looks accounts up itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pam {
    Yes,
    No,
}

/// How a client tries to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Key,
    Password,
    /// Wrong, this many times over one connection.
    WrongPassword(u32),
}

/// A running server.
pub(crate) struct Sshd {
    dir: tempfile::TempDir,
    server: Child,
    port: u16,
}

/// A client whose session runs `cat`.
pub(crate) struct Session {
    client: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Why the fixture cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    let programs = ["/usr/bin/ssh", "/usr/bin/ssh-keygen", "/usr/bin/unshare"].map(PathBuf::from);
    let missing = programs
        .into_iter()
        .chain([program()])
        .find(|program| !program.exists())?;
    Some(format!("{} is not installed", missing.display()))
}

/// The server's program, as an absolute path: sshd refuses another.
fn program() -> PathBuf {
    env::var_os("VMSTATION_SSHD").map_or_else(|| INSTALLED_SSHD.into(), PathBuf::from)
}

impl Sshd {
    /// Starts a server on a free port of 127.0.0.1 and waits until it listens.
    pub(crate) fn start(pam: Pam) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("vmstation-sshd-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        // Free a moment ago; should somebody else take it, sshd does not start and the test says so.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        write_files(dir.path(), port, pam)?;
        let server = Command::new("/usr/bin/unshare")
            .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-eu"])
            .arg(dir.path().join("start"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log"))?)
            .spawn()
            .context("start sshd")?;
        let mut sshd = Self { dir, server, port };
        for _ in 0..200 {
            if sshd.log().contains("Server listening") {
                return Ok(sshd);
            }
            ensure!(sshd.server.try_wait()?.is_none(), "sshd did not start: {}", sshd.log());
            sleep(Duration::from_millis(50));
        }
        bail!("sshd does not listen after 10 s: {}", sshd.log())
    }

    /// Port the server listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Everything the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// An ssh client up to and including the destination; add options of your own before calling with `options`, and a command after.
    pub(crate) fn client(&self, user: &str, login: Login, options: &[&str]) -> Command {
        let mut ssh = Command::new("/usr/bin/ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string()]);
        let set = |ssh: &mut Command, option: &str| {
            ssh.args(["-o", option]);
        };
        for option in [
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=60",
            // The default one takes seconds on an emulated CPU.
            "KexAlgorithms=curve25519-sha256",
        ] {
            set(&mut ssh, option);
        }
        let password = |ssh: &mut Command, askpass: &str, times: u32| {
            set(ssh, "PreferredAuthentications=password");
            set(ssh, &format!("NumberOfPasswordPrompts={times}"));
            ssh.env("SSH_ASKPASS", self.path(askpass))
                .env("SSH_ASKPASS_REQUIRE", "force");
        };
        match login {
            Login::Key => {
                set(&mut ssh, "PreferredAuthentications=publickey");
                set(&mut ssh, "IdentitiesOnly=yes");
                ssh.arg("-i").arg(self.path("client_key"));
            }
            Login::Password => password(&mut ssh, "askpass", 1),
            Login::WrongPassword(times) => password(&mut ssh, "askpass-wrong", times),
        }
        ssh.env_remove("SSH_AUTH_SOCK")
            .args(options)
            .arg(format!("{user}@127.0.0.1"));
        // What the server thinks of it stands in its log.
        ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ssh
    }

    /// Logs in and waits until the session answers.
    pub(crate) fn open(&self, user: &str, login: Login) -> anyhow::Result<Session> {
        let mut client = self
            .client(user, login, &[])
            .args(["exec", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start ssh")?;
        let stdin = client.stdin.take();
        let stdout = BufReader::new(client.stdout.take().context("no pipe")?);
        let mut session = Session { client, stdin, stdout };
        session
            .type_line()
            .with_context(|| format!("log in as {user}: {}", self.log()))?;
        Ok(session)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

impl Session {
    /// Sends a line and waits for its echo.
    pub(crate) fn type_line(&mut self) -> anyhow::Result<()> {
        self.stdin
            .as_mut()
            .context("the session is closed")?
            .write_all(b"typed\n")?;
        let mut echo = String::new();
        self.stdout.read_line(&mut echo)?;
        ensure!(echo == "typed\n", "the session answered {echo:?}");
        Ok(())
    }

    /// Logs out and waits for the client's end.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.client.wait()?;
        ensure!(status.success(), "ssh ended with {status}");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ended and reaped already if the session was closed.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // The group is the listener's own: servers of connections have left it, and end with their clients.
        let group = Pid::from_raw(self.server.id().cast_signed());
        let _ = killpg(group, Signal::SIGTERM);
        let _ = self.server.wait();
    }
}

/// Keys, accounts, configuration and the script that puts them in place, all below `dir`.
fn write_files(dir: &Path, port: u16, pam: Pam) -> anyhow::Result<()> {
    let at = dir.display();
    for key in ["host_key", "client_key"] {
        let made = Command::new("/usr/bin/ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(key))
            .status()
            .context("start ssh-keygen")?;
        ensure!(made.success(), "ssh-keygen ended with {made}");
    }
    let use_pam = match pam {
        Pam::Yes => "yes",
        Pam::No => "no",
    };
    let file = |name: &str, mode: u32, content: String| -> anyhow::Result<()> {
        fs::write(dir.join(name), content)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    file(
        "passwd",
        0o644,
        format!(
            "root:x:0:0::{at}:/bin/sh\n\
             sshd:x:4320:65534::/run/sshd:/usr/sbin/nologin\n\
             {USER}:x:4321:4321::{at}:/bin/sh\n"
        ),
    )?;
    file(
        "shadow",
        0o600,
        format!(
            "root:{PASSWORD_HASH}:19000:0:99999:7:::\n\
             sshd:!:19000::::::\n\
             {USER}:{PASSWORD_HASH}:19000:0:99999:7:::\n"
        ),
    )?;
    file(
        "group",
        0o644,
        format!("root:x:0:\ntty:x:5:\n{USER}:x:4321:\nnogroup:x:65534:\n"),
    )?;
    file(
        "pam",
        0o644,
        "auth required pam_unix.so nodelay\n\
         account required pam_unix.so\n\
         session required pam_loginuid.so\n\
         session required pam_unix.so\n"
            .into(),
    )?;
    file("askpass", 0o755, format!("#!/bin/sh\necho {PASSWORD}\n"))?;
    file("askpass-wrong", 0o755, "#!/bin/sh\necho wrong\n".into())?;
    file(
        "config",
        0o644,
        format!(
            "ListenAddress 127.0.0.1:{port}\n\
             HostKey {at}/host_key\n\
             AuthorizedKeysFile {at}/client_key.pub\n\
             StrictModes no\n\
             UsePAM {use_pam}\n\
             PasswordAuthentication yes\n\
             PermitRootLogin yes\n\
             MaxAuthTries 100\n\
             MaxStartups 200\n\
             PidFile none\n\
             PrintMotd no\n\
             Subsystem sftp internal-sftp\n"
        ),
    )?;
    file(
        "start",
        0o644,
        format!(
            "mount -t tmpfs tmpfs /run\n\
             mkdir -m 755 /run/sshd\n\
             mount --bind {at}/passwd /etc/passwd\n\
             mount --bind {at}/shadow /etc/shadow\n\
             mount --bind {at}/group /etc/group\n\
             mount -t tmpfs tmpfs /etc/pam.d\n\
             cp {at}/pam /etc/pam.d/sshd\n\
             exec {} -D -e -f {at}/config\n",
            program().display()
        ),
    )
}
