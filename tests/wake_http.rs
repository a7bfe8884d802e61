//! How the wake server bears clients that misbehave: bytes on a socket, malformed, endless, slow, too many, or of a browser that was led
//! here. Needs no root, and no packet is sent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "wake_http/failed.rs"]
mod failed;
#[path = "wake_http/mutations.rs"]
mod mutations;
#[path = "wake_http/names.rs"]
mod names;
#[path = "wake_http/origins.rs"]
mod origins;
#[path = "wake_http/program.rs"]
mod program;
#[path = "wake_http/real.rs"]
mod real;
#[path = "wake_http/running.rs"]
mod running;
#[path = "wake_http/service.rs"]
mod service;
#[path = "wake_http/slow.rs"]
mod slow;
#[path = "wake_http/too_many.rs"]
mod too_many;
#[path = "wake_http/torn.rs"]
mod torn;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/wait.rs"]
mod wait;
#[path = "wake_http/ways.rs"]
mod ways;

use real::app;
