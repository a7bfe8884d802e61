//! What a pod asks of a node, added up as the scheduler does.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity as PodsAffinity, Container, ContainerStatus, NodeSelectorRequirement, PodSpec, PodStatus,
        Toleration as PodToleration,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::fit::{
    Affinity, Amounts, Doubt, HostPort, Needs, Operator, Requirement, Term, Toleration, TolerationOperator, amount,
};

/// Name of the cluster's own scheduler.
const SCHEDULER: &str = "default-scheduler";

/// Reads the needs. `status`: what its node has granted it so far.
pub(super) fn of(spec: &PodSpec, status: Option<&PodStatus>) -> Needs {
    let mut needs = Needs::default();
    let doubts = &mut needs.doubts;
    needs.requests = requests(spec, &Granted::of(status), doubts);
    needs.selector = spec.node_selector.clone().unwrap_or_default();
    needs.affinity = affinity(spec.affinity.as_ref(), doubts);
    needs.tolerations = spec
        .tolerations
        .iter()
        .flatten()
        .filter_map(|one| toleration(one, doubts))
        .collect();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    needs.ports = spec.containers.iter().chain(sidecars).flat_map(ports).collect();
    doubts.extend(unjudged(spec));
    needs
}

/// The larger of what the containers with all sidecars ask together, and of what each init container asks with the sidecars before it;
/// amounts that the pod itself states stand for those of its containers; the overhead is added to either.
fn requests(spec: &PodSpec, granted: &Granted<'_>, doubts: &mut Vec<Doubt>) -> Amounts {
    let mut together = Amounts::new();
    for container in &spec.containers {
        add(&mut together, &asked(container, granted, doubts));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut amounts = asked(container, granted, doubts);
        if is_sidecar(container) {
            add(&mut together, &amounts);
            add(&mut sidecars, &amounts);
            amounts.clone_from(&sidecars);
        } else {
            add(&mut amounts, &sidecars);
        }
        raise(&mut starting, &amounts);
    }
    raise(&mut together, &starting);
    let whole = spec.resources.as_ref();
    let whole = read(whole.and_then(|resources| resources.requests.as_ref()), doubts);
    let overhead = read(spec.overhead.as_ref(), doubts);
    // The status counts the overhead in.
    let granted_to_all = granted.to_all(doubts).map(|amounts| less(amounts, &overhead));
    // Of the pod as a whole Kubernetes knows these only.
    let is_known = |name: &str| name == "cpu" || name == "memory" || name.starts_with("hugepages-");
    together.extend(
        granted
            .larger(whole.clone(), granted_to_all)
            .into_iter()
            .filter(|(name, _)| whole.contains_key(name) && is_known(name)),
    );
    add(&mut together, &overhead);
    together
}

/// What the node has granted, where amounts change while a pod runs (Kubernetes 1.33, and 1.35 for those of the pod as a whole). Until a
/// change is done the scheduler counts the larger of what is asked for and what is granted.
struct Granted<'a> {
    status: Option<&'a PodStatus>,
    /// The node cannot ever grant what is asked for: only what it granted counts.
    is_infeasible: bool,
}

impl<'a> Granted<'a> {
    fn of(status: Option<&'a PodStatus>) -> Self {
        let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
        let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
        Self {
            status,
            is_infeasible: pending.is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible")),
        }
    }

    /// To a container: reserved for it, or in force, whichever is more. None: the node says nothing of it.
    fn to(&self, container: &str, doubts: &mut Vec<Doubt>) -> Option<Amounts> {
        let status = self.status?;
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let mut known = lists.into_iter().flatten().flatten();
        let ContainerStatus {
            allocated_resources,
            resources,
            ..
        } = known.find(|known| known.name == container)?;
        let in_force = resources.as_ref().and_then(|resources| resources.requests.as_ref());
        larger_of(allocated_resources.as_ref(), in_force, doubts)
    }

    /// To the pod as a whole.
    fn to_all(&self, doubts: &mut Vec<Doubt>) -> Option<Amounts> {
        let status = self.status?;
        let in_force = status.resources.as_ref();
        let in_force = in_force.and_then(|resources| resources.requests.as_ref());
        larger_of(status.allocated_resources.as_ref(), in_force, doubts)
    }

    fn larger(&self, asked: Amounts, granted: Option<Amounts>) -> Amounts {
        match granted {
            None => asked,
            Some(granted) if self.is_infeasible => granted,
            Some(mut granted) => {
                raise(&mut granted, &asked);
                granted
            }
        }
    }
}

fn larger_of(
    one: Option<&BTreeMap<String, Quantity>>,
    other: Option<&BTreeMap<String, Quantity>>,
    doubts: &mut Vec<Doubt>,
) -> Option<Amounts> {
    one.or(other)?;
    let mut amounts = read(one, doubts);
    raise(&mut amounts, &read(other, doubts));
    Some(amounts)
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn asked(container: &Container, granted: &Granted<'_>, doubts: &mut Vec<Doubt>) -> Amounts {
    let resources = container.resources.as_ref();
    let asked = read(resources.and_then(|resources| resources.requests.as_ref()), doubts);
    let granted_to_it = granted.to(&container.name, doubts);
    granted.larger(asked, granted_to_it)
}

fn read(quantities: Option<&BTreeMap<String, Quantity>>, doubts: &mut Vec<Doubt>) -> Amounts {
    let mut amounts = Amounts::new();
    for (resource, quantity) in quantities.into_iter().flatten() {
        match amount::parse(&quantity.0) {
            Ok(amount) => drop(amounts.insert(resource.clone(), amount)),
            Err(error) => doubts.push(Doubt::Amount {
                resource: resource.clone(),
                text: error.text,
            }),
        }
    }
    amounts
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

fn less(mut amounts: Amounts, part: &Amounts) -> Amounts {
    for (resource, amount) in &mut amounts {
        *amount = amount.saturating_sub(part.get(resource).copied().unwrap_or_default());
    }
    amounts
}

fn raise(largest: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let entry = largest.entry(resource.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn affinity(affinity: Option<&PodsAffinity>, doubts: &mut Vec<Doubt>) -> Option<Affinity> {
    let node = affinity?.node_affinity.as_ref()?;
    let required = node.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut terms = Vec::new();
    for term in &required.node_selector_terms {
        terms.push(Term {
            labels: term
                .match_expressions
                .iter()
                .flatten()
                .map(|one| requirement(one, doubts))
                .collect(),
            fields: term
                .match_fields
                .iter()
                .flatten()
                .map(|one| requirement(one, doubts))
                .collect(),
        });
    }
    Some(Affinity { terms })
}

fn requirement(requirement: &NodeSelectorRequirement, doubts: &mut Vec<Doubt>) -> Requirement {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt,
        "Lt" => Operator::Lt,
        other => {
            doubts.push(Doubt::Operator(other.to_owned()));
            Operator::Unknown
        }
    };
    Requirement {
        key: requirement.key.clone(),
        operator,
        values: requirement.values.clone().unwrap_or_default(),
    }
}

/// A toleration of an unknown operator tolerates nothing.
fn toleration(toleration: &PodToleration, doubts: &mut Vec<Doubt>) -> Option<Toleration> {
    let operator = match toleration.operator.as_deref() {
        None | Some("" | "Equal") => TolerationOperator::Equal,
        Some("Exists") => TolerationOperator::Exists,
        Some("Gt") => TolerationOperator::Gt,
        Some("Lt") => TolerationOperator::Lt,
        Some(other) => {
            doubts.push(Doubt::Operator(other.to_owned()));
            return None;
        }
    };
    Some(Toleration {
        key: toleration.key.clone().unwrap_or_default(),
        operator,
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration.effect.clone().unwrap_or_default(),
    })
}

fn ports(container: &Container) -> impl Iterator<Item = HostPort> {
    container.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.host_port?).ok().filter(|number| *number != 0)?;
        let address = port.host_ip.clone().filter(|address| !address.is_empty());
        let protocol = port.protocol.clone().filter(|protocol| !protocol.is_empty());
        Some(HostPort {
            address: address.unwrap_or_else(|| "0.0.0.0".to_owned()),
            protocol: protocol.unwrap_or_else(|| "TCP".to_owned()),
            port: number,
        })
    })
}

fn unjudged(spec: &PodSpec) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|all| all.pod_affinity.as_ref());
    let near = near.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity.and_then(|all| all.pod_anti_affinity.as_ref());
    let far = far.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    if near.into_iter().chain(far).flatten().next().is_some() {
        doubts.push(Doubt::PodAffinity);
    }
    let mut spreads = spec.topology_spread_constraints.iter().flatten();
    if spreads.any(|spread| spread.when_unsatisfiable == "DoNotSchedule") {
        doubts.push(Doubt::Spread);
    }
    let bound = spec.volumes.iter().flatten().filter(|volume| {
        volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some()
            || volume.gce_persistent_disk.is_some()
            || volume.aws_elastic_block_store.is_some()
            || volume.azure_disk.is_some()
            || volume.iscsi.is_some()
            || volume.rbd.is_some()
    });
    doubts.extend(bound.map(|volume| Doubt::Volume(volume.name.clone())));
    if spec.resource_claims.iter().flatten().next().is_some() {
        doubts.push(Doubt::Devices);
    }
    let group = spec.scheduling_group.as_ref();
    doubts.extend(group.map(|group| Doubt::Group(group.pod_group_name.clone().unwrap_or_default())));
    let scheduler = spec
        .scheduler_name
        .as_deref()
        .filter(|name| !name.is_empty() && *name != SCHEDULER);
    doubts.extend(scheduler.map(|name| Doubt::Scheduler(name.to_owned())));
    doubts
}
