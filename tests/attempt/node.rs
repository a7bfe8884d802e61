//! A node that is a folder: a sysfs of plain files, a root with systemd's configuration, hooks that write down that they ran, and the
//! journal. Attempts on it are made by the agent's own executor and host; only the message bus, the clocks and the driver are not real.
//!
//! Plain files keep what is written: `0` in the alarm register is none, and who armed the wakeup count left it without its line feed.

use std::{
    fs,
    os::fd::OwnedFd,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::yield_now};
use vmstation_agent::{
    attempt::{Plan, Step, Went},
    config::{HookFailure, Sleep},
    coordinator::Coordinator,
    journal::{Journal, Record},
    sleeper::{self, Handle, Host, HostParts, Outside, Places, Progress, Report},
    suspend::veto::Veto,
};

/// The boot in which every attempt is made.
pub(crate) const BOOT: &str = "9b2f6a1c-0000-4000-8000-000000000001";
/// What the real-time clock shows.
pub(crate) const NOW: u64 = 1_000_000;
/// When the alarm of an attempt rings.
pub(crate) const ALARM: u64 = NOW + 3_600;
/// Everything that an attempt may have.
pub(crate) const ALL: Plan = Plan {
    hooks: true,
    alarm: true,
};
/// What the file of the wakeup count holds when it was read and given back.
const ARMED: &str = "17";

/// The folder.
pub(crate) struct Node {
    path: PathBuf,
    /// Who gives leave.
    pub(crate) coordinator: Coordinator,
    /// Readable when somebody logs in.
    pub(crate) login: Option<OwnedFd>,
    /// Removes it, where it was made.
    _made: Option<TempDir>,
}

impl Node {
    /// A node that may sleep, with a hook before and one after.
    pub(crate) fn new() -> Self {
        let made = tempfile::Builder::new().prefix("vmstation-node-").tempdir().unwrap();
        let node = Self {
            path: made.path().into(),
            coordinator: Coordinator::Nobody,
            login: None,
            _made: Some(made),
        };
        for (file, text) in [
            ("sys/power/state", "freeze mem disk\n"),
            ("sys/power/mem_sleep", "s2idle [deep]\n"),
            ("sys/power/wakeup_count", "17\n"),
            ("sys/power/suspend_stats/success", "3\n"),
            ("sys/power/suspend_stats/fail", "0\n"),
            ("sys/class/rtc/rtc0/since_epoch", &format!("{NOW}\n")),
            ("sys/class/rtc/rtc0/wakealarm", ""),
            ("root/etc/systemd/sleep.conf.d/x.conf", "[Sleep]\nSuspendState=mem\n"),
            ("told", ""),
        ] {
            node.write(file, text);
        }
        for folder in ["sys/class/net", "state"] {
            fs::create_dir_all(node.file(folder)).unwrap();
        }
        node.hook(
            "pre-sleep.d/10-first",
            r#"echo "first $VMSTATION_EVENT" >> "$node/told""#,
        );
        node.hook(
            "post-wake.d/10-last",
            r#"echo "last $VMSTATION_EVENT $VMSTATION_OUTCOME" >> "$node/told""#,
        );
        node
    }

    /// One that another process made.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.into(),
            coordinator: Coordinator::Nobody,
            login: None,
            _made: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.file(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.file(file)).unwrap()
    }

    /// A hook that does what the shell makes of `text`; `$node` is this folder.
    pub(crate) fn hook(&self, name: &str, text: &str) {
        let file = format!("hooks/{name}");
        self.write(&file, &format!("#!/bin/sh\nnode='{}'\n{text}\n", self.path.display()));
        fs::set_permissions(self.file(&file), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What the hooks wrote.
    pub(crate) fn told(&self) -> Vec<String> {
        self.read("told").lines().map(str::to_owned).collect()
    }

    pub(crate) fn set_alarm(&self, rings: u64) {
        self.write("sys/class/rtc/rtc0/wakealarm", &format!("{rings}\n"));
    }

    /// Makes the real-time clock show this.
    pub(crate) fn set_clock(&self, text: &str) {
        self.write("sys/class/rtc/rtc0/since_epoch", text);
    }

    /// Puts a pipe in place of a file: whoever reads it waits for a writer.
    pub(crate) fn replace_by_pipe(&self, file: &str) {
        let path = self.file(file);
        fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    }

    /// The alarm that is set.
    pub(crate) fn alarm(&self) -> Option<u64> {
        let register = self.read("sys/class/rtc/rtc0/wakealarm");
        register.trim().parse().ok().filter(|rings| *rings != 0)
    }

    pub(crate) fn is_armed(&self) -> bool {
        let count = self.file("sys/power/wakeup_count");
        // A pipe in its place cannot be.
        count.is_file() && fs::read_to_string(count).unwrap() == ARMED
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::new(&self.file("state"))
    }

    /// Settings under which it sleeps.
    pub(crate) fn settings(&self) -> Sleep {
        Sleep {
            allow_s2idle: false,
            arm_wol: true,
            allow_unwakeable: false,
            wake_after: Some(Duration::from_secs(ALARM - NOW)),
            // Longer than any trial: what ends a hook that hangs is not this.
            hook_timeout: Duration::from_secs(3_600),
            hook_failure: HookFailure::Continue,
            hooks_folder: self.file("hooks"),
        }
    }

    pub(crate) fn host(&self, bus: &str, sleep: Sleep) -> Host {
        Host::new(HostParts {
            sleep,
            interfaces: Vec::new(),
            dry_run: false,
            coordinator: self.coordinator.clone(),
            reason: "nobody uses the host",
            node: "node1".into(),
            login: self.login.as_ref().map(|fd| fd.try_clone().unwrap()),
            places: Places {
                sys: self.file("sys"),
                root: self.file("root"),
                bus: Some(bus.into()),
            },
        })
    }

    /// Begins an attempt.
    pub(crate) fn begin(&self, bus: &str, watch: &Watch) -> Running {
        self.begin_with(bus, self.settings(), watch)
    }

    pub(crate) fn begin_with(&self, bus: &str, sleep: Sleep, watch: &Watch) -> Running {
        let plan = Plan {
            alarm: sleep.wake_after.is_some(),
            ..ALL
        };
        let (tell, progress) = mpsc::channel(8);
        let (watched, veto) = Watched::new(self.host(bus, sleep), watch);
        Running {
            handle: sleeper::start(watched, self.journal(), plan, BOOT.into(), tell),
            progress,
            watch: Arc::clone(watch),
            veto,
        }
    }

    /// Makes an attempt and waits for its end.
    pub(crate) async fn attempt(&self, bus: &str, sleep: Sleep) -> Report {
        self.begin_with(bus, sleep, &nobody_watches()).ended().await
    }

    /// What the next agent does, in the boot `boot`.
    pub(crate) fn recover(&self, bus: &str, record: Record, boot: &str, watch: &Watch) -> Running {
        let (tell, progress) = mpsc::channel(8);
        let (watched, veto) = Watched::new(self.host(bus, self.settings()), watch);
        Running {
            handle: sleeper::recover(watched, self.journal(), record, boot, tell),
            progress,
            watch: Arc::clone(watch),
            veto,
        }
    }

    /// Nothing is left of an attempt but this alarm.
    pub(crate) fn assert_left_alone(&self, alarm: Option<u64>, context: &str) {
        assert_eq!(self.alarm(), alarm, "{context}: the alarm");
        assert!(!self.is_armed(), "{context}: the wakeup count is armed");
        assert!(!self.file("state/journal").exists(), "{context}: there is a journal");
    }
}

/// What an attempt does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Do(Step),
    Undo(Step),
}

/// A moment in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before(Deed),
    After(Deed),
}

/// Is told each moment, while it is that moment.
pub(crate) type Watch = Arc<dyn Fn(Moment) + Send + Sync>;

pub(crate) fn nobody_watches() -> Watch {
    Arc::new(|_| {})
}

/// Every moment, as it came.
pub(crate) type Seen = Arc<Mutex<Vec<Moment>>>;

/// Keeps every moment.
pub(crate) fn watch() -> (Watch, Seen) {
    let seen = Seen::default();
    let sees = Arc::clone(&seen);
    (Arc::new(move |moment| sees.lock().unwrap().push(moment)), seen)
}

/// Looks now and then; the limit of the trial is its own.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The veto of an attempt, once it has one.
pub(crate) type VetoOf = Arc<Mutex<Option<Arc<Veto>>>>;

/// A host whose every deed is watched.
struct Watched {
    host: Host,
    watch: Watch,
    veto: VetoOf,
}

impl Watched {
    fn new(host: Host, watch: &Watch) -> (Self, VetoOf) {
        let veto = VetoOf::default();
        let watched = Self {
            host,
            watch: Arc::clone(watch),
            veto: Arc::clone(&veto),
        };
        (watched, veto)
    }
}

impl Outside for Watched {
    async fn perform(&mut self, step: Step, journal: &Journal, record: &mut Record) -> Went {
        (self.watch)(Moment::Before(Deed::Do(step)));
        // Whatever comes from elsewhere may come in any step.
        yield_now().await;
        let went = match step {
            // It would wait for everything that this machine writes.
            Step::Sync => Went::Well,
            step => self.host.perform(step, journal, record).await,
        };
        yield_now().await;
        (self.watch)(Moment::After(Deed::Do(step)));
        went
    }

    async fn undo(&mut self, step: Step, record: &Record, ending: &str) {
        (self.watch)(Moment::Before(Deed::Undo(step)));
        self.host.undo(step, record, ending).await;
        (self.watch)(Moment::After(Deed::Undo(step)));
    }

    fn veto(&self) -> Option<Arc<Veto>> {
        let veto = self.host.veto();
        self.veto.lock().unwrap().clone_from(&veto);
        veto
    }

    fn wake_source(&mut self) -> Option<String> {
        self.host.wake_source()
    }
}

/// An attempt under way.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) veto: VetoOf,
    progress: mpsc::Receiver<Progress>,
    watch: Watch,
}

impl Running {
    /// Plays the driver, who has nothing against it, to the end.
    pub(crate) async fn ended(mut self) -> Report {
        loop {
            match self.progress.recv().await.expect("an attempt that is not over") {
                Progress::Began(_) => {}
                Progress::Notice(done) => self.answer(Step::Notice, || done.send(())),
                Progress::Confirm(go) => self.answer(Step::Confirm, || go.send(())),
                Progress::Ended(report) => return *report,
            }
        }
    }

    fn answer(&self, step: Step, answer: impl FnOnce() -> Result<(), ()>) {
        (self.watch)(Moment::Before(Deed::Do(step)));
        // One that is called off waits no more.
        let _heard = answer();
        (self.watch)(Moment::After(Deed::Do(step)));
    }
}
