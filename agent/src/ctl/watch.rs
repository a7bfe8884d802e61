//! `watch`: the live view. Redraws in place on a terminal, one plain line (or one JSON document) an interval elsewhere.
//!
//! Owns the terminal while it runs and gives it back however it ends: [`Screen`] restores it on drop. Asks the agent anew each time, so that
//! it holds nothing of the agent's between two looks.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    Exit, Failure, Output, ask, complain,
    paint::{Paint, Tone},
    quantity::{counted, duration, rate},
    status,
};
use crate::{
    control::{Request, Response},
    printable::printable,
    report::{StateName, Status},
};

/// Until Ctrl-C, a termination signal, or the agent goes away; all three are a clean end.
///
/// # Errors
/// If the first look fails: there is nothing to watch.
pub(super) fn run(socket: &Path, interval: Duration, output: Output) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("cannot watch: {error}"));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        tokio::select! {
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
            _ = hangup.recv() => Ok(None),
            ended = follow(socket, interval, output) => ended.map(Some),
        }
    });
    // A look may still be waiting for its answer: do not wait with it.
    runtime.shutdown_background();
    match ended? {
        None => Ok(()),
        Some(Ended::AgentGone) => {
            complain("the agent has gone away");
            Ok(())
        }
        Some(Ended::NobodyReads) => Ok(()),
    }
}

enum Ended {
    AgentGone,
    NobodyReads,
}

/// Looks and shows in turn. Dropping it restores the terminal.
async fn follow(socket: &Path, interval: Duration, output: Output) -> Result<Ended, Failure> {
    let first = look(socket.into()).await?;
    let mut display = match (output, io::stdout().is_terminal()) {
        (Output::Json, _) => Display::Documents,
        (Output::Human, false) => Display::Lines,
        (Output::Human, true) => Display::Screen(Screen::enter()),
    };
    if display.show(&first).is_err() {
        return Ok(Ended::NobodyReads);
    }
    loop {
        sleep(interval).await;
        let shown = match look(socket.into()).await {
            Ok(status) => display.show(&status),
            Err(Failure {
                exit: Exit::Unreachable,
                ..
            }) => return Ok(Ended::AgentGone),
            Err(failure) => display.trouble(&failure.message),
        };
        if shown.is_err() {
            return Ok(Ended::NobodyReads);
        }
    }
}

/// One status. The call blocks, so it has a thread of its own.
async fn look(socket: PathBuf) -> Result<Box<Status>, Failure> {
    let asked = tokio::task::spawn_blocking(move || ask(&socket, &Request::Status)).await;
    match asked.map_err(|error| Failure::new(Exit::Failed, format!("cannot ask the agent: {error}")))?? {
        Response::Status(status) => Ok(status),
        Response::Why(_)
        | Response::Attempt(_)
        | Response::SleepCheck { .. }
        | Response::Done { .. }
        | Response::Refused { .. } => Err(Failure::new(
            Exit::Failed,
            "the agent answered something else than its status",
        )),
    }
}

/// Where the looks go.
enum Display {
    Documents,
    Lines,
    Screen(Screen),
}

impl Display {
    fn show(&mut self, status: &Status) -> io::Result<()> {
        match self {
            Self::Documents => plain(&serde_json::to_string(status)?),
            Self::Lines => plain(&line(status)),
            Self::Screen(screen) => screen.draw(frame(status, screen.paint)),
        }
    }

    /// An answer that did not come is no reason to stop watching.
    fn trouble(&mut self, message: &str) -> io::Result<()> {
        let said = format!("no status: {}", printable(message));
        match self {
            Self::Documents | Self::Lines => {
                complain(&said);
                Ok(())
            }
            Self::Screen(screen) => screen.draw(vec![said]),
        }
    }
}

fn plain(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// The terminal's alternate screen without cursor and line wrap, given back on drop with the last frame left behind.
struct Screen {
    paint: Paint,
    last: Vec<String>,
}

impl Screen {
    fn enter() -> Self {
        Self {
            paint: Paint::on(&io::stdout()),
            last: Vec::new(),
        }
    }

    /// Shows as much of the frame as fits.
    fn draw(&mut self, frame: Vec<String>) -> io::Result<()> {
        let rows = terminal_size::terminal_size().map_or(24, |(_, rows)| usize::from(rows.0));
        let mut text = String::new();
        if self.last.is_empty() {
            // Alternate screen, no cursor, no wrap (xterm control sequences, "DEC private mode set").
            text.push_str("\x1b[?1049h\x1b[?25l\x1b[?7l");
        }
        text.push_str("\x1b[H");
        let fitting: Vec<_> = frame
            .iter()
            .take(rows.max(1))
            .map(|line| format!("{line}\x1b[K"))
            .collect();
        text.push_str(&fitting.join("\r\n"));
        text.push_str("\x1b[J");
        self.last = frame;
        let mut output = io::stdout().lock();
        output.write_all(text.as_bytes())?;
        output.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.last.is_empty() {
            return;
        }
        let mut output = io::stdout().lock();
        // A terminal that is gone needs nothing.
        let _gone =
            writeln!(output, "\x1b[?7h\x1b[?25h\x1b[?1049l{}", self.last.join("\n")).and_then(|()| output.flush());
    }
}

/// What a terminal shows.
fn frame(status: &Status, paint: Paint) -> Vec<String> {
    let mut lines = vec![status::title(status, paint), String::new()];
    lines.extend(status::labelled("state", [status::headline(status, paint)]));
    lines.extend(status::labelled("countdown", [countdown(status, paint)]));
    lines.extend(status::labelled("idle", [status::idle(status)]));
    lines.push(String::new());
    lines.extend(status::labelled("cpu", status::cpu(status)));
    lines.extend(status::labelled("network", status::network(status)));
    lines.extend(status::labelled("ssh", status::ssh(status)));
    lines.push(String::new());
    let reasons = status
        .blockers
        .iter()
        .map(|blocker| paint.tone(Tone::Attention, status::blocked_by(blocker)));
    lines.extend(status::labelled("kept awake", reasons));
    let warnings = status
        .warnings
        .iter()
        .map(|warning| paint.tone(Tone::Attention, printable(warning)));
    lines.extend(status::labelled("warnings", warnings));
    lines
}

fn countdown(status: &Status, paint: Paint) -> String {
    let what = if status.dry_run { "would sleep" } else { "sleeps" };
    match (status.sleeps_in_s, status.state) {
        (Some(left), StateName::Grace) => paint.tone(Tone::Strong, format!("{what} in {}: announced", duration(left))),
        (Some(left), _) => format!("{what} in {}", duration(left)),
        (None, _) => "does not run".into(),
    }
}

/// What a log file gets: one line, everything that matters.
fn line(status: &Status) -> String {
    let rates = &status.rates;
    let mut parts = vec![
        status::headline(status, Paint::Plain),
        format!("idle {}", duration(status.idle_s)),
    ];
    parts.extend(rates.cpu_percent.map(|percent| format!("cpu {percent:.1} %")));
    parts.extend(rates.interfaces.iter().map(|(name, traffic)| {
        format!(
            "{} in {} out {}",
            printable(name),
            rate(traffic.rx_bytes_per_s),
            rate(traffic.tx_bytes_per_s)
        )
    }));
    parts.push(counted(
        rates.ssh_sessions.len().try_into().unwrap_or(u64::MAX),
        "ssh session",
    ));
    parts.extend(
        status
            .blockers
            .iter()
            .map(|blocker| printable(&blocker.what).into_owned()),
    );
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::{countdown, frame, line};
    use crate::{
        ctl::{paint::Paint, sample},
        report::StateName,
    };

    #[test]
    fn a_line_says_everything_that_matters() {
        assert_eq!(
            line(&sample::status()),
            "quiet for 12 min 5 s, sleeps in 1 h 57 min if it stays quiet; idle 12 min 5 s; cpu 3.2 %; eth0 in 1.2 kB/s out 300 B/s; \
             wlan0 in 0 B/s out 0 B/s; 2 ssh sessions; session of alice"
        );
    }

    #[test]
    fn a_frame_has_verdict_reasons_and_countdown() {
        let shown = frame(&sample::status(), Paint::Plain).join("\n");
        for part in [
            "state       quiet for 12 min 5 s",
            "countdown   would sleep in 1 h 57 min\n",
            "cpu         [#...................]   3.2 %",
            "network     eth0 ",
            "ssh         2 sessions open",
            "kept awake  ssh: session of alice (for 9 min)",
        ] {
            assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
        }
    }

    #[test]
    fn the_countdown_stands_still_while_the_host_is_busy() {
        let mut status = sample::status();
        status.dry_run = false;
        status.state = StateName::Grace;
        assert_eq!(countdown(&status, Paint::Plain), "sleeps in 1 h 57 min: announced");
        status.sleeps_in_s = None;
        assert_eq!(countdown(&status, Paint::Plain), "does not run");
    }
}
