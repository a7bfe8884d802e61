//! The status page in a browser: the real wake server on a master in a network namespace, and Debian's Chromium, headless, on its
//! loopback. Pictures of the page are left in cargo's folder for tests.
//!
//! Needs root. No packet leaves the namespaces, and they end with this process. Without Chromium and its driver (packages chromium,
//! chromium-driver) the trials are listed as ignored.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "page/browser.rs"]
mod browser;
#[path = "wake/card.rs"]
mod card;
#[expect(dead_code, reason = "the suite of the packets uses more of it")]
#[path = "wire/lan.rs"]
mod lan;
#[path = "page/live.rs"]
mod live;
#[path = "page/look.rs"]
mod look;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/netns.rs"]
mod netns;
#[path = "page/orders.rs"]
mod orders;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "wake/server.rs"]
mod server;
#[path = "page/stage.rs"]
mod stage;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/wait.rs"]
mod wait;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use stage::{Stage, URL};

type Body = fn(&mut Stage) -> Result<()>;

const TRIALS: [(&str, Body); 9] = [
    ("page_is_readable_dark_and_light_wide_and_narrow", look::pictures),
    ("page_is_readable_without_a_script", look::without_a_script),
    ("a6_w14_injected_markup_stays_text", look::injected_markup),
    ("a6_w14_a_wake_click_with_a_token_wakes", orders::with_a_token),
    (
        "a6_w14_a_wake_click_without_the_token_is_refused",
        orders::without_the_token,
    ),
    ("a_sleep_click_orders_the_agent", orders::sleep),
    ("keyboard_wakes_and_keeps_its_place", orders::keyboard),
    ("page_follows_what_happens", live::follows),
    ("page_says_when_the_server_is_gone", live::reconnects),
];

/// One stage for all trials, from the first that needs it.
type Shared = Arc<Mutex<Option<Stage>>>;

fn main() -> ExitCode {
    let missing = missing();
    if missing.is_none() {
        // The switch of all hosts.
        netns::enter();
        netns::no_ipv6();
    }
    let shared = Shared::default();
    let trials = TRIALS.map(|(name, body)| {
        let shared = Arc::clone(&shared);
        let trial = Trial::test(name, move || on(&shared, body));
        match missing {
            None => trial,
            Some(what) => trial.with_kind(format!("needs {what}")).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    let tools = ["/usr/sbin/ip", "/usr/bin/curl"];
    browser::missing().or_else(|| tools.into_iter().find(|tool| !std::path::Path::new(tool).exists()))
}

fn on(shared: &Shared, body: Body) -> Result<(), Failed> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut run = || -> Result<()> {
        let stage = match &mut *shared {
            Some(stage) => stage,
            none => none.insert(Stage::new()?),
        };
        stage.browser.resize(1280, 900)?;
        stage.browser.go(URL)?;
        stage.browser.run("sessionStorage.clear()")?;
        stage.browser.go(URL)?;
        stage.browser.console()?;
        body(stage)
    };
    let ran = run();
    // What a failed trial leaves behind is not for the next one.
    if ran.is_err() && shared.take().is_some() {
        netns::ip("link delete lan");
    }
    ran.map_err(|error| Failed::from(format!("{error:#}")))
}

/// What the page says once `act` is answered.
fn said_after(stage: &Stage, act: impl FnOnce() -> Result<()>) -> Result<String> {
    stage
        .browser
        .run("document.getElementById('result').textContent = ''")?;
    act()?;
    stage.comes("!/^$| \\.\\.$/.test(document.getElementById('result').textContent)")?;
    let said = stage
        .browser
        .run("return document.getElementById('result').textContent")?;
    Ok(said.as_str().unwrap_or_default().to_owned())
}

/// Neither the page nor the browser complained.
fn silent(stage: &Stage) -> Result<()> {
    let console = stage.browser.console()?;
    ensure!(console.is_empty(), "{console:?}");
    Ok(())
}
