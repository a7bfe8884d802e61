//! `config check|migrate|schema`: what a configuration file means or what is wrong with it, without an agent. Writes to standard output only.

use std::{
    error::Error as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Failure, Output, json as document, print};
use crate::{
    config::{FOLDER, Format, Invalid, LONGEST, LoadError, Loaded, Policy, explain, migrate, schema},
    printable::printable,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Is the file valid, and what does it mean? All that is wrong is told at once; exits 78 then
    Check {
        /// autosleep.conf or autosleep.toml [default: what the agent would load]
        file: Option<PathBuf>,
    },
    /// The guide's autosleep.conf as autosleep.toml, comments kept; written to standard output
    Migrate {
        /// [default: /etc/vmstation/autosleep/autosleep.conf]
        file: Option<PathBuf>,
    },
    /// JSON Schema of autosleep.toml, for editors
    Schema,
}

pub(super) fn run(command: &Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Check { file } => check(file.as_deref(), output),
        Command::Migrate { file } => {
            let default = Path::new(FOLDER).join("autosleep.conf");
            let toml = migrated(file.as_deref().unwrap_or(&default))?;
            match output {
                Output::Human => print(toml.trim_end()),
                Output::Json => print(&document(&json!({ "toml": toml }))?),
            }
        }
        Command::Schema => print(&document(&schema())?),
    }
}

fn check(file: Option<&Path>, output: Output) -> Result<(), Failure> {
    let Loaded {
        policy,
        path,
        format,
        notes,
    } = Policy::load(file, &|name| std::env::var(name).ok())?;
    let meaning = explain(&policy);
    match output {
        Output::Json => {
            let format = match format {
                Format::Ini => "ini",
                Format::Toml => "toml",
            };
            let path = path.map(|path| path.display().to_string());
            print(&document(
                &json!({ "path": path, "format": format, "notes": notes, "meaning": meaning }),
            )?)
        }
        Output::Human => {
            // Without a file, a note says so.
            let verdict = path.map(|path| format!("{} ({format}) is valid", path.display()));
            let notes = notes.iter().map(|note| format!("note: {note}"));
            let lines = verdict.into_iter().chain(notes).chain([String::new()]);
            let lines = lines.chain(meaning.lines().map(Into::into));
            print(
                &lines
                    .map(|line| printable(&line).into_owned())
                    .collect::<Vec<_>>()
                    .join("\n"),
            )
        }
    }
}

fn migrated(path: &Path) -> Result<String, Failure> {
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
    {
        let message = format!(
            "{} is TOML already; `config check` tells whether it is valid",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
        .map_err(|source| LoadError::Read {
            path: path.into(),
            source,
        })?;
    if text.len() as u64 > LONGEST {
        return Err(LoadError::TooLong { path: path.into() }.into());
    }
    Ok(migrate(&text, path)?)
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Invalid(invalid) => invalid.into(),
            LoadError::Read { .. } | LoadError::TooLong { .. } | LoadError::NotUtf8 { .. } => {
                let why = error.source().map_or(String::new(), |source| format!(": {source}"));
                Self::new(Exit::Configuration, format!("{error}{why}"))
            }
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        let complaints = invalid.complaints.iter().map(|complaint| {
            json!({
                "line": complaint.line,
                "column": complaint.column,
                "message": complaint.message,
                "hint": complaint.hint,
            })
        });
        Self {
            exit: Exit::Configuration,
            message: invalid.to_string(),
            complaints: Some(Value::Array(complaints.collect())),
        }
    }
}
