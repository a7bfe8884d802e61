//! The routes: each takes a request apart, asks [`Hub`], and puts the answer together. Decides nothing, keeps nothing.
//!
//! Who may what: everybody may ask `/health` and `/openapi.json`; `/`, `/status`, `/events` and `/metrics` whoever comes from `status_from`;
//! an operator wakes, orders sleep and calls wakes off; `/v1/nodes/NAME/..` is for the agent of that node, or an operator.
//!
//! Every wake, whatever else changes something by an operator's wish, and every refused request leaves a line in the log (target `audit`),
//! in which what a client sent is escaped.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{FromRequestParts, MatchedPath, Path, Query, Request, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{delete, get, post},
};
use futures_util::stream::unfold;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use vmstation_protocol::{
    Health, LARGEST, Leave, LeaveRequest, NodeName, Orders, Problem, Report, Role, SCHEMA, Status, UnknownRole,
    WakeAllDocument, WakeDocument, WakeOutcome,
};

use crate::{
    auth::{Caller, Keys, unauthorized},
    forward::{Forward, forward},
    hub::{Happening, Hub, Refusal},
    metrics::{self, Metrics},
    openapi, origin, page,
    server::{Client, shown},
    waker::is_decided,
};

/// What the routes need.
pub struct Api {
    /// What is known.
    pub hub: Arc<Hub>,
    /// Who may what.
    pub keys: Keys,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For how long an agent's question for orders is held.
    pub poll_timeout: Duration,
    /// From where anything but the status may be asked; none: from everywhere.
    pub allow_from: Option<Vec<IpNet>>,
    /// From where the status may be read; none: from everywhere.
    pub status_from: Option<Vec<IpNet>>,
    /// Names that browsers may reach this server by, besides those of [`origin::is_ours`] and the masters of the registry.
    pub host_names: Vec<String>,
}

type Shared = State<Arc<Api>>;

impl Api {
    /// Who asks. Without a token of operators the server is on loopback alone, and whoever gets there is one.
    fn caller(&self, headers: &HeaderMap) -> Caller {
        if self.keys.knows_operators() {
            self.keys.caller(headers)
        } else {
            Caller::Operator
        }
    }

    /// Why what a browser sends is not done for the sake of the page that it comes from (fault W14).
    fn foreign(&self, headers: &HeaderMap) -> Option<Refused> {
        let forbidden = |error, message| Some(Refused::new(StatusCode::FORBIDDEN, error, message));
        if !origin::is_same_origin(headers) {
            return forbidden("foreign_origin", "a page of another site may not ask this");
        }
        // A page of elsewhere that had its own name lead here would be of the same origin.
        let is_ours =
            |host| origin::is_ours(host, &self.host_names) || origin::is_ours(host, &self.hub.names(Role::Master));
        if origin::is_of_browser(headers) && !origin::host(headers).is_some_and(is_ours) {
            return forbidden(
                "unknown_host",
                "this server does not know itself by the name in the address: use its IP address, or add the name to host_names \
                 in wake-server.toml",
            );
        }
        None
    }
}

/// All routes of a wake server that is alone.
pub fn router(api: Arc<Api>) -> Router {
    routes(api, |router| router)
}

/// All routes of one of several wake servers: what changes something is passed on to the one that leads.
pub fn router_of_one(api: Arc<Api>, passing: &Arc<Forward>) -> Router {
    routes(api, |router| {
        router.route_layer(middleware::from_fn_with_state(Arc::clone(passing), forward))
    })
}

/// `writes`: what is done within who may, to the routes that change something.
fn routes(api: Arc<Api>, writes: impl Fn(Router<Arc<Api>>) -> Router<Arc<Api>>) -> Router {
    let status = Router::new()
        .route("/", get(page_html))
        .route("/page.css", get(page_css))
        .route("/page.js", get(page_js))
        .route("/status", get(status))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&api), may_read));
    let operator = Router::new()
        .route("/wake/all", post(wake_all).delete(cancel_all))
        .route("/wake/{node}", post(wake).delete(cancel))
        .route("/sleep/{node}", post(sleep));
    let operator = writes(operator).route_layer(middleware::from_fn_with_state(Arc::clone(&api), may_operate));
    let agents = Router::new()
        .route("/v1/nodes/{node}/report", post(report))
        .route("/v1/nodes/{node}/orders", get(orders))
        .route("/v1/nodes/{node}/leave", post(ask_leave))
        .route("/v1/nodes/{node}/leave/{grant}", delete(hand_back));
    let agents = writes(agents).route_layer(middleware::from_fn_with_state(Arc::clone(&api), may_report));
    Router::new()
        .route("/health", get(health))
        .route("/openapi.json", get(openapi_json))
        .merge(status)
        .merge(operator)
        .merge(agents)
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&api), account))
        .with_state(api)
}

/// A refusal, as it is answered.
struct Refused {
    status: StatusCode,
    problem: Problem,
    again_in: Option<Duration>,
}

impl Refused {
    fn new(status: StatusCode, error: &str, message: impl Into<String>) -> Self {
        let problem = Problem {
            schema: SCHEMA,
            error: error.to_owned(),
            message: message.into(),
        };
        Self {
            status,
            problem,
            again_in: None,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        if let Some(again_in) = self.again_in {
            let seconds = again_in.as_secs_f64().ceil().max(1.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Name(_) | Refusal::Mac(_) => Self::new(StatusCode::BAD_REQUEST, "bad_name", message),
            Refusal::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_node", message),
            Refusal::WithoutMac(_) => Self::new(StatusCode::CONFLICT, "no_mac", message),
            Refusal::NothingToCancel => Self::new(StatusCode::CONFLICT, "nothing_to_cancel", message),
            Refusal::TooSoon(again_in) => Self {
                again_in: Some(again_in),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_soon", message)
            },
        }
    }
}

/// What stands in the path; a refusal is in our form.
struct InPath<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(named) = path.map_err(|why| Refused::new(StatusCode::BAD_REQUEST, "bad_path", why.body_text()))?;
        Ok(Self(named))
    }
}

/// What stands behind `?`; a refusal is in our form.
struct InQuery<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(named) = query.map_err(|why| Refused::new(StatusCode::BAD_REQUEST, "bad_query", why.body_text()))?;
        Ok(Self(named))
    }
}

/// A number in a path or behind `?`.
fn number(what: &str, text: &str) -> Result<u64, Refused> {
    let number = text.parse().ok().filter(|&number| number <= LARGEST);
    number.ok_or_else(|| {
        let message = format!("`{what}` is a whole number, at most {LARGEST}");
        Refused::new(StatusCode::BAD_REQUEST, "bad_number", message)
    })
}

/// Counts every request, and refuses what a browser sends from elsewhere (fault W14).
async fn account(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let is_reading = matches!(method, Method::GET | Method::HEAD);
    let foreign = (!is_reading).then(|| api.foreign(request.headers())).flatten();
    let response = match foreign {
        Some(refused) => refused.into_response(),
        None => next.run(request).await,
    };
    let status = response.status();
    api.metrics
        .observe_request(matched.as_ref().map(MatchedPath::as_str), status);
    if status.is_client_error() {
        tracing::info!(target: "audit", %client, %method, path = shown(&path), status = status.as_u16(), "request refused");
    }
    response
}

async fn may_read(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    if is_within(api.status_from.as_ref(), client) {
        return next.run(request).await;
    }
    forbidden()
}

fn is_within(networks: Option<&Vec<IpNet>>, client: IpAddr) -> bool {
    networks.is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
}

fn forbidden() -> Response {
    Refused::new(StatusCode::FORBIDDEN, "forbidden", "this is not for your address").into_response()
}

async fn may_operate(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    if !is_within(api.allow_from.as_ref(), client) {
        return forbidden();
    }
    match api.caller(request.headers()) {
        Caller::Operator => next.run(request).await,
        Caller::Agent(_) | Caller::Nobody => unauthorized(),
    }
}

async fn may_report(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    InPath(parts): InPath<Vec<(String, String)>>,
    request: Request,
    next: Next,
) -> Response {
    if !is_within(api.allow_from.as_ref(), client) {
        return forbidden();
    }
    let node = parts.iter().find(|(name, _)| name == "node").map(|(_, value)| value);
    let node = node.and_then(|node| node.parse::<NodeName>().ok());
    match (api.caller(request.headers()), node) {
        (Caller::Operator, _) => next.run(request).await,
        (Caller::Agent(agent), Some(node)) if agent == node => next.run(request).await,
        (Caller::Agent(_) | Caller::Nobody, _) => unauthorized(),
    }
}

async fn health() -> Json<Health> {
    Json(Health {
        schema: SCHEMA,
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::document()).into_response()
}

async fn status(State(api): Shared) -> Json<Status> {
    Json(api.hub.status())
}

async fn metrics(State(api): Shared) -> Response {
    let figures = api.metrics.encode(&api.hub.status());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], figures).into_response()
}

#[derive(Debug, Deserialize)]
struct WakeQuery {
    verify: Option<String>,
    role: Option<String>,
}

impl WakeQuery {
    fn verify(&self) -> Result<bool, Refused> {
        match self.verify.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(Refused::new(
                StatusCode::BAD_REQUEST,
                "bad_query",
                "`verify` is `true` or `false`",
            )),
        }
    }
}

impl WakeQuery {
    fn role(&self) -> Result<Option<Role>, Refused> {
        let role = self.role.as_deref().map(str::parse).transpose();
        role.map_err(|error: UnknownRole| Refused::new(StatusCode::BAD_REQUEST, "bad_query", error.to_string()))
    }
}

async fn wake(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    InPath(node): InPath<String>,
    InQuery(query): InQuery<WakeQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let verify = query.verify()?;
    let handle = api.hub.wake(&node, verify)?;
    let mut progress = handle.progress();
    tracing::info!(target: "audit", %client, node = %progress.borrow().node, mac = %progress.borrow().mac, verify, "wake");
    if wants_events(&headers) {
        return Ok(followed(progress, move |document| {
            (event("wake", document), is_decided(document, verify))
        }));
    }
    let decided = progress.wait_for(|document| is_decided(document, verify)).await;
    let document = decided.map_or_else(|_| None, |document| Some(document.clone()));
    let document = document.unwrap_or_else(|| handle.progress().borrow().clone());
    Ok((status_of(&document), Json(document)).into_response())
}

async fn wake_all(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    InQuery(query): InQuery<WakeQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let verify = query.verify()?;
    let role = query.role()?;
    let handle = api.hub.wake_all(verify, role);
    tracing::info!(target: "audit", %client, verify, ?role, "wake all");
    let mut progress = handle.progress();
    if wants_events(&headers) {
        return Ok(followed(progress, |(document, is_over)| {
            (event("wake_all", document), *is_over)
        }));
    }
    let over = progress.wait_for(|(_, is_over)| *is_over).await;
    let document = over.map_or_else(|_| None, |over| Some(over.0.clone()));
    let document = document.unwrap_or_else(|| handle.progress().borrow().0.clone());
    let status = document.nodes.iter().map(status_of).max().unwrap_or(StatusCode::OK);
    Ok((status, Json(document)).into_response())
}

async fn cancel(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    InPath(node): InPath<String>,
) -> Result<Json<WakeDocument>, Refused> {
    let handle = api.hub.cancel(&node)?;
    let mut progress = handle.progress();
    // The task ends with its last document.
    let decided = progress.wait_for(|document| is_decided(document, true)).await.is_ok();
    tracing::info!(target: "audit", %client, node = %node.escape_debug(), decided, "wake called off");
    Ok(Json(handle.progress().borrow().clone()))
}

async fn cancel_all(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
) -> Result<Json<WakeAllDocument>, Refused> {
    let off = api.hub.cancel_all()?;
    tracing::info!(target: "audit", %client, wakes = off.wakes, "every wake called off");
    Ok(Json(off.last))
}

async fn sleep(
    State(api): Shared,
    Extension(Client(client)): Extension<Client>,
    InPath(node): InPath<String>,
) -> Result<(StatusCode, Json<Orders>), Refused> {
    let orders = api.hub.order_sleep(&node)?;
    tracing::info!(target: "audit", %client, node = %node.escape_debug(), "sleep ordered");
    Ok((StatusCode::ACCEPTED, Json(orders)))
}

async fn report(
    State(api): Shared,
    InPath(node): InPath<String>,
    report: Result<Json<Report>, JsonRejection>,
) -> Result<Json<Orders>, Refused> {
    let Json(report) = report.map_err(|why| bad_body(&why))?;
    let node = name(&node)?;
    if report.node != node {
        let message = format!("the report is of {}, and its address says {node}", report.node);
        return Err(Refused::new(StatusCode::CONFLICT, "other_node", message));
    }
    Ok(Json(api.hub.report(&report)))
}

#[derive(Debug, Deserialize)]
struct OrdersQuery {
    after: Option<String>,
}

async fn orders(
    State(api): Shared,
    InPath(node): InPath<String>,
    InQuery(query): InQuery<OrdersQuery>,
) -> Result<Json<Orders>, Refused> {
    let after = query.after.as_deref().map_or(Ok(0), |after| number("after", after))?;
    Ok(Json(api.hub.orders(&name(&node)?, after, api.poll_timeout).await))
}

async fn ask_leave(
    State(api): Shared,
    InPath(node): InPath<String>,
    request: Result<Json<LeaveRequest>, JsonRejection>,
) -> Result<Json<Leave>, Refused> {
    let Json(request) = request.map_err(|why| bad_body(&why))?;
    Ok(Json(api.hub.ask_leave(&name(&node)?, &request).await))
}

async fn hand_back(
    State(api): Shared,
    InPath((node, grant)): InPath<(String, String)>,
) -> Result<Json<Orders>, Refused> {
    let grant = number("grant", &grant)?;
    Ok(Json(api.hub.hand_back(&name(&node)?, grant)))
}

/// What happens, as it happens. A reader that is too slow misses some, and is told how many.
async fn events(State(api): Shared) -> Response {
    let happenings = BroadcastStream::new(api.hub.subscribe()).map(|happening| match happening {
        Ok(Happening::Node(node)) => Ok::<_, Infallible>(event("node", &*node)),
        Ok(Happening::Wake(wake)) => Ok(event("wake", &*wake)),
        Err(lagged) => Ok(Event::default().event("missed").data(lagged.to_string())),
    });
    Sse::new(happenings).keep_alive(KeepAlive::default()).into_response()
}

async fn page_html(State(api): Shared) -> Response {
    let made = spawn_blocking(move || {
        let shown = api.hub.shown().map_err(|error| error.to_string())?;
        page::render(&shown.input()).map_err(|error| error.to_string())
    });
    let why = match made.await {
        Ok(Ok(html)) => {
            return (
                page::headers(),
                [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
                html,
            )
                .into_response();
        }
        Ok(Err(why)) => why,
        Err(error) => error.to_string(),
    };
    tracing::error!(why, "the page cannot be made");
    Refused::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "failed",
        "the page cannot be made; the log says why",
    )
    .into_response()
}

async fn page_css() -> Response {
    (
        page::headers(),
        [(header::CONTENT_TYPE, "text/css; charset=utf-8")],
        page::CSS,
    )
        .into_response()
}

async fn page_js() -> Response {
    (
        page::headers(),
        [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")],
        page::JS,
    )
        .into_response()
}

async fn not_found() -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing here; /openapi.json lists what there is",
    )
}

async fn not_allowed() -> Refused {
    Refused::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "not with this method; /openapi.json lists what there is",
    )
}

fn name(text: &str) -> Result<NodeName, Refused> {
    text.parse().map_err(|error| Refusal::Name(error).into())
}

fn bad_body(why: &JsonRejection) -> Refused {
    Refused::new(why.status(), "bad_body", why.body_text())
}

fn event(name: &str, document: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    // No document has a map with keys that are no text, which is all that could go wrong.
    event.json_data(document).unwrap_or_default()
}

/// Each document as it changes, up to the last one.
fn followed<T: Send + Sync + 'static>(
    progress: watch::Receiver<T>,
    shown: impl Fn(&T) -> (Event, bool) + Send + Sync + 'static,
) -> Response {
    let shown = Arc::new(shown);
    let events = unfold(Some((progress, true)), move |progress| {
        let shown = Arc::clone(&shown);
        async move {
            let (mut progress, is_first) = progress?;
            if !is_first {
                // Without a sender there is nothing newer.
                progress.changed().await.ok()?;
            }
            let (event, is_last) = shown(&progress.borrow_and_update());
            Some((Ok::<_, Infallible>(event), (!is_last).then_some((progress, false))))
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

fn wants_events(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"))
}

const fn status_of(document: &WakeDocument) -> StatusCode {
    match document.outcome {
        WakeOutcome::Waking | WakeOutcome::Sent | WakeOutcome::Awake => StatusCode::OK,
        WakeOutcome::Cancelled => StatusCode::CONFLICT,
        WakeOutcome::NotSent => StatusCode::BAD_GATEWAY,
        WakeOutcome::TimedOut => StatusCode::GATEWAY_TIMEOUT,
    }
}
