//! The tables of the file, and what is done to them. Each function is one transaction.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `version` | of this layout |
//! | `nodes` | name | `Saved` as JSON |
//! | `wakes` | when it began (µs since 1970), a number | `WakeDocument` as JSON |
//! | `transitions` | name, when (µs since 1970) | `NodeState` as JSON |

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use redb::{
    Database, Durability, Error, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, Table,
    TableDefinition, TableError, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use vmstation_protocol::{NodeName, WakeDocument};

use super::{
    AHEAD, Loaded, TRANSITIONS, TRANSITIONS_FOR, Transition, WAKES, WAKES_FOR, after, before, pending::Pending,
};
use crate::presence::Saved;

/// Version of the layout.
pub(super) const VERSION: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NODES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("nodes");
const WAKE_HISTORY: TableDefinition<'_, (i64, u64), &[u8]> = TableDefinition::new("wakes");
const TIMELINE: TableDefinition<'_, (&str, i64), &[u8]> = TableDefinition::new("transitions");

type Wakes<'txn> = Table<'txn, (i64, u64), &'static [u8]>;
type Timeline<'txn> = Table<'txn, (&'static str, i64), &'static [u8]>;

/// The version of the file; one that is empty gets this one's tables.
pub(super) fn found(database: &Database) -> Result<u64, Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => {
            let version = meta.get("version")?;
            return version.map_or_else(
                || Err(Error::Corrupted("it has no version".to_owned())),
                |version| Ok(version.value()),
            );
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let transaction = begin(database)?;
    transaction.open_table(META)?.insert("version", VERSION)?;
    transaction.open_table(NODES)?;
    transaction.open_table(WAKE_HISTORY)?;
    transaction.open_table(TIMELINE)?;
    transaction.commit()?;
    Ok(VERSION)
}

pub(super) fn load(database: &Database) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    let transaction = database.begin_read()?;
    for entry in transaction.open_table(NODES)?.iter()? {
        let (name, saved) = entry?;
        match serde_json::from_slice::<Saved>(saved.value()) {
            Ok(saved) => loaded.nodes.push(saved),
            Err(error) => loaded.warnings.push(format!(
                "what was kept of node {:?} cannot be understood ({error}): it is unknown until it reports",
                name.value()
            )),
        }
    }
    for entry in transaction.open_table(WAKE_HISTORY)?.iter()? {
        if let Some(wake) = decoded::<WakeDocument>(entry?.1.value()) {
            loaded.last_wakes.insert(wake.node.clone(), wake);
        }
    }
    Ok(loaded)
}

pub(super) fn write(database: &Database, pending: &Pending, now: Timestamp) -> Result<(), Error> {
    let transaction = begin(database)?;
    {
        let mut nodes = transaction.open_table(NODES)?;
        let mut timeline = transaction.open_table(TIMELINE)?;
        for name in &pending.forgotten {
            nodes.remove(name.as_str())?;
            timeline.retain_in(whole(name.as_str()), |_, _| false)?;
        }
        for (name, saved) in &pending.nodes {
            nodes.insert(name.as_str(), encoded(saved)?.as_slice())?;
        }
        let mut touched = BTreeSet::new();
        for change in &pending.changes {
            let name = change.node.as_str();
            let at = free_time(&timeline, name, change.since.as_microsecond())?;
            timeline.insert((name, at), encoded(&change.to)?.as_slice())?;
            touched.insert(name);
        }
        for name in touched {
            bound_timeline(&mut timeline, name, now)?;
        }
        if !pending.wakes.is_empty() {
            let mut wakes = transaction.open_table(WAKE_HISTORY)?;
            for wake in &pending.wakes {
                add_wake(&mut wakes, wake, now)?;
            }
            bound_wakes(&mut wakes, now)?;
        }
    }
    Ok(transaction.commit()?)
}

/// Throws away what is too old, of nodes that are heard no more as well.
pub(super) fn sweep(database: &Database, now: Timestamp) -> Result<(), Error> {
    let transaction = begin(database)?;
    {
        let mut timeline = transaction.open_table(TIMELINE)?;
        for name in names(&timeline)? {
            bound_timeline(&mut timeline, &name, now)?;
        }
        bound_wakes(&mut transaction.open_table(WAKE_HISTORY)?, now)?;
    }
    Ok(transaction.commit()?)
}

pub(super) fn wakes(
    database: &Database,
    limit: usize,
    is_wanted: impl Fn(&WakeDocument) -> bool,
) -> Result<Vec<WakeDocument>, Error> {
    let table = database.begin_read()?.open_table(WAKE_HISTORY)?;
    let mut wakes = Vec::new();
    for entry in table.iter()?.rev() {
        if wakes.len() == limit {
            break;
        }
        wakes.extend(decoded(entry?.1.value()).filter(&is_wanted));
    }
    Ok(wakes)
}

pub(super) fn timeline(database: &Database, node: &NodeName) -> Result<Vec<Transition>, Error> {
    let table = database.begin_read()?.open_table(TIMELINE)?;
    let mut transitions = Vec::new();
    for entry in table.range(whole(node.as_str()))? {
        let (key, to) = entry?;
        transitions.extend(transition(key.value().1, to.value()));
    }
    Ok(transitions)
}

pub(super) fn timelines(database: &Database) -> Result<BTreeMap<NodeName, Vec<Transition>>, Error> {
    let table = database.begin_read()?.open_table(TIMELINE)?;
    let mut timelines: BTreeMap<NodeName, Vec<Transition>> = BTreeMap::new();
    for entry in table.iter()? {
        let (key, to) = entry?;
        let (name, at) = key.value();
        if let (Ok(name), Some(transition)) = (name.parse(), transition(at, to.value())) {
            timelines.entry(name).or_default().push(transition);
        }
    }
    Ok(timelines)
}

/// A transaction that is on the disk when it is committed. In two phases: which of two states holds is then never left to a checksum of
/// data that came from nodes.
fn begin(database: &Database) -> Result<WriteTransaction, Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn add_wake(wakes: &mut Wakes<'_>, wake: &WakeDocument, now: Timestamp) -> Result<(), Error> {
    let began = wake.began.parse::<Timestamp>().unwrap_or(now).as_microsecond();
    // Many nodes are woken at one time.
    let number = match wakes.range((began, 0)..=(began, u64::MAX))?.next_back() {
        Some(last) => last?.0.value().1.saturating_add(1),
        None => 0,
    };
    wakes.insert((began, number), encoded(wake)?.as_slice())?;
    Ok(())
}

fn bound_wakes(wakes: &mut Wakes<'_>, now: Timestamp) -> Result<(), Error> {
    let oldest = before(now, WAKES_FOR).as_microsecond();
    let newest = after(now, AHEAD).as_microsecond();
    wakes.retain_in(..(oldest, 0), |_, _| false)?;
    wakes.retain_in((newest, u64::MAX).., |_, _| false)?;
    let excess = wakes.len()?.saturating_sub(WAKES as u64);
    for _ in 0..excess {
        wakes.pop_first()?;
    }
    Ok(())
}

fn bound_timeline(timeline: &mut Timeline<'_>, name: &str, now: Timestamp) -> Result<(), Error> {
    let oldest = before(now, TRANSITIONS_FOR).as_microsecond();
    let newest = after(now, AHEAD).as_microsecond();
    let last_before = match timeline.range((name, i64::MIN)..(name, oldest))?.next_back() {
        Some(last) => last?.0.value().1,
        None => i64::MIN,
    };
    timeline.retain_in((name, i64::MIN)..(name, last_before), |_, _| false)?;
    timeline.retain_in((name, newest)..=(name, i64::MAX), |_, _| false)?;
    // The newest that many; the rest goes.
    let first_kept = match timeline.range(whole(name))?.rev().nth(TRANSITIONS - 1) {
        Some(first) => first?.0.value().1,
        None => i64::MIN,
    };
    timeline.retain_in((name, i64::MIN)..(name, first_kept), |_, _| false)?;
    Ok(())
}

/// Two changes at one time follow each other.
fn free_time(timeline: &Timeline<'_>, name: &str, mut at: i64) -> Result<i64, Error> {
    while timeline.get((name, at))?.is_some() {
        at = at.saturating_add(1);
    }
    Ok(at)
}

/// Every node that has a timeline.
fn names(timeline: &Timeline<'_>) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for entry in timeline.iter()? {
        let (key, _) = entry?;
        let name = key.value().0;
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn whole(name: &str) -> std::ops::RangeInclusive<(&str, i64)> {
    (name, i64::MIN)..=(name, i64::MAX)
}

fn transition(at: i64, to: &[u8]) -> Option<Transition> {
    Some(Transition {
        at: Timestamp::from_microsecond(at).ok()?,
        to: decoded(to)?,
    })
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Io(error.into()))
}

/// A single record that a later version wrote otherwise is passed over, not the whole file.
fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::warn!(%error, "a record of the state file is passed over"))
        .ok()
}
