//! `vmstation-wake-server doctor`: whether this wake server gets at the cluster and may do what it has to, as a list of checks in words,
//! each with its fix. Owns nothing and changes nothing.

use std::{fmt::Write as _, io::IsTerminal as _, path::Path, time::Duration};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    cluster::{
        connect::{self, ConnectError, Connection},
        election::{self, LeaseState},
        error::ClusterError,
        rights::{self, RIGHTS},
    },
    config::{ConfigError, Overrides, Settings, kubernetes::KubernetesSettings},
};

/// After this time it is said that something is still asked.
const PROGRESS: Duration = Duration::from_secs(2);

/// The checks a finding can be of; stable, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Does the configuration load?
    Configuration,
    /// Are there credentials?
    Credentials,
    /// Does the API server answer?
    ApiServer,
    /// Does it allow what is needed?
    Rights,
    /// Who leads?
    Lease,
    /// Do other wake servers find this one?
    Advertise,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, one sentence.
    pub what: String,
    /// What would help, if anything has to.
    pub fix: Option<String>,
}

/// How it came out all in all: the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// 0
    Healthy,
    /// 1
    Failed,
    /// 5: credentials or a right.
    Auth,
    /// 4
    Unreachable,
    /// 78 (`EX_CONFIG` of sysexits.h)
    Configuration,
}

impl Exit {
    /// For the shell.
    pub const fn code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Failed => 1,
            Self::Auth => 5,
            Self::Unreachable => 4,
            Self::Configuration => 78,
        }
    }
}

/// For whom it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A line each.
    #[default]
    Human,
    /// One document.
    Json,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Finding>,
    exit: Option<Exit>,
}

impl Findings {
    fn ok(&mut self, check: Check, what: String) {
        self.add(check, Verdict::Ok, what, None);
    }

    fn warn(&mut self, check: Check, what: String, fix: &str) {
        self.add(check, Verdict::Warn, what, Some(fix.to_owned()));
    }

    fn fail(&mut self, check: Check, exit: Exit, what: String, fix: &str) {
        self.add(check, Verdict::Fail, what, Some(fix.to_owned()));
        self.exit = self.exit.max(Some(exit));
    }

    fn add(&mut self, check: Check, verdict: Verdict, what: String, fix: Option<String>) {
        self.found.push(Finding {
            check,
            verdict,
            what,
            fix,
        });
    }

    /// In the order of the checks.
    pub fn found(&self) -> &[Finding] {
        &self.found
    }

    /// The worst.
    pub fn exit(&self) -> Exit {
        self.exit.unwrap_or(Exit::Healthy)
    }
}

/// Looks, and says on standard error when that takes long.
pub async fn run(config: Option<&Path>, overrides: Overrides) -> Findings {
    let settings = Settings::load(config, overrides);
    let looking = look(settings);
    tokio::pin!(looking);
    tokio::select! {
        findings = &mut looking => return findings,
        () = sleep(PROGRESS) => {}
    }
    if std::io::stderr().is_terminal() {
        eprintln!("asking the API server of Kubernetes ..");
    }
    looking.await
}

/// All checks; those that cannot succeed any more are left out.
pub async fn look(settings: Result<Settings, ConfigError>) -> Findings {
    let mut findings = Findings::default();
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            let fix = "correct the file: each complaint names its line";
            findings.fail(Check::Configuration, Exit::Configuration, error.to_string(), fix);
            return findings;
        }
    };
    findings.ok(Check::Configuration, "the configuration can be used".to_owned());
    let settings = &settings.kubernetes;
    if !connect::is_configured(settings) {
        let what = ConnectError::Off.to_string();
        findings.ok(Check::Credentials, format!("{what}: this wake server is alone"));
        return findings;
    }
    let connection = match Connection::new(settings).await {
        Ok(connection) => connection,
        Err(error) => {
            let fix = "name a readable kubeconfig in section [kubernetes], or write api = \"off\"";
            findings.fail(Check::Credentials, Exit::Configuration, error.to_string(), fix);
            return findings;
        }
    };
    findings.ok(Check::Credentials, "there are credentials".to_owned());
    match rights::version(&connection).await {
        Ok(version) => findings.ok(Check::ApiServer, format!("the API server answers: {version}")),
        Err(error) => {
            cluster(&mut findings, Check::ApiServer, &error);
            return findings;
        }
    }
    check_rights(&mut findings, &connection, settings).await;
    check_lease(&mut findings, election::look(&connection, settings).await, settings);
    findings
}

async fn check_rights(findings: &mut Findings, connection: &Connection, settings: &KubernetesSettings) {
    let asked = RIGHTS
        .iter()
        .map(|right| async move { (right, rights::is_granted(connection, settings, right).await) });
    let mut granted = 0;
    for (right, answer) in join_all(asked).await {
        match answer {
            Ok(true) => granted += 1,
            Ok(false) => findings.fail(
                Check::Rights,
                Exit::Auth,
                format!("RBAC lacks: {}, which is needed {}", right.words(settings), right.why),
                "kubectl apply -f wake-server/kubernetes/rbac.yaml",
            ),
            // The others fail in the same way.
            Err(error) => return cluster(findings, Check::Rights, &error),
        }
    }
    if granted == RIGHTS.len() {
        findings.ok(Check::Rights, format!("all {granted} rights are granted"));
    }
}

fn check_lease(findings: &mut Findings, lease: Result<LeaseState, ClusterError>, settings: &KubernetesSettings) {
    let name = format!("{}/{}", settings.namespace, settings.lease);
    match lease {
        Ok(LeaseState {
            leader: Some(leader),
            transitions,
            renewed,
        }) => {
            let renewed = renewed.map_or_else(|| "never".to_owned(), |time| time.to_string());
            let url = leader.url.as_deref().unwrap_or("no URL");
            let what = format!(
                "{} leads ({url}), by Lease {name}: changed hands {transitions} times, renewed {renewed}",
                leader.identity
            );
            findings.ok(Check::Lease, what);
            if leader.url.is_none() {
                findings.warn(
                    Check::Lease,
                    "the leader publishes no URL: other wake servers cannot pass writes on to it".to_owned(),
                    "set `advertise` in section [kubernetes] of its wake-server.toml",
                );
            }
        }
        Ok(LeaseState { leader: None, .. }) => findings.warn(
            Check::Lease,
            format!("nobody holds Lease {name}"),
            "start a wake server: it takes the Lease",
        ),
        Err(ClusterError::NotFound { .. }) => findings.warn(
            Check::Lease,
            format!("there is no Lease {name}"),
            "start a wake server: it makes the Lease",
        ),
        Err(error) => cluster(findings, Check::Lease, &error),
    }
    match &settings.advertise {
        Some(url) => findings.ok(Check::Advertise, format!("other wake servers reach this one at {url}")),
        None => findings.warn(
            Check::Advertise,
            "`advertise` is not set: only a wake server that is alone can do without".to_owned(),
            "with several, set advertise = \"http://ADDRESS:9876\" in section [kubernetes]",
        ),
    }
}

fn cluster(findings: &mut Findings, check: Check, error: &ClusterError) {
    let (exit, fix) = match error {
        ClusterError::Unreachable { .. } | ClusterError::Deadline { .. } => (
            Exit::Unreachable,
            "check that the API server is up, and that the address and the certificate in the kubeconfig are right",
        ),
        ClusterError::Unauthorized { .. } => (Exit::Auth, "renew the token or the kubeconfig"),
        ClusterError::Forbidden { .. } => (Exit::Auth, "kubectl apply -f wake-server/kubernetes/rbac.yaml"),
        ClusterError::NotFound { .. } => (
            Exit::Failed,
            "check that the address is that of an API server of Kubernetes",
        ),
        ClusterError::Conflict { .. }
        | ClusterError::TooManyRequests { .. }
        | ClusterError::Gone { .. }
        | ClusterError::Unreadable(_)
        | ClusterError::Other { .. } => (
            Exit::Failed,
            "try again; if it stays, the log of the API server says why",
        ),
    };
    findings.fail(check, exit, error.to_string(), fix);
}

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Credentials => "credentials",
            Self::ApiServer => "api_server",
            Self::Rights => "rights",
            Self::Lease => "lease",
            Self::Advertise => "advertise",
        }
    }
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// A line a finding, or one document. What others wrote cannot drive the terminal.
///
/// # Errors
/// Never: all is text.
pub fn shown(findings: &[Finding], output: Output) -> serde_json::Result<String> {
    let mut text = String::new();
    match output {
        Output::Json => text = serde_json::to_string_pretty(findings)?,
        Output::Human => {
            for finding in findings {
                let verdict = finding.verdict.name();
                let check = finding.check.name();
                let fix = finding
                    .fix
                    .as_deref()
                    .map_or(String::new(), |fix| format!(". Fix: {fix}"));
                // A String takes all.
                let _ = writeln!(
                    text,
                    "{verdict:8}{check:14} {}",
                    printable(&format!("{}{fix}", finding.what))
                );
            }
        }
    }
    Ok(text.trim_end().to_owned())
}

/// On one line; complaints of several lines become one.
fn printable(text: &str) -> String {
    let escape = |character: char| match character {
        '\n' => " ".to_owned(),
        other if other.is_control() => other.escape_default().to_string(),
        other => other.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kubernetes::Access;

    async fn look_at(section: &str) -> Findings {
        let text = format!("[kubernetes]\n{section}");
        look(Settings::parse(&text, Path::new("w.toml"), Overrides::default())).await
    }

    fn last(findings: &Findings) -> (Check, Verdict, Exit) {
        let last = findings.found().last().unwrap();
        (last.check, last.verdict, findings.exit())
    }

    #[tokio::test]
    async fn each_kind_of_failure_has_its_exit_code() {
        let findings = look_at("api = 1").await;
        assert_eq!(
            last(&findings),
            (Check::Configuration, Verdict::Fail, Exit::Configuration)
        );
        assert!(findings.found()[0].what.contains("w.toml:2:7"));
        let findings = look_at("api = \"off\"").await;
        assert_eq!(last(&findings), (Check::Credentials, Verdict::Ok, Exit::Healthy));
        let findings = look_at("kubeconfig = \"/nonexistent/kubeconfig\"").await;
        assert_eq!(
            last(&findings),
            (Check::Credentials, Verdict::Fail, Exit::Configuration)
        );
        let codes = [
            Exit::Healthy,
            Exit::Failed,
            Exit::Unreachable,
            Exit::Auth,
            Exit::Configuration,
        ]
        .map(Exit::code);
        assert_eq!(codes, [0, 1, 4, 5, 78]);
    }

    #[test]
    fn the_state_of_the_lease_is_told_in_words() {
        let settings = KubernetesSettings {
            access: Access::InCluster,
            ..KubernetesSettings::default()
        };
        let mut findings = Findings::default();
        let leader = election::Leader {
            identity: "a\u{1b}[2J".into(),
            url: None,
        };
        let state = LeaseState {
            leader: Some(leader),
            transitions: 3,
            renewed: None,
        };
        check_lease(&mut findings, Ok(state), &settings);
        let text = shown(findings.found(), Output::Human).unwrap();
        assert_eq!(
            text.lines().next(),
            Some(
                r"ok      lease          a\u{1b}[2J leads (no URL), by Lease kube-system/vmstation-wake-server: changed hands 3 times, renewed never"
            )
        );
        assert!(text.contains("warn    advertise"), "{text}");
        assert_eq!(findings.exit(), Exit::Healthy);
        let json = shown(findings.found(), Output::Json).unwrap();
        assert!(json.contains(r#""check": "lease""#), "{json}");
    }
}
