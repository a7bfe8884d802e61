//! `vmstation-wake`: asks the wake server to wake nodes, shows how it goes, and says by its exit status how it went.
//!
//! Owns nothing. Standard output carries the answer only; progress, traces and errors go to standard error, as one JSON object an error
//! with `--output json`. A token is read from a file, never from the command line.

mod alone;
mod client;
mod progress;
mod show;
mod token;
mod waking;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgGroup, Parser, Subcommand, ValueEnum, error::ErrorKind};
use serde::Serialize;
use vmstation_protocol::{MacAddr, NodeName, PORT, Problem, Role, SCHEMA, Status, WakeAllDocument};

pub use self::alone::alone;
use self::client::Client;

/// Token file that is read if it exists and none is named.
const TOKEN_FILE: &str = "/etc/vmstation/wake-token";

const EXAMPLES: &str = "\
Examples:
  vmstation-wake worker-01                  send, and return
  vmstation-wake --verify worker-01 worker-02   until they are proved awake, or the stage that failed is known
  vmstation-wake AA:BB:CC:DD:EE:FF          a MAC address wherever a node name is accepted
  vmstation-wake --all --verify             masters, then storage, then workers
  vmstation-wake --list                     every node and its state
  vmstation-wake token worker-01            the token of its agent, on the server's host
  vmstation-wake --status worker-01 --output json | jq -r .state

Exit status:
   0 done                  1 failed                 2 wrong usage     3 refused by the server
   4 server not reachable  5 token missing or wrong 6 not in time    78 configuration not valid";

/// Wakes nodes through the wake server.
#[derive(Debug, Parser)]
#[command(name = "vmstation-wake", version, after_help = EXAMPLES)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["nodes", "all", "workers", "masters", "list", "status"]))]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Nodes to wake, by name or MAC address
    #[arg(value_name = "NODE", conflicts_with_all = ["all", "workers", "masters"])]
    nodes: Vec<Target>,
    /// Wake every node
    #[arg(long, conflicts_with_all = ["workers", "masters"])]
    all: bool,
    /// Wake the workers
    #[arg(long)]
    workers: bool,
    /// Wake the masters; before the workers if both are asked for
    #[arg(long)]
    masters: bool,
    /// Wait until a node is proved awake
    #[arg(long)]
    verify: bool,
    /// Every node and its state
    #[arg(long, conflicts_with_all = ["nodes", "all", "workers", "masters", "verify", "status"])]
    list: bool,
    /// One node and its state
    #[arg(long, value_name = "NODE", conflicts_with_all = ["nodes", "all", "workers", "masters", "verify"])]
    status: Option<Target>,
    /// How often to try again what failed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    retries: u32,
    /// Time before each further try, seconds
    #[arg(long, value_name = "S", default_value = "2", value_parser = delay)]
    delay: Duration,
    /// Tell every step on standard error
    #[arg(long)]
    trace: bool,
    /// The wake server
    #[arg(long, value_name = "URL", env = "VMSTATION_WAKE_SERVER", default_value_t = format!("http://127.0.0.1:{PORT}"))]
    server: String,
    /// File with the token; /etc/vmstation/wake-token if it exists
    #[arg(long, value_name = "FILE", env = "VMSTATION_WAKE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) that are trusted besides those of the system
    #[arg(long, value_name = "FILE", env = "VMSTATION_WAKE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// For people, or the documents as JSON
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Output::Human, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the token of a node's agent, made from the server's secret
    Token(token::Arguments),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

/// A node, as it is named on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By its name.
    Name(NodeName),
    /// By the address of a card of it.
    Mac(MacAddr),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<MacAddr>() {
            Ok(mac) => Ok(Self::Mac(mac)),
            Err(vmstation_protocol::MacError::Form(_)) => text
                .parse()
                .map(Self::Name)
                .map_err(|error: vmstation_protocol::NameError| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Mac(mac) => mac.fmt(f),
        }
    }
}

/// What is to be woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These.
    Nodes(Vec<Target>),
    /// Every node.
    All,
    /// Every node of these roles, in this order.
    Roles(Vec<Role>),
}

/// Wakes without the server, which does not answer: what, and whether to wait for the proof. The error says why it cannot.
pub type Alone = fn(&Wanted, bool) -> Result<WakeAllDocument, String>;

/// How the program ends when it has not done what was asked. The more a person must do about it, the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Exit {
    Failed = 1,
    Usage = 2,
    Refused = 3,
    Unreachable = 4,
    Unauthorized = 5,
    TimedOut = 6,
    Configuration = 78,
}

/// Why it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

/// Runs the program on these arguments (its own name first) and says how to exit. `alone` wakes when no server answers.
pub fn run(arguments: impl IntoIterator<Item = OsString>, alone: Option<Alone>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _nobody_reads = error.print();
            return ExitCode::from(if is_answer { 0 } else { Exit::Usage as u8 });
        }
    };
    match execute(&arguments, alone) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure, arguments.output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn execute(arguments: &Arguments, alone: Option<Alone>) -> Result<(), Failure> {
    if let Some(Command::Token(arguments_of_token)) = &arguments.command {
        return token::run(arguments_of_token, arguments.output);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let client = Client::new(
        &arguments.server,
        operators_token(arguments.token_file.as_deref())?,
        arguments.ca_file.as_deref(),
        arguments.trace,
    )?;
    if arguments.list {
        let status = runtime.block_on(client.status())?;
        return print(arguments.output, &status, || show::list(&status));
    }
    if let Some(target) = &arguments.status {
        let status = runtime.block_on(client.status())?;
        let node = find(&status, target).ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("the server knows no node {target}; `--list` names all"),
            )
        })?;
        return print(arguments.output, node, || show::node(node));
    }
    let wanted = wanted(arguments);
    let waking = waking::Waking {
        client: &client,
        verify: arguments.verify,
        retries: arguments.retries,
        delay: arguments.delay,
    };
    let mut woken = runtime.block_on(waking.wake(&wanted));
    if let (Some(failure), Some(alone)) = (&woken.failure, alone)
        && failure.exit == Exit::Unreachable
        && woken.document.nodes.is_empty()
    {
        let told = format!("{}; waking without it", failure.message);
        let _nobody_reads = writeln!(io::stderr(), "vmstation-wake: {told}");
        let document = alone(&wanted, arguments.verify).map_err(|why| Failure::new(Exit::Failed, why))?;
        woken = waking::Woken::of(document);
    }
    if !woken.document.nodes.is_empty() || !woken.document.without_mac.is_empty() {
        print(arguments.output, &woken.document, || show::wakes(&woken.document))?;
    }
    woken.failure.map_or(Ok(()), Err)
}

fn wanted(arguments: &Arguments) -> Wanted {
    let roles = [(arguments.masters, Role::Master), (arguments.workers, Role::Worker)];
    if arguments.all {
        Wanted::All
    } else if arguments.nodes.is_empty() {
        Wanted::Roles(
            roles
                .into_iter()
                .filter_map(|(is_wanted, role)| is_wanted.then_some(role))
                .collect(),
        )
    } else {
        Wanted::Nodes(arguments.nodes.clone())
    }
}

fn find<'a>(status: &'a Status, target: &Target) -> Option<&'a vmstation_protocol::NodeDocument> {
    status.nodes.iter().find(|node| match target {
        Target::Name(name) => node.name == *name,
        Target::Mac(mac) => node.macs.contains(mac),
    })
}

/// The token, if there is one to be read.
fn operators_token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let path = file.unwrap_or(Path::new(TOKEN_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => {
            let message = format!(
                "the token file {} is empty; put the server's token in it",
                path.display()
            );
            Err(Failure::new(Exit::Configuration, message))
        }
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Nobody named it, and what needs no token does without; whoever may not read it is told when the server asks for one.
        Err(_) if file.is_none() => Ok(None),
        Err(error) => Err(Failure::new(
            Exit::Configuration,
            format!("cannot read the token file {}: {error}", path.display()),
        )),
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write it as seconds: 2 or 0.5".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(delay) if delay <= Duration::from_secs(3600) => Ok(delay),
        Ok(_) | Err(_) => Err("0 to 3600 s".to_owned()),
    }
}

fn print(output: Output, document: &impl Serialize, human: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match output {
        Output::Human => human(),
        Output::Json => serde_json::to_string_pretty(document)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the answer as JSON: {error}")))?,
    };
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write the answer: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn tell(failure: &Failure, output: Output) {
    let text = match output {
        Output::Human => format!("vmstation-wake: {}", failure.message),
        Output::Json => {
            let problem = Problem {
                schema: SCHEMA,
                error: failure.exit.word().to_owned(),
                message: failure.message.clone(),
            };
            serde_json::to_string(&problem).unwrap_or(problem.message)
        }
    };
    let _nobody_reads = writeln!(io::stderr(), "{text}");
}

impl Exit {
    const fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
            Self::TimedOut => "timed_out",
            Self::Configuration => "configuration",
        }
    }
}

#[cfg(test)]
mod tests;
