//! `cargo xtask`: builds, runs and tests VMStation power.
//!
//! One file a verb. Owns nothing but what lies under the target folder: no verb writes to the source tree or to the user's home
//! (cargo's and rustup's own folders excepted, and only by asking them), suspends the machine, or starts a service.

mod build_ebpf;
mod check;
mod elf;
mod guest;
mod image;
mod packages;
mod privilege;
mod pypi;
mod run;
mod setup;
mod sleep_guest;
mod step;
mod suites;
mod supervise;
mod tally;
mod test;
mod toolchain;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, runs and tests VMStation power.
///
/// The two commands to know are `cargo xtask run` (watch this machine, decide, never suspend) and `cargo xtask test`. Both set up
/// what they need themselves. Nothing has to run as root: what loads eBPF programs asks sudo when it gets there.
///
/// Everything made or downloaded goes under the target folder (CARGO_TARGET_DIR is honoured); full logs of every step are in
/// target/xtask-logs.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    Run(run::Arguments),
    Test(test::Arguments),
    Check(check::Arguments),
    VmTest(vm_test::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.verb {
        Verb::Setup(arguments) => setup::verb(&workspace, &arguments),
        Verb::BuildEbpf(arguments) => build_ebpf::verb(&workspace, &arguments),
        Verb::Run(arguments) => run::verb(&workspace, &arguments),
        Verb::Test(arguments) => test::verb(&workspace, &arguments),
        Verb::Check(arguments) => check::verb(&workspace, &arguments),
        Verb::VmTest(arguments) => vm_test::verb(&workspace, &arguments),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
