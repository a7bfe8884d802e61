//! The agents' own sensor of pods, as many of them as there are nodes, with the default settings. Its clock is an argument, so that an
//! hour of checks is gone through at once.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::{sync::mpsc, time::sleep};
use vmstation_agent::{
    clock::BootTime,
    config::{Kubernetes, KubernetesApi, Policy},
    pods::{Pods, Report, Watching},
};

use crate::{
    HOUR, Load, NODES, PODS, cluster, crowd,
    figure::Figure,
    kube_fake::{Asked, KubeFake},
    kubeconfig, nodes_in_words, number, single, watch_ends_after,
};

/// So many nodes take long on the fake, which looks at every pod for each list.
const MANY: usize = 1_000;
/// Agents that ask at the same time, where that is not what is looked at: the fake is no match for thousands.
const AT_ONCE: usize = 50;
/// Time between two samples of an agent.
const SAMPLE: Duration = Duration::from_secs(10);
/// Longest wait for what is under way.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long the API server is away, and how long its return is looked at.
const AWAY: Duration = Duration::from_secs(30);
const RETURN: Duration = Duration::from_secs(60);

/// The agents of a cluster.
struct Agents {
    fake: KubeFake,
    sensors: Vec<(Pods, mpsc::Receiver<Report>)>,
    now: BootTime,
    _folder: tempfile::TempDir,
}

/// Lists, watches and what comes back.
pub(crate) async fn idle(figures: &mut Vec<Figure>) -> Result<()> {
    let mut each = Load::default();
    for nodes in NODES {
        let words = nodes_in_words(nodes);
        eprintln!("api_load: agents, {words} ..");
        let mut agents = Agents::start(nodes)?;
        agents.check(Watching::No, SAMPLE).await?;
        // None knows of the others: what those of a hundred do in an hour, those of thousands do.
        if nodes < MANY {
            let first = agents.fake.requests().len();
            agents.check(Watching::No, Duration::from_hours(1)).await?;
            let lists = Load::of(&agents.fake.requests_since(first));
            each = Load {
                requests: lists.requests / number(nodes),
                bytes: lists.bytes / number(nodes),
                objects: lists.objects / number(nodes),
            };
        }
        let listed = each.requests;

        // Quiet: the watches too.
        let first = agents.fake.requests().len();
        agents.check(Watching::Yes, SAMPLE).await?;
        let begun = agents.watches(first, nodes).await?;
        let ends = HOUR / watch_ends_after(&begun[0])?;
        let mut add = |what: &str, unit: &str, value: f64, note: &str| {
            figures.push(single("api-agents", &format!("{words}: {what}"), unit, value).with_note(note));
        };
        let of_all = number(nodes) / HOUR;
        add(
            "in use, requests an hour for a node",
            "",
            listed,
            &format!(
                "a list at each check; {:.0} objects, {:.0} KiB",
                each.objects,
                each.bytes / 1024.0
            ),
        );
        add(
            "quiet, requests an hour for a node",
            "",
            listed + ends,
            &format!("{ends:.1} of them watches begun again"),
        );
        add("in use, requests a second in all", "/s", listed * of_all, "");
        add("quiet, requests a second in all", "/s", (listed + ends) * of_all, "");
        if nodes > 1 {
            let count = agents.fake.requests().len();
            agents.fake.end_watches();
            let after = agents.watches(count, nodes).await?;
            add(
                "API server ends all watches: begun again in the busiest second",
                "",
                busiest(&after),
                "",
            );
            if nodes >= MANY {
                continue;
            }
            agents.fake.refuse();
            sleep(AWAY).await;
            let count = agents.fake.requests().len();
            agents.fake.accept();
            sleep(RETURN).await;
            let after = agents.fake.requests_since(count);
            add(
                "API server away for 30 s: requests in the busiest second after",
                "",
                busiest(&after),
                &format!("{} in the first minute", after.len()),
            );
        }
    }
    Ok(())
}

/// Most requests that came within a second.
fn busiest(asked: &[Asked]) -> f64 {
    const SECOND: Duration = Duration::from_secs(1);
    let within = |from: &Asked| {
        let later = asked.iter().filter(|asked| asked.at >= from.at);
        later.filter(|asked| asked.at.since(from.at) < SECOND).count()
    };
    // In the order in which they came.
    number(asked.iter().map(within).max().unwrap_or_default())
}

impl Agents {
    fn start(nodes: usize) -> Result<Self> {
        let fake = cluster(nodes, if nodes < MANY { PODS } else { 1 });
        let folder = tempfile::tempdir()?;
        let file = kubeconfig(folder.path(), &fake)?;
        let sensor = |number| {
            let policy = Policy {
                kubernetes: Kubernetes {
                    api: KubernetesApi::Kubeconfig(file.clone()),
                    node: Some(crowd::name(number)),
                },
                ..Policy::default()
            };
            let (tell, told) = mpsc::channel(64);
            (Pods::new(&policy, "host", tell), told)
        };
        Ok(Self {
            sensors: (0..nodes).map(sensor).collect(),
            fake,
            now: BootTime::now(),
            _folder: folder,
        })
    }

    /// As so many samples as there are in this time do, each after the answers to the one before.
    async fn check(&mut self, watching: Watching, time: Duration) -> Result<()> {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(SAMPLE);
            for first in (0..self.sensors.len()).step_by(AT_ONCE) {
                for (pods, told) in self.sensors.iter_mut().skip(first).take(AT_ONCE) {
                    pods.check(watching, self.now);
                    while let Ok(report) = told.try_recv() {
                        pods.take(report);
                    }
                }
                self.answered().await?;
            }
        }
        Ok(())
    }

    /// Until every list that was asked for is answered.
    async fn answered(&self) -> Result<()> {
        let began = BootTime::now();
        let mut before = 0;
        loop {
            sleep(LOOK).await;
            let asked = self.fake.requests();
            let is_answered = asked.iter().all(|asked| asked.is_watch() || asked.answered > 0);
            if is_answered && asked.len() == before {
                return Ok(());
            }
            before = asked.len();
            if BootTime::now().since(began) > PATIENCE {
                bail!("lists are not answered");
            }
        }
    }

    /// Until so many watches were begun after the first `count` requests: these.
    async fn watches(&self, count: usize, wanted: usize) -> Result<Vec<Asked>> {
        let began = BootTime::now();
        loop {
            let watches: Vec<_> = self
                .fake
                .requests_since(count)
                .into_iter()
                .filter(Asked::is_watch)
                .collect();
            if watches.len() >= wanted {
                return Ok(watches);
            }
            if BootTime::now().since(began) > PATIENCE {
                return Err(anyhow::anyhow!("{} watches", watches.len())).context("not all watches begin");
            }
            sleep(LOOK).await;
        }
    }
}
