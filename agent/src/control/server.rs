//! The agent's end of the control socket: bounds every client in size, time and number, checks its right, and hands [`Call`]s on.
//!
//! Owns the socket file and the client tasks; both end with the future of [`ControlServer::serve`]. Never reads or changes the
//! agent's state.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
        stat::{self, Mode},
    },
    unistd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Answer, Call, PROTOCOL, Peer, Question, RefusalCode, Request, Response};

/// Longest request line, bytes, its line feed included.
const MAX_REQUEST: usize = 4096;
/// Most clients at a time.
const MAX_CLIENTS: usize = 32;
/// Time a client has to send its request, and again to take its answer.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);
/// Time the driver has to answer. Shorter than the client's patience, so that it hears why.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Owner and group may connect; the rights of a peer are checked besides.
const SOCKET_MODE: u32 = 0o660;

/// The bound control socket. Dropping it removes the socket file, if it is still this one.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    file: SocketFile,
    agent_uid: u32,
}

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("cannot listen on {}: another process answers there; is the agent already running?", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("cannot listen on {}: it exists and is not a socket; move it away or choose another --socket", path.display())]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot listen on {}: {action}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A socket file this process made, recognised by device and inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl ControlServer {
    /// Listens on `path` with mode 0660; makes its folder (0755) if there is none. A socket nobody answers on is replaced.
    ///
    /// To be called on a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// [`BindError`]: somebody answers there, something else is there, or a system call failed.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |action| {
            move |source: io::Error| BindError::Io {
                path: path.into(),
                action,
                source,
            }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(failed("making its folder"))?;
        }
        remove_stale(path)?;
        let listener = listen(path).map_err(|error| match error {
            Errno::EADDRINUSE => BindError::InUse { path: path.into() },
            error => failed("making the socket")(error.into()),
        })?;
        let file = SocketFile::made_at(path).map_err(failed("looking at the socket just made"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed("setting its mode"))?;
        let listener = UnixListener::from_std(listener.into()).map_err(failed("registering it with the runtime"))?;
        Ok(Self {
            listener,
            file,
            agent_uid: unistd::geteuid().as_raw(),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Serves clients until the receiving end of `calls` is closed. Cancel-safe: dropping the future closes every connection and
    /// removes the socket file.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = calls.closed() => return,
                accepted = self.listener.accept() => accepted,
            };
            while clients.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if clients.len() < MAX_CLIENTS => {
                    clients.spawn(converse(stream, calls.clone(), self.agent_uid));
                }
                Ok((stream, _)) => turn_away(stream),
                Err(error) => {
                    warn!(%error, "cannot accept a client on the control socket");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Removes a socket nobody answers on; leaves everything else alone.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |action| {
        move |source: io::Error| BindError::Io {
            path: path.into(),
            action,
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking for an older socket")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    match probe(path) {
        Err(Errno::ECONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing a stale socket")(error)),
            Ok(()) | Err(_) => Ok(()),
        },
        Err(Errno::ENOENT) => Ok(()),
        // EAGAIN: somebody listens and has a full queue.
        Ok(()) | Err(Errno::EAGAIN) => Err(BindError::InUse { path: path.into() }),
        Err(error) => Err(failed("asking whether an older socket still answers")(error.into())),
    }
}

/// Connects without waiting.
fn probe(path: &Path) -> nix::Result<()> {
    let socket = stream_socket()?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Binds with no more than the final mode at any moment: Linux takes the mode of the unbound socket, less the umask (`unix_bind_bsd` in
/// net/unix/af_unix.c).
fn listen(path: &Path) -> nix::Result<OwnedFd> {
    let socket = stream_socket()?;
    stat::fchmod(&socket, Mode::from_bits_truncate(SOCKET_MODE))?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}

fn stream_socket() -> nix::Result<OwnedFd> {
    socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

impl SocketFile {
    fn made_at(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.into(),
            identity: (made.dev(), made.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Tells a client beyond the limit so at once, without waiting for anything it does.
fn turn_away(stream: UnixStream) {
    let line = encode(Response::refused(
        RefusalCode::Busy,
        format!("the agent already serves {MAX_CLIENTS} clients; try again in a few seconds"),
    ));
    // The line fits the empty send buffer of a fresh socket, so one write that does not wait takes all of it.
    let told = stream
        .into_std()
        .and_then(|mut stream| io::Write::write(&mut stream, &line));
    debug!(?told, "turned a client away: too many at a time");
}

/// One client from its first byte to its last.
async fn converse(mut stream: UnixStream, calls: mpsc::Sender<Call>, agent_uid: u32) {
    let Some(response) = answer(&mut stream, &calls, agent_uid).await else {
        return;
    };
    let line = encode(response);
    match timeout(CLIENT_DEADLINE, stream.write_all(&line)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client went away before its answer"),
        Err(_) => debug!("dropped a client that does not read its answer"),
    }
}

/// The answer for this client; `None` if it left without asking.
async fn answer(stream: &mut UnixStream, calls: &mpsc::Sender<Call>, agent_uid: u32) -> Option<Response> {
    let peer = match stream.peer_cred() {
        Ok(cred) => Peer {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid().unwrap_or(0),
        },
        Err(error) => {
            warn!(%error, "cannot tell who is on the control socket");
            return None;
        }
    };
    let line = match timeout(CLIENT_DEADLINE, read_line(stream)).await {
        Ok(Ok(Line::Complete(line))) => line,
        Ok(Ok(Line::Nothing) | Err(_)) => return None,
        Ok(Ok(Line::TooLong)) => {
            let message = format!("a request is one line of at most {MAX_REQUEST} bytes");
            return Some(Response::refused(RefusalCode::TooLarge, message));
        }
        Err(_) => {
            let message = format!("the request did not come within {} s", CLIENT_DEADLINE.as_secs());
            return Some(Response::refused(RefusalCode::Timeout, message));
        }
    };
    let request = match permitted(&line, peer, agent_uid) {
        Ok(request) => request,
        Err(refusal) => return Some(refusal),
    };
    Some(ask_driver(request, peer, calls).await)
}

enum Line {
    Complete(Vec<u8>),
    TooLong,
    Nothing,
}

/// Reads up to the first line feed, or the end of what the client sends.
async fn read_line(stream: &mut UnixStream) -> io::Result<Line> {
    let mut line = Vec::with_capacity(256);
    let mut part = [0; 1024];
    loop {
        let length = stream.read(&mut part).await?;
        let ended = length == 0 || part[..length].contains(&b'\n');
        line.extend(part[..length].iter().take_while(|byte| **byte != b'\n'));
        match (line.len() < MAX_REQUEST, ended) {
            (false, _) => return Ok(Line::TooLong),
            (true, true) if line.iter().all(u8::is_ascii_whitespace) => return Ok(Line::Nothing),
            (true, true) => return Ok(Line::Complete(line)),
            (true, false) => {}
        }
    }
}

/// The request of a line, if it is one and this peer may make it.
fn permitted(line: &[u8], peer: Peer, agent_uid: u32) -> Result<Request, Response> {
    /// The part of a line that is read first, because the rest may be of another protocol.
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }

    let malformed = |error: serde_json::Error| {
        let message = format!("not a request of protocol {PROTOCOL}: {error}");
        Response::refused(RefusalCode::BadRequest, message)
    };
    let Version { protocol } = serde_json::from_slice(line).map_err(malformed)?;
    if protocol != PROTOCOL {
        let message = format!(
            "the request is of protocol {protocol}, the agent speaks {PROTOCOL}: use the vmstation-autosleep-ctl installed with the agent"
        );
        return Err(Response::refused(RefusalCode::UnsupportedProtocol, message));
    }
    let Question { request, .. } = serde_json::from_slice(line).map_err(malformed)?;
    request
        .check()
        .map_err(|message| Response::refused(RefusalCode::BadRequest, message))?;
    if request.changes() && !peer.may_change(agent_uid) {
        warn!(request = request.name(), %peer, "refused a change over the control socket");
        let message = format!(
            "`{}` is for root: uid {} may read (status, why, watch) but not change anything; use sudo",
            request.name(),
            peer.uid
        );
        return Err(Response::refused(RefusalCode::NotPermitted, message));
    }
    Ok(request)
}

async fn ask_driver(request: Request, peer: Peer, calls: &mpsc::Sender<Call>) -> Response {
    let stopping = || Response::refused(RefusalCode::Stopping, "the agent is stopping");
    let ask = async {
        let (reply, answered) = oneshot::channel();
        if calls.send(Call { request, peer, reply }).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    };
    timeout(ANSWER_DEADLINE, ask).await.unwrap_or_else(|_| {
        warn!("the driver did not answer a control request in time");
        let message = format!("the agent did not answer within {} s", ANSWER_DEADLINE.as_secs());
        Response::refused(RefusalCode::Timeout, message)
    })
}

fn encode(response: Response) -> Vec<u8> {
    let answer = Answer {
        protocol: PROTOCOL,
        response,
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_else(|error| {
        let message = format!("cannot write the answer as JSON: {error}");
        serde_json::json!({"protocol": PROTOCOL, "response": {"refused": {"code": "failed", "message": message}}})
            .to_string()
            .into_bytes()
    });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use tokio::sync::mpsc;

    use super::{BindError, ControlServer, Peer, RefusalCode, Request, Response, permitted};

    fn refusal(line: &str, uid: u32) -> Option<RefusalCode> {
        let peer = Peer { uid, gid: 100, pid: 1 };
        match permitted(line.as_bytes(), peer, 990) {
            Err(Response::Refused { code, .. }) => Some(code),
            Ok(_) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn reading_and_changing_are_separate_rights() {
        let reading = [Request::Status, Request::Why];
        let hold = Request::Hold {
            seconds: 60,
            reason: None,
        };
        let changing = [
            Request::Enable,
            Request::Disable,
            Request::Reset,
            hold,
            Request::Release,
            Request::NotifyTest,
        ];
        let refused = |request: &Request, uid| {
            let line = serde_json::json!({"protocol": 1, "request": request}).to_string();
            refusal(&line, uid)
        };
        for request in &reading {
            assert_eq!(refused(request, 1000), None, "{request:?}");
        }
        for request in &changing {
            assert_eq!(refused(request, 1000), Some(RefusalCode::NotPermitted), "{request:?}");
            assert_eq!(refused(request, 0), None, "{request:?}");
            assert_eq!(refused(request, 990), None, "{request:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        assert_eq!(refusal("nonsense", 0), Some(RefusalCode::BadRequest));
        assert_eq!(refusal(r#"{"protocol":1}"#, 0), Some(RefusalCode::BadRequest));
        assert_eq!(
            refusal(r#"{"protocol":1,"request":{"hold":{"seconds":0}}}"#, 0),
            Some(RefusalCode::BadRequest)
        );
        assert_eq!(
            refusal(r#"{"protocol":2,"request":{"dance":[]}}"#, 0),
            Some(RefusalCode::UnsupportedProtocol)
        );
    }

    async fn bound(path: &Path) -> Result<ControlServer, BindError> {
        ControlServer::bind(path)
    }

    #[tokio::test]
    async fn makes_its_folder_and_a_socket_for_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/vmstation/autosleep.sock");
        let server = bound(&path).await.unwrap();
        assert_eq!(server.path(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_socket_only_if_nobody_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale socket is left");
        let alive = bound(&path).await.unwrap();
        assert!(matches!(bound(&path).await, Err(BindError::InUse { .. })));
        assert!(path.exists());
        drop(alive);
        drop(bound(&path).await.unwrap());
    }

    #[tokio::test]
    async fn leaves_what_is_not_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bound(&path).await, Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let server = bound(&path).await.unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        fs::write(&path, "of somebody else").unwrap();
        drop(server);
        assert_eq!(fs::read_to_string(&path).unwrap(), "of somebody else");
    }

    #[tokio::test]
    async fn ends_with_its_driver() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let (calls, driver) = mpsc::channel(1);
        drop(driver);
        bound(&path).await.unwrap().serve(calls).await;
        assert!(!path.exists());
    }
}
