//! Makes [`ClusterNode`] and [`Pod`] of the objects that the API server sends. Never asks the API server anything, and judges nothing: what
//! cannot be read of a pod's needs is a [`Doubt`](crate::fit::Doubt) of it.

mod needs;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use thiserror::Error;
use vmstation_protocol::NodeName;

use crate::{
    fit::{Amounts, Taint, amount},
    workload::{ClusterNode, Controller, Phase, Pod, PodId},
};

/// Annotation of a static pod's mirror.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Grace period of a pod that states none.
const GRACE: Duration = Duration::from_secs(30);

/// An object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object} {what}")]
pub struct ReadingError {
    /// Which one, as `pod games/minecraft-0`.
    pub object: String,
    /// What is amiss with it.
    pub what: String,
}

/// Reads a node. An amount of it that cannot be read is left out: nothing that asks for it fits.
///
/// # Errors
/// It has no UID, or a name that no node of ours can have.
pub fn node(node: &v1::Node) -> Result<ClusterNode, ReadingError> {
    let meta = &node.metadata;
    let object = format!("node {}", meta.name.as_deref().unwrap_or("without a name"));
    let name = node_name(&object, meta.name.as_deref().unwrap_or_default())?;
    let spec = node.spec.as_ref();
    let status = node.status.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    Ok(ClusterNode {
        name,
        uid: uid(&object, meta)?,
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
        taints: taints.iter().map(taint).collect(),
        unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        allocatable: amounts(status.and_then(|status| status.allocatable.as_ref())),
        cordoned_by: cordoned_by(meta),
    })
}

/// Reads a pod.
///
/// # Errors
/// It has no name, no namespace or no UID, or is bound to a node of a name that no node of ours can have.
pub fn pod(pod: &v1::Pod) -> Result<Pod, ReadingError> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = meta.name.as_deref().unwrap_or_default();
    let object = format!("pod {namespace}/{name}");
    if namespace.is_empty() || name.is_empty() {
        return Err(ReadingError {
            object,
            what: "has no name or no namespace".to_owned(),
        });
    }
    let id = PodId {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid(&object, meta)?,
    };
    let unnamed = v1::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&unnamed);
    let status = pod.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let is = |kind: &str, expected: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == expected)
    };
    let unscheduled =
        is("PodScheduled", "False").filter(|condition| condition.reason.as_deref() == Some("Unschedulable"));
    let bound = spec.node_name.as_deref().filter(|name| !name.is_empty());
    let annotations = meta.annotations.clone().unwrap_or_default();
    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
    Ok(Pod {
        id,
        node: bound.map(|name| node_name(&object, name)).transpose()?,
        phase: phase(status.and_then(|status| status.phase.as_deref())),
        controller: controller(meta),
        is_mirror: annotations.contains_key(MIRROR),
        is_terminating: meta.deletion_timestamp.is_some(),
        is_ready: is("Ready", "True").is_some(),
        has_local_storage: spec.volumes.iter().flatten().any(|volume| volume.empty_dir.is_some()),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations,
        priority: spec.priority.unwrap_or(0),
        priority_class: spec.priority_class_name.clone().filter(|class| !class.is_empty()),
        uses_host_network: spec.host_network.unwrap_or(false),
        // The API server takes a period below zero for one second.
        grace: spec
            .termination_grace_period_seconds
            .map_or(GRACE, |secs| Duration::from_secs(u64::try_from(secs).unwrap_or(1))),
        created,
        // A condition without a time has held since the pod was made, as far as is known.
        unschedulable_since: unscheduled
            .and_then(|condition| condition.last_transition_time.as_ref().map(|time| time.0).or(created)),
        needs: needs::of(spec, status),
    })
}

fn uid(object: &str, meta: &ObjectMeta) -> Result<String, ReadingError> {
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty());
    uid.ok_or_else(|| ReadingError {
        object: object.to_owned(),
        what: "has no UID".to_owned(),
    })
}

fn node_name(object: &str, name: &str) -> Result<NodeName, ReadingError> {
    name.parse().map_err(|error| ReadingError {
        object: object.to_owned(),
        what: format!("names the node {name:?}: {error}"),
    })
}

fn taint(taint: &v1::Taint) -> Taint {
    Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
        time_added: taint.time_added.as_ref().map(|time| time.0.to_string()),
    }
}

fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let read = |(resource, quantity): (&String, &Quantity)| Some((resource.clone(), amount::parse(&quantity.0).ok()?));
    quantities.into_iter().flatten().filter_map(read).collect()
}

fn cordoned_by(meta: &ObjectMeta) -> Vec<(String, Option<Timestamp>)> {
    let entries = meta.managed_fields.iter().flatten();
    let entries = entries.filter(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.pointer("/f:spec/f:unschedulable").is_some())
    });
    entries
        .map(|entry| {
            (
                entry.manager.clone().unwrap_or_default(),
                entry.time.as_ref().map(|time| time.0),
            )
        })
        .collect()
}

fn controller(meta: &ObjectMeta) -> Option<Controller> {
    let owner = meta
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))?;
    Some(Controller {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
    })
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        None | Some("" | "Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(_) => Phase::Unknown,
    }
}

#[cfg(test)]
mod tests;
