//! The order to suspend, given to systemd-logind over the system bus (org.freedesktop.login1(5)), and the wait for its end.
//!
//! Owns one connection, made for one attempt: signals of earlier suspends cannot reach it. Every call has a deadline (fault S7). Never
//! takes an answer or a signal for a proof that the host slept: [`judge`] does that.

use std::{future::poll_fn, pin::Pin, time::Duration};

use thiserror::Error;
use tokio::time::{self, MissedTickBehavior};
use zbus::{connection, export::futures_core::Stream as _, fdo, proxy::CacheProperties};
use zbus_systemd::login1::{ManagerProxy, PrepareForSleepStream};

use super::ended::{Baseline, Ended, SUSPENDED, Sign, judge};
use crate::printable::printable;

/// Longest wait for an answer of the system bus (fault S7).
pub const BUS_DEADLINE: Duration = Duration::from_secs(5);

/// Longest time awake, after the order, without a sign of its end.
pub const END_DEADLINE: Duration = Duration::from_secs(120);

/// How often [`END_DEADLINE`] is begun again because logind says that it is still at it.
const MORE: u32 = 10;

/// How often the clocks are looked at while the end is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `SD_LOGIND_ROOT_CHECK_INHIBITORS`: root, too, is held up by inhibitors (systemd, `src/shared/logind-util.h`; fault S2).
const ROOT_CHECKS_INHIBITORS: u64 = 1;

/// Why the host was not suspended.
#[derive(Debug, Error)]
pub enum SuspendError {
    /// No answer in time.
    #[error("{asked}: no answer within {} s; is systemd-logind running?", BUS_DEADLINE.as_secs())]
    Silent {
        /// What was asked.
        asked: &'static str,
    },
    /// There is no system bus.
    #[error("connecting to the system bus: {0}; is dbus running?")]
    NoBus(String),
    /// There is a bus, and no logind on it.
    #[error("there is no logind on the system bus: {0}; install systemd-logind or start it")]
    NoLogind(String),
    /// Somebody holds an inhibitor: logind asks for more rights than we have, or says so. A masked suspend.target is refused alike.
    #[error("inhibited: {0}; `systemd-inhibit --list` names the holders; if there is none, is suspend.target masked?")]
    Inhibited(String),
    /// Another sleep or a shutdown is under way.
    #[error("logind is at it already: {0}")]
    InProgress(String),
    /// The connection broke before the answer.
    #[error("{asked}: the system bus went away: {why}")]
    Broken {
        /// What was asked.
        asked: &'static str,
        /// What is known of it.
        why: String,
    },
    /// The bus or logind said no for another reason.
    #[error("{asked}: {why}")]
    Refused {
        /// What was asked.
        asked: &'static str,
        /// The answer.
        why: String,
    },
}

/// A connection to logind that hears of every suspend from its making on.
#[derive(Debug)]
pub struct Logind {
    manager: ManagerProxy<'static>,
    sleeps: PrepareForSleepStream,
}

impl Logind {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS` if set), subscribes to `PrepareForSleep`, and makes sure that logind answers.
    ///
    /// # Errors
    /// No bus, no logind, or no answer within [`BUS_DEADLINE`].
    pub async fn connect() -> Result<Self, SuspendError> {
        Self::over(connection::Builder::system()).await
    }

    /// The same over the bus at a D-Bus address, such as `unix:path=/run/dbus/system_bus_socket`.
    ///
    /// # Errors
    /// As [`Self::connect`]; an address that is none.
    pub async fn connect_to(address: &str) -> Result<Self, SuspendError> {
        Self::over(connection::Builder::address(address)).await
    }

    async fn over(bus: connection::Builder<'static>) -> Result<Self, SuspendError> {
        const ASKED: &str = "connecting to the system bus";
        let bus = time::timeout(BUS_DEADLINE, bus.build())
            .await
            .map_err(|_elapsed| SuspendError::Silent { asked: ASKED })?
            .map_err(|error| SuspendError::NoBus(error.to_string()))?;
        let manager = answered("asking for logind", async {
            ManagerProxy::builder(&bus)
                .cache_properties(CacheProperties::No)
                .build()
                .await
        })
        .await?;
        let sleeps = answered("subscribing to PrepareForSleep", manager.receive_prepare_for_sleep()).await?;
        let preparing = answered("reading logind's PreparingForSleep", manager.preparing_for_sleep()).await?;
        if preparing {
            return Err(SuspendError::InProgress(
                "somebody else's suspend is being prepared".into(),
            ));
        }
        Ok(Self { manager, sleeps })
    }

    /// Orders the suspend. `Ok` means that logind took the order, and nothing more: wait with [`Self::ended`].
    ///
    /// # Errors
    /// Refused, or no answer within [`BUS_DEADLINE`]; after [`SuspendError::Silent`] it may still happen.
    pub async fn suspend(&self) -> Result<(), SuspendError> {
        answered(
            "SuspendWithFlags",
            self.manager.suspend_with_flags(ROOT_CHECKS_INHIBITORS),
        )
        .await
    }

    /// Waits for the end of the suspend that was ordered, and judges it by `look`, which reads what `before` was read from.
    ///
    /// The end is `PrepareForSleep(false)` after a `true`; or the clocks, looked at once a second; or `limit` of time awake
    /// (`CLOCK_MONOTONIC`), usually [`END_DEADLINE`]. A bus that goes away only takes the first of them (fault S6). Not cancel-safe: a
    /// signal that was taken is gone.
    pub async fn ended(&mut self, before: &Baseline, look: impl Fn() -> Baseline, limit: Duration) -> Ended {
        let sign = self.sign_of_end(before, &look, limit).await;
        judge(before, &look(), sign)
    }

    async fn sign_of_end(&mut self, before: &Baseline, look: impl Fn() -> Baseline, limit: Duration) -> Sign {
        let mut looks = time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = time::sleep(limit);
        tokio::pin!(deadline);
        let (mut listening, mut begun, mut more) = (true, false, MORE);
        loop {
            tokio::select! {
                signal = next(&mut self.sleeps), if listening => match signal {
                    Some(true) => begun = true,
                    // A `false` without a `true` belongs to a suspend before ours.
                    Some(false) if begun => return Sign::Signal,
                    Some(false) => {}
                    None => {
                        tracing::warn!("the system bus went away during a suspend; its end is told by the clocks alone");
                        listening = false;
                    }
                },
                _tick = looks.tick() => {
                    if look().slept.saturating_sub(before.slept) >= SUSPENDED {
                        return Sign::Clocks;
                    }
                }
                () = &mut deadline => {
                    let asked = "reading logind's PreparingForSleep";
                    let at_it = answered(asked, self.manager.preparing_for_sleep()).await;
                    if more == 0 || !matches!(at_it, Ok(true)) {
                        return Sign::Deadline(limit);
                    }
                    more -= 1;
                    deadline.set(time::sleep(limit));
                }
            }
        }
    }

    /// What inhibits what: `what, who, why, mode, uid, pid` of each (`ListInhibitors`).
    pub(crate) async fn inhibitors(&self) -> Result<Vec<(String, String, String, String, u32, u32)>, SuspendError> {
        answered("ListInhibitors", self.manager.list_inhibitors()).await
    }

    /// Type and time (µs since 1970) of the scheduled shutdown (`ScheduledShutdown`).
    pub(crate) async fn scheduled_shutdown(&self) -> Result<(String, u64), SuspendError> {
        answered("reading logind's ScheduledShutdown", self.manager.scheduled_shutdown()).await
    }
}

/// The next signal's argument; `None` when the bus is gone. A signal without the argument the interface promises is passed over.
async fn next(sleeps: &mut PrepareForSleepStream) -> Option<bool> {
    loop {
        let signal = poll_fn(|cx| Pin::new(&mut *sleeps).poll_next(cx)).await?;
        if let Ok(arguments) = signal.args() {
            return Some(arguments.start);
        }
    }
}

/// The answer to a call, if there is one in time.
async fn answered<T>(asked: &'static str, call: impl Future<Output = zbus::Result<T>>) -> Result<T, SuspendError> {
    match time::timeout(BUS_DEADLINE, call).await {
        Ok(answer) => answer.map_err(|error| refusal(asked, &error)),
        Err(_elapsed) => Err(SuspendError::Silent { asked }),
    }
}

/// Tells logind's and the bus's refusals apart (systemd, `src/libsystemd/sd-bus/bus-common-errors.h`).
fn refusal(asked: &'static str, error: &zbus::Error) -> SuspendError {
    let why = printable(&error.to_string()).into_owned();
    match error {
        zbus::Error::FDO(known) if is_lack_of_rights(known) => SuspendError::Inhibited(why),
        zbus::Error::FDO(known) if is_absence(known) => SuspendError::NoLogind(why),
        zbus::Error::MethodError(name, _, _) if name.as_str() == "org.freedesktop.login1.OperationInProgress" => {
            SuspendError::InProgress(why)
        }
        zbus::Error::MethodError(name, _, _)
            if name.as_str().starts_with("org.freedesktop.login1.BlockedByInhibitor") =>
        {
            SuspendError::Inhibited(why)
        }
        zbus::Error::MethodError(..) | zbus::Error::FDO(_) => SuspendError::Refused { asked, why },
        // The connection broke: whether the call was heard is not known.
        _ => SuspendError::Broken { asked, why },
    }
}

/// Root lacks no right but that to pass an inhibitor, for which logind asks polkit.
fn is_lack_of_rights(error: &fdo::Error) -> bool {
    matches!(
        error,
        fdo::Error::InteractiveAuthorizationRequired(_) | fdo::Error::AccessDenied(_)
    )
}

fn is_absence(error: &fdo::Error) -> bool {
    matches!(error, fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_))
}
