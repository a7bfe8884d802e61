//! `metadata.managedFields`: who wrote which field last. Lists count as one field.

use serde_json::{Map, Value, json};

/// Who writes, by what, and when.
pub(super) struct Write<'a> {
    pub(super) manager: &'a str,
    pub(super) subresource: Option<&'a str>,
    pub(super) api_version: String,
    pub(super) time: &'a str,
}

/// Fields of `metadata` that nobody manages.
const UNMANAGED: [&str; 10] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
];

/// What is changed belongs to who writes, and to nobody else any more.
pub(super) fn record(write: &Write<'_>, before: Option<&Value>, after: &mut Value) {
    let mut changes = Changes::default();
    let nothing = json!({});
    for field in ["metadata", "spec", "status", "data"] {
        let old = before.and_then(|before| before.get(field)).unwrap_or(&nothing);
        compare(
            &mut vec![field.to_owned()],
            old,
            after.get(field).unwrap_or(&nothing),
            &mut changes,
        );
    }
    let known = before.and_then(|before| before.pointer("/metadata/managedFields"));
    let mut entries = known.and_then(Value::as_array).cloned().unwrap_or_default();
    for entry in &mut entries {
        for path in changes.written.iter().chain(&changes.removed) {
            forget(&mut entry["fieldsV1"], path);
        }
    }
    if !changes.written.is_empty() {
        let at = entries.iter().position(|entry| {
            entry["manager"] == write.manager && entry.get("subresource").and_then(Value::as_str) == write.subresource
        });
        let at = at.unwrap_or_else(|| {
            entries.push(
                json!({"manager": write.manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {}}),
            );
            entries.len() - 1
        });
        let entry = &mut entries[at];
        entry["apiVersion"] = write.api_version.as_str().into();
        entry["time"] = write.time.into();
        if let Some(subresource) = write.subresource {
            entry["subresource"] = subresource.into();
        }
        for path in &changes.written {
            own(&mut entry["fieldsV1"], path);
        }
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    after["metadata"]["managedFields"] = entries.into();
}

#[derive(Default)]
struct Changes {
    written: Vec<Vec<String>>,
    removed: Vec<Vec<String>>,
}

fn compare(path: &mut Vec<String>, before: &Value, after: &Value, changes: &mut Changes) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            changes.written.push(path.clone());
        }
        return;
    };
    let is_managed = |path: &[String], key: &str| !(path == ["metadata"] && UNMANAGED.contains(&key));
    for (key, value) in new {
        if !is_managed(path, key) {
            continue;
        }
        path.push(key.clone());
        match old.get(key) {
            Some(known) => compare(path, known, value, changes),
            None => leaves(path, value, &mut changes.written),
        }
        path.pop();
    }
    for (key, value) in old {
        if !new.contains_key(key) && is_managed(path, key) {
            path.push(key.clone());
            leaves(path, value, &mut changes.removed);
            path.pop();
        }
    }
}

fn leaves(path: &mut Vec<String>, value: &Value, found: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                path.push(key.clone());
                leaves(path, value, found);
                path.pop();
            }
        }
        _ => found.push(path.clone()),
    }
}

fn own(fields: &mut Value, path: &[String]) {
    let mut at = fields;
    for part in path {
        let Value::Object(known) = at else { return };
        at = known.entry(format!("f:{part}")).or_insert(Value::Object(Map::new()));
    }
}

/// Empty branches go with their last leaf.
fn forget(fields: &mut Value, path: &[String]) {
    let (Value::Object(known), Some((first, rest))) = (fields, path.split_first()) else {
        return;
    };
    let key = format!("f:{first}");
    let Some(below) = known.get_mut(&key) else { return };
    forget(below, rest);
    if below.as_object().is_none_or(Map::is_empty) {
        known.remove(&key);
    }
}
