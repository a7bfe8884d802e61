//! `[sleep]`: who may sleep, and what becomes of the pods of a node that does.

use std::{collections::BTreeMap, time::Duration};

use toml::de::DeValue;
use vmstation_protocol::Role;

use super::values::{HOUR, MINUTE, SECOND, count, duration};
use crate::{
    complaint::Complaints,
    keys::{self, Hint, Keys},
    permission::{Proof, Terms},
};

/// Most labels in one list.
const MOST_LABELS: usize = 64;
/// Longest drain: an agent waits 5 min and a half for its leave.
const LONGEST_DRAIN: Duration = Duration::from_mins(5);

/// Who may sleep, and what becomes of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SleepSettings {
    /// How many nodes of a role have to stay awake; a role without an entry: none.
    pub min_awake: BTreeMap<Role, usize>,
    /// What has to speak for it that a node can be woken.
    pub first_time: Proof,
    /// For how long leave holds, and how long refusals do.
    pub terms: Terms,
    /// What becomes of pods.
    pub pods: PodRules,
    /// Which pods wake a node.
    pub demand: DemandRules,
}

/// What becomes of the pods of a node that is to sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRules {
    /// In one word.
    pub mode: Mode,
    /// A drain that is not over by then has failed; 10s to 5m.
    pub drain_deadline: Duration,
    /// Whether pods that no controller would make again may be deleted.
    pub unmanaged: bool,
    /// Whether what pods keep in an `emptyDir` may be lost.
    pub local_data: bool,
    /// A pod with one of these labels keeps its node awake.
    pub prevent_sleep_labels: Vec<(String, String)>,
}

/// What becomes of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are evicted.
    #[default]
    Drain,
    /// They stay and are suspended with the node.
    Freeze,
    /// A node with pods does not sleep.
    RefuseIfPods,
}

/// Which pods wake a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandRules {
    /// Whether pods do at all.
    pub on: bool,
    /// Whether those do that were moved for a sleep (fault K15).
    pub moved: bool,
    /// How long a pod has to be unschedulable; at most 10m.
    pub settle: Duration,
    /// Shortest time between two wakes of a node by pods; 10s to 1h.
    pub cooldown: Duration,
}

impl Default for SleepSettings {
    fn default() -> Self {
        Self {
            min_awake: BTreeMap::new(),
            first_time: Proof::Armed,
            terms: Terms::default(),
            pods: PodRules::default(),
            demand: DemandRules::default(),
        }
    }
}

impl Default for PodRules {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            drain_deadline: Duration::from_mins(4),
            unmanaged: false,
            local_data: false,
            prevent_sleep_labels: vec![("vmstation.io/prevent-sleep".into(), "true".into())],
        }
    }
}

impl Default for DemandRules {
    fn default() -> Self {
        Self {
            on: true,
            moved: false,
            settle: Duration::from_secs(5),
            cooldown: Duration::from_mins(5),
        }
    }
}

pub(super) fn sleep(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> SleepSettings {
    let default = SleepSettings::default();
    let min_awake = keys
        .table("min_awake", complaints)
        .map(|section| min_awake(section, complaints));
    let first_time = keys.read(
        "first_time",
        "\"armed\" (its agent says that a card is), \"woken\" (a wake of it was proved) or \"allow\"",
        complaints,
        proof,
    );
    let lifetime = duration(&mut keys, "leave", 10 * SECOND..=10 * MINUTE, complaints);
    let cool_down = duration(&mut keys, "cool_down", Duration::ZERO..=24 * HOUR, complaints);
    let mode = keys.read(
        "pods",
        "\"drain\" (they are evicted), \"freeze\" (they stay and sleep with the node) or \"refuse-if-pods\"",
        complaints,
        mode,
    );
    let drain_deadline = duration(&mut keys, "drain_deadline", 10 * SECOND..=LONGEST_DRAIN, complaints);
    let mut boolean = |key| keys.read(key, "true or false", complaints, |value| value.as_bool().ok_or(None));
    let unmanaged = boolean("unmanaged_pods");
    let local_data = boolean("delete_local_data");
    let on = boolean("wake_on_demand");
    let moved = boolean("wake_for_moved");
    let settle = duration(&mut keys, "demand_settle", Duration::ZERO..=10 * MINUTE, complaints);
    let cooldown = duration(&mut keys, "demand_cooldown", 10 * SECOND..=HOUR, complaints);
    let labels = labels(&mut keys, complaints);
    keys.finish(complaints);
    SleepSettings {
        min_awake: min_awake.unwrap_or(default.min_awake),
        first_time: first_time.unwrap_or(default.first_time),
        terms: Terms {
            lifetime: lifetime.unwrap_or(default.terms.lifetime),
            cool_down: cool_down.unwrap_or(default.terms.cool_down),
            ..default.terms
        },
        pods: PodRules {
            mode: mode.unwrap_or_default(),
            drain_deadline: drain_deadline.unwrap_or(default.pods.drain_deadline),
            unmanaged: unmanaged.unwrap_or(default.pods.unmanaged),
            local_data: local_data.unwrap_or(default.pods.local_data),
            prevent_sleep_labels: labels.unwrap_or(default.pods.prevent_sleep_labels),
        },
        demand: DemandRules {
            on: on.unwrap_or(default.demand.on),
            moved: moved.unwrap_or(default.demand.moved),
            settle: settle.unwrap_or(default.demand.settle),
            cooldown: cooldown.unwrap_or(default.demand.cooldown),
        },
    }
}

fn min_awake(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> BTreeMap<Role, usize> {
    // Masters never sleep by themselves.
    let roles = [("worker", Role::Worker), ("storage", Role::Storage)];
    let mut of = |(key, role)| Some((role, count(&mut keys, key, 0..=100_000, complaints)?));
    let found = roles.map(&mut of).into_iter().flatten().collect();
    keys.finish(complaints);
    found
}

fn proof(value: &DeValue<'_>) -> Result<Proof, Hint> {
    match keys::text(value)? {
        "armed" => Ok(Proof::Armed),
        "woken" => Ok(Proof::Woken),
        "allow" => Ok(Proof::None),
        _ => Err(None),
    }
}

fn mode(value: &DeValue<'_>) -> Result<Mode, Hint> {
    match keys::text(value)? {
        "drain" => Ok(Mode::Drain),
        "freeze" => Ok(Mode::Freeze),
        "refuse-if-pods" => Ok(Mode::RefuseIfPods),
        _ => Err(None),
    }
}

fn labels(keys: &mut Keys<'_, '_>, complaints: &mut Complaints) -> Option<Vec<(String, String)>> {
    let place = keys.place("prevent_sleep_labels")?;
    let takes = "a list of labels, as [\"vmstation.io/prevent-sleep=true\"]";
    let labels = keys.list("prevent_sleep_labels", takes, complaints, |value| {
        let (label, value) = keys::text(value)?.split_once('=').ok_or(None)?;
        (!label.is_empty())
            .then(|| (label.to_owned(), value.to_owned()))
            .ok_or(None)
    })?;
    if labels.len() > MOST_LABELS {
        complaints.add(
            place,
            format!("`prevent_sleep_labels` takes at most {MOST_LABELS} labels"),
            None,
        );
    }
    Some(labels.into_iter().map(|(label, _)| label).collect())
}
