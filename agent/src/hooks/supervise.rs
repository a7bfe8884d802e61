//! One hook from its start to the end of all it started.
//!
//! A task of its own owns the processes, so that they are ended in the same way when nobody waits for them any more; if even the
//! runtime goes, they are killed at once.

use std::{convert::Infallible, io, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use nix::unistd::Pid;
use tokio::{
    process::{Child, Command},
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    Hook, Limits, Outcome, Run,
    output::Output,
    starter::{GRACE, Started, Starter},
};
use crate::clock::BootTime;

/// Time for the kernel to end a process after KILL, and for systemd to say so.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// Time between two looks at a process group that was told to end.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Held by the hook that runs, to its very end.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs one hook. Dropping the future ends it in the background.
pub(super) async fn run(starter: Starter, hook: Hook, limits: Limits, environment: &[(&str, String)]) -> Run {
    // One that was given up may still be ending.
    let turn = TURN.lock().await;
    let (mut running, output) = match start(starter, &hook, limits, environment) {
        Ok(started) => started,
        Err(error) => {
            let why = not_started(&hook, &error);
            return Run::without_start(hook.name, Outcome::NotStarted(why));
        }
    };
    // Dropped together with this future.
    let (_wanted, abandoned) = oneshot::channel::<Infallible>();
    let begun = BootTime::now();
    let supervised = tokio::spawn(async move {
        let _turn = turn;
        let mut output = output;
        let outcome = running.see_through(&mut output, limits.timeout, abandoned).await;
        output.take_rest();
        (outcome, output.into_text())
    });
    let (outcome, output) = supervised.await.unwrap_or_else(|error| {
        let why = format!("the runtime ended before {}: {error}", hook.name);
        (Outcome::NotStarted(why), String::new())
    });
    Run {
        name: hook.name,
        outcome,
        took: BootTime::now().since(begun),
        output,
    }
}

fn start(
    starter: Starter,
    hook: &Hook,
    limits: Limits,
    environment: &[(&str, String)],
) -> io::Result<(Running, Output)> {
    let (reader, writer) = io::pipe()?;
    let output = Output::new(reader, limits.kept_output)?;
    let (mut command, unit) = starter.command(hook, limits.timeout, environment);
    command.stdout(writer.try_clone()?).stderr(writer);
    // The agent's copies of the writing end go with the command.
    let child = Command::from(command).spawn()?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let group = Pid::from_raw(group.ok_or_else(|| io::Error::other("it has no process id"))?);
    let running = Running {
        child,
        started: Started::new(group, unit),
        over: false,
    };
    Ok((running, output))
}

fn not_started(hook: &Hook, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; does the program named in its first line (#!) exist?",
        _ if error.raw_os_error() == Some(nix::errno::Errno::ENOEXEC as i32) => {
            "; a script begins with a line like #!/bin/sh"
        }
        _ => "",
    };
    format!("cannot run {}: {error}{hint}", hook.path.display())
}

/// A hook that was started. Dropping it kills what is left of it.
struct Running {
    child: Child,
    started: Started,
    over: bool,
}

impl Running {
    /// Until the hook has ended, is late, or nobody waits for it; then until nothing of it is left.
    async fn see_through(
        &mut self,
        output: &mut Output,
        time: Duration,
        abandoned: oneshot::Receiver<Infallible>,
    ) -> Outcome {
        let outcome = tokio::select! {
            biased;
            status = self.child.wait() => ended(status),
            _ = abandoned => Outcome::TimedOut,
            () = sleep(time) => Outcome::TimedOut,
            never = output.collect() => match never {},
        };
        tokio::select! {
            () = self.end() => {}
            never = output.collect() => match never {},
        }
        outcome
    }

    /// Ends the hook if it still runs, and what it left behind if it does not.
    async fn end(&mut self) {
        if !self.is_over() {
            self.started.ask_to_end();
            if timeout(GRACE, self.all_gone()).await.is_err() {
                self.started.end();
                if timeout(AFTER_KILL, self.all_gone()).await.is_err() {
                    tracing::error!("a hook does not end even when killed: it waits in the kernel for something");
                }
            }
        }
        self.over = true;
    }

    async fn all_gone(&mut self) {
        // Reaped first: a process that ended counts as one of its group until then.
        let _status = self.child.wait().await;
        while self.started.is_left() {
            sleep(LOOK_EVERY).await;
        }
    }

    fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_))) && !self.started.is_left()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.started.end();
        }
    }
}

fn ended(status: io::Result<ExitStatus>) -> Outcome {
    match status {
        Err(error) => Outcome::NotStarted(format!("cannot wait for the hook: {error}")),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => Outcome::Ok,
            (Some(code), _) => Outcome::Failed(code),
            (None, Some(signal)) => Outcome::Killed(signal),
            (None, None) => Outcome::NotStarted(format!("the hook ended in a way that is not known: {status}")),
        },
    }
}
