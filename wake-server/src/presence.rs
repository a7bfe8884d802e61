//! Says which node is awake, going to sleep, asleep on purpose or gone, and holds the orders its agent has yet to fetch.
//!
//! Owns what is known of every node, from its agent's words and from silence. Never reads a clock, a socket or a file, and never
//! guesses: only an agent's own word makes a node asleep, and only being heard makes it awake.
//!
//! ```text
//!                report                       `Sleeping`                silence > settle
//!  (unknown) ─────────────> awake, going to sleep ─────> entering sleep ────────────────> asleep
//!                             │            ^  ^                │ report: called off         │
//!           silence > silence │            │  └────────────────┴────────────────────────────┘ report or long-poll
//!                             v            │ report or long-poll
//!                            gone ─────────┘
//! ```
//! A held long-poll is no silence, except of a node that said it sleeps: the connection of a suspended host looks alive. A wake under
//! way is shown as `Waking` while the node is not heard of.

mod entry;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vmstation_protocol::{NodeName, NodeState, Order, Orders, Report, SCHEMA};

use self::entry::Entry;
use crate::{clock::Moment, cordon::Heard};

/// Orders that wait for one agent; a further one takes the place of the oldest.
const ORDERS: usize = 16;
/// What is kept of a report's lists, entries.
const LIST: usize = 32;
/// What is kept of a text in a report, characters.
const TEXT: usize = 256;

/// One instant on both clocks: `moment` decides, `wall` is shown and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// For deciding.
    pub moment: Moment,
    /// For people, and for what outlives a restart: a [`Moment`] cannot lie before the boot of this host.
    pub wall: Timestamp,
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest time without a report and without a held long-poll before an awake node is gone. More than a long-poll lasts.
    pub silence: Duration,
    /// Silence after `Sleeping` that makes a node asleep.
    pub settle: Duration,
    /// How long an order waits for its agent: what was ordered an hour ago surprises whoever uses the node by then.
    pub order: Duration,
}

/// Which boot of a node, and which waking of that boot, was heard last: a wake is proved by a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The node's boot id.
    pub boot_id: String,
    /// Suspends of that boot that are over. The greatest that was told: a delayed report is no way back.
    pub resumes: u64,
}

/// A change of a node's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub node: NodeName,
    /// What it was.
    pub from: NodeState,
    /// What it is.
    pub to: NodeState,
    /// Since when. Never before the `since` of `from`.
    pub since: Timestamp,
    /// Why.
    pub cause: Cause,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its agent says so.
    Reported,
    /// Its agent reports from the life that had announced its sleep.
    CalledOff,
    /// Its agent reports after a resume or a boot.
    Woke,
    /// Its agent asks for orders.
    Asked,
    /// Nothing was heard for too long.
    Silence,
    /// A wake of it began.
    WakeBegun,
    /// The wake of it ended.
    WakeEnded,
}

/// Where a node stands by its own words and its silence, whatever is done to wake it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Never heard.
    #[default]
    Unknown,
    /// Heard, and not going to sleep.
    Awake,
    /// Announced that it sleeps unless it is used.
    GoingToSleep,
    /// Said `Sleeping` a short while ago.
    Entering,
    /// Said `Sleeping` and kept silent.
    Asleep,
    /// Silent without a word.
    Gone,
}

/// What outlives a restart of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The node.
    pub node: NodeName,
    /// Where it stands.
    pub standing: Standing,
    /// Since when its state is what it is.
    pub since: Option<Timestamp>,
    /// What was heard of it last.
    pub life: Option<Life>,
    /// Its last report.
    pub report: Option<Report>,
    /// When that came.
    pub reported: Option<Timestamp>,
}

/// What is known of every node.
#[derive(Clone, Debug)]
pub struct Presence {
    limits: Limits,
    nodes: BTreeMap<NodeName, Entry>,
    /// When which node changes by itself, as its entry's `due` says.
    due: BTreeSet<(Moment, NodeName)>,
    unsaved: BTreeSet<NodeName>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: Duration::from_mins(15),
            settle: Duration::from_secs(30),
            order: Duration::from_mins(5),
        }
    }
}

impl Presence {
    /// Knows nobody.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            nodes: BTreeMap::new(),
            due: BTreeSet::new(),
            unsaved: BTreeSet::new(),
        }
    }

    /// Knows what was known before a restart: who slept sleeps, since then; who was there is there until silence says otherwise,
    /// counted from `now`.
    pub fn restored(limits: Limits, saved: impl IntoIterator<Item = Saved>, now: At) -> Self {
        let mut presence = Self::new(limits);
        for saved in saved {
            let entry = Entry {
                standing: saved.standing,
                // A clock that was set back since would show a time that is yet to come.
                since: saved.since.map(|since| since.min(now.wall)),
                heard: now.moment,
                life: saved.life,
                report: saved.report,
                reported: saved.reported,
                ..Entry::default()
            };
            presence.nodes.insert(saved.node.clone(), entry);
            presence.schedule(&saved.node);
        }
        presence
    }

    /// An agent reports.
    pub fn report(&mut self, report: &Report, now: At) -> Vec<Change> {
        let report = bounded(report);
        let node = report.node.clone();
        self.change(&node, now, |entry| entry.hear(report, now))
    }

    /// An agent asks for orders and is held. To be followed by one [`Self::poll_ended`].
    pub fn poll_begun(&mut self, node: &NodeName, now: At) -> Vec<Change> {
        self.change(node, now, |entry| {
            entry.polls = entry.polls.saturating_add(1);
            entry.heard = now.moment;
            entry.is_heard = true;
            entry.standing = match entry.standing {
                Standing::Unknown | Standing::Asleep | Standing::Gone => Standing::Awake,
                as_before @ (Standing::Awake | Standing::GoingToSleep | Standing::Entering) => as_before,
            };
            Cause::Asked
        })
    }

    /// A long-poll is over, answered or broken off.
    pub fn poll_ended(&mut self, node: &NodeName, now: At) -> Vec<Change> {
        self.change(node, now, |entry| {
            entry.polls = entry.polls.saturating_sub(1);
            // The end of a poll is the server's doing or the network's: nothing that a node which sleeps has said.
            if entry.standing.is_here() {
                entry.heard = now.moment;
            }
            Cause::Silence
        })
    }

    /// A wake of it begins. Orders that it has not fetched are void.
    pub fn wake_begun(&mut self, node: &NodeName, now: At) -> Vec<Change> {
        self.change(node, now, |entry| {
            entry.waking = true;
            entry.orders.clear();
            Cause::WakeBegun
        })
    }

    /// The wake of it ended, whatever came of it: an agent's report says better whether it is awake.
    pub fn wake_ended(&mut self, node: &NodeName, now: At) -> Vec<Change> {
        self.change(node, now, |entry| {
            entry.waking = false;
            Cause::WakeEnded
        })
    }

    /// What silence changed until now. To be called at [`Self::deadline`].
    pub fn tick(&mut self, now: At) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((due, node)) = self.due.first() {
            if *due > now.moment {
                break;
            }
            let node = node.clone();
            changes.extend(self.settle(&node, now));
        }
        changes
    }

    /// When a state next changes by itself.
    pub fn deadline(&self) -> Option<Moment> {
        self.due.first().map(|(due, _)| *due)
    }

    /// What a node is, and since when; nothing is known of when an unknown one became so.
    pub fn state(&self, node: &NodeName, now: At) -> (NodeState, Option<Timestamp>) {
        let Some(entry) = self.nodes.get(node) else {
            return (NodeState::Unknown, None);
        };
        let Some((standing, since)) = entry.overdue(now) else {
            return (entry.shown(), entry.since);
        };
        let then = entry.shown_as(standing);
        if then == entry.shown() {
            (then, entry.since)
        } else {
            (then, entry.since.max(Some(since)))
        }
    }

    /// What was heard of a node since this server acts: what is remembered of an earlier one may have changed unheard.
    pub fn heard(&self, node: &NodeName, now: At) -> Heard {
        let Some(entry) = self.nodes.get(node).filter(|entry| entry.is_heard) else {
            return Heard::Nothing;
        };
        let standing = entry.overdue(now).map_or(entry.standing, |(standing, _)| standing);
        match standing {
            Standing::Unknown => Heard::Nothing,
            Standing::Awake | Standing::GoingToSleep => Heard::Awake,
            Standing::Entering | Standing::Asleep => Heard::Sleeping,
            Standing::Gone => Heard::Gone,
        }
    }

    /// This server acts from here on: it has heard nobody yet.
    pub fn took_over(&mut self) {
        self.nodes
            .values_mut()
            .for_each(|entry| entry.is_heard = entry.polls > 0);
    }

    /// The boot and resume heard last.
    pub fn life(&self, node: &NodeName) -> Option<&Life> {
        self.nodes.get(node)?.life.as_ref()
    }

    /// The last report and when it came.
    pub fn last_report(&self, node: &NodeName) -> Option<(&Report, Timestamp)> {
        let entry = self.nodes.get(node)?;
        Some((entry.report.as_ref()?, entry.reported?))
    }

    /// The last report of every node that ever sent one.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.nodes.values().filter_map(|entry| entry.report.as_ref())
    }

    /// Every node of which something is known.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// Whether an agent of it is held.
    pub fn is_polling(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|entry| entry.polls > 0)
    }

    /// Whether a wake of it is under way, even if it is awake already.
    pub fn is_being_woken(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|entry| entry.waking)
    }

    /// Orders a node to sleep, as soon as its agent asks.
    pub fn order_sleep(&mut self, node: &NodeName, now: At) -> Order {
        let lifetime = self.limits.order;
        let entry = self.nodes.entry(node.clone()).or_default();
        // Numbers rise through restarts without being kept: an agent that asks for what is newer than 7 never misses a second 3.
        let by_time = u64::try_from(now.wall.as_millisecond()).unwrap_or_default();
        entry.newest_order = by_time.max(entry.newest_order.saturating_add(1));
        let order = Order::Sleep {
            number: entry.newest_order,
        };
        entry.orders.retain(|(given, _)| now.moment.since(*given) < lifetime);
        if entry.orders.len() == ORDERS {
            entry.orders.pop_front();
        }
        entry.orders.push_back((now.moment, order));
        order
    }

    /// What is to be answered to an agent that asks for orders newer than `after`; none: hold it. One that names a number which was
    /// never given is told the newest, so that it does not wait for one that never comes.
    pub fn orders_after(&self, node: &NodeName, after: u64, now: Moment) -> Option<Orders> {
        let orders = self.pending(node, after, now);
        (!orders.orders.is_empty() || orders.newest < after).then_some(orders)
    }

    /// All orders that wait for a node.
    pub fn orders(&self, node: &NodeName, now: Moment) -> Orders {
        self.pending(node, 0, now)
    }

    /// What is to be saved since the last call.
    pub fn unsaved(&mut self) -> Vec<Saved> {
        let nodes = std::mem::take(&mut self.unsaved);
        nodes.iter().filter_map(|node| self.saved(node)).collect()
    }

    /// Forgets a node, unless it is there or being woken; whether it did.
    pub fn forget(&mut self, node: &NodeName) -> bool {
        let Some(entry) = self.nodes.get(node) else {
            return false;
        };
        if entry.polls > 0 || entry.waking || entry.standing.is_here() {
            return false;
        }
        if let Some(due) = entry.due {
            self.due.remove(&(due, node.clone()));
        }
        self.unsaved.remove(node);
        self.nodes.remove(node).is_some()
    }

    fn saved(&self, node: &NodeName) -> Option<Saved> {
        let entry = self.nodes.get(node)?;
        Some(Saved {
            node: node.clone(),
            standing: entry.standing,
            since: entry.since,
            life: entry.life.clone(),
            report: entry.report.clone(),
            reported: entry.reported,
        })
    }

    fn pending(&self, node: &NodeName, after: u64, now: Moment) -> Orders {
        let entry = self.nodes.get(node);
        let is_wanted = |(given, order): &&(Moment, Order)| {
            let Order::Sleep { number } = *order;
            number > after && now.since(*given) < self.limits.order
        };
        Orders {
            schema: SCHEMA,
            newest: entry.map_or(0, |entry| entry.newest_order),
            orders: entry.map_or_else(Vec::new, |entry| {
                let wanted = entry.orders.iter().filter(is_wanted);
                wanted.map(|(_, order)| *order).collect()
            }),
        }
    }

    /// What silence did first, then what `act` does, which says why.
    fn change(&mut self, node: &NodeName, now: At, act: impl FnOnce(&mut Entry) -> Cause) -> Vec<Change> {
        let mut changes: Vec<Change> = self.settle(node, now).into_iter().collect();
        let entry = self.nodes.entry(node.clone()).or_default();
        let (before, kept) = (entry.shown(), entry.kept());
        let cause = act(entry);
        changes.extend(entry.moved(node, before, now.wall, cause));
        if kept != entry.kept() {
            self.unsaved.insert(node.clone());
        }
        self.schedule(node);
        changes
    }

    /// Lets a node become what silence made of it.
    fn settle(&mut self, node: &NodeName, now: At) -> Option<Change> {
        let entry = self.nodes.get_mut(node)?;
        let (standing, since) = entry.overdue(now)?;
        let before = entry.shown();
        entry.standing = standing;
        let change = entry.moved(node, before, since, Cause::Silence);
        self.unsaved.insert(node.clone());
        self.schedule(node);
        change
    }

    fn schedule(&mut self, node: &NodeName) {
        let Some(entry) = self.nodes.get_mut(node) else {
            return;
        };
        let due = entry.turns(self.limits).map(|(_, due)| due);
        if due == entry.due {
            return;
        }
        if let Some(old) = std::mem::replace(&mut entry.due, due) {
            self.due.remove(&(old, node.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, node.clone()));
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reported => "its agent says so",
            Self::CalledOff => "its agent called the sleep off",
            Self::Woke => "its agent reports after a resume or a boot",
            Self::Asked => "its agent asks for orders",
            Self::Silence => "nothing more was heard of it",
            Self::WakeBegun => "it is being woken",
            Self::WakeEnded => "the wake ended",
        })
    }
}

/// What is kept of a report: an agent cannot fill the server's memory.
fn bounded(report: &Report) -> Report {
    let text = |text: &String| text.chars().take(TEXT).collect::<String>();
    let mut report = report.clone();
    report.boot_id = text(&report.boot_id);
    report.version = text(&report.version);
    report.reasons = report.reasons.iter().take(LIST).map(text).collect();
    report.ports.truncate(LIST);
    for port in &mut report.ports {
        port.interface = text(&port.interface);
    }
    report
}

#[cfg(test)]
mod tests;
