//! One request to the wake server, and what may go wrong with it. Bounded in time and size; follows no redirect.
//!
//! The token is read from its file for each request and kept nowhere; it is in no error and no log. Words of the server are shortened
//! and made harmless before they are shown.

use std::{fs::File, io::Read as _, path::Path, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{sync::OnceCell, time::timeout};
use vmstation_protocol::{Leave, LeaveRequest, NodeName, Orders, Problem, Report, SCHEMA, TOKEN_HEADER};

use super::{Pace, SHOWN, contact::Told};
use crate::{
    config::{WakeServer, url_host},
    https::{self, HttpClient, Trust},
    keeper,
    printable::{printable, with_causes},
};

/// How much of an answer is read, bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// How much of a file with a token is read, bytes.
const LONGEST_TOKEN: u64 = 4 << 10;
/// Reasons that are told.
const REASONS: usize = 16;

/// The wake server, as this node asks it.
#[derive(Debug)]
pub struct Server {
    settings: WakeServer,
    node: NodeName,
    pace: Pace,
    /// Made for the first request; its certificates are read then.
    client: OnceCell<HttpClient>,
}

/// Why a request failed. The text continues "the wake server at HOST ..".
#[derive(Debug, Error)]
pub enum Failure {
    /// Nobody could be asked.
    #[error("does not answer: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("does not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The request could not be made: the token or the certificates.
    #[error("cannot be asked: {0}")]
    Unasked(String),
    /// The answer points elsewhere.
    #[error(
        "answers with status {0}, a redirect, and redirects are not followed: set `url` in [wake_server] to the address it leads to"
    )]
    Redirected(u16),
    /// It does not take the token.
    #[error("does not take {token} (status 401): make one for this node with `vmstation-wake token {node}`, {message}")]
    Unauthorized {
        /// Which token.
        token: String,
        /// The node.
        node: NodeName,
        /// What it says.
        message: String,
    },
    /// Any other answer that is no success.
    #[error("answers with status {status}: {message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// The answer is not what the protocol says.
    #[error("gives an answer that cannot be used: {0}")]
    Garbled(String),
}

impl Failure {
    /// Whether the same request could succeed later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent(_) => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Unasked(_) | Self::Redirected(_) | Self::Unauthorized { .. } | Self::Garbled(_) => false,
        }
    }
}

impl Server {
    /// Touches nothing yet.
    pub fn new(settings: WakeServer, node: NodeName, pace: Pace) -> Self {
        Self {
            settings,
            node,
            pace,
            client: OnceCell::new(),
        }
    }

    /// Its host, and port if one is configured.
    pub fn host(&self) -> &str {
        url_host(&self.settings.url)
    }

    /// A failure as a sentence.
    pub fn in_words(&self, failure: &Failure) -> String {
        format!("the wake server at {} {failure}", self.host())
    }

    pub(super) const fn pace(&self) -> Pace {
        self.pace
    }

    /// Tells what the host does. Orders that the answer lists were there before.
    pub(super) async fn report(&self, told: &Told) -> Result<Orders, Failure> {
        let report = Report {
            schema: SCHEMA,
            node: self.node.clone(),
            boot_id: keeper::boot_id(),
            resumes: told.resumes,
            activity: told.activity,
            reasons: told.reasons.iter().take(REASONS).map(|reason| shown(reason)).collect(),
            ports: told.ports.clone().unwrap_or_default(),
            role: None,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let orders = self
            .ask(Method::POST, "report", Some(&report), self.pace.answer)
            .await?;
        of_this_version(orders)
    }

    /// Orders after the one with this number; the server holds the question until there is one, or some minutes.
    pub(super) async fn orders(&self, after: u64) -> Result<Orders, Failure> {
        let what = format!("orders?after={after}");
        of_this_version(self.ask(Method::GET, &what, None::<&()>, self.pace.hold).await?)
    }

    /// Asks leave to sleep. The server may have pods moved first, for as long as it holds a question.
    pub(super) async fn leave(&self, reason: &str) -> Result<Leave, Failure> {
        let request = LeaveRequest {
            schema: SCHEMA,
            reason: shown(reason),
        };
        self.ask(Method::POST, "leave", Some(&request), self.pace.hold).await
    }

    /// Hands a leave back.
    pub(super) async fn hand_back(&self, grant: u64, within: Duration) -> Result<(), Failure> {
        let what = format!("leave/{grant}");
        let _orders: Orders = self.ask(Method::DELETE, &what, None::<&()>, within).await?;
        Ok(())
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: Option<&impl Serialize>,
        within: Duration,
    ) -> Result<A, Failure> {
        let unasked = |error: serde_json::Error| Failure::Unasked(error.to_string());
        let body = body.map(serde_json::to_vec).transpose().map_err(unasked)?;
        let answer = timeout(within, self.exchange(method, what, body)).await;
        let answer = answer.unwrap_or(Err(Failure::Silent(within)))?;
        serde_json::from_slice(&answer).map_err(|error| Failure::Garbled(error.to_string()))
    }

    /// The body of an answer that is a success.
    async fn exchange(&self, method: Method, what: &str, body: Option<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        let client = self.client.get_or_try_init(|| https::client(self.trust()));
        let client = client.await.map_err(Failure::Unasked)?;
        let request = self.request(method, what, body)?;
        let answer = client.request(request).await;
        let answer = answer.map_err(|error| Failure::Unreachable(with_causes(&error)))?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(Failure::Redirected(status.as_u16()));
        }
        let read = https::read(answer.into_body(), LONGEST_ANSWER).await;
        if status.is_success() {
            return read.map_err(|error| Failure::Garbled(with_causes(&error)));
        }
        let message = message(&read.unwrap_or_default());
        Err(if status == StatusCode::UNAUTHORIZED {
            let token = self.settings.token_file.as_deref();
            Failure::Unauthorized {
                token: token.map_or_else(
                    || "a request without a token".into(),
                    |path| format!("the token in {}", path.display()),
                ),
                node: self.node.clone(),
                message,
            }
        } else {
            Failure::Refused { status, message }
        })
    }

    fn trust(&self) -> Trust {
        let is_tls = self
            .settings
            .url
            .get(..6)
            .is_some_and(|start| start.eq_ignore_ascii_case("https:"));
        match &self.settings.ca_file {
            _ if !is_tls => Trust::Nobody,
            None => Trust::System,
            Some(path) => Trust::File(path.clone()),
        }
    }

    fn request(&self, method: Method, what: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/nodes/{}/{what}", self.settings.url, self.node))
            .header(USER_AGENT, https::USER_AGENT)
            .header(ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(path) = &self.settings.token_file {
            let token = token(path).map_err(|cause| {
                Failure::Unasked(format!("the token in {} cannot be used: {cause}", path.display()))
            })?;
            request = request.header(TOKEN_HEADER, token);
        }
        request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Failure::Unasked(error.to_string()))
    }
}

/// What `path` has, without the white space around it.
fn token(path: &Path) -> Result<HeaderValue, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it is no line of ASCII letters, digits and signs".into());
    }
    let mut token = HeaderValue::from_str(text).map_err(|error| error.to_string())?;
    token.set_sensitive(true);
    Ok(token)
}

fn of_this_version(orders: Orders) -> Result<Orders, Failure> {
    if orders.schema == SCHEMA {
        return Ok(orders);
    }
    let theirs = orders.schema;
    Err(Failure::Garbled(format!(
        "it speaks version {theirs} of the protocol, this agent {SCHEMA}: install the same release on both"
    )))
}

/// What a refusal says.
fn message(body: &[u8]) -> String {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => shown(&problem.message),
        Err(_) => "it does not say why".into(),
    }
}

fn shown(text: &str) -> String {
    printable(text).chars().take(SHOWN).collect()
}
