//! The driver's part in asking for this node's pods: when to ask, when to listen for changes, and what an answer means.

use super::{BootTime, Driver, IdleEvent, Order, State};
use crate::{
    counters::Reading,
    pods::{Report, Watching},
};

impl Driver {
    /// On the way to sleep a new pod is to be noticed when it comes. In use, nothing waits for it.
    pub(super) fn check_pods(&mut self, now: BootTime) {
        let watching = match self.idle.state() {
            State::Active => Watching::No,
            State::Quiet
            | State::Grace { .. }
            | State::Preparing(_)
            | State::Confirming(_)
            | State::Suspending { .. } => Watching::Yes,
        };
        self.pods.check(watching, now);
    }

    /// Judges again with the pods of this moment and the rates of the last sample.
    pub(super) fn pods_told(&mut self, report: Report, now: BootTime) {
        if !self.pods.take(report) {
            return;
        }
        let reading = self.pods.reading(now);
        let is_busy = matches!(&reading, Reading::Known { value, .. } if !(value.running.is_empty() && value.preventing.is_empty()));
        if let Some(sample) = &mut self.sample {
            sample.pods = reading;
            let begun = sample.at;
            // With force, an operator said that he knows what runs.
            if is_busy && self.order() != Some(Order::Forced) {
                let actions = self.idle_event(IdleEvent::Activity { at: now }, now);
                self.act(&actions, now);
            }
            self.judge(begun, now);
        }
        self.listed_for_attempt(now);
    }
}
