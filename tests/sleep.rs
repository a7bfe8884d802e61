//! A machine that really sleeps: a guest of `cargo xtask vm-test`, driven from here through qemu. Sleeps that come about, and their end;
//! for the others see `abort.rs`.
//!
//! Runs outside that guest, as an ordinary user. Without the guest every trial is listed as ignored. One trial after another: there is
//! one guest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sleep/asleep.rs"]
mod asleep;
#[path = "sleep/cards.rs"]
mod cards;
#[path = "sleep/machine.rs"]
mod machine;
#[path = "support/vm/mod.rs"]
mod vm;
#[path = "support/wait.rs"]
mod wait;
#[path = "sleep/waking.rs"]
mod waking;

fn main() {
    // The machine itself first: what is wrong with that is wrong with everything.
    let trials = machine::TRIALS.iter().chain(&asleep::TRIALS);
    vm::run(trials.chain(&cards::TRIALS).chain(&waking::TRIALS));
}
