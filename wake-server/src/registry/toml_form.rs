//! The registry as TOML:
//!
//! ```toml
//! [[node]]
//! name = "worker-01"
//! role = "worker"                     # master, storage or worker
//! mac = "52:54:00:00:00:01"           # or macs = ["..", ".."]
//! address = "192.0.2.11"
//! interface = "eth0"                  # of this server; without it the one its route has
//! broadcast = "192.0.2.255"
//! secure_on = "00:11:22:33:44:55"
//! group = "ceph"                      # nodes of one group enter sleep one at a time; without it the node is in none
//! ```

use std::collections::BTreeMap;

use vmstation_protocol::{NodeName, Role};

use super::{
    SecureOn,
    entry::{Entry, Stated},
    values::{self, Address, Wrong},
};
use crate::{
    complaint::{Complaints, Place, Source},
    keys::{self, Hint, Keys},
};

pub(super) fn read(source: &Source<'_>, complaints: &mut Complaints) -> Vec<Entry> {
    let document = keys::document(source, complaints);
    let mut keys = Keys::new(source, &document, "");
    let mut seen: BTreeMap<NodeName, Place> = BTreeMap::new();
    let mut entries = Vec::new();
    for (node, place) in keys.tables("node", complaints) {
        let Some(entry) = node_of(node, place, complaints) else {
            continue;
        };
        match seen.get(&entry.name) {
            Some(first) => complaints.add(
                entry.place,
                format!("{} is written twice, first in {first}", entry.name),
                "several cards of one node: macs = [\"..\", \"..\"]".to_owned(),
            ),
            None => {
                seen.insert(entry.name.clone(), entry.place.clone());
                entries.push(entry);
            }
        }
    }
    keys.finish(complaints);
    entries
}

fn node_of(mut keys: Keys<'_, '_>, header: Place, complaints: &mut Complaints) -> Option<Entry> {
    let place = keys.place("name");
    let is_named = place.is_some();
    let name: Option<NodeName> = keys.read("name", "the name of the host", complaints, |value| {
        keys::text(value)?
            .parse()
            .map_err(|error: vmstation_protocol::NameError| Some(error.to_string()))
    });
    if !is_named {
        complaints.add(
            header.clone(),
            "this node has no name",
            "write name = \"worker-01\"".to_owned(),
        );
    }
    // Everything else is read for its complaints even if the node has no name.
    let placeholder = || "unnamed".parse().ok();
    let mut entry = Entry::new(name.clone().or_else(placeholder)?, place.unwrap_or(header));
    entry.role = stated(&mut keys, "role", "master, storage or worker", complaints, |text| {
        text.parse::<Role>().map_err(|error| Some(error.to_string()))
    });
    entry.address = stated(
        &mut keys,
        "address",
        "an IP address",
        complaints,
        |text| match values::address(text).map_err(hint)? {
            Address::Known(address) => Ok(address),
            Address::Useless(why) => Err(Some(why.to_owned())),
        },
    );
    entry.interface = stated(&mut keys, "interface", "the name of an interface", complaints, |text| {
        values::interface(text).map_err(hint)
    });
    entry.broadcast = stated(&mut keys, "broadcast", "an IPv4 address", complaints, |text| {
        values::broadcast(text).map_err(hint)
    });
    entry.group = stated(&mut keys, "group", "the name of a group", complaints, |text| {
        values::group(text).map_err(hint)
    });
    let place = keys.place("secure_on");
    let secure_on = keys.secret("secure_on", "six bytes as aa:bb:cc:dd:ee:ff", complaints, |text| {
        text.parse::<SecureOn>().map_err(|error| Some(error.to_string()))
    });
    entry.secure_on = place.zip(secure_on).map(|(place, value)| Stated { value, place });
    cards(&mut keys, &mut entry, complaints);
    keys.finish(complaints);
    name.map(|_| entry)
}

fn cards(keys: &mut Keys<'_, '_>, entry: &mut Entry, complaints: &mut Complaints) {
    let places = (keys.place("mac"), keys.place("macs"));
    let one = stated(
        keys,
        "mac",
        "a MAC address, as \"52:54:00:00:00:01\"",
        complaints,
        |text| values::mac(text).map_err(hint),
    );
    let takes = "a list of MAC addresses, as [\"52:54:00:00:00:01\"]";
    let more = keys.list("macs", takes, complaints, |value| {
        values::mac(keys::text(value)?).map_err(hint)
    });
    if let (Some(_), Some(place)) = places {
        complaints.add(
            place,
            "both `mac` and `macs`",
            "write all cards into `macs`, the first one first".to_owned(),
        );
    }
    let one = one.map(|one| (one.value, one.place));
    for (mac, place) in one.into_iter().chain(more.into_iter().flatten()) {
        entry.add_mac(mac, place, complaints);
    }
}

fn stated<T>(
    keys: &mut Keys<'_, '_>,
    key: &'static str,
    takes: &str,
    complaints: &mut Complaints,
    read: impl FnOnce(&str) -> Result<T, Hint>,
) -> Option<Stated<T>> {
    let place = keys.place(key)?;
    let value = keys.read(key, takes, complaints, |value| keys::text(value).and_then(read))?;
    Some(Stated { value, place })
}

/// The key's own complaint says what it cannot be; what is wrong with it and what would be right is the hint.
fn hint(wrong: Wrong) -> Hint {
    Some(match wrong.hint {
        Some(hint) => format!("{}; {hint}", wrong.message),
        None => wrong.message,
    })
}
