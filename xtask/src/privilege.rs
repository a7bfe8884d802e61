//! Whether something may be done as root, and the command that does it.

use std::{
    ffi::OsStr,
    io::{IsTerminal, stdin},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::{step, workspace::find_program};

/// How root is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process is root.
    Root,
    /// sudo, asking for the password on the terminal.
    SudoAsks,
    /// sudo, without a password.
    Sudo,
    /// Not at all.
    None,
}

impl Privilege {
    /// Looks, without asking anybody for a password.
    pub(crate) fn find() -> Self {
        if Uid::effective().is_root() {
            return Self::Root;
        }
        if find_program("sudo").is_none() {
            return Self::None;
        }
        if step::answer(Command::new("sudo").args(["-n", "true"])).is_some() {
            Self::Sudo
        } else if stdin().is_terminal() {
            Self::SudoAsks
        } else {
            Self::None
        }
    }

    /// Why there is none; for people.
    pub(crate) const WHY_NOT: &str = "needs root, and this is neither root nor a place where sudo can ask";

    /// Asks for the password, if one is needed; `why` is shown first. From here on [`Self::command`] does not ask.
    pub(crate) fn obtain(self, why: &str) -> Result<()> {
        match self {
            Self::Root | Self::Sudo => Ok(()),
            Self::SudoAsks => {
                eprintln!("sudo is needed {why}");
                let status = Command::new("sudo").arg("-v").status().context("run sudo -v")?;
                if !status.success() {
                    bail!("sudo refused; it is needed {why}");
                }
                Ok(())
            }
            Self::None => bail!("{}; it is needed {why}", Self::WHY_NOT),
        }
    }

    /// `program` as root, with `variables` in its environment (sudo drops the rest).
    pub(crate) fn command(self, program: impl AsRef<OsStr>, variables: &[(&str, &OsStr)]) -> Command {
        match self {
            Self::Root | Self::None => {
                let mut command = Command::new(program);
                command.envs(variables.iter().copied());
                command
            }
            Self::Sudo | Self::SudoAsks => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env"]);
                for (name, value) in variables {
                    let mut assignment = OsStr::new(name).to_os_string();
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }

    /// Whether root can be reached.
    pub(crate) const fn is_available(self) -> bool {
        match self {
            Self::Root | Self::Sudo | Self::SudoAsks => true,
            Self::None => false,
        }
    }
}
