//! `doctor`: the findings for people or machines. The view is pure; what is found is [`crate::doctor`]'s.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    Exit, Failure, Output, json,
    paint::{Paint, Tone},
    print,
};
use crate::{
    doctor::{self, Arming, Finding, Places, Verdict},
    printable::printable,
    state_file::DEFAULT_DIR,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// autosleep.conf or autosleep.toml [default: what the agent would load]
    #[arg(long, value_name = "FILE", env = "VMSTATION_AUTOSLEEP_CONFIG")]
    config: Option<PathBuf>,
    /// State folder of the agent
    #[arg(long, value_name = "DIR", env = "VMSTATION_AUTOSLEEP_STATE_DIR", default_value = DEFAULT_DIR)]
    state_dir: PathBuf,
    /// Arm the network ports as the agent does, to see whether their drivers take it; they stay armed
    #[arg(long)]
    arm: bool,
    /// Where sysfs is mounted
    #[arg(long, value_name = "DIR", hide = true, default_value = "/sys")]
    sys: PathBuf,
}

pub(super) fn run(options: &Options, socket: &Path, output: Output) -> Result<(), Failure> {
    let places = Places {
        configuration: options.config.clone(),
        socket: socket.to_owned(),
        state_folder: options.state_dir.clone(),
        sys: options.sys.clone(),
    };
    let arming = if options.arm { Arming::Try } else { Arming::No };
    let facts = doctor::collect(&places, arming, &|name| std::env::var(name).ok());
    let findings = doctor::findings(&facts);
    match output {
        Output::Json => print(&json(&findings)?)?,
        Output::Human => print(&view(&findings, Paint::on(&io::stdout())).join("\n"))?,
    }
    outcome(&findings)
}

/// A line a finding.
fn view(findings: &[Finding], paint: Paint) -> Vec<String> {
    let line = |finding: &Finding| {
        let tone = match finding.verdict {
            Verdict::Ok => Tone::Good,
            Verdict::Warn | Verdict::Fail | Verdict::Unknown => Tone::Attention,
        };
        let verdict = paint.tone(tone, format!("{:8}", finding.verdict.name()));
        let fix = finding
            .fix
            .as_deref()
            .map_or(String::new(), |fix| format!(". Fix: {}", printable(fix)));
        format!("{verdict}{:14} {}{fix}", finding.check.name(), printable(&finding.what))
    };
    findings.iter().map(line).collect()
}

/// Whether anything fails.
fn outcome(findings: &[Finding]) -> Result<(), Failure> {
    match findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail)
        .count()
    {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failed, "1 check fails")),
        failed => Err(Failure::new(Exit::Failed, format!("{failed} checks fail"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Verdict, outcome, view};
    use crate::{ctl::paint::Paint, doctor::Check};

    fn finding(verdict: Verdict, what: &str, fix: Option<&str>) -> Finding {
        Finding {
            check: Check::WakeOnLan,
            verdict,
            what: what.into(),
            fix: fix.map(Into::into),
        }
    }

    #[test]
    fn a_line_each_with_its_fix_and_nothing_that_drives_the_terminal() {
        let findings = [
            finding(Verdict::Ok, "eth0 armed", None),
            finding(Verdict::Unknown, "a\nb\x1b[2J", Some("run it\ras root")),
        ];
        let expected = [
            "ok      wake_on_lan    eth0 armed",
            r"unknown wake_on_lan    a\nb\u{1b}[2J. Fix: run it\ras root",
        ];
        assert_eq!(view(&findings, Paint::Plain), expected);
    }

    #[test]
    fn only_what_fails_makes_it_fail() {
        for verdict in [Verdict::Ok, Verdict::Warn, Verdict::Unknown] {
            assert!(outcome(&[finding(verdict, "", None)]).is_ok(), "{verdict:?}");
        }
        assert!(outcome(&[finding(Verdict::Ok, "", None), finding(Verdict::Fail, "", None)]).is_err());
    }
}
