//! The document of the routes: schemathesis asks the running server what it allows and what it forbids, and holds every answer against it.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    server::{Master, TOKEN},
    wait::wait_until,
};

/// Where `cargo xtask test` put schemathesis.
const VARIABLE: &str = "VMSTATION_SCHEMATHESIS";
/// Requests of each kind for each route, beside those at the limits of every field.
const EXAMPLES: &str = "25";
const LIMIT: Duration = Duration::from_mins(4);

/// Nothing is waited for: no node is there, and a question for orders is answered at once.
const SETTINGS: &str = "deadline = \"1s\"\nstagger = \"0s\"\nresend = [\"0s\"]
[limits]
requests_per_minute = 1_000_000
poll_timeout = \"100ms\"
";

/// That no packet could be sent, and that a node never came, are answers of a wake like others.
const EXPECTED: &str = "[checks.not_a_server_error]
expected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"502\", \"504\"]
[[operations]]
include-path = \"/sleep/{node}\"
parameters = { node = \"worker-01\" }
";

pub(crate) fn program() -> Option<PathBuf> {
    env::var_os(VARIABLE).map(PathBuf::from)
}

/// `/events` is left out: its answer never ends.
pub(crate) fn is_true() {
    let master = Master::new(SETTINGS);
    // It has an order to tell of.
    assert_eq!(master.post("/sleep/worker-01").status, 202);
    master.write("schemathesis.toml", EXPECTED);
    let output = master.file("output");
    let mut command = Command::new(program().unwrap());
    command
        .current_dir(master.file(""))
        .args(["--config-file", "schemathesis.toml", "--no-color", "run"])
        .arg("http://127.0.0.1:9876/openapi.json")
        .args(["--header", &format!("X-Auth-Token: {TOKEN}")])
        .args(["--exclude-path", "/events"])
        .args(["--max-examples", EXAMPLES, "--seed", "1", "--request-timeout", "60"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&output).unwrap());
    let mut child = master.host.run(|| command.spawn().unwrap());
    let ended = wait_until(LIMIT, || child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let text = fs::read_to_string(&output).unwrap();
    assert!(
        ended && status.success(),
        "{status}, ended by itself: {ended}\n{text}\n{}",
        master.log()
    );
    assert!(text.contains("Tested: 15"), "every route but one: {text}");
}
