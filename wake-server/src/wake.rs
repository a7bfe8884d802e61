//! Decides what the wake of one node does next: when to send, what proves that it is awake, when to give up. Never reads a clock, sends
//! a packet or waits: the executor ([`crate::waker`]) brings events and the time.
//!
//! ```text
//! begin ─> Send ─> FrameSent ─> ArpReply from a card of the node ─> AgentReport of a later life ─> Ready, where a cluster has it
//!           ^ resent on the schedule until proved, called off or out of time     \__ which of them proves it, the plan says
//! ```
//! An agent may speak before its node's card was asked again: its card has a moment to answer before the wake is over.
//!
//! A node may still be on its way into sleep when the first packet comes (fault W11): a schedule that ends with the first packet would
//! strand it. Neither does a sending end it that fails: a link may come up, a full queue empties. Only if none of the schedule went out
//! the wake ends as not sent (W10). An answer from a card that is not the node's proves nothing and is told (W12).

use std::{collections::BTreeSet, time::Duration};

use vmstation_protocol::{MacAddr, NodeName, Stage, StageDocument, Transport, WakeOutcome};

use crate::{clock::Moment, presence::Life};

/// Strangers that are named; an address that answers from ever new cards is not told without end.
const STRANGERS: usize = 8;

/// Longest time that a card has to answer when its node's agent was heard already.
const SETTLE: Duration = Duration::from_secs(2);

/// Shortest interval beyond the schedule.
const SHORTEST: Duration = Duration::from_secs(1);

/// How a node is to be woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakePlan {
    /// The node.
    pub node: NodeName,
    /// Its cards.
    pub macs: Vec<MacAddr>,
    /// When packets are sent, from the beginning; sorted.
    pub resend: Vec<Duration>,
    /// Longest time until it is proved awake.
    pub deadline: Duration,
    /// Whether somebody waits for the proof.
    pub verify: bool,
    /// What proves it; none: nothing can, as neither its address nor its agent is known.
    pub proof: Option<Stage>,
    /// Whether its cluster will say that it is ready. Whoever waits for the proof waits for that.
    pub ready: bool,
    /// Whether its card can be asked: its IPv4 address is known.
    pub answers: bool,
    /// The life heard last, if its agent was ever heard.
    pub before: Option<Life>,
}

/// What a sending came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How.
    pub transport: Transport,
    /// Through which interface.
    pub interface: Option<String>,
    /// How many packets.
    pub packets: u32,
    /// What was not as it should be.
    pub note: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Packets went out.
    Sent(Sent),
    /// None could; why.
    NotSent(String),
    /// This card answers for the node's address.
    Answered(MacAddr),
    /// The node's agent was heard.
    Heard(Life),
    /// Its cluster uses it again.
    Ready,
    /// The deadline of [`Wake::deadline`].
    Tick,
    /// Somebody else waits for the proof.
    Verify,
    /// An operator does not want it any more.
    Cancel,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send packets; then [`Event::Sent`] or [`Event::NotSent`].
    Send,
    /// Ask at once who answers for its address.
    Ask,
}

/// One wake.
#[derive(Clone, Debug)]
pub struct Wake {
    plan: WakePlan,
    began: Moment,
    /// When the proof is due; a later wish for it sets it anew.
    due: Moment,
    /// Its agent proved it, and its card may still answer until then.
    settles: Option<Moment>,
    /// Sendings that were ordered.
    sendings: usize,
    stages: Vec<StageDocument>,
    last: Option<Sent>,
    packets: u32,
    strangers: BTreeSet<MacAddr>,
    outcome: WakeOutcome,
    failure: Option<String>,
    over: bool,
}

impl Wake {
    /// Begins.
    pub fn begin(plan: WakePlan, now: Moment) -> (Self, Vec<Action>) {
        let mut wake = Self {
            due: now.after(plan.deadline),
            plan,
            began: now,
            settles: None,
            sendings: 0,
            stages: Vec::new(),
            last: None,
            packets: 0,
            strangers: BTreeSet::new(),
            outcome: WakeOutcome::Waking,
            failure: None,
            over: false,
        };
        let actions = wake.send();
        (wake, actions)
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        match event {
            Event::Sent(sent) => {
                self.packets = self.packets.saturating_add(sent.packets);
                self.last = Some(sent);
                self.failure = None;
                if !self.plan.verify {
                    self.outcome = WakeOutcome::Sent;
                }
                return self.reach(Stage::FrameSent, now);
            }
            Event::NotSent(why) => {
                self.failure = Some(why);
                if self.last.is_none() {
                    if self.sendings >= self.plan.resend.len() {
                        self.end(WakeOutcome::NotSent);
                    } else if !self.plan.verify {
                        self.outcome = WakeOutcome::NotSent;
                    }
                }
            }
            Event::Answered(mac) if self.plan.macs.contains(&mac) => return self.reach(Stage::ArpReply, now),
            Event::Answered(mac) => {
                if self.strangers.len() < STRANGERS {
                    self.strangers.insert(mac);
                }
            }
            Event::Heard(life) if self.is_later(&life) => return self.reach(Stage::AgentReport, now),
            Event::Heard(_) => {}
            Event::Ready => return self.reach(Stage::Ready, now),
            Event::Verify => {
                if !self.plan.verify {
                    self.plan.verify = true;
                    if self.plan.ready {
                        self.settles = None;
                    }
                    self.outcome = WakeOutcome::Waking;
                    self.due = now.after(self.plan.deadline);
                }
            }
            Event::Cancel if self.settles.is_some() => self.end(WakeOutcome::Awake),
            Event::Cancel => self.end(WakeOutcome::Cancelled),
            Event::Tick => {
                if let Some(settles) = self.settles {
                    if now >= settles {
                        self.end(WakeOutcome::Awake);
                    }
                } else if now >= self.due {
                    self.end(match (&self.last, self.plan.verify) {
                        (None, _) => WakeOutcome::NotSent,
                        (Some(_), true) => WakeOutcome::TimedOut,
                        (Some(_), false) => WakeOutcome::Sent,
                    });
                } else if self.next_sending().is_some_and(|next| now >= next) {
                    return self.send();
                } else if self.is_sent_out() {
                    self.end(WakeOutcome::Sent);
                }
            }
        }
        Vec::new()
    }

    /// When [`Event::Tick`] is due; none: it is over.
    pub fn deadline(&self) -> Option<Moment> {
        if self.over {
            return None;
        }
        if self.settles.is_some() {
            return self.settles;
        }
        if self.is_sent_out() {
            return Some(self.began);
        }
        Some(self.next_sending().map_or(self.due, |next| next.min(self.due)))
    }

    /// Whether nothing more will happen.
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// How it goes.
    pub const fn outcome(&self) -> WakeOutcome {
        self.outcome
    }

    /// What was reached, in the order of the chain. The card's answer may be later than the agent's report.
    pub fn stages(&self) -> &[StageDocument] {
        &self.stages
    }

    /// The last sending that went out.
    pub const fn last_sent(&self) -> Option<&Sent> {
        self.last.as_ref()
    }

    /// Packets sent.
    pub const fn packets(&self) -> u32 {
        self.packets
    }

    fn send(&mut self) -> Vec<Action> {
        self.sendings += 1;
        vec![Action::Send]
    }

    /// While somebody waits for the proof, the last interval of the schedule goes on: a node may take long to enter sleep.
    /// A node that runs, and is not ready yet, needs none.
    fn next_sending(&self) -> Option<Moment> {
        if self.has_reached(Stage::AgentReport) {
            return None;
        }
        let schedule = &self.plan.resend;
        let offset = match (schedule.get(self.sendings), schedule.as_slice()) {
            (Some(offset), _) => *offset,
            (None, [.., before, last]) if self.plan.verify => {
                let beyond = u32::try_from(self.sendings + 1 - schedule.len()).unwrap_or(u32::MAX);
                last.saturating_add(last.saturating_sub(*before).max(SHORTEST).saturating_mul(beyond))
            }
            (None, _) => return None,
        };
        Some(self.began.after(offset))
    }

    /// Nobody waits, and nothing is left to be sent.
    fn is_sent_out(&self) -> bool {
        !self.plan.verify && self.last.is_some() && self.next_sending().is_none()
    }

    /// A report proves a wake only if it could not have been sent before.
    fn is_later(&self, life: &Life) -> bool {
        self.last.is_some()
            && self
                .plan
                .before
                .as_ref()
                .is_none_or(|before| life.boot_id != before.boot_id || life.resumes > before.resumes)
    }

    /// What ends it.
    const fn proof(&self) -> Option<Stage> {
        if self.plan.ready && self.plan.verify {
            Some(Stage::Ready)
        } else {
            self.plan.proof
        }
    }

    fn reach(&mut self, stage: Stage, now: Moment) -> Vec<Action> {
        if self.last.is_none() {
            return Vec::new();
        }
        if !self.has_reached(stage) {
            let at = self.stages.partition_point(|reached| reached.stage < stage);
            let at_ms = now.since(self.began).as_secs_f64() * 1000.0;
            self.stages.insert(at, StageDocument { stage, at_ms });
        }
        let is_proof = self.proof().is_some_and(|proof| stage >= proof);
        let is_settled = self.has_reached(Stage::ArpReply) || !self.plan.answers;
        if is_settled && (is_proof || self.settles.is_some()) {
            self.end(WakeOutcome::Awake);
        } else if is_proof && self.settles.is_none() {
            self.settles = Some(now.after(SETTLE).min(self.due));
            return vec![Action::Ask];
        }
        Vec::new()
    }

    fn has_reached(&self, stage: Stage) -> bool {
        self.stages.iter().any(|reached| reached.stage == stage)
    }

    fn end(&mut self, outcome: WakeOutcome) {
        self.outcome = outcome;
        self.over = true;
    }

    /// What is to be said of it, in words.
    pub fn message(&self) -> String {
        let mut words = vec![self.headline()];
        if let (Some(why), WakeOutcome::NotSent | WakeOutcome::TimedOut) = (&self.failure, self.outcome) {
            words.push(why.clone());
        }
        if !self.strangers.is_empty() && self.outcome != WakeOutcome::Awake {
            let strangers: Vec<_> = self.strangers.iter().map(MacAddr::to_string).collect();
            words.push(format!(
                "its address is answered by {}, which is no card of this node",
                strangers.join(", ")
            ));
        }
        words.extend(self.last.as_ref().and_then(|sent| sent.note.clone()));
        words.join("; ")
    }

    fn headline(&self) -> String {
        let reached = self.stages.last().map(|stage| in_words(stage.stage));
        match (self.outcome, self.proof()) {
            (WakeOutcome::Waking, _) => format!("on its way: {}", reached.unwrap_or("nothing is sent yet")),
            (WakeOutcome::Sent, _) => "sent; nobody waited for a proof".into(),
            (WakeOutcome::Awake, _) => format!("awake: {}", reached.unwrap_or("proved")),
            (WakeOutcome::Cancelled, _) => "called off".into(),
            (WakeOutcome::NotSent, _) if self.over => "nothing could be sent".into(),
            (WakeOutcome::NotSent, _) => "nothing could be sent yet, it is tried again".into(),
            (WakeOutcome::TimedOut, None) => {
                "sent, and there is nothing to prove it by: give the registry the node's address, or run \
                 the agent on it"
                    .into()
            }
            (WakeOutcome::TimedOut, Some(proof)) => format!(
                "not proved within {}: {}, but not: {}",
                humantime::format_duration(self.plan.deadline),
                reached.unwrap_or("nothing was sent"),
                in_words(proof)
            ),
        }
    }
}

const fn in_words(stage: Stage) -> &'static str {
    match stage {
        Stage::FrameSent => "the packet was sent",
        Stage::ArpReply => "its card answers for its address",
        Stage::AgentReport => "its agent reports",
        Stage::Ready => "Kubernetes has it as Ready",
    }
}

#[cfg(test)]
mod tests;
