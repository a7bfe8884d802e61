//! An Ansible inventory, whichever form it was written in: groups, hosts and the few variables that matter here. Groups give roles.
//!
//! | variable | says |
//! |---|---|
//! | `wol_mac` | the MAC address, in YAML also a list; of a host, never of a group |
//! | `ansible_host` | the address, if it is an IP address; of a host, never of a group |
//! | `wol_interface` | interface of this server that leads to the host |
//! | `wol_broadcast` | where UDP packets for it go |
//! | `wol_secure_on` | SecureOn password |
//!
//! As in Ansible, a host's own variable goes before that of a group, and a group's before that of the groups it is a child of. Where
//! Ansible lets the last of two contradicting lines win, both are told and nothing is taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use vmstation_protocol::{MacAddr, NameError, NodeName, Role};

use super::{
    MOST_NODES, SecureOnError,
    entry::{Entry, Stated},
    values::{self, Address, Wrong},
};
use crate::complaint::{Complaints, Place, nearest, quote};

/// Groups with a meaning. Hyphens are read as underscores.
const ROLES: [(&str, Role); 18] = [
    ("master", Role::Master),
    ("masters", Role::Master),
    ("master_nodes", Role::Master),
    ("control_plane", Role::Master),
    ("controlplane", Role::Master),
    ("kube_control_plane", Role::Master),
    ("kube_master", Role::Master),
    ("storage", Role::Storage),
    ("storages", Role::Storage),
    ("storage_node", Role::Storage),
    ("storage_nodes", Role::Storage),
    ("worker", Role::Worker),
    ("workers", Role::Worker),
    ("worker_nodes", Role::Worker),
    ("compute", Role::Worker),
    ("compute_nodes", Role::Worker),
    ("kube_node", Role::Worker),
    ("kube_nodes", Role::Worker),
];
/// Most groups of one inventory.
const MOST_GROUPS: usize = 1000;
/// Most times that a group is named as a child.
const MOST_CHILDREN: usize = 20_000;
/// Most times that a host is named or given a variable: a range can name many in one line.
const MOST_STATEMENTS: usize = 1_000_000;
/// The group that has every host.
const ALL: &str = "all";

/// A variable that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variable {
    Mac,
    Address,
    Interface,
    Broadcast,
    SecureOn,
}

const VARIABLES: [(&str, Variable); 6] = [
    ("wol_mac", Variable::Mac),
    ("ansible_host", Variable::Address),
    ("ansible_ssh_host", Variable::Address),
    ("wol_interface", Variable::Interface),
    ("wol_broadcast", Variable::Broadcast),
    ("wol_secure_on", Variable::SecureOn),
];

/// Whom a variable belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner<'n> {
    Host(&'n str),
    Group(&'n str),
}

/// One word, several, or nothing.
type Words = Vec<Stated<String>>;
type Variables = BTreeMap<Variable, Words>;
/// Of each group, all groups it is in, but for [`ALL`].
type Ancestors<'i> = BTreeMap<&'i str, BTreeSet<&'i str>>;

#[derive(Debug)]
struct Host {
    place: Place,
    groups: BTreeSet<String>,
    variables: Variables,
}

#[derive(Debug, Default)]
struct Group {
    parents: BTreeMap<String, Place>,
    variables: Variables,
}

/// As it was read.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    groups: BTreeMap<String, Group>,
    hosts: BTreeMap<String, Host>,
    notes: Vec<String>,
    statements: usize,
}

impl Inventory {
    pub(super) fn group(&mut self, name: &str) {
        self.groups.entry(name.to_owned()).or_default();
    }

    pub(super) fn has_group(&self, name: &str) -> bool {
        self.groups.contains_key(name)
    }

    pub(super) fn nearest_group(&self, name: &str) -> Option<&str> {
        nearest(name, self.groups.keys().map(String::as_str))
    }

    pub(super) fn child(&mut self, parent: &str, child: &str, place: Place) {
        self.group(parent);
        let child = self.groups.entry(child.to_owned()).or_default();
        child.parents.entry(parent.to_owned()).or_insert(place);
    }

    pub(super) fn host(&mut self, group: Option<&str>, name: &str, place: &Place) {
        self.statements += 1;
        let host = self.hosts.entry(name.to_owned()).or_insert_with(|| Host {
            place: place.clone(),
            groups: BTreeSet::new(),
            variables: Variables::new(),
        });
        host.groups.extend(group.map(str::to_owned));
    }

    /// Whether so much was said that nothing more is taken; complains if so.
    pub(super) fn is_full(&self, place: &Place, complaints: &mut Complaints) -> bool {
        let is_full = self.hosts.len() > MOST_NODES || self.statements > MOST_STATEMENTS;
        if is_full {
            complaints.add(
                place.clone(),
                format!("more than {MOST_NODES} hosts, or {MOST_STATEMENTS} variables of hosts"),
                None,
            );
        }
        is_full
    }

    /// `name=values`, of a host or group that was told before.
    pub(super) fn set(&mut self, owner: Owner<'_>, name: &str, values: Words, complaints: &mut Complaints) {
        self.statements += 1;
        let values: Words = values.into_iter().filter(|word| !word.value.is_empty()).collect();
        let Some(first) = values.first() else {
            return;
        };
        let (owner, variables) = match owner {
            Owner::Host(host) => (host, self.hosts.get_mut(host).map(|host| &mut host.variables)),
            Owner::Group(group) => (group, self.groups.get_mut(group).map(|group| &mut group.variables)),
        };
        let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) else {
            let meant = nearest(name, VARIABLES.iter().map(|(known, _)| *known)).filter(|_| name.starts_with("wol"));
            let meant = meant.or(first.value.parse::<MacAddr>().is_ok().then_some("wol_mac"));
            self.notes.extend(meant.map(|meant| {
                let name = quote(name);
                format!(
                    "{name} of {owner} ({}) is not known: did you mean `{meant}`?",
                    first.place
                )
            }));
            return;
        };
        let Some(variables) = variables else {
            return;
        };
        let same = |one: &Words| {
            one.iter()
                .map(|word| &word.value)
                .eq(values.iter().map(|word| &word.value))
        };
        match variables.get(variable) {
            None => drop(variables.insert(*variable, values)),
            Some(before) if same(before) => {}
            Some(before) => complaints.add(
                first.place.clone(),
                format!("{name} of {owner} is something else in {}", place_of(before)),
                "correct one of the two, or take it out".to_owned(),
            ),
        }
    }

    /// The nodes, by name.
    pub(super) fn finish(self, path: &Path, complaints: &mut Complaints, notes: &mut Vec<String>) -> Vec<Entry> {
        let children: usize = self.groups.values().map(|group| group.parents.len()).sum();
        if self.groups.len() > MOST_GROUPS || children > MOST_CHILDREN {
            let message = format!("has more than {MOST_GROUPS} groups, or {MOST_CHILDREN} children of groups");
            complaints.add(Place::whole(path), message, None);
            return Vec::new();
        }
        let ancestors = self.ancestors(complaints);
        for (name, group) in &self.groups {
            not_of_a_group(name, &group.variables, complaints, notes);
        }
        notes.extend(self.notes.iter().cloned());
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = BTreeMap::new();
        let mut without_mac = Vec::new();
        for (name, host) in &self.hosts {
            // `localhost` is where Ansible runs: it is awake.
            if name == "localhost" {
                continue;
            }
            let has_mac = host.variables.contains_key(&Variable::Mac);
            let node: NodeName = match name.parse() {
                Ok(node) => node,
                Err(error) if !has_mac => {
                    notes.push(format!("{}: host left out: {error}", host.place));
                    continue;
                }
                Err(error) => {
                    let error: NameError = error;
                    complaints.add(host.place.clone(), error.to_string(), None);
                    continue;
                }
            };
            if let Some(first) = seen.insert(node.clone(), &host.place) {
                complaints.add(
                    host.place.clone(),
                    format!("{} is the same node as in {first}", quote(name)),
                    "capitals make no difference in the name of a host".to_owned(),
                );
                continue;
            }
            if !has_mac {
                without_mac.push(name.as_str());
            }
            entries.push(self.entry(node, host, &ancestors, complaints, notes));
        }
        note_without_mac(&without_mac, entries.first(), notes);
        entries
    }

    fn entry(
        &self,
        name: NodeName,
        host: &Host,
        ancestors: &Ancestors<'_>,
        complaints: &mut Complaints,
        notes: &mut Vec<String>,
    ) -> Entry {
        let mut groups: BTreeSet<&str> = [ALL].into();
        for group in &host.groups {
            groups.insert(group);
            groups.extend(ancestors.get(group.as_str()).into_iter().flatten());
        }
        let mut entry = Entry::new(name, host.place.clone());
        // A host with several roles is woken with the first of them.
        entry.role = groups.iter().filter_map(|group| role(group)).min().map(|value| Stated {
            value,
            place: host.place.clone(),
        });
        for word in host.variables.get(&Variable::Mac).into_iter().flatten() {
            match values::mac(&word.value) {
                Ok(mac) => entry.add_mac(mac, word.place.clone(), complaints),
                Err(wrong) => complaints.add(word.place.clone(), wrong.message, wrong.hint),
            }
        }
        entry.address = address(&entry.name, host, complaints, notes);
        let mut words = |variable| match host.variables.get(&variable) {
            Some(words) => Some(words),
            None => self.inherited(variable, &entry.name, &groups, ancestors, complaints),
        };
        let interface = words(Variable::Interface);
        let broadcast = words(Variable::Broadcast);
        let secure_on = words(Variable::SecureOn);
        entry.interface = one(interface, complaints, values::interface);
        entry.broadcast = one(broadcast, complaints, values::broadcast);
        entry.secure_on = one(secure_on, complaints, |text| {
            text.parse()
                .map_err(|error: SecureOnError| Wrong::new(error.to_string(), None))
        });
        entry
    }

    /// What the nearest groups say; two that are equally near have to agree.
    fn inherited(
        &self,
        variable: Variable,
        host: &NodeName,
        groups: &BTreeSet<&str>,
        ancestors: &Ancestors<'_>,
        complaints: &mut Complaints,
    ) -> Option<&Words> {
        let has = |group: &&&str| {
            self.groups
                .get(**group)
                .is_some_and(|group| group.variables.contains_key(&variable))
        };
        let saying: Vec<&str> = groups.iter().filter(has).copied().collect();
        let is_above = |above: &str, below: &str| {
            above != below && (above == ALL || ancestors.get(below).is_some_and(|groups| groups.contains(above)))
        };
        let nearest = saying
            .iter()
            .filter(|one| !saying.iter().any(|other| is_above(one, other)));
        let mut said = nearest.filter_map(|group| self.groups.get(*group)?.variables.get(&variable));
        let first = said.next()?;
        let words = |words: &Words| words.iter().map(|word| word.value.clone()).collect::<Vec<_>>();
        if let Some(other) = said.find(|other| words(other) != words(first)) {
            complaints.add(
                place_of(other),
                format!("{host} has another value from the group in {}", place_of(first)),
                "give the host its own".to_owned(),
            );
        }
        Some(first)
    }

    /// Of each group, all groups it is in, but for [`ALL`].
    fn ancestors(&self, complaints: &mut Complaints) -> Ancestors<'_> {
        let mut all = BTreeMap::new();
        for (name, group) in &self.groups {
            let mut found: BTreeSet<&str> = BTreeSet::new();
            let mut todo: Vec<&Group> = vec![group];
            while let Some(group) = todo.pop() {
                for parent in group.parents.keys() {
                    if found.insert(parent) {
                        todo.extend(self.groups.get(parent));
                    }
                }
            }
            if found.contains(name.as_str())
                && let Some(place) = group.parents.values().next()
            {
                complaints.add(
                    place.clone(),
                    format!("the group {} is its own child", quote(name)),
                    None,
                );
            }
            all.insert(name.as_str(), found);
        }
        all
    }
}

/// The one value of a variable.
fn one<T>(
    words: Option<&Words>,
    complaints: &mut Complaints,
    read: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Option<Stated<T>> {
    let (word, more) = words?.split_first()?;
    if let Some(second) = more.first() {
        complaints.add(second.place.clone(), "one value is enough here", None);
    }
    match read(&word.value) {
        Ok(value) => Some(Stated {
            value,
            place: word.place.clone(),
        }),
        Err(wrong) => {
            complaints.add(word.place.clone(), wrong.message, wrong.hint);
            None
        }
    }
}

/// What `ansible_host` says; a host that is named by its address has that.
fn address(
    name: &NodeName,
    host: &Host,
    complaints: &mut Complaints,
    notes: &mut Vec<String>,
) -> Option<Stated<IpAddr>> {
    let Some(words) = host.variables.get(&Variable::Address) else {
        return match values::address(name.as_str()) {
            Ok(Address::Known(value)) => Some(Stated {
                value,
                place: host.place.clone(),
            }),
            Ok(Address::Useless(_)) | Err(_) => None,
        };
    };
    let stated = one(Some(words), complaints, values::address)?;
    match stated.value {
        Address::Known(value) => Some(Stated {
            value,
            place: stated.place,
        }),
        Address::Useless(why) => {
            let text = words.first().map_or("", |word| &word.value);
            let place = stated.place;
            notes.push(format!(
                "{} is of no use as an address of {name} ({place}): {why}",
                quote(text)
            ));
            None
        }
    }
}

/// A card and an address are those of one host.
fn not_of_a_group(group: &str, variables: &Variables, complaints: &mut Complaints, notes: &mut Vec<String>) {
    if let Some(words) = variables.get(&Variable::Mac) {
        complaints.add(
            place_of(words),
            format!(
                "the group {} has a MAC address: a card is that of one host",
                quote(group)
            ),
            "give it to the host".to_owned(),
        );
    }
    if let Some(words) = variables.get(&Variable::Address) {
        let place = place_of(words);
        notes.push(format!(
            "ansible_host of the group {} ({place}) is not used: an address is that of one host",
            quote(group)
        ));
    }
}

fn note_without_mac(names: &[&str], any: Option<&Entry>, notes: &mut Vec<String>) {
    const SHOWN: usize = 10;
    let (Some(first), Some(any)) = (names.get(..names.len().min(SHOWN)), any) else {
        return;
    };
    if first.is_empty() {
        return;
    }
    let more = match names.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    notes.push(format!(
        "{}: no wol_mac for {}{more}: woken only once their agents have told one",
        any.place.path.display(),
        first.join(", ")
    ));
}

fn place_of(words: &Words) -> Place {
    words
        .first()
        .map_or_else(|| Place::whole(""), |word| word.place.clone())
}

fn role(group: &str) -> Option<Role> {
    let name = group.to_ascii_lowercase().replace('-', "_");
    ROLES.iter().find(|(known, _)| *known == name).map(|&(_, role)| role)
}
