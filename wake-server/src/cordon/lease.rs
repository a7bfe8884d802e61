//! Whether a kubelet lives, by the changes of its Lease in `kube-node-lease`. The time in the Lease is the node's, and is not read.

use std::time::Duration;

use super::LeaseSign;
use crate::clock::Moment;

/// A kubelet renews its Lease every 10 s, and is taken for dead after 40 s
/// (`nodeLeaseDurationSeconds` of KubeletConfiguration, a quarter of which is the time between two renewals).
const STILL: Duration = Duration::from_mins(1);

/// One Lease, watched from some moment on.
#[derive(Clone, Debug)]
pub struct LeaseWatch {
    since: Moment,
    /// What was seen first.
    first: Option<Option<String>>,
    seen: Option<Moment>,
    is_renewed: bool,
}

impl LeaseWatch {
    /// From here on.
    pub fn new(now: Moment) -> Self {
        Self {
            since: now,
            first: None,
            seen: None,
            is_renewed: false,
        }
    }

    /// Its `spec.renewTime`, if it is there.
    pub fn observe(&mut self, renewed: Option<&str>, now: Moment) {
        self.seen = Some(now);
        match &self.first {
            None => self.first = Some(renewed.map(str::to_owned)),
            Some(first) if renewed.is_some() && first.as_deref() != renewed => self.is_renewed = true,
            Some(_) => {}
        }
    }

    /// What it says.
    pub fn sign(&self, now: Moment) -> LeaseSign {
        if self.is_renewed {
            LeaseSign::Renewed
        } else if self
            .seen
            .is_some_and(|seen| seen.since(self.since) >= STILL && now >= seen)
        {
            LeaseSign::Still
        } else {
            LeaseSign::Unclear
        }
    }
}
