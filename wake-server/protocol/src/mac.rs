//! The address of a network card.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The address of one network card (EUI-48): never zero, broadcast or multicast, so that nothing but a card can be addressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

/// Why something is no [`MacAddr`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not twelve hexadecimal digits in a known form.
    #[error("{0:?} is no MAC address: write it as aa:bb:cc:dd:ee:ff")]
    Form(String),
    /// All zero.
    #[error("00:00:00:00:00:00 is nobody's MAC address")]
    Zero,
    /// The broadcast address.
    #[error("ff:ff:ff:ff:ff:ff is everybody's MAC address, not that of one card")]
    Broadcast,
    /// A multicast address: the lowest bit of the first byte is set.
    #[error("{0} is a multicast address, not that of one card: its first byte is odd")]
    Multicast(String),
}

impl MacAddr {
    /// The address with these bytes.
    ///
    /// # Errors
    /// It cannot be that of a card.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => Err(MacError::Broadcast),
            [first, ..] if first & 1 == 1 => Err(MacError::Multicast(Self(bytes).to_string())),
            bytes => Ok(Self(bytes)),
        }
    }

    /// Its bytes, in the order of the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    /// `aa:bb:cc:dd:ee:ff`, `aa-bb-cc-dd-ee-ff`, `aabb.ccdd.eeff` or `aabbccddeeff`, in either case.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let digits: Vec<&str> = match text.len() {
            17 if text.contains(':') => text.split(':').collect(),
            17 => text.split('-').collect(),
            14 => text.split('.').collect(),
            12 => vec![text],
            _ => return Err(form()),
        };
        let each = 12 / digits.len().max(1);
        let is_hex = |part: &&str| part.len() == each && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if each * digits.len() != 12 || !digits.iter().all(is_hex) {
            return Err(form());
        }
        let digits = digits.concat();
        let mut bytes = [0; 6];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| form())?;
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_usual_form_is_read() {
        for text in [
            "52:54:00:12:34:af",
            "52-54-00-12-34-AF",
            "5254.0012.34af",
            "5254001234AF",
        ] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), "52:54:00:12:34:af");
        }
    }

    #[test]
    fn w1_what_is_no_card_is_refused() {
        for (text, error) in [
            ("00:00:00:00:00:00", MacError::Zero),
            ("ff:ff:ff:ff:ff:ff", MacError::Broadcast),
            ("01:00:5e:00:00:01", MacError::Multicast("01:00:5e:00:00:01".into())),
        ] {
            assert_eq!(text.parse::<MacAddr>().unwrap_err(), error);
        }
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:af:00",
            "52:54-00:12:34:af",
            "5:254:00:12:34:af",
            "52:54:00:12:34:ag",
            "+2:54:00:12:34:af",
            "52:54:00:12:34:af x",
            " 52:54:00:12:34:af",
            "5254001234ä",
            "é254.0012.34a",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacError::Form(text.into())), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(bytes: [u8; 6]) {
            if let Ok(mac) = MacAddr::new(bytes) {
                prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,20}") {
            let _read = text.parse::<MacAddr>();
        }
    }
}
