//! Progress of wakes on a terminal, on standard error. Shows nothing where that is none.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vmstation_protocol::{WakeAllDocument, WakeDocument, WakeOutcome};

use super::show;

const TICK: Duration = Duration::from_millis(120);

/// A line for each that is waited for.
pub(super) struct Progress {
    lines: MultiProgress,
}

/// One line.
pub(super) struct Line {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            lines: MultiProgress::new(),
        }
    }

    /// A line that begins with this word.
    pub(super) fn line(&self, name: &str) -> Line {
        let bar = self.lines.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(TICK);
        Line { bar }
    }
}

impl Line {
    pub(super) fn wake(&self, wake: &WakeDocument) {
        self.bar.set_message(show::so_far(wake));
    }

    pub(super) fn wakes(&self, wakes: &WakeAllDocument) {
        let over = wakes
            .nodes
            .iter()
            .filter(|wake| wake.outcome != WakeOutcome::Waking)
            .count();
        self.bar.set_message(format!("{over} of {}", wakes.nodes.len()));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
