//! Decides when the Lease may be taken, and for how long who holds it may act. Reads no clock and asks nobody: both come in.

use std::time::Duration;

use jiff::Timestamp;

use super::{Fence, Leader, Leadership, Term};
use crate::clock::{Moment, wall_clock};

/// Longest lease of another that is waited for.
const LONGEST: Duration = Duration::from_mins(5);

/// What is written in the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Of the object: each write changes it.
    pub(super) version: String,
    /// Who holds it.
    pub(super) holder: Option<String>,
    /// The holder's URL.
    pub(super) url: Option<String>,
    /// For how long after a renewal.
    pub(super) duration: Option<Duration>,
    /// How often it changed hands.
    pub(super) transitions: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: somebody holds it.
    Wait,
    /// Make it: there is none.
    Create {
        /// With these transitions.
        fence: Fence,
    },
    /// Take or renew it, if it still has this version.
    Write {
        /// This.
        version: String,
        /// With these transitions.
        fence: Fence,
    },
}

/// A version, and when it was there for certain.
#[derive(Clone, Debug)]
struct Seen {
    record: Record,
    /// It had been written by then.
    since: Moment,
    /// It was still the same when this was asked.
    still_at: Moment,
}

/// What one wake server knows of the Lease.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    duration: Duration,
    /// None: there is no Lease, or nobody looked.
    seen: Option<Seen>,
    knowledge: Knowledge,
    /// The greatest transitions ever seen: a Lease that was deleted and made again goes on from there.
    greatest: u64,
    term: Option<Term>,
    acquired: Option<Timestamp>,
}

/// How sure it is that `seen` is what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Not at all: look.
    Stale,
    /// This was read or written just now.
    Fresh,
}

impl Candidate {
    pub(super) fn new(identity: String, duration: Duration) -> Self {
        Self {
            identity,
            duration,
            seen: None,
            knowledge: Knowledge::Stale,
            greatest: 0,
            term: None,
            acquired: None,
        }
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    pub(super) const fn duration(&self) -> Duration {
        self.duration
    }

    /// When the Lease was taken, if it is held.
    pub(super) const fn acquired(&self) -> Option<Timestamp> {
        self.acquired
    }

    /// Who holds the Lease and knows its version renews it without a look.
    pub(super) fn has_to_look(&self) -> bool {
        self.knowledge == Knowledge::Stale || !self.holds()
    }

    fn holds(&self) -> bool {
        let holder = self.seen.as_ref().and_then(|seen| seen.record.holder.as_deref());
        holder == Some(&self.identity)
    }

    /// What was found in answer to what was asked at `asked_at`.
    pub(super) fn looked(&mut self, found: Option<Record>, asked_at: Moment, now: Moment) {
        self.knowledge = Knowledge::Fresh;
        self.greatest = self.greatest.max(found.as_ref().map_or(0, |record| record.transitions));
        self.seen = found.map(|record| match self.seen.take() {
            Some(seen) if seen.record == record => Seen {
                still_at: asked_at,
                ..seen
            },
            Some(_) | None => Seen {
                record,
                since: now,
                still_at: asked_at,
            },
        });
        if !self.holds() {
            self.cease();
        }
    }

    /// What is to be done after a look, or to renew.
    pub(super) fn step(&self) -> Step {
        let Some(seen) = &self.seen else {
            return Step::Create {
                fence: Fence(self.greatest + 1),
            };
        };
        let write = |fence| Step::Write {
            version: seen.record.version.clone(),
            fence,
        };
        let taken = Fence(self.greatest + 1);
        match &seen.record.holder {
            None => write(taken),
            Some(holder) if *holder == self.identity => write(Fence(seen.record.transitions)),
            Some(_) => {
                let lease = seen.record.duration.unwrap_or(self.duration).min(LONGEST);
                if seen.still_at.since(seen.since) >= lease {
                    write(taken)
                } else {
                    Step::Wait
                }
            }
        }
    }

    /// A write begins, whose end may never be known.
    pub(super) fn writes(&mut self) {
        self.knowledge = Knowledge::Stale;
    }

    /// It was done: the API server had it after `sent_at`.
    pub(super) fn written(&mut self, record: Record, sent_at: Moment) {
        self.greatest = self.greatest.max(record.transitions);
        let fence = Fence(record.transitions);
        self.seen = Some(Seen {
            record,
            since: sent_at,
            still_at: sent_at,
        });
        if !self.holds() {
            self.cease();
            return;
        }
        self.knowledge = Knowledge::Fresh;
        if self.term.is_none() {
            self.acquired = Some(wall_clock());
        }
        self.term = Some(Term {
            fence,
            acts_until: sent_at.after(self.acts_for()),
        });
    }

    /// Does not act any more.
    pub(super) fn cease(&mut self) {
        self.term = None;
        self.acquired = None;
    }

    /// Whoever takes over waits for the whole lease: the last third is for clocks that go at different speeds, and for what is under way.
    fn acts_for(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// `time`, or less if the right to act ends before.
    pub(super) fn at_most(&self, time: Duration, now: Moment) -> Duration {
        match &self.term {
            Some(term) if now < term.acts_until => time.min(term.acts_until.since(now)),
            Some(_) | None => time,
        }
    }

    /// What others are told.
    pub(super) fn leadership(&self, now: Moment) -> Leadership {
        if let Some(term) = self.term.filter(|term| now < term.acts_until) {
            return Leadership::Acting(term);
        }
        let leader = self.seen.as_ref().and_then(|seen| {
            let lease = seen.record.duration.unwrap_or(self.duration).min(LONGEST);
            let is_over = now.since(seen.since) > lease;
            let identity = seen.record.holder.clone()?;
            (identity != self.identity && !is_over).then(|| Leader {
                identity,
                url: seen.record.url.clone(),
            })
        });
        Leadership::Following { leader }
    }
}

#[cfg(test)]
mod tests;
