//! Whether a hook may be run at all: nobody but root, or the user the agent runs as, could have written it (fault H4).
//!
//! Pure but for stat(2). The whole way from the root of the file system counts, of the folder and of what a link leads to: who may
//! rename a folder on the way decides what runs.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use nix::unistd::geteuid;

use super::Outcome;

/// Anybody may add entries, but rename or remove only their own: /tmp.
const STICKY: u32 = 0o1000;
/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;

/// # Errors
/// [`Outcome::Refused`] names what others may write and the fix; [`Outcome::NotStarted`] if that cannot be told.
pub(super) fn check(folder: &Path, hook: &Path) -> Result<(), Outcome> {
    check_way(folder, false)?;
    check_way(hook, true)
}

/// `path` with every link resolved, and every folder above it.
fn check_way(path: &Path, is_file: bool) -> Result<(), Outcome> {
    let unknown = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Outcome::NotStarted(format!("cannot tell who may write {path}: {error}"))
    };
    let real = fs::canonicalize(path).map_err(unknown(path))?;
    for (depth, part) in real.ancestors().enumerate() {
        let found = fs::metadata(part).map_err(unknown(part))?;
        let (mode, owner, shown) = (found.permissions().mode(), found.uid(), part.display());
        if owner != 0 && owner != geteuid().as_raw() {
            return Err(Outcome::Refused(format!(
                "{shown} belongs to uid {owner}, who could change what is run; `chown root {shown}` if it is meant to be run"
            )));
        }
        // Others may add files to a sticky folder: no harm above the hook, but not where hooks are looked for.
        let only_own_entries = found.is_dir() && mode & STICKY != 0 && (is_file || depth > 0);
        if mode & OTHERS_WRITE != 0 && !only_own_entries {
            return Err(Outcome::Refused(format!(
                "{shown} may be written by others than its owner (mode {:04o}); `chmod go-w {shown}` if it is meant to be run",
                mode & 0o7777
            )));
        }
    }
    Ok(())
}
