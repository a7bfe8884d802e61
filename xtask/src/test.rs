//! `cargo xtask test`: every test of the workspace, those that need the kernel included.
//!
//! Never counts a test as passed that did not run.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf, packages,
    privilege::Privilege,
    pypi, setup,
    step::{self, Stopwatch},
    suites::{self, Suite},
    supervise,
    tally::{self, Tally, Transcript},
    workspace::Workspace,
};

/// How long a suite may take: seconds, as timeout(1) takes them.
const SUITE_LIMIT: &str = "600";
/// How long the output of a suite that has ended may stay open.
const LINGER: Duration = Duration::from_secs(5);
/// Suites whose tests wait for time to pass, most of the time: more of them at once than there are CPUs.
const MOSTLY_WAITING: [&str; 1] = ["coordination"];
/// Suites of the wake server that need no root, by what runs one after the other. They run beside the agent's: all wait for time to pass, and
/// none touches the host.
const BESIDE: [&[&str]; 2] = [
    &[
        "coordination",
        "election",
        "kube_api",
        "page",
        "vmstation_wake_server (lib)",
        "wake_http",
    ],
    &["takeover"],
];
/// Suites that need root and do not compare with what else the machine does: they do not wait for it to be quiet.
const MINDS_NOTHING: [&str; 2] = ["ssh", "wake"];
const POLL: Duration = Duration::from_millis(100);

/// Builds everything and runs all tests.
///
/// First the eBPF programs, then the programs, then the tests, all as the user who calls. The suites `kernel`, `ssh` and `agent` load
/// programs into the running kernel and make network namespaces: they are started as root, or with sudo if it can be asked. Without
/// root their tests are listed as not run, and counted as skipped. They touch nothing outside their own namespaces but loopback.
///
/// Suites of the wake server that need no root run beside those of the agent; their lines begin with their name. Suites that need root wait
/// for a `cargo xtask check` beside them to end.
///
/// All suites run, also after a failure; one that takes longer than 10 minutes is ended and counts as failed. The last line is the sum: `12 passed, 0 failed, 3 skipped`. Exit code 1 if any failed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// The verb.
pub(crate) fn verb(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let built = build_ebpf::build(workspace)?;
    println!("eBPF toolchain: {}", built.toolchain);
    let suites = suites::build(workspace, None)?;
    let filter = arguments.filter.as_deref();

    let privilege = Privilege::find();
    let from_pypi = pypi::install(workspace, privilege).err();
    let kubectl = pypi::kubectl(workspace);
    let unprivileged_suites = || suites.iter().filter(|suite| !suite.needs_root);
    let is_of = |suite: &Suite, names: &[&str]| names.contains(&&*suite.name);
    let first: Vec<_> = unprivileged_suites()
        .filter(|suite| !BESIDE.iter().any(|names| is_of(suite, names)))
        .collect();
    let (report, others) = thread::scope(|scope| {
        let kubectl = kubectl.as_deref();
        let others = BESIDE.map(|names| {
            let beside: Vec<_> = unprivileged_suites().filter(|suite| is_of(suite, names)).collect();
            scope.spawn(move || unprivileged(&beside, filter, kubectl, true))
        });
        let report = unprivileged(&first, filter, kubectl, false);
        let others = others.map(|other| {
            let joined = other.join();
            joined.unwrap_or_else(|_| bail!("the thread of the wake server's suites panicked"))
        });
        (report, others)
    });
    let mut report = report?;
    for other in others {
        report.add(other?);
    }
    report.documentation(workspace, filter)?;
    if let Some(why) = from_pypi {
        report
            .left_out
            .push(format!("the trials with schemathesis and kubectl: {why:#}"));
    }

    let mut privileged: Vec<&Suite> = suites.iter().filter(|suite| suite.needs_root).collect();
    if let Some(why) = obstacle(workspace, privilege, &privileged)? {
        for suite in privileged {
            report.leave_out(suite, filter, &why)?;
        }
        if privilege.is_available() {
            // Whoever has root asked for these tests: that they cannot run is a failure.
            report.fail("privileged tests", &why);
        }
    } else {
        let needs_quiet = |suite: &Suite| !is_of(suite, &MINDS_NOTHING);
        privileged.sort_by_key(|suite| needs_quiet(suite));
        let mut quiet = None;
        for suite in privileged {
            if quiet.is_none() && needs_quiet(suite) {
                quiet = Some(workspace.quiet()?);
            }
            privilege.obtain(&format!(
                "to run the tests of `{}`, which load eBPF programs",
                suite.name
            ))?;
            let environment = environment(workspace, suite);
            let variables: Vec<_> = environment
                .iter()
                .map(|(name, value)| (*name, value.as_os_str()))
                .collect();
            report.run(suite, filter, privilege, &variables)?;
        }
    }
    Ok(report.close())
}

/// Runs suites that need no root, one after another.
fn unprivileged(suites: &[&Suite], filter: Option<&str>, kubectl: Option<&Path>, beside: bool) -> Result<Report> {
    let mut report = Report {
        beside,
        ..Report::default()
    };
    for suite in suites {
        let mut variables = vec![("CARGO_MANIFEST_DIR", suite.folder.as_os_str())];
        variables.extend(kubectl.map(|path| ("VMSTATION_KUBECTL", path.as_os_str())));
        report.run(suite, filter, Privilege::None, &variables)?;
    }
    Ok(report)
}

/// What keeps the privileged suites from running here, if anything does and there are any.
fn obstacle(workspace: &Workspace, privilege: Privilege, suites: &[&Suite]) -> Result<Option<String>> {
    if suites.is_empty() {
        return Ok(None);
    }
    if !privilege.is_available() {
        return Ok(Some(Privilege::WHY_NOT.into()));
    }
    setup::test_tools(workspace)
}

/// Variables of a privileged suite.
fn environment(workspace: &Workspace, suite: &Suite) -> Vec<(&'static str, OsString)> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut variables = vec![("PATH", path), ("CARGO_MANIFEST_DIR", suite.folder.clone().into())];
    if let Some(sshd) = packages::sshd(workspace) {
        variables.push(("VMSTATION_SSHD", sshd.into()));
    }
    if let Some(schemathesis) = pypi::schemathesis(workspace) {
        variables.push(("VMSTATION_SCHEMATHESIS", schemathesis.into()));
    }
    variables
}

/// What was run, and what came of it.
#[derive(Default)]
struct Report {
    tally: Tally,
    /// `suite: test`.
    failures: Vec<String>,
    /// Suites that did not run, and why.
    left_out: Vec<String>,
    /// Whether others run at the same time, so that each line has to say whose it is.
    beside: bool,
}

impl Report {
    /// Takes in what another one has.
    fn add(&mut self, other: Self) {
        self.tally += other.tally;
        self.failures.extend(other.failures);
        self.left_out.extend(other.left_out);
    }

    /// Starts a suite, shows its output and counts it.
    fn run(
        &mut self,
        suite: &Suite,
        filter: Option<&str>,
        privilege: Privilege,
        variables: &[(&str, &OsStr)],
    ) -> Result<()> {
        let mut command = supervise::command(privilege, variables);
        // Ends the suite and all it started, and by force what does not obey.
        command
            .args(["timeout", "--kill-after=10", SUITE_LIMIT])
            .arg(&suite.executable)
            .args(MOSTLY_WAITING.contains(&&*suite.name).then_some("--test-threads=8"))
            .args(filter);
        self.follow(&suite.name, command.current_dir(&suite.folder))
    }

    /// Examples in the documentation: cargo runs them itself.
    fn documentation(&mut self, workspace: &Workspace, filter: Option<&str>) -> Result<()> {
        let mut command = workspace.cargo();
        command
            .args(["test", "--quiet", "--workspace", "--doc", "--"])
            .args(filter);
        self.follow("documentation", &mut command)
    }

    fn follow(&mut self, name: &str, command: &mut Command) -> Result<()> {
        if !self.beside {
            println!("\n-- {name}");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let (lines, received) = mpsc::channel();
        let output = child.stdout.take().context("a child without the pipe it was given")?;
        thread::spawn(move || {
            // An error means that nobody listens any more.
            BufReader::new(output)
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| lines.send(line))
        });
        let mut transcript = Transcript::default();
        let mut ended: Option<Stopwatch> = None;
        loop {
            match received.recv_timeout(POLL) {
                Ok(line) => {
                    let line = String::from_utf8_lossy(&line);
                    if self.beside {
                        println!("{name} | {line}");
                    } else {
                        println!("{line}");
                    }
                    transcript.line(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if ended.is_some_and(|since| since.elapsed() > LINGER) => {
                    self.fail(name, "left a process behind that holds its output");
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if ended.is_none() && child.try_wait().context("wait for a test")?.is_some() {
                        ended = Some(Stopwatch::start());
                    }
                }
            }
        }
        let transcript = transcript.finish(child.wait().context("wait for a test")?.code());
        self.tally += transcript.tally;
        self.failures
            .extend(transcript.failures.into_iter().map(|test| format!("{name}: {test}")));
        Ok(())
    }

    /// Counts a failure that no test reports.
    fn fail(&mut self, name: &str, why: &str) {
        self.tally.failed += 1;
        self.failures.push(format!("{name}: ({why})"));
    }

    /// Lists the tests of a suite that cannot run.
    fn leave_out(&mut self, suite: &Suite, filter: Option<&str>, why: &str) -> Result<()> {
        println!("\n-- {}: not run, {why}", suite.name);
        let list = [OsStr::new("--list")].into_iter().chain(filter.map(OsStr::new));
        match step::answer(Command::new(&suite.executable).args(list).current_dir(&suite.folder)) {
            Some(text) => {
                let tests = tally::listed(&text);
                for test in &tests {
                    println!("test {test} ... not run");
                }
                self.tally.skipped += u64::try_from(tests.len()).context("count tests")?;
            }
            None => self.fail(&suite.name, "does not list its tests"),
        }
        self.left_out.push(format!("{}: {why}", suite.name));
        Ok(())
    }

    fn close(&self) -> ExitCode {
        println!();
        for suite in &self.left_out {
            println!("not run: {suite}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{}", self.tally);
        if self.tally.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
