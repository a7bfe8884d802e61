//! Why the API server did not do what it was asked, sorted by what is to be done about it. Never retries.

use std::{error::Error, time::Duration};

use kube::core::Status;
use thiserror::Error;

use super::reading::ReadingError;

/// Why it was not done. Each begins with what was attempted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClusterError {
    /// There was no answer, or one that is none (fault K1).
    #[error("{attempted}: the API server cannot be reached: {cause}; is it up, and are address and certificate right?")]
    Unreachable {
        /// What was attempted.
        attempted: String,
        /// Why, as far as it is known.
        cause: String,
    },
    /// The answer was not complete in time (fault K1).
    #[error("{attempted}: no complete answer within {} s; is the API server overloaded?", within.as_secs_f64())]
    Deadline {
        /// What was attempted.
        attempted: String,
        /// The time it had.
        within: Duration,
    },
    /// The credentials are not valid (fault K2).
    #[error(
        "{attempted}: the API server does not accept the credentials (401): {message}; renew the token or the kubeconfig"
    )]
    Unauthorized {
        /// What was attempted.
        attempted: String,
        /// The server's words.
        message: String,
    },
    /// A right is missing (fault K3).
    #[error(
        "{attempted}: {} (403): {message}; apply wake-server/kubernetes/rbac.yaml",
        lack(verb, resource)
    )]
    Forbidden {
        /// What was attempted.
        attempted: String,
        /// As `patch`; empty: the server does not say.
        verb: String,
        /// As `pods/eviction` or `leases.coordination.k8s.io`; empty: the server does not say.
        resource: String,
        /// The server's words.
        message: String,
    },
    /// It is not there.
    #[error("{attempted}: not found (404): {message}")]
    NotFound {
        /// What was attempted.
        attempted: String,
        /// The server's words.
        message: String,
    },
    /// Somebody else wrote in between.
    #[error("{attempted}: somebody else was first (409): {message}")]
    Conflict {
        /// What was attempted.
        attempted: String,
        /// The server's words.
        message: String,
    },
    /// Later, perhaps: the server has too much to do, or a PodDisruptionBudget does not allow it (fault K4).
    #[error("{attempted}: refused for the time being (429): {message}")]
    TooManyRequests {
        /// What was attempted.
        attempted: String,
        /// The server's words.
        message: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The resource version is too old: list again.
    #[error("{attempted}: the resource version is too old (410): {message}")]
    Gone {
        /// What was attempted.
        attempted: String,
        /// The server's words.
        message: String,
    },
    /// An object of the answer lacks what every one has.
    #[error("an answer of the API server cannot be read: {0}")]
    Unreadable(ReadingError),
    /// Something else.
    #[error("{attempted}: the API server answered {status}: {message}")]
    Other {
        /// What was attempted.
        attempted: String,
        /// Status of HTTP.
        status: u16,
        /// The server's words.
        message: String,
    },
}

impl From<ReadingError> for ClusterError {
    fn from(error: ReadingError) -> Self {
        Self::Unreadable(error)
    }
}

impl ClusterError {
    /// Sorts what kube says. `attempted`: in words, as `read the Lease`.
    pub fn of(attempted: impl Into<String>, error: &kube::Error) -> Self {
        let attempted = attempted.into();
        match error {
            kube::Error::Api(status) => Self::of_status(attempted, status),
            kube::Error::Auth(_) => Self::Unauthorized {
                attempted,
                message: chain(error),
            },
            kube::Error::Service(_) if is_of_credentials(error) => Self::Unauthorized {
                attempted,
                message: chain(error),
            },
            other => Self::Unreachable {
                attempted,
                cause: chain(other),
            },
        }
    }

    /// Sorts what the API server says.
    pub fn of_status(attempted: String, status: &Status) -> Self {
        let message = words(status);
        match status.code {
            401 => Self::Unauthorized { attempted, message },
            403 => {
                let (verb, resource) = right(&status.message).unwrap_or_default();
                Self::Forbidden {
                    attempted,
                    verb,
                    resource,
                    message,
                }
            }
            404 => Self::NotFound { attempted, message },
            409 => Self::Conflict { attempted, message },
            410 => Self::Gone { attempted, message },
            429 => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                Self::TooManyRequests {
                    attempted,
                    message,
                    retry_after: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
                }
            }
            status => Self::Other {
                attempted,
                status,
                message,
            },
        }
    }

    /// Whether nothing but new credentials or rights help: asking again at once is of no use.
    pub const fn is_of_permission(&self) -> bool {
        match self {
            Self::Unauthorized { .. } | Self::Forbidden { .. } => true,
            Self::Unreachable { .. }
            | Self::Deadline { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::TooManyRequests { .. }
            | Self::Gone { .. }
            | Self::Unreadable(_)
            | Self::Other { .. } => false,
        }
    }
}

fn lack(verb: &str, resource: &str) -> String {
    if verb.is_empty() {
        return "a right is missing".to_owned();
    }
    format!("RBAC lacks verb {verb} on {resource}")
}

/// What the server says, or at least its reason; of bounded length and on one line.
fn words(status: &Status) -> String {
    const LONGEST: usize = 500;
    let text = [&status.message, &status.reason]
        .into_iter()
        .find(|text| !text.is_empty());
    let text = text.map_or("it does not say why", String::as_str);
    text.chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Verb and resource of `User "x" cannot list resource "pods/eviction" in API group "policy" ..`
/// (kubernetes `endpoints/handlers/responsewriters/errors.go`).
fn right(message: &str) -> Option<(String, String)> {
    let (_, rest) = message.split_once(" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let group = rest
        .split_once("API group \"")
        .and_then(|(_, rest)| rest.split_once('"'));
    let is_word = |text: &str| !text.is_empty() && text.len() <= 100 && !text.contains(char::is_whitespace);
    if !is_word(verb) || !is_word(resource) {
        return None;
    }
    let resource = match group {
        Some((group, _)) if is_word(group) => format!("{resource} of {group}"),
        Some(_) | None => resource.to_owned(),
    };
    Some((verb.to_owned(), resource))
}

/// Credentials that cannot be had, which kube says somewhere down in what went wrong.
fn is_of_credentials(error: &kube::Error) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<kube::client::AuthError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error and its causes, each once.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        let mut status = Status::failure(message, "Reason");
        status.code = code;
        status
    }

    fn sorted(code: u16, message: &str) -> ClusterError {
        ClusterError::of("cordon worker-01", &kube::Error::Api(status(code, message).boxed()))
    }

    #[test]
    fn k3_a_missing_right_is_named() {
        let message = "pods \"a\" is forbidden: User \"system:serviceaccount:kube-system:x\" cannot create resource \
                       \"pods/eviction\" in API group \"policy\" in the namespace \"default\"";
        let error = sorted(403, message);
        let ClusterError::Forbidden { verb, resource, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(
            (verb.as_str(), resource.as_str()),
            ("create", "pods/eviction of policy")
        );
        assert!(error.is_of_permission());
        let text = error.to_string();
        assert!(text.starts_with("cordon worker-01: RBAC lacks verb create on pods/eviction of policy (403): "));
        assert!(text.ends_with("; apply wake-server/kubernetes/rbac.yaml"), "{text}");
        let core = "nodes \"a\" is forbidden: User \"x\" cannot patch resource \"nodes\" in API group \"\" at the cluster scope";
        assert!(
            sorted(403, core)
                .to_string()
                .contains("RBAC lacks verb patch on nodes (403)")
        );
    }

    #[test]
    fn k3_a_refusal_without_the_usual_words_is_one_too() {
        for message in ["", "no", "you cannot go", "x cannot  resource \"\""] {
            assert!(
                sorted(403, message).to_string().contains("a right is missing"),
                "{message}"
            );
        }
    }

    #[test]
    fn k4_a_refusal_for_the_time_being_says_for_how_long() {
        let mut status = status(429, "the budget does not allow it");
        let later = |status: &Status| match ClusterError::of_status("evict".into(), status) {
            ClusterError::TooManyRequests { retry_after, .. } => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(later(&status), None);
        status.details = Some(kube::core::response::StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 10,
        });
        assert_eq!(later(&status), Some(Duration::from_secs(10)));
    }

    #[test]
    fn each_status_has_its_place() {
        assert!(matches!(sorted(401, "no"), ClusterError::Unauthorized { .. }));
        assert!(matches!(sorted(404, "no"), ClusterError::NotFound { .. }));
        assert!(matches!(sorted(409, "no"), ClusterError::Conflict { .. }));
        assert!(matches!(sorted(410, "no"), ClusterError::Gone { .. }));
        assert!(matches!(sorted(500, "no"), ClusterError::Other { status: 500, .. }));
        assert_eq!(
            sorted(500, "two\nlines").to_string(),
            "cordon worker-01: the API server answered 500: two lines"
        );
    }
}
