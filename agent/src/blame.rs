//! Who keeps the CPUs busy, for `why`: two short looks at the CPU time of every cgroup or process group, ranked.
//!
//! Only on demand, because it costs a file per group. [`rank`] is pure; the readers take a bounded number of
//! groups or processes and are the only ones here to touch `/sys` and `/proc`. Decides nothing.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use procfs::{CurrentSI as _, KernelStats, ProcError, process};
use tracing::debug;

use crate::{
    cgroups,
    clock::BootTime,
    owner::{Owner, POD_LOGS, PodNames},
    printable::printable,
};

/// Most processes read at a look.
const MAX_READ: usize = 4096;
/// Most groups named.
pub const TOP: usize = 3;
/// Shares below this many percent of all CPUs are not worth naming.
const WORTH_NAMING: f64 = 0.5;

/// The CPU time used so far, by whatever has some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// By something that is never reused: a cgroup's path, or a process and its start.
    pub used: BTreeMap<String, Used>,
}

/// CPU time of one cgroup or process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// What it is counted under, for people.
    pub group: String,
    /// User and system time so far.
    pub cpu: Duration,
}

/// A group and its part of all CPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Name for people.
    pub group: String,
    /// Percent of all CPUs together, as in the CPU threshold.
    pub percent: f64,
}

/// The up to [`TOP`] groups that use most CPU time in the `over` to come, the busiest first; empty if nothing can be told.
/// Does not block the runtime.
pub async fn busiest_over(over: Duration) -> Vec<Share> {
    look_twice(over).await.unwrap_or_else(|error| {
        debug!(%error, "cannot tell who keeps the CPUs busy");
        Vec::new()
    })
}

async fn look_twice(over: Duration) -> Result<Vec<Share>, ProcError> {
    let cpus = KernelStats::current()?.cpu_time.len();
    let began = BootTime::now();
    let before = look().await?;
    tokio::time::sleep(over).await;
    let after = look().await?;
    Ok(rank(&before, &after, BootTime::now().since(began), cpus))
}

/// Reads on a thread of its own: there may be thousands of files.
async fn look() -> Result<Look, ProcError> {
    // Cgroups name nobody where all processes are in one.
    let read = || {
        let cgroups = cgroups::root().map_or_else(|_| Look::default(), |root| look_at_cgroups(&root));
        if cgroups.used.len() > 1 {
            Ok(cgroups)
        } else {
            look_at_processes()
        }
    };
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_panicked| Ok(Look::default()))
}

/// Every cgroup of `root` that has none below itself, the time of the others being the sum of theirs, by its owner.
fn look_at_cgroups(root: &Path) -> Look {
    let names = PodNames::read(Path::new(POD_LOGS));
    let used = cgroups::all(root).into_iter().filter(|cgroup| !cgroup.is_parent);
    let used = used.filter_map(|cgroup| {
        // It may go away at any moment.
        let stat = fs::read_to_string(cgroup.folder.join("cpu.stat")).ok()?;
        let used = Used {
            group: Owner::of(&cgroup.path).named(&names),
            cpu: cgroups::cpu_used(&stat)?,
        };
        Some((cgroup.path, used))
    });
    Look { used: used.collect() }
}

/// Every process but this one, by process group; a group is named after its leader, or whoever is left of it.
fn look_at_processes() -> Result<Look, ProcError> {
    let tick = Duration::from_secs(1) / u32::try_from(procfs::ticks_per_second()).unwrap_or(100);
    let own = std::process::id();
    // A process may go away at any moment.
    let stats: Vec<_> = process::all_processes()?
        .take(MAX_READ)
        .filter_map(|found| found.and_then(|process| process.stat()).ok())
        .filter(|stat| u32::try_from(stat.pid) != Ok(own))
        .collect();
    let leaders = stats.iter().filter(|stat| stat.pid == stat.pgrp);
    let names: BTreeMap<_, _> = stats
        .iter()
        .chain(leaders)
        .map(|stat| (stat.pgrp, stat.comm.as_str()))
        .collect();
    let used = stats.iter().map(|stat| {
        let group = match stat.pgrp {
            // Kernel threads are in no group.
            0 => format!("{} (kernel thread)", stat.comm),
            pgrp => format!(
                "{} (process group {pgrp})",
                names.get(&pgrp).copied().unwrap_or(&stat.comm)
            ),
        };
        let ticks = u32::try_from(stat.utime.saturating_add(stat.stime)).unwrap_or(u32::MAX);
        let used = Used {
            group,
            cpu: tick * ticks,
        };
        (format!("{} {}", stat.pid, stat.starttime), used)
    });
    Ok(Look { used: used.collect() })
}

/// The up to [`TOP`] groups with the largest share of `cpus` CPUs between two looks `over` apart.
///
/// What only the first look has is left out, and so is what went backwards. What only the second has is taken to have begun in between,
/// unless it used more than that time has.
pub fn rank(before: &Look, after: &Look, over: Duration, cpus: usize) -> Vec<Share> {
    let capacity = over.saturating_mul(u32::try_from(cpus).unwrap_or(u32::MAX));
    if capacity.is_zero() {
        return Vec::new();
    }
    let mut groups = BTreeMap::<&str, Duration>::new();
    for (key, used) in &after.used {
        let between = match before.used.get(key) {
            Some(earlier) => used.cpu.saturating_sub(earlier.cpu),
            None if used.cpu <= capacity => used.cpu,
            None => Duration::ZERO,
        };
        *groups.entry(&used.group).or_default() += between;
    }
    let mut shares: Vec<_> = groups
        .into_iter()
        .map(|(group, used)| Share {
            group: group.into(),
            percent: (100.0 * used.as_secs_f64() / capacity.as_secs_f64()).min(100.0),
        })
        .filter(|share| share.percent >= WORTH_NAMING)
        .collect();
    shares.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    shares.truncate(TOP);
    shares
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.1} % of all CPUs", printable(&self.group), self.percent)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use super::{Look, Used, busiest_over, look_at_cgroups, look_at_processes, rank};

    fn look(used: &[(&str, &str, u64)]) -> Look {
        let used = used.iter().map(|(key, group, millis)| {
            let used = Used {
                group: (*group).into(),
                cpu: Duration::from_millis(*millis),
            };
            ((*key).into(), used)
        });
        Look { used: used.collect() }
    }

    fn ranked(before: &Look, after: &Look) -> Vec<String> {
        let shares = rank(before, after, Duration::from_secs(1), 2);
        shares.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranks_groups_by_what_they_used_in_between() {
        let before = look(&[
            ("1", "cargo", 5000),
            ("2", "cargo", 0),
            ("3", "sshd", 90_000),
            ("4", "gone", 1),
        ]);
        let after = look(&[
            ("1", "cargo", 5500),
            ("2", "cargo", 500),
            ("3", "sshd", 90_040),
            ("5", "born", 200),
        ]);
        let expected = [
            "cargo: 50.0 % of all CPUs",
            "born: 10.0 % of all CPUs",
            "sshd: 2.0 % of all CPUs",
        ];
        assert_eq!(ranked(&before, &after), expected);
    }

    #[test]
    fn names_three_at_most_and_nobody_who_is_idle() {
        let before = look(&[
            ("a", "a", 0),
            ("b", "b", 0),
            ("c", "c", 0),
            ("d", "d", 0),
            ("e", "e", 7),
        ]);
        let after = look(&[
            ("a", "a", 40),
            ("b", "b", 30),
            ("c", "c", 20),
            ("d", "d", 60),
            ("e", "e", 7),
        ]);
        let expected = ["d: 3.0 % of all CPUs", "a: 2.0 % of all CPUs", "b: 1.5 % of all CPUs"];
        assert_eq!(ranked(&before, &after), expected);
        assert!(ranked(&after, &after).is_empty());
    }

    #[test]
    fn impossible_growth_is_not_blamed_on_anybody() {
        let before = look(&[("back", "back", 500)]);
        let after = look(&[("back", "back", 100), ("old", "old", 3_600_000)]);
        assert!(ranked(&before, &after).is_empty());
        assert!(rank(&before, &after, Duration::ZERO, 2).is_empty());
        assert!(rank(&before, &after, Duration::from_secs(1), 0).is_empty());
    }

    #[test]
    fn reads_the_innermost_cgroups() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, micros: u64| {
            let folder = root.path().join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpu.stat"), format!("usage_usec {micros}\nuser_usec 1\n")).unwrap();
        };
        make("", 9);
        make("system.slice", 7000);
        make("system.slice/cron.service", 4000);
        make("system.slice/ssh.service", 3000);
        make("init.scope", 2);
        let found = look_at_cgroups(root.path());
        let found: Vec<_> = found
            .used
            .iter()
            .map(|(key, used)| (key.as_str(), used.group.as_str(), used.cpu.as_micros()))
            .collect();
        let expected = [
            ("init.scope", "cgroup init.scope", 2),
            ("system.slice/cron.service", "service cron", 4000),
            ("system.slice/ssh.service", "service ssh", 3000),
        ];
        assert_eq!(found, expected);
        assert_eq!(look_at_cgroups(Path::new("/nonexistent")), Look::default());
    }

    #[test]
    fn finds_the_process_group_of_a_busy_loop() {
        use std::{
            os::unix::process::CommandExt as _,
            process::{Command, Stdio},
        };
        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .process_group(0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let group = format!("sh (process group {})", child.id());
        // However loaded the machine is, the loop gets some time within 10 s.
        let used = |look: &Look| -> Duration {
            let members = look.used.values().filter(|used| used.group == group);
            members.map(|used| used.cpu).sum()
        };
        let grew = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            used(&look_at_processes().unwrap()) >= Duration::from_millis(50)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(grew, "{group} was not found");
    }

    #[tokio::test]
    async fn the_real_host_can_be_asked() {
        let shares = busiest_over(Duration::from_millis(200)).await;
        assert!(shares.len() <= super::TOP);
        assert!(
            shares.iter().all(|share| (0.5..=100.0).contains(&share.percent)),
            "{shares:?}"
        );
    }
}
