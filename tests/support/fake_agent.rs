//! A control server with a fake driver behind it, and the command line to ask it with. Needs no root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use tokio::sync::{mpsc, oneshot};
use vmstation_agent::{
    control::{Call, ControlServer, Peer, Request, Response},
    report::{Blocker, InterfaceRates, Rates, SCHEMA, SleepReport, StateName, Status, Why},
};

/// The control server with a driver that answers as it is told; ends when dropped.
pub(crate) struct Agent {
    pub(crate) folder: tempfile::TempDir,
    seen: Arc<Mutex<Vec<(Request, Peer)>>>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<thread::JoinHandle<()>>,
}

impl Agent {
    /// `None` from `answer`: the client waits in vain.
    pub(crate) fn answering(answer: impl Fn(&Request) -> Option<Response> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/autosleep.sock");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let running = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let server = ControlServer::bind(&socket).unwrap();
                bound.send(()).unwrap();
                let (calls, mut asked) = mpsc::channel::<Call>(8);
                let drive = async move {
                    let mut waiting = Vec::new();
                    while let Some(Call { request, peer, reply }) = asked.recv().await {
                        noted.lock().unwrap().push((request.clone(), peer));
                        match answer(&request) {
                            Some(response) => drop(reply.send(response)),
                            None => waiting.push(reply),
                        }
                    }
                };
                tokio::select! {
                    () = server.serve(calls) => {}
                    () = drive => {}
                    _ = stopped => {}
                }
            });
        });
        is_bound.recv().unwrap();
        Self {
            folder,
            seen,
            stop: Some(stop),
            running: Some(running),
        }
    }

    /// Answers everything.
    pub(crate) fn obliging() -> Self {
        Self::answering(|request| {
            Some(match request {
                Request::Status => Response::Status(Box::new(status())),
                Request::Why => Response::Why(Box::new(why())),
                change => Response::Done {
                    message: format!("{} done", change.name()),
                },
            })
        })
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/autosleep.sock")
    }

    /// What the command line tells about it.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        ctl(&self.socket(), arguments).output().unwrap()
    }

    /// What has reached the driver.
    pub(crate) fn seen(&self) -> Vec<(Request, Peer)> {
        self.seen.lock().unwrap().clone()
    }

    /// As if the agent's service was stopped.
    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _gone = stop.send(());
        }
        if let Some(running) = self.running.take() {
            running.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Built beside the tests; they lie in `deps` below it.
pub(crate) fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().unwrap().parent().unwrap().join("vmstation-autosleep-ctl");
    assert!(
        binary.exists(),
        "{} is not built: cargo build -p vmstation-agent",
        binary.display()
    );
    binary
}

/// The command line with its socket and these arguments.
pub(crate) fn ctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .env_remove("VMSTATION_AUTOSLEEP_SOCKET")
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// A host that the network keeps awake.
pub(crate) fn status() -> Status {
    let eth0 = InterfaceRates {
        rx_bytes_per_s: 5120.0,
        ..InterfaceRates::default()
    };
    Status {
        schema: SCHEMA,
        version: "0.1.0".into(),
        node: "worker-01".into(),
        pid: 812,
        dry_run: false,
        state: StateName::Active,
        state_for_s: 12.5,
        sleep_enabled: true,
        disabled_by_operator: false,
        hold: None,
        idle_s: 0.25,
        inactivity_timeout_s: 7200.0,
        grace_period_s: 600.0,
        sleeps_in_s: None,
        last_check_s: Some(1.0),
        blockers: vec![network()],
        rates: Rates {
            over_s: 1.0,
            cpu_percent: Some(3.125),
            cpus_percent: BTreeMap::from([(0, 4.25), (1, 2.0)]),
            interfaces: BTreeMap::from([("eth0".into(), eth0)]),
            ..Rates::default()
        },
        signals: Vec::new(),
        programs: Vec::new(),
        warnings: Vec::new(),
        suspends: 0,
        sleep: SleepReport::default(),
    }
}

fn network() -> Blocker {
    Blocker {
        signal: "network".into(),
        what: "eth0 at 5120 B/s, limit 1024 B/s".into(),
        for_s: 12.5,
        value: Some(5120.0),
        limit: Some(1024.0),
        unit: Some("B/s".into()),
        by: vec!["rsync (process group 9)".into()],
        remedy: "less than 1024 B/s on eth0".into(),
    }
}

/// The same.
pub(crate) fn why() -> Why {
    Why {
        schema: SCHEMA,
        node: "worker-01".into(),
        state: StateName::Active,
        blockers: vec![network()],
        to_sleep: "less than 1024 B/s on eth0; then the node sleeps after 2h 10m of quiet".into(),
    }
}
