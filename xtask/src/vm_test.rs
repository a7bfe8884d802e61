//! `cargo xtask vm-test`: the kernel tests on another kernel, in a guest; and what only a machine that suspends can show, in two more.
//!
//! The first guest runs the same executables as `cargo xtask test` and reports through a serial port; a report without its end counts as
//! a failure. The others are driven from here ([`crate::sleep_guest`]). All run at the same time.

use std::{
    fmt::Write as _,
    fs::File,
    io::{IsTerminal, Read, stderr},
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf, elf,
    guest::Guest,
    image::{self, GLIBC, PAYLOAD_FOLDER, Payload, RootImage},
    setup, sleep_guest,
    step::{self, Progress},
    suites::{self, Suite},
    tally::{self, Tally, Transcript},
    workspace::Workspace,
};

/// How often the guest is looked at.
const POLL: Duration = Duration::from_millis(200);
/// A guest that ends no line for so long hangs: no test takes half of it.
const SILENCE: Duration = Duration::from_secs(600);
/// Statically linked, so it runs on any glibc.
const MUSL: &str = "x86_64-unknown-linux-musl";
/// Line before the output of a suite; its name follows.
const SUITE: &str = "@@ suite ";
/// Line after it; its exit code follows.
const EXIT: &str = "@@ exit ";
/// The trial of the suite `agent` for a kernel in lockdown.
const LOCKED_DOWN: &str = "e1_lockdown_costs_only_its_own_signal";
/// Line after all suites.
const END: &str = "@@ end";

/// Runs the tests that need another kernel, or a machine that suspends, in Debian 12 guests with kernel 6.1.
///
/// Boots a guest under qemu (emulated, so it needs no /dev/kvm), starts the suites `kernel`, `ssh` and `agent` in it as root, and prints
/// what they print. At the same time it boots two more, which really suspend, and runs `sleep`, `overnight` and `abort` on this machine, as
/// the user who calls: each installs the agent in its guest and drives it through qemu; its lines begin with its name. What wakes the guest
/// over a LAN needs root, and is ignored without. The last line is the sum.
///
/// The guests' network cards are connected to nothing but ports of this machine's loopback and, in the trials that need root, a network
/// namespace. The guest is made once with
/// debootstrap, from the mirror apt is configured with, and kept in target/vm/root until its recipe changes: only that step needs root.
///
/// A guest whose suites have no test that is asked for is not booted. Whatever happens, qemu is ended: at the latest after --deadline.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains one of these
    filters: Vec<String>,
    /// Minutes after which the guests are killed and everything unfinished counts as failed
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline: u64,
}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    build_ebpf::build(workspace)?;
    if let Some(why) = setup::guest_tools(workspace)? {
        bail!("vm-test cannot run: {why}");
    }
    let suites = guest_suites(workspace)?;
    let wanted = |suite: &&Suite| wants(suite, &arguments.filters).unwrap_or(true);
    let inside: Vec<Suite> = suites
        .iter()
        .filter(|suite| suite.needs_root && !SAME_ON_ANY_HOST.contains(&suite.name.as_str()))
        .filter(wanted)
        .cloned()
        .collect();
    let of_guest = |names: &[&str]| -> Vec<&Suite> {
        let named = names
            .iter()
            .filter_map(|name| suites.iter().find(|suite| suite.name == *name));
        named.filter(wanted).collect()
    };
    let driven: Vec<Vec<&Suite>> = sleep_guest::GUESTS
        .iter()
        .map(|names| of_guest(names))
        .filter(|suites| !suites.is_empty())
        .collect();
    if inside.is_empty() && driven.is_empty() {
        bail!("no test of the guests has a name like that");
    }
    let root = image::root(workspace)?;
    let deadline = Duration::from_secs(arguments.deadline * 60);
    let outcomes = thread::scope(|scope| {
        let others: Vec<_> = driven
            .into_iter()
            .map(|suites| {
                let root = &root;
                scope.spawn(move || sleep_guest::run(workspace, root, &suites, &arguments.filters, deadline))
            })
            .collect();
        let first = if inside.is_empty() {
            Ok((Tally::default(), vec![]))
        } else {
            in_guest(workspace, &root, &inside, &arguments.filters, deadline)
        };
        let others = others.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| bail!("the thread of a guest that sleeps panicked"))
        });
        [first].into_iter().chain(others).collect::<Vec<_>>()
    });
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    for outcome in outcomes {
        let (of_guest, failures_of_guest) = outcome?;
        tally += of_guest;
        failures.extend(failures_of_guest);
    }
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!("{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether a suite has a test that is asked for.
fn wants(suite: &Suite, filters: &[String]) -> Result<bool> {
    if filters.is_empty() {
        return Ok(true);
    }
    let mut list = Command::new(&suite.executable);
    let tests = step::output(list.arg("--list").current_dir(&suite.folder))?;
    let tests = String::from_utf8_lossy(&tests.stdout);
    let tests = tally::listed(&tests);
    Ok(tests
        .iter()
        .any(|test| filters.iter().any(|filter| test.contains(filter.as_str()))))
}

/// Runs suites inside a guest.
fn in_guest(
    workspace: &Workspace,
    root: &RootImage,
    suites: &[Suite],
    filters: &[String],
    deadline: Duration,
) -> Result<(Tally, Vec<String>)> {
    let folder = workspace.target.join("vm/run");
    let staging = folder.join("payload");
    stage(workspace, suites, filters, &staging)?;
    let disk = folder.join("payload.ext4");
    image::payload(workspace, "vm-payload", &staging, &disk)?;
    let guest = Guest {
        root,
        disks: vec![disk],
        console: folder.join("console.log"),
        port: folder.join("report.log"),
        complaints: folder.join("qemu.log"),
        memory_mib: 2048,
        cpus: 2,
        // In parallel, its kernel hung now and then: one CPU waited for the other, which took no interrupt any more.
        cpus_in_parallel: false,
        controls: None,
    };
    let report = follow(&guest, deadline)?;
    if !report.ended {
        println!("\nqemu said:\n{}", step::tail(&guest.complaints));
        println!("\nconsole of the guest, last lines:\n{}", step::tail(&guest.console));
    }
    Ok((report.tally, report.failures))
}

/// Suites for the guests and the programs beside them, built so that they start there.
fn guest_suites(workspace: &Workspace) -> Result<Vec<Suite>> {
    let suites = suites::build(workspace, None)?;
    let Some(newest) = suites
        .iter()
        .filter(|suite| suite.needs_root)
        .filter_map(|suite| elf::newest_glibc(&suite.executable))
        .max()
    else {
        return Ok(suites);
    };
    if newest <= GLIBC {
        return Ok(suites);
    }
    let mut query = workspace.rustc();
    query.args(["--print", "target-libdir", "--target", MUSL]);
    if step::answer(&mut query).is_some_and(|folder| Path::new(folder.trim()).is_dir()) {
        return suites::build(workspace, Some(MUSL));
    }
    bail!(
        "the tests are linked with glibc {}.{} and the guest has {}.{}: `rustup target add {MUSL}`, then they are linked statically",
        newest.0,
        newest.1,
        GLIBC.0,
        GLIBC.1
    )
}

/// Copies what the guest runs, in the layout of the target folder: tests look for the agent beside themselves.
fn stage(workspace: &Workspace, suites: &[Suite], filters: &[String], staging: &Path) -> Result<()> {
    let mut payload = Payload::new(staging)?;
    payload.copy(&workspace.probes(), "target/ebpf/vmstation-probes")?;
    for suite in suites {
        let file = suite.executable.file_name().context("a test without a name")?;
        payload.copy(&suite.executable, Path::new("target/debug/deps").join(file))?;
    }
    let profile = suites.first().context("no tests")?.profile()?;
    for program in ["vmstation-autosleep", "vmstation-autosleep-ctl"] {
        payload.copy(&profile.join(program), Path::new("target/debug").join(program))?;
    }
    payload.script("run", &run_script(suites, filters)?)
}

/// What the guest runs; its output goes to the second serial port.
fn run_script(suites: &[Suite], filters: &[String]) -> Result<String> {
    let mut script = format!(
        "#!/bin/sh\nexport HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin VMSTATION_SSHD=/usr/sbin/sshd VMSTATION_GUEST=1\n\
         cd {PAYLOAD_FOLDER}\nuname -srm\n"
    );
    let everything = [String::new()];
    let filters = if filters.is_empty() { &everything } else { filters };
    for suite in suites {
        for filter in filters {
            write_run(&mut script, suite, filter)?;
        }
    }
    if let Some(agent) = suites.iter().find(|suite| suite.name == "agent")
        && filters.iter().any(|filter| LOCKED_DOWN.contains(filter.as_str()))
    {
        // Last: only a boot ends it.
        writeln!(
            script,
            "mount -t securityfs securityfs /sys/kernel/security 2>/dev/null"
        )?;
        writeln!(script, "echo confidentiality >/sys/kernel/security/lockdown")?;
        write_run(&mut script, agent, LOCKED_DOWN)?;
    }
    writeln!(script, "echo '{END}'")?;
    Ok(script)
}

/// Suites with nothing that another kernel changes: packets, and the wake server.
const SAME_ON_ANY_HOST: [&str; 2] = ["wake", "wire"];

/// Parts of the names of tests that no kernel changes: files, configuration, HTTP. An emulated CPU takes long for them.
const SAME_ON_ANY_KERNEL: &str = "--skip f2_ --skip f3_ --skip f4_ --skip f5_ --skip h5_ --skip c1_ --skip notify_test \
    --skip hold_and_disable --skip wake_server --skip the_report_of_a_sleep";

fn write_run(script: &mut String, suite: &Suite, filter: &str) -> Result<()> {
    let file = suite.executable.file_name().context("a test without a name")?.display();
    let name = &suite.name;
    let which = if filter.is_empty() {
        SAME_ON_ANY_KERNEL.to_owned()
    } else {
        format!("'{}'", filter.replace('\'', r"'\''"))
    };
    writeln!(
        script,
        "echo '{SUITE}{name}'\ntarget/debug/deps/{file} --color=never {which}\necho \"{EXIT}$?\""
    )?;
    Ok(())
}

/// Boots the guest and shows its report as it comes, until it powers off or time is up.
fn follow(guest: &Guest<'_>, deadline: Duration) -> Result<Report> {
    let mut running = guest.start()?;
    let mut progress = Some(Progress::new("booting the guest"));
    let mut source = File::open(&guest.port).with_context(|| format!("read {}", guest.port.display()))?;
    let mut report = Report::default();
    let mut pending = Vec::new();
    let mut heard = running.age();
    loop {
        let ended = running.ended()?.is_some();
        source.read_to_end(&mut pending).context("read the guest's report")?;
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            if let Some(progress) = progress.take() {
                progress.finish("up");
            }
            heard = running.age();
            let line: Vec<u8> = pending.drain(..=end).collect();
            report.line(String::from_utf8_lossy(&line).trim_end());
        }
        if report.ended || ended {
            break;
        }
        if running.age() > deadline {
            report.interruption = Some(format!("killed after {} minutes", deadline.as_secs() / 60));
            break;
        }
        if running.age().saturating_sub(heard) > SILENCE {
            report.interruption = Some(format!("it said nothing for {} minutes", SILENCE.as_secs() / 60));
            break;
        }
        if let Some(progress) = &mut progress {
            progress.tick();
        }
        thread::sleep(POLL);
    }
    if let Some(progress) = progress {
        progress.finish("never came up");
    }
    if stderr().is_terminal() || !report.ended {
        eprintln!("the guest ran for {} s", running.age().as_secs());
    }
    Ok(report.close())
}

/// What the guest said.
#[derive(Default)]
struct Report {
    tally: Tally,
    failures: Vec<String>,
    /// The suite that is running, and what it printed.
    open: Option<(String, Transcript)>,
    /// Whether the guest came to the end of its script.
    ended: bool,
    /// Why we did not let it come there.
    interruption: Option<String>,
}

impl Report {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(SUITE) {
            println!("\n-- {name} (guest)");
            self.open = Some((name.into(), Transcript::default()));
        } else if let Some(code) = line.strip_prefix(EXIT) {
            self.finish_suite(code.parse().ok());
        } else if line == END {
            self.ended = true;
        } else {
            println!("{line}");
            if let Some((_, transcript)) = &mut self.open {
                transcript.line(line);
            }
        }
    }

    fn finish_suite(&mut self, exit: Option<i32>) {
        if let Some((name, transcript)) = self.open.take() {
            let transcript = transcript.finish(exit);
            self.tally += transcript.tally;
            self.failures
                .extend(transcript.failures.into_iter().map(|test| format!("{name}: {test}")));
        }
    }

    /// No more lines will come.
    fn close(mut self) -> Self {
        self.finish_suite(None);
        if !self.ended {
            self.tally.failed += 1;
            let why = self.interruption.take().unwrap_or_else(|| "it stopped".into());
            self.failures.push(format!("guest: did not finish its tests, {why}"));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines() {
            report.line(line);
        }
        report.close()
    }

    const OK: &str = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn a_report_with_its_end_is_taken_at_its_word() {
        let report = report(&format!("Linux 6.1\n@@ suite kernel\n{OK}\n@@ exit 0\n@@ end\n"));
        assert_eq!(
            report.tally,
            Tally {
                passed: 2,
                failed: 0,
                skipped: 1
            }
        );
        assert!(report.failures.is_empty());
    }

    #[test]
    fn a_guest_that_stops_half_way_failed() {
        let cut = report(&format!(
            "@@ suite kernel\n{OK}\n@@ exit 0\n@@ suite ssh\ntest a ... ok\n"
        ));
        assert_eq!(
            cut.tally,
            Tally {
                passed: 2,
                failed: 2,
                skipped: 1
            },
            "the open suite and the missing end"
        );
        assert_eq!(report("").tally.failed, 1);
    }

    #[test]
    fn a_suite_that_dies_in_the_guest_failed() {
        let died = report("@@ suite kernel\nrunning 3 tests\n@@ exit 139\n@@ end\n");
        assert_eq!(died.tally.failed, 1);
    }

    #[test]
    fn the_script_names_every_suite_and_quotes_the_filter() {
        let suite = Suite {
            name: "kernel".into(),
            executable: "/t/debug/deps/kernel-1".into(),
            folder: "/".into(),
            needs_root: true,
        };
        let script = run_script(&[suite], &["it's".into()]).unwrap();
        assert!(
            script.contains(r"target/debug/deps/kernel-1 --color=never 'it'\''s'"),
            "{script}"
        );
        assert!(script.ends_with("echo '@@ end'\n"));
    }
}
