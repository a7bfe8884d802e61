//! Where the agent's log goes: the journal or stderr for everything, and `LOG_DIR/power.log` for people who follow what this host does.
//!
//! ```text
//! [2026-11-22T10:30:00+00:00] [INFO] idle state changed from=quiet to=grace
//! ```
//!
//! The only place that reads the wall clock. A log that cannot be written never stops the agent: it is said once, and tried again.

mod file;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    sync::{Mutex, PoisonError},
};

use jiff::{Timestamp, Zoned, tz::TimeZone};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::FilterFn,
    fmt::{format::Writer, time::FormatTime},
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use self::file::{LogFile, Outcome};
use crate::{clock::BootTime, config::Logging, printable::printable};

/// Events of our own crates have targets that begin with this.
const OURS: &str = "vmstation";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `RUST_LOG` is malformed.
    #[error("cannot use RUST_LOG: {0}")]
    Filter(#[from] tracing_subscriber::filter::FromEnvError),
    /// Something set up logging before.
    #[error("cannot set up logging: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The wall clock in local time: for showing a time to people, never for a decision.
#[expect(
    clippy::disallowed_methods,
    reason = "the one reader of the wall clock, for people only"
)]
pub fn wall_clock() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::system())
}

/// Sends events to the journal where stderr is connected to it (`JOURNAL_STREAM`, see systemd.exec(5)), otherwise to stderr, and those of
/// our own crates at `logging.level` or above to `power.log` as well. `RUST_LOG` overrides the level of the former.
///
/// # Errors
/// [`InitError`]. A folder that cannot be written to is none: it is warned about when the first event finds out.
pub fn init(logging: &Logging) -> Result<(), InitError> {
    let filter = match std::env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(_) => EnvFilter::try_from_default_env()?,
        None => EnvFilter::new(format!("warn,{OURS}={}", logging.level)),
    };
    let journal = stderr_is_journal().then(tracing_journald::layer).and_then(Result::ok);
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_timer(LocalTime)
            .with_target(false)
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    });
    tracing_subscriber::registry()
        .with(journal.with_filter(filter.clone()))
        .with(stderr.with_filter(filter))
        .with(layer(logging))
        .try_init()?;
    Ok(())
}

/// The layer that writes `power.log`.
pub fn layer<S>(logging: &Logging) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let level = logging.level;
    let file = LogFile::new(logging.dir.clone(), logging.max_size, logging.retention);
    // The hint spares the more verbose events of every crate a closer look.
    let filter = FilterFn::new(move |metadata| wanted(metadata, level)).with_max_level_hint(level);
    PowerLog { file: Mutex::new(file) }.with_filter(filter)
}

/// Events of our own crates at `level` or above, less what this module says about itself.
fn wanted(metadata: &Metadata<'_>, level: Level) -> bool {
    *metadata.level() <= level && metadata.target().starts_with(OURS) && metadata.target() != module_path!()
}

/// Whether stderr is the stream that systemd connected to the journal.
fn stderr_is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM");
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    match (named, stderr.and_then(|stderr| stderr.metadata())) {
        (Ok(named), Ok(stderr)) => names(&named, stderr.dev(), stderr.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Whether `DEVICE:INODE` is this pair.
fn names(journal_stream: &str, device: u64, inode: u64) -> bool {
    journal_stream
        .split_once(':')
        .is_some_and(|(named_device, named_inode)| {
            named_device.parse() == Ok(device) && named_inode.parse() == Ok(inode)
        })
}

struct PowerLog {
    file: Mutex<LogFile>,
}

impl<S: Subscriber> Layer<S> for PowerLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = line(&wall_clock(), event);
        let outcome = self
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&line, BootTime::now());
        match outcome {
            Outcome::Written | Outcome::StillFailing => {}
            Outcome::Recovered { lost } => tracing::info!(lost, "power.log is written again"),
            Outcome::Failed { path, error } => {
                tracing::warn!(path = %path.display(), %error, "cannot write power.log; trying again from time to time");
            }
        }
    }
}

/// `[time] [LEVEL] text key=value ..` and a line feed, whatever the event says.
fn line(at: &Zoned, event: &Event<'_>) -> String {
    let mut said = Said::default();
    event.record(&mut said);
    let text = format!(
        "[{}] [{}] {}{}",
        at.strftime("%Y-%m-%dT%H:%M:%S%:z"),
        event.metadata().level(),
        said.message,
        said.fields
    );
    let mut line = printable(&text).into_owned();
    line.push('\n');
    line
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Said {
    fn field(&mut self, name: &str, value: &str) {
        let bare = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='));
        let quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
        let _infallible = if bare || quoted {
            write!(self.fields, " {name}={value}")
        } else {
            write!(self.fields, " {name}={value:?}")
        };
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => self.field(name, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// The time in front of a line on stderr.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", wall_clock().strftime("%Y-%m-%dT%H:%M:%S%:z"))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tracing::{Level, debug, error, info, subscriber::with_default, warn};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::{layer, names};
    use crate::config::Logging;

    fn logged(folder: &Path, level: Level, events: impl FnOnce()) -> String {
        let logging = Logging {
            dir: folder.into(),
            level,
            max_size: 1 << 20,
            retention: 2,
        };
        with_default(tracing_subscriber::registry().with(layer(&logging)), events);
        fs::read_to_string(folder.join("power.log")).unwrap_or_default()
    }

    /// The part after the time, which must look as documented.
    fn untimed(line: &str) -> &str {
        let (time, rest) = line.split_once("] ").unwrap();
        let time = time.strip_prefix('[').unwrap();
        assert_eq!(time.len(), "2026-11-22T10:30:00+00:00".len(), "{time}");
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        rest
    }

    #[test]
    fn writes_the_documented_line() {
        let folder = tempfile::tempdir().unwrap();
        let text = logged(&folder.path().join("made"), Level::INFO, || {
            info!(from = "quiet", to = %"grace period", limit = 1024_u64, rate = 0.5, asked = true, why = ?Some("a b"), none = "", "idle state changed");
        });
        assert_eq!(
            untimed(text.trim_end()),
            r#"[INFO] idle state changed from=quiet to="grace period" limit=1024 rate=0.5 asked=true why="Some(\"a b\")" none="""#
        );
    }

    #[test]
    fn one_event_is_one_line_whatever_it_carries() {
        let folder = tempfile::tempdir().unwrap();
        let text = logged(folder.path(), Level::INFO, || {
            warn!(
                user = "mallory\n[2026-11-22T10:30:00+00:00] [INFO] all is well",
                "login\r\x1b[2J"
            );
        });
        assert_eq!(text.lines().count(), 1);
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    }

    #[test]
    fn the_level_and_the_crate_decide() {
        let folder = tempfile::tempdir().unwrap();
        let text = logged(folder.path(), Level::WARN, || {
            error!("first");
            warn!("second");
            info!("not this");
            debug!("nor this");
            error!(target: "hyper", "nor that of another crate");
        });
        let lines: Vec<_> = text.lines().map(untimed).collect();
        assert_eq!(lines, ["[ERROR] first", "[WARN] second"]);
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        assert!(names("9:12345", 9, 12_345));
        assert!(!names("9:12345", 9, 1));
        assert!(!names("8:12345", 9, 12_345));
        assert!(!names("", 0, 0));
        assert!(!names("9", 9, 0));
    }
}
