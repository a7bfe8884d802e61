//! Puts the eBPF programs into the agent: `ebpf/vmstation-probes` in cargo's target directory, or the file that `VMSTATION_EBPF_OBJECT`
//! names. Builds nothing itself (`cargo xtask build-ebpf` is the only builder); without the file the agent is built without programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const OVERRIDE: &str = "VMSTATION_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(vmstation_ebpf)");
    let object = env::var_os(OVERRIDE).map_or_else(default_object, PathBuf::from);
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        println!("cargo::rustc-cfg=vmstation_ebpf");
        println!("cargo::rustc-env=VMSTATION_EBPF_EMBEDDED={}", object.display());
    } else if let Some(folder) = object.parent() {
        // A folder that is watched, and not a file that is missing: cargo takes the latter for a change at every build.
        match fs::create_dir_all(folder) {
            Ok(()) => println!("cargo::rerun-if-changed={}", folder.display()),
            Err(error) => println!(
                "cargo::warning=cannot watch {} for eBPF programs: {error}",
                folder.display()
            ),
        }
    }
}

fn default_object() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    target_directory(&out).join("ebpf").join("vmstation-probes")
}

/// The folder that cargo marked as its own: `OUT_DIR` lies in it, more or less deep (profile, target triple, layout).
fn target_directory(out: &Path) -> &Path {
    let marked = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    marked.or_else(|| out.ancestors().nth(4)).unwrap_or(out)
}
