//! The SSH server's processes, from `/proc`. Owns nothing; a process that ends while it is looked at simply is not there.
//!
//! Reads the folders of other users' processes: needs root, or CAP_SYS_PTRACE.

use std::{fs, io, path::Path};

use procfs::process::{self, FDTarget};

use super::evidence::{Login, Process, Role, logind_scope};

/// Where processes are looked up.
pub(super) trait Processes {
    /// Every process whose name begins with `sshd`.
    fn servers(&self) -> io::Result<Vec<u32>>;
    /// What the process says it is; [`Role::Outside`] if it is gone.
    fn role(&self, pid: u32) -> Role;
    /// The whole process; `None` if it is gone.
    fn look(&self, pid: u32) -> Option<Process>;
    /// Inodes of the sockets it holds; none if it is gone or may not be read.
    fn sockets(&self, pid: u32) -> Vec<u64>;
}

/// The processes of this host (of this pid namespace).
#[derive(Debug)]
pub(super) struct HostProcesses;

impl Processes for HostProcesses {
    fn servers(&self) -> io::Result<Vec<u32>> {
        let mut servers = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if read(pid, "comm").is_some_and(|comm| comm.starts_with("sshd")) {
                servers.push(pid);
            }
        }
        Ok(servers)
    }

    fn role(&self, pid: u32) -> Role {
        let comm = read(pid, "comm").unwrap_or_default();
        let title = read(pid, "cmdline").unwrap_or_default();
        Role::parse(comm.trim_end(), title.split('\0').next().unwrap_or_default())
    }

    fn look(&self, pid: u32) -> Option<Process> {
        let role = self.role(pid);
        // The user before the root folder: the network child changes its root first, and must never show its user with the old root.
        let status = read(pid, "status")?;
        let uid = field(&status, "Uid:")?;
        let chrooted = fs::read_link(format!("/proc/{pid}/root")).map_or(true, |root| root != Path::new("/"));
        Some(Process {
            parent: field(&status, "PPid:")?,
            role,
            uid,
            chrooted,
            login: Login {
                // Unset is (u32)-1: kernel/audit.h, AUDIT_SID_UNSET.
                audit: read(pid, "sessionid")
                    .and_then(|id| id.trim().parse().ok())
                    .filter(|&id| id != u32::MAX),
                scope: read(pid, "cgroup").and_then(|cgroup| logind_scope(&cgroup)),
            },
        })
    }

    fn sockets(&self, pid: u32) -> Vec<u64> {
        let Ok(process) = i32::try_from(pid).map_err(io::Error::other).and_then(open) else {
            return Vec::new();
        };
        let Ok(fds) = process.fd() else {
            return Vec::new();
        };
        fds.flatten()
            .filter_map(|fd| {
                if let FDTarget::Socket(inode) = fd.target {
                    Some(inode)
                } else {
                    None
                }
            })
            .collect()
    }
}

fn open(pid: i32) -> io::Result<process::Process> {
    process::Process::new(pid).map_err(io::Error::other)
}

/// `/proc/PID/FILE`; `None` if the process is gone or the file may not be read. Titles can be any bytes.
fn read(pid: u32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// First number of a line of `/proc/PID/status`: the parent, or the real user id.
fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_itself() {
        let own = std::process::id();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener))).unwrap();
        let process = HostProcesses.look(own).unwrap();
        assert_eq!(process.parent, std::os::unix::process::parent_id());
        assert_eq!(process.uid, nix::unistd::getuid().as_raw());
        assert_eq!(process.role, Role::Outside);
        assert!(!process.chrooted);
        assert!(
            HostProcesses
                .sockets(own)
                .contains(&std::os::unix::fs::MetadataExt::ino(&inode))
        );
        assert!(!HostProcesses.servers().unwrap().contains(&own));
    }

    #[test]
    fn a_process_that_is_gone_is_not_there() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(HostProcesses.look(pid), None);
        assert_eq!(HostProcesses.role(pid), Role::Outside);
        assert!(HostProcesses.sockets(pid).is_empty());
    }
}
