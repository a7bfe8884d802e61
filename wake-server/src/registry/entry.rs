//! One node as a file has it, each statement with its line, and how statements of several files go together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use vmstation_protocol::{MacAddr, NodeName, Role};

use super::{Known, Node, SecureOn};
use crate::complaint::{Complaints, Place};

/// Something a file says, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stated<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// One node as the files have it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: NodeName,
    pub(super) place: Place,
    pub(super) role: Option<Stated<Role>>,
    /// None twice.
    pub(super) macs: Vec<Stated<MacAddr>>,
    pub(super) address: Option<Stated<IpAddr>>,
    pub(super) interface: Option<Stated<String>>,
    pub(super) broadcast: Option<Stated<Ipv4Addr>>,
    pub(super) secure_on: Option<Stated<SecureOn>>,
    pub(super) group: Option<Stated<String>>,
}

impl Entry {
    pub(super) fn new(name: NodeName, place: Place) -> Self {
        Self {
            name,
            place,
            role: None,
            macs: Vec::new(),
            address: None,
            interface: None,
            broadcast: None,
            secure_on: None,
            group: None,
        }
    }

    /// Adds a card; complains if it is there.
    pub(super) fn add_mac(&mut self, value: MacAddr, place: Place, complaints: &mut Complaints) {
        if self.macs.iter().any(|mac| mac.value == value) {
            complaints.add(place, format!("{value} is written twice for {}", self.name), None);
        } else {
            self.macs.push(Stated { value, place });
        }
    }

    /// Takes from `other`, of another file, what is not known; complains about what is known otherwise.
    pub(super) fn join(&mut self, other: Self, complaints: &mut Complaints) {
        let name = &self.name;
        join(&mut self.role, other.role, name, "role", complaints);
        join(&mut self.address, other.address, name, "address", complaints);
        join(&mut self.interface, other.interface, name, "interface", complaints);
        join(
            &mut self.broadcast,
            other.broadcast,
            name,
            "broadcast address",
            complaints,
        );
        join(&mut self.group, other.group, name, "group", complaints);
        if let (Some(one), Some(two)) = (&self.secure_on, &other.secure_on)
            && one.value != two.value
        {
            complaints.add(
                two.place.clone(),
                format!("{name} has another SecureOn password in {}", one.place),
                KEEP_ONE.to_owned(),
            );
        }
        self.secure_on = self.secure_on.take().or(other.secure_on);
        self.join_macs(other.macs, complaints);
    }

    /// One file may know more cards than another; each may not know one the other does not.
    fn join_macs(&mut self, other: Vec<Stated<MacAddr>>, complaints: &mut Complaints) {
        let set = |macs: &[Stated<MacAddr>]| macs.iter().map(|mac| mac.value).collect::<BTreeSet<_>>();
        let (here, there) = (set(&self.macs), set(&other));
        if there.is_subset(&here) {
            return;
        }
        if here.is_subset(&there) {
            self.macs = other;
            return;
        }
        let (Some(one), Some(two)) = (
            self.macs.iter().find(|mac| !there.contains(&mac.value)),
            other.iter().find(|mac| !here.contains(&mac.value)),
        ) else {
            return;
        };
        complaints.add(
            two.place.clone(),
            format!(
                "{} has the MAC address {} here and {} in {}",
                self.name, two.value, one.value, one.place
            ),
            KEEP_ONE.to_owned(),
        );
    }

    /// The node, with the defaults for what is not said.
    pub(super) fn node(&self) -> Node {
        fn value<T: Clone>(stated: &Option<Stated<T>>) -> Option<T> {
            stated.as_ref().map(|stated| stated.value.clone())
        }
        Node {
            name: self.name.clone(),
            role: value(&self.role).unwrap_or_default(),
            macs: self.macs.iter().map(|mac| mac.value).collect(),
            address: value(&self.address),
            interface: value(&self.interface),
            broadcast: value(&self.broadcast),
            secure_on: value(&self.secure_on),
            group: value(&self.group),
        }
    }
}

const KEEP_ONE: &str = "correct one of the two, or take it out";

fn join<T: PartialEq + fmt::Display>(
    here: &mut Option<Stated<T>>,
    there: Option<Stated<T>>,
    name: &NodeName,
    what: &str,
    complaints: &mut Complaints,
) {
    let Some(there) = there else {
        return;
    };
    match here {
        None => *here = Some(there),
        Some(here) if here.value == there.value => {}
        Some(here) => complaints.add(
            there.place,
            format!(
                "{name} has the {what} {} here and {} in {}",
                there.value, here.value, here.place
            ),
            KEEP_ONE.to_owned(),
        ),
    }
}

/// Notes that `mac` is a card of `name`, unless another node has it: that one, and where it says so.
pub(super) fn claim(
    by_mac: &mut BTreeMap<MacAddr, NodeName>,
    nodes: &BTreeMap<NodeName, Known>,
    mac: &Stated<MacAddr>,
    name: &NodeName,
) -> Option<(NodeName, Place)> {
    let Some(owner) = by_mac.get(&mac.value) else {
        by_mac.insert(mac.value, name.clone());
        return None;
    };
    let entry = nodes.get(owner).and_then(|known| known.entry.as_ref())?;
    let stated = entry.macs.iter().find(|stated| stated.value == mac.value)?;
    Some((owner.clone(), stated.place.clone()))
}
