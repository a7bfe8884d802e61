//! The guest that sleeps, with everything that drives it; one for all trials, put in order before each.
//!
//! Owns the connections. Never boots or ends the guest: `cargo xtask vm-test` does.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::Value;

use super::{channel::Channel, login::Login, qmp::Qmp, webhook::WebhookListener};
use crate::wait::wait_until;

/// Names the guest: a JSON document, see `xtask/src/sleep_guest.rs`.
pub(crate) const VARIABLE: &str = "VMSTATION_SLEEP_GUEST";
/// Longest wait for the guest to come up.
const BOOT: Duration = Duration::from_secs(300);
/// Longest wait for a suspend, or a resume, that has begun.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The guest's RTC tells whole seconds: a shorter sleep may look like none.
pub(crate) const NAP: Duration = Duration::from_millis(2500);

/// Interfaces in the guest by what their cards do; see `xtask/src/guest.rs`.
pub(crate) const ARMED: &str = "ens-armed";
pub(crate) const LYING: &str = "ens-lying";
pub(crate) const REFUSING: &str = "ens-refusing";
/// The one with a cable to a LAN. It is down but for the trials that are about that.
pub(crate) const LAN: &str = "ens-lan";

/// A task that nobody can freeze: it waits to write to a file system that takes no writes. Busy writers alone sometimes freeze in time.
pub(crate) const EBUSY: &str = "set -e
mkdir /var/trial/frozen
truncate --size=8M /var/trial/image
mkfs.ext4 -q /var/trial/image
mount -o loop /var/trial/image /var/trial/frozen
fsfreeze --freeze /var/trial/frozen
touch /var/trial/frozen/never &
until grep -q '^State:.D' /proc/$!/status; do sleep 0.1; done
echo 0 >/sys/power/pm_freeze_timeout
wait
";

/// Ends [`EBUSY`].
pub(crate) const THAW: &str = "
if mountpoint --quiet /var/trial/frozen; then fsfreeze --unfreeze /var/trial/frozen; fi
systemctl stop 'trial-*' 2>/dev/null
if mountpoint --quiet /var/trial/frozen; then umount /var/trial/frozen; fi
echo 20000 >/sys/power/pm_freeze_timeout
";

/// Names the cards, gives the one that leads to us its address and lets root log in with a key.
const PREPARE: &str = r#"set -e
systemctl --quiet reset-failed
name() {
    for card in /sys/class/net/*; do
        if [ "$(cat "$card/address")" = "$1" ]; then ip link set "${card##*/}" down name "$2"; fi
    done
    ip link set "$2" up
}
name 52:54:00:12:34:01 ens-armed
name 52:54:00:12:34:02 ens-lying
name 52:54:00:12:34:03 ens-refusing
name 52:54:00:12:34:04 ens-lan
ip address replace 10.0.2.15/24 dev ens-armed
mkdir -p /root/.ssh /run/sshd
chmod 700 /root/.ssh
systemctl --quiet unmask ssh.service
systemctl start ssh.service
"#;

/// Ends what a trial may have left, and says so if it cannot.
const RESTORE: &str = r#"
systemctl stop vmstation-autosleep.service vmstation-wake-event.service 2>/dev/null
systemctl reset-failed 2>/dev/null
shutdown -c 2>/dev/null
echo none >/sys/power/pm_test
echo 0 >/sys/class/rtc/rtc0/wakealarm
rm -rf /var/lib/vmstation /var/lib/private/vmstation /var/log/vmstation /etc/vmstation /opt/vmstation /etc/systemd/system/vmstation-autosleep.service.d /var/trial
mkdir -p /var/trial
ethtool -s ens-armed wol d
ethtool -s ens-lying wol d
ethtool -s ens-lan wol d
ip address flush dev ens-lan
ip link set ens-lan down
hostname "$(cat /etc/hostname)"
"#;

/// The guest and its wires.
pub(crate) struct Bed {
    pub(crate) qmp: Qmp,
    pub(crate) channel: Channel,
    pub(crate) login: Login,
    pub(crate) webhook: WebhookListener,
    /// Folder in the guest with the programs.
    pub(crate) payload: String,
    /// Ends of the cable of [`LAN`].
    pub(crate) cable: CableEnds,
}

/// Datagram sockets by their paths; each datagram is a frame.
#[derive(Clone, Debug)]
pub(crate) struct CableEnds {
    /// Takes what is sent to the guest.
    pub(crate) guest: PathBuf,
    /// Where what the guest sends goes, if anybody has made it.
    pub(crate) lan: PathBuf,
}

/// Why there is no guest to try anything with, if so.
pub(crate) fn missing() -> Option<&'static str> {
    if std::env::var_os(VARIABLE).is_none() {
        return Some("needs the guest of `cargo xtask vm-test`");
    }
    Login::missing()
}

/// The guest, awake, alone and as it was after its boot.
pub(crate) fn bed() -> MutexGuard<'static, Bed> {
    static BED: OnceLock<Mutex<Bed>> = OnceLock::new();
    // Whoever failed before us has left something behind at worst, and that is put in order.
    let mut bed = BED
        .get_or_init(|| Mutex::new(Bed::connect()))
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    bed.restore();
    bed
}

impl Bed {
    fn connect() -> Self {
        let description = std::env::var(VARIABLE).unwrap();
        let description: Value = serde_json::from_str(&description).unwrap();
        let as_path = |text: &Value| PathBuf::from(text.as_str().unwrap());
        let path = |key: &str| as_path(&description[key]);
        let port = |key: &str| u16::try_from(description[key].as_u64().unwrap()).unwrap();
        let mut bed = Self {
            qmp: Qmp::connect(&path("qmp")),
            channel: Channel::connect(&path("channel")),
            login: Login::new(port("ssh_port")),
            webhook: WebhookListener::start(port("webhook_port")),
            payload: path("payload").display().to_string(),
            cable: CableEnds {
                guest: as_path(&description["cable"]["guest"]),
                lan: as_path(&description["cable"]["lan"]),
            },
        };
        let up = bed.channel.run("systemctl is-system-running --wait", BOOT);
        let state = up.text.trim();
        assert!(["running", "degraded"].contains(&state), "the guest is {state}");
        bed.channel.ask(PREPARE);
        let key = bed.login.public_key();
        bed.channel.write("/root/.ssh/authorized_keys", "600", &key);
        bed
    }

    fn restore(&mut self) {
        self.wake();
        let restored = self.channel.run(&format!("{THAW}{RESTORE}"), SOON);
        assert!(restored.text.is_empty(), "{}", restored.text);
        // Stopping the agent, or a job of the trial, may have come too late to keep the guest awake.
        self.wake();
        self.webhook.forget();
    }

    /// Wakes the guest if it sleeps or is about to, and waits until it answers.
    pub(crate) fn wake(&mut self) {
        let answers = wait_until(2 * SOON, || {
            if self.qmp.status() == "suspended" {
                self.qmp.wake();
            }
            self.channel.attempt("true", Duration::from_secs(1)).is_some()
        });
        assert!(answers, "the guest is {} and does not answer", self.qmp.status());
    }

    /// Waits until the guest has suspended; fails with `why` it should have.
    pub(crate) fn sleeps(&mut self, why: &str) {
        assert!(self.qmp.becomes("suspended", SOON), "the guest does not suspend: {why}");
    }

    /// Lets the guest sleep a moment, wakes it and waits until it answers.
    pub(crate) fn nap(&mut self, why: &str) {
        self.sleeps(why);
        std::thread::sleep(NAP);
        self.wake();
    }

    /// Time the guest has slept since its boot: what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC.
    pub(crate) fn asleep(&mut self) -> Duration {
        let clocks = self.channel.ask(
            "read boottime rest </proc/uptime; echo $boottime; awk '/^now at/ { print $3; exit }' /proc/timer_list",
        );
        let (boottime, monotonic) = clocks.split_once('\n').unwrap();
        let boottime = Duration::from_secs_f64(boottime.parse().unwrap());
        boottime.saturating_sub(Duration::from_nanos(monotonic.parse().unwrap()))
    }

    /// Reads a file of the guest; empty if it is not there.
    pub(crate) fn read(&mut self, path: impl AsRef<Path>) -> String {
        let path = path.as_ref().display();
        self.channel.ask(&format!("cat '{path}' 2>/dev/null || true"))
    }
}
