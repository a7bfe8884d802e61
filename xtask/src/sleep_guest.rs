//! The guests of `cargo xtask vm-test` that really suspend: each is driven by a suite that runs on this machine.
//!
//! Carries the programs, the unit and a root shell on a virtio port into the guest, and tells the suite by one variable where to reach
//! it. What is done with it is the suite's business. Ends both, whatever happens.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::unistd::mkdtemp;
use serde_json::json;

use crate::{
    guest::{Cable, Controls, Guest},
    image::{self, PAYLOAD_FOLDER, Payload, RootImage},
    privilege::Privilege,
    step::{self, Stopwatch},
    suites::Suite,
    supervise,
    tally::{Tally, Transcript},
    workspace::Workspace,
};

/// Names of the suites, by guest. Two guests take as long as all others together; `overnight` is short, and comes last in the one that is
/// through first.
pub(crate) const GUESTS: [&[&str]; 2] = [&["sleep", "overnight"], &["abort"]];
/// Tells the suite where the guest is.
const VARIABLE: &str = "VMSTATION_SLEEP_GUEST";

/// Leaves the boot as soon as it is over: a service that never ends would keep it from ending, and a guest that boots does not suspend.
const RUN: &str = "#!/bin/bash
cp /opt/vmstation-tests/channel /run/vmstation-channel
systemd-run --quiet --unit=vmstation-channel bash /run/vmstation-channel
systemctl stop --no-block vmstation-payload.service
sleep infinity
";

/// The root shell: for each line `ID SECONDS SCRIPT` on the port a line `ID STATUS OUTPUT`, script and output in base64.
const CHANNEL: &str = r#"port=/dev/virtio-ports/vmstation.channel
while :; do
    exec 3<>$port
    # Ends when the other side hangs up.
    while read -r id limit script <&3; do
        base64 -d <<<"$script" >/run/vmstation-channel.in
        timeout -k 5 "$limit" bash /run/vmstation-channel.in </dev/null >/run/vmstation-channel.out 2>&1 3>&-
        echo "$id $? $(base64 -w0 /run/vmstation-channel.out)" >&3
    done
    exec 3>&-
    sleep 0.2
done
"#;

/// Boots the guest, runs the suites against it, one after the other, and ends it. Returns what they counted, and the names of what failed.
pub(crate) fn run(
    workspace: &Workspace,
    root: &RootImage,
    suites: &[&Suite],
    filters: &[String],
    deadline: Duration,
) -> Result<(Tally, Vec<String>)> {
    let since = Stopwatch::start();
    let first = suites.first().context("a guest without a suite")?;
    let folder = workspace.target.join("vm").join(&first.name);
    let disk = payload(workspace, first, &folder)?;
    let sockets = Sockets::new()?;
    let controls = Controls {
        qmp: sockets.0.join("qmp"),
        channel: sockets.0.join("channel"),
        ssh_port: free_port()?,
        webhook_port: free_port()?,
        cable: Cable {
            guest: sockets.0.join("guest"),
            lan: sockets.0.join("lan"),
        },
    };
    let guest = Guest {
        root,
        disks: vec![disk],
        console: folder.join("console.log"),
        port: folder.join("report.log"),
        complaints: folder.join("qemu.log"),
        memory_mib: 1024,
        cpus: 2,
        cpus_in_parallel: true,
        controls: Some(&controls),
    };
    let mut running = guest.start()?;
    let description = json!({
        "qmp": controls.qmp,
        "channel": controls.channel,
        "ssh_port": controls.ssh_port,
        "webhook_port": controls.webhook_port,
        "cable": { "guest": controls.cable.guest, "lan": controls.cable.lan },
        "payload": PAYLOAD_FOLDER,
        "console": guest.console,
    });
    let description = OsString::from(description.to_string());
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let everything = [String::new()];
    let filters = if filters.is_empty() { &everything } else { filters };
    for (suite, filter) in suites
        .iter()
        .flat_map(|suite| filters.iter().map(move |filter| (suite, filter)))
    {
        let left = deadline.saturating_sub(since.elapsed());
        let transcript = follow(suite, filter, &description, left)?;
        tally += transcript.tally;
        failures.extend(
            transcript
                .failures
                .into_iter()
                .map(|test| format!("{}: {test}", suite.name)),
        );
    }
    if let Some(how) = running.ended()? {
        println!(
            "\nqemu ended before the suite did ({how}) and said:\n{}",
            step::tail(&guest.complaints)
        );
        println!(
            "\nconsole of the sleep guest, last lines:\n{}",
            step::tail(&guest.console)
        );
    }
    println!("{} | the guest ran for {} s", first.name, running.age().as_secs());
    Ok((tally, failures))
}

/// Makes the disk that brings the guest what it needs beyond Debian.
fn payload(workspace: &Workspace, suite: &Suite, folder: &Path) -> Result<PathBuf> {
    let staging = folder.join("payload");
    let mut payload = Payload::new(&staging)?;
    for program in [
        "vmstation-autosleep",
        "vmstation-autosleep-ctl",
        "vmstation-wake-server",
    ] {
        let to = Path::new("bin").join(program);
        payload.copy(&suite.profile()?.join(program), &to)?;
        // The guest copies them with an emulated CPU: what only a debugger reads would take it longer than all the rest.
        step::run(
            workspace,
            &format!("vm-{}-strip", suite.name),
            &format!("stripping {program}"),
            Command::new("strip").arg(staging.join(to)),
        )?;
    }
    payload.copy_files(&workspace.root.join("systemd"), "systemd")?;
    payload.script("channel", CHANNEL)?;
    payload.script("run", RUN)?;
    let disk = folder.join("payload.ext4");
    image::payload(workspace, &format!("vm-{}-payload", suite.name), &staging, &disk)?;
    Ok(disk)
}

/// Starts the suite and shows its output, each line with its name, until it ends or time is up.
fn follow(suite: &Suite, filter: &str, description: &OsString, left: Duration) -> Result<Transcript> {
    let mut command = supervise::command(Privilege::None, &[(VARIABLE, description)]);
    // Ends the suite and all it started, and by force what does not obey.
    command
        .args(["timeout", "--kill-after=10", &left.as_secs().max(1).to_string()])
        .arg(&suite.executable)
        .args(["--color=never", filter])
        .env("CARGO_MANIFEST_DIR", &suite.folder)
        .current_dir(&suite.folder);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the suite of the sleep guest")?;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("a child without the pipes it was given");
    };
    // Held open: the supervisor ends the suite when it is closed.
    let input = child.stdin.take();
    let mut transcript = Transcript::default();
    std::thread::scope(|scope| {
        scope.spawn(|| lines(errors, |line| println!("{} | {line}", suite.name)));
        lines(output, |line| {
            println!("{} | {line}", suite.name);
            transcript.line(line);
        });
    });
    let exit = child.wait().context("wait for the suite of the sleep guest")?;
    drop(input);
    Ok(transcript.finish(exit.code()))
}

fn lines(source: impl std::io::Read, mut each: impl FnMut(&str)) {
    for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
        each(&String::from_utf8_lossy(&line));
    }
}

/// A port of 127.0.0.1 that was free a moment ago; should somebody else take it, qemu or the suite says so and ends.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("find a free port of 127.0.0.1")?;
    Ok(listener.local_addr().context("find a free port of 127.0.0.1")?.port())
}

/// A folder for sockets: their paths must be short. Removed when dropped.
struct Sockets(PathBuf);

impl Sockets {
    fn new() -> Result<Self> {
        let folder = mkdtemp(&env::temp_dir().join("vmstation-vm-XXXXXX"));
        Ok(Self(folder.context("make a folder for qemu's sockets")?))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // What cannot be removed is a socket nobody listens on, in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
