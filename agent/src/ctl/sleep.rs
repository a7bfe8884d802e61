//! `sleep`: orders a sleep, follows it to its end, and says how it went.

use std::{path::Path, thread, time::Duration};

use serde_json::json;

use super::{Exit, Failure, Output, ask, complain, json, print};
use crate::{
    control::{self, CallError, Request, Response},
    printable::printable,
    report::{AttemptOutcome, AttemptReport},
};

/// Time between two looks at the attempt.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in a row that may get no answer: the agent may be starting again, and a call during which the host slept has timed out.
const MISSES: u32 = 40;
/// Looks at the same step before it is worth telling.
const TELL_AFTER: u32 = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Sleep even if others are logged in, pods run, or a hold is in force. Inhibitors, a scheduled shutdown, a package upgrade and a
    /// host that nothing could wake still stand against it
    #[arg(long)]
    force: bool,
    /// Only say what stands against sleeping now: 0 nothing, 3 something
    #[arg(long, conflicts_with = "no_hooks")]
    check: bool,
    /// Run neither the pre-sleep nor the post-wake hooks
    #[arg(long)]
    no_hooks: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let &Arguments { force, check, no_hooks } = arguments;
    if check {
        return match ask(socket, &Request::SleepCheck { force })? {
            Response::SleepCheck { objections } => told(&objections, output),
            other => Err(unexpected(&other)),
        };
    }
    let order = Request::Sleep {
        force,
        hooks: !no_hooks,
    };
    let begun = attempt(ask(socket, &order)?)?;
    if output == Output::Human {
        complain("the host goes to sleep");
    }
    let ended = follow(socket, begun.id, output)?;
    finish(&ended, output)
}

fn told(objections: &[String], output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        print(&json(&json!({ "objections": objections }))?)?;
    }
    if objections.is_empty() {
        return match output {
            Output::Human => print("nothing stands against sleeping now"),
            Output::Json => Ok(()),
        };
    }
    Err(Failure::new(
        Exit::Refused,
        format!("the host would not sleep: {}", objections.join("; ")),
    ))
}

/// Waits for the end of an attempt.
fn follow(socket: &Path, id: u64, output: Output) -> Result<AttemptReport, Failure> {
    let (mut misses, mut step, mut looks) = (0, None, 0);
    loop {
        thread::sleep(LOOK_EVERY);
        let answer = match control::call(socket, &Request::Attempt) {
            Ok(answer) => answer,
            Err(CallError::TimedOut { .. } | CallError::Unreachable { .. } | CallError::BadAnswer { .. })
                if misses < MISSES =>
            {
                misses += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        misses = 0;
        let report = attempt(answer)?;
        if report.id != id {
            let why = "the agent was started anew or took up another attempt: see `vmstation-autosleep-ctl status`";
            return Err(Failure::new(Exit::Failed, why));
        }
        if report.outcome.is_some() {
            return Ok(report);
        }
        looks = if report.step == step { looks + 1 } else { 0 };
        step = report.step;
        if looks == TELL_AFTER
            && output == Output::Human
            && let Some(step) = &step
        {
            complain(&format!("{} ..", printable(step)));
        }
    }
}

fn finish(report: &AttemptReport, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        print(&json(report)?)?;
    }
    let why = report.reason.as_deref().unwrap_or("the agent does not say why");
    let failure = |exit, what: &str| Err(Failure::new(exit, format!("{what}: {}", printable(why))));
    match report.outcome {
        Some(AttemptOutcome::Slept | AttemptOutcome::External) => match output {
            Output::Json => Ok(()),
            Output::Human => {
                let slept = Duration::from_secs_f64(report.asleep_s.unwrap_or_default().round());
                let by = report
                    .wake_source
                    .as_deref()
                    .map(|source| format!(", woken by {}", printable(source)));
                print(&format!(
                    "slept for {}{}",
                    humantime::format_duration(slept),
                    by.unwrap_or_default()
                ))
            }
        },
        Some(AttemptOutcome::Refused) => failure(Exit::Refused, "the host did not sleep"),
        Some(AttemptOutcome::Aborted) => failure(Exit::Refused, "the sleep was called off"),
        Some(AttemptOutcome::Failed) => failure(Exit::Failed, "the host did not sleep"),
        Some(AttemptOutcome::Interrupted) | None => failure(Exit::Failed, "the sleep was interrupted"),
    }
}

fn attempt(answer: Response) -> Result<AttemptReport, Failure> {
    match answer {
        Response::Attempt(Some(report)) => Ok(*report),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Response) -> Failure {
    let what = match answer {
        Response::Refused { message, .. } => message.clone(),
        Response::Attempt(_)
        | Response::SleepCheck { .. }
        | Response::Status(_)
        | Response::Why(_)
        | Response::Done { .. } => "the agent gave an answer to another question: is it of this version?".into(),
    };
    Failure::new(Exit::Failed, what)
}
