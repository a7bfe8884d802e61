//! Starts a program, as root or not, so that it can be told to end by whoever started it, and ends when that is gone.
//!
//! A shell stands between: an ordinary user may not send signals to what sudo runs, but can write to the shell, and the shell notices
//! when its input closes, even if xtask was killed.

use std::{ffi::OsStr, process::Command};

use crate::privilege::Privilege;

/// Starts "$@" and passes on the signals named on its input, one a line. When the input ends, whoever held it is gone: the program is
/// told to end. Ctrl-C is left to the program and to xtask.
const SCRIPT: &str = r#"trap '' INT HUP
exec 3<&0
"$@" </dev/null 3<&- &
program=$!
( while read -r signal; do kill -"$signal" "$program"; done; kill -TERM "$program" ) <&3 2>/dev/null >&2 &
listener=$!
wait "$program"
code=$?
kill "$listener" 2>/dev/null
exit "$code"
"#;

/// A command that runs what is added to it as arguments: program first. Its standard input must be piped and held open.
pub(crate) fn command(privilege: Privilege, variables: &[(&str, &OsStr)]) -> Command {
    let mut command = privilege.command("sh", variables);
    command.args(["-c", SCRIPT, "supervise"]);
    command
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Child, Stdio},
        thread,
        time::Duration,
    };

    use nix::sys::signal::Signal;

    use super::*;

    /// A supervisor of `sh -c script`.
    fn supervise(script: &str) -> Child {
        command(Privilege::None, &[])
            .args(["sh", "-c", script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn the_supervisor_passes_on_signals_and_the_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let script = format!(
            "trap 'exit 7' TERM; touch {}; while :; do sleep 0.01; done",
            ready.display()
        );
        let mut supervisor = supervise(&script);
        while !ready.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        let mut input = supervisor.stdin.take().unwrap();
        writeln!(input, "TERM").unwrap();
        assert_eq!(supervisor.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn the_program_ends_when_nobody_holds_its_supervisor() {
        let mut supervisor = supervise("exec sleep 600");
        drop(supervisor.stdin.take());
        let terminated = 128 + Signal::SIGTERM as i32;
        assert_eq!(supervisor.wait().unwrap().code(), Some(terminated));
    }

    #[test]
    fn the_supervisor_ends_with_a_program_that_ends_alone() {
        let mut supervisor = supervise("exit 78");
        // `wait` would close the input, which means: end.
        let _input = supervisor.stdin.take();
        assert_eq!(supervisor.wait().unwrap().code(), Some(78));
    }
}
