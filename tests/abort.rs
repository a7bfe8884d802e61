//! Sleeps that do not come about, or in which the agent dies: a guest of `cargo xtask vm-test` as that of `sleep.rs`, but one of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sleep/awake.rs"]
mod awake;
#[path = "sleep/crashes.rs"]
mod crashes;
#[path = "sleep/failures.rs"]
mod failures;
#[path = "support/vm/mod.rs"]
#[expect(dead_code, reason = "the other suite with a guest uses the rest")]
mod vm;
#[path = "support/wait.rs"]
mod wait;

fn main() {
    let trials = awake::TRIALS.iter().chain(&failures::TRIALS).chain(&crashes::TRIALS);
    vm::run(vm::trials(trials, None));
}
