//! A guest that sleeps and what drives it from outside: `cargo xtask vm-test` boots it.

pub(crate) mod bed;
pub(crate) mod channel;
pub(crate) mod installation;
pub(crate) mod login;
pub(crate) mod qmp;
pub(crate) mod webhook;

use libtest_mimic::{Arguments, Trial};

/// Runs these trials, one after the other.
pub(crate) fn run(trials: impl Iterator<Item = Trial>) -> ! {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials.collect()).exit()
}

/// Lists trials as ignored where there is no guest, or, if they `lack` something else, for that.
pub(crate) fn trials<'a>(
    trials: impl IntoIterator<Item = &'a (&'static str, fn())>,
    lack: Option<&'static str>,
) -> impl Iterator<Item = Trial> {
    let missing = bed::missing().or(lack);
    trials.into_iter().map(move |(name, test)| {
        let test = *test;
        let trial = Trial::test(*name, move || {
            test();
            Ok(())
        });
        match missing {
            None => trial,
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    })
}
