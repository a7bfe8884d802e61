//! The budget whose end the programs tell, and the ring buffer in which they do.
//!
//! Belongs to no family: what is armed holds for the programs that are attached, and for none if none is.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use agent_ebpf::{EDGE_RING_BYTES, EdgeBudget, EdgeKind, EdgeRecord};
use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};

use super::{RECORD_HEADER, reason, sched::monotonic_ns, take};
use crate::{
    clock::BootTime,
    counters::Interface,
    edges::{Budget, Edge},
};

/// The maps that the programs share with the agent.
pub(super) struct Edges {
    budget: Array<MapData, EdgeBudget>,
    ring: RingBuf<MapData>,
    /// How often it was armed.
    armings: u64,
}

impl Edges {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, String> {
        Ok(Self {
            budget: take(ebpf, "VMS_EDGE")?,
            ring: take(ebpf, "VMS_EDGE_RING")?,
            armings: 0,
        })
    }

    pub(super) fn arm(&mut self, budget: Budget) -> Result<(), String> {
        let amounts = EdgeBudget {
            traffic_bytes: budget.traffic_bytes.unwrap_or(0),
            busy_ns: nanos(budget.busy.unwrap_or_default()),
            armed_ns: monotonic_ns(),
            ..EdgeBudget::default()
        };
        self.armings += 1;
        let armed = EdgeBudget {
            traffic: budget.traffic_bytes.map_or(0, |_| self.armings),
            cpu: budget.busy.map_or(0, |_| self.armings),
            ..amounts
        };
        // An entry is not written at once; see the contract.
        self.set(amounts)?;
        self.set(armed)
    }

    pub(super) fn disarm(&mut self) -> Result<(), String> {
        self.set(EdgeBudget::default())
    }

    fn set(&mut self, budget: EdgeBudget) -> Result<(), String> {
        self.budget
            .set(0, budget, 0)
            .map_err(|error| reason("tell the programs what may happen unnoticed", &error))
    }

    /// Readable when a record comes.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    pub(super) fn take_records(&mut self, watched: &[Interface]) -> Vec<Edge> {
        let most = usize::try_from(EDGE_RING_BYTES).unwrap_or(usize::MAX) / (RECORD_HEADER + size_of::<EdgeRecord>());
        let mut edges = Vec::new();
        while edges.len() < most
            && let Some(item) = self.ring.next()
        {
            if item.len() == size_of::<EdgeRecord>() {
                // SAFETY: as long as a record, and every bit pattern is one; the ring aligns to 8 bytes, but that is not relied on.
                let record = unsafe { item.as_ptr().cast::<EdgeRecord>().read_unaligned() };
                edges.push(edge(&record, watched));
            }
        }
        edges
    }
}

fn edge(record: &EdgeRecord, watched: &[Interface]) -> Edge {
    let at = BootTime::from_nanos(record.at_ns);
    if record.kind == EdgeKind::Cpu as u32 {
        Edge::Cpu {
            at,
            cpu: record.index,
            busy: Duration::from_nanos(record.amount),
        }
    } else {
        // Traffic: the programs are of the same build as the agent, and write no third kind.
        let interface = watched.iter().find(|interface| interface.index == record.index);
        Edge::Traffic {
            at,
            interface: interface.map_or_else(|| record.index.to_string(), |interface| interface.name.clone()),
            bytes: record.amount,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
