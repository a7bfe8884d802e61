//! What systemd tries when the kernel does not take the first sleep state (systemd-sleep.conf(5), `SuspendState=`). Reads files, changes
//! nothing.
//!
//! Unless told otherwise systemd-sleep goes through `mem standby freeze` until one write to `/sys/power/state` succeeds. A suspend that
//! failed or was called off in `mem` would come in `freeze` after all: by then the kernel has forgotten the armed wakeup count. So there
//! must be nothing but `mem`.

use std::{collections::BTreeMap, fs, io, path::Path};

/// What holds where no file says otherwise.
const DEFAULT: &str = "mem standby freeze";
/// Folders of systemd's configuration, the most important last.
const FOLDERS: [&str; 4] = ["usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd"];

/// Whether systemd tries `mem` and nothing else. `root` is `/` but in tests.
///
/// # Errors
/// It would try more, with the way out of that; or a file cannot be read.
pub fn only_mem(root: &Path) -> Result<(), String> {
    let states = states(root).map_err(|error| format!("systemd's sleep configuration cannot be read: {error}"))?;
    if states.split_whitespace().eq(["mem"]) {
        return Ok(());
    }
    Err(format!(
        "systemd would try `{states}` one after the other, so that a suspend that failed or was called off comes after all: write \
         `SuspendState=mem` below `[Sleep]` in /etc/systemd/sleep.conf.d/vmstation.conf (the agent's unit does so in /run)"
    ))
}

/// The value in force: that of the last file that sets it.
fn states(root: &Path) -> io::Result<String> {
    let mut states = DEFAULT.to_owned();
    let mut main = None;
    let mut extra = BTreeMap::new();
    for folder in FOLDERS.map(|folder| root.join(folder)) {
        if let Some(text) = read(&folder.join("sleep.conf"))? {
            main = Some(text);
        }
        let files = match fs::read_dir(folder.join("sleep.conf.d")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            files => files?,
        };
        for file in files {
            let file = file?;
            let name = file.file_name();
            if name.to_string_lossy().ends_with(".conf") {
                // A file of the same name takes the place of one in a less important folder.
                extra.insert(name, read(&file.path())?.unwrap_or_default());
            }
        }
    }
    for text in main.into_iter().chain(extra.into_values()) {
        if let Some(value) = setting(&text) {
            states = if value.is_empty() { DEFAULT.into() } else { value };
        }
    }
    Ok(states)
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

/// The last `SuspendState=` of the section `[Sleep]`.
fn setting(text: &str) -> Option<String> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[Sleep]";
        } else if let Some((key, value)) = line.split_once('=')
            && inside
            && key.trim() == "SuspendState"
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_mem_with(files: &[(&str, &str)]) -> bool {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        only_mem(root.path()).is_ok()
    }

    #[test]
    fn s1_without_configuration_systemd_would_try_more() {
        assert!(!only_mem_with(&[]));
        assert!(!only_mem_with(&[(
            "etc/systemd/sleep.conf",
            "[Sleep]\n#SuspendState=mem\n"
        )]));
        assert!(!only_mem_with(&[(
            "etc/systemd/sleep.conf",
            "[Other]\nSuspendState=mem\n"
        )]));
    }

    #[test]
    fn s1_the_last_file_that_sets_it_counts() {
        let mem = "[Sleep]\nSuspendState = mem\n";
        let more = "[Sleep]\nSuspendState=mem freeze\n";
        assert!(only_mem_with(&[("etc/systemd/sleep.conf", mem)]));
        assert!(only_mem_with(&[("run/systemd/sleep.conf.d/50-vmstation.conf", mem)]));
        assert!(!only_mem_with(&[
            ("run/systemd/sleep.conf.d/50-vmstation.conf", mem),
            ("usr/lib/systemd/sleep.conf.d/60-more.conf", more),
        ]));
        assert!(only_mem_with(&[
            ("usr/lib/systemd/sleep.conf.d/50-vmstation.conf", more),
            ("run/systemd/sleep.conf.d/50-vmstation.conf", mem),
        ]));
        assert!(!only_mem_with(&[(
            "etc/systemd/sleep.conf",
            "[Sleep]\nSuspendState=mem\nSuspendState=\n"
        )]));
    }
}
