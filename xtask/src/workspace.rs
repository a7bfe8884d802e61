//! Where things are: the source tree, the target folder, what xtask keeps below it, and the host's cargo.

use std::{
    env,
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Variables that cargo and rustup set for a program they start and that would bend a second toolchain to the first.
const TOOLCHAIN_VARIABLES: [&str; 12] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
];

/// The workspace and its folders.
pub(crate) struct Workspace {
    /// Folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, wherever `CARGO_TARGET_DIR` or the configuration put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let output = Command::new(cargo_program())
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("run cargo metadata")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("read the output of cargo metadata")?;
        let folder = |key: &str| {
            let path = metadata[key]
                .as_str()
                .with_context(|| format!("no {key} in the output of cargo metadata"))?;
            anyhow::Ok(PathBuf::from(path))
        };
        Ok(Self {
            root: folder("workspace_root")?,
            target: folder("target_directory")?,
        })
    }

    /// Says that the CPUs are kept busy, for as long as the file is open. Waits while tests need them quiet.
    pub(crate) fn busy(&self) -> Result<File> {
        let file = self.quiet_file()?;
        if file.try_lock_shared().is_err() {
            eprintln!("waiting for tests of this tree that need the machine quiet ..");
            file.lock_shared().context("lock the target folder")?;
        }
        Ok(file)
    }

    /// Waits until nothing of this tree keeps the CPUs busy; nothing does for as long as the file is open.
    pub(crate) fn quiet(&self) -> Result<File> {
        let file = self.quiet_file()?;
        if file.try_lock().is_err() {
            eprintln!("waiting for what keeps the CPUs busy beside (`cargo xtask check`) ..");
            file.lock().context("lock the target folder")?;
        }
        Ok(file)
    }

    fn quiet_file(&self) -> Result<File> {
        let path = self.target.join("xtask-quiet");
        File::create(&path).with_context(|| format!("write {}", path.display()))
    }

    /// The eBPF object the agent embeds.
    pub(crate) fn probes(&self) -> PathBuf {
        self.target.join("ebpf/vmstation-probes")
    }

    /// The programs that the benches compare with.
    pub(crate) fn bench_probes(&self) -> PathBuf {
        self.target.join("ebpf/vmstation-bench-probes")
    }

    /// Tools built or unpacked for this tree only.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Full output of every step.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }

    /// The cargo that built xtask, in the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        command
    }

    /// The compiler of that cargo.
    pub(crate) fn rustc(&self) -> Command {
        let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.current_dir(&self.root);
        command
    }
}

/// A command of another toolchain than the one xtask was started with.
pub(crate) fn foreign(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for variable in TOOLCHAIN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Finds a program on `PATH`, or where Debian puts system tools that an ordinary user's `PATH` leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
