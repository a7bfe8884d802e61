//! Memory, CPU time and wake-ups of whole agents, all at the same time on a machine that otherwise rests: ours, and what people run instead.
//!
//! Each is in a control group of its own, whose `cpu.stat` counts its children, too. All share one network namespace, so that no program
//! is attached to a real interface. None can suspend the machine: ours runs with `--dry-run`, autosuspend with `/bin/true` for a suspend
//! command and a check that is always active.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use vmstation_agent::clock::BootTime;

use crate::{
    figure::{Figure, Goal},
    netns,
    packets::OWN,
};

/// Until memory is looked at and counting begins.
const SETTLE: Duration = Duration::from_secs(60);
/// Of counting.
const WINDOW: Duration = Duration::from_secs(180);
const HOUR: Duration = Duration::from_secs(3600);
const SCRAPE: Duration = Duration::from_secs(15);
const EXPORTER_PORT: u16 = 9100;

/// One of them, running. Dropping it ends it.
struct Agent {
    name: &'static str,
    note: &'static str,
    is_ours: bool,
    child: Child,
    group: Group,
}

/// A control group. Removed with its value, once it is empty.
struct Group(PathBuf);

struct Usage {
    cpu: Duration,
    wakes: u64,
    processes: Vec<u32>,
}

/// The figures of this section. Enters the namespace itself: the control groups must be opened before.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    let root = File::open(cgroup2()?)?;
    in_groups(Path::new(&format!("/proc/self/fd/{}", root.as_raw_fd())))
}

fn in_groups(groups: &Path) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let mut figures = Vec::new();
    let mut agents = Vec::new();
    netns::enter();
    netns::runtime().block_on(async { netns::veth(&netns::rtnetlink(), OWN, "vms1").await });
    let all = [
        ("ours, `auto`", "10 s interval", true, ours("auto", folder.path())),
        ("ours, `always`", "10 s interval", true, ours("always", folder.path())),
        (
            "autosuspend",
            "10 s interval; users, load, traffic, connections",
            false,
            autosuspend(folder.path()),
        ),
        (
            "shell monitor",
            "`top`, `who`, 1 s of interface counters every 10 s",
            false,
            Ok(shell_monitor()),
        ),
        ("node_exporter", "scraped every 15 s", false, node_exporter()),
    ];
    for (number, (name, note, is_ours, command)) in all.into_iter().enumerate() {
        let group = groups.join(format!("vmstation-bench-{}-{number}", std::process::id()));
        match command.and_then(|command| Agent::start(name, note, is_ours, command, group)) {
            Ok(agent) => agents.push(agent),
            Err(error) => figures.push(Figure::missing("agents", name, &error)),
        }
    }
    thread::spawn(|| {
        loop {
            // Without an exporter there is nothing to scrape.
            let _unanswered = scrape();
            thread::sleep(SCRAPE);
        }
    });
    thread::sleep(SETTLE);
    let begun = BootTime::now();
    let before: Vec<_> = agents.iter_mut().map(Agent::usage).collect();
    let memory: Vec<_> = before
        .iter()
        .map(|usage| usage.as_ref().ok().map(|usage| memory(&usage.processes)))
        .collect();
    thread::sleep(WINDOW);
    let over = BootTime::now().since(begun);
    for ((agent, before), memory) in agents.iter_mut().zip(before).zip(memory) {
        match (before, agent.usage(), memory) {
            (Ok(before), Ok(after), Some(memory)) => figures.extend(agent.figures(&before, &after, memory?, over)),
            (Err(error), ..) | (_, Err(error), _) => figures.push(Figure::missing("agents", agent.name, &error)),
            (Ok(_), Ok(_), None) => {}
        }
    }
    Ok(figures)
}

impl Agent {
    fn start(
        name: &'static str,
        note: &'static str,
        is_ours: bool,
        mut command: Command,
        group: PathBuf,
    ) -> Result<Self> {
        fs::create_dir(&group).with_context(|| format!("make the control group {}", group.display()))?;
        let group = Group(group);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} is not installed", command.get_program().display()))?;
        fs::write(group.0.join("cgroup.procs"), child.id().to_string())?;
        Ok(Self {
            name,
            note,
            is_ours,
            child,
            group,
        })
    }

    fn usage(&mut self) -> Result<Usage> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "{} ended by itself: {ended:?}", self.name);
        let stat = fs::read_to_string(self.group.0.join("cpu.stat"))?;
        let micros = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .context("cpu.stat has no usage")?;
        let processes = self.group.processes()?;
        Ok(Usage {
            cpu: Duration::from_micros(micros.parse()?),
            wakes: processes.iter().map(|pid| wakes(*pid)).sum(),
            processes,
        })
    }

    fn figures(&self, before: &Usage, after: &Usage, memory: [f64; 3], over: Duration) -> Vec<Figure> {
        let goal = |figure: Figure, limit| {
            let figure = figure.with_note(self.note);
            if self.is_ours {
                figure.with_goal(Goal::AtMost(limit))
            } else {
                figure
            }
        };
        let figure = |what: &str, unit, value| Figure::single("agents", &format!("{}: {what}", self.name), unit, value);
        let an_hour = HOUR.div_duration_f64(over);
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let wakes = after.wakes.saturating_sub(before.wakes) as f64 * an_hour;
        let [resident, anonymous, proportional] = memory;
        let cpu = (after.cpu - before.cpu).as_secs_f64() * an_hour;
        let wakes = goal(figure("wake-ups an hour", "", wakes), 400.0);
        vec![
            goal(figure("resident after a minute", "MB", resident), 6.0).plotted(),
            figure("of it anonymous", "MB", anonymous),
            figure("proportional (PSS)", "MB", proportional),
            goal(figure("CPU time an hour", "s", cpu), 0.15).plotted(),
            if self.name == "shell monitor" {
                wakes.with_note("without those of its children, which come and go")
            } else {
                wakes
            },
        ]
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Group {
    fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.0.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            // What a shell had started goes with the group; a kernel before 5.14 has no such file, and waits for them to end.
            let _old_kernel = fs::write(self.0.join("cgroup.kill"), "1");
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        eprintln!("the control group {} is not empty and stays", self.0.display());
    }
}

/// Voluntary context switches of all threads of a process, 0 if it is gone.
fn wakes(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| number(&task.path().join("status"), "voluntary_ctxt_switches:"))
        .sum()
}

/// Resident, anonymous and proportional memory of processes, MB.
fn memory(processes: &[u32]) -> Result<[f64; 3]> {
    let sum = |file: &str, key: &str| {
        let found: Vec<u64> = processes
            .iter()
            .filter_map(|pid| number(Path::new(&format!("/proc/{pid}/{file}")), key))
            .collect();
        ensure!(!found.is_empty(), "/proc/PID/{file} has no {key}");
        #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 kB")]
        let kib = found.iter().sum::<u64>() as f64;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok([
        sum("status", "VmRSS:")?,
        sum("status", "RssAnon:")?,
        sum("smaps_rollup", "Pss:")?,
    ])
}

fn number(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (folder, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder))
    });
    found.context("cgroup2 is not mounted: nothing counts the CPU time of children")
}

fn ours(probes: &str, folder: &Path) -> Result<Command> {
    let own = std::env::current_exe()?;
    let mut candidates = own.ancestors().skip(1).map(|folder| folder.join("vmstation-autosleep"));
    let binary = candidates
        .find(|path| path.is_file())
        .context("vmstation-autosleep is not built")?;
    let home = folder.join(probes);
    fs::create_dir(&home)?;
    let config = home.join("autosleep.toml");
    let logs = home.join("log");
    fs::write(
        &config,
        format!(
            "[general]\nprobes = {probes:?}\n[activity_detection]\ncheck_pods = false\nnetwork_interfaces = [{OWN:?}]\n\
             [logging]\nlog_dir = {logs:?}\n"
        ),
    )?;
    let mut command = Command::new(binary);
    command.arg("--dry-run");
    command.arg("--config").arg(config);
    command.arg("--state-dir").arg(home.join("state"));
    command.arg("--socket").arg(home.join("sock"));
    Ok(command)
}

fn autosuspend(folder: &Path) -> Result<Command> {
    let config = folder.join("autosuspend.conf");
    let folder = folder.display();
    fs::write(
        &config,
        format!(
            "[general]\ninterval = 10\nidle_time = 900\nsuspend_cmd = /bin/true\nwakeup_cmd = /bin/true\n\
             woke_up_file = {folder}/woke-up\nlock_file = {folder}/lock\n\
             [check.Always]\nclass = ExternalCommand\nenabled = true\ncommand = /bin/true\n\
             [check.Users]\nenabled = true\nname = .*\nterminal = .*\nhost = .*\n\
             [check.Load]\nenabled = true\nthreshold = 2.5\n\
             [check.ActiveConnection]\nenabled = true\nports = 22\n\
             [check.NetworkBandwidth]\nenabled = true\ninterfaces = {OWN}\nthreshold_send = 1024\nthreshold_receive = 1024\n"
        ),
    )?;
    let mut command = Command::new("autosuspend");
    command.arg("-c").arg(config).args(["daemon", "--allchecks"]);
    Ok(command)
}

fn shell_monitor() -> Command {
    let counters = format!("cat /sys/class/net/{OWN}/statistics/rx_bytes");
    let round = format!("top -bn1 >/dev/null; who >/dev/null; a=$({counters}); sleep 1; b=$({counters}); sleep 9");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("while :; do {round}; done")]);
    command
}

fn node_exporter() -> Result<Command> {
    let mut command = Command::new("prometheus-node-exporter");
    command.arg(format!("--web.listen-address=127.0.0.1:{EXPORTER_PORT}"));
    Ok(command)
}

fn scrape() -> std::io::Result<usize> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, EXPORTER_PORT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new())
}
