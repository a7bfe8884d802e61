//! schemathesis, which asks the wake server whatever its OpenAPI document allows and forbids. It comes from PyPI, with what it needs,
//! into a Python environment of its own below the target folder.
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
const PACKAGE: &str = "schemathesis==4.32.5";
/// Debian's, whatever else `PATH` has: its venv is a package.
const PYTHON: &str = "/usr/bin/python3";

/// The program, if it is there.
pub(crate) fn schemathesis(workspace: &Workspace) -> Option<PathBuf> {
    let program = folder(workspace).join("bin/schemathesis");
    program.is_file().then_some(program)
}

/// Makes sure that it is there.
pub(crate) fn install(workspace: &Workspace, privilege: Privilege) -> Result<()> {
    if schemathesis(workspace).is_some() {
        return Ok(());
    }
    if step::answer(foreign(PYTHON).args(["-c", "import ensurepip, venv"])).is_none() {
        if !privilege.is_available() || !packages::have_apt() {
            bail!("{PACKAGE} needs {PYTHON} with venv (Debian: python3-venv)");
        }
        packages::install(workspace, privilege, &["python3-venv"])?;
    }
    let folder = folder(workspace);
    let mut make = foreign(PYTHON);
    make.args(["-m", "venv", "--clear"]).arg(&folder);
    step::run(workspace, "schemathesis-venv", "making a Python environment", &mut make)?;
    // The program is the last that pip writes: an environment that has it is whole.
    let mut install = foreign(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--disable-pip-version-check", PACKAGE]);
    step::run(
        workspace,
        "schemathesis-pip",
        "installing schemathesis from PyPI",
        &mut install,
    )
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("schemathesis")
}
