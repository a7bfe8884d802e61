//! Scripts in temporary folders, started directly: systemd is for a guest to try.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{KEPT_OUTPUT, Limits, Outcome, Run, run_all_by, starter::Starter};
use crate::clock::BootTime;

/// Longer than any hook here takes; not a measure.
const GENEROUS: Duration = Duration::from_secs(60);

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("hooks")).unwrap();
        fs::set_permissions(folder.path().join("hooks"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("hooks")
    }

    /// A shell script with this mode.
    fn script_with(&self, name: &str, mode: u32, script: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn script(&self, name: &str, script: &str) -> PathBuf {
        self.script_with(name, 0o755, script)
    }

    async fn run(&self) -> Vec<Run> {
        self.run_within(GENEROUS).await
    }

    async fn run_within(&self, timeout: Duration) -> Vec<Run> {
        let limits = Limits {
            timeout,
            kept_output: KEPT_OUTPUT,
        };
        let environment = [
            ("VMSTATION_EVENT", "pre-sleep".to_owned()),
            ("OUT", self.0.path().display().to_string()),
        ];
        run_all_by(Starter::Directly, &self.path(), limits, &environment, |_| ()).await
    }

    /// What a hook wrote into `$OUT/name`.
    fn said(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.0.path().join(name)).ok()?;
        text.ends_with('\n')
            .then(|| Pid::from_raw(text.trim().parse().unwrap()))
    }
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = BootTime::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(BootTime::now().since(begun) < GENEROUS, "not {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn outcomes(runs: &[Run]) -> Vec<(&str, &Outcome)> {
    runs.iter().map(|run| (run.name.as_str(), &run.outcome)).collect()
}

fn is_gone(group: Pid) -> bool {
    killpg(group, None).is_err()
}

#[tokio::test]
async fn hooks_run_in_the_order_of_their_names_with_their_environment_only() {
    let folder = Folder::new();
    folder.script("10-second", "echo $VMSTATION_EVENT; env | grep -c CARGO");
    folder.script("05-first.sh", "echo first; echo second >&2; pwd");
    let target = folder.script(".target", "echo linked");
    symlink(target, folder.path().join("20-link")).unwrap();
    symlink("/nonexistent", folder.path().join("30-dangling")).unwrap();
    fs::create_dir(folder.path().join("40-folder")).unwrap();
    folder.script_with("50-not-executable", 0o644, "echo no");
    for copy in ["a~", "a.dpkg-old", "a.dpkg-new", "a.rpmsave", "a.bak", ".a.swp"] {
        folder.script(copy, "echo no");
    }
    let runs = folder.run().await;
    let outputs: Vec<_> = runs
        .iter()
        .map(|run| (run.name.as_str(), run.output.as_str()))
        .collect();
    assert_eq!(
        outputs,
        [
            ("05-first.sh", "first\nsecond\n/"),
            ("10-second", "pre-sleep\n0"),
            ("20-link", "linked")
        ]
    );
}

#[tokio::test]
async fn a_missing_folder_has_no_hooks_and_a_file_is_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        timeout: GENEROUS,
        kept_output: KEPT_OUTPUT,
    };
    let run = async |path: &Path| run_all_by(Starter::Directly, path, limits, &[], |_| ()).await;
    assert_eq!(run(&folder.path().join("pre-sleep.d")).await, []);
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let runs = run(&file).await;
    assert!(matches!(&runs[..], [Run { outcome: Outcome::NotStarted(why), .. }] if why.contains("cannot read")));
}

#[tokio::test]
async fn h1_a_hanging_hook_is_ended_with_all_it_started() {
    let folder = Folder::new();
    folder.script("hangs", "echo begun; echo $$ > $OUT/pid; sleep 1000 & sleep 1000");
    folder.script("next", "echo next");
    let runs = folder.run_within(Duration::from_millis(500)).await;
    assert_eq!(outcomes(&runs), [("hangs", &Outcome::TimedOut), ("next", &Outcome::Ok)]);
    assert_eq!(runs[0].output, "begun");
    assert!(is_gone(folder.said("pid").unwrap()));
}

#[tokio::test]
async fn h1_a_hook_that_ignores_term_is_killed() {
    let folder = Folder::new();
    let stubborn = "trap 'echo ignored' TERM; echo $$ > $OUT/pid; while :; do sleep 0.1; done";
    folder.script("stubborn", stubborn);
    let runs = folder.run_within(Duration::from_millis(500)).await;
    assert_eq!(outcomes(&runs), [("stubborn", &Outcome::TimedOut)]);
    assert!(runs[0].output.contains("ignored"), "{}", runs[0].output);
    assert!(is_gone(folder.said("pid").unwrap()));
}

#[tokio::test]
async fn h1_a_double_fork_that_holds_the_output_is_not_waited_for() {
    let folder = Folder::new();
    folder.script("forks", "echo $$ > $OUT/pid; (sleep 1000 & ) ; echo done");
    // Out of the group: systemd would end it, the agent only must not wait for it.
    folder.script("leaves", "setsid sh -c 'echo $$ > $OUT/left; exec sleep 1000' & while ! [ -s $OUT/left ]; do sleep 0.01; done; echo done");
    let runs = folder.run().await;
    let left = folder.said("left").unwrap();
    kill(left, Signal::SIGKILL).unwrap();
    assert_eq!(outcomes(&runs), [("forks", &Outcome::Ok), ("leaves", &Outcome::Ok)]);
    assert_eq!(runs[0].output, "done");
    assert_eq!(runs[1].output, "done");
    assert!(is_gone(folder.said("pid").unwrap()));
}

#[tokio::test]
async fn h1_a_hook_nobody_waits_for_any_more_is_ended() {
    let folder = Folder::new();
    folder.script("hangs", "echo $$ > $OUT/pid; sleep 1000 & sleep 1000");
    let group = {
        let run = folder.run();
        tokio::pin!(run);
        tokio::select! {
            runs = &mut run => panic!("{runs:?}"),
            pid = eventually("started", || folder.said("pid")) => pid,
        }
    };
    eventually("ended", || is_gone(group).then_some(())).await;
}

#[test]
fn h1_a_hook_does_not_outlive_the_runtime() {
    let folder = Folder::new();
    folder.script(
        "stubborn",
        "trap '' TERM; echo $$ > $OUT/pid; while :; do sleep 0.1; done",
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let group = runtime.block_on(async {
        tokio::select! {
            runs = folder.run() => panic!("{runs:?}"),
            pid = eventually("started", || folder.said("pid")) => pid,
        }
    });
    drop(runtime);
    let another = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    another.block_on(eventually("ended", || is_gone(group).then_some(())));
}

#[tokio::test]
async fn h2_how_a_hook_ended_is_told_and_the_next_one_runs() {
    let folder = Folder::new();
    folder.script("1-fails", "exit 7");
    folder.script("2-dies", "kill -SEGV $$");
    let odd = folder.script("3-odd", "");
    fs::write(&odd, "#!/nonexistent/interpreter\n").unwrap();
    folder.script("4-works", "exit 0");
    let runs = folder.run().await;
    let Outcome::NotStarted(why) = &runs[2].outcome else {
        panic!("{runs:?}");
    };
    assert!(why.contains("3-odd") && why.contains("#!"), "{why}");
    assert_eq!(runs[0].outcome, Outcome::Failed(7));
    assert_eq!(runs[1].outcome, Outcome::Killed(Signal::SIGSEGV as i32));
    assert_eq!(runs[3].outcome, Outcome::Ok);
}

#[tokio::test]
async fn h3_a_gigabyte_is_read_and_64_kib_kept() {
    let folder = Folder::new();
    folder.script("pours", "head -c 1073741824 /dev/zero");
    let runs = folder.run().await;
    assert_eq!(outcomes(&runs), [("pours", &Outcome::Ok)]);
    let (kept, note) = runs[0].output.rsplit_once('\n').unwrap();
    assert_eq!(kept.matches(r"\u{0}").count(), KEPT_OUTPUT);
    assert_eq!(
        note,
        format!("[{} more bytes were thrown away]", (1 << 30) - KEPT_OUTPUT)
    );
}

#[tokio::test]
async fn h3_binary_output_is_harmless() {
    let folder = Folder::new();
    folder.script("binary", r"printf '\033[2J\000\377\376a\rb\nsecond line\n'");
    let runs = folder.run().await;
    assert_eq!(runs[0].output, "\\u{1b}[2J\\u{0}\u{fffd}\u{fffd}a\\rb\nsecond line");
}

#[tokio::test]
async fn h4_a_hook_others_may_write_is_refused_and_named() {
    for (mode, by) in [(0o775, "group"), (0o757, "others")] {
        let folder = Folder::new();
        let path = folder.script_with("writable", mode, "echo run > $OUT/run");
        let refused = folder.run().await;
        let Outcome::Refused(why) = &refused[0].outcome else {
            panic!("{by}: {refused:?}");
        };
        assert!(why.contains(&format!("`chmod go-w {}`", path.display())), "{why}");
        assert!(!folder.0.path().join("run").exists());
    }
}

#[tokio::test]
async fn h4_a_folder_others_may_write_is_refused_and_named() {
    let folder = Folder::new();
    folder.script("fine", "echo run > $OUT/run");
    let above = folder.0.path();
    for (path, mode) in [
        (folder.path(), 0o1777),
        (folder.path(), 0o775),
        (above.to_path_buf(), 0o777),
    ] {
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = folder.run().await;
        fs::set_permissions(&path, before).unwrap();
        let Outcome::Refused(why) = &refused[0].outcome else {
            panic!("{refused:?}");
        };
        assert!(why.contains(&format!("`chmod go-w {}`", path.display())), "{why}");
        assert!(!above.join("run").exists());
    }
    assert!(folder.run().await[0].outcome.is_ok());
}

#[tokio::test]
async fn h4_a_link_into_a_folder_others_may_write_is_refused() {
    let folder = Folder::new();
    let open = folder.0.path().join("open");
    fs::create_dir(&open).unwrap();
    let target = folder.script("target", "echo run");
    fs::rename(target, open.join("target")).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    symlink(open.join("target"), folder.path().join("link")).unwrap();
    let refused = folder.run().await;
    assert!(
        matches!(&refused[0].outcome, Outcome::Refused(why) if why.contains("/open")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn h4_a_hook_of_another_user_is_refused_and_named() {
    let folder = Folder::new();
    let path = folder.script("theirs", "echo run");
    let theirs = std::os::unix::fs::chown(&path, Some(4242), None);
    if nix::unistd::geteuid().is_root() {
        theirs.unwrap();
        let refused = folder.run().await;
        let Outcome::Refused(why) = &refused[0].outcome else {
            panic!("{refused:?}");
        };
        assert!(why.contains("uid 4242") && why.contains("`chown root"), "{why}");
    } else {
        // Only root can give files away; a file of root's is trusted by anybody.
        theirs.unwrap_err();
    }
}
