//! One delivery over HTTP: bounded, without redirects, and with nothing left behind (fault H5).
//!
//! Owns nothing: the client, its connection and the certificates are made for one delivery and go with it. Errors name the host only.
//! Proxies of the environment are not used.

use std::{error::Error, fmt, io, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    header::{CONTENT_TYPE, USER_AGENT},
};
use hyper_util::client::legacy;
use tokio::time::{sleep, timeout};

use super::message::Message;
use crate::{
    clock::BootTime,
    config::{NotificationMethod, url_host},
    https::{self, Trust},
    printable::{printable, with_causes},
};

/// Longest time of a delivery: name, connection, TLS, answer and its body. Below 5 s, so that who waits for its outcome hears of it.
pub const DEADLINE: Duration = Duration::from_millis(4500);

/// Before the second and last attempt to connect: after a resume, a network needs a moment.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How much of an answer is read, bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// What became of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The log is where notices go.
    Logged,
    /// Another host took it.
    Sent {
        /// Host, and port if the URL has one.
        host: String,
        /// HTTP status: 200 to 299.
        status: u16,
        /// Time it took.
        took: Duration,
    },
}

/// Why a notice was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// No answer in time.
    #[error("{host} did not answer within {} s", DEADLINE.as_secs_f32())]
    TimedOut {
        /// Host of the URL.
        host: String,
    },
    /// The answer points elsewhere.
    #[error(
        "{host} answered with status {status}, a redirect: redirects are not followed; configure the URL it leads to"
    )]
    Redirected {
        /// Host of the URL.
        host: String,
        /// HTTP status: 300 to 399.
        status: u16,
    },
    /// The answer is no success.
    #[error("{host} answered with status {status}")]
    Refused {
        /// Host of the URL.
        host: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// Nobody could be asked.
    #[error("cannot reach {host}: {cause}")]
    Unreachable {
        /// Host of the URL.
        host: String,
        /// In words.
        cause: String,
    },
    /// There is nothing to be sent, or nowhere to send it.
    #[error("cannot make a request for {host}: {cause}")]
    Request {
        /// Host of the URL.
        host: String,
        /// In words.
        cause: String,
    },
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logged => f.write_str("written to the log, which is where notifications go"),
            Self::Sent { host, status, took } => {
                write!(f, "delivered to {host} with status {status} in {} ms", took.as_millis())
            }
        }
    }
}

/// Delivers a message. Notices for the log are there already.
pub(super) async fn deliver(
    method: &NotificationMethod,
    node: &str,
    message: &Message,
) -> Result<Delivered, DeliveryError> {
    let (url, body) = match method {
        NotificationMethod::Log => return Ok(Delivered::Logged),
        NotificationMethod::Webhook { url } => (url, message.webhook(node)),
        NotificationMethod::Slack { url, channel } => (url, message.slack(node, channel.as_deref())),
    };
    let host = printable(url_host(url)).into_owned();
    let unusable = |cause: String| DeliveryError::Request {
        host: host.clone(),
        cause,
    };
    let body = Bytes::from(body.map_err(|error| unusable(error.to_string()))?);
    // The error of a URL says which part of it is wrong, not what it says.
    let uri: Uri = url
        .parse()
        .map_err(|error: hyper::http::uri::InvalidUri| unusable(error.to_string()))?;
    let begun = BootTime::now();
    let status = timeout(DEADLINE, post(&host, &uri, body))
        .await
        .unwrap_or_else(|_| Err(DeliveryError::TimedOut { host: host.clone() }))?;
    if status.is_redirection() {
        let status = status.as_u16();
        return Err(DeliveryError::Redirected { host, status });
    }
    if !status.is_success() {
        return Err(DeliveryError::Refused { host, status });
    }
    Ok(Delivered::Sent {
        host,
        status: status.as_u16(),
        took: BootTime::now().since(begun),
    })
}

/// The status of the answer.
async fn post(host: &str, uri: &Uri, body: Bytes) -> Result<StatusCode, DeliveryError> {
    let unreachable = |cause: String| DeliveryError::Unreachable {
        host: host.into(),
        cause,
    };
    let trust = match uri.scheme_str() {
        Some("https") => Trust::System,
        Some(_) | None => Trust::Nobody,
    };
    let client = https::client(trust).await.map_err(unreachable)?;
    let request = || {
        Request::post(uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, https::USER_AGENT)
            .body(Full::new(body.clone()))
            .map_err(|error| DeliveryError::Request {
                host: host.into(),
                cause: error.to_string(),
            })
    };
    let mut answer = client.request(request()?).await;
    if answer.as_ref().is_err_and(may_pass) {
        sleep(RETRY_AFTER).await;
        answer = client.request(request()?).await;
    }
    let answer = answer.map_err(|error| unreachable(with_causes(&error)))?;
    let status = answer.status();
    // What it says does not matter.
    let _read = https::read(answer.into_body(), LONGEST_ANSWER).await;
    Ok(status)
}

/// Whether a second attempt could do better: nobody was connected to, and not because of TLS.
fn may_pass(error: &legacy::Error) -> bool {
    error.is_connect() && !is_about_tls(error)
}

fn is_about_tls(error: &(dyn Error + 'static)) -> bool {
    // The source of an I/O error is not the error it wraps, but that one's source.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_about_tls(wrapped))
        || error.source().is_some_and(is_about_tls)
}
