use std::{future::ready, path::Path};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use vmstation_protocol::{MacAddr, Transport, WakeOutcome};

use super::*;
use crate::wake::Sent;

/// When a test hangs.
const LIMIT: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_hours(1);

/// Everything is sent, nobody answers.
struct Silent;

impl Air for Silent {
    fn send<'a>(&'a self, _node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        let sent = Sent {
            transport: Transport::Raw,
            interface: None,
            packets: 1,
            note: None,
        };
        Box::pin(ready(Ok(sent)))
    }

    fn answers(&self, _node: &Node) -> mpsc::Receiver<MacAddr> {
        mpsc::channel(1).1
    }
}

fn hub(folder: &Path, registry: &str) -> Arc<Hub> {
    Hub::new(Parts {
        registry_files: Vec::new(),
        registry: Registry::parse(registry, Path::new("nodes.toml")).unwrap(),
        wake: WakeSettings {
            deadline: 2 * NEVER,
            stagger: NEVER,
            resend: vec![Duration::ZERO, NEVER],
            ..WakeSettings::default()
        },
        sleep: SleepSettings::default(),
        kubernetes: None,
        lan: Arc::new(Silent),
        store: Arc::new(Store::new(folder)),
        metrics: Arc::new(Metrics::new()),
        notifier: Notifier::default(),
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(async { timeout(LIMIT, test).await.expect("the test hangs") });
}

#[test]
fn w9_calling_off_ends_every_wake_of_all() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let registry = (1..4).map(|n| format!("[[node]]\nname = \"n{n}\"\nmac = \"02:00:00:00:00:0{n}\"\n"));
        let hub = hub(folder.path(), &registry.collect::<String>());
        assert!(matches!(hub.cancel_all(), Err(Refusal::NothingToCancel)));
        let [earlier, later] = [hub.wake_all(true, None), hub.wake_all(true, None)];
        let mut progress = earlier.progress();
        progress
            .wait_for(|(document, _)| document.nodes.len() == 1)
            .await
            .unwrap();
        assert_eq!(hub.cancel_all().unwrap().wakes, 1, "the others wait for their turn");
        // The later one has not had its turn yet.
        for (all, begun) in [(earlier, &[("n1", WakeOutcome::Cancelled)][..]), (later, &[])] {
            let mut progress = all.progress();
            let (document, _) = progress.wait_for(|(_, is_over)| *is_over).await.unwrap().clone();
            let woken = document.nodes.iter().map(|wake| (wake.node.as_str(), wake.outcome));
            assert_eq!(woken.collect::<Vec<_>>(), begun);
        }
        assert!(matches!(hub.cancel_all(), Err(Refusal::NothingToCancel)));
    });
}

#[test]
fn a_node_is_of_the_group_that_the_registry_says() {
    let folder = tempfile::tempdir().unwrap();
    let registry = "[[node]]\nname = \"a\"\ngroup = \"ceph\"\n[[node]]\nname = \"b\"\n";
    let hub = hub(folder.path(), registry);
    let group = |name: &str| hub.known().facts(&name.parse().unwrap(), &hub.sleep, at()).group;
    assert_eq!((group("a"), group("b"), group("c")), (Some("ceph".into()), None, None));
}
