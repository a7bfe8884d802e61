//! A private message bus, and on it a logind that suspends nothing: it says what org.freedesktop.login1(5) says, in the order that the
//! trial's [`Script`] tells, and moves the clocks of a [`Machine`] that is only numbers.
//!
//! [`Bus`] owns the daemon and ends it when dropped. The system's own bus is never touched.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::Notify;
use vmstation_agent::suspend::{Baseline, power::Stats};
use zbus::{DBusError, connection, object_server::SignalEmitter};

const DAEMON: &str = "/usr/bin/dbus-daemon";

/// How long the machine sleeps when it does.
pub(crate) const NIGHT: Duration = Duration::from_secs(3_600);

/// Whether there is no message bus to start.
pub(crate) fn missing() -> bool {
    !Path::new(DAEMON).exists()
}

/// A message bus of the trial's own.
pub(crate) struct Bus {
    daemon: Child,
    folder: TempDir,
}

impl Bus {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("vmstation-bus-").tempdir().unwrap();
        let (config, log) = (folder.path().join("bus.conf"), folder.path().join("bus.log"));
        fs::write(
            &config,
            format!(
                "<busconfig><listen>{}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow own=\"*\"/>\
                 <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
                address(folder.path())
            ),
        )
        .unwrap();
        let daemon = Command::new(DAEMON)
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut bus = Self { daemon, folder };
        // It tells its address when it listens.
        let mut told = String::new();
        let output = bus.daemon.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut told).unwrap();
        assert!(
            told.starts_with("unix:path="),
            "dbus-daemon does not start: {}",
            fs::read_to_string(&log).unwrap()
        );
        bus
    }

    pub(crate) fn address(&self) -> String {
        address(self.folder.path())
    }

    /// Ends the bus, as a restart does.
    pub(crate) fn stop(&mut self) {
        // It may be over already.
        let _ended = self.daemon.kill();
        let _reaped = self.daemon.wait();
    }

    /// Puts a logind onto it, which stays while the connection does.
    pub(crate) async fn logind(&self, script: Script, machine: &Arc<Machine>) -> zbus::Connection {
        Self::logind_at(&self.address(), script, machine).await
    }

    /// The same on the bus at this address.
    pub(crate) async fn logind_at(address: &str, script: Script, machine: &Arc<Machine>) -> zbus::Connection {
        let manager = Manager {
            script,
            machine: Arc::clone(machine),
        };
        connection::Builder::address(address)
            .serve_at("/org/freedesktop/login1", manager)
            .name("org.freedesktop.login1")
            .build()
            .await
            .unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}

fn address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus").display())
}

/// What logind makes of an order to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Script {
    /// Suspends; both signals come.
    #[default]
    Sleeps,
    /// Suspends; each signal comes twice.
    Doubled,
    /// Suspends; no signal comes.
    Lost,
    /// Suspends after this much of a `delay` inhibitor.
    Delayed(Duration),
    /// Suspends nothing: a `delay` inhibitor is held until [`Machine::let_go`]; then both signals have come.
    Held,
    /// The kernel fails with EBUSY; both signals come.
    Busy,
    /// The kernel counts a success and no time passes; both signals come.
    Fake,
    /// The end of another suspend is told, and nothing else happens.
    StaleEnd,
    /// The order is never answered.
    Silent,
    /// No call at all is answered.
    Deaf,
    /// A `block` inhibitor is held: polkit would have to be asked (systemd 252).
    Blocked,
    /// The same as systemd 257 says it.
    BlockedByLock,
    /// Another operation is under way.
    InProgress,
}

/// A machine that is only numbers.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) slept_ms: AtomicU64,
    pub(crate) stats: Mutex<Stats>,
    /// Flags of each order.
    pub(crate) orders: Mutex<Vec<u64>>,
    /// `ListInhibitors`.
    pub(crate) inhibitors: Mutex<Vec<Inhibitor>>,
    /// `ScheduledShutdown`.
    pub(crate) shutdown: Mutex<(String, u64)>,
    /// `PreparingForSleep`.
    pub(crate) preparing: AtomicBool,
    /// Ends [`Script::Held`].
    pub(crate) let_go: Notify,
}

/// what, who, why, mode, uid, pid
pub(crate) type Inhibitor = (String, String, String, String, u32, u32);

impl Machine {
    /// What a suspend is judged by.
    pub(crate) fn look(&self) -> Baseline {
        Baseline {
            slept: Duration::from_millis(self.slept_ms.load(Ordering::SeqCst)),
            stats: Some(self.stats.lock().unwrap().clone()),
        }
    }

    pub(crate) fn sleep(&self) {
        let night = u64::try_from(NIGHT.as_millis()).unwrap();
        self.slept_ms.fetch_add(night, Ordering::SeqCst);
        self.stats.lock().unwrap().success += 1;
    }

    fn fail(&self) {
        let mut stats = self.stats.lock().unwrap();
        stats.fail += 1;
        stats.last_failed_errno = Some(16);
        stats.last_failed_step = Some("freeze".into());
    }
}

/// The names are those of the bus and of systemd, `src/libsystemd/sd-bus/bus-common-errors.h`.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "DBus.Error.InteractiveAuthorizationRequired")]
    AuthenticationRequired(String),
    #[zbus(name = "login1.OperationInProgress")]
    OperationInProgress(String),
    #[zbus(name = "login1.BlockedByInhibitorLock")]
    BlockedByInhibitorLock(String),
}

struct Manager {
    script: Script,
    machine: Arc<Machine>,
}

impl Manager {
    async fn hear(&self) {
        if self.script == Script::Deaf {
            std::future::pending::<()>().await;
        }
    }
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    async fn list_inhibitors(&self) -> Vec<Inhibitor> {
        self.hear().await;
        self.machine.inhibitors.lock().unwrap().clone()
    }

    #[zbus(property)]
    async fn scheduled_shutdown(&self) -> (String, u64) {
        self.hear().await;
        self.machine.shutdown.lock().unwrap().clone()
    }

    #[zbus(property)]
    async fn preparing_for_sleep(&self) -> bool {
        self.hear().await;
        self.machine.preparing.load(Ordering::SeqCst)
    }

    async fn suspend_with_flags(
        &self,
        flags: u64,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<(), Refusal> {
        self.machine.orders.lock().unwrap().push(flags);
        match self.script {
            Script::Silent | Script::Deaf => std::future::pending().await,
            Script::Blocked => Err(Refusal::AuthenticationRequired(
                "Interactive authentication required.".into(),
            )),
            Script::BlockedByLock => Err(Refusal::BlockedByInhibitorLock(
                "Operation denied due to active block inhibitor".into(),
            )),
            Script::InProgress => Err(Refusal::OperationInProgress(
                "There's already a shutdown or sleep operation in progress".into(),
            )),
            Script::Sleeps
            | Script::Doubled
            | Script::Lost
            | Script::Delayed(_)
            | Script::Held
            | Script::Busy
            | Script::Fake
            | Script::StaleEnd => {
                // logind answers first, and then begins.
                tokio::spawn(play(self.script, Arc::clone(&self.machine), emitter.to_owned()));
                Ok(())
            }
        }
    }

    #[zbus(signal)]
    async fn prepare_for_sleep(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

async fn play(script: Script, machine: Arc<Machine>, emitter: SignalEmitter<'static>) {
    let times = match script {
        Script::Lost => 0,
        Script::Doubled => 2,
        _ => 1,
    };
    let tell = async |start: bool, times: u32| {
        for _time in 0..times {
            // A bus that is gone loses signals.
            let _lost = Manager::prepare_for_sleep(&emitter, start).await;
        }
    };
    if script == Script::StaleEnd {
        return tell(false, 1).await;
    }
    tell(true, times).await;
    match script {
        Script::Busy => machine.fail(),
        Script::Fake => machine.stats.lock().unwrap().success += 1,
        Script::Delayed(by) => {
            tokio::time::sleep(by).await;
            machine.sleep();
        }
        Script::Held => machine.let_go.notified().await,
        _ => machine.sleep(),
    }
    tell(false, times).await;
}
