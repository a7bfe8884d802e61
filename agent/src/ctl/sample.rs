//! Documents for the tests of the views.

use std::collections::BTreeMap;

use crate::report::{
    AttemptOutcome, Blocker, ClassRates, Hold, InterfaceRates, LastAttempt, Programs, Rates, SCHEMA, Signal,
    SignalSource, SleepReport, SshSession, StateName, Status, Why,
};

pub(crate) fn status() -> Status {
    let session = |user: Option<&str>, peer: &str, idle_s, counts| SshSession {
        user: user.map(Into::into),
        peer: peer.into(),
        pid: 77,
        idle_s,
        counts,
    };
    let signal = |name: &str, source, detail: Option<&str>| Signal {
        name: name.into(),
        source,
        detail: detail.map(Into::into),
    };
    let eth0 = InterfaceRates {
        rx_bytes_per_s: 1234.0,
        tx_bytes_per_s: 300.0,
        rx_bytes: 4_500_000,
        tx_bytes: 120,
        rx_packets: 9000,
        tx_packets: 2,
        user: ClassRates {
            rx_bytes_per_s: 200.0,
            tx_bytes_per_s: 100.0,
            ..ClassRates::default()
        },
        background: ClassRates {
            rx_bytes_per_s: 1000.0,
            tx_bytes_per_s: 200.0,
            ..ClassRates::default()
        },
        multicast: ClassRates {
            rx_bytes_per_s: 34.0,
            ..ClassRates::default()
        },
        last_user_s: Some(65.0),
    };
    Status {
        schema: SCHEMA,
        version: "0.1.0".into(),
        node: "worker-01".into(),
        pid: 812,
        dry_run: true,
        state: StateName::Quiet,
        state_for_s: 725.0,
        sleep_enabled: true,
        disabled_by_operator: false,
        hold: Some(Hold {
            remaining_s: 3540.0,
            by: "root (pid 900)".into(),
            reason: Some("backup".into()),
        }),
        idle_s: 725.0,
        inactivity_timeout_s: 7200.0,
        grace_period_s: 600.0,
        sleeps_in_s: Some(7075.0),
        last_check_s: Some(3.0),
        blockers: vec![blocker("ssh", "session of alice", "the session closed")],
        rates: Rates {
            over_s: 5.0,
            cpu_percent: Some(3.2),
            cpus_percent: BTreeMap::from([(0, 5.1), (1, 1.3)]),
            switches_per_s: Some(1234.4),
            interfaces: BTreeMap::from([("eth0".into(), eth0), ("wlan0".into(), InterfaceRates::default())]),
            ssh_sessions: vec![
                session(Some("alice"), "10.0.0.1:4242", 180.0, true),
                session(None, "10.0.0.2:4243", 172_800.0, false),
            ],
            ssh_logins: Some(5),
        },
        signals: vec![
            signal("network", SignalSource::Kernel, None),
            signal("ssh", SignalSource::Fallback, Some("no BTF")),
            signal("pods", SignalSource::NotConfigured, Some("not configured")),
        ],
        programs: vec![
            Programs {
                for_s: Some(725.0),
                runs: Some(2000),
                run_time_s: Some(0.001_25),
                ..programs("network", true, "the host is quiet")
            },
            Programs {
                for_s: Some(3.0),
                ..programs("cpu", false, "the host is busy")
            },
            programs("ssh", false, "no BTF"),
        ],
        warnings: vec!["power.log cannot be written".into()],
        suspends: 2,
        sleep: SleepReport {
            sleeps: 12,
            wakes: 12,
            failed: 1,
            refused: 4,
            aborted: 2,
            external: 3,
            asleep_s: 298_800.0,
            saved_kwh: Some(5.2),
            energy_source: "configured watts".into(),
            last: Some(LastAttempt {
                outcome: AttemptOutcome::Slept,
                reason: String::new(),
                wake_source: Some("eth0".into()),
                asleep_s: Some(28_800.0),
                added_ms: Some(123.4),
                ago_s: 7200.0,
            }),
        },
    }
}

fn programs(signal: &str, attached: bool, why: &str) -> Programs {
    Programs {
        signal: signal.into(),
        names: Vec::new(),
        attached,
        why: why.into(),
        for_s: None,
        runs: None,
        run_time_s: None,
    }
}

pub(super) fn why() -> Why {
    let network = Blocker {
        value: Some(5120.0),
        limit: Some(1024.0),
        unit: Some("B/s".into()),
        by: vec!["rsync (process group 9): 40.0 % of all CPUs".into(), "sshd".into()],
        ..blocker("network", "eth0 is busy", "less than 1024 B/s on eth0")
    };
    Why {
        schema: SCHEMA,
        node: "worker-01".into(),
        state: StateName::Active,
        blockers: vec![network, blocker("ssh", "session of alice", "the session closed")],
        to_sleep: "all of it over; then the node sleeps after 2h 10m of quiet".into(),
    }
}

fn blocker(signal: &str, what: &str, remedy: &str) -> Blocker {
    Blocker {
        signal: signal.into(),
        what: what.into(),
        for_s: 540.0,
        value: None,
        limit: None,
        unit: None,
        by: Vec::new(),
        remedy: remedy.into(),
    }
}
