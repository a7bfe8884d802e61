//! Names and roles of nodes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Name of a node: what Kubernetes takes for one, an RFC 1123 subdomain of at most 253 characters. Capitals are read as small letters.
/// Never `all`, which means every node, and never something that reads as a MAC address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// Why something is no [`NodeName`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Empty, too long, or with characters that no host name has.
    #[error(
        "{0:?} is no node name: letters, digits, `-` and `.`, at most 253, each part beginning and ending with a letter or digit"
    )]
    Form(String),
    /// A word with a meaning of its own.
    #[error("`all` means every node and cannot be the name of one")]
    Reserved,
    /// It would be taken for a MAC address.
    #[error("{0:?} reads as a MAC address and cannot be a node name")]
    Mac(String),
}

impl NodeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
        let is_label = |label: &str| {
            let bytes = label.as_bytes();
            label.len() <= 63
                && bytes.first().copied().is_some_and(is_alphanumeric)
                && bytes.last().copied().is_some_and(is_alphanumeric)
                && bytes.iter().all(|&byte| is_alphanumeric(byte) || byte == b'-')
        };
        if text.len() > 253 || !text.split('.').all(is_label) {
            // What is shown of it is bounded: it may come from a request.
            return Err(NameError::Form(text.chars().take(64).collect()));
        }
        if text.eq_ignore_ascii_case("all") {
            return Err(NameError::Reserved);
        }
        if !matches!(text.parse::<crate::MacAddr>(), Err(crate::MacError::Form(_))) {
            return Err(NameError::Mac(text.to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a node is to its cluster. In the order in which a cluster is woken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the control plane.
    Master,
    /// Holds data that others use.
    Storage,
    /// Everything else.
    #[default]
    Worker,
}

/// No [`Role`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no role: master, storage or worker")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "master" => Ok(Self::Master),
            "storage" => Ok(Self::Storage),
            "worker" => Ok(Self::Worker),
            _ => Err(UnknownRole(text.to_owned())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Storage => "storage",
            Self::Worker => "worker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_are_names() {
        for text in ["worker-01", "a", "0", "node.example.org", "Worker-01"] {
            assert_eq!(text.parse::<NodeName>().unwrap().as_str(), text.to_ascii_lowercase());
        }
    }

    #[test]
    fn w3_nothing_else_is_a_name() {
        let long = "a".repeat(64);
        for text in [
            "", "-", "a-", "-a", "a..b", ".", "../x", "a/b", "a b", "a\0", "a\r\nb", "a%2fb", "a_b", "ä", &long,
        ] {
            assert!(matches!(text.parse::<NodeName>(), Err(NameError::Form(_))), "{text:?}");
        }
        assert_eq!("ALL".parse::<NodeName>(), Err(NameError::Reserved));
        for mac in ["52-54-00-12-34-af", "5254001234af", "000000000000"] {
            assert_eq!(mac.parse::<NodeName>(), Err(NameError::Mac(mac.into())));
        }
    }
}
