//! The objects, and what became of them. Owns every object and the one counter of resource versions; reads no clock and no socket.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Version, admission, managed,
    patch::Kind,
    refusal::{Refusal, about},
    resources::{Resource, Scope, Target},
    selector::Selector,
};

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    group: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
}

impl Key {
    pub(super) fn new(resource: &'static Resource, namespace: Option<&str>, name: &str) -> Self {
        Self {
            group: resource.group,
            plural: resource.plural,
            namespace: namespace.unwrap_or_default().into(),
            name: name.into(),
        }
    }

    fn is_of(&self, resource: &Resource) -> bool {
        self.group == resource.group && self.plural == resource.plural
    }
}

/// One write.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    key: Key,
    before: Option<Value>,
    after: Option<Value>,
}

/// Who asks for a write, when, and whether it is to be kept.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) manager: String,
    pub(super) dry_run: bool,
    pub(super) now: Timestamp,
}

/// What the server holds.
pub(super) struct Store {
    pub(super) version: Version,
    objects: BTreeMap<Key, Arc<Value>>,
    revision: u64,
    /// Changes up to this one are forgotten.
    compacted: u64,
    changes: Vec<Change>,
    made: u64,
    pages: BTreeMap<String, Page>,
}

/// The rest of a list that was asked for in parts.
struct Page {
    revision: u64,
    rest: Vec<Arc<Value>>,
}

/// A list, or a part of one.
pub(super) struct Listed {
    pub(super) items: Vec<Arc<Value>>,
    pub(super) revision: u64,
    pub(super) next: Option<String>,
    pub(super) remaining: Option<usize>,
}

/// An answer with its status code.
pub(super) type Answer = Result<(u16, Value), Refusal>;

impl Store {
    pub(super) fn new(now: Timestamp) -> Self {
        let mut store = Self {
            version: Version::default(),
            objects: BTreeMap::new(),
            revision: 1,
            compacted: 0,
            changes: Vec::new(),
            made: 0,
            pages: BTreeMap::new(),
        };
        let order = Order {
            manager: "kube-apiserver".into(),
            dry_run: false,
            now,
        };
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let target = Target::of("/api/v1/namespaces").expect("namespaces are known");
            let made = store.create(&target, json!({"metadata": {"name": name}}), &order);
            made.expect("the server's own namespaces");
        }
        store
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets what changed, and the parts of lists that were not asked for yet.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.changes.clear();
        self.pages.clear();
    }

    /// Puts objects there unasked, and forgets what changed.
    pub(super) fn put(&mut self, target: &Target, objects: impl IntoIterator<Item = Value>, now: Timestamp) {
        for mut object in objects {
            self.made += 1;
            self.revision += 1;
            object["kind"] = target.resource.kind.into();
            object["apiVersion"] = target.resource.api_version().into();
            object["metadata"]["uid"] = self.uid().into();
            object["metadata"]["creationTimestamp"] = seconds(now).into();
            object["metadata"]["resourceVersion"] = self.revision.to_string().into();
            let name = text(&object, "/metadata/name");
            let namespace = text(&object, "/metadata/namespace");
            let key = Key::new(target.resource, Some(&namespace), &name);
            self.objects.insert(key, Arc::new(object));
        }
        self.compact();
    }

    pub(super) fn find(&self, resource: &'static Resource, namespace: Option<&str>, name: &str) -> Option<&Value> {
        self.objects
            .get(&Key::new(resource, namespace, name))
            .map(AsRef::as_ref)
    }

    pub(super) fn get(&self, target: &Target) -> Result<Value, Refusal> {
        let name = target.name.as_deref().unwrap_or_default();
        self.find(target.resource, target.namespace.as_deref(), name)
            .cloned()
            .ok_or_else(|| Refusal::not_found(target.resource, name))
    }

    pub(super) fn of(&self, resource: &'static Resource, namespace: Option<&str>) -> Vec<Value> {
        let objects = self.selected(resource, namespace, &Selector::default());
        objects.iter().map(|object| Value::clone(object)).collect()
    }

    fn selected(&self, resource: &'static Resource, namespace: Option<&str>, selector: &Selector) -> Vec<Arc<Value>> {
        let objects = self.objects.iter().filter(|(key, object)| {
            key.is_of(resource)
                && namespace.is_none_or(|namespace| namespace == key.namespace)
                && selector.matches(object)
        });
        objects.map(|(_, object)| Arc::clone(object)).collect()
    }

    pub(super) fn list(
        &mut self,
        target: &Target,
        selector: &Selector,
        limit: usize,
        from: Option<&str>,
    ) -> Result<Listed, Refusal> {
        let page = match from {
            None => Page {
                revision: self.revision,
                rest: self.selected(target.resource, target.namespace.as_deref(), selector),
            },
            Some(token) => self.pages.remove(token).ok_or_else(|| {
                Refusal::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                     without the continue parameter.",
                )
            })?,
        };
        let Page { revision, mut rest } = page;
        if limit == 0 || rest.len() <= limit {
            return Ok(Listed {
                items: rest,
                revision,
                next: None,
                remaining: None,
            });
        }
        let later = rest.split_off(limit);
        let remaining = selector.is_empty().then_some(later.len());
        self.made += 1;
        let token = format!("part-{}-of-{revision}", self.made);
        self.pages.insert(token.clone(), Page { revision, rest: later });
        Ok(Listed {
            items: rest,
            revision,
            next: Some(token),
            remaining,
        })
    }

    /// What a watcher hears that knows everything up to `known`: type, revision and object of each change.
    pub(super) fn news(&self, target: &Target, selector: &Selector, known: u64) -> Vec<(&'static str, Value)> {
        let first = self.changes.partition_point(|change| change.revision <= known);
        let mine = self.changes[first..].iter().filter(|change| {
            change.key.is_of(target.resource)
                && target
                    .namespace
                    .as_ref()
                    .is_none_or(|namespace| *namespace == change.key.namespace)
                && target.name.as_ref().is_none_or(|name| *name == change.key.name)
        });
        mine.filter_map(|change| change.seen_through(selector)).collect()
    }

    pub(super) fn create(&mut self, target: &Target, mut object: Value, order: &Order) -> Answer {
        let resource = target.resource;
        self.name(target, &mut object)?;
        let name = text(&object, "/metadata/name");
        if let Some(namespace) = &target.namespace {
            self.must_accept(resource, namespace, &name)?;
        }
        if self.find(resource, target.namespace.as_deref(), &name).is_some() {
            return Err(Refusal::already_exists(resource, &name));
        }
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(Refusal::internal(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.made += 1;
        object["kind"] = resource.kind.into();
        object["apiVersion"] = resource.api_version().into();
        let metadata = &mut object["metadata"];
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "generation",
            "selfLink",
        ] {
            metadata.as_object_mut().map(|metadata| metadata.remove(field));
        }
        metadata["uid"] = self.uid().into();
        metadata["creationTimestamp"] = seconds(order.now).into();
        if admission::has_generation(resource, self.version) {
            metadata["generation"] = 1.into();
        }
        admission::create(self, resource, &mut object)?;
        admission::tidy(resource, &mut object);
        self.record(target, None, &mut object, order);
        let key = Key::new(resource, target.namespace.as_deref(), &name);
        Ok((201, self.commit(key, None, Some(object), order)))
    }

    pub(super) fn update(&mut self, target: &Target, object: Value, order: &Order) -> Answer {
        let resource = target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        let given = text(&object, "/metadata/name");
        if given != name {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        let known = match self.get(target) {
            Ok(known) => known,
            Err(_) if resource.plural == "leases" && target.subresource.is_none() => {
                let all = Target {
                    name: None,
                    ..target.clone()
                };
                return self.create(&all, object, order);
            }
            Err(refusal) => return Err(refusal),
        };
        let (uid, known_uid) = (text(&object, "/metadata/uid"), text(&known, "/metadata/uid"));
        if !uid.is_empty() && uid != known_uid {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {known_uid}");
            return Err(Refusal::conflict(resource, &resource.qualified(), name, &why));
        }
        if text(&object, "/metadata/resourceVersion").is_empty()
            && ["leases", "poddisruptionbudgets"].contains(&resource.plural)
        {
            let why = "Invalid value: 0: must be specified for an update";
            return Err(Refusal::invalid(
                resource,
                name,
                "metadata.resourceVersion",
                "FieldValueInvalid",
                why,
            ));
        }
        Ok((200, self.replace(target, &known, object, order)?))
    }

    pub(super) fn patch(&mut self, target: &Target, kind: Kind, patch: &Value, order: &Order) -> Answer {
        let resource = target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        let known = self.get(target)?;
        let patched = kind.apply(&known, patch)?;
        let uid = text(&patched, "/metadata/uid");
        if !uid.is_empty() && uid != text(&known, "/metadata/uid") {
            // Unlike in an update, where it is a precondition.
            let why = format!("Invalid value: \"{uid}\": field is immutable");
            return Err(Refusal::invalid(
                resource,
                name,
                "metadata.uid",
                "FieldValueInvalid",
                &why,
            ));
        }
        if text(&patched, "/metadata/name") != name {
            let why = "the name of the object does not match the name on the URL";
            return Err(Refusal::bad_request(why));
        }
        Ok((200, self.replace(target, &known, patched, order)?))
    }

    /// What an update and a patch have in common: the parts that are not theirs stay as they are.
    fn replace(&mut self, target: &Target, known: &Value, mut object: Value, order: &Order) -> Result<Value, Refusal> {
        let resource = target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        let version = text(&object, "/metadata/resourceVersion");
        if !version.is_empty() && version != text(known, "/metadata/resourceVersion") {
            return Err(Refusal::changed_meanwhile(resource, name));
        }
        if !object["metadata"].is_object() {
            return Err(Refusal::unprocessable_patch());
        }
        object["kind"] = resource.kind.into();
        object["apiVersion"] = resource.api_version().into();
        match target.subresource.as_deref() {
            Some(_) => {
                let metadata = if ["pods", "nodes"].contains(&resource.plural) {
                    object["metadata"].clone()
                } else {
                    known["metadata"].clone()
                };
                let status = object.get("status").cloned();
                object = known.clone();
                object["metadata"] = metadata;
                put(&mut object, "status", status);
            }
            None if resource.has_status() => put(&mut object, "status", known.get("status").cloned()),
            None => {}
        }
        for field in [
            "uid",
            "name",
            "namespace",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
            "managedFields",
            "resourceVersion",
        ] {
            put(&mut object["metadata"], field, known["metadata"].get(field).cloned());
        }
        admission::tidy(resource, &mut object);
        admission::update(resource, name, known, &object)?;
        if object == *known {
            return Ok(object);
        }
        if object.get("spec") != known.get("spec") && object["metadata"].get("generation").is_some() {
            object["metadata"]["generation"] = (number(known, "/metadata/generation").unwrap_or(0) + 1).into();
        }
        self.record(target, Some(known), &mut object, order);
        let key = Key::new(resource, target.namespace.as_deref(), name);
        // The last finalizer of an object that is being deleted lets it go.
        let is_deleted = object["metadata"].get("deletionTimestamp").is_some();
        let waits = number(&object, "/metadata/deletionGracePeriodSeconds").is_some_and(|grace| grace > 0);
        if is_deleted && !waits && !has_finalizers(&object) {
            return Ok(self.commit(key, Some(object), None, order));
        }
        Ok(self.commit(key, Some(known.clone()), Some(object), order))
    }

    /// `options`: a `DeleteOptions`.
    pub(super) fn delete(&mut self, target: &Target, options: &Value, order: &Order) -> Answer {
        let resource = target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        let known = self.get(target)?;
        for (wanted, field, called) in [
            ("/preconditions/uid", "/metadata/uid", "UID"),
            (
                "/preconditions/resourceVersion",
                "/metadata/resourceVersion",
                "ResourceVersion",
            ),
        ] {
            let (wanted, found) = (text(options, wanted), text(&known, field));
            if !wanted.is_empty() && wanted != found {
                let why = format!(
                    "the {called} in the precondition ({wanted}) does not match the {called} in record ({found}). The object might have \
                     been {}",
                    if called == "UID" {
                        "deleted and then recreated"
                    } else {
                        "modified"
                    }
                );
                return Err(Refusal::conflict(resource, resource.kind, name, &why));
            }
        }
        let key = Key::new(resource, target.namespace.as_deref(), name);
        let grace = grace(resource, &known, options);
        let already = number(&known, "/metadata/deletionGracePeriodSeconds");
        let stays = grace > 0 || has_finalizers(&known) || resource.plural == "namespaces";
        if !stays {
            let uid = known["metadata"]["uid"].clone();
            let mut last = known;
            if resource.plural == "pods" && already != Some(0) {
                // It is marked as going first, also where it has no time left.
                let going = going(&last, grace, order);
                last = self.commit(key.clone(), Some(last), Some(going), order);
            }
            let last = self.commit(key, Some(last), None, order);
            if resource.plural == "pods" {
                return Ok((200, last));
            }
            let mut details = about(resource, Some(name));
            details["uid"] = uid;
            let done =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            return Ok((200, done));
        }
        // What is being deleted already can only be hurried.
        if already.is_some_and(|already| already <= grace) {
            return Ok((200, known));
        }
        let mut object = going(&known, grace, order);
        if resource.plural == "namespaces" {
            object["status"]["phase"] = "Terminating".into();
        }
        Ok((200, self.commit(key, Some(known), Some(object), order)))
    }

    /// Puts `object` in the place of `known`, by the server's own hand.
    pub(super) fn overwrite(&mut self, target: &Target, known: Value, mut object: Value, order: &Order) -> Value {
        let name = text(&known, "/metadata/name");
        self.record(target, Some(&known), &mut object, order);
        let key = Key::new(target.resource, target.namespace.as_deref(), &name);
        self.commit(key, Some(known), Some(object), order)
    }

    /// The object as it is afterwards, or was before it went. A dry run leaves everything as it was.
    fn commit(&mut self, key: Key, before: Option<Value>, after: Option<Value>, order: &Order) -> Value {
        if order.dry_run {
            return after.or(before).unwrap_or_default();
        }
        self.revision += 1;
        let revision = self.revision.to_string();
        let stamp = |mut object: Value| {
            object["metadata"]["resourceVersion"] = revision.clone().into();
            object
        };
        let after = after.map(stamp);
        // What is gone is told with the version of its end.
        let before = if after.is_some() { before } else { before.map(stamp) };
        match &after {
            Some(object) => self.objects.insert(key.clone(), Arc::new(object.clone())),
            None => self.objects.remove(&key),
        };
        let result = after.clone().or_else(|| before.clone()).unwrap_or_default();
        self.changes.push(Change {
            revision: self.revision,
            key,
            before,
            after,
        });
        result
    }

    fn record(&self, target: &Target, before: Option<&Value>, object: &mut Value, order: &Order) {
        let write = managed::Write {
            manager: &order.manager,
            subresource: target.subresource.as_deref(),
            api_version: target.resource.api_version(),
            time: &seconds(order.now),
        };
        managed::record(&write, before, object);
    }

    /// Gives the object the name and the namespace that it is to have.
    fn name(&mut self, target: &Target, object: &mut Value) -> Result<(), Refusal> {
        if !object.is_object() {
            return Err(Refusal::bad_request("the object provided is unrecognized"));
        }
        let resource = target.resource;
        for (field, wanted) in [
            ("kind", resource.kind.to_owned()),
            ("apiVersion", resource.api_version()),
        ] {
            let given = text(object, &format!("/{field}"));
            if !given.is_empty() && given != wanted {
                return Err(Refusal::bad_request(format!(
                    "the {field} of the object ({given}) does not match the {field} of the request ({wanted})"
                )));
            }
        }
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let given = text(object, "/metadata/namespace");
        match (resource.scope, &target.namespace) {
            (Scope::Namespaced, Some(namespace)) => {
                if !given.is_empty() && given != *namespace {
                    let why = "the namespace of the provided object does not match the namespace sent on the request";
                    return Err(Refusal::bad_request(why));
                }
                object["metadata"]["namespace"] = namespace.as_str().into();
            }
            (Scope::Namespaced, None) => return Err(Refusal::method_not_allowed()),
            (Scope::Cluster, _) => {}
        }
        if text(object, "/metadata/name").is_empty() {
            let stem = text(object, "/metadata/generateName");
            if stem.is_empty() {
                let why = "Required value: name or generateName is required";
                return Err(Refusal::invalid(
                    resource,
                    "",
                    "metadata.name",
                    "FieldValueRequired",
                    why,
                ));
            }
            self.made += 1;
            object["metadata"]["name"] = format!("{stem}{}", letters(self.made)).into();
        }
        let name = text(object, "/metadata/name");
        let is_valid = !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.'])
            && name.len() <= 253
            && name
                .chars()
                .all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '.'));
        if !is_valid {
            let why = format!(
                "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                 and must start and end with an alphanumeric character"
            );
            return Err(Refusal::invalid(
                resource,
                &name,
                "metadata.name",
                "FieldValueInvalid",
                &why,
            ));
        }
        Ok(())
    }

    fn must_accept(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), Refusal> {
        let namespaces = Resource::of("", "namespaces").expect("namespaces are known");
        let found = self
            .find(namespaces, None, namespace)
            .ok_or_else(|| Refusal::not_found(namespaces, namespace))?;
        if found["metadata"].get("deletionTimestamp").is_some() {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(Refusal::forbidden(resource, Some(name), &why));
        }
        Ok(())
    }

    fn uid(&self) -> String {
        format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), self.made)
    }
}

impl Change {
    /// What somebody sees of it who looks at the objects of a selector alone.
    fn seen_through(&self, selector: &Selector) -> Option<(&'static str, Value)> {
        let before = self.before.as_ref().filter(|object| selector.matches(object));
        let after = self.after.as_ref().filter(|object| selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", after.clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", after.clone())),
            (Some(before), None) => {
                // It may be there still, but not for this watcher: it hears of what it knew.
                let mut gone = before.clone();
                gone["metadata"]["resourceVersion"] = self.revision.to_string().into();
                Some(("DELETED", gone))
            }
        }
    }
}

/// The same object, being deleted.
fn going(known: &Value, grace: i64, order: &Order) -> Value {
    let mut object = known.clone();
    let ends = order.now + SignedDuration::from_secs(grace);
    object["metadata"]["deletionTimestamp"] = seconds(ends).into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if let Some(generation) = number(known, "/metadata/generation") {
        object["metadata"]["generation"] = (generation + 1).into();
    }
    object
}

/// Seconds that a deletion leaves.
fn grace(resource: &Resource, object: &Value, options: &Value) -> i64 {
    if resource.plural != "pods" {
        return 0;
    }
    let is_finished = matches!(text(object, "/status/phase").as_str(), "Succeeded" | "Failed");
    if text(object, "/spec/nodeName").is_empty() || is_finished {
        return 0;
    }
    let asked =
        number(options, "/gracePeriodSeconds").or_else(|| number(object, "/metadata/deletionGracePeriodSeconds"));
    let grace = asked.or_else(|| number(object, "/spec/terminationGracePeriodSeconds"));
    match grace.unwrap_or(0) {
        grace if grace < 0 => 1,
        grace => grace,
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|finalizers| !finalizers.is_empty())
}

/// Text at a JSON pointer, or none.
pub(super) fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

pub(super) fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// Sets a field, or takes it away.
pub(super) fn put(object: &mut Value, field: &str, value: Option<Value>) {
    match (value, object.as_object_mut()) {
        (Some(value), Some(fields)) => {
            fields.insert(field.into(), value);
        }
        (None, Some(fields)) => {
            fields.remove(field);
        }
        (_, None) => {}
    }
}

/// As `metav1.Time` is written.
pub(super) fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// Five letters as the server appends them, without vowels.
fn letters(mut number: u64) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::new();
    for _ in 0..5 {
        text.push(char::from(LETTERS[usize::try_from(number % 27).unwrap_or(0)]));
        number = number / 27 + 7;
    }
    text
}
