//! `/sys/power` and `/sys/class/wakeup`: what sleep state there is, the `wakeup_count` handshake, the kernel's account of its attempts,
//! and who woke the host. Holds no state of its own but the memory of a read that still blocks.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::errno::Errno;
use tokio::{sync::oneshot, time};

use super::read_if_there;

/// A count that is never the current one: the kernel's has 16 bits (`IN_PROGRESS_BITS`, drivers/base/power/wakeup.c).
const NEVER_CURRENT: u32 = 0x7fff_ffff;

/// The most names [`Power::wake_source`] tells.
const NAMES: usize = 4;

/// A sleep state the host may be put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepState {
    /// Suspend to RAM (S3).
    Deep,
    /// Suspend to idle: the CPUs idle, the machine stays on.
    S2Idle,
}

/// The kernel's count of wakeup events, as the handshake needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeupCount {
    /// This many so far.
    At(u32),
    /// This kernel has no `/sys/power/wakeup_count`: wakeup events do not abort a suspend.
    Unavailable,
}

/// The kernel's account of its suspend attempts since boot (`/sys/power/suspend_stats`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Successes, some of which may be fake (fault S5).
    pub success: u64,
    /// Failures.
    pub fail: u64,
    /// Device that refused last.
    pub last_failed_dev: Option<String>,
    /// Error number of the last failure, positive.
    pub last_failed_errno: Option<i32>,
    /// Step of the last failure.
    pub last_failed_step: Option<String>,
}

/// The wakeup sources at a moment, by their folder's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WakeSources(BTreeMap<String, WakeSource>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WakeSource {
    name: String,
    /// Whether it is a device's; the kernel's own and those of programs (`EPOLLWAKEUP`) are not.
    of_device: bool,
    /// Times it might have aborted a suspend (sysfs-class-wakeup).
    wakeups: u64,
    events: u64,
    activations: u64,
}

/// The kernel's files; see the module.
#[derive(Clone, Debug)]
pub struct Power {
    sys: PathBuf,
    interrupts: PathBuf,
    /// A read of `wakeup_count` has not come back.
    reading: Arc<AtomicBool>,
}

impl Power {
    /// The files below `sys`, which is `/sys` but in tests.
    pub fn new(sys: PathBuf) -> Self {
        Self {
            sys,
            interrupts: "/proc/interrupts".into(),
            reading: Arc::default(),
        }
    }

    /// The same with another `/proc/interrupts`.
    #[must_use]
    pub fn with_interrupts(self, interrupts: PathBuf) -> Self {
        Self { interrupts, ..self }
    }

    /// The state that a suspend to memory would go into (Documentation/admin-guide/pm/sleep-states.rst; fault S8).
    ///
    /// # Errors
    /// There is none that may be used, with the way to one.
    pub fn usable(&self, allow_s2idle: bool) -> Result<SleepState, String> {
        let state = self.sys.join("power/state");
        let states = read_if_there(&state)?
            .ok_or_else(|| format!("{} is missing: this kernel cannot suspend", state.display()))?;
        if !states.split_whitespace().any(|state| state == "mem") {
            return Err(format!(
                "{} does not offer `mem` (it reads {states:?}): this machine cannot suspend",
                state.display()
            ));
        }
        let modes_file = self.sys.join("power/mem_sleep");
        let modes = read_if_there(&modes_file)?
            .ok_or_else(|| format!("{} is missing: what `mem` means here is unknown", modes_file.display()))?;
        chosen(&modes, allow_s2idle).map_err(|why| format!("{} reads {modes:?}: {why}", modes_file.display()))
    }

    /// The count of wakeup events. The kernel answers only when none is being processed; if that takes longer than `within`, or an
    /// earlier read still waits for it, something keeps the host awake.
    ///
    /// # Errors
    /// Why the host should not be suspended.
    pub async fn read_count(&self, within: Duration) -> Result<WakeupCount, String> {
        const BUSY: &str =
            "a wakeup event is being processed; /sys/kernel/debug/wakeup_sources names it (active_since)";
        if self.reading.swap(true, Ordering::AcqRel) {
            return Err(BUSY.into());
        }
        let path = self.sys.join("power/wakeup_count");
        let (send, answer) = oneshot::channel();
        let reading = Arc::clone(&self.reading);
        // Not the runtime's blocking pool: its end would wait for this read.
        let reader = thread::Builder::new()
            .name("wakeup-count".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                let text = read_if_there(&path);
                reading.store(false, Ordering::Release);
                // Nobody waits for it after the deadline.
                let _late = send.send(text);
            });
        if let Err(error) = reader {
            self.reading.store(false, Ordering::Release);
            return Err(format!("start a thread that reads wakeup_count: {error}"));
        }
        match time::timeout(within, answer).await {
            Ok(Ok(Ok(Some(count)))) => count
                .parse()
                .map(WakeupCount::At)
                .map_err(|_not_a_number| format!("/sys/power/wakeup_count reads {count:?}, which is no number")),
            Ok(Ok(Ok(None))) => Ok(WakeupCount::Unavailable),
            Ok(Ok(Err(why))) => Err(why),
            Ok(Err(_panicked)) => Err("the thread that reads wakeup_count ended without an answer".into()),
            Err(_elapsed) => Err(BUSY.into()),
        }
    }

    /// Makes wakeup events from `count` on abort the next suspend. Without the kernel's file it does nothing.
    ///
    /// # Errors
    /// Events happened since `count` was read, or the kernel refuses; nothing is armed then.
    pub fn arm(&self, count: WakeupCount) -> Result<(), String> {
        match count {
            WakeupCount::Unavailable => Ok(()),
            WakeupCount::At(count) => self.write_count(count).map_err(|error| {
                if is_einval(&error) {
                    "a wakeup event happened on the way to sleep".into()
                } else {
                    format!("write /sys/power/wakeup_count: {error}")
                }
            }),
        }
    }

    /// Takes [`Self::arm`] back: `pm_save_wakeup_count` clears `events_check_enabled` before it compares, so that writing a count that is
    /// not the current one disarms and answers EINVAL (drivers/base/power/wakeup.c, kernel/power/main.c). A suspend disarms by itself.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub fn disarm(&self) -> Result<(), String> {
        match self.write_count(NEVER_CURRENT) {
            Ok(()) => Ok(()),
            Err(error) if is_einval(&error) || error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("write /sys/power/wakeup_count: {error}")),
        }
    }

    fn write_count(&self, count: u32) -> io::Result<()> {
        write_existing(&self.sys.join("power/wakeup_count"), &count.to_string())
    }

    /// The account of attempts; `None` where `/sys/power/suspend_stats` is missing (kernels before 5.4) or cannot be read.
    pub fn stats(&self) -> Option<Stats> {
        let folder = self.sys.join("power/suspend_stats");
        let read = |name: &str| read_if_there(&folder.join(name)).ok().flatten();
        let text = |name: &str| read(name).filter(|text| !text.is_empty());
        Some(Stats {
            success: read("success")?.parse().ok()?,
            fail: read("fail")?.parse().ok()?,
            last_failed_dev: text("last_failed_dev"),
            last_failed_errno: text("last_failed_errno")
                .and_then(|errno| errno.parse::<i32>().ok())
                .and_then(i32::checked_abs)
                .filter(|errno| *errno != 0),
            last_failed_step: text("last_failed_step"),
        })
    }

    /// The wakeup sources; none if they cannot be read.
    pub fn wake_sources(&self) -> WakeSources {
        let Ok(folder) = fs::read_dir(self.sys.join("class/wakeup")) else {
            return WakeSources::default();
        };
        let sources = folder.flatten().filter_map(|entry| {
            let path = entry.path();
            let read = |name: &str| read_if_there(&path.join(name)).ok().flatten();
            let count = |name: &str| read(name).and_then(|count| count.parse().ok());
            let source = WakeSource {
                name: read("name")?,
                of_device: path.join("device").exists(),
                wakeups: count("wakeup_count")?,
                events: count("event_count")?,
                activations: count("active_count")?,
            };
            Some((entry.file_name().to_string_lossy().into_owned(), source))
        });
        WakeSources(sources.collect())
    }

    /// Who woke the host, as far as the system tells: the interrupt (`/sys/power/pm_wakeup_irq`), and the sources that counted between
    /// `before` and `after`. For people; nothing is decided by it.
    pub fn wake_source(&self, before: &WakeSources, after: &WakeSources) -> Option<String> {
        let mut names: Vec<String> = self.wake_interrupt().into_iter().collect();
        names.extend(after.counted_since(before));
        names.truncate(NAMES);
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn wake_interrupt(&self) -> Option<String> {
        // ENODATA: no interrupt woke it.
        let number = read_if_there(&self.sys.join("power/pm_wakeup_irq")).ok().flatten()?;
        let interrupts = fs::read_to_string(&self.interrupts).unwrap_or_default();
        Some(match handler(&interrupts, &number) {
            Some(handler) => format!("IRQ {number} ({handler})"),
            None => format!("IRQ {number}"),
        })
    }
}

impl WakeSources {
    /// The sources that could have ended a suspend; if none counts as one, the devices that had any event.
    fn counted_since(&self, before: &Self) -> Vec<String> {
        let before = |id: &String| before.0.get(id).cloned().unwrap_or_default();
        let named = |counts: &dyn Fn(&WakeSource, &WakeSource) -> bool| -> Vec<String> {
            let grown = self.0.iter().filter(|(id, source)| counts(source, &before(id)));
            grown.map(|(_, source)| source.name.clone()).collect()
        };
        let wakeups = named(&|now, then| now.wakeups > then.wakeups);
        if wakeups.is_empty() {
            named(&|now, then| now.of_device && (now.events > then.events || now.activations > then.activations))
        } else {
            wakeups
        }
    }
}

/// The mode in brackets, if it may be used.
fn chosen(modes: &str, allow_s2idle: bool) -> Result<SleepState, String> {
    let selected = modes
        .split_whitespace()
        .find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    let offers_deep = modes.split_whitespace().any(|mode| mode == "deep");
    match selected {
        Some("deep") => Ok(SleepState::Deep),
        Some("s2idle") if allow_s2idle => Ok(SleepState::S2Idle),
        Some(selected) if offers_deep => Err(format!(
            "{selected} is selected though `deep` is offered; boot with mem_sleep_default=deep, or `echo deep > /sys/power/mem_sleep`"
        )),
        Some("s2idle") => {
            Err("this machine offers only s2idle, which saves little; `allow_s2idle = true` permits it".into())
        }
        Some(selected) => Err(format!(
            "{selected} is selected, which is not a sleep state we know to be safe"
        )),
        None => Err("no mode is selected".into()),
    }
}

/// What `/proc/interrupts` calls an interrupt: the text behind its counters, without the chip and the kind.
fn handler(interrupts: &str, number: &str) -> Option<String> {
    let line = interrupts
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(number)?.strip_prefix(':'))?;
    let words: Vec<&str> = line
        .split_whitespace()
        .skip_while(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    // Chip, `9-fasteoi`, name.
    let name = words.get(2..)?.join(" ");
    (!name.is_empty()).then_some(name)
}

fn is_einval(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EINVAL as i32)
}

/// Writes to a kernel file, and never makes one.
pub(super) fn write_existing(path: &std::path::Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
