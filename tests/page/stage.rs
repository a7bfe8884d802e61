//! The real wake server with a past, on a master in a network namespace; the agents of its nodes; and a browser on the same host.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmstation_protocol::{
    NodeName, NodeState, SCHEMA, Stage as Reached, StageDocument, Transport, WakeDocument, WakeOutcome,
};
use vmstation_wake_server::{
    auth::{Secret, agent_token},
    clock::wall_clock,
    presence::{Cause, Change, Saved, Standing},
    store::{Batch, Store},
};

use crate::{
    browser::Browser,
    lan::{Host, WORKERS, card},
    server::{Answer, Master, SECRET},
    wait::wait_until,
};

pub(crate) const URL: &str = "http://127.0.0.1:9876/";
/// Longest time to wait for what is to come; shorter than the page waits before it asks without any news.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything, for all trials one after the other.
pub(crate) struct Stage {
    pub(crate) browser: Browser,
    pub(crate) master: Master,
    resumes: AtomicU64,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let mut master = Master::new("");
        master.kill();
        Store::new(master.file("state")).write(past()?, wall_clock())?;
        let settings = format!(
            "secret_file = {:?}\nstatus_from = [\"127.0.0.0/8\"]\n[limits]\nrequests_per_minute = 100000\n\
             [wake]\nnode_interval = \"10ms\"\ndeadline = \"60s\"\nresend = [\"0s\", \"500ms\", \"1s\", \"2s\", \"4s\", \"8s\"]\n",
            master.file("secret")
        );
        master.write("wake-server.toml", &settings);
        master.start();
        Ok(Self {
            browser: Browser::start(&master.host)?,
            master,
            resumes: AtomicU64::new(1),
        })
    }

    /// A life of a node that nobody heard of before.
    pub(crate) fn life(&self) -> u64 {
        self.resumes.fetch_add(1, Ordering::Relaxed)
    }

    /// A report of an agent, with its own token, is taken.
    pub(crate) fn report(&self, node: &str, resumes: u64, activity: &str, reasons: &[&str]) -> Result<()> {
        let answer = self.try_report(node, &report(node, resumes, activity, reasons))?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    pub(crate) fn try_report(&self, node: &str, report: &Value) -> Result<Answer> {
        let body = report.to_string();
        self.as_agent(
            node,
            &["-H", "Content-Type: application/json", "--data", &body],
            &format!("/v1/nodes/{node}/report"),
        )
    }

    pub(crate) fn as_agent(&self, node: &str, arguments: &[&str], path: &str) -> Result<Answer> {
        let secret = Secret::new(SECRET).context("no secret")?;
        let token = format!("X-Auth-Token: {}", agent_token(&secret, &node.parse()?));
        let url = format!("http://master:9876{path}");
        Ok(self
            .master
            .curl(&[&["-H", token.as_str(), url.as_str()], arguments].concat()))
    }

    /// Waits until an expression is true in the page, which is not loaded again.
    pub(crate) fn comes(&self, expression: &str) -> Result<()> {
        let script = format!("return Boolean({expression})");
        let mut last = Ok(Value::Null);
        let came = wait_until(PATIENCE, || {
            last = self.browser.run(&script);
            !matches!(last, Ok(Value::Bool(false)))
        });
        let last = last?;
        if came && last == Value::Bool(true) {
            return Ok(());
        }
        let text = self.browser.run("return document.body.innerText")?;
        anyhow::bail!("{expression} does not come: {text}")
    }
}

pub(crate) fn report(node: &str, resumes: u64, activity: &str, reasons: &[&str]) -> Value {
    json!({
        "schema": 1, "node": node, "boot_id": "b", "resumes": resumes, "activity": { "is": activity, "idle_s": 5 },
        "reasons": reasons, "ports": [], "version": "0.1.0",
    })
}

/// The host of worker-01 while it sleeps: it has no address.
pub(crate) fn asleep() -> Host {
    let worker = Host::new();
    worker.plug("lan", "lan0", WORKERS[0], None);
    worker
}

/// A week of both workers, and their last wakes.
fn past() -> Result<Batch> {
    let now = wall_clock();
    let ago = |hours: u64| now - Duration::from_secs(hours * 3600);
    let change = |node: &NodeName, hours, from, to| Change {
        node: node.clone(),
        from,
        to,
        since: ago(hours),
        cause: Cause::Reported,
    };
    let (one, other): (NodeName, NodeName) = ("worker-01".parse()?, "worker-02".parse()?);
    use NodeState::{Asleep, Awake, GoingToSleep, Gone, Unknown, Waking};
    let changes = vec![
        change(&one, 160, Unknown, Awake),
        change(&one, 100, Awake, GoingToSleep),
        change(&one, 99, GoingToSleep, Asleep),
        change(&one, 50, Asleep, Waking),
        change(&one, 49, Waking, Awake),
        change(&other, 140, Unknown, Awake),
        change(&other, 90, Awake, Gone),
        change(&other, 60, Gone, Awake),
        change(&other, 30, Awake, Asleep),
    ];
    let wake = |node: &NodeName, hours, outcome, stages: &[(Reached, f64)], message: &str| WakeDocument {
        schema: SCHEMA,
        node: node.clone(),
        mac: card(WORKERS[0]),
        began: ago(hours).to_string(),
        outcome,
        stages: stages
            .iter()
            .map(|&(stage, at_ms)| StageDocument { stage, at_ms })
            .collect(),
        transport: Some(Transport::Raw),
        interface: Some("lan0".to_owned()),
        packets: 7,
        message: message.to_owned(),
    };
    let proved = [
        (Reached::FrameSent, 1.5),
        (Reached::ArpReply, 4100.0),
        (Reached::AgentReport, 6200.0),
    ];
    let wakes = vec![
        wake(&other, 70, WakeOutcome::TimedOut, &proved[..1], "not proved within 2m"),
        wake(&one, 50, WakeOutcome::Awake, &proved, "awake: its agent reports"),
    ];
    let saved = |node: &NodeName, standing, hours| Saved {
        node: node.clone(),
        standing,
        since: Some(ago(hours)),
        life: None,
        report: None,
        reported: Some(ago(hours)),
    };
    Ok(Batch {
        nodes: vec![saved(&one, Standing::Awake, 49), saved(&other, Standing::Asleep, 30)],
        changes,
        wakes,
        ..Batch::default()
    })
}
