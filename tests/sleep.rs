//! A machine that really sleeps: a guest of `cargo xtask vm-test`, driven from here through qemu. Sleeps that come about, and their end;
//! for the others see `abort.rs`.
//!
//! Runs outside that guest, as an ordinary user; the trial with a LAN needs root. Without the guest every trial is listed as ignored. One
//! trial after another: there is one guest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sleep/asleep.rs"]
mod asleep;
#[path = "sleep/cable.rs"]
mod cable;
#[path = "sleep/cards.rs"]
mod cards;
#[expect(dead_code, reason = "the suite of the packets uses more of it")]
#[path = "wire/lan.rs"]
mod lan;
#[path = "sleep/machine.rs"]
mod machine;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/netns.rs"]
mod netns;
#[expect(dead_code, reason = "the suite of the server uses more of it")]
#[path = "wake/server.rs"]
mod server;
#[path = "sleep/unit.rs"]
mod unit;
#[path = "support/vm/mod.rs"]
mod vm;
#[path = "support/wait.rs"]
mod wait;
#[path = "sleep/waking.rs"]
mod waking;
#[path = "sleep/woken.rs"]
mod woken;

fn main() {
    // The machine itself first: what is wrong with that is wrong with everything.
    let trials = machine::TRIALS.iter().chain(&unit::TRIALS).chain(&asleep::TRIALS);
    let trials = vm::trials(trials.chain(&cards::TRIALS).chain(&waking::TRIALS), None);
    vm::run(trials.chain(vm::trials(&woken::TRIALS, woken::missing())));
}
