//! Answers that say no, as `Status` objects in the words of the real API server (k8s.io/apimachinery, pkg/api/errors).

use serde_json::{Value, json};

use super::resources::Resource;

/// Why a request is not done.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) details: Option<Value>,
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: String, details: Option<Value>) -> Self {
        Self {
            code,
            reason,
            message,
            details,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into(), None)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".into(), None)
    }

    pub(super) fn forbidden(resource: &Resource, name: Option<&str>, why: &str) -> Self {
        let subject = match name {
            Some(name) => format!("{} \"{name}\"", resource.qualified()),
            None => resource.qualified(),
        };
        let message = format!("{subject} is forbidden: {why}");
        Self::new(403, "Forbidden", message, Some(about(resource, name)))
    }

    pub(super) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(404, "NotFound", message, Some(about(resource, Some(name))))
    }

    pub(super) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource".into();
        Self::new(404, "NotFound", message, Some(json!({})))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".into();
        Self::new(405, "MethodNotAllowed", message, Some(json!({})))
    }

    pub(super) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message, Some(about(resource, Some(name))))
    }

    /// `what`: resource or kind, as the part of the server that refuses names it.
    pub(super) fn conflict(resource: &Resource, what: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {what} \"{name}\": {why}");
        Self::new(409, "Conflict", message, Some(about(resource, Some(name))))
    }

    pub(super) fn changed_meanwhile(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, &resource.qualified(), name, why)
    }

    pub(super) fn expired(message: &str) -> Self {
        Self::new(410, "Expired", message.into(), None)
    }

    pub(super) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
        Self::new(415, "UnsupportedMediaType", message.into(), Some(json!({})))
    }

    /// `field`: its path, as `metadata.name`; `kind`: of the fault, as `FieldValueInvalid`.
    pub(super) fn invalid(resource: &Resource, name: &str, field: &str, kind: &str, why: &str) -> Self {
        let kind_of_object = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let message = format!("{kind_of_object} \"{name}\" is invalid: {field}: {why}");
        let mut details = about(resource, Some(name));
        details["kind"] = resource.kind.into();
        details["causes"] = json!([{"reason": kind, "message": why, "field": field}]);
        Self::new(422, "Invalid", message, Some(details))
    }

    pub(super) fn no_lists_by_watch() -> Self {
        let why = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: {why}");
        let cause = json!([{"reason": "FieldValueForbidden", "message": why, "field": "sendInitialEvents"}]);
        let details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": cause});
        Self::new(422, "Invalid", message, Some(details))
    }

    pub(super) fn unprocessable_patch() -> Self {
        let message = "the server rejected our request due to an error in our request".into();
        Self::new(422, "Invalid", message, Some(json!({})))
    }

    /// A disruption budget is in the way.
    pub(super) fn budget(why: &str, retry_after: Option<u32>) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.".into();
        let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
        if let Some(seconds) = retry_after {
            details["retryAfterSeconds"] = seconds.into();
        }
        Self::new(429, "TooManyRequests", message, Some(details))
    }

    /// An error without a reason, as those that no part of the server expects.
    pub(super) fn internal(message: &str) -> Self {
        Self::new(500, "", message.into(), None)
    }

    pub(super) fn too_new(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let details = json!({"causes": cause, "retryAfterSeconds": 1});
        Self::new(504, "Timeout", message, Some(details))
    }

    /// What a trial told the server to say.
    pub(super) fn ordered(code: u16) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: as the trial ordered"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => (
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified",
            ),
            410 => ("Expired", "The resourceVersion for the provided watch is too old."),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => ("InternalError", "Internal error occurred: as the trial ordered"),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => (
                "Timeout",
                "the server was unable to return a response in the time allotted",
            ),
            _ => ("", "an error on the server has prevented the request from succeeding"),
        };
        Self::new(code, reason, message.into(), None)
    }

    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        body
    }
}

/// `details` of the object in question.
pub(super) fn about(resource: &Resource, name: Option<&str>) -> Value {
    let mut details = json!({"kind": resource.plural});
    if let Some(name) = name {
        details["name"] = name.into();
    }
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    details
}
