//! Builds the tests of the workspace and says which executables they are.
//!
//! Cargo builds, xtask starts: so the build never needs root, and a test that does can be started with sudo or inside a guest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{step, workspace::Workspace};

/// Suites that load programs into the kernel, or need a machine where they may do what only root may.
const PRIVILEGED: [&str; 5] = ["kernel", "ssh", "agent", "wire", "wake"];

/// One test executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Name of an integration test; package and kind of target otherwise.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// Folder of its package, where tests expect to run.
    pub(crate) folder: PathBuf,
    pub(crate) needs_root: bool,
}

impl Suite {
    /// Folder of cargo's profile, where the programs lie that were built with it.
    pub(crate) fn profile(&self) -> Result<&Path> {
        let profile = self.executable.parent().and_then(Path::parent);
        profile.with_context(|| format!("{} lies in no folder of cargo's", self.executable.display()))
    }
}

/// Builds all programs of the workspace, then all tests, for `target` or this machine. The eBPF programs must have been built before.
pub(crate) fn build(workspace: &Workspace, target: Option<&str>) -> Result<Vec<Suite>> {
    let target = target.map(|target| format!("--target={target}"));
    let mut programs = workspace.cargo();
    programs.args(["build", "--workspace", "--bins"]).args(&target);
    step::run(workspace, "build-programs", "building the programs", &mut programs)?;
    let mut tests = workspace.cargo();
    tests
        .args([
            "test",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .args(&target);
    let messages = step::run_reading(workspace, "build-tests", "building the tests", &mut tests)?;
    let mut suites = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message: Value| suite(&message).transpose())
        .collect::<Result<Vec<_>>>()?;
    suites.sort_by(|a, b| (a.needs_root, &a.name).cmp(&(b.needs_root, &b.name)));
    Ok(suites)
}

/// The suite a message of cargo announces, if it does.
fn suite(message: &Value) -> Result<Option<Suite>> {
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let Some(executable) = message["executable"].as_str().filter(|_| is_test) else {
        return Ok(None);
    };
    let target = &message["target"];
    let name = target["name"].as_str().context("a target without a name")?;
    let kind = target["kind"][0].as_str().context("a target without a kind")?;
    let manifest = PathBuf::from(
        message["manifest_path"]
            .as_str()
            .context("a target without a manifest")?,
    );
    let is_integration_test = kind == "test";
    Ok(Some(Suite {
        name: if is_integration_test {
            name.into()
        } else {
            format!("{name} ({kind})")
        },
        executable: executable.into(),
        folder: manifest.parent().context("a manifest without a folder")?.into(),
        needs_root: is_integration_test && PRIVILEGED.contains(&name),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(name: &str, kind: &str) -> Value {
        json!({
            "reason": "compiler-artifact",
            "manifest_path": "/src/Cargo.toml",
            "target": { "name": name, "kind": [kind] },
            "profile": { "test": true },
            "executable": "/target/debug/deps/it-1",
        })
    }

    #[test]
    fn integration_tests_go_by_their_name_and_some_need_root() {
        let kernel = suite(&message("kernel", "test")).unwrap().unwrap();
        assert_eq!((kernel.name.as_str(), kernel.needs_root), ("kernel", true));
        let other = suite(&message("foundation", "test")).unwrap().unwrap();
        assert!(!other.needs_root);
        let unit = suite(&message("agent", "lib")).unwrap().unwrap();
        assert_eq!((unit.name.as_str(), unit.needs_root), ("agent (lib)", false));
    }

    #[test]
    fn what_is_no_test_executable_is_left_out() {
        let mut library = message("agent", "lib");
        library["executable"] = Value::Null;
        assert_eq!(suite(&library).unwrap(), None);
        let mut program = message("agent", "bin");
        program["profile"]["test"] = false.into();
        assert_eq!(suite(&program).unwrap(), None);
        assert_eq!(
            suite(&json!({ "reason": "build-finished", "success": true })).unwrap(),
            None
        );
    }
}
