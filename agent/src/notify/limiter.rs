//! What holds back repetition (fault H6). Pure: time is an argument.

use std::{collections::VecDeque, time::Duration};

use super::NoticeEvent;
use crate::clock::BootTime;

/// A notice that says the same again within this time is held back.
pub(super) const SAME_WITHIN: Duration = Duration::from_secs(10 * 60);
/// The time over which [`AT_MOST`] counts.
pub(super) const WINDOW: Duration = Duration::from_secs(3600);
/// Notices within [`WINDOW`].
pub(super) const AT_MOST: usize = 12;

/// Decides which notices go out: none that says the same as one of the last 10 minutes, and at most 12 within any hour.
///
/// `Sleeping` and `Awake` are a pair, told however often they come, because half of it is wrong: it goes out whole, or, when the hour
/// has no room for both, not at all.
#[derive(Debug, Default)]
pub struct Limiter {
    /// What went out within [`WINDOW`], oldest first; at most [`AT_MOST`].
    sent: VecDeque<Sent>,
    sleeping: Sleeping,
    held_back: u32,
}

#[derive(Debug)]
struct Sent {
    at: BootTime,
    event: NoticeEvent,
    reason: String,
}

/// What was told of the present sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sleeping {
    #[default]
    Over,
    /// One place is kept for its end.
    Told,
    HeldBack,
}

impl Limiter {
    /// Whether this notice goes out; if so, how many were held back since the one before.
    pub fn admit(&mut self, event: NoticeEvent, reason: &str, now: BootTime) -> Option<u32> {
        while self.sent.front().is_some_and(|sent| now.since(sent.at) >= WINDOW) {
            self.sent.pop_front();
        }
        let passes = match event {
            NoticeEvent::Sleeping => {
                let passes = self.sent.len() + 2 <= AT_MOST;
                self.sleeping = if passes { Sleeping::Told } else { Sleeping::HeldBack };
                passes
            }
            NoticeEvent::Awake => match std::mem::take(&mut self.sleeping) {
                Sleeping::Told => true,
                Sleeping::HeldBack => false,
                Sleeping::Over => self.sent.len() < AT_MOST,
            },
            NoticeEvent::GoingToSleep | NoticeEvent::SleepRefused | NoticeEvent::SleepFailed | NoticeEvent::Test => {
                let kept = usize::from(self.sleeping == Sleeping::Told);
                self.sent.len() + kept < AT_MOST && !self.is_repetition(event, reason, now)
            }
        };
        if !passes {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.sent.push_back(Sent {
            at: now,
            event,
            reason: reason.into(),
        });
        Some(std::mem::take(&mut self.held_back))
    }

    fn is_repetition(&self, event: NoticeEvent, reason: &str, now: BootTime) -> bool {
        let same = |sent: &Sent| sent.event == event && sent.reason == reason;
        self.sent
            .iter()
            .any(|sent| same(sent) && now.since(sent.at) < SAME_WITHIN)
    }
}
