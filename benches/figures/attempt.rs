//! What the agent adds between the decision to sleep and the order to suspend: real attempts by its executor on a node that is a folder,
//! with a logind that suspends nothing, on a message bus of their own. Beside it, in the same round, the least that anybody needs: a
//! connection to that bus and the order alone.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime;
use vmstation_agent::{clock::BootTime, suspend::Logind};

use crate::{
    fake_login1::{Bus, Machine, Script, missing},
    figure::{Figure, Goal},
    measure::{column, estimate, interleaved, nanos},
    node::Node,
};

const ROUNDS: usize = 200;
const NOTE: &str =
    "no hooks, no network card, dirty data not counted; the driver's reading of the counters is `one check`";

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    ensure!(!missing(), "needs dbus-daemon");
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (bus, machine) = (Bus::start(), Arc::<Machine>::default());
    let _served = runtime.block_on(bus.logind(Script::Sleeps, &machine));
    let address = bus.address();
    let mut windows = Vec::with_capacity(ROUNDS);
    let mut failure = None;
    let rounds = interleaved::<2>(ROUNDS, |variant| {
        let measured = runtime.block_on(async {
            if variant == 0 {
                let (own, window) = attempt(&address).await?;
                windows.push([window]);
                Ok(own)
            } else {
                order(&address).await
            }
        });
        measured.unwrap_or_else(|error: anyhow::Error| {
            failure.get_or_insert(error);
            0.0
        })
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let figure = |what, unit, estimate| Figure::new("attempt", what, unit, estimate);
    Ok(vec![
        figure(
            "decision to order, the agent's own time",
            "us",
            estimate(&rounds, column(0)),
        )
        .with_goal(Goal::AtMost(100_000.0))
        .with_note(NOTE),
        figure("a connection and the order alone", "us", estimate(&rounds, column(1))),
        figure(
            "agent / connection and order alone",
            "",
            estimate(&rounds, |rounds| column(0)(rounds) / column(1)(rounds)),
        ),
        figure(
            "last reading of the counters to order",
            "us",
            estimate(&windows, column(0)),
        )
        .with_note(
            "the window in which activity is not in that reading; the kernel's wakeup count and the veto cover it",
        ),
    ])
}

/// Microseconds of an attempt's own time, and of its window.
async fn attempt(bus: &str) -> Result<(f64, f64)> {
    let node = Node::new();
    let report = node.attempt(bus, node.settings()).await;
    let window = report.window.context("the attempt did not come to the order")?;
    Ok((micros(report.own_time()), micros(window)))
}

/// Microseconds of the order by somebody who asks nobody.
async fn order(bus: &str) -> Result<f64> {
    let begun = BootTime::now();
    let logind = Logind::connect_to(bus).await?;
    logind.suspend().await?;
    Ok(micros(BootTime::now().since(begun)))
}

fn micros(time: Duration) -> f64 {
    nanos(time) / 1000.0
}
