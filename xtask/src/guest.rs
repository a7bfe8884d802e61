//! A guest under qemu: disks and ports in, a process that is always ended by us out.
//!
//! Knows nothing of what runs inside. Emulated (`tcg`), not accelerated: it then works the same on every machine, inside virtual machines
//! too. No guest reaches a network: the cables of its cards lead nowhere, or to programs of this machine ([`Controls`]).

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
    /// Whether each of them is emulated by a thread of its own. One thread for all is as fast on a machine that is busy anyhow, and the CPUs
    /// do not really run at the same time; but each waits up to 0.1 s for its turn.
    pub(crate) cpus_in_parallel: bool,
    /// How it is driven from outside while it runs, if it is.
    pub(crate) controls: Option<&'a Controls>,
}

/// What drives a guest from outside: sockets that qemu makes, and ports of 127.0.0.1.
///
/// Such a guest has four network cards, named as QMP's `set_link` takes them. All say that they can wake the machine by a magic packet:
/// `armed` and `lan` (i82559er) do as they say, `lying` (rtl8139) takes the order and forgets it, `refusing` (e1000) does not take it. None
/// of them really wakes it, as qemu hears no packets then. The guest's own clock runs on in S3, and an alarm of its RTC wakes it.
pub(crate) struct Controls {
    /// Socket of qemu's own protocol, QMP.
    pub(crate) qmp: PathBuf,
    /// Socket whose other end the guest has as `/dev/virtio-ports/vmstation.channel`.
    pub(crate) channel: PathBuf,
    /// Leads to port 22 of 10.0.2.15, an address the guest has to give to the card `armed`.
    pub(crate) ssh_port: u16,
    /// Where port 80 of 10.0.2.100, as the guest sees it, leads.
    pub(crate) webhook_port: u16,
    /// Ends of the cable of the card `lan`: each datagram is a frame.
    pub(crate) cable: Cable,
}

/// Two datagram sockets. Sending needs nobody at the other one: what is sent then is lost.
pub(crate) struct Cable {
    /// qemu's, which takes what is sent to the guest.
    pub(crate) guest: PathBuf,
    /// Where qemu sends what the guest sends. Whoever wants that makes it.
    pub(crate) lan: PathBuf,
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
            if self.cpus_in_parallel {
                "tcg,thread=multi"
            } else {
                "tcg,thread=single"
            },
            "-cpu",
            "max",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
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
            "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off loglevel=5",
        ]);
        for disk in [&self.root.disk].into_iter().chain(&self.disks) {
            command
                .arg("-drive")
                .arg(format!("if=virtio,format=raw,snapshot=on,file={}", escaped(disk)));
        }
        match self.controls {
            Some(controls) => controls.add(&mut command),
            None => {
                command.args(["-nic", "hubport,hubid=0,model=virtio-net-pci"]);
            }
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

impl Controls {
    /// Adds the devices.
    fn add(&self, command: &mut Command) {
        let qmp = escaped(&self.qmp);
        command.args(["-qmp", &format!("unix:{qmp},server=on,wait=off")]);
        let channel = escaped(&self.channel);
        command.args([
            "-chardev",
            &format!("socket,id=channel,path={channel},server=on,wait=off"),
        ]);
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=channel,name=vmstation.channel"]);
        command.args(["-rtc", "base=utc,clock=host"]);
        command.args(["-netdev", &self.network()]);
        command.args(["-device", "i82559er,id=armed,netdev=armed-cable,mac=52:54:00:12:34:01"]);
        for (hub, (name, model)) in [("lying", "rtl8139"), ("refusing", "e1000")].into_iter().enumerate() {
            command.args(["-netdev", &format!("hubport,id={name}-cable,hubid={}", hub + 1)]);
            let mac = hub + 2;
            command.args([
                "-device",
                &format!("{model},id={name},netdev={name}-cable,mac=52:54:00:12:34:0{mac}"),
            ]);
        }
        command.args(["-netdev", &self.cable.network()]);
        command.args(["-device", "i82559er,id=lan,netdev=lan-cable,mac=52:54:00:12:34:04"]);
    }

    /// A network that holds nothing but the two ports: qemu itself is the other end of the cable. For each connection of the guest a
    /// shell carries the bytes; qemu's own way to forward would make one connection for all.
    fn network(&self) -> String {
        let carry = format!(
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}; cat <&3 & exec cat >&3'",
            self.webhook_port
        );
        format!(
            "user,id=armed-cable,restrict=on,ipv6=off,net=10.0.2.0/24,hostfwd=tcp:127.0.0.1:{}-10.0.2.15:22,guestfwd=tcp:10.0.2.100:80-cmd:{carry}",
            self.ssh_port
        )
    }
}

impl Cable {
    fn network(&self) -> String {
        format!(
            "dgram,id=lan-cable,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            escaped(&self.guest),
            escaped(&self.lan)
        )
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
