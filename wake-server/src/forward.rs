//! Passes what changes something on to the wake server that leads, if this one follows. Owns the client; never answers what was asked
//! itself, and never passes on what was passed on already.
//!
//! Whoever asks was let in before, by this server's own rules. The leader checks the same token again; it sees the address of this
//! server, and nothing of the page that a browser asks from.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    clock::Moment,
    cluster::election::Leadership,
    config::{Settings, kubernetes::KubernetesSettings},
    https::{self, HttpClient},
    server::problem,
};

/// Says that a request was passed on, and by whom.
pub const FORWARDED: HeaderName = HeaderName::from_static("x-vmstation-forwarded");
/// What the leader may take beyond what it waits for.
const GRACE: Duration = Duration::from_secs(10);
/// Waking all nodes takes as long as there are nodes.
const ALL: Duration = Duration::from_hours(1);
/// What the API server may take besides a drain: looks before, and records after it.
const LOOKS: Duration = Duration::from_secs(60);
/// Longest body; the server took it whole before, within its own limit.
const LONGEST_BODY: usize = 16 << 20;
/// What concerns one connection (RFC 9110, 7.6.1), and what a browser says of the page that it asks from, which was judged here.
const NOT_PASSED_ON: [&str; 12] = [
    "connection",
    "content-length",
    "cookie",
    "host",
    "keep-alive",
    "origin",
    "referer",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where writes go if this server follows.
pub struct Forward {
    identity: HeaderValue,
    leadership: watch::Receiver<Leadership>,
    client: HttpClient<Full<Bytes>>,
    patience: Patience,
    retry_after: Duration,
}

/// For how long the leader's answer is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A wake may take so long.
    pub wake: Duration,
    /// A question for orders is held for so long.
    pub poll: Duration,
    /// Moving the pods of a node that asks for leave may take so long.
    pub drain: Duration,
}

impl Patience {
    fn of(self, method: &Method, path: &str) -> Duration {
        let takes = match (method, path) {
            (&Method::POST, "/wake/all") => ALL,
            (&Method::POST, path) if path.starts_with("/wake/") => self.wake,
            (&Method::POST, path) if path.ends_with("/leave") => self.drain,
            (&Method::GET, _) => self.poll,
            (_, _) => Duration::ZERO,
        };
        takes.saturating_add(GRACE)
    }
}

impl Forward {
    /// `identity`: that of this server in the Lease. Reads the certificates that the leader's is checked with.
    ///
    /// # Errors
    /// The certificates cannot be read, in words.
    pub async fn new(
        identity: &str,
        leadership: watch::Receiver<Leadership>,
        settings: &KubernetesSettings,
        patience: Patience,
    ) -> Result<Self, String> {
        let ca = settings.advertise_ca.clone();
        let client = spawn_blocking(move || https::client(true, ca.as_deref()));
        Ok(Self {
            identity: HeaderValue::from_str(identity).map_err(|_| format!("`{identity}` cannot stand in a header"))?,
            leadership,
            client: client.await.map_err(|error| error.to_string())??,
            patience,
            retry_after: settings.renew,
        })
    }

    /// Says why nothing was done, and when to try again.
    fn unavailable(&self, error: &str, message: String) -> Response {
        let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, error, message);
        let seconds = self.retry_after.as_secs_f64().ceil().max(1.0);
        if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }

    fn is_without_leader(&self) -> bool {
        match &*self.leadership.borrow() {
            // Its time is over, or this would not be asked.
            Leadership::Acting(_) => true,
            Leadership::Following { leader } => leader.is_none(),
        }
    }

    /// The leader's URL, or the answer that there is none.
    #[expect(clippy::result_large_err, reason = "the answer is what is sent")]
    fn leader(&self) -> Result<String, Response> {
        let leader = match &*self.leadership.borrow() {
            Leadership::Acting(_) => None,
            Leadership::Following { leader } => leader.clone(),
        };
        let Some(leader) = leader else {
            let message = "no wake server leads at the moment: an election is under way, or this one cannot reach the API server of \
                           Kubernetes (`vmstation-wake-server doctor` says why)";
            return Err(self.unavailable("no_leader", message.to_owned()));
        };
        leader.url.ok_or_else(|| {
            let message = format!(
                "{} leads and does not say where it is: set `advertise` in section [kubernetes] of its wake-server.toml",
                leader.identity
            );
            self.unavailable("no_leader", message)
        })
    }

    async fn pass_on(&self, request: Request) -> Response {
        let url = match self.leader() {
            Ok(url) => url,
            Err(response) => return response,
        };
        let within = self.patience.of(request.method(), request.uri().path());
        let unreachable = |why: &str| {
            let message = format!("the wake server that leads, {url}, cannot be asked: {why}");
            self.unavailable("leader_unreachable", message)
        };
        let request = match self.addressed(request, &url).await {
            Ok(request) => request,
            Err(why) => return unreachable(&why),
        };
        let answer = tokio::select! {
            answer = timeout(within, self.client.request(request)) => answer,
            () = self.leaves(&url) => return unreachable("it does not lead any more"),
        };
        match answer {
            Ok(Ok(answer)) => {
                let (mut parts, body) = answer.into_parts();
                strip(&mut parts.headers);
                Response::from_parts(parts, Body::new(body))
            }
            Ok(Err(error)) => unreachable(&chain(&error)),
            Err(_elapsed) => unreachable(&format!("no answer within {} s", within.as_secs())),
        }
    }

    /// Until the server at `url` does not lead any more.
    async fn leaves(&self, url: &str) {
        let mut leadership = self.leadership.clone();
        let is_another = |leadership: &Leadership| match leadership {
            Leadership::Acting(_) | Leadership::Following { leader: None } => true,
            Leadership::Following { leader: Some(leader) } => leader.url.as_deref() != Some(url),
        };
        if leadership.wait_for(is_another).await.is_err() {
            // Nobody stands for election any more: this server stops.
            sleep(Duration::MAX).await;
        }
    }

    /// The same request to the leader.
    async fn addressed(&self, request: Request, url: &str) -> Result<hyper::Request<Full<Bytes>>, String> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("{url}{path}").parse().map_err(|error| format!("{error}"))?;
        let body = to_bytes(body, LONGEST_BODY).await.map_err(|error| error.to_string())?;
        let mut passed = hyper::Request::new(Full::new(body));
        *passed.method_mut() = parts.method;
        *passed.uri_mut() = uri;
        *passed.headers_mut() = parts.headers;
        strip(passed.headers_mut());
        passed.headers_mut().insert(FORWARDED, self.identity.clone());
        Ok(passed)
    }
}

/// Passes on what comes here, unless this server leads. A layer within those that decide who may ask.
pub(crate) async fn forward(State(forward): State<Arc<Forward>>, request: Request, next: Next) -> Response {
    let acts = forward.leadership.borrow().fence(Moment::now()).is_some();
    if acts {
        return next.run(request).await;
    }
    if request.headers().contains_key(FORWARDED) {
        let message = "this wake server does not lead any more, and what was passed on to it is not passed on again";
        return forward
            .unavailable("not_the_leader", message.to_owned())
            .into_response();
    }
    // With the API server down nobody leads. A magic packet too many harms nobody, and what is down may be what sleeps.
    if request.uri().path().starts_with("/wake/") && forward.is_without_leader() {
        return next.run(request).await;
    }
    forward.pass_on(request).await
}

fn strip(headers: &mut HeaderMap) {
    for name in NOT_PASSED_ON {
        headers.remove(name);
    }
    let fetch: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("sec-fetch-"))
        .cloned()
        .collect();
    for name in fetch {
        headers.remove(name);
    }
}

/// An error and its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<&Settings> for Patience {
    fn from(settings: &Settings) -> Self {
        Self {
            wake: settings.wake.deadline,
            poll: settings.limits.poll_timeout,
            // What is asked before and after, too.
            drain: settings.sleep.pods.drain_deadline.saturating_add(LOOKS),
        }
    }
}

#[cfg(test)]
mod tests;
