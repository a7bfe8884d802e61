//! Where cgroup v2 is mounted, and the cgroups in it. Looks at folders and reads nothing of what they count; holds no state.

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::process::Process;

/// Most cgroups that are visited.
const MAX_VISITED: usize = 4096;

/// Folder of the root of cgroup v2: `/sys/fs/cgroup` on most hosts, `/sys/fs/cgroup/unified` where version 1 is mounted beside it.
///
/// # Errors
/// Why there is none, in one line.
pub fn root() -> Result<PathBuf, String> {
    const LIST: &str = "/proc/self/mountinfo";
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| format!("read {LIST}: {error}"))?;
    let mounted = mounts.iter().rev().filter(|mount| mount.fs_type == "cgroup2");
    // Another file system may hide one that is listed.
    let mut visible = mounted.filter(|mount| {
        statfs(&mount.mount_point).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
            && mount.root == "/"
    });
    let root = visible.next().map(|mount| mount.mount_point.clone());
    root.ok_or_else(|| {
        format!("no cgroup v2 is mounted ({LIST}): mount it with `mount -t cgroup2 none /sys/fs/cgroup`")
    })
}

/// A cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its folder.
    pub folder: PathBuf,
    /// Path below the root, without a slash at either end; empty for the root.
    pub path: String,
    /// Its id, which is the inode number of its folder (kernfs; on 32-bit hosts the lower half of it).
    pub id: u64,
    /// Whether there are cgroups below.
    pub is_parent: bool,
}

/// Every cgroup of `root`, itself included, those near to it first; 4096 at most. One that goes away meanwhile is left out.
pub fn all(root: &Path) -> Vec<Cgroup> {
    down_to(root, usize::MAX)
}

/// The same for those at most `deepest` below `root`.
pub fn down_to(root: &Path, deepest: usize) -> Vec<Cgroup> {
    let mut found = Vec::new();
    let mut left = VecDeque::from([(root.to_path_buf(), 0)]);
    while found.len() < MAX_VISITED
        && let Some((folder, depth)) = left.pop_front()
    {
        let (Ok(about), Ok(entries)) = (fs::metadata(&folder), fs::read_dir(&folder)) else {
            continue;
        };
        let below: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| (entry.path(), depth + 1))
            .collect();
        let is_parent = !below.is_empty();
        if depth < deepest {
            left.extend(below);
        }
        found.push(Cgroup {
            path: folder.strip_prefix(root).unwrap_or(&folder).display().to_string(),
            id: about.ino(),
            is_parent,
            folder,
        });
    }
    found
}

/// CPU time used so far by the cgroup of this `cpu.stat` and all below it: `usage_usec` (Documentation/admin-guide/cgroup-v2.rst).
/// `None`: it has none.
#[must_use]
pub fn cpu_used(stat: &str) -> Option<Duration> {
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(micros.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_cpu_time() {
        assert_eq!(
            cpu_used("usage_usec 7000\nuser_usec 1\n"),
            Some(Duration::from_millis(7))
        );
        assert_eq!(cpu_used("usage_usec many\n"), None);
        assert_eq!(cpu_used("user_usec 1\n"), None);
    }

    #[test]
    fn walks_from_the_root_down() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a.slice/b.service")).unwrap();
        fs::write(root.path().join("a.slice/cpu.stat"), "").unwrap();
        let found = all(root.path());
        let paths: Vec<_> = found
            .iter()
            .map(|cgroup| (cgroup.path.as_str(), cgroup.is_parent))
            .collect();
        assert_eq!(paths, [("", true), ("a.slice", true), ("a.slice/b.service", false)]);
        assert_eq!(down_to(root.path(), 1), found[..2]);
        let folder = fs::metadata(root.path().join("a.slice/b.service")).unwrap();
        assert_eq!(found[2].id, folder.ino());
        assert_eq!(all(&root.path().join("gone")), []);
    }
}
