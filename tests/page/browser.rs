//! Debian's Chromium, driven over WebDriver (W3C) on the loopback of a host. Ends with its value.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lan::Host;

const DRIVER: &str = "/usr/bin/chromedriver";
const CHROMIUM: &str = "/usr/bin/chromium";
/// No single step takes longer, a start on a loaded machine included.
const DEADLINE: Duration = Duration::from_secs(60);
/// Key of an element's reference: WebDriver, 12.2.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one empty profile.
pub(crate) struct Browser {
    driver: Child,
    /// The network that it is in.
    network: File,
    port: u16,
    session: String,
    process: Option<i32>,
    _profile: TempDir,
}

/// What is missing to run one.
pub(crate) fn missing() -> Option<&'static str> {
    [DRIVER, CHROMIUM]
        .into_iter()
        .find(|program| !Path::new(program).exists())
}

impl Browser {
    /// On this host.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        let network = host.run(|| File::open("/proc/thread-self/ns/net"))?;
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(DRIVER);
        command.arg("--port=0").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = host.run(|| command.spawn()).context("cannot start chromedriver")?;
        let port = port_of(&mut driver);
        let mut browser = Self {
            driver,
            network,
            port: 0,
            session: String::new(),
            process: None,
            _profile: profile,
        };
        browser.port = port?;
        browser.open()?;
        Ok(browser)
    }

    fn open(&mut self) -> Result<()> {
        let profile = format!("--user-data-dir={}", self._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--window-size=1200,1700",
            &profile,
        ];
        let session = self.call(
            "POST",
            "",
            &json!({"capabilities": {"alwaysMatch": {
                "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }}}),
        )?;
        self.process = session["capabilities"]["goog:processID"]
            .as_i64()
            .and_then(|process| process.try_into().ok());
        let id = session["sessionId"].as_str().context("a session without a name")?;
        self.session = format!("/{id}");
        Ok(())
    }

    pub(crate) fn go(&self, url: &str) -> Result<()> {
        self.call("POST", "/url", &json!({ "url": url })).map(drop)
    }

    /// Runs a function body in the page.
    pub(crate) fn run(&self, script: &str) -> Result<Value> {
        self.call("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Runs a function body in the page with one argument, and a second one that takes the result.
    pub(crate) fn run_until_told(&self, script: &str, argument: &Value) -> Result<Value> {
        self.call("POST", "/execute/async", &json!({"script": script, "args": [argument]}))
    }

    /// A command of the DevTools protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Result<()> {
        self.call(
            "POST",
            "/goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        )
        .map(drop)
    }

    pub(crate) fn click(&self, selector: &str) -> Result<()> {
        let element = self.element(selector)?;
        self.call("POST", &format!("/element/{element}/click"), &json!({}))
            .map(drop)
    }

    pub(crate) fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.element(selector)?;
        self.call("POST", &format!("/element/{element}/value"), &json!({ "text": text }))
            .map(drop)
    }

    /// Presses a key (WebDriver, 17.4.2) wherever the focus is.
    pub(crate) fn press(&self, key: char) -> Result<()> {
        let keys = json!({"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key},
        ]});
        self.call("POST", "/actions", &json!({ "actions": [keys] })).map(drop)
    }

    /// A window of this size, CSS pixels.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size)
    }

    pub(crate) fn is_shown(&self, selector: &str) -> Result<bool> {
        let element = self.element(selector)?;
        let shown = self.call("GET", &format!("/element/{element}/displayed"), &Value::Null)?;
        shown.as_bool().context("neither shown nor hidden")
    }

    /// What the page and the browser said on the console since the last question.
    pub(crate) fn console(&self) -> Result<Vec<String>> {
        let entries = self.call("POST", "/se/log", &json!({"type": "browser"}))?;
        let entries = entries.as_array().context("no list of entries")?;
        Ok(entries.iter().map(|entry| entry["message"].to_string()).collect())
    }

    /// What is seen, as PNG in base64.
    pub(crate) fn screenshot(&self) -> Result<String> {
        let picture = self.call("GET", "/screenshot", &Value::Null)?;
        picture.as_str().map(str::to_owned).context("no picture")
    }

    fn element(&self, selector: &str) -> Result<String> {
        let element = self.call("POST", "/element", &json!({"using": "css selector", "value": selector}))?;
        element[ELEMENT].as_str().map(str::to_owned).context("no element")
    }

    fn connect(&self) -> Result<TcpStream> {
        let on_host = || {
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect(("127.0.0.1", self.port))
        };
        let connected: io::Result<TcpStream> = thread::scope(|scope| scope.spawn(on_host).join())
            .map_err(|_panic| anyhow::anyhow!("the connection to chromedriver panicked"))?;
        connected.context("cannot connect to chromedriver")
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let path = format!("/session{}{path}", self.session);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(
                answer.read_line(&mut line)? > 0,
                "{method} {path}: an answer without an end"
            );
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        answer
            .read_exact(&mut body)
            .with_context(|| format!("{method} {path}"))?;
        let mut body: Value = serde_json::from_slice(&body)?;
        let value = body["value"].take();
        if value["error"].is_string() {
            bail!("{method} {path}: {}: {}", value["error"], value["message"]);
        }
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty()
            && self.call("DELETE", "", &Value::Null).is_err()
            && let Some(process) = self.process
        {
            let _gone = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        let _gone = self.driver.kill();
        let _gone = self.driver.wait();
    }
}

/// Where the driver listens, as it says.
fn port_of(driver: &mut Child) -> Result<u16> {
    let output = driver.stdout.take().context("no output of chromedriver")?;
    for line in BufReader::new(output).lines() {
        if let Some((_, port)) = line?.split_once("on port ")
            && let Ok(port) = port.trim_end_matches('.').parse()
            && port != 0
        {
            return Ok(port);
        }
    }
    bail!("chromedriver ended without a word about its port")
}

/// RFC 4648, 4, as the driver writes it: padded, in one line.
pub(crate) fn from_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{letter:#x} is not of base64"),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(bytes)
}
