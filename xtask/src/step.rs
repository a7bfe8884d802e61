//! Runs one outside command as a step: its full output goes to a log file, what a person sees is how long it takes and, if it
//! fails, how it ended.

use std::{
    fs::{self, File},
    io::{IsTerminal, stderr},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace::Workspace;

/// Steps shorter than this are not worth a line.
const SILENT: Duration = Duration::from_secs(2);
/// How often a running step is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Lines of the log shown when a step fails.
const TAIL_LINES: usize = 30;

/// Measures how long something takes.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(
        clippy::disallowed_methods,
        reason = "build steps have deadlines and are timed for people; nothing here decides about sleep"
    )]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// What a long step shows: a spinner with the elapsed time on a terminal, a line at its start and end elsewhere.
pub(crate) struct Progress {
    title: String,
    since: Stopwatch,
    shown: bool,
    spinner: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            since: Stopwatch::start(),
            shown: false,
            spinner: None,
        }
    }

    /// To be called now and then while the step runs.
    pub(crate) fn tick(&mut self) {
        if self.shown || self.since.elapsed() < SILENT {
            return;
        }
        self.shown = true;
        if stderr().is_terminal() {
            let spinner = ProgressBar::new_spinner()
                .with_message(self.title.clone())
                .with_elapsed(self.since.elapsed());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} .. {elapsed}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(120));
            self.spinner = Some(spinner);
        } else {
            eprintln!("{} ..", self.title);
        }
    }

    /// Ends the display. `outcome`: one word.
    pub(crate) fn finish(self, outcome: &str) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
        if self.shown {
            eprintln!("{}: {outcome}, {} s", self.title, self.since.elapsed().as_secs());
        }
    }
}

/// Runs `command` to its end. Its output goes to `<name>.log`; an error carries the tail of that.
pub(crate) fn run(workspace: &Workspace, name: &str, title: &str, command: &mut Command) -> Result<()> {
    run_for(workspace, name, title, command, None)
}

/// Like [`run`], and kills the command when it takes longer than `limit`.
pub(crate) fn run_for(
    workspace: &Workspace,
    name: &str,
    title: &str,
    command: &mut Command,
    limit: Option<Duration>,
) -> Result<()> {
    let log = workspace.logs().join(format!("{name}.log"));
    let errors = create(&log)?;
    let output = errors.try_clone().context("share the log file")?;
    carry_out(title, command.stdout(output).stderr(errors), limit, &log)
}

/// Like [`run`], and returns what the command wrote to its standard output.
pub(crate) fn run_reading(workspace: &Workspace, name: &str, title: &str, command: &mut Command) -> Result<String> {
    let log = workspace.logs().join(format!("{name}.log"));
    let output = workspace.logs().join(format!("{name}.out"));
    let errors = create(&log)?;
    carry_out(title, command.stdout(create(&output)?).stderr(errors), None, &log)?;
    fs::read_to_string(&output).with_context(|| format!("read {}", output.display()))
}

fn create(log: &Path) -> Result<File> {
    let folder = log.parent().context("a log file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    File::create(log).with_context(|| format!("write {}", log.display()))
}

fn carry_out(title: &str, command: &mut Command, limit: Option<Duration>, log: &Path) -> Result<()> {
    let child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let end = match wait(child, title, limit)? {
        Some(status) if status.success() => return Ok(()),
        Some(status) => status.to_string(),
        None => format!("killed after {} s", limit.unwrap_or_default().as_secs()),
    };
    bail!("{title}: {end}\n{}\n(full log: {})", tail(log), log.display())
}

/// Output of a short command, whatever its exit code.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))
}

/// Standard output of a short command, if it started and succeeded.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = output(command).ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of a text file.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Waits for `child`; `None` if it had to be killed.
fn wait(mut child: Child, title: &str, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
    let since = Stopwatch::start();
    let mut progress = Progress::new(title);
    loop {
        if let Some(status) = child.try_wait().context("wait for a child")? {
            progress.finish(if status.success() { "done" } else { "failed" });
            return Ok(Some(status));
        }
        if limit.is_some_and(|limit| since.elapsed() > limit) {
            child.kill().context("kill a step that took too long")?;
            child.wait().context("wait for a killed child")?;
            progress.finish("killed");
            return Ok(None);
        }
        progress.tick();
        thread::sleep(POLL);
    }
}
