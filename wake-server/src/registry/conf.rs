//! `wol-registry.conf`: a line for each node, `hostname|ip|mac|interface`, as VMStation's Wake-on-LAN playbook writes it.
//!
//! The interface is the one of the node, not of this server: it is used only where there is no address whose route tells better. The
//! address, the MAC address and the interface may be empty.

use std::collections::BTreeMap;

use vmstation_protocol::{NameError, NodeName};

use super::{
    entry::{Entry, Stated},
    values::{self, Address, Wrong},
};
use crate::complaint::{Complaints, Place, Source, quote};

const FORM: &str = "a line is hostname|ip|mac|interface, or a comment after #";

pub(super) fn read(source: &Source<'_>, complaints: &mut Complaints, notes: &mut Vec<String>) -> Vec<Entry> {
    let mut seen: BTreeMap<NodeName, Place> = BTreeMap::new();
    let mut entries = Vec::new();
    let mut start = 0;
    for line in source.text.split_inclusive('\n') {
        let at = start;
        start += line.len();
        let Some(entry) = node_of(source, at, without_comment(line), complaints, notes) else {
            continue;
        };
        match seen.get(&entry.name) {
            Some(first) => complaints.add(
                entry.place,
                format!("{} is written twice, first in {first}", entry.name),
                "keep one of the lines".to_owned(),
            ),
            None => {
                seen.insert(entry.name.clone(), entry.place.clone());
                entries.push(entry);
            }
        }
    }
    entries
}

/// A comment begins with `#` at the start of a line or after white space.
fn without_comment(line: &str) -> &str {
    let mut before = ' ';
    for (at, character) in line.char_indices() {
        if character == '#' && before.is_whitespace() {
            return &line[..at];
        }
        before = character;
    }
    line
}

fn node_of(
    source: &Source<'_>,
    start: usize,
    line: &str,
    complaints: &mut Complaints,
    notes: &mut Vec<String>,
) -> Option<Entry> {
    if line.trim().is_empty() {
        return None;
    }
    let mut at = start;
    let fields: Vec<(&str, Place)> = line
        .split('|')
        .map(|field| {
            let begin = at + field.len() - field.trim_start().len();
            at += field.len() + 1;
            (field.trim(), source.place(begin))
        })
        .collect();
    let (name, address, mac, interface) = match fields.as_slice() {
        [name, address, mac] => (name, address, mac, None),
        [name, address, mac, interface] => (name, address, mac, Some(interface)),
        [] | [_] | [_, _] | [_, _, _, _, ..] => {
            let place = source.place(start);
            complaints.add(place, format!("{} fields instead of 4", fields.len()), FORM.to_owned());
            return None;
        }
    };
    let mut complain = |place: &Place, wrong: Wrong| complaints.add(place.clone(), wrong.message, wrong.hint);
    let name = (
        name.0
            .parse()
            .map_err(|error: NameError| Wrong::new(error.to_string(), FORM.to_owned())),
        &name.1,
    );
    let mut cards = Vec::new();
    if !mac.0.is_empty() {
        match values::mac(mac.0) {
            Ok(value) => cards.push(Stated {
                value,
                place: mac.1.clone(),
            }),
            Err(wrong) => complain(&mac.1, wrong),
        }
    }
    let address = match address.0 {
        "" => None,
        text => match values::address(text) {
            Ok(Address::Known(value)) => Some(Stated {
                value,
                place: address.1.clone(),
            }),
            Ok(Address::Useless(why)) => {
                complain(
                    &address.1,
                    Wrong::new(format!("{} is of no use as an address: {why}", quote(text)), None),
                );
                None
            }
            Err(wrong) => {
                complain(&address.1, wrong);
                None
            }
        },
    };
    let interface = match interface {
        None => None,
        Some(("", _)) => None,
        Some((text, place)) => match values::interface(text) {
            Ok(value) => Some(Stated {
                value,
                place: place.clone(),
            }),
            Err(wrong) => {
                complain(place, wrong);
                None
            }
        },
    };
    let name: NodeName = match name {
        (Ok(name), _) => name,
        (Err(wrong), place) => {
            complain(place, wrong);
            return None;
        }
    };
    if mac.0.is_empty() {
        notes.push(format!(
            "{name} has no MAC address ({}): it is woken only once its agent has told one",
            mac.1
        ));
    }
    let mut entry = Entry::new(name, source.place(start));
    entry.macs = cards;
    entry.interface = interface.filter(|_| address.is_none());
    entry.address = address;
    Some(entry)
}
