//! What wake server and agents ask of the API server of Kubernetes while nothing happens, with 1, 100 and 5,000 nodes, and what the wake
//! server itself takes for it: counted on the fake of `tests/support`, from the real program and the agent's own code. Asserts nothing.
//!
//! Needs no root. Everything is on loopback. `cargo bench --bench api_load` rewrites the table in `benches/README.md`.

mod agents;
#[path = "../../tests/support/crowd.rs"]
mod crowd;
#[expect(dead_code, reason = "shared with the other figures, which use more of it")]
#[path = "../figures/figure.rs"]
mod figure;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
#[path = "../../tests/support/kube_fake.rs"]
mod kube_fake;
#[expect(dead_code, reason = "shared with the other figures, which use more of it")]
#[path = "../figures/measure.rs"]
mod measure;
#[expect(dead_code, reason = "shared with the other figures, which draw a plot as well")]
#[path = "../figures/report.rs"]
mod report;
mod server;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::{
    figure::Figure,
    kube_fake::{Asked, KubeFake},
};

/// What the table stands between.
const MARKS: (&str, &str) = (
    "<!-- API server: written by `cargo bench --bench api_load` -->",
    "<!-- end of the API server -->",
);

/// What is measured; a number: the wake server with so many nodes.
const SECTIONS: [&str; 6] = ["1", "100", "5000", "asleep", "demand", "agents"];
/// Nodes of the clusters that are compared.
const NODES: [usize; 3] = [1, 100, 5_000];
/// Pods of each node.
const PODS: usize = 10;
/// Seconds in an hour.
const HOUR: f64 = 3600.0;

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("api_load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("api_load: nothing to test; `cargo bench` measures");
        return Ok(());
    }
    let is_asked_for = |section: &str| {
        let mut named = arguments
            .iter()
            .filter(|argument| !argument.starts_with('-'))
            .peekable();
        named.peek().is_none() || named.any(|argument| *argument == section)
    };
    // Each agent of a thousand has connections of its own.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of file descriptors")?;
    let program = built()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures = Vec::new();
    for section in SECTIONS.into_iter().filter(|section| is_asked_for(section)) {
        let first = figures.len();
        runtime.block_on(async {
            match section {
                "asleep" => server::asleep(&mut figures, &program).await,
                "demand" => server::demand(&mut figures, &program).await,
                "agents" => agents::idle(&mut figures).await,
                nodes => server::idle(&mut figures, &program, nodes.parse()?).await,
            }
        })?;
        println!("{}", report::table(&figures[first..]));
    }
    if SECTIONS.into_iter().all(is_asked_for) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        report::put(&folder, MARKS, &figures)?;
        eprintln!("api_load: wrote the results into README.md in {}", folder.display());
    }
    Ok(())
}

/// The wake server, of the profile of this binary: cargo builds the benches, but not the program of another package that they start.
fn built() -> Result<PathBuf> {
    let bench = env::current_exe()?;
    let folder = bench
        .parent()
        .and_then(Path::parent)
        .context("this binary has no folder")?;
    if let Some(cargo) = env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--package", "vmstation-wake-server"]);
        if folder.ends_with("release") {
            command.arg("--release");
        }
        let status = command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .context("run cargo")?;
        ensure!(status.success(), "the server could not be built");
    }
    Ok(folder.join("vmstation-wake-server"))
}

/// A cluster of so many nodes that are ready, with so many pods each.
fn cluster(nodes: usize, pods: usize) -> KubeFake {
    let fake = KubeFake::start();
    fake.put("/api/v1/nodes", (0..nodes).map(crowd::node));
    let on = |node| (0..pods).map(move |pod| crowd::pod(node, pod));
    fake.put("/api/v1/pods", (0..nodes).flat_map(on));
    fake
}

/// A kubeconfig in this folder. It names an authority: nobody has to read those of the system.
fn kubeconfig(folder: &Path, fake: &KubeFake) -> Result<PathBuf> {
    let authority = folder.join("authority.pem");
    if !authority.exists() {
        fs::write(
            &authority,
            rcgen::generate_simple_self_signed(["localhost".to_owned()])?.cert.pem(),
        )?;
    }
    let path = folder.join("kubeconfig");
    let (url, token) = (fake.url(), fake.token());
    fs::write(
        &path,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{url}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n",
            authority.display()
        ),
    )?;
    Ok(path)
}

/// What was asked for, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    requests: f64,
    bytes: f64,
    objects: f64,
}

impl Load {
    fn of<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        asked.into_iter().fold(Self::default(), |load, asked| Self {
            requests: load.requests + 1.0,
            bytes: load.bytes + asked.answered as f64,
            objects: load.objects + asked.objects as f64,
        })
    }
}

/// Seconds after which the server is to end a watch, as its request says.
fn watch_ends_after(watch: &Asked) -> Result<f64> {
    let mut pairs = watch.query.split('&');
    let seconds = pairs.find_map(|pair| pair.strip_prefix("timeoutSeconds="));
    Ok(seconds.context("a watch without an end")?.parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn number(count: usize) -> f64 {
    count as f64
}

fn mib(bytes: f64) -> f64 {
    bytes / 1_048_576.0
}

fn nodes_in_words(nodes: usize) -> String {
    match nodes {
        1 => "1 node".into(),
        100 => "100 nodes".into(),
        _ => format!("{},{:03} nodes", nodes / 1000, nodes % 1000),
    }
}

/// A figure of one observation.
fn single(section: &str, what: &str, unit: &str, value: f64) -> Figure {
    Figure::single(section, what, unit, value)
}
