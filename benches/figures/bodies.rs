//! How long the programs run, by the kernel's own count (`BPF_ENABLE_STATS`), less an empty program of the same kind on the same hook at
//! the same time. What it takes to call a program is in neither.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use vmstation_agent::{
    config::ProbeMode,
    probes::{Family, Probes},
};

use crate::{
    figure::{Figure, Goal},
    kernel::{Hook, Object, Runs, count_runs, ensure_runs, runs_of_own},
    measure::{Random, added, estimate, pin},
    packets::{Hosts, OWN},
    scheduler::{PingPong, Place},
};

const BLOCKS: usize = 80;
const GOAL: Goal = Goal::AtMost(10.0);

/// Mean ns of the program and of the empty one in a block.
type Row = [f64; 2];

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    let _counting = count_runs()?;
    let hosts = Hosts::new()?;
    let mut figures = Vec::new();
    let mut one_cpu = PingPong::new(Place::OneCpu)?;
    let switch = Hook::Tracepoint("sched_switch");
    figures.push(body("vms_sched", "bench_raw_empty", switch, || one_cpu.rounds(2000)));
    let idle = Hook::Tracepoint("cpu_idle");
    figures.push(
        PingPong::new(Place::TwoCpus).and_then(|mut two| body("vms_idle", "bench_raw_empty", idle, || two.rounds(200))),
    );
    pin(0);
    let (received, sent) = (Hook::Received(OWN), Hook::Sent(OWN));
    figures.push(body("vms_net_rx", "bench_tc_empty", received, || hosts.receive(5000)));
    figures.push(body("vms_net_tx", "bench_tc_empty", sent, || hosts.send(5000)));
    figures.push(ssh());
    figures.push(fork());
    let figures = figures.into_iter();
    Ok(figures
        .map(|figure| figure.unwrap_or_else(|error| Figure::missing("bodies", "a program's body", &error)))
        .collect())
}

/// Both programs attached at once, in either order.
fn body(name: &str, empty: &str, hook: Hook<'_>, mut load: impl FnMut()) -> Result<Figure> {
    let (mut agent, mut bench) = (Object::agent()?, Object::bench()?);
    let mut random = Random::new();
    let mut rows = Vec::with_capacity(BLOCKS);
    for _ in 0..BLOCKS {
        let mut attached = Vec::with_capacity(2);
        let mut order = [true, false];
        random.shuffle(&mut order);
        for ours in order {
            attached.push(if ours {
                agent.attach(name, hook)?
            } else {
                bench.attach(empty, hook)?
            });
        }
        load();
        let before = [agent.runs(name)?, bench.runs(empty)?];
        load();
        rows.extend(row(before, [agent.runs(name)?, bench.runs(empty)?]));
    }
    figure(name, &rows)
}

fn row(before: [Runs; 2], after: [Runs; 2]) -> Option<Row> {
    Some([after[0].mean_since(before[0])?, after[1].mean_since(before[1])?])
}

fn figure(name: &str, rows: &[Row]) -> Result<Figure> {
    ensure!(rows.len() >= BLOCKS / 2, "{name} did not run");
    let over = estimate(rows, added(0, 1));
    Ok(
        Figure::new("bodies", &format!("{name} over an empty program"), "ns", over)
            .with_goal(GOAL)
            .plotted(),
    )
}

/// Connections that are none of SSH's: what the program sees on a host that serves something else.
fn ssh() -> Result<Figure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || listener.incoming().for_each(drop));
    let rows = by_probes("vms_ssh", "inet_sock_set_state", || {
        for _ in 0..100 {
            drop(TcpStream::connect(address));
        }
    })?;
    Ok(figure("vms_ssh", &rows)?.with_note("connections to other ports"))
}

/// Threads that are none of sshd's.
fn fork() -> Result<Figure> {
    let rows = by_probes("vms_ssh_fork", "sched_process_fork", || {
        for _ in 0..100 {
            // It ends at once; how is of no interest.
            let _ended = thread::spawn(|| ()).join();
        }
    })?;
    Ok(figure("vms_ssh_fork", &rows)?.with_note("forks of other programs"))
}

/// Of a program that only the agent's own loader can load: it is told where the kernel's fields are.
fn by_probes(name: &str, tracepoint: &str, load: impl Fn()) -> Result<Vec<Row>> {
    const PORT: u16 = 2;
    let mut rows = Vec::new();
    let mut bench = Object::bench()?;
    let probes = || -> Result<Probes> {
        let mut probes = Probes::load(&[PORT], ProbeMode::Auto);
        ensure_runs(&probes, Family::Ssh)?;
        probes.detach(Family::Net);
        probes.detach(Family::Sched);
        Ok(probes)
    };
    for ours_first in [true, false] {
        let mut first = ours_first.then(probes).transpose()?;
        let _empty = bench.attach("bench_btf_empty", Hook::Tracepoint(tracepoint))?;
        if !ours_first {
            first = Some(probes()?);
        }
        load();
        for _ in 0..BLOCKS / 2 {
            let before = [runs_of_own(name)?, bench.runs("bench_btf_empty")?];
            load();
            // Sockets close a moment after their descriptor.
            thread::sleep(Duration::from_millis(1));
            rows.extend(row(before, [runs_of_own(name)?, bench.runs("bench_btf_empty")?]));
        }
        drop(first);
    }
    Ok(rows)
}
