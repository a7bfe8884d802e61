//! Every figure of `benches/README.md` but those of pure code, which `decisions` measures: what the eBPF programs and the agent cost, beside
//! named alternatives, in one run. Asserts nothing about time.
//!
//! Needs root and the programs (`cargo xtask build-ebpf`). Each section is a process of its own, in network and mount namespaces of its own:
//! this binary runs itself again. `cargo bench --bench figures -- packets` runs one section and leaves the written results alone.

mod agents;
mod attempt;
mod auto;
mod bodies;
#[path = "../../tests/support/fake_login1.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
mod fake_login1;
mod figure;
mod kernel;
mod latency;
mod measure;
#[path = "../../tests/support/netns.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
mod netns;
#[path = "../../tests/attempt/node.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
mod node;
mod packets;
mod report;
mod scheduler;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Uid;

use figure::Figure;

/// Names the section that this process is to measure.
const ROLE: &str = "VMSTATION_BENCH";

const SECTIONS: [&str; 7] = ["scheduler", "packets", "bodies", "auto", "latency", "attempt", "agents"];

fn main() -> ExitCode {
    let outcome = match env::var(ROLE) {
        Ok(section) => measure(&section),
        Err(_) => run(&env::args().skip(1).collect::<Vec<_>>()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("figures: nothing to test; `cargo bench` measures");
        return Ok(());
    }
    if !Uid::effective().is_root() {
        println!("figures: not measured: needs root, to load eBPF programs and make network namespaces");
        return Ok(());
    }
    let named: Vec<&str> = SECTIONS
        .into_iter()
        .filter(|section| arguments.iter().any(|argument| argument == section))
        .collect();
    let sections = if named.is_empty() { &SECTIONS[..] } else { &named };
    build_agent()?;
    let mut figures = decisions();
    for section in sections {
        eprintln!("figures: {section} ..");
        figures.extend(in_child(section).unwrap_or_else(|error| vec![Figure::missing(section, section, &error)]));
    }
    println!("{}", report::table(&figures));
    if named.is_empty() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        report::write(&folder, &figures)?;
        eprintln!(
            "figures: wrote the results into README.md and results.svg in {}",
            folder.display()
        );
    }
    Ok(())
}

/// Cargo builds the benches, but not the program of another package that they start.
fn build_agent() -> Result<()> {
    let Some(cargo) = env::var_os("CARGO") else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "vmstation-agent",
        "--bin",
        "vmstation-autosleep",
    ]);
    let built = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "the agent could not be built");
    Ok(())
}

/// What the bench of the pure code, which cargo runs before this one, has left.
fn decisions() -> Vec<Figure> {
    let of = |name: &str| -> Option<Figure> {
        let own = env::current_exe().ok()?;
        let estimates = Path::new("criterion/check").join(name).join("new/estimates.json");
        let text = own
            .ancestors()
            .find_map(|folder| fs::read(folder.join(&estimates)).ok())?;
        let estimates: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let median = &estimates["median"];
        let bound = |name: &str| median["confidence_interval"][name].as_f64();
        let estimate = measure::Estimate {
            value: median["point_estimate"].as_f64()?,
            low: bound("lower_bound")?,
            high: bound("upper_bound")?,
        };
        Some(Figure::new(
            "decisions",
            &format!("one check of a {name} host"),
            "ns",
            estimate,
        ))
    };
    ["quiet", "busy"].into_iter().filter_map(of).collect()
}

fn in_child(section: &str) -> Result<Vec<Figure>> {
    let output = tempfile::NamedTempFile::new()?;
    let status = Command::new("/proc/self/exe")
        .env(ROLE, section)
        .stdin(Stdio::null())
        .stdout(File::create(output.path())?)
        .status()?;
    ensure!(status.success(), "ended with {status}; see above");
    Ok(serde_json::from_slice(&fs::read(output.path())?)?)
}

fn measure(section: &str) -> Result<()> {
    // Before it: control groups are mounted below /sys, which the namespace has of its own.
    if section != "agents" {
        netns::enter();
    }
    let figures = match section {
        "scheduler" => scheduler::figures()?,
        "packets" => packets::figures()?,
        "bodies" => bodies::figures()?,
        "auto" => auto::figures()?,
        "latency" => latency::figures()?,
        "attempt" => attempt::figures()?,
        "agents" => agents::figures()?,
        other => anyhow::bail!("there is no section {other}"),
    };
    let json = serde_json::to_vec(&figures)?;
    Ok(std::io::stdout().write_all(&json)?)
}
