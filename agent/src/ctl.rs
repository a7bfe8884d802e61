//! `vmstation-autosleep-ctl`: asks the agent over its control socket and shows the answer to people or machines.
//!
//! Owns nothing; decides nothing about sleeping. Standard output carries the answer only; errors go to standard error, as one JSON object
//! with `--output json`.

mod config;
mod doctor;
mod paint;
mod quantity;
#[cfg(test)]
pub(crate) mod sample;
mod sleep;
mod status;
mod watch;
mod why;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum, error::ErrorKind};
use serde::Serialize;

use self::paint::Paint;
use crate::{
    control::{self, CallError, DEFAULT_SOCKET, HOLD_SECONDS, RefusalCode, Request, Response},
    printable::printable,
};

const EXAMPLES: &str = "\
Examples:
  vmstation-autosleep-ctl status            what the agent sees and when the host sleeps
  vmstation-autosleep-ctl why               what keeps the host awake, what would end it
  sudo vmstation-autosleep-ctl hold 2h --reason backup
  sudo vmstation-autosleep-ctl release      end the hold
  sudo vmstation-autosleep-ctl sleep        sleep now; `--check` only says what stands against it
  sudo vmstation-autosleep-ctl disable      stay awake until `enable`, restarts included
  sudo vmstation-autosleep-ctl notify test  does a notification arrive
  vmstation-autosleep-ctl watch             live view; Ctrl-C ends it
  vmstation-autosleep-ctl --output json status | jq .blockers
  sudo vmstation-autosleep-ctl doctor       can this host sleep and be woken, and what to fix
  vmstation-autosleep-ctl config check      is the configuration valid, what does it mean
  vmstation-autosleep-ctl config migrate > autosleep.toml

Exit status:
   0 done       1 failed        2 wrong usage             3 refused
   4 agent not reachable        6 no answer in time      78 configuration not valid";

/// Shows and steers the autosleep agent of this host.
#[derive(Debug, Parser)]
#[command(name = "vmstation-autosleep-ctl", version, after_help = EXAMPLES)]
struct Arguments {
    /// Control socket of the agent
    #[arg(long, value_name = "PATH", global = true, env = "VMSTATION_AUTOSLEEP_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// For people, or the documents as JSON
    #[arg(long, value_name = "FORMAT", global = true, value_enum, default_value_t = Output::Human)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the agent sees, in which state it is and when the host sleeps
    Status,
    /// Everything that keeps the host awake: since when, how much, who, and what would end it
    Why,
    /// Let the host sleep again after `disable`
    Enable,
    /// Keep the host awake until `enable`; survives restarts
    Disable,
    /// Begin the idle time again
    Reset,
    /// Keep the host awake for a time; survives restarts
    Hold {
        /// How long: 90s, 30m, 2h, 1d12h; 1 s to 30 days
        #[arg(value_name = "DURATION", value_parser = hold_length)]
        length: Duration,
        /// Why, for whoever asks `status` or `why`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// End the hold
    Release,
    /// Sleep now, and wait until the host is awake again or the reason why not is known
    Sleep(sleep::Arguments),
    /// Live view of rates, verdict and countdown; a line per interval when not on a terminal
    Watch {
        /// Time between two looks: 100 ms to 1 h
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = watch_interval)]
        interval: Duration,
    },
    /// Can this host go to sleep and come back? A line a check, with its fix; needs no agent; exits 1 if one fails
    Doctor(doctor::Options),
    /// Tries out notifications
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Looks at configuration files; needs no agent
    #[command(subcommand)]
    Config(config::Command),
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum NotifyCommand {
    /// Send a notification the way the agent does, and say what became of it
    Test,
}

/// How the program ends when it has not done what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Failed = 1,
    Usage = 2,
    Refused = 3,
    Unreachable = 4,
    TimedOut = 6,
    Configuration = 78,
}

/// Why it has not.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    /// Each thing that is wrong with a configuration, for machines. The message then lists them for people.
    complaints: Option<serde_json::Value>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            complaints: None,
        }
    }
}

/// Runs the program on these arguments (its own name first) and says how to exit.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let parsed = match Arguments::try_parse_from(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, &arguments),
    };
    match execute(&parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure, parsed.output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn execute(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments {
        socket,
        output,
        command,
    } = arguments;
    let ask = |request| ask(socket, &request).and_then(|response| show(&response, *output));
    match command {
        Command::Status => ask(Request::Status),
        Command::Why => ask(Request::Why),
        Command::Enable => ask(Request::Enable),
        Command::Disable => ask(Request::Disable),
        Command::Reset => ask(Request::Reset),
        Command::Release => ask(Request::Release),
        Command::Notify(NotifyCommand::Test) => ask(Request::NotifyTest),
        Command::Hold { length, reason } => {
            let request = Request::Hold {
                seconds: length.as_secs(),
                reason: reason.clone(),
            };
            request.check().map_err(|message| Failure::new(Exit::Usage, message))?;
            ask(request)
        }
        Command::Sleep(arguments) => sleep::run(socket, arguments, *output),
        Command::Watch { interval } => watch::run(socket, *interval, *output),
        Command::Doctor(options) => doctor::run(options, socket, *output),
        Command::Config(command) => config::run(command, *output),
    }
}

/// The agent's answer, if it did what was asked.
fn ask(socket: &Path, request: &Request) -> Result<Response, Failure> {
    match control::call(socket, request)? {
        Response::Refused { code, message } => {
            let exit = match code {
                RefusalCode::NotPermitted
                | RefusalCode::Refused
                | RefusalCode::Busy
                | RefusalCode::BadRequest
                | RefusalCode::TooLarge
                | RefusalCode::UnsupportedProtocol => Exit::Refused,
                RefusalCode::Timeout => Exit::TimedOut,
                RefusalCode::Stopping => Exit::Unreachable,
                RefusalCode::Failed => Exit::Failed,
            };
            Err(Failure::new(exit, message))
        }
        answer @ (Response::Status(_)
        | Response::Why(_)
        | Response::Attempt(_)
        | Response::SleepCheck { .. }
        | Response::Done { .. }) => Ok(answer),
    }
}

fn show(response: &Response, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => match response {
            Response::Status(status) => print(&json(status)?),
            Response::Why(why) => print(&json(why)?),
            Response::Attempt(attempt) => print(&json(attempt)?),
            Response::SleepCheck { objections } => print(&json(objections)?),
            Response::Done { message } => print(&json(&serde_json::json!({ "message": message }))?),
            Response::Refused { code, message } => {
                print(&json(&serde_json::json!({ "refused": code, "message": message }))?)
            }
        },
        Output::Human => {
            let paint = Paint::on(&io::stdout());
            match response {
                Response::Status(status) => print(&status::view(status, paint).join("\n")),
                Response::Why(why) => print(&why::view(why, paint).join("\n")),
                Response::Done { message } | Response::Refused { message, .. } => print(&printable(message)),
                // `sleep` shows them itself.
                Response::Attempt(_) | Response::SleepCheck { .. } => Ok(()),
            }
        }
    }
}

fn json(document: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the answer as JSON: {error}")))
}

/// Text and a line feed on standard output. A reader that went away (`| head -1`) has all it wanted.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write the answer: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn tell(failure: &Failure, output: Output) {
    let Failure {
        exit,
        message,
        complaints,
    } = failure;
    match (output, complaints) {
        (Output::Json, None) => complain(&serde_json::json!({ "error": message, "code": *exit as u8 }).to_string()),
        (Output::Json, Some(complaints)) => {
            let error = serde_json::json!({ "error": message, "code": *exit as u8, "complaints": complaints });
            complain(&error.to_string());
        }
        (Output::Human, None) => complain(&format!("error: {}", printable(message))),
        (Output::Human, Some(_)) => message.lines().for_each(|line| complain(&printable(line))),
    }
}

/// A line on standard error; if that is closed too, the exit status has to do.
fn complain(line: &str) {
    let _told = writeln!(io::stderr(), "{line}");
}

/// Help and version are answers; the rest is wrong usage, told in the form that was asked for even though parsing failed.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let wants_json = arguments.iter().any(|argument| argument == "--output=json")
        || arguments
            .windows(2)
            .any(|pair| pair[0] == "--output" && pair[1] == "json");
    if wants_json && !is_answer {
        tell(&Failure::new(Exit::Usage, error.to_string().trim()), Output::Json);
    } else {
        // Nobody is left to be told if this fails.
        let _told = error.print();
    }
    ExitCode::from(if is_answer { 0 } else { Exit::Usage as u8 })
}

/// A duration as `2h` or `1d12h`, in whole seconds.
fn hold_length(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 90s, 30m, 2h or 1d"))?;
    if length.subsec_nanos() == 0 && HOLD_SECONDS.contains(&length.as_secs()) {
        Ok(length)
    } else {
        Err("a hold is 1 s to 30 days, in whole seconds".into())
    }
}

fn watch_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 500ms, 1s or 1m"))?;
    if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) {
        Ok(interval)
    } else {
        Err("the interval is 100 ms to 1 h".into())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let (exit, hint) = match &error {
            CallError::Unreachable { .. } => (
                Exit::Unreachable,
                "; is the service running? `systemctl status vmstation-autosleep.service`",
            ),
            CallError::NotPermitted { .. } => (Exit::Refused, ""),
            CallError::TimedOut { .. } => (Exit::TimedOut, ""),
            CallError::BadAnswer { .. } => (Exit::Failed, ""),
        };
        Self::new(exit, format!("{error}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::{Arguments, hold_length, watch_interval};

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_hold_is_written_as_people_do() {
        assert_eq!(hold_length("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(hold_length("1d12h"), Ok(Duration::from_secs(129_600)));
        assert_eq!(hold_length("30d"), Ok(Duration::from_secs(2_592_000)));
        for wrong in [
            "",
            "2",
            "-1h",
            "0s",
            "500ms",
            "1500ms",
            "31d",
            "2 parsecs",
            "99999999999999999999h",
        ] {
            assert!(hold_length(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_interval_is_bounded() {
        assert_eq!(watch_interval("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["0s", "10ms", "2h", "x"] {
            assert!(watch_interval(wrong).is_err(), "{wrong}");
        }
    }
}
