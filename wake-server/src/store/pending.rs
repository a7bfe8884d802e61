//! What is to be written: a batch, and what a failing disk has not taken before. Bounded: the oldest is lost first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vmstation_protocol::{NodeName, WakeDocument};

use super::{Batch, WAKES};
use crate::presence::{Change, Saved};

/// Changes that wait for a disk.
const CHANGES: usize = 100_000;

/// Nodes are bounded by how many there are: each waits once.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) nodes: BTreeMap<NodeName, Saved>,
    pub(super) forgotten: BTreeSet<NodeName>,
    pub(super) changes: VecDeque<Change>,
    pub(super) wakes: VecDeque<WakeDocument>,
}

impl Pending {
    pub(super) fn add(&mut self, batch: Batch) {
        for node in batch.forgotten {
            self.nodes.remove(&node);
            self.changes.retain(|change| change.node != node);
            self.forgotten.insert(node);
        }
        // A node that is forgotten and heard again is forgotten first, then kept.
        self.nodes
            .extend(batch.nodes.into_iter().map(|saved| (saved.node.clone(), saved)));
        self.changes.extend(batch.changes);
        self.wakes.extend(batch.wakes);
        self.changes.drain(..self.changes.len().saturating_sub(CHANGES));
        self.wakes.drain(..self.wakes.len().saturating_sub(WAKES));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.forgotten.is_empty() && self.changes.is_empty() && self.wakes.is_empty()
    }
}
