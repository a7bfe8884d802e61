//! The registry of the files, with what agents report of themselves. Never takes from a file what it says, never gives a card to a node
//! because an agent says so while another node claims it too.

use std::collections::{BTreeMap, BTreeSet};

use vmstation_protocol::{MacAddr, NodeName, Report, Role, Waking};

use super::{Known, Node, Registry, shorten};

pub(super) fn merged<'r>(files: &Registry, reports: impl Iterator<Item = &'r Report>) -> Registry {
    // By name, so that the same reports always tell the same.
    let reports: BTreeMap<&NodeName, &Report> = reports.map(|report| (&report.node, report)).collect();
    let mut registry = files.clone();
    let claims = claims(files, &reports, &mut registry.conflicts);
    for (name, report) in &reports {
        let known = registry.nodes.entry((*name).clone()).or_insert_with(|| unknown(name));
        known.node.role = role(known, report, &mut registry.conflicts);
        let theirs = |mac: &MacAddr| claims.get(mac) == Some(name);
        let reported = cards(report).into_iter().filter(|(mac, _)| theirs(mac)).collect();
        tell_strange_cards(known, report, &mut registry.conflicts);
        known.node.macs = in_order(&known.node.macs, &reported);
        for mac in &known.node.macs {
            registry.by_mac.insert(*mac, (*name).clone());
        }
    }
    shorten(&mut registry.conflicts);
    registry
}

/// Whose each reported card is. One that is claimed twice and configured for neither is nobody's.
fn claims<'r>(
    files: &Registry,
    reports: &BTreeMap<&'r NodeName, &'r Report>,
    conflicts: &mut Vec<String>,
) -> BTreeMap<MacAddr, &'r NodeName> {
    let mut claimed: BTreeMap<MacAddr, BTreeSet<&NodeName>> = BTreeMap::new();
    for (name, report) in reports {
        for (mac, _) in cards(report) {
            claimed.entry(mac).or_default().insert(name);
        }
    }
    let mut whose = BTreeMap::new();
    for (mac, names) in claimed {
        if let Some(owner) = files.by_mac.get(&mac) {
            let place = files.nodes.get(owner).and_then(|known| {
                let stated = known.entry.as_ref()?.macs.iter().find(|stated| stated.value == mac)?;
                Some(format!(" ({})", stated.place))
            });
            for name in names {
                if name == owner {
                    whose.insert(mac, name);
                } else {
                    conflicts.push(format!(
                        "{mac} is configured for {owner}{}, and the agent of {name} reports it as its own: {name} is not woken by it",
                        place.as_deref().unwrap_or_default()
                    ));
                }
            }
        } else if names.len() == 1 {
            whose.extend(names.into_iter().map(|name| (mac, name)));
        } else {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            conflicts.push(format!(
                "the agents of {} report {mac} as their own: none of them is woken by it",
                names.join(" and ")
            ));
        }
    }
    whose
}

/// The cards of a report, none twice: of two ports with one address (as of a bond) the better one counts.
fn cards(report: &Report) -> BTreeMap<MacAddr, Waking> {
    let mut cards = BTreeMap::new();
    for port in &report.ports {
        let waking = cards.entry(port.mac).or_insert(port.waking);
        if rank(port.waking) < rank(*waking) {
            *waking = port.waking;
        }
    }
    cards
}

const fn rank(waking: Waking) -> u8 {
    match waking {
        Waking::Armed => 0,
        Waking::Disarmed => 1,
        Waking::Unable => 2,
    }
}

/// Armed ones, configured ones, the others that could be armed, the rest; of equals the configured one first.
fn in_order(configured: &[MacAddr], reported: &BTreeMap<MacAddr, Waking>) -> Vec<MacAddr> {
    let place = |mac: &MacAddr| {
        let at = configured.iter().position(|known| known == mac);
        let class = match (reported.get(mac), at) {
            (Some(Waking::Armed), _) => 0,
            (_, Some(_)) => 1,
            (Some(Waking::Disarmed), None) => 2,
            (Some(Waking::Unable) | None, None) => 3,
        };
        (class, at.unwrap_or(usize::MAX), *mac)
    };
    let mut macs: Vec<MacAddr> = configured.iter().chain(reported.keys()).copied().collect();
    macs.sort_by_key(place);
    macs.dedup();
    macs
}

/// A configured card that the node does not have.
fn tell_strange_cards(known: &Known, report: &Report, conflicts: &mut Vec<String>) {
    if report.ports.is_empty() {
        return;
    }
    let configured = known.entry.iter().flat_map(|entry| &entry.macs);
    for mac in configured.filter(|mac| report.ports.iter().all(|port| port.mac != mac.value)) {
        conflicts.push(format!(
            "{} is configured for {} ({}), and is none of the cards its agent reports",
            mac.value, report.node, mac.place
        ));
    }
}

fn role(known: &Known, report: &Report, conflicts: &mut Vec<String>) -> Role {
    let stated = known.entry.as_ref().and_then(|entry| entry.role.as_ref());
    match (stated, report.role) {
        (Some(stated), Some(reported)) if stated.value != reported => {
            conflicts.push(format!(
                "{} is a {} ({}), and its agent says that it is a {reported}: the file holds",
                report.node, stated.value, stated.place
            ));
            stated.value
        }
        (Some(stated), _) => stated.value,
        (None, reported) => reported.unwrap_or(known.node.role),
    }
}

fn unknown(name: &NodeName) -> Known {
    let node = Node {
        name: name.clone(),
        role: Role::default(),
        macs: Vec::new(),
        address: None,
        interface: None,
        broadcast: None,
        secure_on: None,
        group: None,
    };
    Known { node, entry: None }
}
