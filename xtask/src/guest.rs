//! A guest under qemu: disks and ports in, a process that is always ended by us out.
//!
//! Knows nothing of what runs inside. The guest has one network card, whose cable leads nowhere. Emulated (`tcg`), not accelerated: it
//! then works the same on every machine, inside virtual machines too.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{image::RootImage, step::Stopwatch, workspace::find_program};

/// A guest that is not running yet.
pub(crate) struct Guest<'a> {
    pub(crate) root: &'a RootImage,
    /// Further disks, `/dev/vdb` and on. Like the root disk they are snapshots: what the guest writes is gone with it.
    pub(crate) disks: Vec<PathBuf>,
    /// Takes what the guest writes to its console (`ttyS0`).
    pub(crate) console: PathBuf,
    /// Takes what the guest writes to its second serial port (`ttyS1`).
    pub(crate) port: PathBuf,
    /// Takes what qemu itself has to say.
    pub(crate) complaints: PathBuf,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
}

/// A guest that runs. Dropping it kills it.
pub(crate) struct Running {
    process: Child,
    since: Stopwatch,
}

impl Guest<'_> {
    /// Boots.
    pub(crate) fn start(&self) -> Result<Running> {
        for path in [&self.console, &self.port] {
            fs::write(path, "").with_context(|| format!("write {}", path.display()))?;
        }
        let qemu = find_program("qemu-system-x86_64")
            .context("qemu-system-x86_64 is missing; `cargo xtask setup` installs it")?;
        // The kernel ends qemu with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(qemu).args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-nic",
            "hubport,hubid=0,model=virtio-net-pci",
            "-no-reboot",
            "-device",
            "virtio-rng-pci",
        ]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        command
            .arg("-kernel")
            .arg(&self.root.kernel)
            .arg("-initrd")
            .arg(&self.root.initrd);
        command.args([
            "-append",
            "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off loglevel=4",
        ]);
        for disk in [&self.root.disk].into_iter().chain(&self.disks) {
            command
                .arg("-drive")
                .arg(format!("if=virtio,format=raw,snapshot=on,file={}", escaped(disk)));
        }
        for port in [&self.console, &self.port] {
            command.arg("-serial").arg(format!("file:{}", port.display()));
        }
        let complaints =
            File::create(&self.complaints).with_context(|| format!("write {}", self.complaints.display()))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints)
            .spawn()
            .context("start qemu")?;
        Ok(Running {
            process,
            since: Stopwatch::start(),
        })
    }
}

impl Running {
    /// How the guest ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().context("wait for qemu")
    }

    /// Time since it was started.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// qemu takes a comma in an option for its end, unless doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
