//! Numbers of documents, as they are read. Pure.

use serde::{Deserialize, Deserializer, de};

use crate::SCHEMA;

/// Largest integer that every reader of JSON keeps exactly (RFC 8259, section 6).
pub const LARGEST: u64 = (1 << 53) - 1;

/// Reads an integer of 0 to [`LARGEST`]. One that is written as `1.0` is one: some languages have no other numbers.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a whole number was expected, not below 0")]
    enum Number {
        Integer(u64),
        Real(f64),
    }

    let number = match Number::deserialize(deserializer)? {
        Number::Integer(number) => Some(number),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and not negative, and what is too large ends beyond `LARGEST`"
        )]
        Number::Real(number) => (number >= 0.0 && number.fract() == 0.0).then_some(number as u64),
    };
    number
        .filter(|&number| number <= LARGEST)
        .ok_or_else(|| de::Error::custom(format_args!("a whole number of 0 to {LARGEST} was expected")))
}

/// Reads the version of a document, which has to be the one that is read here.
pub(crate) fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = whole(deserializer)?;
    if version == u64::from(SCHEMA) {
        return Ok(SCHEMA);
    }
    Err(de::Error::custom(format_args!(
        "this is version {version} of the document, and version {SCHEMA} is read here: bring agents and wake server to the same release"
    )))
}

#[cfg(test)]
mod tests {
    use crate::{LeaveRequest, Orders};

    fn newest(text: &str) -> Option<u64> {
        let orders = format!(r#"{{"schema": 1, "newest": {text}, "orders": []}}"#);
        serde_json::from_str::<Orders>(&orders).ok().map(|orders| orders.newest)
    }

    #[test]
    fn whole_numbers_are_read_however_they_are_written() {
        for (text, number) in [
            ("0", Some(0)),
            ("7.0", Some(7)),
            ("7e2", Some(700)),
            ("-0.0", Some(0)),
            ("9007199254740991", Some(super::LARGEST)),
            ("9007199254740992", None),
            ("1e300", None),
            ("0.5", None),
            ("-1", None),
            ("-1.0", None),
            ("\"1\"", None),
            ("true", None),
            ("null", None),
        ] {
            assert_eq!(newest(text), number, "{text}");
        }
    }

    #[test]
    fn a_document_of_another_version_is_not_read() {
        let read = |version: &str| {
            serde_json::from_str::<LeaveRequest>(&format!(r#"{{"schema": {version}, "reason": "idle"}}"#))
        };
        assert!(read("1").is_ok());
        let error = read("2").unwrap_err().to_string();
        assert!(
            error.contains("version 2") && error.contains("the same release"),
            "{error}"
        );
    }
}
