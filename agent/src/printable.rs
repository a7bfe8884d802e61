//! Text that came from elsewhere (process names, operators, peers), made harmless for a terminal and for a log of one event a line.
//!
//! Pure. Every place that shows foreign text to people goes through [`printable`]; JSON output does not need it.

use std::{borrow::Cow, error::Error, fmt::Write as _};

/// `text` with everything escaped that could drive a terminal, start a line or reorder what is read: control characters, line
/// separators and bidirectional overrides become `\n`, `\u{1b}` and the like. Printable text is returned as it is.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(drives_a_terminal) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if drives_a_terminal(c) {
            let _infallible = write!(safe, "{}", c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// An error and its causes, each after a colon; a cause that is in the text already is not repeated.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Control characters (C0, DEL, C1), Unicode line and paragraph separators, and the bidirectional controls of UAX #9.
fn drives_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::printable;

    #[test]
    fn ordinary_text_is_untouched() {
        assert_eq!(printable("sauvegarde déjà prête, 50 %"), "sauvegarde déjà prête, 50 %");
    }

    #[test]
    fn escapes_lines_terminal_sequences_and_overrides() {
        assert_eq!(
            printable("a\nb\r\x1b[2J\u{202e}c\u{85}"),
            r"a\nb\r\u{1b}[2J\u{202e}c\u{85}"
        );
    }

    proptest! {
        #[test]
        fn is_one_line_without_controls(text in any::<String>()) {
            let safe = printable(&text);
            prop_assert!(!safe.chars().any(char::is_control));
            prop_assert!(safe.lines().count() <= 1);
        }
    }
}
