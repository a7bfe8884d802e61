//! The wake server of the real program in a cluster where nothing happens but what kubelets say.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vmstation_agent::clock::BootTime;

use crate::{
    HOUR, Load, PODS, cluster, crowd,
    figure::Figure,
    kube_fake::{Asked, KubeFake},
    kubeconfig, mib, nodes_in_words, number, single, watch_ends_after,
};

/// How long is counted.
const WINDOW: Duration = Duration::from_secs(30);
/// Time between two status updates of a kubelet at rest (`nodeStatusReportFrequency`), seconds.
const STATUS_EVERY: f64 = 300.0;
/// `User-Agent` of the stage.
const STAGE: &str = "trial-kubelet";
/// Pause between two looks at a server that starts or comes to rest.
const LOOK: Duration = Duration::from_millis(250);
/// Looks until that is given up.
const LOOKS: usize = 4_000;
/// Objects that the server wants in a page of a list.
const PAGE: usize = 500;
/// Nodes that sleep, where some do.
const SLEEPERS: usize = 100;

/// It ends when this is dropped.
struct Server {
    child: Child,
    port: u16,
    _folder: TempDir,
}

/// What a process has used until now.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// CPU time of all its threads.
    cpu: Duration,
    /// Bytes.
    resident: f64,
    /// The most that it ever was.
    most: f64,
}

/// Requests, CPU time and memory with so many nodes, all of them awake.
pub(crate) async fn idle(figures: &mut Vec<Figure>, program: &Path, nodes: usize) -> Result<()> {
    let words = nodes_in_words(nodes);
    eprintln!("api_load: wake server, {words} ..");
    let fake = cluster(nodes, PODS);
    let server = Server::start(program, &fake, nodes)?;
    server.follows(&fake).await?;
    let begun = Load::of(&asked(&fake, 0));
    let resident = server.rests().await?.resident;

    // With nothing but itself, and then with what kubelets say all day.
    let count = fake.requests().len();
    let before = server.usage()?;
    sleep(WINDOW).await;
    let alone = share(before, server.usage()?);
    let quiet = asked(&fake, count);
    let (before, told_before) = (server.usage()?, told(&fake));
    let updates = kubelets_speak(&fake, nodes, WINDOW).await?;
    let spoken_to = share(before, server.usage()?);
    let (_, bytes_before) = told_before;
    let (events, bytes) = told(&fake);
    let each = if updates == 0 {
        0.0
    } else {
        (bytes - bytes_before) / number(events - told_before.0)
    };

    // The server ends the watches: what is asked for then is what is asked for at each end.
    let count = fake.requests().len();
    let watches: Vec<_> = asked(&fake, 0).into_iter().filter(Asked::is_watch).collect();
    fake.end_watches();
    sleep(5 * LOOK).await;
    let again: Vec<_> = asked(&fake, count)
        .into_iter()
        .filter(|asked| asked.method == "GET")
        .collect();

    let window = WINDOW.as_secs_f64();
    let leases = Load::of(&quiet);
    let renewals = leases.requests * HOUR / window;
    let ends = HOUR / watch_ends_after(watches.first().context("no watch")?)?;
    let reopened = Load::of(&again).requests * ends;
    let per_hour = renewals + reopened;
    let heard = each * number(nodes) * HOUR / STATUS_EVERY + leases.bytes * HOUR / window;

    let mut add = |what: &str, unit: &str, value: f64, note: &str| {
        figures.push(single("api-server", &format!("{words}: {what}"), unit, value).with_note(note));
    };
    add(
        "requests to begin with",
        "",
        begun.requests,
        &format!("{} objects, {:.1} MiB", begun.objects, mib(begun.bytes)),
    );
    add(
        "requests an hour",
        "",
        per_hour,
        &format!("{renewals:.0} renewals of its own Lease, {reopened:.1} watches begun again"),
    );
    add("the same for a node", "", per_hour / number(nodes), "");
    add(
        "listed in an hour",
        "",
        Load::of(again.iter().filter(|asked| !asked.is_watch())).objects,
        "objects",
    );
    add(
        "told in an hour",
        "MiB",
        mib(heard),
        "what kubelets say every 5 minutes, and answers",
    );
    add("of one CPU, alone", "%", alone, "over 30 s");
    add(
        "of one CPU, with kubelets",
        "%",
        spoken_to,
        &format!("over 30 s, {updates} updates of Nodes"),
    );
    add("resident", "MiB", mib(resident), &format!("{} pods", nodes * PODS));
    Ok(())
}

/// What is asked for about nodes that sleep, and of which this server has heard nothing: it has just taken over.
pub(crate) async fn asleep(figures: &mut Vec<Figure>, program: &Path) -> Result<()> {
    eprintln!("api_load: wake server, {SLEEPERS} sleepers ..");
    let fake = KubeFake::start();
    let sleepers = (0..SLEEPERS).map(|number| {
        let mut node = crowd::node(number);
        sends_to_sleep(&mut node);
        node
    });
    fake.put("/api/v1/nodes", sleepers);
    let server = Server::start(program, &fake, SLEEPERS)?;
    server.follows(&fake).await?;
    server.rests().await?;
    let count = fake.requests().len();
    sleep(WINDOW).await;
    let of_nodes: Vec<_> = asked(&fake, count)
        .into_iter()
        .filter(|asked| asked.method != "PUT" && !asked.is_watch())
        .collect();
    let each = Load::of(&of_nodes).requests * HOUR / WINDOW.as_secs_f64() / number(SLEEPERS);
    figures.push(
        single("api-server", "requests an hour for a node that sleeps", "", each).with_note(&format!(
            "over 30 s, {SLEEPERS} nodes of which the server has heard nothing itself"
        )),
    );
    Ok(())
}

/// What a look at all nodes and pods costs, which pods that find no room bring about.
pub(crate) async fn demand(figures: &mut Vec<Figure>, program: &Path) -> Result<()> {
    const NODES: usize = 5_000;
    eprintln!("api_load: wake server, pods that find no room ..");
    let fake = cluster(NODES, PODS);
    let mut sleeper = crowd::node(NODES);
    sends_to_sleep(&mut sleeper);
    fake.put("/api/v1/nodes", [sleeper]);
    let server = Server::start(program, &fake, NODES)?;
    server.follows(&fake).await?;
    let before = server.rests().await?;
    let count = fake.requests().len();
    let stage = stage(&fake).await?;
    pod_without_room(&stage).await?;
    let is_list = |asked: &Asked| asked.method == "GET" && !asked.is_watch() && asked.path.starts_with("/api/v1/");
    // Those with a node, and the one without.
    let pages = (NODES * PODS + 1).div_ceil(PAGE) + (NODES + 1).div_ceil(PAGE);
    let mut longest = Duration::ZERO;
    let mut look = Vec::new();
    for _ in 0..LOOKS {
        longest = longest.max(server.answers().await?);
        sleep(LOOK / 10).await;
        look = asked(&fake, count);
        look.retain(is_list);
        if look.len() >= pages && look[pages - 1].answered > 0 {
            break;
        }
    }
    ensure!(look.len() >= pages, "{} of {pages} pages were asked for", look.len());
    // What is made of them.
    for _ in 0..20 {
        longest = longest.max(server.answers().await?);
        sleep(LOOK / 10).await;
    }
    let after = server.usage()?;
    let load = Load::of(&look[..pages]);
    let mut add = |what: &str, unit: &str, value: f64, note: &str| {
        figures.push(
            single(
                "api-server",
                &format!("5,000 nodes, a look for room: {what}"),
                unit,
                value,
            )
            .with_note(note),
        );
    };
    add(
        "requests",
        "",
        load.requests,
        &format!(
            "{:.0} objects, {:.0} MiB; at most one a minute while nothing changes",
            load.objects,
            mib(load.bytes)
        ),
    );
    add(
        "resident at most",
        "MiB",
        mib(after.most),
        &format!("{:.1} MiB before", mib(before.resident)),
    );
    add(
        "longest wait for `/health`",
        "ms",
        longest.as_secs_f64() * 1e3,
        "tried every 25 ms while lists came and were judged",
    );
    Ok(())
}

/// On record as asleep, and not ready as its cluster says soon after.
fn sends_to_sleep(node: &mut Value) {
    let annotations = &mut node["metadata"]["annotations"];
    annotations["vmstation.io/power-state"] = "asleep".into();
    annotations["vmstation.io/power-state-since"] = "2026-01-01T00:00:00Z".into();
    node["spec"]["taints"] = json!([{"key": "vmstation.io/asleep", "effect": "NoSchedule"}]);
    node["status"]["conditions"][3]["status"] = "Unknown".into();
}

async fn pod_without_room(stage: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(stage.clone(), "default");
    let pod = json!({
        "metadata": {"name": "large"},
        "spec": {"containers": [{"name": "main", "image": "pause", "resources": {"requests": {"cpu": "999"}}}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let status = json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let params = PatchParams::apply("kube-scheduler");
    pods.patch_status("large", &params, &Patch::Strategic(status)).await?;
    Ok(())
}

/// What the wake server asked, after the first `count` requests of everybody.
fn asked(fake: &KubeFake, count: usize) -> Vec<Asked> {
    let asked = fake.requests_since(count);
    asked.into_iter().filter(|asked| asked.agent != STAGE).collect()
}

/// Events of its watches, and their bytes.
fn told(fake: &KubeFake) -> (usize, f64) {
    let watches: Vec<_> = asked(fake, 0).into_iter().filter(Asked::is_watch).collect();
    let load = Load::of(&watches);
    (watches.iter().map(|watch| watch.objects).sum(), load.bytes)
}

/// Percent of one CPU.
fn share(before: Usage, after: Usage) -> f64 {
    (after.cpu - before.cpu).as_secs_f64() / WINDOW.as_secs_f64() * 100.0
}

/// Each kubelet says every five minutes that it is well; how often one did.
async fn kubelets_speak(fake: &KubeFake, nodes: usize, time: Duration) -> Result<usize> {
    let stage = stage(fake).await?;
    let all: Api<Node> = Api::all(stage);
    let mut ticks = interval(Duration::from_secs_f64(STATUS_EVERY / number(nodes)).min(time / 2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, mut updates) = (BootTime::now(), 0_usize);
    let params = PatchParams::apply("kubelet");
    while BootTime::now().since(began) < time {
        tokio::select! {
            _ = ticks.tick() => {}
            () = sleep(time.saturating_sub(BootTime::now().since(began))) => break,
        }
        let condition = json!({"type": "Ready", "lastHeartbeatTime": format!("2026-01-01T01:{:02}:{:02}Z", updates / 60 % 60, updates % 60)});
        let status = json!({"status": {"conditions": [condition]}});
        let name = crowd::name(updates * 7 % nodes);
        all.patch_status(&name, &params, &Patch::Strategic(status)).await?;
        updates += 1;
    }
    Ok(updates)
}

async fn stage(fake: &KubeFake) -> Result<Client> {
    let folder = tempfile::tempdir()?;
    let file = Kubeconfig::read_from(kubeconfig(folder.path(), fake)?)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.headers.push((hyper::header::USER_AGENT, STAGE.parse()?));
    Ok(Client::try_from(config)?)
}

impl Server {
    /// With all nodes in its registry.
    fn start(program: &Path, fake: &KubeFake, nodes: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = |name: &str| -> PathBuf { folder.path().join(name) };
        fs::write(file("token"), "a-token-of-operators-of-this-bench")?;
        fs::set_permissions(file("token"), fs::Permissions::from_mode(0o600))?;
        let node = |number: usize| {
            let [.., high, low] = number.to_be_bytes();
            let name = crowd::name(number);
            format!("[[node]]\nname = \"{name}\"\nrole = \"worker\"\nmac = \"02:00:00:01:{high:02x}:{low:02x}\"\n")
        };
        fs::write(file("nodes.toml"), (0..nodes).map(node).collect::<String>())?;
        fs::write(
            file("wake-server.toml"),
            format!("[kubernetes]\nkubeconfig = {:?}\n", kubeconfig(folder.path(), fake)?),
        )?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let child = Command::new(program)
            .args(["--config".as_ref(), file("wake-server.toml").as_os_str()])
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .args(["--registry".as_ref(), file("nodes.toml").as_os_str()])
            .args(["--token-file".as_ref(), file("token").as_os_str()])
            .args(["--state-dir".as_ref(), file("state").as_os_str()])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start the server")?;
        Ok(Self {
            child,
            port,
            _folder: folder,
        })
    }

    /// Until it watches nodes and pods.
    async fn follows(&self, fake: &KubeFake) -> Result<()> {
        for _ in 0..LOOKS {
            let watches = asked(fake, 0).into_iter().filter(Asked::is_watch).count();
            if watches >= 2 {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        bail!("the server watches nothing")
    }

    fn usage(&self) -> Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let clock = clock_getcpuclockid(Pid::from_raw(self.child.id().try_into()?))?;
        Ok(Usage {
            cpu: clock_gettime(clock)?.into(),
            resident: field(&status, "VmRSS:")? * 1024.0,
            most: field(&status, "VmHWM:")? * 1024.0,
        })
    }

    /// What it has used once it does nothing more.
    async fn rests(&self) -> Result<Usage> {
        let mut before = self.usage()?;
        for _ in 0..LOOKS {
            sleep(4 * LOOK).await;
            let usage = self.usage()?;
            if usage.cpu - before.cpu < LOOK / 10 {
                return Ok(usage);
            }
            before = usage;
        }
        bail!("the server does not come to rest")
    }

    /// How long it takes to say that it is well.
    async fn answers(&self) -> Result<Duration> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let began = BootTime::now();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(BootTime::now().since(began))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The number behind a name in a file of proc(5).
fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}
