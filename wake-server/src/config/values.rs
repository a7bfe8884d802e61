//! What may stand behind a key of `wake-server.toml`, a function each. Never knows what a key means.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use toml::de::DeValue;
use vmstation_protocol::PORT;

use crate::{
    complaint::Complaints,
    keys::{self, Hint, Keys},
    origin,
};

/// Most networks in one list.
const MOST_NETWORKS: usize = 1024;
/// Most names of this server.
const MOST_NAMES: usize = 64;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);

type Times = std::ops::RangeInclusive<Duration>;

pub(super) fn duration(
    keys: &mut Keys<'_, '_>,
    key: &'static str,
    range: Times,
    complaints: &mut Complaints,
) -> Option<Duration> {
    let [least, most] = [*range.start(), *range.end()].map(humantime::format_duration);
    let takes = format!("a time with its unit, {least} to {most}");
    keys.read(key, &takes, complaints, |value| time(value, &range))
}

pub(super) fn time(value: &DeValue<'_>, range: &Times) -> Result<Duration, Hint> {
    if let Ok(seconds) = keys::number(value) {
        return Err(Some(format!("with its unit: \"{seconds}s\"")));
    }
    let time = humantime::parse_duration(keys::text(value)?).map_err(|_| None)?;
    range.contains(&time).then_some(time).ok_or(None)
}

pub(super) fn count<T: TryFrom<u64>>(
    keys: &mut Keys<'_, '_>,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
    complaints: &mut Complaints,
) -> Option<T> {
    let takes = format!("a whole number, {} to {}", range.start(), range.end());
    keys.read(key, &takes, complaints, |value| {
        let number = keys::number(value)?;
        range
            .contains(&number)
            .then_some(number)
            .and_then(|number| T::try_from(number).ok())
            .ok_or(None)
    })
}

pub(super) fn file(keys: &mut Keys<'_, '_>, key: &'static str, complaints: &mut Complaints) -> Option<PathBuf> {
    keys.read(key, "an absolute path", complaints, absolute)
}

pub(super) fn absolute(value: &DeValue<'_>) -> Result<PathBuf, Hint> {
    absolute_text(keys::text(value)?)
}

pub(super) fn absolute_text(text: &str) -> Result<PathBuf, Hint> {
    let path = PathBuf::from(text);
    path.is_absolute().then_some(path).ok_or(None)
}

pub(super) fn socket(value: &DeValue<'_>) -> Result<SocketAddr, Hint> {
    if let Ok(port) = keys::number(value) {
        return Err(Some(format!("with an address: \"127.0.0.1:{port}\"")));
    }
    let text = keys::text(value)?;
    text.parse().map_err(|_| {
        let port = text.trim_start_matches("localhost").trim_start_matches(['*', ':']);
        match (text.parse::<IpAddr>(), port.parse::<u16>()) {
            (Ok(ip), _) => Some(format!("with a port: \"{}\"", SocketAddr::from((ip, PORT)))),
            (Err(_), Ok(port)) if text.starts_with("localhost") => Some(format!("an address: \"127.0.0.1:{port}\"")),
            (Err(_), Ok(port)) => Some(format!("with an address: \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\"")),
            (Err(_), Err(_)) => None,
        }
    })
}

pub(super) fn networks(keys: &mut Keys<'_, '_>, key: &'static str, complaints: &mut Complaints) -> Option<Vec<IpNet>> {
    let place = keys.place(key)?;
    let takes = "a list of networks, as [\"192.0.2.0/24\", \"2001:db8::/32\"]";
    let networks = keys.list(key, takes, complaints, network)?;
    if networks.is_empty() || networks.len() > MOST_NETWORKS {
        complaints.add(
            place,
            format!("`{key}` takes 1 to {MOST_NETWORKS} networks"),
            "without the key everybody may".to_owned(),
        );
    }
    Some(networks.into_iter().map(|(network, _)| network).collect())
}

pub(super) fn host_names(keys: &mut Keys<'_, '_>, complaints: &mut Complaints) -> Option<Vec<String>> {
    let place = keys.place("host_names")?;
    let takes = "a list of names of this server without ports, as [\"power.example.org\"]";
    let names = keys.list("host_names", takes, complaints, |value| {
        let name = keys::text(value)?.to_ascii_lowercase();
        origin::is_host_name(&name).then_some(name).ok_or(None)
    })?;
    if names.len() > MOST_NAMES {
        complaints.add(place, format!("`host_names` takes at most {MOST_NAMES} names"), None);
    }
    Some(names.into_iter().map(|(name, _)| name).collect())
}

/// A network, or an address for itself alone. Bits behind the prefix are a mistake: which of the two is meant is not known.
fn network(value: &DeValue<'_>) -> Result<IpNet, Hint> {
    let text = keys::text(value)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = text.parse().map_err(|_| None)?;
    if network.trunc() != network {
        return Err(Some(format!(
            "\"{}\" is the network, \"{}\" the host",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(network)
}
