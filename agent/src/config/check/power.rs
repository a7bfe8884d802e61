//! The checks of `[sleep]`, `[metrics]` and `[energy]`.

use std::path::PathBuf;

use super::{Check, Checked, DAY, MINUTE, SECOND, valid};
use crate::config::{
    Energy, HookFailure, Metrics, Sleep,
    complaint::quote,
    file::{EnergySection, MetricsSection, SleepSection},
    setting::Setting,
    value::{Hint, OnHookFailure, Slot},
};

impl Check<'_, '_> {
    pub(super) fn sleep(&mut self, written: SleepSection) -> Sleep {
        let default = Sleep::default();
        let wake_after = self.span(
            Setting::WakeAfter,
            written.wake_after,
            Slot::Absent,
            2 * SECOND..=30 * DAY,
        );
        let hook_timeout = self.span(
            Setting::HookTimeout,
            written.hook_timeout,
            Slot::Absent,
            SECOND..=60 * MINUTE,
        );
        let failure = self.any(Setting::HookFailure, written.hook_failure);
        Sleep {
            allow_s2idle: self
                .any(Setting::AllowS2idle, written.allow_s2idle)
                .or(default.allow_s2idle),
            arm_wol: self.any(Setting::ArmWol, written.arm_wol).or(default.arm_wol),
            allow_unwakeable: self
                .any(Setting::AllowUnwakeable, written.allow_unwakeable)
                .or(default.allow_unwakeable),
            wake_after: wake_after.good(),
            hook_timeout: hook_timeout.or(default.hook_timeout),
            hook_failure: match failure.good() {
                Some(OnHookFailure::Continue) => HookFailure::Continue,
                Some(OnHookFailure::Veto) => HookFailure::Veto,
                None => default.hook_failure,
            },
            hooks_folder: self
                .one(Setting::HooksFolder, written.hooks_folder, is_absolute)
                .good()
                .map_or(default.hooks_folder, PathBuf::from),
        }
    }

    pub(super) fn metrics(&mut self, written: MetricsSection) -> Metrics {
        let listen = self
            .one(Setting::MetricsListen, written.listen, |listen| {
                valid(listen.port() != 0)
            })
            .good();
        if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
            self.notes.push(format!(
                "`listen` in [metrics] is {listen}: whoever reaches that address can read the figures, there is no password"
            ));
        }
        Metrics {
            listen,
            textfile: self
                .one(Setting::MetricsTextfile, written.textfile, is_textfile)
                .good()
                .map(PathBuf::from),
        }
    }

    pub(super) fn energy(&mut self, written: EnergySection) -> Energy {
        let range = |watts: &f64| valid((0.0..=10_000.0).contains(watts));
        let awake = self.one(Setting::WattsAwake, written.watts_awake, range);
        let asleep = self.one(Setting::WattsAsleep, written.watts_asleep, range);
        if let (Checked::Good(awake, _), Checked::Good(asleep, origin)) = (&awake, &asleep)
            && asleep >= awake
            && !self.complaints.any_broken()
        {
            let message = format!(
                "{} ({asleep}) is not below {} ({awake})",
                quote(Setting::WattsAsleep.name(origin)),
                quote(Setting::WattsAwake.name(origin)),
            );
            let hint = "what the host draws asleep is less than what it draws awake".to_owned();
            self.about(origin, message, Some(hint));
        }
        Energy {
            watts_awake: awake.good(),
            watts_asleep: asleep.good(),
        }
    }
}

#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_absolute(path: &String) -> Result<(), Hint> {
    valid(path.starts_with('/') && !path.contains('\0'))
}

/// node_exporter reads no file of another name.
fn is_textfile(path: &String) -> Result<(), Hint> {
    is_absolute(path)?;
    let name = path.rsplit('/').next().unwrap_or_default();
    valid(name.strip_suffix(".prom").is_some_and(|stem| !stem.is_empty()))
}
