//! One connection from its first byte to its last.

use std::{
    convert::Infallible,
    error::Error as _,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, header::CONNECTION},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::timeout,
};
use tracing::debug;

use super::{
    Client, Limits, Server,
    patience::{Answer, Patience, Stage},
    problem,
};
use crate::clock::Moment;

/// Longest head of a request, its first line included, bytes.
const LONGEST_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MOST_HEADERS: usize = 64;
/// What is still taken from a client after the last answer, bytes, so that it reads the answer and not a reset.
const LINGER_BYTES: u64 = 256 << 10;
/// And how long.
const LINGER: Duration = Duration::from_secs(1);

/// Why a body is not handed on.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    TooLong { most: usize },
    TooSlow { within: Duration },
    Malformed,
}

/// Answers requests one after the other. Cancel-safe: dropping the future closes the connection.
pub(super) async fn converse<S>(server: &Arc<Server>, stream: S, client: IpAddr, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &server.limits;
    let stage = Stage::new();
    let stream = Patience::new(stream, stage.clone(), limits.header_timeout, limits.idle_timeout);
    let service = service_fn(|request| {
        stage.request();
        let (server, stage) = (Arc::clone(server), stage.clone());
        async move {
            let response = answer(&server, client, request).await;
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, stage)))
        }
    });
    let mut connection = http1(limits).serve_connection(TokioIo::new(stream), service);
    // It ends as well with the sender, which nobody drops before.
    let stop = pin!(async { drop(stopping.wait_for(|stop| *stop).await) });
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stop => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let mut is_answered = ended.is_ok();
    if let Err(error) = &ended {
        let why = error.source().map(ToString::to_string);
        debug!(%client, %error, why, "a connection ended early");
        // hyper answers what it cannot read with 400, 414 or 431 before it gives up.
        if error.is_parse() && !error.is_timeout() {
            server.audit.bytes(client, error);
            is_answered = true;
        }
    }
    if is_answered {
        linger(connection.into_parts().io.into_inner()).await;
    }
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The stream's own deadlines are shorter; this one bounds the head of a request that came along with the one before.
        .header_read_timeout(limits.idle_timeout.saturating_add(limits.header_timeout))
        .max_headers(MOST_HEADERS)
        .max_header_size(LONGEST_HEAD)
        .max_buf_size(LONGEST_HEAD);
    builder
}

/// A socket closed with bytes unread resets the connection, and the client may lose the answer (RFC 9112, section 9.6).
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let drained = async {
        // Already shut down in most cases, which is an error then.
        let _shut_down = stream.shutdown().await;
        tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // What is not drained by then is reset: nothing more can be done for that client.
    let _in_time = timeout(LINGER, drained).await;
}

async fn answer(server: &Server, client: IpAddr, request: Request<Incoming>) -> Response {
    let (mut parts, body) = request.into_parts();
    let refused = |response: Response| {
        let status = response.status().as_u16();
        server.audit.request(client, &parts.method, parts.uri.path(), status);
        response
    };
    if let Err(too_many) = server.clients.admit(client, Moment::now()) {
        return refused(too_many.into_response());
    }
    let body = match read(body, &server.limits).await {
        Ok(body) => body,
        Err(unread) => return refused(unread.into_response()),
    };
    parts.extensions.insert(Client(client));
    match server.app.call(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The whole body: the application never waits for a client.
async fn read(body: Incoming, limits: &Limits) -> Result<Body, Unread> {
    let most = limits.body_bytes;
    if body.is_end_stream() {
        return Ok(Body::empty());
    }
    // Said beforehand, it is refused beforehand: `Expect: 100-continue` is not told to go on.
    if body.size_hint().lower() > most as u64 {
        return Err(Unread::TooLong { most });
    }
    let within = limits.body_timeout;
    match timeout(within, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(Body::from(collected.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unread::TooLong { most }),
        Ok(Err(_malformed)) => Err(Unread::Malformed),
        Err(_elapsed) => Err(Unread::TooSlow { within }),
    }
}

impl IntoResponse for Unread {
    /// After each the connection is closed: where the next request begins is not known.
    fn into_response(self) -> Response {
        let mut response = match self {
            Self::TooLong { most } => problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body of a request has at most {most} bytes (limits.body_bytes)"),
            ),
            Self::TooSlow { within } => problem(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                format!("the body of a request has to be there within {within:?} (limits.body_timeout)"),
            ),
            Self::Malformed => problem(
                StatusCode::BAD_REQUEST,
                "bad_body",
                "the body ends early, or its chunks are malformed",
            ),
        };
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::{LINGER_BYTES, linger};

    #[tokio::test]
    async fn w5_the_rest_of_a_request_is_taken_up_to_a_bound() {
        let most = usize::try_from(LINGER_BYTES).unwrap();
        let (mut client, server) = duplex(1024);
        let (_lingered, written) = tokio::join!(linger(server), async {
            client.write_all(&vec![0; most]).await?;
            client.shutdown().await
        });
        written.expect("all of it is taken");

        let (mut client, server) = duplex(1024);
        let endless = vec![0; most + 2048];
        let (_lingered, written) = tokio::join!(linger(server), client.write_all(&endless));
        assert_eq!(written.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
