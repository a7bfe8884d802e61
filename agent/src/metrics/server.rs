//! The figures over HTTP: `GET /metrics` and nothing else. Bounds every client in size, time and number.
//!
//! Owns its connections; they end with the future of [`serve`]. Asks the driver for the text when a client asks for it, never before.
//! There is no password and no TLS: the address it listens on decides who may read.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Most clients at a time; one more is closed at once.
pub const MAX_CLIENTS: usize = 8;
/// Time a client has to send the head of its request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time from the first byte to the last: a client that does not take its answer is closed.
const CLIENT_DEADLINE: Duration = Duration::from_secs(15);
/// Time the driver has to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a request's head; hyper takes no less.
const MAX_HEAD: usize = 8192;
/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Asks for the text of this moment.
pub type Asker = mpsc::Sender<oneshot::Sender<String>>;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address} ([metrics] listen): {source}; choose another address or leave `listen` out")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on `address`; to be called on a tokio runtime with I/O enabled.
///
/// # Errors
/// The address is taken, or not of this host.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listening = || {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listening().map_err(|source| ListenError { address, source })
}

/// Serves clients until the receiving end of `asker` is closed. Cancel-safe: dropping the future closes every connection.
pub async fn serve(listener: TcpListener, asker: Asker) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = asker.closed() => return,
            accepted = listener.accept() => accepted,
        };
        while clients.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if clients.len() < MAX_CLIENTS => {
                clients.spawn(converse(stream, asker.clone()));
            }
            Ok((stream, peer)) => {
                debug!(%peer, "too many clients ask for metrics: one is closed");
                drop(stream);
            }
            Err(error) => {
                warn!(%error, "cannot accept a client that asks for metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One request, one answer.
async fn converse(stream: TcpStream, asker: Asker) {
    let service = service_fn(move |request| answer(request, asker.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CLIENT_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client that asks for metrics is closed"),
        Err(_) => debug!("a client that asks for metrics is too slow and closed"),
    }
}

async fn answer(request: Request<Incoming>, asker: Asker) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET) => match ask(&asker).await {
            Some(text) => (StatusCode::OK, OPEN_METRICS, text),
            None => (
                StatusCode::SERVICE_UNAVAILABLE,
                PLAIN,
                "the agent does not answer\n".into(),
            ),
        },
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET only\n".into()),
        (_, _) => (StatusCode::NOT_FOUND, PLAIN, "there is /metrics only\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    Ok(response)
}

/// The driver's text; `None` if it is too busy or gone.
async fn ask(asker: &Asker) -> Option<String> {
    let (reply, answered) = oneshot::channel();
    let asked = async {
        asker.send(reply).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER_DEADLINE, asked).await.ok()?
}
