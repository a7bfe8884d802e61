//! Tells guesses at passwords (fault X1) from somebody who logs in, by how many SSH connections led to nothing. Pure.

use std::{collections::VecDeque, time::Duration};

use crate::clock::BootTime;

/// So many connections that led to no session within [`WITHIN`] are guesses.
const MANY: usize = 8;
const WITHIN: Duration = Duration::from_secs(60);
/// Longest time that somebody who logs in takes; after that the connection only hangs.
const LOGIN_TAKES: Duration = Duration::from_secs(30);

/// The SSH connections of the last while.
#[derive(Debug, Default)]
pub struct Knocks {
    last: Option<BootTime>,
    /// When those were opened that have not become sessions, at most [`MANY`], the newest first.
    vain: VecDeque<BootTime>,
    /// Logins that are left out of those.
    logins: u64,
}

impl Knocks {
    /// A connection was opened.
    pub fn knock(&mut self, at: BootTime) {
        self.last = Some(at);
        self.vain.truncate(MANY - 1);
        self.vain.push_front(at);
    }

    /// So many logins were noticed in all.
    pub fn logins(&mut self, logins: u64) {
        // Which of the connections it was that became a session makes no difference to their number.
        for _ in self.logins..logins {
            self.vain.pop_front();
        }
        self.logins = logins;
    }

    /// Whether a connection that nothing is proved of can be that of somebody who is logging in.
    pub fn may_be_login(&self, now: BootTime) -> bool {
        let just_now = self.last.is_some_and(|last| now.since(last) < LOGIN_TAKES);
        just_now && !self.are_guesses(now)
    }

    /// Whether the next connection will be a guess.
    pub fn are_guesses(&self, now: BootTime) -> bool {
        let first_of_many = self.vain.get(MANY - 1);
        first_of_many.is_some_and(|first| now.since(*first) < WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::from_nanos(seconds * 1_000_000_000)
    }

    fn every(seconds: u64, count: u64) -> (Knocks, BootTime) {
        let mut knocks = Knocks::default();
        for number in 1..=count {
            knocks.knock(at(number * seconds));
        }
        (knocks, at(count * seconds))
    }

    #[test]
    fn x1_many_connections_that_lead_to_nothing_are_guesses() {
        for (seconds, count, guesses) in [(1, 8, true), (8, 20, true), (1, 7, false), (9, 20, false)] {
            let (knocks, now) = every(seconds, count);
            assert_eq!(knocks.are_guesses(now), guesses, "{count}, one every {seconds} s");
            assert_eq!(knocks.may_be_login(now), !guesses);
        }
        let (knocks, now) = every(1, 8);
        assert!(!knocks.are_guesses(now.after(WITHIN)), "it is over");
    }

    #[test]
    fn s1_many_logins_are_logins() {
        let mut knocks = Knocks::default();
        for number in 1..=50 {
            let now = at(number);
            knocks.knock(now);
            assert!(knocks.may_be_login(now), "login {number}");
            knocks.logins(number);
        }
    }

    #[test]
    fn s1_a_connection_that_hangs_is_no_login() {
        let (knocks, now) = every(1, 1);
        assert!(knocks.may_be_login(now));
        assert!(!knocks.may_be_login(now.after(LOGIN_TAKES)));
        assert!(!Knocks::default().may_be_login(now));
    }
}
