//! Attempts to sleep as the agent carries them out, on a node that is a folder, with a logind that suspends nothing: order, refusals,
//! calls to stop, and what is left after kill -9.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "attempt/called_off.rs"]
mod called_off;
#[expect(dead_code, reason = "the orders of `power` use more of it")]
#[path = "support/fake_login1.rs"]
mod fake_login1;
#[path = "attempt/killed.rs"]
mod killed;
#[path = "attempt/leave.rs"]
mod leave;
#[path = "attempt/node.rs"]
mod node;
#[path = "attempt/refused.rs"]
mod refused;
#[path = "attempt/steps.rs"]
mod steps;
#[expect(dead_code, reason = "the tests of the whole agent use more of it")]
#[path = "support/wake_server.rs"]
mod wake_server;

use std::{env, time::Duration};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime;

/// Ends a trial that hangs.
const LIMIT: Duration = Duration::from_secs(180);

const TRIALS: [(&str, fn()); 40] = [
    ("f1_kill_9_at_each_step_leaves_nothing", killed::at_each_step),
    (
        "f1_kill_9_at_each_step_gives_an_alarm_back",
        killed::at_each_step_with_a_later_alarm,
    ),
    ("f1_kill_9_in_the_recovery_leaves_nothing", killed::in_the_recovery),
    (
        "f1_kill_9_while_the_alarm_is_set_leaves_nothing",
        killed::while_the_alarm_is_set,
    ),
    ("f1_kill_9_during_a_hook_runs_those_afterwards", killed::during_a_hook),
    (
        "f1_kill_9_during_the_suspend_leaves_nothing",
        killed::during_the_suspend,
    ),
    ("f1_kill_9_at_any_time_leaves_nothing", killed::at_any_time),
    (
        "f1_after_a_reboot_only_alarm_and_leave_are_undone",
        killed::before_a_reboot,
    ),
    ("f3_without_a_journal_there_is_no_sleep", refused::without_a_journal),
    (
        "f3_a_journal_that_goes_away_ends_the_attempt",
        refused::as_the_journal_goes_away,
    ),
    ("h1_a_call_ends_a_hook_that_hangs", called_off::in_a_hook_that_hangs),
    ("h2_a_hook_may_veto", steps::vetoed_by_a_hook),
    ("s1_a_call_at_any_moment_stops_it", called_off::at_any_moment),
    (
        "s1_a_call_during_the_suspend_raises_the_veto",
        called_off::during_the_suspend,
    ),
    (
        "s1_a_login_ends_a_suspend_before_the_agent_hears_of_it",
        called_off::by_a_login_nobody_has_heard_of,
    ),
    ("s1_each_step_is_done_in_order_and_undone_last_first", steps::in_order),
    ("s1_no_other_sleep_state_may_follow", refused::as_systemd_would_try_more),
    ("s1_a_wakeup_event_under_way_stops_it", refused::by_a_wakeup_event),
    ("s2_an_inhibitor_is_named", refused::by_an_inhibitor),
    (
        "s2_an_inhibitor_at_the_last_moment_stops_it",
        refused::by_an_inhibitor_at_the_last_moment,
    ),
    ("s4_step_and_errno_of_a_failure_are_told", steps::failed_by_the_kernel),
    ("s5_a_fake_success_is_a_failure", steps::faked_by_the_kernel),
    ("s7_without_a_bus_there_is_no_sleep", refused::without_a_bus),
    ("s7_a_silent_bus_stops_it", refused::by_a_silent_bus),
    ("s8_without_mem_there_is_no_sleep", refused::without_mem),
    ("s8_s2idle_only_if_allowed", refused::with_s2idle_only),
    ("s9_a_shutdown_stops_it", refused::by_a_shutdown),
    ("s9_dpkg_stops_it", refused::by_dpkg),
    (
        "s9_an_upgrade_begun_by_a_hook_stops_it",
        refused::by_an_upgrade_that_a_hook_begins,
    ),
    (
        "s10_whom_nobody_could_wake_does_not_sleep",
        refused::as_nobody_could_wake_it,
    ),
    ("s11_the_alarm_is_set_and_taken_back", steps::with_an_alarm),
    ("s11_an_earlier_alarm_is_kept", steps::with_an_earlier_alarm),
    ("s11_a_later_alarm_is_given_back", steps::with_a_later_alarm),
    ("s11_an_alarm_that_cannot_be_set_stops_it", refused::without_a_clock),
    ("every_objection_is_told", refused::everything_at_once),
    ("a_leave_is_asked_for_and_handed_back", leave::granted_and_handed_back),
    ("without_leave_there_is_no_sleep", leave::refused),
    ("without_an_answer_there_is_no_leave", leave::unreachable),
    ("a_leave_that_expired_stops_it", leave::expired),
    (
        "f1_the_leave_of_an_agent_that_died_is_handed_back",
        leave::of_an_agent_that_died,
    ),
];

fn main() {
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() == Some(killed::DIE) {
        return killed::die(arguments);
    }
    let trials = TRIALS.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        if fake_login1::missing() {
            trial.with_kind("needs dbus-daemon").with_ignored_flag(true)
        } else {
            trial
        }
    });
    let mut arguments = Arguments::from_args();
    // One after the other: a hook that is written while another trial starts a process is a busy file for a moment and cannot be run.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// Runs a trial's future on this thread alone.
fn run(trial: impl Future<Output = ()>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, trial).await.expect("the trial hangs") });
}
