//! What is seen of the page.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    browser::from_base64,
    silent,
    stage::{Stage, URL, report},
};

const ATTACK: &str = "<script>window.attacked = 1</script><img src=x onerror=\"window.attacked = 2\">\"'>&lt;b&gt;";

/// Width, height and colours of a picture.
const MEASURED: &str = "const picture = new Image();
    picture.onerror = () => arguments[1]('no picture');
    picture.onload = () => {
      const canvas = document.createElement('canvas');
      canvas.width = picture.width;
      canvas.height = picture.height;
      const context = canvas.getContext('2d');
      context.drawImage(picture, 0, 0);
      const pixels = new Uint32Array(context.getImageData(0, 0, picture.width, picture.height).data.buffer);
      arguments[1]([picture.width, picture.height, new Set(pixels).size]);
    };
    picture.src = 'data:image/png;base64,' + arguments[0];";

/// Texts with less contrast than 4.5 : 1 (WCAG 2.2, 1.4.3, with its relative luminance).
const FAINT: &str = "const light = (colour) => {
      const [r, g, b] = colour.match(/[0-9.]+/g).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (at) => {
      const colour = getComputedStyle(at).backgroundColor;
      return colour.endsWith(', 0)') ? ground(at.parentElement) : colour;
    };
    const faint = [];
    for (const at of document.body.querySelectorAll('*')) {
      const says = [...at.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
      if (!says || at.disabled || !at.checkVisibility() || at.closest('svg, script')) { continue; }
      const [dark, bright] = [getComputedStyle(at).color, ground(at)].map(light).sort((a, b) => a - b);
      const contrast = (bright + 0.05) / (dark + 0.05);
      if (contrast < 4.5) { faint.push(at.textContent + ': ' + contrast); }
    }
    return faint;";

pub(crate) fn pictures(stage: &mut Stage) -> Result<()> {
    let long = "pod default/a-name-without-any-room-to-break-".to_owned() + &"x".repeat(120);
    stage.report("worker-01", stage.life(), "busy", &["2 SSH sessions", &long])?;
    stage.report("storage-01", stage.life(), "quiet", &[])?;
    stage.report("worker-03", stage.life(), "sleeping", &[])?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        stage.browser.devtools("Emulation.setEmulatedMedia", &features)?;
        for width in [1280, 400] {
            stage.browser.resize(width, 2400)?;
            stage.browser.go(URL)?;
            stage.comes("document.getElementById('live').textContent === 'live'")?;
            let picture = stage.browser.screenshot()?;
            fs::write(
                folder.join(format!("page-{scheme}-{width}.png")),
                from_base64(&picture)?,
            )?;
            let measured = stage.browser.run_until_told(MEASURED, &picture.into())?;
            ensure!(measured[0] == width && measured[1] == 2400, "{measured}");
            ensure!(measured[2].as_u64() > Some(20), "a blank page: {measured} colours");
            let wide = stage
                .browser
                .run("return document.documentElement.scrollWidth - innerWidth")?;
            ensure!(wide.as_i64() <= Some(0), "{width}: {wide} pixels too wide");
            let faint = stage.browser.run(FAINT)?;
            ensure!(faint == json!([]), "{scheme}: {faint}");
            for shown in ["table", "svg", "#wake-worker-01", "#token", "#live", ".axis"] {
                ensure!(stage.browser.is_shown(shown)?, "{shown} is not shown at {width}");
            }
        }
        grounds.push(
            stage
                .browser
                .run("return getComputedStyle(document.body).backgroundColor")?,
        );
    }
    let features = json!({"features": []});
    stage.browser.devtools("Emulation.setEmulatedMedia", &features)?;
    ensure!(grounds == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"], "{grounds:?}");
    silent(stage)
}

pub(crate) fn without_a_script(stage: &mut Stage) -> Result<()> {
    stage.report("worker-01", stage.life(), "busy", &["2 SSH sessions"])?;
    let browser = &stage.browser;
    browser.devtools("Emulation.setScriptExecutionDisabled", &json!({"value": true}))?;
    let gone = browser.go(URL);
    browser.devtools("Emulation.setScriptExecutionDisabled", &json!({"value": false}))?;
    gone?;
    for hidden in ["#wake-worker-01", "#sleep-worker-01", "#token", "#live"] {
        ensure!(!browser.is_shown(hidden)?, "{hidden} is shown");
    }
    let text = browser.run("return document.body.innerText")?;
    let text = text.as_str().context("no text")?;
    for told in [
        "worker-01",
        "2 SSH sessions",
        "awake after 6.2 s",
        "The last 7 days",
        "UTC",
    ] {
        ensure!(text.contains(told), "{told}: {text}");
    }
    Ok(())
}

pub(crate) fn injected_markup(stage: &mut Stage) -> Result<()> {
    let life = stage.life();
    // A name, a role and a card of such words are not taken at all.
    let mut wrong = [(); 3].map(|()| report("worker-01", life, "busy", &[]));
    wrong[0]["node"] = ATTACK.into();
    wrong[1]["role"] = ATTACK.into();
    wrong[2]["ports"] = json!([{"interface": "lan0", "mac": ATTACK, "waking": "armed"}]);
    for report in &wrong {
        let answer = stage.try_report("worker-01", report)?;
        ensure!((400..500).contains(&answer.status), "{report}: {answer:?}");
    }
    let path = "/v1/nodes/%3Cscript%3Ewindow.attacked=3%3C%2Fscript%3E/report";
    let answer = stage.as_agent("worker-01", &["-X", "POST", "--data", "{}"], path)?;
    ensure!((400..500).contains(&answer.status), "{answer:?}");

    // All that is free text, in the page that is loaded, and in the one that follows.
    let mut hostile = report("worker-01", life, "busy", &[ATTACK]);
    hostile["boot_id"] = ATTACK.into();
    hostile["version"] = ATTACK.into();
    hostile["ports"] = json!([{"interface": ATTACK, "mac": "02:00:00:00:01:01", "waking": "armed"}]);
    for node in ["worker-01", "worker-02"] {
        hostile["node"] = node.into();
        let answer = stage.try_report(node, &hostile)?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    stage.comes("document.querySelector('#node-worker-01 li bdi')?.textContent.startsWith('<script>')")?;
    for loaded in ["followed", "loaded"] {
        let seen = stage.browser.run(
            "return [typeof window.attacked, document.scripts.length, document.images.length,
             document.querySelector('#node-worker-01 li').textContent]",
        )?;
        ensure!(seen == json!(["undefined", 1, 0, ATTACK]), "{loaded}: {seen}");
        silent(stage)?;
        stage.browser.go(URL)?;
    }
    let mut plain = report("worker-02", life, "busy", &[]);
    plain["ports"] = json!([]);
    stage.try_report("worker-02", &plain)?;
    Ok(())
}
