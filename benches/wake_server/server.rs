//! A wake server of the release build on a host of the run, with a registry of as many nodes as are wanted, and what it uses.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use vmstation_protocol::{MacAddr, NodeName};

use crate::lan::Host;

pub(crate) const TOKEN: &str = "a-token-of-operators";
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Pause between two looks at a server that starts or comes to rest.
const LOOK: Duration = Duration::from_millis(500);
/// Looks until that is given up.
const LOOKS: usize = 60;

/// Who is in the registry: the first ones have the role `storage`, and the others are workers.
pub(crate) struct Nodes {
    count: u16,
    storage: u16,
}

impl Nodes {
    pub(crate) fn new(count: usize, storage: usize) -> Self {
        let number = |count: usize| u16::try_from(count).expect("a number of nodes");
        Self {
            count: number(count),
            storage: number(storage),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = NodeName> {
        (0..self.count).map(|number| format!("node-{number:05}").parse().expect("a name"))
    }

    pub(crate) fn macs(&self) -> impl Iterator<Item = MacAddr> {
        (0..self.count).map(mac)
    }

    pub(crate) fn storage(&self) -> impl Iterator<Item = MacAddr> {
        (0..self.storage).map(mac)
    }

    fn toml(&self) -> String {
        let node = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let role = if number < self.storage { "storage" } else { "worker" };
            let address = Ipv4Addr::new(10, 1, high, low);
            format!(
                "[[node]]\nname = \"node-{number:05}\"\nrole = \"{role}\"\nmac = \"{}\"\naddress = \"{address}\"\n",
                mac(number)
            )
        };
        (0..self.count).map(node).collect()
    }
}

pub(crate) fn mac(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr::new([2, 0, 0, 1, high, low]).expect("a card's address")
}

/// It ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    _folder: tempfile::TempDir,
}

/// What a process has used until now.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// CPU time of all its threads, of those that have ended as well.
    pub(crate) cpu: Duration,
    /// Bytes.
    pub(crate) resident: u64,
    /// Voluntary context switches of each of its threads.
    switches: BTreeMap<OsString, u64>,
    pub(crate) descriptors: usize,
}

impl Server {
    pub(crate) fn start(host: &Host, port: u16, nodes: &Nodes) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| -> Result<()> {
            fs::write(file(name), text)?;
            Ok(fs::set_permissions(file(name), fs::Permissions::from_mode(0o600))?)
        };
        write("token", TOKEN)?;
        write("secret", SECRET)?;
        write("nodes.toml", &nodes.toml())?;
        write(
            "wake-server.toml",
            &format!(
                "secret_file = {:?}\n[wake]\nstagger = \"0s\"\ndeadline = \"1h\"\nnode_interval = \"0s\"\nresend = [\"0s\", \"10m\"]\n\
                 [limits]\nrequests_per_minute = 1000000\nheader_timeout = \"1m\"\n",
                file("secret")
            ),
        )?;
        let mut command = Command::new(binary()?);
        command
            .args(["--config".as_ref(), file("wake-server.toml").as_os_str()])
            .arg("--listen")
            .arg(format!("0.0.0.0:{port}"))
            .args(["--registry".as_ref(), file("nodes.toml").as_os_str()])
            .args(["--token-file".as_ref(), file("token").as_os_str()])
            .args(["--state-dir".as_ref(), file("state").as_os_str()])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut server = Self {
            child: host.run(|| command.spawn()).context("start the server")?,
            _folder: folder,
        };
        for _ in 0..LOOKS {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            if host.run(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()) {
                return Ok(server);
            }
            thread::sleep(LOOK);
        }
        bail!("the server does not answer")
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut switches = BTreeMap::new();
        for thread in fs::read_dir(process.join("task"))? {
            let thread = thread?;
            let status = fs::read_to_string(thread.path().join("status"))?;
            switches.insert(thread.file_name(), field(&status, "voluntary_ctxt_switches:")?);
        }
        let clock = clock_getcpuclockid(Pid::from_raw(self.child.id().try_into()?))?;
        Ok(Usage {
            cpu: clock_gettime(clock)?.into(),
            resident: field(&fs::read_to_string(process.join("status"))?, "VmRSS:")? * 1024,
            switches,
            descriptors: fs::read_dir(process.join("fd"))?.count(),
        })
    }

    /// What it has used once it does nothing more: what a burst left to do, such as writes to the disk, is done.
    pub(crate) fn usage_once_settled(&self) -> Result<Usage> {
        let mut before = self.usage()?;
        for _ in 0..LOOKS {
            thread::sleep(LOOK);
            let usage = self.usage()?;
            if (usage.cpu - before.cpu) < LOOK / 1000 {
                return Ok(usage);
            }
            before = usage;
        }
        bail!("the server does not come to rest")
    }
}

impl Usage {
    /// Voluntary context switches since then, of the threads that lived through it.
    pub(crate) fn switches_since(&self, before: &Self) -> u64 {
        let of = |(thread, count): (&OsString, &u64)| Some(count - before.switches.get(thread)?);
        self.switches.iter().filter_map(of).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The number behind a name in a file of proc(5).
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

fn binary() -> Result<PathBuf> {
    let bench = std::env::current_exe()?;
    let profile = bench
        .parent()
        .and_then(Path::parent)
        .context("this binary has no folder")?;
    Ok(profile.join("vmstation-wake-server"))
}
