//! What `probes = "auto"` costs a host that has no time to rest: the ssh programs are all it leaves attached then. The agent's own samples
//! are not in it; their CPU time is among the figures of the agents.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmstation_agent::{
    config::ProbeMode,
    interfaces,
    probes::{Family, Probes},
};

use crate::{
    figure::{Figure, Goal},
    kernel::ensure_runs,
    measure::{Random, added, column, estimate},
    packets::{Hosts, OWN},
    scheduler::{PingPong, Place},
};

const PAIRS: usize = 200;
const NOTHING: usize = 0;
const AUTO: usize = 1;

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    let hosts = Hosts::new()?;
    let mut threads = PingPong::new(Place::OneCpu)?;
    let (mut switches, mut packets) = (Vec::with_capacity(PAIRS), Vec::with_capacity(PAIRS));
    let mut random = Random::new();
    for _ in 0..PAIRS {
        let mut order = [NOTHING, AUTO];
        random.shuffle(&mut order);
        let (mut switch, mut packet) = ([0.0; 2], [0.0; 2]);
        for variant in order {
            // Loaded both times and dropped before one of the two, so that both begin with the same caches.
            let probes = saturated()?;
            let _probes = (variant == AUTO).then_some(probes);
            // The kernel frees what was dropped a moment later.
            std::thread::sleep(Duration::from_millis(30));
            switch[variant] = threads.nanos_per_switch(6000);
            packet[variant] = hosts.nanos_per_packet(10_000);
        }
        switches.push(switch);
        packets.push(packet);
    }
    let share = |rows: &[[f64; 2]]| added(AUTO, NOTHING)(rows) / column(NOTHING)(rows) * 100.0;
    let figure = |what, rows| Figure::new("auto", what, "%", estimate(rows, share)).with_goal(Goal::NoCost);
    Ok(vec![
        figure("added to a switch by `auto` on a saturated host", &switches),
        figure("added to a packet by `auto` on a saturated host", &packets),
    ])
}

/// As the driver leaves them when the plain counters say busy.
fn saturated() -> Result<Probes> {
    let mut probes = Probes::load(&[22], ProbeMode::Auto);
    for family in [Family::Net, Family::Ssh, Family::Sched] {
        ensure_runs(&probes, family)?;
    }
    probes.sync_interfaces(&interfaces::select(&[OWN.to_owned()])?);
    for family in [Family::Net, Family::Sched] {
        probes.detach(family);
        ensure!(
            !probes.attached(family),
            "{family:?} is attached after it was taken out"
        );
    }
    Ok(probes)
}
