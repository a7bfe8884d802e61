//! The kinds of patch: JSON Merge Patch (RFC 7386), JSON Patch (RFC 6902) and Kubernetes' strategic merge patch.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// How a patch is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Merge,
    Strategic,
}

impl Kind {
    pub(super) fn of(content_type: &str) -> Result<Self, Refusal> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            _ => Err(Refusal::unsupported_media_type()),
        }
    }

    pub(super) fn apply(self, object: &Value, patch: &Value) -> Result<Value, Refusal> {
        let mut patched = object.clone();
        match self {
            Self::Json => json(&mut patched, patch)?,
            Self::Merge => merge(&mut patched, patch),
            Self::Strategic => strategic(&mut patched, patch),
        }
        if patched.is_object() {
            Ok(patched)
        } else {
            Err(Refusal::unprocessable_patch())
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let fields = as_object(target);
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one")
}

fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let fields = as_object(target);
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            fields.clear();
        }
        Some("delete") => {
            fields.clear();
            return;
        }
        _ => {}
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(present)), Some(gone)) = (fields.get_mut(list), value.as_array()) {
                present.retain(|element| !gone.contains(element));
            }
        } else if key.starts_with('$') {
            // Orders and retained keys: nothing here depends on them.
        } else if value.is_null() {
            fields.remove(key);
        } else if let Value::Array(elements) = value {
            let present = fields.entry(key.clone()).or_insert(Value::Array(Vec::new()));
            list(key, present, elements);
        } else {
            strategic(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The key by which elements of a list are the same one; None: the list is replaced as a whole, as `taints` are.
/// From `x-kubernetes-patch-merge-key` of the API's OpenAPI document.
fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "conditions" | "addresses" => Some("type"),
        "ownerReferences" => Some("uid"),
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims" => Some("name"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "topologySpreadConstraints" => Some("topologyKey"),
        "hostAliases" => Some("ip"),
        _ => None,
    }
}

fn list(name: &str, present: &mut Value, elements: &[Value]) {
    let replaces = elements.iter().any(|element| element["$patch"] == "replace");
    let elements: Vec<&Value> = elements
        .iter()
        .filter(|element| element["$patch"] != "replace")
        .collect();
    let Value::Array(present) = present else {
        *present = elements.into_iter().cloned().collect();
        return;
    };
    if ["finalizers", "podCIDRs"].contains(&name) && !replaces {
        for element in elements {
            if !present.contains(element) {
                present.push(element.clone());
            }
        }
        return;
    }
    let Some(key) = merge_key(name).filter(|_| !replaces) else {
        *present = elements.into_iter().cloned().collect();
        return;
    };
    for element in elements {
        let at = present.iter().position(|known| known[key] == element[key]);
        match (element["$patch"] == "delete", at) {
            (true, Some(at)) => {
                present.remove(at);
            }
            (true, None) => {}
            (false, Some(at)) => strategic(&mut present[at], element),
            (false, None) => present.push(element.clone()),
        }
    }
}

fn json(target: &mut Value, patch: &Value) -> Result<(), Refusal> {
    let operations = patch
        .as_array()
        .ok_or_else(|| Refusal::bad_request("error decoding patch: a JSON Patch is an array"))?;
    for operation in operations {
        step(target, operation).ok_or_else(Refusal::unprocessable_patch)?;
    }
    Ok(())
}

/// None: it cannot be done.
fn step(target: &mut Value, operation: &Value) -> Option<()> {
    let path = operation["path"].as_str()?;
    match operation["op"].as_str()? {
        "add" => add(target, path, operation.get("value")?.clone()),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            *target.pointer_mut(path)? = operation.get("value")?.clone();
            Some(())
        }
        "test" => (target.pointer(path)? == operation.get("value")?).then_some(()),
        "copy" => {
            let copied = target.pointer(operation["from"].as_str()?)?.clone();
            add(target, path, copied)
        }
        "move" => {
            let moved = remove(target, operation["from"].as_str()?)?;
            add(target, path, moved)
        }
        _ => None,
    }
}

fn parent<'a>(target: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((target.pointer_mut(parent)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    match parent(target, path)? {
        (Value::Object(fields), key) => {
            fields.insert(key, value);
        }
        (Value::Array(elements), key) if key == "-" => elements.push(value),
        (Value::Array(elements), key) => {
            let at: usize = key.parse().ok()?;
            (at <= elements.len()).then(|| elements.insert(at, value))?;
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    match parent(target, path)? {
        (Value::Object(fields), key) => fields.remove(&key),
        (Value::Array(elements), key) => {
            let at: usize = key.parse().ok()?;
            (at < elements.len()).then(|| elements.remove(at))
        }
        _ => None,
    }
}
