//! How soon the agent knows: from the clock of the program in the kernel to the return of the call that took its record, and to the end of
//! an announced sleep.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use agent_ebpf::SshRecordKind;
use anyhow::{Context as _, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmstation_agent::{
    clock::BootTime,
    config::ProbeMode,
    edges::{Budget, Edge},
    idle::{Action, Cancelled, Event, Finding, Idle, Settings, State},
    interfaces,
    probes::{Family, Probes},
};

use crate::{
    figure::{Figure, Goal},
    kernel::ensure_runs,
    measure::{nanos, quantile},
    packets::{Hosts, OWN},
};

const CONNECTIONS: usize = 1000;
const EDGES: usize = 1000;
/// The reader sleeps by then, as an agent does.
const PAUSE: Duration = Duration::from_millis(3);
/// Longest wait for one record, ms.
const PATIENCE: u16 = 1000;

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    let mut figures = Vec::from(connections()?);
    figures.extend(edges()?);
    Ok(figures)
}

fn figures_of(what: &str, note: &str, mut micros: Vec<f64>) -> [Figure; 2] {
    let figure = |name: &str, value| Figure::single("latency", &format!("{what}, {name}"), "us", value).with_note(note);
    [
        figure("median", quantile(&mut micros, 0.5)),
        figure("p99", quantile(&mut micros, 0.99)),
    ]
}

/// The first user packet of an announced sleep, up to the idle machine's word that it is cancelled.
fn edges() -> Result<[Figure; 2]> {
    let hosts = Hosts::new()?;
    let mut probes = Probes::load(&[22], ProbeMode::Auto);
    ensure_runs(&probes, Family::Net)?;
    probes.sync_interfaces(&interfaces::select(&[OWN.to_owned()])?);
    probes.detach(Family::Sched);
    let (go, gone) = mpsc::channel::<()>();
    thread::spawn(move || {
        for () in gone {
            thread::sleep(PAUSE);
            hosts.receive(1);
        }
    });
    let mut micros = Vec::with_capacity(EDGES);
    for _ in 0..EDGES {
        let mut idle = announced();
        let budget = Budget {
            traffic_bytes: Some(0),
            busy: None,
        };
        probes.arm_edges(budget).map_err(|why| anyhow!(why))?;
        go.send(())?;
        let fd = probes.edge_fd().context("no ring buffer")?;
        let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(PATIENCE))?;
        ensure!(ready == 1, "no record came");
        for edge in probes.edge_records() {
            let Edge::Traffic { at, .. } = edge else { continue };
            let actions = idle.handle(Event::Activity { at }, BootTime::now());
            ensure!(
                actions.contains(&Action::Cancel(Cancelled::Activity)),
                "the sleep was not cancelled: {actions:?}"
            );
            micros.push(nanos(BootTime::now().since(at)) / 1000.0);
        }
    }
    ensure!(micros.len() == EDGES, "{} records for {EDGES} packets", micros.len());
    let note = "probes and idle machine without the driver; an agent logs its own as `after_us`";
    let [median, p99] = figures_of("first user packet to cancelled sleep", note, micros);
    Ok([median, p99.with_goal(Goal::AtMost(1000.0))])
}

/// A machine in the grace period.
fn announced() -> Idle {
    let start = BootTime::now();
    let settings = Settings {
        enabled: true,
        inactivity_timeout: Duration::ZERO,
        grace_period: Duration::from_secs(3600),
        warn_before: None,
        min_awake: Duration::ZERO,
    };
    let mut idle = Idle::new(settings, start);
    let quiet = Event::Checked {
        begun: start,
        finding: Finding::Quiet,
        last_activity: None,
    };
    idle.handle(quiet, start);
    assert!(matches!(idle.state(), State::Grace { .. }), "{:?}", idle.state());
    idle
}

fn connections() -> Result<[Figure; 2]> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut probes = Probes::load(&[address.port()], ProbeMode::Auto);
    ensure_runs(&probes, Family::Ssh)?;
    probes.detach(Family::Net);
    probes.detach(Family::Sched);
    thread::spawn(move || listener.incoming().for_each(drop));
    thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            thread::sleep(PAUSE);
            drop(TcpStream::connect(address));
        }
    });
    let mut latencies = Vec::with_capacity(CONNECTIONS);
    while latencies.len() < CONNECTIONS {
        let fd = probes.ssh_fd().context("no ring buffer")?;
        let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(PATIENCE))?;
        if ready == 0 {
            break;
        }
        let records = probes.ssh_records();
        let now = BootTime::now();
        let opened = records
            .iter()
            .filter(|record| record.kind == SshRecordKind::Opened as u32);
        latencies.extend(opened.map(|record| nanos(now.since(BootTime::from_nanos(record.at_ns))) / 1000.0));
    }
    ensure!(
        latencies.len() > CONNECTIONS / 2,
        "only {} records came",
        latencies.len()
    );
    let note = "an SSH connection's record; a connection alone is no activity, so there is no goal";
    Ok(figures_of("kernel record to reader", note, latencies))
}
