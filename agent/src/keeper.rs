//! Keeps the idle machine's memory over restarts: translates between it and the state file, and knows when it is not safe on disk.
//!
//! Owns the state file. A state that cannot be saved is a reason to stay awake ([`Keeper::failure`]): a hold or a `disable` would not
//! survive. Reads the boot id, and the wall clock for the lines of the file that people read.

use std::{fs, time::Duration};

use crate::{
    clock::BootTime,
    energy::Account,
    idle::{GIVE_UP_AFTER, Hold, Idle, Memory, Settings, State, Switch, retry_wait},
    power_log,
    state_file::{Loaded, SavedBoot, SavedHold, SavedState, StateFile},
};

/// The state on disk, as far as it is there.
pub struct Keeper {
    file: Result<StateFile, String>,
    boot_id: String,
    /// What was last tried to save, less the idle time.
    kept: Option<(Memory, Account)>,
    due: BootTime,
    failure: Option<String>,
}

impl Keeper {
    /// Around a state file, or the reason why there is none.
    pub fn new(file: Result<StateFile, String>) -> Self {
        Self {
            file,
            boot_id: boot_id(),
            kept: None,
            due: BootTime::default(),
            failure: None,
        }
    }

    /// The machine and the account as the file left them, and what there is to complain about. Without a usable file, or with one of another boot, the host
    /// counts as active at `now`.
    pub fn restore(&self, settings: Settings, now: BootTime) -> (Idle, Account, Option<String>) {
        let Ok(file) = &self.file else {
            return (Idle::new(settings, now), Account::default(), None);
        };
        let complaint = match file.load() {
            Loaded::Fresh => None,
            Loaded::Restored(saved) => {
                let memory = memory(&saved, &self.boot_id, now);
                return (Idle::restore(settings, memory, now), saved.account, None);
            }
            Loaded::Corrupt { kept_as, why } => {
                let kept = kept_as.map_or_else(
                    || "could not be set aside".into(),
                    |path| format!("is kept as {}", path.display()),
                );
                Some(format!(
                    "the state file is unusable and {kept}; starting as active: {why}"
                ))
            }
            Loaded::Unreadable(error) => Some(format!("the state file cannot be read; starting as active: {error}")),
        };
        (Idle::new(settings, now), Account::default(), complaint)
    }

    /// Why the state is not on disk, if it is not.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether something must be saved at once, or the file is due.
    pub fn wants(&self, idle: &Idle, account: &Account, now: BootTime) -> bool {
        now >= self.due || self.kept.as_ref() != Some(&(lasting(idle), account.clone()))
    }

    /// Saves now, and next in `every` unless something must be saved before.
    pub fn save(
        &mut self,
        idle: &Idle,
        account: &Account,
        last_check: Option<BootTime>,
        now: BootTime,
        every: Duration,
    ) {
        let saved = match &self.file {
            Ok(file) => file
                .save(&state(idle, account, &self.boot_id, last_check, now))
                .map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        };
        self.kept = Some((lasting(idle), account.clone()));
        self.due = now.after(every);
        match (saved, &self.failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!("the state can be saved again");
                self.failure = None;
            }
            (Err(why), before) => {
                if before.as_ref() != Some(&why) {
                    tracing::error!(why, "the state cannot be saved: the host stays awake");
                }
                self.failure = Some(why);
            }
        }
    }
}

/// Which boot this is; empty if that cannot be read: no saved boot is this one then.
pub fn boot_id() -> String {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot_id.trim().into()
}

/// What must be on disk at once; the idle time is written now and then.
fn lasting(idle: &Idle) -> Memory {
    Memory {
        last_activity: BootTime::default(),
        ..idle.memory().clone()
    }
}

fn memory(saved: &SavedState, boot_id: &str, now: BootTime) -> Memory {
    let hold = saved.hold_left(boot_id, now).zip(saved.hold.as_ref());
    Memory {
        last_activity: saved.last_activity_in(boot_id).unwrap_or(now),
        hold: hold.map(|(left, hold)| Hold {
            until: now.after(left),
            by: hold.by.clone(),
            reason: (!hold.reason.is_empty()).then(|| hold.reason.clone()),
        }),
        switch: match (saved.disabled_by_operator, saved.disabled_by_wake_loop, saved.failures) {
            (true, _, _) => Switch::OffByOperator,
            (false, true, _) => Switch::OffByWakeLoop,
            (false, false, GIVE_UP_AFTER..) => Switch::OffByFailures,
            (false, false, _) => Switch::On,
        },
        failures: saved.failures,
        refusals: 0,
        short_sleeps: saved.short_sleeps,
        // When the last one was is not in the file: the whole wait begins again.
        not_before: match saved.failures {
            0 => BootTime::default(),
            failures => now.after(retry_wait(failures)),
        },
    }
}

fn state(idle: &Idle, account: &Account, boot_id: &str, last_check: Option<BootTime>, now: BootTime) -> SavedState {
    let memory = idle.memory();
    let wall_clock = power_log::wall_clock().timestamp().as_second();
    let since_1970 = |at: BootTime| {
        let then = wall_clock.saturating_sub_unsigned(now.since(at).as_secs());
        u64::try_from(then).unwrap_or(0)
    };
    SavedState {
        last_activity: since_1970(memory.last_activity),
        sleep_pending: match idle.state() {
            State::Active | State::Quiet => false,
            State::Grace { .. } | State::Preparing(_) | State::Confirming(_) | State::Suspending { .. } => true,
        },
        sleep_enabled: idle.settings().enabled && memory.switch == Switch::On,
        last_check: last_check.map_or(0, since_1970),
        boot: Some(SavedBoot {
            id: boot_id.into(),
            last_activity: memory.last_activity,
        }),
        hold: memory
            .hold
            .as_ref()
            .filter(|hold| now < hold.until)
            .map(|hold| SavedHold {
                until: hold.until,
                seconds: hold.until.since(now).as_secs().max(1),
                by: hold.by.clone(),
                reason: hold.reason.clone().unwrap_or_default(),
            }),
        failures: memory.failures,
        disabled_by_operator: memory.switch == Switch::OffByOperator,
        account: account.clone(),
        short_sleeps: memory.short_sleeps,
        disabled_by_wake_loop: memory.switch == Switch::OffByWakeLoop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        energy::Outcome,
        idle::{Event, Finding},
    };

    const NOW: BootTime = BootTime(Duration::from_secs(5000));

    fn settings() -> Settings {
        Settings {
            enabled: true,
            inactivity_timeout: Duration::from_secs(60),
            grace_period: Duration::ZERO,
            warn_before: None,
            min_awake: Duration::ZERO,
        }
    }

    /// What comes back after a restart at `later`.
    fn restarted(idle: &Idle, boot_id: &str, later: BootTime) -> Memory {
        memory(
            &state(idle, &Account::default(), "this boot", None, NOW),
            boot_id,
            later,
        )
    }

    #[test]
    fn the_same_boot_goes_on_and_another_one_starts_as_active() {
        let mut idle = Idle::new(settings(), NOW.before(Duration::from_secs(30)));
        idle.handle(Event::Disable, NOW);
        let later = NOW.after(Duration::from_secs(10));
        let same = restarted(&idle, "this boot", later);
        assert_eq!(same, *idle.memory());
        let other = restarted(&idle, "another boot", later);
        assert_eq!((other.last_activity, other.switch), (later, Switch::OffByOperator));
    }

    #[test]
    fn the_account_is_saved_when_it_changes_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(Ok(StateFile::open(folder.path()).unwrap()));
        let (idle, mut account, complaint) = keeper.restore(settings(), NOW);
        assert_eq!((&account, complaint), (&Account::default(), None));
        let every = Duration::from_secs(600);
        keeper.save(&idle, &account, None, NOW, every);
        assert!(!keeper.wants(&idle, &account, NOW));
        account.note(Outcome::Slept { asleep: every }, None);
        assert!(keeper.wants(&idle, &account, NOW));
        keeper.save(&idle, &account, None, NOW, every);
        assert!(!keeper.wants(&idle, &account, NOW));
        let (_, restored, _) = keeper.restore(settings(), NOW);
        assert_eq!(restored, account);
    }

    #[test]
    fn a_hold_keeps_its_end() {
        let mut idle = Idle::new(settings(), NOW);
        let hold = Hold {
            until: NOW.after(Duration::from_secs(600)),
            by: "root".into(),
            reason: Some("backup".into()),
        };
        idle.handle(Event::Hold(hold.clone()), NOW);
        assert_eq!(
            restarted(&idle, "this boot", NOW.after(Duration::from_secs(100))).hold,
            Some(hold)
        );
        assert_eq!(
            restarted(&idle, "this boot", NOW.after(Duration::from_secs(600))).hold,
            None
        );
    }

    #[test]
    fn failures_wait_again_and_giving_up_lasts() {
        let mut idle = Idle::new(settings(), NOW.before(Duration::from_secs(100)));
        for failures in 1..=GIVE_UP_AFTER {
            let at = idle.memory().not_before.max(NOW);
            let quiet = Event::Checked {
                begun: at,
                finding: Finding::Quiet,
                last_activity: None,
            };
            idle.handle(quiet.clone(), at);
            idle.handle(quiet, at);
            idle.handle(Event::SuspendFailed, at);
            let again = restarted(&idle, "this boot", NOW);
            assert_eq!(again.failures, failures);
            assert_eq!(again.not_before, NOW.after(retry_wait(failures)));
            assert_eq!(again.switch == Switch::OffByFailures, failures == GIVE_UP_AFTER);
        }
    }
}
