//! The agent in the guest, put there as a user would: programs, unit, wrappers, configuration in their places, started by systemd.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

use super::{
    bed::{ARMED, Bed, SOON},
    channel::Output,
};
use crate::wait::eventually;

/// Name of its unit.
const UNIT: &str = "vmstation-autosleep.service";

/// What is different from trial to trial. Times as TOML has them.
pub(crate) struct Settings<'a> {
    pub(crate) inactivity_timeout: &'a str,
    pub(crate) grace_period: &'a str,
    pub(crate) min_awake: &'a str,
    pub(crate) interfaces: &'a [&'a str],
    /// Further lines of `[sleep]`.
    pub(crate) sleep: &'a str,
    /// Lines of `[wake_server]`; empty: there is none.
    pub(crate) wake_server: &'a str,
    /// Lines of `[kubernetes]`; empty: pods do not count.
    pub(crate) kubernetes: &'a str,
    /// Lines of a drop-in for the unit.
    pub(crate) unit: &'a str,
}

impl Default for Settings<'_> {
    /// Never sleeps by itself.
    fn default() -> Self {
        Self {
            inactivity_timeout: "1h",
            grace_period: "4s",
            min_awake: "2s",
            interfaces: &[ARMED],
            sleep: "",
            wake_server: "",
            kubernetes: "",
            unit: "",
        }
    }
}

/// Sleeps by itself, as soon as can be.
pub(crate) const EAGER: Settings<'_> = Settings {
    inactivity_timeout: "3s",
    grace_period: "4s",
    min_awake: "15s",
    interfaces: &[ARMED],
    sleep: "",
    wake_server: "",
    kubernetes: "",
    unit: "",
};

/// An installed agent.
pub(crate) struct Installation<'a> {
    pub(crate) bed: &'a mut Bed,
}

impl<'a> Installation<'a> {
    /// Puts everything in its place; starts nothing.
    pub(crate) fn new(bed: &'a mut Bed, settings: &Settings<'_>) -> Self {
        let payload = bed.payload.clone();
        bed.channel.ask(&format!(
            "set -e\n\
             test -e /usr/local/bin/vmstation-autosleep || install -m 755 {payload}/bin/* /usr/local/bin/\n\
             install -D -m 644 -t /etc/systemd/system {payload}/systemd/*.service\n\
             mkdir -p /opt/vmstation/power/pre-sleep.d /opt/vmstation/power/post-wake.d\n\
             for wrapper in {payload}/systemd/*.sh; do\n\
                 if [ -e \"$wrapper\" ]; then install -m 755 \"$wrapper\" /opt/vmstation/power/; fi\n\
             done"
        ));
        let mut installation = Self { bed };
        installation.configure(settings);
        installation
    }

    /// Replaces the configuration; a running agent keeps its own until it is started again.
    pub(crate) fn configure(&mut self, settings: &Settings<'_>) {
        let interfaces: Vec<String> = settings.interfaces.iter().map(|name| format!("{name:?}")).collect();
        let mut toml = String::from("[general]\ncheck_interval = \"1s\"\n");
        writeln!(toml, "inactivity_timeout = {:?}", settings.inactivity_timeout).unwrap();
        writeln!(toml, "grace_period = {:?}", settings.grace_period).unwrap();
        writeln!(toml, "min_awake = {:?}", settings.min_awake).unwrap();
        // An emulated CPU is busy with anything; and what the trials do over the network is little.
        writeln!(
            toml,
            "[activity_detection]\ncheck_pods = {}\ncheck_cpu = false\nnetwork_threshold_bytes = 1000000\nnetwork_interfaces = [{}]",
            !settings.kubernetes.is_empty(),
            interfaces.join(", ")
        )
        .unwrap();
        writeln!(
            toml,
            "[notification]\nenabled = true\nbefore = \"2s\"\nmethod = \"webhook\"\nwebhook_url = \"http://10.0.2.100/hook\""
        )
        .unwrap();
        writeln!(
            toml,
            "[sleep]\n{}\n[wake_server]\n{}\n[kubernetes]\n{}",
            settings.sleep, settings.wake_server, settings.kubernetes
        )
        .unwrap();
        self.bed
            .channel
            .write("/etc/vmstation/autosleep/autosleep.toml", "644", &toml);
        let drop_in = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=500ms\n{}\n",
            settings.unit
        );
        self.bed
            .channel
            .write(&format!("/etc/systemd/system/{UNIT}.d/trial.conf"), "644", &drop_in);
        self.bed.channel.ask("systemctl daemon-reload");
    }

    /// Adds a hook to `pre-sleep.d` or `post-wake.d` that writes its name into `/var/trial/order`, then runs `script`.
    pub(crate) fn hook(&mut self, folder: &str, name: &str, script: &str) {
        self.bed.channel.write(
            &format!("/opt/vmstation/power/{folder}/{name}"),
            "755",
            &format!("#!/bin/sh\necho {name} >>/var/trial/order\n{script}\n"),
        );
    }

    /// Names of the hooks that ran, in order.
    pub(crate) fn hooks_that_ran(&mut self) -> Vec<String> {
        let order = self.bed.read("/var/trial/order");
        order.lines().map(String::from).collect()
    }

    pub(crate) fn start(&mut self) {
        let started = self
            .bed
            .channel
            .run(&format!("systemctl enable --quiet --now {UNIT}"), 2 * SOON);
        assert_eq!(started.status, 0, "{}\n{}", started.text, self.log());
    }

    pub(crate) fn stop(&mut self) {
        self.bed.channel.ask(&format!("systemctl stop {UNIT}"));
    }

    /// What the control program says to that.
    pub(crate) fn ctl(&mut self, arguments: &str) -> Output {
        self.bed
            .channel
            .run(&format!("vmstation-autosleep-ctl {arguments}"), SOON)
    }

    /// Orders a sleep and leaves the control program waiting for its outcome, as the job `trial-order`.
    pub(crate) fn order_sleep(&mut self, options: &str) {
        self.bed
            .channel
            .start("trial-order", &format!("vmstation-autosleep-ctl sleep {options}"));
    }

    /// How the control program ended that ordered a sleep.
    pub(crate) fn order_ended(&mut self) -> Output {
        self.bed.channel.finish("trial-order", 2 * SOON)
    }

    pub(crate) fn status(&mut self) -> Value {
        let output = self.ctl("--output json status");
        assert_eq!(output.status, 0, "{}\n{}", output.text, self.log());
        serde_json::from_str(&output.text).unwrap()
    }

    /// Waits until the status is as wanted, and returns it; fails with the last one. The agent may be starting.
    pub(crate) fn status_when(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = String::new();
        let status = eventually_some(2 * SOON, || {
            let output = self.ctl("--output json status");
            last.clone_from(&output.text);
            let status: Value = serde_json::from_str(&output.text).ok()?;
            (output.status == 0 && wanted(&status)).then_some(status)
        });
        status.unwrap_or_else(|| panic!("never {what}: {last}\n{}", self.log()))
    }

    /// Waits until the listener was told these events, in this order and among others.
    pub(crate) fn told(&mut self, events: &[&str]) {
        eventually(&format!("told {events:?}"), SOON, || {
            let received = self.bed.webhook.events();
            let mut rest = received.iter();
            let all = events.iter().all(|event| rest.any(|one| one == event));
            if all { Ok(()) } else { Err(format!("{received:?}")) }
        });
    }

    /// Process id.
    pub(crate) fn pid(&mut self) -> u32 {
        self.bed
            .channel
            .ask(&format!("systemctl show --property MainPID --value {UNIT}"))
            .parse()
            .unwrap()
    }

    /// What it wrote to the system's log.
    pub(crate) fn log(&mut self) -> String {
        self.bed
            .channel
            .ask(&format!("journalctl --no-pager --output cat --lines 60 --unit {UNIT}"))
    }
}

fn eventually_some<T>(within: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let mut some = None;
    crate::wait::wait_until(within, || {
        some = attempt();
        some.is_some()
    });
    some
}
