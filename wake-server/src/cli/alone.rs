//! Wakes without the server, which does not answer: by the registry of this host, through its own networks. Says what the server would
//! say, but for what only agents' reports could prove.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{runtime::Builder, sync::watch};
use vmstation_protocol::{Stage, WakeAllDocument};

use super::{Target, Wanted};
use crate::{
    clock::wall_clock,
    config::{Overrides, Settings, WakeSettings},
    lan::Lan,
    registry::{Node, Registry},
    wake::WakePlan,
    waker::{self, Air, Begun, Pace},
};

/// Wakes what is wanted; `verify`: waits until its cards answer.
///
/// # Errors
/// What this host's configuration or registry lacks.
pub fn alone(wanted: &Wanted, verify: bool) -> Result<WakeAllDocument, String> {
    let settings = Settings::load(None, Overrides::default()).map_err(|error| error.to_string())?;
    let registry = Registry::load(&settings.registry).map_err(|error| error.to_string())?;
    let nodes = chosen(&registry, wanted)?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let woken = runtime.block_on(wake(nodes, &settings.wake, verify));
    // A route look-up that does not answer holds nobody up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(woken)
}

async fn wake(nodes: Vec<Node>, settings: &WakeSettings, verify: bool) -> WakeAllDocument {
    let lan: Arc<dyn Air> = Arc::new(Lan::new(&settings.udp_ports));
    let (resend, deadline) = (settings.resend.clone(), settings.deadline);
    let handle = waker::wake_all(nodes, Pace::new(settings.stagger), verify, move |node| {
        let answers = matches!(node.address, Some(IpAddr::V4(_)));
        let plan = WakePlan {
            node: node.name.clone(),
            macs: node.macs.clone(),
            resend: resend.clone(),
            deadline,
            verify,
            proof: answers.then_some(Stage::ArpReply),
            ready: false,
            answers,
            before: None,
        };
        let nobody_reports = watch::channel(None).1;
        Begun::Started(waker::start(
            Arc::clone(&lan),
            node.clone(),
            plan,
            wall_clock(),
            nobody_reports,
            |_over| std::future::ready(()),
        ))
    });
    let mut progress = handle.progress();
    // The task ends with its last document.
    let _over = progress.wait_for(|(_, is_over)| *is_over).await.is_ok();
    handle.progress().borrow().0.clone()
}

fn chosen(registry: &Registry, wanted: &Wanted) -> Result<Vec<Node>, String> {
    match wanted {
        Wanted::All => Ok(registry.nodes().cloned().collect()),
        Wanted::Roles(roles) => {
            let nodes = registry.nodes().filter(|node| roles.contains(&node.role));
            Ok(nodes.cloned().collect())
        }
        Wanted::Nodes(targets) => targets.iter().map(|target| one(registry, target)).collect(),
    }
}

fn one(registry: &Registry, target: &Target) -> Result<Node, String> {
    match target {
        Target::Mac(mac) => Ok(registry.by_mac(*mac).cloned().unwrap_or_else(|| Node::bare(*mac))),
        Target::Name(name) => {
            let node = registry.get(name).cloned();
            node.ok_or_else(|| format!("no node {name} is in the registry of this host"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn nodes_are_chosen_as_they_are_named() {
        let registry = "[[node]]\nname = \"m\"\nrole = \"master\"\nmac = \"02:00:00:00:00:01\"\n[[node]]\nname = \"w\"\nmac = \"02:00:00:00:00:02\"\n";
        let registry = Registry::parse(registry, Path::new("nodes.toml")).unwrap();
        let names = |wanted: &Wanted| {
            let chosen = chosen(&registry, wanted)?;
            Ok(chosen.iter().map(|node| node.name.to_string()).collect::<Vec<_>>())
        };
        let nodes = |names: &[&str]| Wanted::Nodes(names.iter().map(|name| name.parse().unwrap()).collect());
        assert_eq!(names(&Wanted::All), Ok(vec!["m".into(), "w".into()]));
        assert_eq!(
            names(&Wanted::Roles(vec![vmstation_protocol::Role::Master])),
            Ok(vec!["m".into()])
        );
        assert_eq!(
            names(&nodes(&["02:00:00:00:00:02", "m"])),
            Ok(vec!["w".into(), "m".into()])
        );
        assert_eq!(
            names(&nodes(&["02:00:00:00:00:09"])),
            Ok(vec!["mac-020000000009".into()])
        );
        assert!(names(&nodes(&["x"])).is_err_and(|why: String| why.contains('x')));
    }
}
