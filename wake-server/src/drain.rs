//! Which pods have to leave a node that is to sleep, whether they may, and how they are moved.
//!
//! Pure and without I/O: [`preflight`] judges, [`Drain`] says what is to be asked of the API server and is told the answers:
//!
//! ```text
//! loop {
//!     for action in drain.step(now) { begin it }
//!     if let Some(ended) = drain.ended() { break }
//!     wait for an answer (drain.answered, drain.listed, drain.not_listed), or until drain.deadline()
//! }
//! ```
//! Pods leave in the order of their priority, the lowest first, as at a graceful shutdown of a node; those of one priority together.
//! Never evicts by name alone: a pod that was made again is another pod (fault K6).

mod attempt;

use std::fmt;

pub use self::attempt::{Action, Drain, Ended, Outcome};
use crate::{
    config::{Mode, PodRules},
    workload::{Pod, PodId},
};

/// Names that a refusal shows.
const SHOWN: usize = 5;

/// The pods that are to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    to_move: Vec<Pod>,
    rules: PodRules,
}

/// Why pods keep their node awake. At least one list is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// With a label that prevents sleep.
    pub labelled: Vec<PodId>,
    /// That no controller would make again.
    pub unmanaged: Vec<PodId>,
    /// With data in an `emptyDir`.
    pub local_data: Vec<PodId>,
    /// Pods at all, where none may be there.
    pub any: Vec<PodId>,
}

impl Plan {
    /// Those that are to be moved, or removed.
    pub fn to_move(&self) -> &[Pod] {
        &self.to_move
    }

    /// Those of them that need room elsewhere.
    pub fn running(&self) -> Vec<Pod> {
        self.to_move.iter().filter(|pod| !pod.is_finished()).cloned().collect()
    }

    /// Whether a pod is in the way that was not there when this was planned, or was not labelled then.
    pub(crate) fn is_new(&self, pod: &Pod) -> bool {
        let is_planned = || self.to_move.iter().any(|planned| planned.id == pod.id);
        let is_in_the_way = match self.rules.mode {
            // It stays, as the others do.
            Mode::Freeze => false,
            Mode::Drain | Mode::RefuseIfPods => is_movable(pod) && !is_planned(),
        };
        is_in_the_way || (!pod.is_finished() && !pod.is_terminating && is_labelled(pod, &self.rules))
    }
}

/// Which pods have to leave, by the rules of `kubectl drain`: mirror pods and those of DaemonSets stay (fault K5). Finished ones go, whosever
/// they are: nothing is lost with them.
///
/// # Errors
/// All that stands against it.
pub fn preflight(pods: &[Pod], rules: &PodRules) -> Result<Plan, Refusal> {
    let mut refusal = Refusal::default();
    let mut to_move = Vec::new();
    for pod in pods {
        // Also one of a DaemonSet: an operator has labelled it.
        if !pod.is_finished() && is_labelled(pod, rules) {
            refusal.labelled.push(pod.id.clone());
        }
        if pod.is_finished() && !pod.is_mirror && rules.mode == Mode::Drain {
            to_move.push(pod.clone());
        }
        if !is_movable(pod) {
            continue;
        }
        match rules.mode {
            Mode::Freeze => {}
            Mode::RefuseIfPods => refusal.any.push(pod.id.clone()),
            Mode::Drain => {
                if pod.controller.is_none() && !rules.unmanaged {
                    refusal.unmanaged.push(pod.id.clone());
                }
                if pod.has_local_storage && !rules.local_data {
                    refusal.local_data.push(pod.id.clone());
                }
                to_move.push(pod.clone());
            }
        }
    }
    if refusal == Refusal::default() {
        Ok(Plan {
            to_move,
            rules: rules.clone(),
        })
    } else {
        Err(refusal)
    }
}

fn is_movable(pod: &Pod) -> bool {
    !pod.is_mirror && !pod.is_daemon() && !pod.is_finished()
}

fn is_labelled(pod: &Pod, rules: &PodRules) -> bool {
    let has = |(label, value): &(String, String)| pod.labels.get(label) == Some(value);
    rules.prevent_sleep_labels.iter().any(has)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (
                &self.labelled,
                "has a label that prevents sleep",
                "have a label that prevents sleep",
            ),
            (
                &self.unmanaged,
                "has no controller that would make it again (unmanaged_pods)",
                "have no controller that would make them again (unmanaged_pods)",
            ),
            (
                &self.local_data,
                "has data in an emptyDir (delete_local_data)",
                "have data in an emptyDir (delete_local_data)",
            ),
            (
                &self.any,
                "is there (pods = \"refuse-if-pods\")",
                "are there (pods = \"refuse-if-pods\")",
            ),
        ];
        let mut said = all.iter().filter(|(pods, ..)| !pods.is_empty());
        let say = |f: &mut fmt::Formatter<'_>, (pods, one, many): &(&Vec<PodId>, &str, &str)| {
            let verb = if pods.len() == 1 { one } else { many };
            write!(f, "{} {verb}", Names(pods))
        };
        if let Some(first) = said.next() {
            say(f, first)?;
        }
        said.try_for_each(|next| {
            f.write_str("; ")?;
            say(f, next)
        })
    }
}

/// Some names, and how many there are besides.
pub(crate) struct Names<'a>(pub(crate) &'a [PodId]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().take(SHOWN).map(PodId::to_string).collect();
        f.write_str(&names.join(", "))?;
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
