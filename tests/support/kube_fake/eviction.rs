//! Subresources that act: `pods/eviction`, which asks the disruption budgets, and `pods/binding`.
//!
//! In the order of the real handler (kubernetes, pkg/registry/core/pod/storage).

use serde_json::{Value, json};

use super::{
    refusal::Refusal,
    resources::{Resource, Target},
    selector::Selector,
    store::{Answer, Order, Store, number, seconds, text},
};

/// Evicts the pod that `target` names.
pub(super) fn evict(store: &mut Store, target: &Target, eviction: &Value, order: &Order) -> Answer {
    let name = target.name.clone().unwrap_or_default();
    if text(eviction, "/metadata/name") != name {
        return Err(Refusal::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let options = &eviction["deleteOptions"];
    let order = &Order {
        dry_run: order.dry_run
            || options["dryRun"]
                .as_array()
                .is_some_and(|values| values.iter().any(|value| value == "All")),
        ..order.clone()
    };
    let pod = store.get(target)?;
    let is_exempt = matches!(text(&pod, "/status/phase").as_str(), "Succeeded" | "Failed" | "Pending")
        || pod["metadata"].get("deletionTimestamp").is_some();
    if !is_exempt {
        ask_budgets(store, target, &pod, order)?;
    }
    mark_and_delete(store, target, pod, options, order)?;
    Ok((201, success(201)))
}

/// The one budget of the pod counts one disruption less, or refuses.
fn ask_budgets(store: &mut Store, target: &Target, pod: &Value, order: &Order) -> Result<(), Refusal> {
    let budgets = Resource::of("policy", "poddisruptionbudgets").expect("they are known");
    let is_labelled = pod["metadata"]["labels"]
        .as_object()
        .is_some_and(|labels| !labels.is_empty());
    let mut mine = store.of(budgets, target.namespace.as_deref());
    mine.retain(|budget| {
        is_labelled && Selector::of_budget(budget["spec"].get("selector")).is_some_and(|selector| selector.matches(pod))
    });
    let budget = match mine.as_slice() {
        [] => return Ok(()),
        [budget] => budget.clone(),
        _ => {
            return Err(Refusal::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let count = |pointer: &str| number(&budget, pointer).unwrap_or(0);
    let (allowed, healthy, desired) = (
        count("/status/disruptionsAllowed"),
        count("/status/currentHealthy"),
        count("/status/desiredHealthy"),
    );
    let is_ready = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready = is_ready
        .into_iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let is_free =
        text(&budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (desired > 0 && healthy >= desired);
    if !is_ready && is_free {
        return Ok(());
    }
    let name = text(&budget, "/metadata/name");
    if count("/status/observedGeneration") < count("/metadata/generation") {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(Refusal::budget(&why, Some(10)));
    }
    if allowed < 0 {
        return Err(Refusal::forbidden(
            budgets,
            Some(&name),
            "pdb disruptions allowed is negative",
        ));
    }
    if allowed == 0 {
        let why = format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        return Err(Refusal::budget(&why, None));
    }
    let mut counted = budget.clone();
    counted["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !counted["status"]["disruptedPods"].is_object() {
        counted["status"]["disruptedPods"] = json!({});
    }
    counted["status"]["disruptedPods"][text(pod, "/metadata/name")] = seconds(order.now).into();
    let of_budget = Target {
        resource: budgets,
        namespace: target.namespace.clone(),
        name: Some(name),
        subresource: Some("status".into()),
    };
    store.overwrite(&of_budget, budget, counted, order);
    Ok(())
}

fn mark_and_delete(
    store: &mut Store,
    target: &Target,
    pod: Value,
    options: &Value,
    order: &Order,
) -> Result<(), Refusal> {
    let of_pod = Target {
        subresource: None,
        ..target.clone()
    };
    // Only a pod that the deletion takes is marked: it asks for the conditions first.
    let rehearsal = Order {
        dry_run: true,
        ..order.clone()
    };
    store.delete(&of_pod, options, &rehearsal)?;
    let mut marked = pod.clone();
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastTransitionTime": seconds(order.now),
    });
    set_condition(&mut marked, condition);
    let status = Target {
        subresource: Some("status".into()),
        ..target.clone()
    };
    store.overwrite(&status, pod, marked, order);
    let mut options = options.clone();
    if let Some(preconditions) = options.get_mut("preconditions").and_then(Value::as_object_mut) {
        // It named the pod as it was before the mark.
        preconditions.remove("resourceVersion");
    }
    store.delete(&of_pod, &options, order).map(drop)
}

/// Binds the pod that `target` names to a node.
pub(super) fn bind(store: &mut Store, target: &Target, binding: &Value, order: &Order) -> Answer {
    let name = target.name.clone().unwrap_or_default();
    let node = text(binding, "/target/name");
    let pod = store.get(target)?;
    let bound = text(&pod, "/spec/nodeName");
    let refused = |why: String| Err(Refusal::conflict(target.resource, "pods/binding", &name, &why));
    if node.is_empty() {
        return Err(Refusal::invalid(
            target.resource,
            &name,
            "target.name",
            "FieldValueRequired",
            "Required value",
        ));
    }
    if pod["metadata"].get("deletionTimestamp").is_some() {
        return refused(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if !bound.is_empty() {
        return refused(format!("pod {name} is already assigned to node \"{bound}\""));
    }
    let mut placed = pod.clone();
    placed["spec"]["nodeName"] = node.into();
    let condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": seconds(order.now)});
    set_condition(&mut placed, condition);
    store.overwrite(target, pod, placed, order);
    Ok((201, success(201)))
}

fn set_condition(pod: &mut Value, mut condition: Value) {
    if let Some(generation) = number(pod, "/metadata/generation") {
        condition["observedGeneration"] = generation.into();
    }
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|known| known["type"] != condition["type"]);
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
}

fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}
