//! Debian packages: which programs the verbs need, what brings them, and how they get onto the machine without changing what runs
//! there.
//!
//! Never starts a service and never removes a package. openssh-server, whose installation would do the first, is unpacked below
//! the target folder instead.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    privilege::Privilege,
    step,
    workspace::{Workspace, find_program},
};

/// A program a verb calls, and the Debian package it comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// Name on `PATH`.
    pub(crate) program: &'static str,
    /// Debian's name for the package.
    pub(crate) package: &'static str,
}

/// What the privileged tests call, apart from sshd.
pub(crate) const TEST_TOOLS: [Tool; 11] = [
    Tool {
        program: "dbus-daemon",
        package: "dbus-daemon",
    },
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "bpftool",
        package: "bpftool",
    },
    Tool {
        program: "ssh",
        package: "openssh-client",
    },
    Tool {
        program: "ssh-keygen",
        package: "openssh-client",
    },
    Tool {
        program: "tshark",
        package: "tshark",
    },
    Tool {
        program: "etherwake",
        package: "etherwake",
    },
    Tool {
        program: "wakeonlan",
        package: "wakeonlan",
    },
    Tool {
        program: "curl",
        package: "curl",
    },
    Tool {
        program: "chromium",
        package: "chromium",
    },
    Tool {
        program: "chromedriver",
        package: "chromium-driver",
    },
];

/// What `vm-test` calls.
pub(crate) const GUEST_TOOLS: [Tool; 3] = [
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Tool {
        program: "debootstrap",
        package: "debootstrap",
    },
    Tool {
        program: "mke2fs",
        package: "e2fsprogs",
    },
];

/// Libraries of sshd that a small Debian lacks. They bring no service.
const SSHD_LIBRARIES: [&str; 1] = ["libwrap0"];

/// Where Debian has sshd.
const SYSTEM_SSHD: &str = "/usr/sbin/sshd";

/// Whether this machine has apt.
pub(crate) fn have_apt() -> bool {
    find_program("apt-get").is_some() && find_program("dpkg-deb").is_some()
}

/// Packages that bring the programs of `tools` that are missing; each once.
pub(crate) fn missing(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools
        .iter()
        .filter(|tool| find_program(tool.program).is_none())
        .map(|tool| tool.package)
        .collect();
    packages.dedup();
    packages
}

/// Installs `packages`, refreshing apt's lists if they do not know them. Never removes another package to make room.
pub(crate) fn install(workspace: &Workspace, privilege: Privilege, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !have_apt() {
        bail!("cannot install {list}: this machine has no apt-get; install what they contain by other means");
    }
    privilege.obtain(&format!("to install Debian packages: {list}"))?;
    let title = format!("installing {list}");
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend_from_slice(packages);
    if step::run(workspace, "apt-get-install", &title, &mut apt(privilege, &arguments)).is_ok() {
        return Ok(());
    }
    step::run(
        workspace,
        "apt-get-update",
        "refreshing apt's lists",
        &mut apt(privilege, &["update"]),
    )?;
    step::run(workspace, "apt-get-install", &title, &mut apt(privilege, &arguments))
}

/// An sshd that the tests may start on a port of their own: Debian's if openssh-server is installed, otherwise ours.
pub(crate) fn sshd(workspace: &Workspace) -> Option<PathBuf> {
    [PathBuf::from(SYSTEM_SSHD), unpacked_sshd(workspace)]
        .into_iter()
        .find(|path| path.is_file())
}

/// Unpacks openssh-server below the target folder. Installing the package would start an SSH server on this machine, and open its
/// port again at every boot.
pub(crate) fn unpack_sshd(workspace: &Workspace, privilege: Privilege) -> Result<()> {
    install(workspace, privilege, &SSHD_LIBRARIES)?;
    let folder = workspace.tools().join("openssh");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut download = Command::new("apt-get");
    download
        .args(["download", "openssh-server", "openssh-sftp-server"])
        .current_dir(&folder);
    step::run(
        workspace,
        "openssh-download",
        "downloading openssh-server (to unpack, not to install)",
        &mut download,
    )?;
    for package in packages_in(&folder)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&package).arg(&folder);
        step::run(workspace, "openssh-unpack", "unpacking openssh-server", &mut unpack)?;
        fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    }
    Ok(())
}

fn unpacked_sshd(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("openssh/usr/sbin/sshd")
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            packages.push(path);
        }
    }
    Ok(packages)
}

/// An apt-get that waits for another one.
pub(crate) fn apt(privilege: Privilege, arguments: &[&str]) -> Command {
    let mut command = privilege.command("apt-get", &[("DEBIAN_FRONTEND", OsStr::new("noninteractive"))]);
    // Somebody else's apt may be running; two minutes are enough for an unattended upgrade to let go.
    command.args(["-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command
}
