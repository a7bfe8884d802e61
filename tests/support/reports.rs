//! A real agent and a wake server: what it is told, its orders, and what is said when it is gone. In dry-run no leave is asked: the host
//! does not sleep. Where it is not a dry run, the agent sees a `/sys/power` of plain files and a logind that suspends nothing.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{runtime, sync::oneshot};

use crate::support::{
    agent::{Home, binary},
    fake_login1::{Bus, Machine, Script},
    wait::eventually,
    wake_server::WakeServer,
};

/// Ends a test that hangs; not a measure. Two reports may be 10 s apart.
const GENEROUS: Duration = Duration::from_secs(60);

/// Quiet at once: nothing is looked at.
fn configuration(inactivity: &str, server: &str) -> String {
    format!(
        "[general]\ninactivity_timeout = \"{inactivity}\"\ncheck_interval = \"1s\"\ngrace_period = \"2s\"\nmin_awake = \"1s\"\n\
         [activity_detection]\ncheck_pods = false\ncheck_cpu = false\ncheck_network = false\ncheck_ssh_sessions = false\n{server}"
    )
}

fn with(server: &WakeServer) -> String {
    format!("[wake_server]\nurl = \"{}\"\n", server.url())
}

fn refuses() -> Value {
    serde_json::json!({"leave": "refused", "reason": "nobody may", "again_in_s": 1})
}

fn reports(server: &WakeServer) -> Vec<Value> {
    let asked = server.asked().into_iter();
    asked
        .filter(|asked| asked.what == "post report")
        .map(|asked| asked.body)
        .collect()
}

pub(crate) fn the_wake_server_is_told_what_the_host_does() {
    let server = WakeServer::start(refuses());
    let home = Home::new(&configuration("2s", &with(&server)));
    let agent = home.start();
    agent.status_when("suspended (dry run)", GENEROUS, |status| status["suspends"] == 1);
    let told = eventually("told of two activities", GENEROUS, || {
        let told = reports(&server);
        let activities: BTreeSet<_> = told.iter().map(|report| report["activity"]["is"].to_string()).collect();
        if activities.len() >= 2 {
            Ok((told, activities))
        } else {
            Err(format!("{activities:?}"))
        }
    });
    let (told, activities) = told;
    assert!(!activities.contains("\"sleeping\""), "{activities:?}");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for report in &told {
        assert_eq!(
            (&report["schema"], report["boot_id"].as_str()),
            (&Value::from(1), Some(boot.trim()))
        );
        assert_eq!(report["node"], agent.status()["node"]);
        assert!(report["resumes"].is_u64() && report["ports"].is_array(), "{report}");
    }
    let heard = server.heard();
    assert_eq!(heard[0], "post report");
    assert!(heard.contains(&"get orders?after=0".to_owned()), "{heard:?}");
    assert!(!heard.iter().any(|what| what.contains("leave")), "{heard:?}");
    let warnings = agent.status()["warnings"].to_string();
    assert!(!warnings.contains("the wake server at"), "{warnings}");
}

pub(crate) fn an_order_of_the_wake_server_is_carried_out() {
    let server = WakeServer::start(refuses());
    let home = Home::new(&configuration("1h", &with(&server)));
    let agent = home.start();
    eventually("asked for orders", GENEROUS, || {
        server
            .heard()
            .contains(&"get orders?after=0".to_owned())
            .then_some(())
            .ok_or_else(|| agent.log())
    });
    server.order_sleep();
    agent.status_when("suspended (dry run)", GENEROUS, |status| status["suspends"] == 1);
    eventually("asked for the next order", GENEROUS, || {
        server
            .heard()
            .contains(&"get orders?after=1".to_owned())
            .then_some(())
            .ok_or_else(|| agent.log())
    });
    assert!(
        agent.log().contains("the wake server orders a sleep"),
        "{}",
        agent.log()
    );
    // A hold stands against it, as against an operator's.
    agent.order(&["hold", "1h"]);
    server.order_sleep();
    eventually("refused", GENEROUS, || {
        let log = agent.log();
        if log.contains("the order of the wake server is refused") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(agent.status()["suspends"], 1);
}

pub(crate) fn a_wake_server_that_is_gone_is_told() {
    let server = WakeServer::start(refuses());
    let home = Home::new(&configuration("1h", &with(&server)));
    let agent = home.start();
    eventually("asked for orders", GENEROUS, || {
        server
            .heard()
            .contains(&"get orders?after=0".to_owned())
            .then_some(())
            .ok_or_else(|| agent.log())
    });
    let gone = format!("the wake server at {} ", server.url().trim_start_matches("http://"));
    drop(server);
    let warned = |status: &Value| status["warnings"].to_string().contains(&gone);
    agent.status_when("warned", GENEROUS, warned);
    let other = WakeServer::start(refuses());
    home.configure(&configuration("1h", &with(&other)));
    agent.signal(Signal::SIGHUP);
    agent.status_when("in contact with the other", GENEROUS, |status| !warned(status));
    eventually("asked by the other", GENEROUS, || {
        other
            .heard()
            .contains(&"get orders?after=0".to_owned())
            .then_some(())
            .ok_or_else(|| agent.log())
    });
    home.configure(&configuration("1h", ""));
    agent.signal(Signal::SIGHUP);
    let log = || agent.log();
    eventually("without one", GENEROUS, || {
        if log().matches("configuration read again").count() == 2 {
            Ok(())
        } else {
            Err(log())
        }
    });
}

/// A logind that suspends nothing, on a bus and a thread of its own, for as long as it lives.
struct Logind {
    bus: Bus,
    machine: Arc<Machine>,
    end: Option<oneshot::Sender<()>>,
    serving: Option<thread::JoinHandle<()>>,
}

impl Logind {
    fn start() -> Self {
        let (bus, machine) = (Bus::start(), Arc::<Machine>::default());
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let (address, served) = (bus.address(), Arc::clone(&machine));
        let serving = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _served = Bus::logind_at(&address, Script::Sleeps, &served).await;
                ready.send(()).unwrap();
                let _ended = ended.await;
            });
        });
        is_ready.recv().unwrap();
        Self {
            bus,
            machine,
            end: Some(end),
            serving: Some(serving),
        }
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        self.end.take();
        if let Some(serving) = self.serving.take() {
            let _ended = serving.join();
        }
    }
}

pub(crate) fn the_report_of_a_sleep_comes_after_its_leave_and_last() {
    let granted = json!({"leave": "granted", "grant": 7, "for_s": 600});
    let (server, logind) = (WakeServer::start(granted), Logind::start());
    let home = Home::new(&format!(
        "{}[sleep]\narm_wol = false\nallow_unwakeable = true\nhooks_folder = \"/nonexistent\"\n",
        configuration("1h", &with(&server))
    ));
    let power = home.path().join("power");
    fs::create_dir_all(power.join("suspend_stats")).unwrap();
    for (file, text) in [
        ("state", "freeze mem disk\n"),
        ("mem_sleep", "s2idle [deep]\n"),
        ("wakeup_count", "17\n"),
        ("suspend_stats/success", "3\n"),
        ("suspend_stats/fail", "0\n"),
    ] {
        fs::write(power.join(file), text).unwrap();
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(
            "mount --bind \"$1\" /sys/power; mount -t tmpfs none /run; mkdir -p /run/systemd/sleep.conf.d\n\
             printf '[Sleep]\\nSuspendState=mem\\n' >/run/systemd/sleep.conf.d/x.conf; shift; exec \"$@\"",
        )
        .arg("sh")
        .arg(&power)
        .arg(binary("vmstation-autosleep"))
        .args(["--config".as_ref(), home.path().join("autosleep.toml").as_os_str()])
        .args(["--state-dir".as_ref(), home.path().join("state").as_os_str()])
        .args(["--socket".as_ref(), home.path().join("sock").as_os_str()])
        .env("DBUS_SYSTEM_BUS_ADDRESS", logind.bus.address());
    let agent = home.start_as(command);
    eventually("asked for orders", GENEROUS, || {
        let heard = server.heard();
        let asked = heard.contains(&"get orders?after=0".to_owned());
        asked.then_some(()).ok_or_else(|| agent.log())
    });
    // It fails: no time passes for this machine.
    let output = agent.ctl(&["sleep"]);
    assert!(!output.status.success());
    let story = eventually("told of the end", GENEROUS, || {
        let asked = server.asked();
        let back = asked.iter().position(|asked| asked.what == "delete leave/7");
        let told = back.is_some_and(|back| asked[back..].iter().any(|asked| asked.what == "post report"));
        let story = asked.iter().map(|asked| match asked.what.as_str() {
            "post report" => format!("report: {}", asked.body["activity"]["is"].as_str().unwrap_or_default()),
            what => what.to_owned(),
        });
        let story: Vec<_> = story.collect();
        if told {
            Ok(story)
        } else {
            Err(format!("{story:?}\n{}", agent.log()))
        }
    });
    assert_eq!(logind.machine.orders.lock().unwrap().len(), 1, "{}", agent.log());
    let at = |what: &str| {
        story
            .iter()
            .position(|said| said == what)
            .unwrap_or_else(|| panic!("no {what} in {story:?}"))
    };
    let (leave, sleeping) = (at("post leave"), at("report: sleeping"));
    assert!(leave < sleeping, "{story:?}");
    assert_eq!(story[sleeping + 1], "delete leave/7", "{story:?}");
    let reason = server
        .asked()
        .into_iter()
        .find(|asked| asked.what == "post leave")
        .unwrap();
    assert_eq!(reason.body["reason"], "an operator ordered it");
    let first = &reports(&server)[0];
    assert_eq!(first["resumes"], 3, "as the kernel counts them: {first}");
}
