//! Says whether a node may sleep, and remembers who was given leave.
//!
//! Owns the grants and an operator's prohibitions. Never reads a clock, never asks a node, and never gives leave on doubt: a node sleeps
//! only if this server can wake it.
//!
//! Where a node has to be emptied first, leave comes in two steps: [`Permission::prepare`] takes its place in the group, and
//! [`Permission::grant_prepared`] gives it leave, unless [`Permission::give_up`] came before.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    time::Duration,
};

use vmstation_protocol::{Leave, NodeName, Role};

use crate::{clock::Moment, cordon::Standing};

/// How long things hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// For how long a grant holds: a suspend that was not begun by then must ask again.
    pub lifetime: Duration,
    /// How long a suspend takes that was begun at the last moment of a grant: its place in the group is kept for so long.
    pub entering: Duration,
    /// When to ask again after a refusal that passes by itself.
    pub soon: Duration,
    /// When to ask again after a refusal that somebody has to lift.
    pub later: Duration,
    /// For how long a node is left alone whose pods could not be moved.
    pub cool_down: Duration,
}

/// What is known of a node that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its role.
    pub role: Role,
    /// Whether a network card of it is known.
    pub has_mac: bool,
    /// Whether a wake of it is under way.
    pub is_being_woken: bool,
    /// Nodes of one group enter sleep one at a time; none: it is in no group.
    pub group: Option<String>,
    /// Somebody's word that it is to stay awake; why.
    pub hold: Option<String>,
    /// Other nodes of its role that are awake. Those that have leave are left out here.
    pub awake_peers: Vec<NodeName>,
    /// How many of its role have to stay awake.
    pub min_awake: usize,
    /// What speaks for it that a magic packet wakes it.
    pub waking: Proof,
    /// How much has to.
    pub proof_needed: Proof,
}

/// What speaks for it that a node can be woken, ascending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// Nothing.
    #[default]
    None,
    /// Its agent says that one of its cards is armed.
    Armed,
    /// A wake of it was proved.
    Woken,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may sleep.
    Granted {
        /// Names the leave when it is handed back. Never used twice.
        grant: u64,
        /// For how long it holds.
        lifetime: Duration,
    },
    /// It may not.
    Refused {
        /// All that stands against it, at least one.
        refusals: Vec<Refusal>,
        /// When to ask again.
        again_in: Duration,
    },
}

/// What stands against a sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing could wake it.
    NoMac,
    /// The cluster needs it.
    Master,
    /// Somebody wants it awake.
    BeingWoken,
    /// An operator said no.
    Forbidden {
        /// Why.
        reason: String,
    },
    /// Too few others of its role are awake.
    TooFewAwake {
        /// Its role.
        role: Role,
        /// That are awake and have no leave.
        others: usize,
        /// That have to be.
        needed: usize,
    },
    /// Nothing shows that it can be woken.
    NotProved {
        /// What is missing.
        needed: Proof,
    },
    /// Its pods could not be moved a short while ago.
    CoolingDown {
        /// Why.
        why: String,
        /// For how long it is left alone.
        over_in: Duration,
    },
    /// Another node of its group is on its way.
    GroupBusy {
        /// The group.
        group: String,
        /// That node.
        node: NodeName,
        /// Until when its place is kept, from now.
        frees_in: Duration,
    },
    /// Another node of its group may have leave from before this server started.
    JustStarted {
        /// The group.
        group: String,
        /// Until such a leave is over.
        over_in: Duration,
    },
}

/// Who has leave, and who may not have it.
#[derive(Clone, Debug)]
pub struct Permission {
    terms: Terms,
    started: Moment,
    next_grant: u64,
    grants: BTreeMap<NodeName, Grant>,
    forbidden: BTreeMap<NodeName, String>,
    cooling: BTreeMap<NodeName, (Moment, String)>,
}

#[derive(Clone, Debug)]
struct Grant {
    stage: Stage,
    group: Option<String>,
    is_revoked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What has to be done before leave is given, is being done.
    Preparing,
    Given {
        number: u64,
        at: Moment,
    },
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_mins(2),
            entering: Duration::from_mins(1),
            soon: Duration::from_mins(1),
            later: Duration::from_mins(10),
            cool_down: Duration::from_mins(15),
        }
    }
}

impl Permission {
    /// Nobody has leave. Grants are numbered from `first_grant` on; milliseconds of the wall clock make sure that a leave from before a
    /// restart is never taken for a later one.
    pub fn new(terms: Terms, first_grant: u64, now: Moment) -> Self {
        Self {
            terms,
            started: now,
            next_grant: first_grant,
            grants: BTreeMap::new(),
            forbidden: BTreeMap::new(),
            cooling: BTreeMap::new(),
        }
    }

    /// A node asks. It is awake, then: leave that it already has is over, whatever the answer.
    pub fn ask(&mut self, node: &NodeName, facts: &Facts, now: Moment) -> Decision {
        if let Err(refused) = self.prepare(node, facts, now) {
            return refused;
        }
        self.give(node, now)
    }

    /// A node asks, and there is something to do before it may sleep. As [`Self::ask`], but that what it has then is only its place in
    /// the group, until [`Self::grant_prepared`] or [`Self::give_up`].
    ///
    /// # Errors
    /// [`Decision::Refused`].
    pub fn prepare(&mut self, node: &NodeName, facts: &Facts, now: Moment) -> Result<(), Decision> {
        self.drop_over(now);
        self.grants.remove(node);
        let refusals = self.refusals(node, facts, now);
        if let Some(again_in) = refusals.iter().map(|refusal| refusal.again_in(self.terms)).max() {
            return Err(Decision::Refused { refusals, again_in });
        }
        let place = Grant {
            stage: Stage::Preparing,
            group: facts.group.clone(),
            is_revoked: false,
        };
        self.grants.insert(node.clone(), place);
        Ok(())
    }

    /// All is done that had to be: gives leave, unless it was revoked meanwhile or facts stand against it that did not at first.
    pub fn grant_prepared(&mut self, node: &NodeName, facts: &Facts, now: Moment) -> Decision {
        self.drop_over(now);
        let mut refusals = self.refusals(node, facts, now);
        let is_prepared = self
            .grants
            .get(node)
            .is_some_and(|grant| grant.stage == Stage::Preparing && !grant.is_revoked);
        if !is_prepared && refusals.is_empty() {
            refusals.push(Refusal::BeingWoken);
        }
        match refusals.iter().map(|refusal| refusal.again_in(self.terms)).max() {
            Some(again_in) => Decision::Refused { refusals, again_in },
            None => self.give(node, now),
        }
    }

    /// What had to be done was not, or not to its end. With a reason the node is left alone for a while.
    pub fn give_up(&mut self, node: &NodeName, why: Option<String>, now: Moment) {
        if self
            .grants
            .get(node)
            .is_some_and(|grant| grant.stage == Stage::Preparing)
        {
            self.grants.remove(node);
        }
        if let Some(why) = why {
            self.cooling.insert(node.clone(), (now, why));
        }
    }

    /// This server acts from here on, and another did before it: that one's leaves may hold still.
    pub fn took_over(&mut self, now: Moment) {
        self.started = now;
        self.grants.clear();
    }

    /// Who may have a node's leave, also one that is over but by which a suspend may have begun.
    pub fn standing(&self, node: &NodeName, now: Moment) -> Standing {
        match self.grants.get(node).map(|grant| grant.stage) {
            Some(Stage::Preparing) => Standing::Attempt,
            Some(Stage::Given { at, .. }) if now.since(at) < self.kept() => Standing::Leave,
            Some(Stage::Given { .. }) | None if now.since(self.started) < self.kept() => Standing::MayHaveLeave,
            Some(Stage::Given { .. }) | None => Standing::None,
        }
    }

    fn give(&mut self, node: &NodeName, now: Moment) -> Decision {
        let number = self.next_grant;
        self.next_grant = number.wrapping_add(1);
        let Some(grant) = self.grants.get_mut(node) else {
            return Decision::Refused {
                refusals: vec![Refusal::BeingWoken],
                again_in: self.terms.soon,
            };
        };
        grant.stage = Stage::Given { number, at: now };
        Decision::Granted {
            grant: number,
            lifetime: self.terms.lifetime,
        }
    }

    /// A node hands its leave back. Whether it was the one it had: another changes nothing.
    pub fn hand_back(&mut self, node: &NodeName, grant: u64) -> bool {
        match self.grants.entry(node.clone()) {
            Entry::Occupied(held) if held.get().number() == Some(grant) => {
                held.remove();
                true
            }
            Entry::Occupied(_) | Entry::Vacant(_) => false,
        }
    }

    /// A node is asleep: its leave is used up, and its group is free.
    pub fn used_up(&mut self, node: &NodeName) {
        self.grants.remove(node);
    }

    /// Takes back the leave of a node, as when a wake of it begins. It keeps its place in the group: it may be on its way already.
    pub fn revoke(&mut self, node: &NodeName) {
        if let Some(grant) = self.grants.get_mut(node) {
            grant.is_revoked = true;
        }
    }

    /// Whether what is done for a node's sleep has no use any more: it is wanted awake.
    pub fn is_called_off(&self, node: &NodeName) -> bool {
        self.grants.get(node).is_none_or(|grant| grant.is_revoked)
    }

    /// The leave that a node has.
    pub fn grant(&self, node: &NodeName, now: Moment) -> Option<u64> {
        let grant = self.grants.get(node)?;
        let Stage::Given { number, at } = grant.stage else {
            return None;
        };
        let holds = !grant.is_revoked && now.since(at) < self.terms.lifetime;
        holds.then_some(number)
    }

    /// An operator wants a node awake. Leave that it has is revoked.
    pub fn forbid(&mut self, node: NodeName, reason: impl Into<String>) {
        self.revoke(&node);
        self.forbidden.insert(node, reason.into());
    }

    /// An operator lifts that; whether there was anything to lift.
    pub fn allow(&mut self, node: &NodeName) -> bool {
        self.forbidden.remove(node).is_some()
    }

    fn refusals(&self, node: &NodeName, facts: &Facts, now: Moment) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if !facts.has_mac {
            refusals.push(Refusal::NoMac);
        }
        if facts.role == Role::Master {
            refusals.push(Refusal::Master);
        }
        if facts.is_being_woken {
            refusals.push(Refusal::BeingWoken);
        }
        let forbidden = self.forbidden.get(node).or(facts.hold.as_ref());
        if let Some(reason) = forbidden {
            refusals.push(Refusal::Forbidden { reason: reason.clone() });
        }
        if facts.has_mac && facts.waking < facts.proof_needed {
            refusals.push(Refusal::NotProved {
                needed: facts.proof_needed,
            });
        }
        let staying = facts.awake_peers.iter().filter(|peer| !self.grants.contains_key(*peer));
        let others = staying.count();
        if others < facts.min_awake {
            refusals.push(Refusal::TooFewAwake {
                role: facts.role,
                others,
                needed: facts.min_awake,
            });
        }
        if let Some((since, why)) = self.cooling.get(node) {
            refusals.push(Refusal::CoolingDown {
                why: why.clone(),
                over_in: self.terms.cool_down.saturating_sub(now.since(*since)),
            });
        }
        if let Some(group) = &facts.group {
            refusals.extend(self.group_refusal(node, group, now));
        }
        refusals
    }

    fn group_refusal(&self, node: &NodeName, group: &str, now: Moment) -> Option<Refusal> {
        let mut others = self.grants.iter().filter(|(other, _)| *other != node);
        if let Some((other, grant)) = others.find(|(_, grant)| grant.group.as_deref() == Some(group)) {
            return Some(Refusal::GroupBusy {
                group: group.to_owned(),
                node: other.clone(),
                frees_in: match grant.stage {
                    Stage::Preparing => self.kept(),
                    Stage::Given { at, .. } => self.kept().saturating_sub(now.since(at)),
                },
            });
        }
        let over_in = self.kept().saturating_sub(now.since(self.started));
        (!over_in.is_zero()).then(|| Refusal::JustStarted {
            group: group.to_owned(),
            over_in,
        })
    }

    /// For how long a grant keeps its place in the group.
    fn kept(&self) -> Duration {
        self.terms.lifetime.saturating_add(self.terms.entering)
    }

    fn drop_over(&mut self, now: Moment) {
        let kept = self.kept();
        self.grants.retain(|_, grant| match grant.stage {
            Stage::Preparing => true,
            Stage::Given { at, .. } => now.since(at) < kept,
        });
        let cool_down = self.terms.cool_down;
        self.cooling.retain(|_, (since, _)| now.since(*since) < cool_down);
    }
}

impl Grant {
    fn number(&self) -> Option<u64> {
        match self.stage {
            Stage::Preparing => None,
            Stage::Given { number, .. } => Some(number),
        }
    }
}

impl Refusal {
    fn again_in(&self, terms: Terms) -> Duration {
        match self {
            Self::NoMac | Self::Master | Self::Forbidden { .. } => terms.later,
            Self::BeingWoken | Self::TooFewAwake { .. } => terms.soon,
            Self::NotProved { .. } => terms.later,
            Self::CoolingDown { over_in, .. } => *over_in,
            Self::GroupBusy { frees_in, .. } => *frees_in,
            Self::JustStarted { over_in, .. } => *over_in,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMac => {
                f.write_str("no network card of it is known, so that nothing could wake it: add it to the registry")
            }
            Self::Master => f.write_str("it is a master, which its cluster needs awake"),
            Self::BeingWoken => f.write_str("it is being woken"),
            Self::Forbidden { reason } => write!(f, "an operator forbade it: {reason}"),
            Self::TooFewAwake { role, others, needed } => write!(
                f,
                "{others} other {role}s are awake and {needed} have to be (min_awake)"
            ),
            Self::NotProved { needed: Proof::Woken } => f.write_str(
                "no wake of it was proved yet, and first_time asks for one: suspend it by hand and wake it with `vmstation-wake --verify`",
            ),
            Self::NotProved {
                needed: Proof::Armed | Proof::None,
            } => f.write_str("its agent does not say that Wake-on-LAN is armed on any of its cards"),
            Self::CoolingDown { why, over_in } => write!(
                f,
                "its pods could not be moved ({why}): it is left alone for {} s more",
                whole_seconds(*over_in)
            ),
            Self::GroupBusy { group, node, frees_in } => write!(
                f,
                "{node} of the same group ({group}) is entering sleep: its turn comes in {} s at most",
                whole_seconds(*frees_in)
            ),
            Self::JustStarted { group, over_in } => write!(
                f,
                "another node of its group ({group}) may have leave from before the wake server started, for {} s more",
                whole_seconds(*over_in)
            ),
        }
    }
}

impl From<Decision> for Leave {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Granted { grant, lifetime } => Self::Granted {
                grant,
                // Rounded down: an agent never believes a leave longer than it holds.
                for_s: lifetime.as_secs(),
            },
            Decision::Refused { refusals, again_in } => Self::Refused {
                reason: refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; "),
                again_in_s: whole_seconds(again_in),
            },
        }
    }
}

/// Rounded up, one at least: who asks again then does not come too early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests;
