//! The password that a card may ask of a magic packet.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A SecureOn password: six bytes, or four as some cards have it. It is sent in the clear, but is no business of a log.
#[derive(Clone, PartialEq, Eq)]
pub struct SecureOn(Bytes);

#[derive(Clone, PartialEq, Eq)]
enum Bytes {
    Four([u8; 4]),
    Six([u8; 6]),
}

/// No [`SecureOn`]. Does not repeat what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no SecureOn password: write its six bytes as aa:bb:cc:dd:ee:ff, or four as 192.0.2.1")]
pub struct SecureOnError;

impl SecureOn {
    /// The six bytes.
    pub const fn six(bytes: [u8; 6]) -> Self {
        Self(Bytes::Six(bytes))
    }

    /// The four bytes.
    pub const fn four(bytes: [u8; 4]) -> Self {
        Self(Bytes::Four(bytes))
    }

    /// Its bytes, in the order of the wire.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Four(bytes) => bytes,
            Bytes::Six(bytes) => bytes,
        }
    }
}

impl FromStr for SecureOn {
    type Err = SecureOnError;

    /// As etherwake and ethtool have it: `aa:bb:cc:dd:ee:ff` (or with `-`), or four bytes as `192.0.2.1`.
    fn from_str(text: &str) -> Result<Self, SecureOnError> {
        if let Ok(four) = text.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::four(four.octets()));
        }
        let mark = if text.contains(':') { ':' } else { '-' };
        let byte = |part: &str| match part.len() {
            2 if part.bytes().all(|byte| byte.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.split(mark).map(byte).collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self::six)
            .ok_or(SecureOnError)
    }
}

impl fmt::Debug for SecureOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecureOn(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lengths_are_read() {
        let bytes = |text: &str| text.parse::<SecureOn>().unwrap().bytes().to_vec();
        assert_eq!(bytes("00:11:22:aa:BB:ff"), [0, 0x11, 0x22, 0xaa, 0xbb, 0xff]);
        assert_eq!(bytes("00-11-22-aa-bb-ff"), [0, 0x11, 0x22, 0xaa, 0xbb, 0xff]);
        assert_eq!(bytes("192.0.2.1"), [192, 0, 2, 1]);
    }

    #[test]
    fn f6_anything_else_is_refused_and_not_repeated() {
        for text in [
            "",
            "secret",
            "00:11:22:aa:bb",
            "00:11:22:aa:bb:cc:dd",
            "0:11:22:aa:bb:cc",
            "+0:11:22:aa:bb:cc",
            "1.2.3",
            "00:11-22:aa:bb:cc",
        ] {
            assert_eq!(text.parse::<SecureOn>(), Err(SecureOnError), "{text:?}");
        }
        assert!(!SecureOnError.to_string().contains("secret"));
        assert_eq!(format!("{:?}", SecureOn::four([1, 2, 3, 4])), "SecureOn(..)");
    }
}
