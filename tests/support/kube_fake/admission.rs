//! What the server adds to an object, and what it does not take.

use serde_json::{Value, json};

use super::{
    Version,
    refusal::Refusal,
    resources::Resource,
    store::{Store, number, put, text},
};

/// Kinds whose `metadata.generation` counts the changes of `spec`.
pub(super) fn has_generation(resource: &Resource, version: Version) -> bool {
    match resource.plural {
        "nodes" | "namespaces" | "persistentvolumes" | "persistentvolumeclaims" => false,
        "pods" => version.counts_changes_of_pods(),
        _ => resource.has_status(),
    }
}

/// Defaults of an object that is created.
pub(super) fn create(store: &Store, resource: &'static Resource, object: &mut Value) -> Result<(), Refusal> {
    let name = text(object, "/metadata/name");
    match resource.plural {
        "pods" => pod(store, resource, &name, object)?,
        "nodes" => {
            // Until the node controller finds it ready.
            let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
            if !object["spec"].is_object() {
                object["spec"] = json!({});
            }
            let taints = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if !taints.contains(&taint) {
                object["spec"]["taints"] = taints.into_iter().chain([taint]).collect();
            }
        }
        "namespaces" => {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        "poddisruptionbudgets" => {
            object["status"] =
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        }
        "persistentvolumeclaims" | "persistentvolumes" => object["status"] = json!({"phase": "Pending"}),
        _ if resource.has_status() => object["status"] = json!({}),
        _ => {}
    }
    Ok(())
}

fn pod(store: &Store, resource: &'static Resource, name: &str, object: &mut Value) -> Result<(), Refusal> {
    if object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        let why = "Required value";
        return Err(Refusal::invalid(
            resource,
            name,
            "spec.containers",
            "FieldValueRequired",
            why,
        ));
    }
    let class = text(object, "/spec/priorityClassName");
    let priority = match class.as_str() {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        class => {
            let classes = Resource::of("scheduling.k8s.io", "priorityclasses").expect("they are known");
            let found = store.find(classes, None, class).ok_or_else(|| {
                Refusal::forbidden(
                    resource,
                    Some(name),
                    &format!("no PriorityClass with name {class} was found"),
                )
            })?;
            number(found, "/value").unwrap_or(0)
        }
    };
    if number(object, "/spec/priority").is_some_and(|given| given != priority) {
        let why = format!(
            "the integer value of priority must not be provided in pod spec; priority admission controller computed {priority} from the \
             given PriorityClass name"
        );
        return Err(Refusal::forbidden(resource, Some(name), &why));
    }
    let spec = &mut object["spec"];
    for (field, value) in [
        ("priority", json!(priority)),
        ("terminationGracePeriodSeconds", json!(30)),
        ("restartPolicy", json!("Always")),
        ("schedulerName", json!("default-scheduler")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("securityContext", json!({})),
    ] {
        if spec.get(field).is_none_or(Value::is_null) {
            spec[field] = value;
        }
    }
    object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
    Ok(())
}

/// What of a change is not allowed.
pub(super) fn update(resource: &'static Resource, name: &str, known: &Value, object: &Value) -> Result<(), Refusal> {
    if resource.plural != "pods" {
        return Ok(());
    }
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for field in [
            "activeDeadlineSeconds",
            "terminationGracePeriodSeconds",
            "tolerations",
            "schedulingGates",
        ] {
            put(&mut spec, field, None);
        }
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                put(container, "image", None);
            }
            if spec[list].is_null() {
                put(&mut spec, list, None);
            }
        }
        spec
    };
    if fixed(known) == fixed(object) {
        return Ok(());
    }
    let why = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
               `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
               `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    Err(Refusal::invalid(resource, name, "spec", "FieldValueForbidden", why))
}

/// Leaves out what the server does not write down: values that mean the same as none.
pub(super) fn tidy(resource: &Resource, object: &mut Value) {
    let is_empty = |value: Option<&Value>| match value {
        Some(Value::Null) => true,
        Some(Value::Array(elements)) => elements.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) | None => false,
    };
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if is_empty(object["metadata"].get(field)) {
            put(&mut object["metadata"], field, None);
        }
    }
    if resource.plural == "nodes" {
        if object["spec"]["unschedulable"] != true {
            put(&mut object["spec"], "unschedulable", None);
        }
        if is_empty(object["spec"].get("taints")) {
            put(&mut object["spec"], "taints", None);
        }
        if object["spec"].is_null() {
            object["spec"] = json!({});
        }
    }
}
