//! Colour on a terminal that wants it, and only there.

use std::{env, fmt::Display, io::IsTerminal};

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Coloured,
    Plain,
}

/// What a colour means here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tone {
    /// A heading.
    Strong,
    /// Quiet, fine.
    Good,
    /// Kept awake, degraded.
    Attention,
}

impl Paint {
    /// Coloured on a terminal, unless `NO_COLOR` is set and not empty (no-color.org) or `TERM` is `dumb`.
    pub(super) fn on(output: &impl IsTerminal) -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        if output.is_terminal() && !unwanted && !dumb {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// `text` in that tone. Foreign text has gone through [`crate::printable`] before.
    pub(super) fn tone(self, tone: Tone, text: impl Display) -> String {
        let code = match tone {
            Tone::Strong => 1,
            Tone::Good => 32,
            Tone::Attention => 33,
        };
        match self {
            Self::Coloured => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_string(),
        }
    }
}
