//! What a wake server of 10,000 nodes costs while all their agents are held, how fast it answers, and how fast it wakes them, beside
//! `wakeonlan` and `etherwake` in a shell's loop. Asserts nothing about time.
//!
//! Needs root. Server, agents and tools are in network namespaces made for the run, and end with it; nothing leaves them. This binary runs
//! itself again as the child that measures. `cargo bench --bench wake_server` rewrites the table in `benches/README.md`.

mod agents;
#[expect(dead_code, reason = "shared with the other figures, which use more of it")]
#[path = "../figures/figure.rs"]
mod figure;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
#[path = "../../tests/wire/lan.rs"]
mod lan;
#[expect(dead_code, reason = "shared with the other figures, which use more of it")]
#[path = "../figures/measure.rs"]
mod measure;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]
#[path = "../../tests/support/netns.rs"]
mod netns;
#[expect(dead_code, reason = "shared with the other figures, which draw a plot as well")]
#[path = "../figures/report.rs"]
mod report;
mod server;
mod wire;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};

use self::{
    agents::{Agents, Client},
    figure::Figure,
    lan::{Host, MASTER, switch},
    measure::{column, estimate, interleaved, median, quantile},
    server::{Nodes, Server},
    wire::{Called, Watch},
};

/// Set for the child that measures.
const ROLE: &str = "VMSTATION_BENCH_WAKE_SERVER";

/// What the table stands between.
const MARKS: (&str, &str) = (
    "<!-- wake server: written by `cargo bench --bench wake_server` -->",
    "<!-- end of the wake server -->",
);

/// Nodes, and agents that are held.
const NODES: usize = 10_000;
/// Nodes of the server that the large one is compared with.
const FEW: usize = 10;
/// Nodes of a block in which senders are compared.
const BLOCK: usize = 200;
/// Rounds of blocks.
const ROUNDS: usize = 9;
/// Requests for the status, of each server.
const STATUS_REQUESTS: usize = 300;
/// How long the idle server is watched.
const IDLE: Duration = Duration::from_secs(30);
/// Wakes of all nodes.
const ALL_ROUNDS: usize = 5;
/// Descriptors that both processes need.
const DESCRIPTORS: u64 = 16_384;

fn main() -> ExitCode {
    let outcome = match env::var_os(ROLE) {
        Some(_) => measure(),
        None => run(&env::args().skip(1).collect::<Vec<_>>()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wake_server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("wake_server: nothing to test; `cargo bench` measures");
        return Ok(());
    }
    if let Some(missing) = missing() {
        println!("wake_server: not measured: needs {missing}");
        return Ok(());
    }
    build_server()?;
    let output = tempfile::NamedTempFile::new()?;
    let status = Command::new("/proc/self/exe")
        .env(ROLE, "1")
        .stdin(Stdio::null())
        .stdout(File::create(output.path())?)
        .status()?;
    ensure!(status.success(), "ended with {status}; see above");
    let figures: Vec<Figure> = serde_json::from_slice(&fs::read(output.path())?)?;
    println!("{}", report::table(&figures));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    report::put(&folder, MARKS, &figures)?;
    eprintln!("wake_server: wrote the results into README.md in {}", folder.display());
    Ok(())
}

fn missing() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("root, to make network namespaces".into());
    }
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS => {
            return Some(format!("{DESCRIPTORS} file descriptors, and may have {hard}"));
        }
        Ok(_) => {}
        Err(error) => return Some(format!("to know how many file descriptors it may have: {error}")),
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let tool = ["ip", "wakeonlan", "etherwake"]
        .into_iter()
        .find(|tool| !is_there(tool));
    tool.map(str::to_owned)
}

/// Cargo builds the benches, but not the program of another package that they start.
fn build_server() -> Result<()> {
    let Some(cargo) = env::var_os("CARGO") else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--package", "vmstation-wake-server"]);
    let built = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "the server could not be built");
    Ok(())
}

/// In a namespace of its own: `lan` is the switch between the server and its agents.
fn measure() -> Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).context("raise the limit of file descriptors")?;
    netns::enter();
    netns::no_ipv6();
    switch("lan");
    let (master, elsewhere) = (Host::new(), Host::new());
    let port = master.plug("lan", "lan0", MASTER, Some("10.0.0.1/8"));
    elsewhere.plug("lan", "lan0", [2, 0, 0, 0, 0, 2], Some("10.0.0.2/8"));
    let small = Server::start(&master, 9877, &Nodes::new(FEW, 0))?;
    let nodes = Nodes::new(NODES, BLOCK);
    let server = Server::start(&master, 9876, &nodes)?;

    let mut figures = Vec::new();
    let agents = holding(&mut figures, &elsewhere, &small, &server, &nodes)?;
    idle(&mut figures, &server)?;
    status(&mut figures, &elsewhere)?;
    ensure!(
        agents.still_held()? == NODES,
        "not every question was held to the end of the requests for the status"
    );
    senders(&mut figures, &master, &elsewhere, &port, &nodes)?;
    all(&mut figures, &server, &elsewhere, &port, &nodes)?;
    Ok(std::io::stdout().write_all(&serde_json::to_vec(&figures)?)?)
}

/// Memory, and the work of reports and questions.
fn holding(
    figures: &mut Vec<Figure>,
    elsewhere: &Host,
    small: &Server,
    server: &Server,
    nodes: &Nodes,
) -> Result<Agents> {
    eprintln!("wake_server: {NODES} agents ..");
    let before = server.usage()?;
    let agents = Agents::connect(elsewhere, nodes)?;
    agents.report()?;
    let reported = server.usage()?;
    agents.hold()?;
    let held = server.usage_once_settled()?;
    let small = small.usage()?;
    let mut add = |figure: Figure| figures.push(figure);
    add(memory("resident, 10 nodes that never reported", small.resident));
    add(memory("resident, 10,000 nodes of a registry", before.resident));
    add(memory(
        "resident, and every one connected and reported",
        reported.resident,
    ));
    add(memory("resident, and a question of every one is held", held.resident));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = (held.resident - small.resident) as f64 / NODES as f64 / 1024.0;
    add(Figure::single("held", "the same for a node", "KiB", each));
    let for_each = |from: &server::Usage, to: &server::Usage| (to.cpu - from.cpu).as_secs_f64() * 1e6 / 10_000.0;
    add(Figure::single(
        "held",
        "CPU time of a connection and its first report",
        "us",
        for_each(&before, &reported),
    ));
    let question = for_each(&reported, &held);
    add(Figure::single(
        "held",
        "CPU time of a question, until it is held",
        "us",
        question,
    ));
    add(Figure::single(
        "held",
        "the same for all nodes, an hour",
        "s",
        question * 12.0 * 10_000.0 / 1e6,
    )
    .with_note("calculated: an agent asks again every 5 minutes"));
    Ok(agents)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn memory(what: &str, bytes: u64) -> Figure {
    Figure::single("held", what, "MiB", bytes as f64 / 1_048_576.0)
}

/// What the server does while nobody asks anything.
fn idle(figures: &mut Vec<Figure>, server: &Server) -> Result<()> {
    eprintln!("wake_server: idle ..");
    let before = server.usage_once_settled()?;
    thread::sleep(IDLE);
    let after = server.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let switches = after.switches_since(&before) as f64 / IDLE.as_secs_f64();
    let note = "over 30 s, 10,000 questions held, none of them due";
    figures.push(Figure::single("held", "idle: of one CPU", "%", share).with_note(note));
    figures.push(Figure::single("held", "idle: voluntary context switches a second", "", switches).with_note(note));
    Ok(())
}

/// Of both servers in turn.
fn status(figures: &mut Vec<Figure>, elsewhere: &Host) -> Result<()> {
    eprintln!("wake_server: status ..");
    let mut large = Client::connect(elsewhere, 9876)?;
    let mut small = Client::connect(elsewhere, 9877)?;
    for client in [&mut large, &mut small] {
        client.get("/status")?;
    }
    let bytes = large.get("/status")?.body.len();
    let mut outcome = Ok(());
    let rows = interleaved::<3>(STATUS_REQUESTS, |variant| {
        let asked = match variant {
            0 => large.get("/status"),
            1 => small.get("/status"),
            _ => large.get("/health"),
        };
        match asked {
            Ok(answer) => answer.took.as_secs_f64() * 1e3,
            Err(error) => {
                outcome = Err(error);
                f64::NAN
            }
        }
    });
    outcome?;
    let p99 = |variant: usize| {
        move |rows: &[[f64; 3]]| quantile(&mut rows.iter().map(|row| row[variant]).collect::<Vec<_>>(), 0.99)
    };
    let note = format!("{bytes} bytes of JSON");
    let mut add =
        |what: &str, unit: &str, estimate| figures.push(Figure::new("status", what, unit, estimate).with_note(&note));
    add(
        "`/status`, 10,000 nodes and as many held, median",
        "ms",
        estimate(&rows, column(0)),
    );
    add(
        "`/status`, 10,000 nodes and as many held, p99",
        "ms",
        estimate(&rows, p99(0)),
    );
    let mut add = |what: &str, unit: &str, estimate| figures.push(Figure::new("status", what, unit, estimate));
    add("`/status`, 10 nodes, median", "ms", estimate(&rows, column(1)));
    add("`/status`, 10 nodes, p99", "ms", estimate(&rows, p99(1)));
    add(
        "`/health` of the server of 10,000, median",
        "ms",
        estimate(&rows, column(2)),
    );
    let each = |rows: &[[f64; 3]]| (column(0)(rows) - column(1)(rows)) * 1e3 / 9_990.0;
    add("`/status` for each further node", "us", estimate(&rows, each));
    Ok(())
}

/// `/wake/all` of one role, beside tools that are started for each card.
fn senders(figures: &mut Vec<Figure>, master: &Host, elsewhere: &Host, port: &str, nodes: &Nodes) -> Result<()> {
    eprintln!("wake_server: senders ..");
    let mut client = Client::connect(elsewhere, 9876)?;
    let macs: Vec<_> = nodes.storage().collect();
    let list = tempfile::NamedTempFile::new()?;
    fs::write(
        list.path(),
        macs.iter().map(|mac| format!("{mac}\n")).collect::<String>(),
    )?;
    let watch = Watch::on(port)?;
    let mut outcome = Ok(());
    // Seconds until each card was called at least once, and for a packet that was seen until then.
    let mut packets = [Vec::new(), Vec::new(), Vec::new()];
    let rows = interleaved::<3>(ROUNDS, |variant| {
        let called = match variant {
            0 => watch
                .until_all_are_called(&macs, || client.wake_all("?role=storage"))
                .and_then(|called| client.cancel_all().map(|()| called)),
            1 => watch.until_all_are_called(&macs, || {
                looped(master, "wakeonlan -i 10.255.255.255 \"$mac\"", list.path())
            }),
            _ => watch.until_all_are_called(&macs, || looped(master, "etherwake -i lan0 \"$mac\"", list.path())),
        };
        match called {
            Ok(called) => {
                packets[variant].push([packet_rate(&called)]);
                called.took.as_secs_f64()
            }
            Err(error) => {
                outcome = Err(error);
                f64::NAN
            }
        }
    });
    outcome?;
    let rate = |variant: usize| move |rows: &[[f64; 3]]| 200.0 / column(variant)(rows);
    let ratio = |variant: usize| {
        move |rows: &[[f64; 3]]| median(&mut rows.iter().map(|row| row[variant] / row[0]).collect::<Vec<_>>())
    };
    let names = [
        ("ours, `/wake/all` of 200", "two frames and two datagrams a card"),
        ("`wakeonlan` in a loop", "one datagram a card"),
        ("`etherwake` in a loop", "one frame a card"),
    ];
    for (variant, (name, note)) in names.into_iter().enumerate() {
        let cards = estimate(&rows, rate(variant));
        figures.push(Figure::new("senders", &format!("{name}: cards"), "/s", cards).with_note(note));
        let packets = estimate(&packets[variant], column(0));
        figures.push(Figure::new("senders", &format!("{name}: packets"), "/s", packets));
    }
    figures.extend([
        Figure::new(
            "senders",
            "cards a second, ours / `wakeonlan`",
            "",
            estimate(&rows, ratio(1)),
        ),
        Figure::new(
            "senders",
            "cards a second, ours / `etherwake`",
            "",
            estimate(&rows, ratio(2)),
        ),
    ]);
    Ok(())
}

/// Packets a second until the last card was called.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn packet_rate(called: &Called) -> f64 {
    called.packets as f64 / called.took.as_secs_f64()
}

fn looped(master: &Host, tool: &str, list: &Path) -> Result<()> {
    let script = format!("while read -r mac; do {tool}; done");
    let list = File::open(list)?;
    let run = || {
        Command::new("sh")
            .args(["-c", &script])
            .stdin(list)
            .stdout(Stdio::null())
            .status()
    };
    let status = master.run(run)?;
    ensure!(status.success(), "{tool} ended with {status}");
    Ok(())
}

/// All at once.
fn all(figures: &mut Vec<Figure>, server: &Server, elsewhere: &Host, port: &str, nodes: &Nodes) -> Result<()> {
    eprintln!("wake_server: all ..");
    let mut client = Client::connect(elsewhere, 9876)?;
    let macs: Vec<_> = nodes.macs().collect();
    let watch = Watch::on(port)?;
    let mut rounds = Vec::new();
    let before = server.usage()?;
    for _ in 0..ALL_ROUNDS {
        let from = server.usage()?.cpu;
        let called = watch.until_all_are_called(&macs, || client.wake_all(""))?;
        let at_most = server.usage()?;
        let cpu = at_most.cpu - from;
        client.cancel_all()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        rounds.push([
            called.took.as_secs_f64(),
            packet_rate(&called),
            cpu.as_secs_f64() * 1e6 / 10_000.0,
            at_most.descriptors as f64 - before.descriptors as f64,
            (at_most.resident as f64 - before.resident as f64) / 1_048_576.0,
        ]);
        if server.usage_once_settled()?.descriptors > before.descriptors + 16 {
            bail!("wakes that were called off leave descriptors open");
        }
    }
    let rate = |rounds: &[[f64; 5]]| 10_000.0 / column(0)(rounds);
    let seconds = estimate(&rounds, column(0));
    figures.extend([
        Figure::new("all", "until the last card was called", "s", seconds),
        Figure::new("all", "cards", "/s", estimate(&rounds, rate)),
        Figure::new("all", "packets", "/s", estimate(&rounds, column(1))).with_note("those seen until then"),
        Figure::new("all", "CPU time for a card", "us", estimate(&rounds, column(2))),
        Figure::new("all", "descriptors that are opened", "", estimate(&rounds, column(3))),
        Figure::new("all", "memory that is added", "MiB", estimate(&rounds, column(4))),
    ]);
    Ok(())
}
