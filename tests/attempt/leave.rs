//! Attempts of a node that has a wake server: without its leave there is no sleep, and what was given is handed back.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use vmstation_agent::{
    attempt::{Ending, Step},
    clock::BootTime,
    config::WakeServer as Settings,
    coordinator::{Coordinator, Grant, Pace},
    journal::Record,
    sleeper::Report,
};

use crate::{
    fake_login1::{Bus, Machine, Script},
    node::{ALL, BOOT, Node, nobody_watches, until},
    run,
    wake_server::WakeServer,
};

const BACK: &str = "delete leave/7";

fn granted(for_s: u64) -> Value {
    json!({"leave": "granted", "grant": 7, "for_s": for_s})
}

fn coordinator(url: String) -> Coordinator {
    let settings = Settings {
        url,
        token_file: None,
        ca_file: None,
    };
    Coordinator::new(Some(&settings), "node1", Pace::default())
}

/// An attempt on a machine that sleeps when it is asked to; and the orders to suspend.
async fn attempt(coordinator: Coordinator) -> (Report, usize, Vec<String>) {
    let bus = Bus::start();
    let machine = Arc::<Machine>::default();
    let _served = bus.logind(Script::Sleeps, &machine).await;
    let mut node = Node::new();
    node.coordinator = coordinator;
    let report = node.attempt(&bus.address(), node.settings()).await;
    node.assert_left_alone(None, "with a wake server");
    let orders = machine.orders.lock().unwrap().len();
    (report, orders, node.told())
}

pub(crate) fn granted_and_handed_back() {
    run(async {
        let server = WakeServer::start(granted(60));
        let (report, orders, _) = attempt(coordinator(server.url())).await;
        // The suspend is ordered, and this machine does not carry it out.
        assert!(matches!(report.ending, Ending::Failed(_)), "{:?}", report.ending);
        assert_eq!(orders, 1);
        assert_eq!(server.heard(), ["post leave", BACK]);
        let body = &server.asked()[0].body;
        assert_eq!(*body, json!({"schema": 1, "reason": "nobody uses the host"}));
    });
}

pub(crate) fn refused() {
    run(async {
        let refusal = json!({"leave": "refused", "reason": "an operator forbids it", "again_in_s": 60});
        let server = WakeServer::start(refusal);
        let (report, orders, hooks) = attempt(coordinator(server.url())).await;
        let Ending::Refused(why) = report.ending else {
            panic!("{:?}", report.ending);
        };
        assert!(why.contains("refuses: an operator forbids it"), "{why}");
        assert_eq!(report.steps.last().unwrap().0, Step::Leave);
        assert_eq!((orders, hooks.len()), (0, 0));
        assert_eq!(server.heard(), ["post leave"], "what was not given is handed back");
    });
}

pub(crate) fn unreachable() {
    run(async {
        let server = WakeServer::start(granted(60));
        let url = server.url();
        drop(server);
        let (report, orders, hooks) = attempt(coordinator(url)).await;
        let Ending::Refused(why) = report.ending else {
            panic!("{:?}", report.ending);
        };
        assert!(why.ends_with("without its leave this node does not sleep"), "{why}");
        assert_eq!((orders, hooks.len()), (0, 0));
    });
}

pub(crate) fn expired() {
    run(async {
        let server = WakeServer::start(granted(0));
        let (report, orders, hooks) = attempt(coordinator(server.url())).await;
        let Ending::Refused(why) = report.ending else {
            panic!("{:?}", report.ending);
        };
        assert!(why.contains("leave to sleep expired"), "{why}");
        assert_eq!(report.steps.last().unwrap().0, Step::Suspend);
        assert_eq!((orders, hooks.len()), (0, 2), "{hooks:?}");
        assert_eq!(server.heard(), ["post leave", BACK]);
    });
}

pub(crate) fn of_an_agent_that_died() {
    run(async {
        let bus = Bus::start();
        let _served = bus.logind(Script::Sleeps, &Arc::default()).await;
        let server = WakeServer::start(Value::Null);
        let mut node = Node::new();
        node.coordinator = coordinator(server.url());
        let record = Record {
            boot_id: BOOT.into(),
            suspended_before: Duration::ZERO,
            plan: ALL,
            step: Step::Sync,
            begun: vec![Step::Leave],
            alarm: None,
            leave: Some(Grant {
                number: 7,
                until: BootTime::now().0,
            }),
        };
        node.journal().write(&record).unwrap();
        let recovery = node.recover(&bus.address(), record, BOOT, &nobody_watches());
        assert_eq!(recovery.ended().await.ending, Ending::Interrupted);
        until(|| server.heard() == [BACK]).await;
        node.assert_left_alone(None, "after a death");
    });
}
