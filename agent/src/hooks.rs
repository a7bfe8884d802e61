//! Hooks: runs the executables of a folder one after the other, bounded in time and output.
//!
//! Owns the hook that runs and everything it left in its process group (or unit of systemd); dropping the future of [`run_all`] ends
//! both. Never decides what a failed hook means: an [`Outcome`] is data, the caller goes on or gives up. Never runs what somebody
//! else than root, or the user the agent runs as, could have written.

mod output;
mod starter;
mod supervise;
#[cfg(test)]
mod tests;
mod trust;

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use self::starter::Starter;
use crate::printable::printable;

/// How much of a hook's output is kept unless told otherwise, bytes.
pub const KEPT_OUTPUT: usize = 64 << 10;

/// Endings of names that package managers and editors leave beside the real file.
const LEFT_BESIDE: [&str; 9] = [
    "~",
    ".bak",
    ".cfsaved",
    ".disabled",
    ".orig",
    ".rpmnew",
    ".rpmorig",
    ".rpmsave",
    ".swp",
];

/// What a hook may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time from its start until it is told to end (TERM); 5 s later it is ended (KILL).
    pub timeout: Duration,
    /// How much of its output is kept, bytes: the first ones. [`KEPT_OUTPUT`] is usual. The rest is read and thrown away.
    pub kept_output: usize,
}

/// What became of one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Name in the folder, printable.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Time from its start to the end of all it started.
    pub took: Duration,
    /// Standard output and standard error as they came, printable but for line feeds; ends with a note if something was cut.
    pub output: String,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With exit status 0.
    Ok,
    /// With another exit status. Started through systemd-run, death by a signal is exit status 1.
    Failed(i32),
    /// By this signal, which the agent did not send.
    Killed(i32),
    /// Not in time: ended by the agent.
    TimedOut,
    /// Not run because others could have written it: what is wrong, and the fix.
    Refused(String),
    /// Could not be run: what was attempted, and the cause.
    NotStarted(String),
}

impl Outcome {
    /// Whether the hook did what it is for.
    pub const fn is_ok(&self) -> bool {
        match self {
            Self::Ok => true,
            Self::Failed(_) | Self::Killed(_) | Self::TimedOut | Self::Refused(_) | Self::NotStarted(_) => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("done"),
            Self::Failed(status) => write!(f, "failed with exit status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::TimedOut => f.write_str("took too long and was ended"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// A hook found in a folder.
#[derive(Debug)]
struct Hook {
    name: String,
    path: PathBuf,
}

/// Runs the hooks of `folder` in the order of their names (bytes), one after the other, each with `environment` and little else, and
/// calls `each` after each one. A folder that does not exist has no hooks; one that cannot be read gives one [`Run`] that says so.
///
/// A hook is a regular executable file (links are followed) whose name is neither hidden nor that of a copy (`*~`, `.dpkg-*` and the
/// like). Dropping the future ends the hook that runs as its timeout would, in the background.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn run_all(
    folder: &Path,
    limits: Limits,
    environment: &[(&str, String)],
    each: impl FnMut(&Run),
) -> Vec<Run> {
    run_all_by(Starter::of_this_process(), folder, limits, environment, each).await
}

async fn run_all_by(
    starter: Starter,
    folder: &Path,
    limits: Limits,
    environment: &[(&str, String)],
    mut each: impl FnMut(&Run),
) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut add = |run: Run| {
        each(&run);
        runs.push(run);
    };
    let hooks = match list(folder) {
        Ok(hooks) => hooks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let folder = printable(&folder.to_string_lossy()).into_owned();
            let why = format!("cannot read the folder of hooks {folder}: {error}");
            add(Run::without_start(folder, Outcome::NotStarted(why)));
            Vec::new()
        }
    };
    for hook in hooks {
        add(match trust::check(folder, &hook.path) {
            Ok(()) => supervise::run(starter, hook, limits, environment).await,
            Err(outcome) => Run::without_start(hook.name, outcome),
        });
    }
    runs
}

impl Run {
    fn without_start(name: String, outcome: Outcome) -> Self {
        Self {
            name,
            outcome,
            took: Duration::ZERO,
            output: String::new(),
        }
    }
}

/// The hooks of a folder, in order.
fn list(folder: &Path) -> io::Result<Vec<Hook>> {
    let mut hooks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        // A dangling link is no file.
        let executable =
            fs::metadata(&path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if executable && !left_beside(&name.to_string_lossy()) {
            hooks.push((name, path));
        }
    }
    hooks.sort();
    let named = |(name, path): (std::ffi::OsString, PathBuf)| Hook {
        name: printable(&name.to_string_lossy()).into_owned(),
        path,
    };
    Ok(hooks.into_iter().map(named).collect())
}

/// Whether the name is hidden or that of a copy of something.
fn left_beside(name: &str) -> bool {
    name.starts_with('.')
        || name.contains(".dpkg-")
        || name.contains(".ucf-")
        || LEFT_BESIDE.iter().any(|ending| name.ends_with(ending))
}
