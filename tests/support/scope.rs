//! `cpu_scope` and `network_scope`: what pods do counts, what the rest of the host does is no activity.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::support::{
    agent::{Home, blockers},
    cgroups::{ADDRESS, CONTAINER, Cgroups, frame_to, network},
    namespaces::{OnDrop, in_namespaces},
    netns::FrameSender,
    wait::eventually,
};

/// Both thresholds are the guide's.
const NODE: &str = r#"
[general]
check_interval = "1s"
[activity_detection]
check_pods = false
cpu_scope = "pods"
network_scope = "pods"
check_ssh_sessions = false
"#;

const SECOND: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn only_pods_count_where_only_pods_are_asked_for() {
    in_namespaces(|| {
        network();
        let cgroups = Cgroups::new();
        let service = cgroups.make("system.slice/backup.service");
        let of_service = cgroups.inside(&service, || UdpSocket::bind((ADDRESS, 0)).unwrap());
        let home = Home::new(NODE);
        let agent = home.start();
        // Nothing to look at is no reason to sleep.
        let blind = agent.status_when("kept awake without pods", WITHIN, |status| {
            let what = status["blockers"].as_array().unwrap().iter();
            let about_kubelet =
                what.filter(|blocker| blocker["what"].as_str().unwrap().contains("is the kubelet running?"));
            about_kubelet.count() == 2
        });
        assert_eq!(blockers(&blind), ["unreadable", "unreadable"]);

        let pod = cgroups.make(CONTAINER);
        let of_pod = cgroups.inside(&pod, || UdpSocket::bind((ADDRESS, 0)).unwrap());
        agent.status_when("quiet", WITHIN, |status| blockers(status).is_empty());

        // The rest of the host may do what it likes.
        let burner = Burner::start(&service);
        let sent = AtomicU64::new(0);
        while_talking(&of_service, &sent, || {
            eventually("a busy service", 3 * WITHIN, || {
                let status = agent.status();
                assert!(blockers(&status).is_empty(), "{status:#}");
                let of_pods = &status["rates"]["interfaces"]["all pods"]["user"]["rx_bytes"];
                assert_eq!(of_pods, 0, "{status:#}");
                let busy = burner.used() > 3 * SECOND && sent.load(Ordering::Relaxed) > 1000;
                busy.then_some(()).ok_or_else(|| "not yet".into())
            });
        });
        drop(burner);

        let burner = Burner::start(&pod);
        let busy = agent.status_when("busy with pods", WITHIN, |status| blockers(status) == ["cpu"]);
        let what = busy["blockers"][0]["what"].as_str().unwrap();
        assert!(what.contains("busy with pods"), "{what}");
        drop(burner);
        agent.status_when("quiet again", WITHIN, |status| blockers(status).is_empty());

        while_talking(&of_pod, &sent, || {
            let busy = agent.status_when("talking pods", WITHIN, |status| blockers(status) == ["network"]);
            let what = busy["blockers"][0]["what"].as_str().unwrap();
            assert!(what.contains("of user traffic on all pods"), "{what}");
        });
    });
}

/// Sends to a socket while something else is done.
fn while_talking(to: &UdpSocket, sent: &AtomicU64, work: impl FnOnce()) {
    let frame = frame_to("vms0", to, 1000);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let sender = FrameSender::new("vms1");
            while !over.load(Ordering::Relaxed) {
                sender.send(&frame);
                sent.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        // Also when an assertion fails: the scope waits for the thread.
        let _ends = OnDrop(&over);
        work();
    });
}

/// A busy loop in a cgroup, for a minute of CPU time at most.
struct Burner {
    shell: Child,
    stat: PathBuf,
}

impl Burner {
    fn start(cgroup: &Path) -> Self {
        const BURN: &str = "echo $$ > \"$1/cgroup.procs\" && ulimit -t 60 && while :; do :; done";
        let shell = Command::new("sh").args(["-c", BURN, "sh"]).arg(cgroup).spawn();
        Self {
            shell: shell.unwrap(),
            stat: cgroup.join("cpu.stat"),
        }
    }

    fn used(&self) -> Duration {
        vmstation_agent::cgroups::cpu_used(&fs::read_to_string(&self.stat).unwrap()).unwrap()
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _gone = self.shell.kill().and_then(|()| self.shell.wait());
    }
}
