//! Reads a Kubernetes quantity (`100m`, `1.5`, `128Mi`, `1e3`, `1E`) into thousandths. Exact in integers; what is finer than a thousandth
//! is rounded up, as the API server does.

use thiserror::Error;

/// A text that is no amount.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no amount")]
pub struct AmountError {
    /// The text.
    pub text: String,
}

/// Reads an amount, in thousandths.
///
/// # Errors
/// The text is no quantity, is below zero, or is too large to count.
pub fn parse(text: &str) -> Result<i128, AmountError> {
    thousandths(text).ok_or_else(|| AmountError { text: text.to_owned() })
}

fn thousandths(text: &str) -> Option<i128> {
    let number = text.strip_prefix('+').unwrap_or(text);
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(number.len());
    let (number, suffix) = number.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let (tens, twos) = scale(suffix)?;
    let digits = digits.checked_mul(1_i128.checked_shl(twos)?)?;
    let tens = tens.checked_add(3)?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let power = u32::try_from(tens.unsigned_abs())
        .ok()
        .and_then(|tens| 10_i128.checked_pow(tens));
    match (digits, power) {
        (0, _) => Some(0),
        (_, Some(power)) if tens >= 0 => digits.checked_mul(power),
        (_, Some(power)) => Some(digits / power + i128::from(digits % power != 0)),
        (_, None) if tens >= 0 => None,
        // The divisor is beyond every number here: the least amount above nothing.
        (_, None) => Some(1),
    }
}

/// The powers of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (i64::from(exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?), 0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse;

    #[test]
    fn quantities_are_read_in_thousandths() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            (".5", 500),
            ("5.", 5000),
            ("+2", 2000),
            ("128Mi", 134_217_728_000),
            ("0.5Gi", 536_870_912_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1e-3", 1),
            ("1E", 1_000_000_000_000_000_000_000),
            ("1Ei", 1_152_921_504_606_846_976_000),
            ("12k", 12_000_000),
            ("1n", 1),
            ("1000001n", 2),
            ("1u", 1),
            ("1500u", 2),
            ("0.0001", 1),
            ("0e999", 0),
            ("1e-999", 1),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn garbage_is_no_amount() {
        for text in [
            "",
            ".",
            "m",
            "-1",
            "1.2.3",
            "1 ",
            " 1",
            "1K",
            "1ki",
            "1e",
            "1e1.5",
            "1mm",
            "٣",
            "1e99",
            "0x1",
            "+",
            "++1",
            "1e99999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// The other formulation: the number in nanounits is written out digit by digit, then cut by a thousandth.
        #[test]
        fn any_decimal_is_rounded_up_to_a_thousandth(whole in 0_u64..1_000_000_000, nano in 0_u32..1_000_000_000) {
            let nanos = i128::from(whole) * 1_000_000_000 + i128::from(nano);
            let expected = (nanos + 999_999) / 1_000_000;
            prop_assert_eq!(parse(&format!("{whole}.{nano:09}")), Ok(expected));
            prop_assert_eq!(parse(&format!("{nanos}n")), Ok(expected));
            prop_assert_eq!(parse(&format!("{nanos}e-9")), Ok(expected));
            prop_assert_eq!(parse(&format!("{whole}Ki")), Ok(i128::from(whole) * 1_024_000));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eEmkKMGi]{0,50}|\\PC*") {
            let _ = parse(&text);
        }
    }
}
