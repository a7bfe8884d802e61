//! What is asked for by the page, and what comes of it.

use std::{sync::atomic::AtomicBool, thread};

use anyhow::{Result, ensure};

use crate::{
    card::listens,
    lan::WORKERS,
    said_after,
    server::TOKEN,
    silent,
    stage::{PATIENCE, Stage, asleep, report},
    wait::wait_until,
};

/// U+E004 and U+E007, the tabulator and the Enter key of WebDriver.
const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';

/// Ends a listener, also when the trial fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Worker-01 sleeps, `act` wakes it, and its agent reports; what the page says, and the frames that its card heard.
fn woken_by(stage: &Stage, act: impl FnOnce() -> Result<()>) -> Result<(String, usize)> {
    let life = stage.life();
    stage.report("worker-01", life, "sleeping", &[])?;
    let worker = asleep();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stops = OnDrop(&over);
        let heard = scope.spawn(|| listens(&worker, WORKERS[0], "192.0.2.11", 1, &over));
        let said = said_after(stage, || {
            act()?;
            let answers = wait_until(PATIENCE, || {
                let wake = &stage.master.node("worker-01")["last_wake"];
                wake["outcome"] == "waking" && wake["stages"].as_array().is_some_and(|stages| stages.len() == 2)
            });
            ensure!(answers, "its card does not answer: {}", stage.master.log());
            stage.report("worker-01", life + 1, "busy", &["woken by the page"])
        });
        drop(stops);
        let heard = heard.join().unwrap();
        stage.life();
        Ok((said?, heard))
    })
}

pub(crate) fn with_a_token(stage: &mut Stage) -> Result<()> {
    stage.browser.type_into("#token", TOKEN)?;
    stage.browser.run("window.stays = true")?;
    let (said, heard) = woken_by(stage, || stage.browser.click("#wake-worker-01"))?;
    ensure!(said == "worker-01: awake: its agent reports", "{said}");
    ensure!(heard > 0, "no frame on the wire");
    // The page tells it without being loaded again.
    stage.comes("window.stays && document.querySelector('#node-worker-01 li')?.textContent === 'woken by the page'")?;
    stage.comes("document.querySelector('#wakes tbody tr').innerText.includes('agent reports')")?;
    silent(stage)
}

pub(crate) fn without_the_token(stage: &mut Stage) -> Result<()> {
    let wake = || stage.browser.click("#wake-worker-02");
    let before = stage.master.node("worker-02");
    let said = said_after(stage, wake)?;
    ensure!(said == "Enter the token first.", "{said}");
    silent(stage)?;

    stage.browser.type_into("#token", "wrong")?;
    let said = said_after(stage, wake)?;
    ensure!(said.starts_with("worker-02: ") && said.contains("token"), "{said}");
    let failed = stage
        .browser
        .run("return [document.getElementById('result').className, document.activeElement.id]")?;
    ensure!(failed == serde_json::json!(["failed", "token"]), "{failed}");
    ensure!(
        stage.master.node("worker-02")["last_wake"] == before["last_wake"],
        "it was woken"
    );
    // The browser itself tells of the refusal, and nothing else is told.
    let console = stage.browser.console()?;
    ensure!(console.len() == 1 && console[0].contains("401"), "{console:?}");
    Ok(())
}

pub(crate) fn sleep(stage: &mut Stage) -> Result<()> {
    let taken = stage.try_report("worker-01", &report("worker-01", stage.life(), "quiet", &[]))?;
    let newest = taken.json()["newest"].clone();
    stage.browser.type_into("#token", TOKEN)?;
    let stage = &*stage;
    thread::scope(|scope| {
        let path = format!("/v1/nodes/worker-01/orders?after={newest}");
        let held = scope.spawn(move || stage.as_agent("worker-01", &[], &path));
        let said = said_after(stage, || stage.browser.click("#sleep-worker-01"))?;
        ensure!(said.starts_with("worker-01: ordered to sleep"), "{said}");
        let orders = held.join().unwrap()?.json();
        ensure!(orders["orders"][0]["order"] == "sleep", "{orders}");
        silent(stage)
    })
}

pub(crate) fn keyboard(stage: &mut Stage) -> Result<()> {
    stage.browser.type_into("#token", TOKEN)?;
    let focus = || stage.browser.run("return document.activeElement.id");
    let controls = stage
        .browser
        .run("return document.querySelectorAll('a, button, input, [tabindex]').length")?;
    for _ in 0..controls.as_u64().unwrap_or_default() {
        if focus()? == "wake-worker-01" {
            break;
        }
        stage.browser.press(TAB)?;
    }
    ensure!(focus()? == "wake-worker-01", "no tabulator leads to the button");
    let (said, heard) = woken_by(stage, || stage.browser.press(ENTER))?;
    ensure!(said.contains("awake") && heard > 0, "{said}, {heard} frames");
    stage.comes("document.querySelector('#node-worker-01 li')?.textContent === 'woken by the page'")?;
    ensure!(focus()? == "wake-worker-01", "the focus is elsewhere");
    silent(stage)
}
