//! Shows and steers the autosleep agent of this host; see [`vmstation_agent::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vmstation_agent::ctl::run(std::env::args_os())
}
