//! Who may do what: bearer tokens, and rules as RBAC has them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vmstation_wake_server::cluster::rights::{Right, Scope};

use super::{
    refusal::Refusal,
    resources::{Resource, Target},
    store::text,
};

/// The token of who may do everything.
pub(super) const ADMIN: &str = "fake-administrator";

/// Something allowed. `*` stands for all; no name means every name; no namespace means the cluster and all namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) namespace: Option<String>,
    pub(crate) groups: Vec<String>,
    /// As `pods` or `pods/eviction`.
    pub(crate) resources: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) verbs: Vec<String>,
}

impl Rule {
    /// Of objects of the whole cluster.
    pub(crate) fn new(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            namespace: None,
            groups: owned(groups),
            resources: owned(resources),
            names: Vec::new(),
            verbs: owned(verbs),
        }
    }

    /// A right of the wake server. That its manifest grants these is a test of that file.
    pub(crate) fn of(right: &Right) -> Self {
        let resource = match right.subresource {
            "" => right.resource.to_owned(),
            subresource => format!("{}/{subresource}", right.resource),
        };
        let rule = Self::new(&[right.group], &[&resource], &[right.verb]);
        match right.scope {
            Scope::Cluster => rule,
            Scope::Ours => rule.within("kube-system"),
            Scope::TheLease => rule.within("kube-system").named(&["vmstation-wake-server"]),
            Scope::NodeLeases => rule.within("kube-node-lease"),
        }
    }

    /// Of one namespace alone.
    pub(crate) fn within(self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.into()),
            ..self
        }
    }

    /// Of objects with these names alone.
    pub(crate) fn named(self, names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            ..self
        }
    }

    fn covers(&self, deed: &Deed) -> bool {
        let listed = |listed: &[String], wanted: &str| listed.iter().any(|one| one == "*" || one == wanted);
        let is_there = self.namespace.is_none() || self.namespace == deed.namespace;
        let is_named = self.names.is_empty() || deed.name.as_ref().is_some_and(|name| self.names.contains(name));
        is_there
            && is_named
            && listed(&self.verbs, &deed.verb)
            && listed(&self.groups, &deed.group)
            && listed(&self.resources, &deed.resource)
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug)]
pub(super) struct Deed {
    pub(super) verb: String,
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

impl Deed {
    pub(super) fn of(verb: &str, target: &Target) -> Self {
        let resource = target.resource.plural;
        Self {
            verb: verb.into(),
            group: target.resource.group.into(),
            resource: match &target.subresource {
                Some(subresource) => format!("{resource}/{subresource}"),
                None => resource.into(),
            },
            namespace: target.namespace.clone(),
            name: target.name.clone(),
        }
    }

    /// That a SelfSubjectAccessReview asks about; None if it asks about none of a resource.
    fn reviewed(review: &Value) -> Option<Self> {
        let asked = review.pointer("/spec/resourceAttributes")?;
        let resource = text(asked, "/resource");
        let filled = |pointer: &str| Some(text(asked, pointer)).filter(|text| !text.is_empty());
        Some(Self {
            verb: text(asked, "/verb"),
            group: text(asked, "/group"),
            resource: match filled("/subresource") {
                Some(subresource) => format!("{resource}/{subresource}"),
                None => resource,
            },
            namespace: filled("/namespace"),
            name: filled("/name"),
        })
    }
}

/// Somebody with a token.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    /// None: everything.
    rules: Option<Vec<Rule>>,
}

/// Who is who, and what nobody may.
pub(super) struct Access {
    users: BTreeMap<String, User>,
    /// What is refused whatever the rules say.
    denied: Vec<Rule>,
    /// Whether who shows no token may do everything.
    anybody: bool,
    rejects_all: bool,
}

impl Access {
    pub(super) fn new() -> Self {
        let admin = User {
            name: "admin".into(),
            rules: None,
        };
        Self {
            users: BTreeMap::from([(ADMIN.into(), admin)]),
            denied: Vec::new(),
            anybody: false,
            rejects_all: false,
        }
    }

    pub(super) fn add(&mut self, token: &str, name: &str, rules: Vec<Rule>) {
        let user = User {
            name: name.into(),
            rules: Some(rules),
        };
        self.users.insert(token.into(), user);
    }

    pub(super) fn deny(&mut self, rule: Rule) {
        self.denied.push(rule);
    }

    pub(super) fn deny_nothing(&mut self) {
        self.denied.clear();
    }

    pub(super) fn reject_all(&mut self, rejects: bool) {
        self.rejects_all = rejects;
    }

    /// Everybody's token but this one is void, and who has it may do everything.
    pub(super) fn only(&mut self, token: &str) {
        let admin = User {
            name: "admin".into(),
            rules: None,
        };
        self.users = BTreeMap::from([(token.into(), admin)]);
        self.rejects_all = false;
    }

    pub(super) fn admit_anybody(&mut self) {
        self.anybody = true;
    }

    /// `header`: `Authorization`.
    pub(super) fn user(&self, header: Option<&str>) -> Result<User, Refusal> {
        if self.rejects_all {
            return Err(Refusal::unauthorized());
        }
        let Some(header) = header else {
            return Ok(User {
                name: "system:anonymous".into(),
                rules: (!self.anybody).then(Vec::new),
            });
        };
        let token = header.strip_prefix("Bearer ").unwrap_or_default().trim();
        self.users.get(token).cloned().ok_or_else(Refusal::unauthorized)
    }

    fn allows(&self, user: &User, deed: &Deed) -> bool {
        let is_allowed = user
            .rules
            .as_ref()
            .is_none_or(|rules| rules.iter().any(|rule| rule.covers(deed)));
        is_allowed && !self.denied.iter().any(|rule| rule.covers(deed))
    }

    pub(super) fn check(&self, user: &User, resource: &'static Resource, deed: &Deed) -> Result<(), Refusal> {
        let is_review = resource.plural == "selfsubjectaccessreviews" && user.name != "system:anonymous";
        if is_review || self.allows(user, deed) {
            return Ok(());
        }
        let place = match &deed.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".into(),
        };
        let why = format!(
            "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            user.name, deed.verb, deed.resource, deed.group
        );
        Err(Refusal::forbidden(resource, deed.name.as_deref(), &why))
    }

    /// The review with its answer.
    pub(super) fn review(&self, user: &User, mut review: Value) -> Value {
        let allowed = Deed::reviewed(&review).is_some_and(|deed| self.allows(user, &deed));
        review["kind"] = "SelfSubjectAccessReview".into();
        review["apiVersion"] = "authorization.k8s.io/v1".into();
        if !review["metadata"].is_object() {
            review["metadata"] = json!({});
        }
        review["status"] = json!({"allowed": allowed});
        review
    }
}
