//! `cargo xtask build-ebpf`: the only builder of the eBPF programs.
//!
//! Freshness is cargo's: a second run compiles nothing and leaves the object as it is, so that the agent is not rebuilt either.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};

use crate::{
    elf, setup, step,
    toolchain::Toolchain,
    workspace::{Workspace, foreign},
};

/// The kernel's instruction set, little endian, as rustc names it.
const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "vmstation-probes";
/// What the benches compare with; nothing embeds it.
const BENCH_OBJECT: &str = "vmstation-bench-probes";

/// Builds the eBPF programs into target/ebpf/vmstation-probes.
///
/// This is the only way they are built; the agent embeds the file, so build them before the agent. Needs no privileges once `setup` has
/// found a toolchain. The file is written only when its content changes.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, _arguments: &Arguments) -> Result<ExitCode> {
    let built = build(workspace)?;
    println!("eBPF toolchain: {}", built.toolchain);
    let change = if built.changed { "" } else { ", unchanged" };
    println!("{} ({} bytes{change})", workspace.probes().display(), built.bytes);
    for program in &built.programs {
        println!("  {program}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was built.
pub(crate) struct Built {
    pub(crate) toolchain: Toolchain,
    pub(crate) bytes: usize,
    pub(crate) programs: Vec<String>,
    pub(crate) changed: bool,
}

/// Finds or installs the toolchain and builds.
pub(crate) fn build(workspace: &Workspace) -> Result<Built> {
    let toolchain = setup::toolchain(workspace)?;
    let folder = workspace.target.join("ebpf-build");
    let mut command = foreign(&toolchain.compiler.cargo);
    command
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "agent-ebpf",
            "--bin",
            OBJECT,
            "--bin",
            BENCH_OBJECT,
            "--features",
            "programs",
        ])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&folder)
        .current_dir(&workspace.root);
    for (name, value) in environment(&toolchain) {
        command.env(name, value);
    }
    step::run(workspace, "build-ebpf", "building the eBPF programs", &mut command)?;

    let read = |object: &str| {
        let path = folder.join(TARGET).join("release").join(object);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    replace_if_different(&workspace.bench_probes(), &read(BENCH_OBJECT)?)?;
    let bytes = read(OBJECT)?;
    let programs = elf::programs(&bytes)?;
    let changed = replace_if_different(&workspace.probes(), &bytes)?;
    Ok(Built {
        toolchain,
        bytes: bytes.len(),
        programs,
        changed,
    })
}

/// What cargo must know to compile for the kernel with `toolchain`.
pub(crate) fn environment(toolchain: &Toolchain) -> Vec<(&'static str, String)> {
    let linker = format!("-Clinker={}", toolchain.linker.path.display());
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", &linker].join("\x1f");
    vec![
        // A stable compiler takes -Z build-std only so; a nightly does not mind.
        ("RUSTC_BOOTSTRAP", "1".into()),
        ("RUSTC", toolchain.compiler.rustc.display().to_string()),
        ("CARGO_ENCODED_RUSTFLAGS", flags),
    ]
}

/// Writes through a temporary file, so that nobody reads half an object. Returns whether anything changed.
fn replace_if_different(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let folder = path.parent().context("the object's path has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut temporary = PathBuf::from(path);
    temporary.set_extension("part");
    fs::write(&temporary, bytes).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_written_only_when_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ebpf/object");
        assert!(replace_if_different(&path, b"one").unwrap());
        assert!(!replace_if_different(&path, b"one").unwrap());
        assert!(replace_if_different(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::read_dir(folder.path().join("ebpf")).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }
}
