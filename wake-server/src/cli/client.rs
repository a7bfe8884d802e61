//! The wake server's HTTP API, as a client. Follows no redirect, and bounds what it waits for and what it reads.

use std::{io::Write as _, path::Path, time::Duration};

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use vmstation_protocol::{Problem, Status, TOKEN_HEADER};

use super::{Exit, Failure};
use crate::https::{self, HttpClient};

/// Until an answer begins, and between two parts of one: a server that streams says something every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Largest document, bytes: 10,000 nodes have room.
const LARGEST: usize = 32 << 20;

const EVENTS: &str = "text/event-stream";

/// In which form an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    /// As one document, at the end.
    Document,
    /// As events, while it goes on.
    Events,
}

impl Accept {
    const fn header(self) -> &'static str {
        match self {
            Self::Document => "application/json",
            Self::Events => EVENTS,
        }
    }
}

/// A client of one server.
pub(super) struct Client {
    base: String,
    token: Option<HeaderValue>,
    http: HttpClient<Empty<Bytes>>,
    trace: bool,
}

impl Client {
    /// A client of the server at this URL.
    pub(super) fn new(
        server: &str,
        token: Option<String>,
        ca_file: Option<&Path>,
        trace: bool,
    ) -> Result<Self, Failure> {
        let configuration = |message| Failure::new(Exit::Configuration, message);
        let base = server.trim_end_matches('/');
        let uri: Uri = base
            .parse()
            .map_err(|error| Failure::new(Exit::Usage, format!("{server:?} is no URL: {error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() || uri.path() != "/" {
            let message =
                format!("{server:?} is no URL of a server: write it as http://HOST:PORT or https://HOST:PORT");
            return Err(Failure::new(Exit::Usage, message));
        }
        let token = token.map(|token| {
            let mut value = HeaderValue::try_from(token)
                .map_err(|_| configuration("the token has characters that no header carries".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let is_tls = uri.scheme_str() == Some("https");
        Ok(Self {
            base: base.to_owned(),
            token: token.transpose()?,
            http: https::client(is_tls, ca_file).map_err(configuration)?,
            trace,
        })
    }

    /// `GET /status`.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        let response = self.send(Method::GET, "/status", Accept::Document.header()).await?;
        let status = response.status();
        let body = self.body(response).await?;
        if status == StatusCode::OK {
            return self.read(&body);
        }
        Err(refusal(status, &body))
    }

    /// Asks to wake, and tells each document of the progress if the server streams it; the last one is the answer. A wake that failed
    /// has a document as well.
    pub(super) async fn wake<T: DeserializeOwned>(
        &self,
        path: &str,
        accept: Accept,
        tell: impl FnMut(&T),
    ) -> Result<T, Failure> {
        let response = self.send(Method::POST, path, accept.header()).await?;
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE);
        if status == StatusCode::OK && kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENTS.as_bytes())) {
            return self.last(response.into_body(), tell).await;
        }
        let body = self.body(response).await?;
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => self.read(&body),
            StatusCode::CONFLICT | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                self.read(&body).map_err(|_| refusal(status, &body))
            }
            status => Err(refusal(status, &body)),
        }
    }

    async fn last<T: DeserializeOwned>(&self, mut body: Incoming, mut tell: impl FnMut(&T)) -> Result<T, Failure> {
        let mut unread = Vec::new();
        let mut last = None;
        while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| self.silent())? {
            let frame = frame.map_err(|error| self.broken(&error))?;
            let searched = unread.len();
            unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if unread.len() > LARGEST {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("{} sends events without an end", self.base),
                ));
            }
            for data in events(&mut unread, searched) {
                self.tell(|| format!("event: {}", String::from_utf8_lossy(&data).escape_debug()));
                let document: T = self.read(&data)?;
                tell(&document);
                last = Some(document);
            }
        }
        last.ok_or_else(|| Failure::new(Exit::Failed, format!("{} ended without an answer", self.base)))
    }

    async fn send(&self, method: Method, path: &str, accept: &'static str) -> Result<Response<Incoming>, Failure> {
        let url = format!("{}{path}", self.base);
        self.tell(|| format!("{method} {url}"));
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::ACCEPT, accept);
        if let Some(token) = &self.token {
            request = request.header(TOKEN_HEADER, token);
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Failure::new(Exit::Usage, format!("{url} is no address: {error}")))?;
        let response = timeout(SILENCE, self.http.request(request))
            .await
            .map_err(|_| self.silent())?
            .map_err(|error| self.broken(&error))?;
        self.tell(|| format!("status {}", response.status()));
        Ok(response)
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = timeout(SILENCE, Limited::new(response.into_body(), LARGEST).collect())
            .await
            .map_err(|_| self.silent())?
            .map_err(|error| self.broken(error.as_ref()))?
            .to_bytes();
        self.tell(|| format!("{} bytes", body.len()));
        Ok(body)
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| {
            let message = format!("{} answers something else than a wake server: {error}", self.base);
            Failure::new(Exit::Failed, message)
        })
    }

    fn silent(&self) -> Failure {
        let seconds = SILENCE.as_secs();
        Failure::new(
            Exit::TimedOut,
            format!("{} did not answer within {seconds} s", self.base),
        )
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut message = format!("cannot reach the wake server {}: {error}", self.base);
        let mut source = error.source();
        while let Some(why) = source {
            message.push_str(&format!(": {why}"));
            source = why.source();
        }
        Failure::new(Exit::Unreachable, message)
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if self.trace {
            let _nobody_reads = writeln!(std::io::stderr(), "vmstation-wake: {}", text());
        }
    }
}

/// Takes the data of the complete events out (WHATWG HTML, 9.2.6); comments and other fields are dropped. No event ends within the first
/// `searched` bytes.
fn events(unread: &mut Vec<u8>, searched: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut from = searched.saturating_sub(1);
    while let Some(end) = unread[from..].windows(2).position(|two| two == b"\n\n") {
        let event: Vec<u8> = unread.drain(..from + end + 2).collect();
        from = 0;
        let lines = event.split(|&byte| byte == b'\n');
        let data: Vec<&[u8]> = lines
            .filter_map(|line| line.strip_prefix(b"data:"))
            .map(|data| data.strip_prefix(b" ").unwrap_or(data))
            .collect();
        if !data.is_empty() {
            found.push(data.join(&b'\n'));
        }
    }
    found
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let exit = match status {
        StatusCode::BAD_REQUEST => Exit::Usage,
        StatusCode::UNAUTHORIZED => Exit::Unauthorized,
        StatusCode::FORBIDDEN | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => Exit::Refused,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Exit::TimedOut,
        _ => Exit::Failed,
    };
    let message = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => format!("the server answers: {}", problem.message.escape_debug()),
        Err(_) => format!("the server answers with status {status}"),
    };
    let hint = if exit == Exit::Unauthorized {
        " (here: --token-file FILE)"
    } else {
        ""
    };
    Failure::new(exit, message + hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = b": hello\n\nevent: wake\ndata: {\"a\":\ndata: 1}\n\ndata:2\n\n";
        for cut in 0..stream.len() {
            let (first, rest) = stream.split_at(cut);
            let mut unread = first.to_vec();
            let mut found = events(&mut unread, 0);
            let searched = unread.len();
            unread.extend_from_slice(rest);
            found.extend(events(&mut unread, searched));
            assert_eq!(found, [b"{\"a\":\n1}".to_vec(), b"2".to_vec()], "{cut}");
            assert!(unread.is_empty());
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for url in [
            "",
            "master",
            "ftp://master",
            "http://",
            "http://master/status",
            "http://a b",
        ] {
            let failure = Client::new(url, None, None, false).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage, "{url:?}");
        }
        for url in [
            "http://master:9876",
            "http://master:9876/",
            "https://[2001:db8::1]:9876",
        ] {
            assert!(Client::new(url, None, None, false).is_ok(), "{url:?}");
        }
    }
}
