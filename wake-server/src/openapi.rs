//! What the server can be asked, for programs: the routes, and the OpenAPI document of them. `GET /openapi.json`.
//!
//! Pure. Names and types of the documents come from `vmstation_protocol`; the routes are listed once, in [`Route`].

use std::sync::LazyLock;

use utoipa::{
    ToSchema,
    openapi::{
        ComponentsBuilder, Content, ContentBuilder, HttpMethod, InfoBuilder, ObjectBuilder, OpenApiBuilder,
        PathsBuilder, Ref, RefOr, Required, Response, ResponseBuilder, Schema, SecurityRequirement,
        header::HeaderBuilder,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem},
        request_body::RequestBodyBuilder,
        schema::{AnyOfBuilder, KnownFormat, SchemaFormat, Type},
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};
use vmstation_protocol::{
    Activity, Health, LARGEST, Leave, LeaveRequest, MacAddr, NodeDocument, NodeName, NodeState, Order, Orders, Port,
    Problem, Report, Role, Stage, StageDocument, Status, TOKEN_HEADER, Transport, WakeAllDocument, WakeDocument,
    WakeOutcome, Waking,
};

/// Name of the token in the document.
const TOKEN: &str = "token";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// A path, as the router and the OpenAPI document write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The status page.
    Page,
    /// Its style sheet.
    PageCss,
    /// Its script.
    PageJs,
    /// Whether the server is there.
    Health,
    /// Every node.
    Status,
    /// What happens, as it happens.
    Events,
    /// Figures for Prometheus.
    Metrics,
    /// This document.
    OpenApi,
    /// Waking every node.
    WakeAll,
    /// Waking one node.
    Wake,
    /// Putting one node to sleep.
    Sleep,
    /// What an agent tells.
    Report,
    /// What an agent is told.
    Orders,
    /// May a node sleep?
    Leave,
    /// It did not, or is awake again.
    HandBack,
}

impl Route {
    /// Every route.
    pub const ALL: [Self; 15] = [
        Self::Page,
        Self::PageCss,
        Self::PageJs,
        Self::Health,
        Self::Status,
        Self::Events,
        Self::Metrics,
        Self::OpenApi,
        Self::WakeAll,
        Self::Wake,
        Self::Sleep,
        Self::Report,
        Self::Orders,
        Self::Leave,
        Self::HandBack,
    ];

    /// Its path, as the router has it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::PageCss => "/page.css",
            Self::PageJs => "/page.js",
            Self::Health => "/health",
            Self::Status => "/status",
            Self::Events => "/events",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
            Self::WakeAll => "/wake/all",
            Self::Wake => "/wake/{node}",
            Self::Sleep => "/sleep/{node}",
            Self::Report => "/v1/nodes/{node}/report",
            Self::Orders => "/v1/nodes/{node}/orders",
            Self::Leave => "/v1/nodes/{node}/leave",
            Self::HandBack => "/v1/nodes/{node}/leave/{grant}",
        }
    }

    /// The route with this path, as the router matched it.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }
}

/// The OpenAPI document, as JSON.
///
/// # Panics
/// Never: it is made of nothing but this file, and a test makes it.
#[expect(
    clippy::expect_used,
    reason = "the document is the same each time, and a test makes it"
)]
pub fn document() -> String {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        let paths = Route::ALL.into_iter().fold(PathsBuilder::new(), |paths, route| {
            paths.path(route.path(), item(route))
        });
        let info = InfoBuilder::new()
            .title("VMStation wake server")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some("Wakes nodes, proves it, and says who may sleep."));
        OpenApiBuilder::new()
            .info(info)
            .paths(paths)
            .components(Some(components()))
            .build()
            .to_pretty_json()
            .expect("the document is JSON")
    });
    DOCUMENT.clone()
}

fn components() -> utoipa::openapi::Components {
    let token = ApiKeyValue::with_description(
        TOKEN_HEADER,
        "That of an operator, or for `/v1/nodes/{node}/..` also that of the node's agent.",
    );
    ComponentsBuilder::new()
        .security_scheme(TOKEN, SecurityScheme::ApiKey(ApiKey::Header(token)))
        .schema_from::<Activity>()
        .schema_from::<Health>()
        .schema_from::<Leave>()
        .schema_from::<LeaveRequest>()
        .schema_from::<MacAddr>()
        .schema_from::<NodeDocument>()
        .schema_from::<NodeName>()
        .schema_from::<NodeState>()
        .schema_from::<Order>()
        .schema_from::<Orders>()
        .schema_from::<Port>()
        .schema_from::<Problem>()
        .schema_from::<Report>()
        .schema_from::<Role>()
        .schema_from::<Stage>()
        .schema_from::<StageDocument>()
        .schema_from::<Status>()
        .schema_from::<Transport>()
        .schema_from::<WakeAllDocument>()
        .schema_from::<WakeDocument>()
        .schema_from::<WakeOutcome>()
        .schema_from::<Waking>()
        .build()
}

fn item(route: Route) -> PathItem {
    let get = |operation: OperationBuilder| PathItem::new(HttpMethod::Get, operation);
    let text = |summary, content_type| {
        get(readable(summary).response("200", content(Response::new("It."), content_type, text_schema())))
    };
    match route {
        Route::Page => text("The status page, for people", "text/html"),
        Route::PageCss => text("Style sheet of the status page", "text/css"),
        Route::PageJs => text("Script of the status page", "text/javascript"),
        Route::Health => get(open("Whether the server is there").response("200", answer::<Health>("It is."))),
        Route::Status => get(readable("Every node").response("200", answer::<Status>("Every node, by name."))),
        Route::Events => get(readable("What happens, as it happens")
            .description(Some(
                "Events `node` (NodeDocument), `wake` (WakeDocument) and `missed`, for a reader that is too slow.",
            ))
            .response(
                "200",
                content(Response::new("Events, without end."), EVENTS, text_schema()),
            )),
        Route::Metrics => text("Figures for Prometheus", "application/openmetrics-text"),
        Route::OpenApi => get(open("This document").response(
            "200",
            content(
                Response::new("It."),
                JSON,
                ObjectBuilder::new().schema_type(Type::Object),
            ),
        )),
        Route::WakeAll => {
            let wake = waking::<WakeAllDocument>(guarded("Wake every node: masters, then storage, then workers"))
                .parameter(query("role", "Only nodes of this role.", Ref::from_schema_name("Role")));
            let cancel = guarded("Call off the waking of every node")
                .response("200", answer::<WakeAllDocument>("How far it was."))
                .response("409", answer::<Problem>("Nothing to call off."));
            post_and_delete(wake, cancel)
        }
        Route::Wake => {
            let wake = waking::<WakeDocument>(of_node_or_card(guarded("Wake a node")));
            let cancel = of_node_or_card(guarded("Call off the waking of a node"))
                .response("200", answer::<WakeDocument>("How far it was."))
                .response("409", answer::<Problem>("Nothing to call off."));
            post_and_delete(wake, cancel)
        }
        Route::Sleep => {
            let sleep = of_node(guarded("Have a node sleep, as if an operator had ordered it there"))
                .response("202", answer::<Orders>("Its agent is told."));
            PathItem::new(HttpMethod::Post, sleep)
        }
        Route::Report => {
            let report = with_body::<Report>(of_node(guarded("An agent tells of its node")))
                .description(Some("At a start, after a resume, and at every change."))
                .response("200", answer::<Orders>("Orders for the node."))
                .response("409", answer::<Problem>("The report is of another node."));
            PathItem::new(HttpMethod::Post, report)
        }
        Route::Orders => get(of_node(guarded("What a node is to do"))
            .description(Some("Held until there is something newer, for the server's `poll_timeout` at most: 5 min, unless it is set."))
            .parameter(query("after", "The newest number that is known.", number_schema()))
            .response("200", answer::<Orders>("Orders for the node."))),
        Route::Leave => {
            let leave = with_body::<LeaveRequest>(of_node(guarded("May the node sleep?")))
                .response("200", answer::<Leave>("Whether it may; a refusal is no error."));
            PathItem::new(HttpMethod::Post, leave)
        }
        Route::HandBack => {
            let back = of_node(guarded(
                "A leave is not needed any more: the node is awake, or stays so",
            ))
            .parameter(
                ParameterBuilder::new()
                    .name("grant")
                    .parameter_in(ParameterIn::Path)
                    .description(Some("The leave."))
                    .required(Required::True)
                    .schema(Some(number_schema())),
            )
            .response("200", answer::<Orders>("Orders for the node."));
            PathItem::new(HttpMethod::Delete, back)
        }
    }
}

fn post_and_delete(post: OperationBuilder, delete: OperationBuilder) -> PathItem {
    let mut item = PathItem::new(HttpMethod::Post, post);
    item.merge_operations(PathItem::new(HttpMethod::Delete, delete));
    item
}

/// A request that everybody may make.
fn open(summary: &str) -> OperationBuilder {
    OperationBuilder::new()
        .summary(Some(summary))
        .response("429", later("Too many requests of this client."))
        .response("default", answer::<Problem>("Any other problem."))
}

/// A request that whoever may read the status may make.
fn readable(summary: &str) -> OperationBuilder {
    open(summary).response("403", answer::<Problem>("Not for this network."))
}

/// A request that needs a token.
fn guarded(summary: &str) -> OperationBuilder {
    open(summary)
        .security(SecurityRequirement::new(TOKEN, [""; 0]))
        .response("400", answer::<Problem>("The request is not understood."))
        .response("401", answer::<Problem>("The token is missing or wrong."))
        .response(
            "503",
            later("This server does not act for its cluster, and the one that does cannot be asked."),
        )
        .response(
            "403",
            answer::<Problem>("Not for this network, or from a page of another site."),
        )
}

fn of_node(operation: OperationBuilder) -> OperationBuilder {
    node(operation, "Name of the node.", Ref::from_schema_name(NodeName::name()))
}

/// A node that is woken: one that nobody knows can be called as well, by its card.
fn of_node_or_card(operation: OperationBuilder) -> OperationBuilder {
    let either = AnyOfBuilder::new()
        .item(Ref::from_schema_name(NodeName::name()))
        .item(Ref::from_schema_name(MacAddr::name()));
    node(operation, "Name of the node, or a MAC address of it.", either)
}

fn node(operation: OperationBuilder, description: &str, schema: impl Into<RefOr<Schema>>) -> OperationBuilder {
    operation
        .parameter(
            ParameterBuilder::new()
                .name("node")
                .parameter_in(ParameterIn::Path)
                .description(Some(description))
                .required(Required::True)
                .schema(Some(schema)),
        )
        .response("404", answer::<Problem>("No such node."))
}

fn with_body<T: ToSchema>(operation: OperationBuilder) -> OperationBuilder {
    let body = RequestBodyBuilder::new()
        .content(JSON, Content::new(Some(Ref::from_schema_name(T::name()))))
        .required(Some(Required::True))
        .build();
    operation
        .request_body(Some(body))
        .response("408", answer::<Problem>("The body did not arrive in time."))
        .response("413", answer::<Problem>("The body is too large."))
        .response("415", answer::<Problem>("The body is not said to be JSON."))
        .response(
            "422",
            answer::<Problem>("The body is not the document that is asked for."),
        )
}

/// What it is to wake, one node or all.
fn waking<T: ToSchema>(operation: OperationBuilder) -> OperationBuilder {
    let boolean = ObjectBuilder::new().schema_type(Type::Boolean);
    let progress = ResponseBuilder::new()
        .description("How it went; or, for who accepts `text/event-stream`, that document each time it changes.")
        .content(JSON, Content::new(Some(Ref::from_schema_name(T::name()))))
        .content(EVENTS, Content::new(Some(text_schema())));
    operation
        .parameter(query(
            "verify",
            "Wait until it is proved, or the deadline is over.",
            boolean,
        ))
        .response("200", progress)
        .response("409", either::<T>("Called off meanwhile; or no MAC address is known."))
        .response("429", later("Too many requests of this client, or for this node."))
        .response("502", answer::<T>("No packet could be sent."))
        .response(
            "504",
            answer::<T>("Not proved within the deadline; the stages tell how far it came."),
        )
}

fn query(name: &str, description: &str, schema: impl Into<RefOr<Schema>>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .description(Some(description))
        .required(Required::False)
        .schema(Some(schema))
        .build()
}

fn answer<T: ToSchema>(description: &str) -> Response {
    content(Response::new(description), JSON, Ref::from_schema_name(T::name()))
}

/// The document, or the problem that there is none.
fn either<T: ToSchema>(description: &str) -> Response {
    let schema = utoipa::openapi::OneOfBuilder::new()
        .item(Ref::from_schema_name(T::name()))
        .item(Ref::from_schema_name(Problem::name()));
    content(Response::new(description), JSON, schema)
}

fn later(description: &str) -> Response {
    let seconds = HeaderBuilder::new()
        .schema(Some(number_schema()))
        .description(Some("When to ask again, seconds."))
        .build();
    ResponseBuilder::from(answer::<Problem>(description))
        .header("Retry-After", seconds)
        .build()
}

fn content(response: Response, content_type: &str, schema: impl Into<RefOr<Schema>>) -> Response {
    ResponseBuilder::from(response)
        .content(content_type, ContentBuilder::new().schema(Some(schema)).build())
        .build()
}

fn text_schema() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn number_schema() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(0.0))
        .maximum(Some(LARGEST as f64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn parsed() -> Value {
        serde_json::from_str(&document()).unwrap()
    }

    /// Every value below a key of this name, at any depth.
    fn below<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == key {
                        found.push(value);
                    }
                    below(value, key, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| below(item, key, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_route_is_in_the_document() {
        let document = parsed();
        let paths = document["paths"].as_object().unwrap();
        let listed: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        assert_eq!(listed, Route::ALL.into_iter().map(Route::path).collect());
        for route in Route::ALL {
            assert_eq!(Route::of(route.path()), Some(route));
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = parsed();
        let mut references = Vec::new();
        below(&document, "$ref", &mut references);
        assert!(references.len() > 50, "{}", references.len());
        for reference in references {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn w7_whatever_changes_something_needs_a_token() {
        let document = parsed();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let is_guarded = operation["security"][0]["token"].is_array();
                assert_eq!(
                    is_guarded,
                    method != "get" || path.starts_with("/v1/"),
                    "{method} {path}"
                );
                assert_eq!(operation["responses"]["401"].is_object(), is_guarded, "{method} {path}");
            }
        }
        let scheme = &document["components"]["securitySchemes"]["token"];
        assert_eq!(
            (&scheme["in"], &scheme["name"]),
            (&"header".into(), &TOKEN_HEADER.into())
        );
    }

    #[test]
    fn every_parameter_of_a_path_is_described() {
        let document = parsed();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let empty = Vec::new();
                let parameters = operation["parameters"].as_array().unwrap_or(&empty);
                let described = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
                assert_eq!(described, path.matches('{').count(), "{method} {path}");
            }
        }
    }
}
