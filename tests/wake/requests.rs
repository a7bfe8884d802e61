//! Requests and what they get.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lan::{WORKERS, card},
    server::{Master, TOKEN, nodes},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(20);
/// The guide's own request for a wake with a proof; nobody is there to prove it.
const IMPATIENT: &str = "deadline = \"2s\"\nresend = [\"0s\", \"1s\"]";

pub(crate) fn of_the_guide() {
    let master = Master::new(IMPATIENT);
    let status = master.curl(&["http://master:9876/status"]);
    assert_eq!(status.status, 200);
    let status = status.json();
    assert_eq!(status["schema"], 1);
    let names: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["name"].clone())
        .collect();
    assert_eq!(names, ["worker-01", "worker-02"]);

    let token = format!("X-Auth-Token: {TOKEN}");
    let wake = master.curl(&["-X", "POST", "http://master:9876/wake/worker-01", "-H", &token]);
    assert_eq!(wake.status, 200, "{wake:?}");
    let wake = wake.json();
    assert_eq!((&wake["outcome"], &wake["transport"]), (&"sent".into(), &"raw".into()));
    assert_eq!(
        (&wake["interface"], &wake["mac"]),
        (&"lan0".into(), &card(WORKERS[0]).to_string().into())
    );

    let proof = master.curl(&[
        "-X",
        "POST",
        "http://master:9876/wake/worker-01?verify=true",
        "-H",
        &token,
    ]);
    assert_eq!(
        (proof.status, &proof.json()["outcome"]),
        (504, &"timed_out".into()),
        "{proof:?}"
    );

    let health = master.curl(&["http://master:9876/health"]);
    assert_eq!((health.status, &health.json()["status"]), (200, &"ok".into()));

    let all = master.post("/wake/all").json();
    let woken: Vec<_> = all["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wake| wake["outcome"].clone())
        .collect();
    assert_eq!(woken, ["sent", "sent"], "{all}");
}

pub(crate) fn refused() {
    let master = Master::new(IMPATIENT);
    for (arguments, status, error) in [
        (&["-X", "POST"][..], 401, "unauthorized"),
        (&["-X", "POST", "-H", "X-Auth-Token: wrong"], 401, "unauthorized"),
        (&["-X", "POST", "-H", "X-Auth-Token;"], 401, "unauthorized"),
    ] {
        let url = "http://master:9876/wake/worker-01";
        let answer = master.curl(&[arguments, &[url]].concat());
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &error.into()),
            "{arguments:?}"
        );
    }
    for (path, status, error) in [
        ("/wake/worker-03", 404, "unknown_node"),
        ("/wake/worker-01%2f..", 400, "bad_name"),
        ("/wake/worker-01%00", 400, "bad_name"),
        ("/wake/worker-01%0d%0ax", 400, "bad_name"),
        ("/wake/01:00:5e:00:00:01", 400, "bad_name"),
        ("/wake/ff:ff:ff:ff:ff:ff", 400, "bad_name"),
        ("/wake/worker-01?verify=perhaps", 400, "bad_query"),
        ("/nothing", 404, "not_found"),
        ("/status", 405, "method_not_allowed"),
    ] {
        let answer = master.post(path);
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &error.into()),
            "{path}"
        );
    }
    let foreign = master.curl(&[
        "-X",
        "POST",
        "-H",
        &format!("X-Auth-Token: {TOKEN}"),
        "-H",
        "Origin: http://elsewhere.example",
        "http://master:9876/wake/worker-01",
    ]);
    assert_eq!(foreign.status, 403);
    assert_eq!(master.node("worker-01")["last_wake"], Value::Null, "nothing was sent");
    let log = master.log();
    assert!(log.contains("/wake/worker-01%0d%0ax") && !log.contains(TOKEN), "{log}");
}

pub(crate) fn by_mac() {
    let master = Master::new(IMPATIENT);
    let known = master.post(
        &format!("/wake/{}", card(WORKERS[1]))
            .to_uppercase()
            .replace("/WAKE", "/wake"),
    );
    assert_eq!(
        (known.status, &known.json()["node"]),
        (200, &"worker-02".into()),
        "{known:?}"
    );
    master.host.ip("route add default via 192.0.2.254");
    let bare = master.post("/wake/02-00-00-00-07-07");
    assert_eq!(
        (bare.status, &bare.json()["mac"]),
        (200, &"02:00:00:00:07:07".into()),
        "{bare:?}"
    );
}

pub(crate) fn reloaded() {
    let master = Master::new(IMPATIENT);
    master.write("nodes.toml", &nodes().replace("02:00:00:00:01:02", "01:00:00:00:01:02"));
    master.reload();
    let told = wait_until(SOON, || master.log().contains("stays in force"));
    assert!(told, "{}", master.log());
    assert_eq!(master.node("worker-02")["macs"][0], card(WORKERS[1]).to_string());
    master.write("nodes.toml", &nodes().replace("worker-02", "worker-07"));
    master.reload();
    let is_read = wait_until(SOON, || master.node("worker-07") != Value::Null);
    assert!(is_read, "{}", master.log());
}

pub(crate) fn killed() {
    let mut master = Master::new(IMPATIENT);
    let wake = master.post("/wake/worker-01?verify=true").json();
    assert_eq!(wake["outcome"], "timed_out");
    // What was answered is on the disk.
    master.kill();
    master.start();
    assert_eq!(master.node("worker-01")["last_wake"], wake);
}

pub(crate) fn called_off() {
    // Both are under way for as long as the trial may last.
    let master = Master::new("deadline = \"1h\"\nresend = [\"0s\", \"50m\"]");
    let one = master.post("/wake/worker-01");
    assert_eq!((one.status, &one.json()["outcome"]), (200, &"sent".into()), "{one:?}");
    assert_eq!(master.post("/wake/all").status, 200);
    assert_eq!(master.delete("/wake/worker-01").status, 200);
    let ended = |name| master.node(name)["last_wake"]["outcome"].clone();
    assert_eq!(
        (ended("worker-01"), ended("worker-02")),
        ("cancelled".into(), "sent".into())
    );
    assert_eq!(master.delete("/wake/all").status, 200);
    assert!(wait_until(SOON, || ended("worker-02") == "cancelled"));
    assert_eq!(master.delete("/wake/all").status, 409, "nothing is left");
    let log = master.log();
    for (words, whose) in [
        ("wake called off", "node=worker-01"),
        ("every wake called off", "wakes=1"),
        ("request refused", "method=DELETE"),
    ] {
        let line = log.lines().find(|line| line.contains(words) && line.contains("audit"));
        let is_told = line.is_some_and(|line| line.contains("client=127.0.0.1") && line.contains(whose));
        assert!(is_told, "{words}: {log}");
    }
}
