//! A wake server on loopback whose every answer the test gives.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Ends a test that hangs; not a measure.
pub(super) const GENEROUS: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub(super) enum Say {
    Json(u16, Value),
    Text(&'static str),
    /// To follow would lead back here.
    Redirect,
    /// A document of a mebibyte.
    Huge,
}

/// A request that waits for its answer. Dropped, its connection is closed.
#[derive(Debug)]
pub(super) struct Seen {
    /// Method and path.
    pub(super) what: String,
    pub(super) token: Option<String>,
    pub(super) body: Value,
    answer: oneshot::Sender<Say>,
}

pub(super) struct Fake {
    pub(super) address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn new() -> Self {
        Self::at(([127, 0, 0, 1], 0).into()).await
    }

    pub(super) async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                let service = service_fn(move |request| converse(request, sender.clone()));
                connections.spawn(async move {
                    // A client that goes away is what some tests are about.
                    let _ended = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Seen {
        timeout(GENEROUS, self.requests.recv()).await.unwrap().unwrap()
    }

    /// The next request, which must be this.
    pub(super) async fn expect(&mut self, what: &str) -> Seen {
        let seen = self.next().await;
        assert_eq!(seen.what, what);
        seen
    }

    /// The next report, answered with the number of the newest order; what it says.
    pub(super) async fn report(&mut self, newest: u64) -> Value {
        let mut seen = self.expect("POST /v1/nodes/worker-01/report").await;
        let body = seen.body.take();
        seen.answer(orders(newest, &[]));
        body
    }

    /// The next question for orders.
    pub(super) async fn question(&mut self, after: u64) -> Seen {
        self.expect(&format!("GET /v1/nodes/worker-01/orders?after={after}"))
            .await
    }

    /// Gone, with all connections; and its address.
    pub(super) async fn stop(mut self) -> SocketAddr {
        self.task.abort();
        let _aborted = (&mut self.task).await;
        self.address
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    pub(super) fn answer(self, say: Say) {
        assert!(
            self.answer.send(say).is_ok(),
            "nobody waits for the answer to {}",
            self.what
        );
    }

    /// Waits until nobody waits for the answer any more.
    pub(super) async fn given_up(mut self) {
        timeout(GENEROUS, self.answer.closed()).await.unwrap();
    }
}

/// What the server wants.
pub(super) fn orders(newest: u64, numbers: &[u64]) -> Say {
    let orders: Vec<_> = numbers
        .iter()
        .map(|number| json!({"order": "sleep", "number": number}))
        .collect();
    Say::Json(200, json!({"schema": 1, "newest": newest, "orders": orders}))
}

async fn converse(
    request: Request<Incoming>,
    requests: mpsc::UnboundedSender<Seen>,
) -> Result<Response<Full<Bytes>>, oneshot::error::RecvError> {
    let what = format!("{} {}", request.method(), request.uri());
    let token = request.headers().get("x-auth-token");
    let token = token.map(|token| token.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (answer, answered) = oneshot::channel();
    let seen = Seen {
        what,
        token,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        answer,
    };
    let _test_is_over = requests.send(seen);
    let response = |status, body: Bytes| Response::builder().status(status).body(Full::new(body)).unwrap();
    Ok(match answered.await? {
        Say::Json(status, body) => response(status, body.to_string().into()),
        Say::Text(text) => response(200, text.into()),
        Say::Redirect => {
            let mut response = response(307, Bytes::new());
            let elsewhere = "/v1/nodes/elsewhere".parse::<hyper::header::HeaderValue>().unwrap();
            response.headers_mut().insert("location", elsewhere);
            response
        }
        Say::Huge => response(200, vec![b' '; 1 << 20].into()),
    })
}
