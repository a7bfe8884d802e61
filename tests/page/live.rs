//! What changes on the page while it is open.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    silent,
    stage::{Stage, report},
};

const KEPT: &str = "return [window.stays, window.row === document.getElementById('node-worker-01'), scrollY,
    document.activeElement.id, document.activeElement.value, document.activeElement.selectionStart]";

pub(crate) fn follows(stage: &mut Stage) -> Result<()> {
    stage.report("worker-01", stage.life(), "busy", &["before"])?;
    stage.comes("document.querySelector('#node-worker-01 li')?.textContent === 'before'")?;
    stage.browser.resize(1280, 300)?;
    stage.browser.type_into("#token", "half a tok")?;
    stage.browser.run(
        "window.stays = true;
         window.row = document.getElementById('node-worker-01');
         scrollTo(0, 40);
         document.activeElement.setSelectionRange(3, 5);",
    )?;
    let before = stage.browser.run(KEPT)?;
    ensure!(before == json!([true, true, 40, "token", "half a tok", 3]), "{before}");

    // What keeps it awake, its state, and nodes before and after it.
    stage.browser.run(
        "window.told = '';
         const news = new EventSource('/events');
         news.onopen = () => { window.hears = true; };
         news.addEventListener('node', (event) => { window.told += event.data; });
         window.addEventListener('pagehide', () => news.close());",
    )?;
    stage.comes("window.hears")?;
    stage.report("worker-01", stage.life(), "busy", &["a build", "2 SSH sessions"])?;
    stage.comes("window.told.includes('a build')")?;
    stage.comes("document.querySelectorAll('#node-worker-01 li').length === 2")?;
    let mut sleepy = report("worker-01", stage.life(), "going_to_sleep", &[]);
    sleepy["activity"] = json!({"is": "going_to_sleep", "in_s": 60});
    ensure!(stage.try_report("worker-01", &sleepy)?.status == 200);
    stage.comes("document.querySelector('#node-worker-01 .state').textContent === 'going to sleep'")?;
    for node in ["a-first", "z-last"] {
        stage.report(node, stage.life(), "busy", &["is there"])?;
        stage.comes(&format!(
            "document.querySelector('#node-{node} .act')?.checkVisibility()"
        ))?;
    }
    let order = stage
        .browser
        .run("return [...document.querySelectorAll('#now tbody tr')].map((row) => row.id)")?;
    let order: Vec<String> = serde_json::from_value(order)?;
    ensure!(order.is_sorted() && order.len() >= 4, "{order:?}");
    let after = stage.browser.run(KEPT)?;
    // What came above moves what is seen, and the browser holds that still.
    ensure!(after == before, "{before} became {after}");
    silent(stage)
}

pub(crate) fn reconnects(stage: &mut Stage) -> Result<()> {
    let mark = |text: &str| format!("document.getElementById('live').textContent === '{text}'");
    stage.browser.run("window.stays = true")?;
    stage.comes(&mark("live"))?;
    stage.master.kill();
    stage.comes(&mark("not connected"))?;
    stage.master.start();
    stage.report("worker-01", stage.life(), "busy", &["after a restart"])?;
    stage.comes(&mark("live"))?;
    stage.comes("window.stays && document.querySelector('#node-worker-01 li')?.textContent === 'after a restart'")?;
    // A browser tells of a server that is gone.
    stage.browser.console().map(drop)
}
