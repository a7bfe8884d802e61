//! `cargo xtask check`: everything about the source that needs no test to run.
//!
//! Reports all failures together and never calls a check passed that could not be made.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Result;

use crate::{
    build_ebpf, step,
    workspace::{Workspace, find_program},
};

/// Version of cargo-deny that is built here.
const DENY_VERSION: &str = "0.20.2";
/// How long fetching the advisories may take before they count as out of reach.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// Checks format, lints, documentation and dependencies; what CI runs besides the tests.
///
/// - `cargo fmt --check`
/// - clippy with warnings as errors, over the workspace and over the eBPF programs
/// - rustdoc with private items and warnings as errors, likewise
/// - cargo-deny (deny.toml): licences, bans, sources, advisories. Built into target/tools if it is not on PATH, which takes some minutes
///   once. Advisories come over the network: if they cannot be fetched, this is said and the other checks are made.
///
/// All checks run, also after a failure; exit code 1 if any failed.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, _arguments: &Arguments) -> Result<ExitCode> {
    let _busy = workspace.busy()?;
    let mut report = Report::default();
    // The agent embeds the object: without it nothing that depends on the agent can be checked.
    report.add("build-ebpf", build_ebpf::build(workspace).map(drop));
    for mut check in cargo_checks(workspace) {
        let title = format!("checking {}", check.name);
        report.add(
            check.name,
            step::run(workspace, &format!("check-{}", check.name), &title, &mut check.command),
        );
    }
    dependencies(workspace, &mut report);
    Ok(report.close())
}

struct Check {
    name: &'static str,
    command: Command,
}

fn cargo_checks(workspace: &Workspace) -> Vec<Check> {
    const STRICT: [&str; 3] = ["--", "-D", "warnings"];
    // A program for the kernel, looked at by the host's compiler: the lints are the same, and the host's has clippy.
    const PROGRAMS: [&str; 8] = [
        "--package",
        "agent-ebpf",
        "--features",
        "programs",
        "--bin",
        "vmstation-probes",
        "--bin",
        "vmstation-bench-probes",
    ];
    let check = |name: &'static str, verb: &[&str], variables: &[(&str, &str)]| {
        let mut command = workspace.cargo();
        command.args(verb).envs(variables.iter().copied());
        Check { name, command }
    };
    let no_unwinding = ("CARGO_PROFILE_DEV_PANIC", "abort");
    let strict_docs = ("RUSTDOCFLAGS", "-D warnings");
    let docs = ["doc", "--no-deps", "--document-private-items"];
    vec![
        check("fmt", &["fmt", "--all", "--", "--check", "--color", "never"], &[]),
        check(
            "clippy",
            &[&["clippy", "--workspace", "--all-targets"], &STRICT[..]].concat(),
            &[],
        ),
        check(
            "clippy-ebpf",
            &[&["clippy"], &PROGRAMS[..], &STRICT].concat(),
            &[no_unwinding],
        ),
        check("rustdoc", &[&docs[..], &["--workspace"]].concat(), &[strict_docs]),
        check(
            "rustdoc-ebpf",
            &[&docs[..], &PROGRAMS].concat(),
            &[strict_docs, no_unwinding],
        ),
    ]
}

/// Everything cargo-deny looks at.
fn dependencies(workspace: &Workspace, report: &mut Report) {
    let deny = match deny(workspace) {
        Ok(program) => program,
        Err(error) => return report.add("cargo-deny", Err(error)),
    };
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&deny);
        command.args(arguments).current_dir(&workspace.root);
        command
    };
    let known = ["--all-features", "check", "bans", "licenses", "sources"];
    report.add(
        "cargo-deny",
        step::run(workspace, "check-deny", "checking dependencies", &mut command(&known)),
    );

    let mut fetch = command(&["fetch", "db"]);
    match step::run_for(
        workspace,
        "check-advisories-fetch",
        "fetching advisories",
        &mut fetch,
        Some(FETCH_LIMIT),
    ) {
        Ok(()) => {
            let mut check = command(&["--all-features", "check", "--disable-fetch", "advisories"]);
            let title = "checking advisories";
            report.add(
                "advisories",
                step::run(workspace, "check-advisories", title, &mut check),
            );
        }
        Err(error) => {
            let text = format!("{error:#}");
            // The last line before the one that names the log says what went wrong.
            let mut lines = text
                .lines()
                .rev()
                .filter(|line| !line.is_empty() && !line.starts_with("(full log"));
            report.not_checked("advisories", lines.next().unwrap_or(&text));
        }
    }
}

/// Finds cargo-deny, or builds it for this tree.
fn deny(workspace: &Workspace) -> Result<PathBuf> {
    let ours = workspace.tools().join("bin/cargo-deny");
    if let Some(found) = Some(&ours)
        .filter(|path| path.is_file())
        .cloned()
        .or_else(|| find_program("cargo-deny"))
    {
        return Ok(found);
    }
    let mut install = workspace.cargo();
    install
        // Built in a third of the time; it is run twice.
        .args([
            "install",
            "cargo-deny",
            "--debug",
            "--locked",
            "--version",
            DENY_VERSION,
            "--root",
        ])
        .arg(workspace.tools())
        .env("CARGO_TARGET_DIR", workspace.tools().join("build"));
    step::run(workspace, "cargo-deny", "building cargo-deny", &mut install)?;
    Ok(ours)
}

/// What was checked, and what came of it.
#[derive(Default)]
struct Report {
    failures: Vec<(&'static str, String)>,
    not_checked: usize,
}

impl Report {
    fn add(&mut self, name: &'static str, outcome: Result<()>) {
        match outcome {
            Ok(()) => println!("check {name}: ok"),
            Err(error) => {
                println!("check {name}: FAILED");
                self.failures.push((name, format!("{error:#}")));
            }
        }
    }

    fn not_checked(&mut self, name: &str, why: &str) {
        println!("check {name}: not checked, {why}");
        self.not_checked += 1;
    }

    fn close(&self) -> ExitCode {
        for (name, text) in &self.failures {
            println!("\n-- {name}\n{text}");
        }
        println!();
        let names: Vec<_> = self.failures.iter().map(|(name, _)| *name).collect();
        match names.as_slice() {
            [] => println!("all checks passed, {} not made", self.not_checked),
            names => println!("{} failed: {}", names.len(), names.join(", ")),
        }
        if self.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
