//! Disk images for guests: a Debian 12 with its own kernel, made once and kept under target/vm, and small images with files to carry in.
//!
//! Never boots anything (that is [`crate::guest`]) and never writes outside the target folder. The packages come from the mirror this
//! machine's own apt is configured with.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    packages::apt,
    privilege::Privilege,
    step,
    workspace::{Workspace, find_program},
};

/// Release of the guest: its kernel is 6.1, the oldest that is supported, without tcx.
const RELEASE: &str = "bookworm";
/// glibc of [`RELEASE`]; a program built against a newer one may not start there.
pub(crate) const GLIBC: (u32, u32) = (2, 36);
/// Beyond debootstrap's minbase.
const PACKAGES: [&str; 14] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",
    "linux-image-amd64",
    "kmod",
    "iproute2",
    "ethtool",
    "bpftool",
    "e2fsprogs",
    "openssh-server",
    "openssh-client",
    "procps",
    "util-linux",
];
/// Size of the root file system; sparse, so that only what is used takes room.
const ROOT_SIZE: &str = "3G";

/// Label of the image with what the guest is to run.
pub(crate) const PAYLOAD_LABEL: &str = "vmst-payload";
/// Where the guest mounts it.
pub(crate) const PAYLOAD_FOLDER: &str = "/opt/vmstation-tests";

/// Runs what the payload brings, once the guest is up, and switches it off. Output: second serial port.
const UNIT: &str = "[Unit]
Description=Run what the payload image brings, then power off
After=multi-user.target systemd-logind.service
ConditionPathExists=/dev/disk/by-label/vmst-payload

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/vmstation-payload
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=graphical.target
";

const PAYLOAD_SCRIPT: &str = "#!/bin/sh
stty -F /dev/ttyS1 raw -echo
mkdir -p /opt/vmstation-tests
mount -o ro LABEL=vmst-payload /opt/vmstation-tests && /opt/vmstation-tests/run >/dev/ttyS1 2>&1 </dev/null
sync
systemctl poweroff --force
";

/// Turns debootstrap's tree into the guest: arguments are the tree and the folder with the unit and the script.
const CUSTOMIZE: &str = r#"set -eu
tree=$1 files=$2
install -m 0644 "$files/vmstation-payload.service" "$tree/etc/systemd/system/vmstation-payload.service"
install -m 0755 "$files/vmstation-payload" "$tree/usr/local/sbin/vmstation-payload"
echo guest >"$tree/etc/hostname"
echo '127.0.0.1 localhost guest' >"$tree/etc/hosts"
echo '/dev/vda / ext4 defaults 0 0' >"$tree/etc/fstab"
chroot "$tree" systemctl --quiet enable vmstation-payload.service
chroot "$tree" systemctl --quiet set-default graphical.target
chroot "$tree" systemctl --quiet mask ssh.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service e2scrub_all.timer fstrim.timer
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
"#;

/// Packs the tree: arguments are the tree, the folder for the results, the size and mke2fs.
const PACK: &str = r#"set -eu
tree=$1 out=$2 size=$3 mke2fs=$4
cp "$tree"/boot/vmlinuz-* "$out/vmlinuz"
cp "$tree"/boot/initrd.img-* "$out/initrd"
"$mke2fs" -q -F -t ext4 -L root -d "$tree" "$out/root.ext4" "$size"
chmod 0644 "$out/vmlinuz" "$out/initrd" "$out/root.ext4"
rm -rf --one-file-system "$tree"
"#;

/// A root file system that boots. Guests get it as a snapshot: it never changes.
pub(crate) struct RootImage {
    pub(crate) disk: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// Makes the root image, or finds the one made from the same recipe.
pub(crate) fn root(workspace: &Workspace) -> Result<RootImage> {
    let folder = workspace.target.join("vm/root");
    let image = RootImage {
        disk: folder.join("root.ext4"),
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd"),
    };
    let made_from = folder.join("recipe");
    if fs::read_to_string(&made_from).is_ok_and(|text| text == recipe()) {
        return Ok(image);
    }
    let privilege = Privilege::find();
    privilege.obtain("to make the guest's root file system (debootstrap unpacks packages as root)")?;
    let as_root = |script: &str, arguments: &[&OsStr]| {
        let mut command = privilege.command("sh", &[]);
        command.args(["-c", script, "sh"]).args(arguments);
        command
    };

    let work = workspace.target.join("vm/work");
    let (tree, files) = (work.join("tree"), work.join("files"));
    let mut remove = as_root(
        "rm -rf --one-file-system \"$@\"",
        &[work.as_os_str(), folder.as_os_str()],
    );
    step::run(workspace, "vm-clean", "removing an outdated guest", &mut remove)?;
    for path in [&files, &folder] {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    }
    for (name, text) in [
        ("vmstation-payload.service", UNIT),
        ("vmstation-payload", PAYLOAD_SCRIPT),
    ] {
        fs::write(files.join(name), text).with_context(|| format!("write {name}"))?;
    }

    let mirror = mirror(workspace, privilege)?;
    let include = format!("--include={}", PACKAGES.join(","));
    let proxy = proxy();
    let variables: Vec<_> = proxy.iter().map(|value| ("http_proxy", value.as_os_str())).collect();
    let mut bootstrap = privilege.command(program("debootstrap")?, &variables);
    bootstrap
        .args(["--variant=minbase", &include, RELEASE])
        .arg(&tree)
        .arg(mirror);
    step::run(workspace, "vm-debootstrap", "making a Debian 12 guest", &mut bootstrap)?;
    let mut customize = as_root(CUSTOMIZE, &[tree.as_os_str(), files.as_os_str()]);
    step::run(workspace, "vm-customize", "preparing the guest", &mut customize)?;
    let mke2fs = program("mke2fs")?;
    let arguments = [
        tree.as_os_str(),
        folder.as_os_str(),
        OsStr::new(ROOT_SIZE),
        mke2fs.as_os_str(),
    ];
    step::run(
        workspace,
        "vm-pack",
        "packing the guest's disk",
        &mut as_root(PACK, &arguments),
    )?;
    fs::write(&made_from, recipe()).with_context(|| format!("write {}", made_from.display()))?;
    Ok(image)
}

/// A folder with what an image is to carry.
pub(crate) struct Payload<'a> {
    folder: &'a Path,
}

impl<'a> Payload<'a> {
    /// Empties the folder, or makes it.
    pub(crate) fn new(folder: &'a Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Copies a file to this place in it.
    pub(crate) fn copy(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let to = self.folder.join(to);
        fs::create_dir_all(to.parent().unwrap_or(self.folder))
            .with_context(|| format!("make a folder for {}", to.display()))?;
        fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// Copies the files of a folder; folders in it are left out.
    pub(crate) fn copy_files(&mut self, from: &Path, to: &str) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let entry = entry.with_context(|| format!("list {}", from.display()))?;
            if entry.path().is_file() {
                self.copy(&entry.path(), Path::new(to).join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Writes an executable file.
    pub(crate) fn script(&mut self, name: &str, text: &str) -> Result<()> {
        let script = self.folder.join(name);
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", script.display()))
    }
}

/// Makes an image that holds a copy of `folder`, owned by root. `step` names its log.
pub(crate) fn payload(workspace: &Workspace, step: &str, folder: &Path, disk: &Path) -> Result<()> {
    let mebibytes = size_of_files(folder)? * 5 / 4 / (1 << 20) + 64;
    let mut command = Command::new(program("mke2fs")?);
    command
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            PAYLOAD_LABEL,
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .arg(folder)
        .arg(disk)
        .arg(format!("{mebibytes}M"));
    step::run(workspace, step, "packing the tests", &mut command)
}

/// Everything the root image depends on. Kept beside it: another text, another image.
fn recipe() -> String {
    [
        RELEASE,
        &PACKAGES.join(" "),
        ROOT_SIZE,
        UNIT,
        PAYLOAD_SCRIPT,
        CUSTOMIZE,
        PACK,
    ]
    .join("\n---\n")
}

/// The Debian mirror this machine's apt uses.
fn mirror(workspace: &Workspace, privilege: Privilege) -> Result<String> {
    if let Some(mirror) = configured_mirror() {
        return Ok(mirror);
    }
    // apt knows a source's origin only after it has read the source once.
    step::run(
        workspace,
        "apt-get-update",
        "refreshing apt's lists",
        &mut apt(privilege, &["update"]),
    )?;
    match configured_mirror() {
        Some(mirror) => Ok(mirror),
        None => bail!("apt on this machine has no Debian mirror; the guest can only be made on Debian"),
    }
}

fn configured_mirror() -> Option<String> {
    let filters = [
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
        "Component: main",
    ];
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]).args(filters);
    let targets = step::answer(&mut command)?;
    targets.lines().find(|line| line.contains(':')).map(String::from)
}

/// The proxy for http that apt or the environment names: debootstrap does not ask apt.
fn proxy() -> Option<OsString> {
    let configured =
        step::answer(Command::new("apt-config").args(["dump", "--format", "%v%n", "Acquire::http::Proxy"]));
    match configured.as_deref().map(str::trim) {
        Some(proxy) if !proxy.is_empty() && proxy != "DIRECT" => Some(proxy.into()),
        Some(_) | None => std::env::var_os("http_proxy"),
    }
}

fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("{name} is missing; `cargo xtask setup` installs it"))
}

fn size_of_files(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let metadata = entry
            .metadata()
            .with_context(|| format!("look at {}", entry.path().display()))?;
        bytes += if metadata.is_dir() {
            size_of_files(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_holds_all_that_shapes_the_image() {
        let recipe = recipe();
        for part in PACKAGES
            .iter()
            .chain([&RELEASE, &UNIT, &PAYLOAD_SCRIPT, &CUSTOMIZE, &PACK])
        {
            assert!(recipe.contains(part), "{part}");
        }
    }

    #[test]
    fn unit_and_script_use_the_label_and_folder_of_the_payload() {
        assert!(UNIT.contains(PAYLOAD_LABEL) && PAYLOAD_SCRIPT.contains(PAYLOAD_LABEL));
        assert!(PAYLOAD_SCRIPT.contains(PAYLOAD_FOLDER));
    }

    #[test]
    fn sizes_add_up_through_folders() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/one"), [0; 10]).unwrap();
        fs::write(folder.path().join("two"), [0; 5]).unwrap();
        assert_eq!(size_of_files(folder.path()).unwrap(), 15);
    }
}
