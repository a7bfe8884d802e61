//! Who is who: names, cards and roles of the nodes, from files people write and from what agents report of themselves.
//!
//! ```text
//! TOML, wol-registry.conf, Ansible inventory ──> Entry (one node as one file has it) ──> Registry ──┐
//!                                                                         agents' reports ──────────┴──> merged Registry
//! ```
//! A value is an immutable snapshot; whoever holds one replaces it as a whole. Never guesses: what may lead a packet to a wrong card is
//! refused with its line when a file is loaded, and left out and told when it comes from an agent.

mod conf;
mod entry;
mod inventory;
mod inventory_ini;
mod inventory_yaml;
mod merge;
mod ranges;
mod secure_on;
mod toml_form;
mod values;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use thiserror::Error;
use vmstation_protocol::{MacAddr, NodeName, Report, Role};

use self::entry::Entry;
pub use self::secure_on::{SecureOn, SecureOnError};
use crate::complaint::{Complaint, Complaints, Place, Source, read_text, write_all};

/// Longest file, bytes: 100,000 nodes fit.
const LONGEST: u64 = 16 << 20;
/// Most nodes of one file.
const MOST_NODES: usize = 100_000;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its cards, none twice. First those its agent says are armed, then those of the files, then the agent's others.
    pub macs: Vec<MacAddr>,
    /// Its address, by which the interface to it is found and by which it is asked whether it is awake.
    pub address: Option<IpAddr>,
    /// Interface of this server that leads to it; `None`: the one its route has.
    pub interface: Option<String>,
    /// Where UDP packets for it go; `None`: the broadcast address of that interface.
    pub broadcast: Option<Ipv4Addr>,
    /// Password of its cards.
    pub secure_on: Option<SecureOn>,
    /// Nodes of one group enter sleep one at a time; `None`: it is in none.
    pub group: Option<String>,
}

impl Node {
    /// Whatever has this card: nothing else is known of it.
    ///
    /// # Panics
    /// Never: the name is letters, digits and a hyphen.
    pub fn bare(mac: MacAddr) -> Self {
        let digits: String = mac.to_string().split(':').collect();
        Self {
            #[expect(clippy::expect_used, reason = "letters, digits and a hyphen")]
            name: format!("mac-{digits}").parse().expect("a node name"),
            role: Role::Worker,
            macs: vec![mac],
            address: None,
            interface: None,
            broadcast: None,
            secure_on: None,
            group: None,
        }
    }
}

/// Every node, by name; no card belongs to two.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    nodes: BTreeMap<NodeName, Known>,
    by_mac: BTreeMap<MacAddr, NodeName>,
    conflicts: Vec<String>,
    notes: Vec<String>,
}

/// A node and what the files say of it.
#[derive(Clone, Debug)]
struct Known {
    node: Node,
    /// `None`: no file has it.
    entry: Option<Entry>,
}

/// Registries that cannot be used: everything that is wrong with all of them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct RegistryErrors {
    /// At least one, in the order of file and line.
    pub complaints: Vec<Complaint>,
}

impl fmt::Display for RegistryErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_all(&self.complaints, f)
    }
}

impl Registry {
    /// Reads all the files. What one leaves out another may say; none may contradict another.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(files: &[PathBuf]) -> Result<Self, RegistryErrors> {
        let mut reading = Reading::default();
        for path in files {
            match read_text(path, LONGEST) {
                Ok(text) => reading.file(path, &text),
                Err(complaint) => reading.complaints.push(complaint),
            }
        }
        reading.finish()
    }

    /// Reads `text`, which stands in `path`. Touches no file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RegistryErrors> {
        let mut reading = Reading::default();
        reading.file(path, text.strip_prefix('\u{feff}').unwrap_or(text));
        reading.finish()
    }

    /// The node of this name.
    pub fn get(&self, name: &NodeName) -> Option<&Node> {
        Some(&self.nodes.get(name)?.node)
    }

    /// The node with this card.
    pub fn by_mac(&self, mac: MacAddr) -> Option<&Node> {
        self.get(self.by_mac.get(&mac)?)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values().map(|known| &known.node)
    }

    /// What contradicts what, a sentence each. Nothing was guessed: what is in doubt was left out.
    pub fn conflicts(&self) -> &[String] {
        &self.conflicts
    }

    /// What an administrator should know of the files, a sentence each: what was not used, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// This registry of files, with what agents report of themselves. Of two reports of one node the later one holds.
    ///
    /// A card that two nodes claim belongs to the one whose file has it; if no file has it, to none.
    #[must_use]
    pub fn merged<'r>(&self, reports: impl Iterator<Item = &'r Report>) -> Self {
        merge::merged(self, reports)
    }
}

/// Files as they are read.
#[derive(Default)]
struct Reading {
    entries: BTreeMap<NodeName, Entry>,
    complaints: Complaints,
    notes: Vec<String>,
}

impl Reading {
    fn file(&mut self, path: &Path, text: &str) {
        let source = Source::new(path, text);
        let complaints = &mut self.complaints;
        let entries = match Format::of(path, text) {
            Format::Toml => toml_form::read(&source, complaints),
            Format::Conf => conf::read(&source, complaints, &mut self.notes),
            Format::InventoryYaml => {
                inventory_yaml::read(&source, complaints).finish(path, complaints, &mut self.notes)
            }
            Format::InventoryIni => inventory_ini::read(&source, complaints).finish(path, complaints, &mut self.notes),
        };
        if entries.len() > MOST_NODES {
            complaints.add(Place::whole(path), format!("has more than {MOST_NODES} nodes"), None);
        }
        for entry in entries {
            match self.entries.get_mut(&entry.name) {
                Some(known) => known.join(entry, complaints),
                None => drop(self.entries.insert(entry.name.clone(), entry)),
            }
        }
    }

    fn finish(mut self) -> Result<Registry, RegistryErrors> {
        shorten(&mut self.notes);
        let mut registry = Registry {
            notes: self.notes,
            ..Registry::default()
        };
        let mut addresses = BTreeMap::new();
        // In the order of the files, so that the later line is the one complained about.
        let mut entries: Vec<Entry> = self.entries.into_values().collect();
        entries.sort_by(|one, other| one.place.cmp(&other.place));
        for entry in entries {
            for mac in &entry.macs {
                if let Some((owner, place)) = entry::claim(&mut registry.by_mac, &registry.nodes, mac, &entry.name) {
                    self.complaints.add(
                        mac.place.clone(),
                        format!(
                            "{} is the MAC address of {owner} ({place}) and of {} ({})",
                            mac.value, entry.name, mac.place
                        ),
                        "a card is in one host only: correct one of the two".to_owned(),
                    );
                }
            }
            if let Some(address) = &entry.address
                && let Some((other, place)) =
                    addresses.insert(address.value, (entry.name.clone(), address.place.clone()))
            {
                registry.conflicts.push(format!(
                    "{} is the address of {other} ({place}) and of {} ({}): it proves neither of them awake",
                    address.value, entry.name, address.place
                ));
            }
            let node = entry.node();
            let entry = Some(entry);
            registry.nodes.insert(node.name.clone(), Known { node, entry });
        }
        self.complaints
            .finish(registry)
            .map_err(|complaints| RegistryErrors { complaints })
    }
}

/// Leaves what people can read.
fn shorten(sentences: &mut Vec<String>) {
    const MOST: usize = 200;
    if let Some(more) = sentences.len().checked_sub(MOST).filter(|&more| more > 0) {
        sentences.truncate(MOST);
        sentences.push(format!("and {more} more of this kind"));
    }
}

/// Form of a registry file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `[[node]]`
    Toml,
    /// `hostname|ip|mac|interface`
    Conf,
    /// Ansible inventory, YAML.
    InventoryYaml,
    /// Ansible inventory, INI.
    InventoryIni,
}

impl Format {
    /// By the name of the file, or else by its first line that says something.
    fn of(path: &Path, text: &str) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => return Self::Toml,
            Some("yml" | "yaml" | "json") => return Self::InventoryYaml,
            Some("ini") => return Self::InventoryIni,
            Some(_) | None => {}
        }
        let says_something = |line: &&str| !line.is_empty() && !line.starts_with(['#', ';']);
        let first = text.lines().map(str::trim).find(says_something).unwrap_or_default();
        let without_comment = first.split(" #").next().unwrap_or_default().trim_end();
        if first.starts_with("[[") {
            Self::Toml
        } else if first.starts_with('[') {
            Self::InventoryIni
        } else if first.contains('|') {
            Self::Conf
        } else if first.starts_with("---") || without_comment.ends_with(':') {
            Self::InventoryYaml
        } else if extension == Some("conf") {
            Self::Conf
        } else {
            Self::InventoryIni
        }
    }
}

#[cfg(test)]
mod tests;
