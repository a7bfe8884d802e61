//! What a file may say of a node, one value each: is it one, and if not, what would be right? Never reads a file.

use std::net::{IpAddr, Ipv4Addr};

use vmstation_protocol::{MacAddr, MacError};

use crate::complaint::quote;

/// What is wrong with a value, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// A MAC address and nothing else: what surrounds it may mean another card.
pub(super) fn mac(text: &str) -> Result<MacAddr, Wrong> {
    text.parse().map_err(|error: MacError| match error {
        MacError::Form(_) => {
            let message = format!("{} is no MAC address", quote(text));
            let first = text
                .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '|' | '#'))
                .find(|word| !word.is_empty());
            let hint = match first.map(str::parse::<MacAddr>) {
                _ if is_template(text) => "templates are not filled in here: write the address itself".into(),
                Some(Ok(mac)) => format!("write {mac} alone: it is not known what the rest means"),
                Some(Err(_)) | None => "write it as aa:bb:cc:dd:ee:ff".into(),
            };
            Wrong::new(message, hint)
        }
        error @ (MacError::Zero | MacError::Broadcast | MacError::Multicast(_)) => Wrong::new(
            error.to_string(),
            "`ip link` of the node shows it, after link/ether".to_owned(),
        ),
    })
}

/// What is given as a node's address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    Known(IpAddr),
    /// Something that may be right for others, but of no use here, and why.
    Useless(&'static str),
}

pub(super) fn address(text: &str) -> Result<Address, Wrong> {
    let ip = match text.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical(),
        Err(_) if is_template(text) => return Ok(Address::Useless("templates are not filled in here")),
        // Nothing but a mistyped address looks like this.
        Err(_) if text.contains(':') || !text.contains(|c: char| c.is_ascii_alphabetic()) => {
            return Err(Wrong::new(
                format!("{} is no IP address", quote(text)),
                "write it as 192.0.2.1".to_owned(),
            ));
        }
        Err(_) => return Ok(Address::Useless("names are not looked up here")),
    };
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err(Wrong::new(format!("{ip} is not the address of a host"), None));
    }
    if ip.is_loopback() {
        return Ok(Address::Useless("every host is that for itself"));
    }
    Ok(Address::Known(ip))
}

/// The name of a network interface of Linux.
pub(super) fn interface(text: &str) -> Result<String, Wrong> {
    const LONGEST: usize = 15;
    let is_allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':' | '|');
    if !text.is_empty() && text.len() <= LONGEST && text.chars().all(is_allowed) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{} is no name of an interface", quote(text)),
        format!("at most {LONGEST} characters, as eth0"),
    ))
}

pub(super) fn broadcast(text: &str) -> Result<Ipv4Addr, Wrong> {
    let address: Ipv4Addr = text.parse().map_err(|_| {
        Wrong::new(
            format!("{} is no IPv4 address", quote(text)),
            "write it as 192.0.2.255".to_owned(),
        )
    })?;
    // All bits behind the prefix are set, so at least the last.
    if address.octets()[3] & 1 == 0 || address.is_loopback() || address.is_multicast() {
        return Err(Wrong::new(
            format!("{address} is no broadcast address"),
            "`ip address` of this server shows it, after brd".to_owned(),
        ));
    }
    Ok(address)
}

/// The name of a group of nodes. It stands in refusals that agents and people read.
pub(super) fn group(text: &str) -> Result<String, Wrong> {
    const LONGEST: usize = 63;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= LONGEST && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{} is no name of a group", quote(text)),
        format!("letters, digits, -, _ and ., at most {LONGEST}, as ceph"),
    ))
}

pub(super) fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f6_a_mac_followed_by_other_words_is_refused_with_what_to_write() {
        for text in [
            "52:54:00:00:00:01 eth0",
            "52:54:00:00:00:01,52:54:00:00:00:02",
            "52:54:00:00:00:01 # eth0",
            "52-54-00-00-00-01;",
        ] {
            let wrong = mac(text).unwrap_err();
            assert_eq!(
                wrong.hint.unwrap(),
                "write 52:54:00:00:00:01 alone: it is not known what the rest means"
            );
        }
        let wrong = mac("eth0 52:54:00:00:00:01").unwrap_err();
        assert_eq!(wrong.hint.unwrap(), "write it as aa:bb:cc:dd:ee:ff");
        let wrong = mac("{{ mac }}").unwrap_err();
        assert!(wrong.hint.unwrap().contains("templates"));
    }

    #[test]
    fn w1_what_is_no_card_is_refused() {
        for text in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
            assert!(mac(text).unwrap_err().message.contains("MAC address") || text.starts_with("01"));
        }
    }

    #[test]
    fn f6_what_is_no_address_is_refused_and_what_is_of_no_use_is_told() {
        assert_eq!(
            address("::ffff:192.0.2.1"),
            Ok(Address::Known("192.0.2.1".parse().unwrap()))
        );
        for useless in ["worker.example", "{{ ip }}", "127.0.0.1", "::1", "localhost"] {
            assert!(matches!(address(useless), Ok(Address::Useless(_))), "{useless}");
        }
        for wrong in [
            "192.0.2.300",
            "192.0.2",
            "192.0.2.1/24",
            "",
            "2001:db8::x",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn f5_groups_have_plain_names() {
        for right in ["ceph", "rack-2.left_side", &"a".repeat(63)] {
            assert_eq!(group(right), Ok(right.to_owned()));
        }
        for wrong in ["", "a b", "a\nb", "é", &"a".repeat(64)] {
            assert!(group(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn f6_interfaces_and_broadcast_addresses() {
        assert_eq!(interface("enp0s31f6"), Ok("enp0s31f6".into()));
        for wrong in ["", "..", "a b", "a/b", "eth0:1", "sixteen-letters!"] {
            assert!(interface(wrong).is_err(), "{wrong}");
        }
        for right in ["192.0.2.255", "192.0.2.127", "255.255.255.255"] {
            assert_eq!(broadcast(right), Ok(right.parse().unwrap()));
        }
        for wrong in ["192.0.2.0", "192.0.2.254", "127.255.255.255", "224.0.0.1", "::1", "x"] {
            assert!(broadcast(wrong).is_err(), "{wrong}");
        }
    }
}
