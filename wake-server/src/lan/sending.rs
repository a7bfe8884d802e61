//! Calls of many nodes in one transmission: what is asked for while one goes out waits for the next, so that ten thousand nodes take some
//! dozen rounds of sendmmsg(2) and of questions for interfaces and routes, not one each.
//!
//! Owns the queue. Whoever has the turn sends for everybody who waits; there is no task that could end.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as Turn, oneshot};

use crate::transmit::{Target, Transmission, TransmitError, Transmitter};

/// Nodes of one transmission.
const MOST_AT_ONCE: usize = 512;

type Outcomes = Vec<Result<Transmission, TransmitError>>;

/// Sends for many.
#[derive(Debug)]
pub(super) struct Sending {
    transmitter: Transmitter,
    queue: Mutex<VecDeque<Call>>,
    turn: Turn<()>,
}

/// What one node needs.
#[derive(Debug)]
struct Call {
    targets: Vec<Target>,
    tell: oneshot::Sender<Outcomes>,
}

impl Sending {
    pub(super) fn new(udp_ports: &[u16]) -> Self {
        Self {
            transmitter: Transmitter::new(udp_ports),
            queue: Mutex::default(),
            turn: Turn::default(),
        }
    }

    /// As [`Transmitter::transmit`], in the order of the calls.
    pub(super) async fn transmit(&self, targets: &[Target]) -> Outcomes {
        loop {
            let (tell, mut told) = oneshot::channel();
            let targets = targets.to_vec();
            self.queue().push_back(Call { targets, tell });
            // What is broken off has sent nothing, or nothing that is known: it is sent again.
            if let Ok(outcomes) = self.until_told(&mut told).await {
                return outcomes;
            }
        }
    }

    async fn until_told(&self, told: &mut oneshot::Receiver<Outcomes>) -> Result<Outcomes, oneshot::error::RecvError> {
        loop {
            let turn = tokio::select! {
                biased;
                outcomes = &mut *told => return outcomes,
                turn = self.turn.lock() => turn,
            };
            self.send_some().await;
            drop(turn);
        }
    }

    /// Dropped before its end, it tells those that it had taken that they are broken off.
    async fn send_some(&self) {
        let calls: Vec<Call> = {
            let mut queue = self.queue();
            let count = queue.len().min(MOST_AT_ONCE);
            queue.drain(..count).collect()
        };
        let all: Vec<Target> = calls.iter().flat_map(|call| call.targets.iter().cloned()).collect();
        let mut outcomes = self.transmitter.transmit(&all).await.into_iter();
        for call in calls {
            let its = outcomes.by_ref().take(call.targets.len()).collect();
            // Who went away needs no answer.
            let _told = call.tell.send(its);
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Call>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
