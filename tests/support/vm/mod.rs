//! A guest that sleeps and what drives it from outside: `cargo xtask vm-test` boots it.

pub(crate) mod bed;
pub(crate) mod channel;
pub(crate) mod installation;
pub(crate) mod login;
pub(crate) mod qmp;
pub(crate) mod webhook;

use libtest_mimic::{Arguments, Trial};

/// Runs these trials, one after the other; lists them as ignored where there is no guest.
pub(crate) fn run<'a>(trials: impl Iterator<Item = &'a (&'static str, fn())>) -> ! {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    let missing = bed::missing();
    let trial = |(name, test): &(&'static str, fn())| {
        let test = *test;
        let trial = Trial::test(*name, move || {
            test();
            Ok(())
        });
        match missing {
            None => trial,
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    };
    libtest_mimic::run(&arguments, trials.map(trial).collect()).exit()
}
