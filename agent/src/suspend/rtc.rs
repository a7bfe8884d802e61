//! The dead man's alarm: the real-time clock wakes a host that nobody else wakes (fault S11).
//!
//! Its state is the clock's alarm register (`/sys/class/rtc/rtc0/wakealarm`), and an [`Alarm`] that the journal keeps. All times are the
//! real-time clock's own: the system's wall clock is never read (S14). Never overwrites an earlier alarm of somebody else's.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{power::write_existing, read_if_there};

/// Seconds since 1970 as the real-time clock counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RtcTime(pub u64);

/// What will wake the host, and what undoing it has to restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alarm {
    /// Ours.
    Ours {
        /// When it goes off.
        rings: RtcTime,
        /// A later alarm of somebody else's that it takes the place of.
        displaced: Option<RtcTime>,
    },
    /// Somebody else's, which is due before ours would be: it is left as it is.
    Foreign {
        /// When it goes off.
        rings: RtcTime,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours { rings, displaced: None } => write!(f, "RTC alarm at {}", rings.0),
            Self::Ours {
                rings,
                displaced: Some(later),
            } => {
                write!(f, "RTC alarm at {}, in place of a foreign one at {}", rings.0, later.0)
            }
            Self::Foreign { rings } => write!(
                f,
                "a foreign RTC alarm at {} is due earlier than ours and is kept",
                rings.0
            ),
        }
    }
}

/// A real-time clock that can wake the host.
#[derive(Clone, Debug)]
pub struct Rtc {
    folder: PathBuf,
}

impl Rtc {
    /// The clock `rtc0` below `sys`, which is `/sys` but in tests.
    pub fn new(sys: &Path) -> Self {
        Self {
            folder: sys.join("class/rtc/rtc0"),
        }
    }

    /// What [`Self::arm`] would make of an alarm in `after` (whole seconds, rounded up): for the journal, which has to know it first.
    ///
    /// # Errors
    /// There is no such clock, or it has no alarm.
    pub fn plan(&self, after: Duration) -> Result<Alarm, String> {
        let now = self.now()?;
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        let rings = RtcTime(now.0.saturating_add(seconds.max(1)));
        Ok(match self.pending(now)? {
            Some(earlier) if earlier <= rings => Alarm::Foreign { rings: earlier },
            displaced => Alarm::Ours { rings, displaced },
        })
    }

    /// Sets the planned alarm, and returns it with the time that the clock took.
    ///
    /// # Errors
    /// The clock refused; an alarm that was displaced is back in its place, or the error says that it is not.
    pub fn arm(&self, alarm: Alarm) -> Result<Alarm, String> {
        let (rings, displaced) = match alarm {
            Alarm::Foreign { .. } => return Ok(alarm),
            Alarm::Ours { rings, displaced } => (rings, displaced),
        };
        match self.set_to(rings) {
            Ok(rings) => Ok(Alarm::Ours { rings, displaced }),
            Err(why) => Err(match self.restore(displaced) {
                Ok(()) => why,
                Err(also) => format!("{why}; and the alarm that was there before is lost: {also}"),
            }),
        }
    }

    /// [`Self::plan`] and [`Self::arm`].
    ///
    /// # Errors
    /// As theirs.
    pub fn set(&self, after: Duration) -> Result<Alarm, String> {
        self.arm(self.plan(after)?)
    }

    /// Clears the alarm if it is still ours, and restores the one it displaced if that is still ahead. Doing it twice does no harm.
    ///
    /// # Errors
    /// The clock cannot be read or refuses.
    pub fn undo(&self, alarm: &Alarm) -> Result<(), String> {
        match alarm {
            Alarm::Foreign { .. } => Ok(()),
            Alarm::Ours { rings, displaced } => match self.alarm()? {
                Some(other) if other != *rings => Ok(()),
                Some(_ours) => {
                    self.write(RtcTime(0))?;
                    self.restore(*displaced)
                }
                None => self.restore(*displaced),
            },
        }
    }

    fn restore(&self, displaced: Option<RtcTime>) -> Result<(), String> {
        match displaced {
            Some(displaced) if displaced > self.now()? => self.set_to(displaced).map(|_as_before| ()),
            Some(_past) => Ok(()),
            None => Ok(()),
        }
    }

    /// Sets an alarm in place of any other, and reads it back. The kernel answers EBUSY to an alarm on top of another (drivers/rtc/sysfs.c,
    /// `wakealarm_store`), so the other goes first.
    fn set_to(&self, rings: RtcTime) -> Result<RtcTime, String> {
        if self.alarm()?.is_some() {
            self.write(RtcTime(0))?;
        }
        self.write(rings)?;
        self.alarm()?
            .ok_or_else(|| format!("{}/wakealarm took an alarm and has none", self.folder.display()))
    }

    fn pending(&self, now: RtcTime) -> Result<Option<RtcTime>, String> {
        Ok(self.alarm()?.filter(|alarm| *alarm > now))
    }

    /// The alarm that is set; an empty file is none.
    fn alarm(&self) -> Result<Option<RtcTime>, String> {
        let text = self.read("wakealarm")?;
        if text.is_empty() {
            Ok(None)
        } else {
            self.time(&text).map(Some)
        }
    }

    fn now(&self) -> Result<RtcTime, String> {
        self.time(&self.read("since_epoch")?)
    }

    fn time(&self, text: &str) -> Result<RtcTime, String> {
        let seconds = text.parse().map(RtcTime);
        seconds.map_err(|_not_a_number| format!("{} tells {text:?}, which is no time", self.folder.display()))
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let path = self.folder.join(name);
        read_if_there(&path)?.ok_or_else(|| {
            format!(
                "{} is missing: there is no real-time clock that could wake the host; remove wake_after",
                path.display()
            )
        })
    }

    fn write(&self, time: RtcTime) -> Result<(), String> {
        let path = self.folder.join("wakealarm");
        write_existing(&path, &time.0.to_string())
            .map_err(|error| format!("write {} to {}: {error}", time.0, path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const NOW: u64 = 1_000_000;
    const HOUR: Duration = Duration::from_secs(3_600);

    fn clock(pending: &str) -> (TempDir, Rtc) {
        let sys = TempDir::new().unwrap();
        let rtc = Rtc::new(sys.path());
        fs::create_dir_all(&rtc.folder).unwrap();
        fs::write(rtc.folder.join("since_epoch"), format!("{NOW}\n")).unwrap();
        fs::write(rtc.folder.join("wakealarm"), pending).unwrap();
        (sys, rtc)
    }

    fn pass(rtc: &Rtc, seconds: u64) {
        fs::write(rtc.folder.join("since_epoch"), (NOW + seconds).to_string()).unwrap();
    }

    /// What the register holds; the plain file of these trials keeps the 0 that clears the kernel's.
    fn register(rtc: &Rtc) -> u64 {
        fs::read_to_string(rtc.folder.join("wakealarm"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    #[test]
    fn s11_an_alarm_is_set_and_undone() {
        let (_sys, rtc) = clock("");
        let alarm = rtc.set(HOUR).unwrap();
        assert_eq!(
            alarm,
            Alarm::Ours {
                rings: RtcTime(NOW + 3_600),
                displaced: None
            }
        );
        assert_eq!(register(&rtc), NOW + 3_600);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), 0);
    }

    #[test]
    fn s11_an_earlier_foreign_alarm_is_kept() {
        let earlier = NOW + 60;
        let (_sys, rtc) = clock(&format!("{earlier}\n"));
        let alarm = rtc.set(HOUR).unwrap();
        assert_eq!(
            alarm,
            Alarm::Foreign {
                rings: RtcTime(earlier)
            }
        );
        assert_eq!(register(&rtc), earlier);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), earlier);
    }

    #[test]
    fn s11_a_later_foreign_alarm_is_restored() {
        let later = NOW + 7_200;
        let (_sys, rtc) = clock(&later.to_string());
        let alarm = rtc.set(HOUR).unwrap();
        assert_eq!(
            alarm,
            Alarm::Ours {
                rings: RtcTime(NOW + 3_600),
                displaced: Some(RtcTime(later))
            }
        );
        assert_eq!(register(&rtc), NOW + 3_600);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), later);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), later, "undoing it again changes nothing");
    }

    #[test]
    fn s11_a_displaced_alarm_that_has_passed_is_not_restored() {
        let (_sys, rtc) = clock(&(NOW + 7_200).to_string());
        let alarm = rtc.set(HOUR).unwrap();
        pass(&rtc, 9_000);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), 0);
    }

    #[test]
    fn s11_an_alarm_somebody_set_meanwhile_is_left_alone() {
        let (_sys, rtc) = clock("");
        let alarm = rtc.set(HOUR).unwrap();
        fs::write(rtc.folder.join("wakealarm"), (NOW + 5).to_string()).unwrap();
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), NOW + 5);
    }

    #[test]
    fn s11_an_alarm_that_rang_leaves_nothing_but_the_displaced_one() {
        let (_sys, rtc) = clock(&(NOW + 7_200).to_string());
        let alarm = rtc.set(HOUR).unwrap();
        // The kernel shows nothing when no alarm is pending.
        fs::write(rtc.folder.join("wakealarm"), "").unwrap();
        pass(&rtc, 3_601);
        rtc.undo(&alarm).unwrap();
        assert_eq!(register(&rtc), NOW + 7_200);
    }

    #[test]
    fn s11_without_a_clock_it_is_said() {
        let sys = TempDir::new().unwrap();
        let why = Rtc::new(sys.path()).set(HOUR).unwrap_err();
        assert!(why.contains("real-time clock"), "{why}");
    }

    #[test]
    fn the_journal_keeps_it() {
        let alarm = Alarm::Ours {
            rings: RtcTime(7),
            displaced: Some(RtcTime(9)),
        };
        let text = serde_json::to_string(&alarm).unwrap();
        assert_eq!(text, r#"{"ours":{"rings":7,"displaced":9}}"#);
        assert_eq!(serde_json::from_str::<Alarm>(&text).unwrap(), alarm);
    }
}
