//! What an attempt to sleep touches of this host, each through the file that may: hooks, inhibitors, network cards, power.
//!
//! In a dry run it looks and says, and changes nothing.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    process::Command,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::Outside;
use crate::{
    attempt::{Step, Went},
    clock::BootTime,
    config::{HookFailure, Sleep},
    coordinator::Coordinator,
    hooks::{self, KEPT_OUTPUT, Limits},
    inhibit::{self, PackageLocks},
    journal::{Journal, Record},
    printable::with_causes,
    suspend::{
        Baseline, Ended, Logind, SuspendError, fallback,
        logind::END_DEADLINE,
        power::{Power, WakeSources, WakeupCount},
        rtc::Rtc,
        veto::Veto,
    },
    wol,
};

/// Longest time for writing dirty data. A disk or a server that takes longer is not ready for a suspend.
const SYNC_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for the drivers of network cards.
const CARDS_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a wakeup event that is being processed.
const COUNT_DEADLINE: Duration = Duration::from_secs(2);

/// Longest time that hooks of an agent that died take to end: 5 s for each that ignores TERM.
const OLD_HOOKS_DEADLINE: Duration = Duration::from_secs(15);
/// Looks, in the time between them, at whether logind is still about to suspend the host for an attempt whose process died.
const SETTLE_LOOKS: u32 = 120;
const SETTLE_EVERY: Duration = Duration::from_millis(500);

/// What a host is made of.
pub struct HostParts {
    /// Settings of the sleep.
    pub sleep: Sleep,
    /// Interfaces that are watched; empty: every physical one.
    pub interfaces: Vec<String>,
    /// Whether nothing may be changed.
    pub dry_run: bool,
    /// Who gives leave.
    pub coordinator: Coordinator,
    /// Why the host is to sleep, in words, for who gives leave.
    pub reason: &'static str,
    /// Name of the node, for hooks.
    pub node: String,
    /// Becomes readable when somebody may be logging in, which ends a suspend that is under way without anybody's doing.
    pub login: Option<OwnedFd>,
    /// Where everything is.
    pub places: Places,
}

/// Where a host keeps what an attempt touches.
#[derive(Clone, Debug)]
pub struct Places {
    /// sysfs.
    pub sys: PathBuf,
    /// The root of the file system, for the locks of package managers and systemd's configuration.
    pub root: PathBuf,
    /// D-Bus address of the bus with logind; `None`: the system bus.
    pub bus: Option<String>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            root: "/".into(),
            bus: None,
        }
    }
}

/// This host, for one attempt.
pub struct Host {
    parts: HostParts,
    power: Power,
    logind: Option<Logind>,
    veto: Option<Arc<Veto>>,
    count: Option<WakeupCount>,
    sources: Option<WakeSources>,
}

impl Host {
    /// Touches nothing yet.
    pub fn new(parts: HostParts) -> Self {
        Self {
            power: Power::new(parts.places.sys.clone()),
            parts,
            logind: None,
            veto: None,
            count: None,
            sources: None,
        }
    }

    /// Everything on this host that stands against a sleep. Changes nothing.
    pub async fn objections(&mut self) -> Vec<String> {
        let mut objections = Vec::new();
        objections.extend(self.power.usable(self.parts.sleep.allow_s2idle).err());
        objections.extend(fallback::only_mem(&self.parts.places.root).err());
        if self.logind.is_none() {
            match self.connect().await {
                Ok(logind) => self.logind = Some(logind),
                Err(error) => objections.push(with_causes(&error)),
            }
        }
        if let Some(logind) = &self.logind {
            let found = inhibit::objections(logind, &PackageLocks::new(self.parts.places.root.clone())).await;
            objections.extend(found.iter().map(ToString::to_string));
        }
        objections.extend(self.unwakeable(false).await.err());
        objections
    }

    async fn connect(&self) -> Result<Logind, SuspendError> {
        match &self.parts.places.bus {
            None => Logind::connect().await,
            Some(address) => Logind::connect_to(address).await,
        }
    }

    async fn stand_against(&mut self) -> Went {
        let objections = self.objections().await;
        if objections.is_empty() {
            return Went::Well;
        }
        let objections = objections.join("; ");
        if self.parts.dry_run {
            tracing::info!(objections, "dry run: the sleep would be refused");
            return Went::Well;
        }
        Went::Refused(objections)
    }

    /// Who could wake the host: a card that is armed, or would be once armed; else the alarm; else nobody, if that is allowed.
    async fn unwakeable(&self, arm: bool) -> Result<(), String> {
        let (sys, interfaces, arms) = (
            self.parts.places.sys.clone(),
            self.parts.interfaces.clone(),
            self.parts.sleep.arm_wol,
        );
        let looked = spawn_blocking(move || {
            if arm && arms {
                wol::arm_all(&sys, &interfaces)
            } else {
                wol::ports(&sys, &interfaces)
            }
        });
        let ports = match timeout(CARDS_DEADLINE, looked).await {
            Err(_elapsed) => return self.without_cards("a network card's driver does not answer"),
            Ok(looked) => looked,
        };
        let ports = match ports {
            Ok(Ok(ports)) => ports,
            Ok(Err(error)) => return self.without_cards(&with_causes(&error)),
            Err(error) => return self.without_cards(&error.to_string()),
        };
        let wakes = |port: &wol::Port| port.wakes() || (!arm && arms && port.would_wake_if_armed());
        if ports.iter().any(wakes) {
            return Ok(());
        }
        let why = ports.iter().map(|port| {
            let objections: Vec<_> = port.objections().iter().map(ToString::to_string).collect();
            format!("{}: {}", port.interface, objections.join(", "))
        });
        let why: Vec<_> = why.collect();
        self.without_cards(&if why.is_empty() {
            "there is no physical network card".into()
        } else {
            why.join("; ")
        })
    }

    fn without_cards(&self, why: &str) -> Result<(), String> {
        let sleep = &self.parts.sleep;
        if sleep.wake_after.is_some() || sleep.allow_unwakeable {
            return Ok(());
        }
        Err(format!(
            "nothing could wake the host ({why}): mend that, set `[sleep] wake_after`, or `[sleep] allow_unwakeable = true`"
        ))
    }

    async fn run_hooks(&self, folder: &str, environment: &[(&str, String)]) -> Vec<hooks::Run> {
        let limits = Limits {
            timeout: self.parts.sleep.hook_timeout,
            kept_output: KEPT_OUTPUT,
        };
        let folder = self.parts.sleep.hooks_folder.join(folder);
        hooks::run_all(&folder, limits, environment, |run| {
            let (hook, outcome, ms) = (&run.name, &run.outcome, run.took.as_millis());
            if run.outcome.is_ok() {
                tracing::info!(hook, ms, output = run.output, "hook done");
            } else {
                tracing::warn!(hook, %outcome, ms, output = run.output, "hook not done");
            }
        })
        .await
    }

    fn environment(&self, event: &str) -> Vec<(&'static str, String)> {
        vec![
            ("VMSTATION_EVENT", event.into()),
            ("VMSTATION_NODE", self.parts.node.clone()),
        ]
    }

    async fn pre_sleep_hooks(&self) -> Went {
        let runs = self.run_hooks("pre-sleep.d", &self.environment("pre-sleep")).await;
        let failed = runs.iter().find(|run| !run.outcome.is_ok());
        match (self.parts.sleep.hook_failure, failed) {
            (HookFailure::Veto, Some(run)) => {
                Went::Refused(format!("the pre-sleep hook {}: {}", run.name, run.outcome))
            }
            (HookFailure::Veto, None) | (HookFailure::Continue, _) => Went::Well,
        }
    }

    async fn ask_leave(&self, journal: &Journal, record: &mut Record) -> Went {
        match self.parts.coordinator.ask_leave(self.parts.reason).await {
            Ok(None) => Went::Well,
            Ok(leave) => {
                record.leave = leave;
                written(journal, record)
            }
            Err(why) => Went::Refused(why),
        }
    }

    async fn set_alarm(&self, journal: &Journal, record: &mut Record) -> Went {
        let Some(after) = self.parts.sleep.wake_after else {
            return Went::Well;
        };
        let rtc = Rtc::new(&self.parts.places.sys);
        let alarm = rtc.plan(after).and_then(|planned| {
            record.alarm = Some(planned.clone());
            // Before the clock is touched: whoever finds the journal must know what was there.
            journal
                .write(record)
                .map_err(|error| format!("write the journal: {error}"))?;
            rtc.arm(planned)
        });
        match alarm {
            Ok(alarm) => {
                tracing::info!(%alarm, "the alarm of the real-time clock is set");
                record.alarm = Some(alarm);
                written(journal, record)
            }
            Err(error) => Went::Refused(format!("the alarm that would wake the host cannot be set: {error}")),
        }
    }

    async fn read_count(&mut self) -> Went {
        self.sources = Some(self.power.wake_sources());
        match self.power.read_count(COUNT_DEADLINE).await {
            Ok(count) => {
                if count == WakeupCount::Unavailable {
                    tracing::warn!("this kernel has no wakeup_count: a wakeup event does not stop a suspend");
                }
                self.count = Some(count);
                Went::Well
            }
            Err(why) => Went::Refused(why),
        }
    }

    fn hand_count_back(&self) -> Went {
        let Some(count) = self.count else {
            return Went::Well;
        };
        match self.power.arm(count) {
            Ok(()) => Went::Well,
            Err(why) => Went::Refused(why),
        }
    }

    async fn suspend(&mut self) -> Went {
        let Some(logind) = &mut self.logind else {
            return Went::Failed("logind is gone".into());
        };
        let before = Baseline::take(&self.power);
        match logind.suspend().await {
            // Without an answer it may come all the same.
            Ok(()) | Err(SuspendError::Silent { .. } | SuspendError::Broken { .. }) => {}
            Err(error @ (SuspendError::Inhibited(_) | SuspendError::InProgress(_))) => {
                return Went::Refused(with_causes(&error));
            }
            Err(error) => return Went::Failed(with_causes(&error)),
        }
        let power = &self.power;
        match logind.ended(&before, || Baseline::take(power), END_DEADLINE).await {
            Ended::Slept { r#for: slept } => Went::Slept(slept),
            Ended::NotSlept(why) => Went::Failed(why.to_string()),
        }
    }
}

impl Outside for Host {
    async fn perform(&mut self, step: Step, journal: &Journal, record: &mut Record) -> Went {
        if self.parts.dry_run {
            return match step {
                Step::Objections => self.stand_against().await,
                Step::Suspend => {
                    tracing::info!("dry run: the host would be suspended at this point");
                    Went::Slept(Duration::ZERO)
                }
                Step::Leave
                | Step::Notice
                | Step::Hooks
                | Step::Sync
                | Step::LastObjections
                | Step::WakeOnLan
                | Step::Alarm
                | Step::WakeupCount
                | Step::Confirm
                | Step::Handshake => Went::Well,
            };
        }
        match step {
            Step::Objections => self.stand_against().await,
            Step::LastObjections => {
                // A connection of this moment asks whether somebody else's suspend is under way, and has no signals of earlier ones.
                self.logind = None;
                self.stand_against().await
            }
            Step::Leave => self.ask_leave(journal, record).await,
            Step::Hooks => self.pre_sleep_hooks().await,
            Step::Sync => match timeout(SYNC_DEADLINE, spawn_blocking(nix::unistd::sync)).await {
                Ok(_synced) => Went::Well,
                Err(_elapsed) => Went::Refused(format!(
                    "dirty data was not written within {} s: is a disk or a file server stuck?",
                    SYNC_DEADLINE.as_secs()
                )),
            },
            Step::WakeOnLan => refused(self.unwakeable(true).await),
            Step::Alarm => self.set_alarm(journal, record).await,
            Step::WakeupCount => self.read_count().await,
            Step::Handshake => {
                self.veto = veto(self.parts.login.as_ref());
                self.hand_count_back()
            }
            Step::Suspend if record.leave.is_some_and(|leave| leave.is_over(BootTime::now())) => {
                Went::Refused("the wake server's leave to sleep expired before the host was ready".into())
            }
            Step::Suspend => self.suspend().await,
            // The driver's.
            Step::Notice | Step::Confirm => Went::Well,
        }
    }

    async fn undo(&mut self, step: Step, record: &Record, ending: &str) {
        if self.parts.dry_run {
            return;
        }
        match step {
            Step::Leave => {
                if let Some(leave) = record.leave {
                    self.parts.coordinator.hand_back(leave).await;
                }
            }
            Step::Hooks => {
                let mut environment = self.environment("post-wake");
                environment.push(("VMSTATION_OUTCOME", ending.into()));
                self.run_hooks("post-wake.d", &environment).await;
            }
            Step::Alarm => {
                if let Some(alarm) = &record.alarm
                    && let Err(error) = Rtc::new(&self.parts.places.sys).undo(alarm)
                {
                    tracing::error!(%error, "the alarm of the real-time clock cannot be taken back");
                }
            }
            Step::Handshake => {
                if let Err(error) = self.power.disarm() {
                    tracing::warn!(%error, "the kernel may refuse the next suspend once");
                }
            }
            Step::Objections
            | Step::Notice
            | Step::Sync
            | Step::LastObjections
            | Step::WakeOnLan
            | Step::WakeupCount
            | Step::Confirm
            | Step::Suspend => {}
        }
    }

    async fn settle(&mut self, record: &Record) {
        if self.parts.dry_run {
            return;
        }
        if record.begun.contains(&Step::Hooks) {
            end_old_hooks().await;
        }
        if record.step != Step::Suspend {
            return;
        }
        for _ in 0..SETTLE_LOOKS {
            match self.connect().await {
                Err(SuspendError::InProgress(_)) => sleep(SETTLE_EVERY).await,
                Ok(_) | Err(_) => return,
            }
        }
        tracing::warn!("logind is still about to suspend the host; undoing what is left of the attempt all the same");
    }

    fn veto(&self) -> Option<Arc<Veto>> {
        self.veto.clone()
    }

    fn wake_source(&mut self) -> Option<String> {
        let before = self.sources.take()?;
        self.power.wake_source(&before, &self.power.wake_sources())
    }
}

/// Under systemd a hook outlives the agent that died: those that undo it must not run beside it.
async fn end_old_hooks() {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let stopped = Command::new("systemctl")
        .args(["stop", "vmstation-hook-*.service"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(OLD_HOOKS_DEADLINE, stopped).await {
        Ok(Ok(_none_or_ended)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "hooks of the agent that died may still run"),
        Err(_elapsed) => tracing::warn!("hooks of the agent that died still run"),
    }
}

/// What stops a suspend that is under way.
fn veto(login: Option<&OwnedFd>) -> Option<Arc<Veto>> {
    let mut veto = Veto::new()
        .inspect_err(|error| tracing::warn!(%error, "a suspend cannot be called off once it is ordered"))
        .ok()?;
    if let Some(why) = veto.powerless() {
        tracing::warn!("a suspend cannot be called off once it is ordered: {why}");
    }
    if let Some(Err(error)) = login.map(|login| veto.also(login)) {
        tracing::warn!(%error, "a login ends a suspend only once the agent has seen it");
    }
    Some(Arc::new(veto))
}

fn refused(asked: Result<(), String>) -> Went {
    match asked {
        Ok(()) => Went::Well,
        Err(why) => Went::Refused(why),
    }
}

fn written(journal: &Journal, record: &Record) -> Went {
    match journal.write(record) {
        Ok(()) => Went::Well,
        Err(error) => Went::Refused(format!("the journal of the attempt cannot be written: {error}")),
    }
}
