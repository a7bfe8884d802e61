//! The pods of a node keep it awake: the real agent, always in dry-run, and an API server of Kubernetes on the loopback; the real one where
//! `KUBEBUILDER_ASSETS` names it, otherwise the fake. Trials in which the server misbehaves are for the fake alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support {
    #[expect(dead_code, reason = "the tests of the agent as a whole use more of it")]
    pub(crate) mod agent;
    #[expect(dead_code, reason = "other suites use more of it")]
    pub(crate) mod cluster;
    pub(crate) mod wait;
}

use std::{fs, path::Path, thread, time::Duration};

use kube::Client;
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::{
    agent::{Agent, Home, blockers},
    cluster::{
        Cluster,
        kube_fake::{Asked, KubeFake, Rule},
        objects::{NewNode, NewPod, set_phase},
    },
    wait::eventually,
};
use tokio::runtime::{Builder, Runtime};

const SECOND: Duration = Duration::from_secs(1);
/// Far beyond every deadline of the agent.
const AT_MOST: Duration = Duration::from_secs(40);
const NODE: &str = "n1";

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![
        on_both("a_pod_keeps_the_node_awake_until_it_is_finished", a_pod_keeps_awake),
        on_both(
            "k5_mirror_daemon_set_and_excluded_pods_do_not_and_pods_elsewhere_neither",
            pods_that_do_not_count,
        ),
        on_both("a_label_keeps_the_node_awake_in_kube_system_too", a_label_blocks),
        on_both("a_new_pod_ends_the_grace_period_at_once", a_new_pod_cancels),
        on_both("k3_rights_to_list_and_watch_pods_are_enough", rights_are_enough),
        on_both("k3_a_missing_right_is_named", a_missing_right),
    ];
    trials.push(Trial::test("a_host_that_is_of_no_cluster_sleeps_as_ever", || {
        no_cluster();
        Ok(())
    }));
    trials.extend([
        on_fake("k7_the_pods_are_listed_again_before_the_node_sleeps", listed_again),
        on_fake("k1_an_api_server_that_hangs_is_a_reason_to_stay_awake", hangs),
        on_fake("k1_an_api_server_that_trickles_is_a_reason_to_stay_awake", trickles),
        on_fake("k1_an_api_server_that_is_gone_is_a_reason_until_it_is_back", is_gone),
        on_fake("k2_a_token_that_is_replaced_is_read_again", token_replaced),
        on_fake(
            "k2_a_token_that_is_refused_is_a_reason_with_a_clear_message",
            token_refused,
        ),
        on_fake("watches_that_expire_or_end_lose_no_pod", watches_expire),
        on_fake(
            "the_api_server_is_asked_once_at_each_check_and_no_more",
            requests_are_bounded,
        ),
    ]);
    // The agent takes them for its node's.
    if vmstation_agent::kubepods::any_pod() {
        let left_out = |trial: Trial| trial.with_kind("pods run on this host").with_ignored_flag(true);
        trials = trials.into_iter().map(left_out).collect();
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn on_both(name: &str, test: fn(&Bench)) -> Trial {
    Trial::test(name, move || {
        test(&Bench::new());
        Ok(())
    })
}

fn on_fake(name: &str, test: fn(&Bench)) -> Trial {
    if Cluster::is_real() {
        on_both(name, test).with_kind("needs the fake").with_ignored_flag(true)
    } else {
        on_both(name, test)
    }
}

/// A cluster with this node.
struct Bench {
    runtime: Runtime,
    client: Client,
    cluster: Cluster,
}

impl Bench {
    fn new() -> Self {
        let cluster = Cluster::start();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(cluster.client());
        runtime.block_on(NewNode::new(NODE).create(&client));
        Self {
            runtime,
            client,
            cluster,
        }
    }

    fn create(&self, pod: NewPod) {
        self.runtime.block_on(pod.create(&self.client));
    }

    fn finish(&self, name: &str) {
        self.runtime
            .block_on(set_phase(&self.client, "default", name, "Succeeded", false));
    }

    fn fake(&self) -> &KubeFake {
        self.cluster.fake().unwrap()
    }

    /// An agent that looks at pods alone. `check`, `grace`: durations of its configuration.
    fn agent(&self, check: &str, grace: &str) -> (Home, Agent) {
        started(self.cluster.kubeconfig(), check, grace)
    }

    /// What the agent asked; the trials' own client does not say who it is.
    fn lists_and_watches(&self) -> (usize, usize) {
        let asked = self.fake().requests();
        let of_agent = |asked: &&Asked| asked.agent.starts_with("vmstation-autosleep/");
        assert!(
            asked.iter().filter(of_agent).all(|asked| asked.method == "GET"
                && asked.path == "/api/v1/pods"
                && asked.query.contains("spec.nodeName")),
            "{asked:?}"
        );
        let (watches, lists): (Vec<_>, Vec<_>) = asked.iter().filter(of_agent).partition(|asked| asked.is_watch());
        (lists.len(), watches.len())
    }
}

fn started(kubeconfig: &Path, check: &str, grace: &str) -> (Home, Agent) {
    let home = Home::new(&format!(
        "[general]\ninactivity_timeout = \"{}\"\ncheck_interval = \"{check}\"\ngrace_period = \"{grace}\"\nmin_awake = \"1s\"\n\
         [activity_detection]\ncheck_cpu = false\ncheck_network = false\ncheck_ssh_sessions = false\n\
         [kubernetes]\nkubeconfig = {kubeconfig:?}\nnode = \"{NODE}\"\n",
        if check == "1s" { "2s" } else { check },
    ));
    let agent = home.start();
    (home, agent)
}

fn pod(name: &str) -> NewPod {
    NewPod::new("default", name).on(NODE)
}

/// What the blockers say, in one line.
fn words(status: &Value) -> String {
    let blockers = status["blockers"].as_array().unwrap();
    let words: Vec<_> = blockers
        .iter()
        .map(|blocker| blocker["what"].as_str().unwrap())
        .collect();
    words.join("; ")
}

fn is_known_quiet(status: &Value) -> bool {
    !status["signals"].to_string().contains("unreadable") && blockers(status).iter().all(|name| *name == "waiting")
}

fn unreadable_because(agent: &Agent, why: &str) {
    agent.status_when("awake for that reason", AT_MOST, |status| {
        blockers(status).contains(&"unreadable") && words(status).contains(why)
    });
}

fn a_pod_keeps_awake(bench: &Bench) {
    bench.create(pod("web"));
    let (_home, agent) = bench.agent("1s", "60s");
    let status = agent.status_when("kept awake by the pod", AT_MOST, |status| {
        blockers(status).contains(&"pods")
    });
    assert!(words(&status).contains("pod default/web is running"), "{status}");
    let why = agent.ctl(&["why"]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("default/web"), "{why:?}");
    bench.finish("web");
    agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
}

fn pods_that_do_not_count(bench: &Bench) {
    bench.create(pod("static").mirror());
    bench.create(pod("agent").owned_by("DaemonSet", "agent"));
    bench.create(NewPod::new("kube-system", "dns").on(NODE));
    bench.create(NewPod::new("default", "elsewhere"));
    bench.create(pod("done").phase("Succeeded"));
    bench.create(pod("broken").phase("Failed"));
    let (_home, agent) = bench.agent("1s", "60s");
    let status = agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
    assert!(is_known_quiet(&status), "{status:#}");
}

fn a_label_blocks(bench: &Bench) {
    let backup = NewPod::new("kube-system", "backup").on(NODE);
    bench.create(
        backup
            .owned_by("DaemonSet", "backup")
            .label("vmstation.io/prevent-sleep", "true"),
    );
    let (_home, agent) = bench.agent("1s", "60s");
    let status = agent.status_when("kept awake by the label", AT_MOST, |status| {
        blockers(status).contains(&"prevent_sleep")
    });
    assert!(words(&status).contains("kube-system/backup"), "{status}");
}

fn a_new_pod_cancels(bench: &Bench) {
    // No list is due within this trial: only the watch can tell.
    let (_home, agent) = bench.agent("15s", "10m");
    agent.status_when("in the grace period", 2 * AT_MOST, |status| status["state"] == "grace");
    // The watch begins with the first check in quiet.
    thread::sleep(3 * SECOND);
    bench.create(pod("web"));
    let status = agent.status_when("awake", 5 * SECOND, |status| status["state"] == "active");
    assert!(words(&status).contains("pod default/web is running"), "{status}");
}

fn listed_again(bench: &Bench) {
    // Neither a watch nor a list that is due can tell of the pod.
    bench.fake().forbid(agents_rule(&["watch"]));
    let (_home, agent) = bench.agent("15s", "8s");
    agent.status_when("in the grace period", 2 * AT_MOST, |status| status["state"] == "grace");
    thread::sleep(3 * SECOND);
    bench.create(pod("web"));
    let status = agent.status_when("awake", AT_MOST, |status| status["state"] == "active");
    assert!(words(&status).contains("pod default/web is running"), "{status}");
    assert_eq!(status["suspends"], 0);
}

fn agents_rule(verbs: &[&str]) -> Rule {
    Rule::new(&[""], &["pods"], verbs)
}

fn rights_are_enough(bench: &Bench) {
    let access = bench
        .runtime
        .block_on(bench.cluster.user("agent", &[agents_rule(&["list", "watch"])]));
    let (_home, agent) = started(&access, "1s", "60s");
    let status = agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
    assert_eq!(status["warnings"], Value::Array(vec![]));
    bench.create(pod("web"));
    agent.status_when("kept awake", AT_MOST, |status| blockers(status).contains(&"pods"));
}

fn a_missing_right(bench: &Bench) {
    let access = bench.runtime.block_on(bench.cluster.user("blind", &[]));
    let (_home, agent) = started(&access, "1s", "60s");
    unreadable_because(&agent, "the verb `list` on the resource `pods`");
    let access = bench
        .runtime
        .block_on(bench.cluster.user("deaf", &[agents_rule(&["list"])]));
    let (_home, agent) = started(&access, "1s", "60s");
    agent.status_when("warned", AT_MOST, |status| {
        status["warnings"]
            .to_string()
            .contains("the verb `watch` on the resource `pods`")
    });
    agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
}

fn no_cluster() {
    let home = Home::new(
        "[general]\ninactivity_timeout = \"2s\"\ncheck_interval = \"1s\"\ngrace_period = \"1s\"\n\
         [activity_detection]\ncheck_cpu = false\ncheck_network = false\ncheck_ssh_sessions = false\n\
         [kubernetes]\napi = \"off\"\n",
    );
    let agent = home.start();
    agent.status_when("asleep, as far as a dry run goes", AT_MOST, |status| {
        status["suspends"].as_u64() > Some(0) && status["signals"].to_string().contains("not_configured")
    });
}

fn hangs(bench: &Bench) {
    bench.fake().hang(true);
    let (_home, agent) = bench.agent("1s", "1s");
    unreadable_because(&agent, "has not answered within 5 s");
    assert_eq!(agent.status()["suspends"], 0);
}

fn trickles(bench: &Bench) {
    bench.fake().trickle(true);
    let (_home, agent) = bench.agent("1s", "1s");
    unreadable_because(&agent, "has not answered within 5 s");
    assert_eq!(agent.status()["suspends"], 0);
}

fn is_gone(bench: &Bench) {
    let (_home, agent) = bench.agent("1s", "10m");
    agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
    bench.fake().refuse();
    unreadable_because(&agent, "cannot be reached");
    assert_eq!(agent.status()["state"], "active");
    bench.fake().accept();
    agent.status_when("in the grace period again", AT_MOST, |status| {
        status["state"] == "grace"
    });
}

fn token_replaced(bench: &Bench) {
    let (_home, agent) = bench.agent("1s", "10m");
    agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
    let access = fs::read_to_string(bench.cluster.kubeconfig()).unwrap();
    let access = access.replace(bench.fake().token(), "the-second-token");
    fs::write(bench.cluster.kubeconfig(), access).unwrap();
    bench.fake().accept_only("the-second-token");
    let (lists, _) = bench.lists_and_watches();
    eventually("some lists later", AT_MOST, || {
        let (now, _) = bench.lists_and_watches();
        (now > lists + 5).then_some(()).ok_or_else(|| format!("{now} lists"))
    });
    let status = agent.status();
    assert_eq!(status["state"], "grace", "{}", agent.log());
}

fn token_refused(bench: &Bench) {
    let (_home, agent) = bench.agent("1s", "1s");
    bench.fake().reject_tokens(true);
    unreadable_because(&agent, "does not accept the credentials (401");
    bench.fake().reject_tokens(false);
    agent.status_when("asleep, as far as a dry run goes", AT_MOST, |status| {
        status["suspends"].as_u64() > Some(0)
    });
}

fn watches_expire(bench: &Bench) {
    let (_home, agent) = bench.agent("20s", "10m");
    agent.status_when("in the grace period", 2 * AT_MOST, |status| status["state"] == "grace");
    eventually("watching", AT_MOST, || match bench.lists_and_watches() {
        (_, 0) => Err("no watch".into()),
        (_, _) => Ok(()),
    });
    bench.fake().end_watches();
    bench.fake().expire_watches();
    bench.fake().compact();
    bench.create(pod("web"));
    let status = agent.status_when("awake", AT_MOST, |status| status["state"] == "active");
    assert!(words(&status).contains("pod default/web is running"), "{status}");
}

fn requests_are_bounded(bench: &Bench) {
    let (_home, agent) = bench.agent("1s", "10m");
    agent.status_when("in the grace period", AT_MOST, |status| status["state"] == "grace");
    let (lists_before, watches_before) = bench.lists_and_watches();
    let checks = 10;
    thread::sleep(checks * SECOND);
    let (lists, watches) = bench.lists_and_watches();
    let (lists, watches) = (lists - lists_before, watches - watches_before);
    // A check each second, and as much again for a machine that is busy.
    assert!(
        (2..=usize::try_from(checks).unwrap() + 2).contains(&lists),
        "{lists} lists"
    );
    assert!(watches <= 2, "{watches} watches");
    drop(agent);
}
