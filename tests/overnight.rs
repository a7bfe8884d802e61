//! One night of a node: both real programs, a machine that really suspends, and a cluster. The agent runs in a guest of
//! `cargo xtask vm-test`, the wake server and the API server on a host beside it, and what happens is printed as it happens.
//!
//! Needs that guest, and root for the host, which is a network namespace. No packet leaves it. The API server is always the fake: what holds
//! it to the real one is `kube_api.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sleep/cable.rs"]
mod cable;
#[path = "overnight/chronicle.rs"]
mod chronicle;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/cluster.rs"]
mod cluster;
#[expect(dead_code, reason = "the suite of the packets uses more of it")]
#[path = "wire/lan.rs"]
mod lan;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/netns.rs"]
mod netns;
#[path = "overnight/night.rs"]
mod night;
#[path = "overnight/place.rs"]
mod place;
#[expect(dead_code, reason = "the suite of the server uses more of it")]
#[path = "wake/server.rs"]
mod server;
#[expect(dead_code, reason = "other suites with a guest use more of it")]
#[path = "support/vm/mod.rs"]
mod vm;
#[path = "support/wait.rs"]
mod wait;

fn main() {
    vm::run(vm::trials(&night::TRIALS, place::missing()));
}
