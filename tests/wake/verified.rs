//! Wakes that are proved, or not.

use std::{sync::atomic::AtomicBool, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    card::listens,
    lan::{Host, IMPOSTOR, WORKERS, card},
    namespaces::OnDrop,
    server::{Answer, Master, SECRET, TOKEN},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(20);
const SETTINGS: &str = "deadline = \"15s\"\nresend = [\"0s\", \"500ms\", \"1s\", \"2s\", \"4s\"]";

/// A worker's host: it sleeps, which is to say that it has no address.
fn asleep() -> Host {
    let worker = Host::new();
    worker.plug("lan", "lan0", WORKERS[0], None);
    worker
}

fn stages(wake: &Value) -> Vec<&str> {
    let stages = wake["stages"].as_array().unwrap();
    stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect()
}

pub(crate) fn at_the_third_call() {
    let master = Master::new(SETTINGS);
    let worker = asleep();
    let over = AtomicBool::new(false);
    let (heard, answer) = thread::scope(|scope| {
        let stops = OnDrop(&over);
        let heard = scope.spawn(|| listens(&worker, WORKERS[0], "192.0.2.11", 3, &over));
        let answer = master.post("/wake/worker-01?verify=true");
        drop(stops);
        (heard.join().unwrap(), answer)
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    let wake = answer.json();
    assert_eq!(
        (&wake["outcome"], stages(&wake)),
        (&"awake".into(), vec!["frame_sent", "arp_reply"])
    );
    assert!(heard >= 3, "heard {heard}");
    assert!(
        wake["packets"].as_u64() >= Some(12),
        "two frames and two datagrams a call: {wake}"
    );
}

pub(crate) fn impostor() {
    let master = Master::new("deadline = \"4s\"\nresend = [\"0s\", \"1s\"]");
    let impostor = Host::new();
    impostor.plug("lan", "lan0", IMPOSTOR, Some("192.0.2.11/24"));
    let pinged = master.host.run(|| {
        let ping = std::process::Command::new("ping")
            .args(["-c", "1", "-W", "5", "192.0.2.11"])
            .output();
        ping.map(|output| output.status.success())
    });
    if let Ok(pinged) = pinged {
        assert!(pinged, "the impostor answers ping");
    }
    let answer = master.post("/wake/worker-01?verify=true");
    assert_eq!(answer.status, 504, "{answer:?}");
    let wake = answer.json();
    assert_eq!(stages(&wake), ["frame_sent"]);
    let message = wake["message"].as_str().unwrap();
    assert!(message.contains(&card(IMPOSTOR).to_string()), "{message}");
}

fn agent_token() -> String {
    let secret = vmstation_wake_server::auth::Secret::new(SECRET).unwrap();
    vmstation_wake_server::auth::agent_token(&secret, &"worker-01".parse().unwrap())
}

/// What the agent of worker-01 gets.
fn as_agent(master: &Master, method: &str, path: &str, body: &Value) -> Answer {
    let token = format!("X-Auth-Token: {}", agent_token());
    let url = format!("http://master:9876/v1/nodes/worker-01/{path}");
    let body = body.to_string();
    let mut arguments = vec!["-X", method, &url, "-H", &token];
    if method == "POST" {
        arguments.extend(["-H", "Content-Type: application/json", "--data", &body]);
    }
    master.curl(&arguments)
}

fn report(resumes: u64, activity: &str) -> Value {
    json!({
        "schema": 1, "node": "worker-01", "boot_id": "b", "resumes": resumes, "activity": { "is": activity, "idle_s": 5 },
        "reasons": [], "version": "0.1.0",
        "ports": [{ "interface": "eth0", "mac": card(WORKERS[0]), "waking": "armed" }],
    })
}

pub(crate) fn followed() {
    let master = Master::new(SETTINGS);
    assert_eq!(as_agent(&master, "POST", "report", &report(3, "sleeping")).status, 200);
    let worker = asleep();
    let over = AtomicBool::new(false);
    let events = thread::scope(|scope| {
        let stops = OnDrop(&over);
        scope.spawn(|| listens(&worker, WORKERS[0], "192.0.2.11", 1, &over));
        let follower = scope.spawn(|| {
            let token = format!("X-Auth-Token: {TOKEN}");
            let accept = "Accept: text/event-stream";
            master.curl(&[
                "-N",
                "-X",
                "POST",
                "http://master:9876/wake/worker-01?verify=true",
                "-H",
                &token,
                "-H",
                accept,
            ])
        });
        let answers = || {
            master.node("worker-01")["last_wake"]["stages"]
                .as_array()
                .is_some_and(|stages| stages.len() == 2)
        };
        assert!(wait_until(SOON, answers), "{}", master.log());
        // An answer of its card is not the proof where there is an agent, nor is a report from before.
        as_agent(&master, "POST", "report", &report(3, "busy"));
        assert_eq!(master.node("worker-01")["last_wake"]["outcome"], "waking");
        as_agent(&master, "POST", "report", &report(4, "busy"));
        let events = follower.join().unwrap();
        drop(stops);
        events
    });
    let documents: Vec<Value> = events
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let last = documents.last().unwrap();
    assert_eq!(
        (&last["outcome"], stages(last)),
        (&"awake".into(), vec!["frame_sent", "arp_reply", "agent_report"])
    );
    assert!(documents.len() >= 3, "each stage is told: {documents:?}");
    let times: Vec<_> = last["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["at_ms"].as_f64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(master.node("worker-01")["state"], "awake");
}

pub(crate) fn agent() {
    let master = Master::new(SETTINGS);
    let answer = as_agent(&master, "POST", "report", &report(0, "quiet"));
    assert_eq!((answer.status, &answer.json()["orders"]), (200, &json!([])));
    let ordered = thread::scope(|scope| {
        let held = scope.spawn(|| as_agent(&master, "GET", "orders?after=0", &Value::Null));
        let is_held = || master.log().contains("worker-01") && !held.is_finished();
        assert!(wait_until(SOON, is_held));
        assert_eq!(master.post("/sleep/worker-01").status, 202);
        held.join().unwrap().json()
    });
    assert_eq!(ordered["orders"][0]["order"], "sleep", "{ordered}");
    let ask = || as_agent(&master, "POST", "leave", &json!({ "schema": 1, "reason": "idle" })).json();
    let leave = ask();
    assert_eq!(leave["leave"], "granted", "{leave}");
    let back = as_agent(&master, "DELETE", &format!("leave/{}", leave["grant"]), &Value::Null);
    assert_eq!((back.status, &back.json()["newest"]), (200, &ordered["newest"]));
    // Nothing would wake it.
    let mut disarmed = report(0, "quiet");
    disarmed["ports"][0]["waking"] = "disarmed".into();
    as_agent(&master, "POST", "report", &disarmed);
    let leave = ask();
    assert_eq!(leave["leave"], "refused", "{leave}");
    assert!(leave["reason"].as_str().unwrap().contains("Wake-on-LAN"), "{leave}");
    // Its token is good for itself alone, and for no operator's request.
    let token = format!("X-Auth-Token: {}", agent_token());
    for (method, path) in [("GET", "/v1/nodes/worker-02/orders"), ("POST", "/wake/worker-01")] {
        let answer = master.curl(&["-X", method, &format!("http://master:9876{path}"), "-H", &token]);
        assert_eq!(answer.status, 401, "{path}");
    }
}
