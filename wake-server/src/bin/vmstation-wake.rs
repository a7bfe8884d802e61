//! Wakes nodes; see [`vmstation_wake_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vmstation_wake_server::cli::run(std::env::args_os(), Some(vmstation_wake_server::cli::alone))
}
