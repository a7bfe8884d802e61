//! A state folder that takes nothing more (F3): the host stays awake, says so, and recovers by itself.
//!
//! The folder is a tmpfs of a few pages in a mount namespace of the test's own.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

use crate::{
    QUIET,
    support::{
        agent::{Agent, Home, blockers},
        namespaces::in_namespaces,
    },
};

const WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn a_full_or_read_only_state_folder_keeps_the_host_awake() {
    in_namespaces(|| {
        let home = Home::new(QUIET);
        let folder = home.path().join("state");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder, MsFlags::empty());
        // The sleep is far enough away to be kept from.
        home.configure(&QUIET.replace("grace_period = \"2s\"", "grace_period = \"1h\""));
        let agent = home.start();
        agent.status_when("quiet", WITHIN, |status| blockers(status).is_empty());

        let filler = folder.join("filler");
        fill(&filler);
        stays_awake(&agent, "No space left");
        let state = fs::read_to_string(folder.join("state")).unwrap();
        assert!(state.ends_with("\nEND=1\n"), "the file was torn: {state}");
        fs::remove_file(&filler).unwrap();
        agent.status_when("quiet again", WITHIN, |status| blockers(status).is_empty());

        // On top: the folder itself cannot become read-only while the agent's lock is open in it.
        mount_tmpfs(&folder, MsFlags::MS_RDONLY);
        stays_awake(&agent, "Read-only file system");
        umount2(&folder, MntFlags::MNT_DETACH).expect("the folder below");
        agent.status_when("quiet once more", WITHIN, |status| blockers(status).is_empty());

        // What could be saved in between is whole.
        agent.end(Signal::SIGKILL);
        let status = home.start().status();
        assert!(!status["warnings"].to_string().contains("state file"), "{status:#}");
    });
}

fn stays_awake(agent: &Agent, why: &str) {
    let status = agent.status_when("blocked by its state", WITHIN, |status| blockers(status) == ["state"]);
    assert_eq!(status["state"], "active", "{status:#}");
    let what = status["blockers"][0]["what"].as_str().unwrap();
    assert!(what.contains(why), "{what}");
    let refused = agent.ctl(&["hold", "1h"]);
    assert!(
        !refused.status.success(),
        "a hold that does not survive a restart was called done"
    );
    agent.ctl(&["release"]);
}

fn mount_tmpfs(folder: &Path, flags: MsFlags) {
    mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some("size=64k")).expect("a small tmpfs");
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    // More than it holds, in steps small enough to leave nothing.
    for _ in 0..1024 {
        if let Err(error) = file.write_all(&[0; 512]) {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            return;
        }
    }
    panic!("{} never filled its file system", path.display());
}
