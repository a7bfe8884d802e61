//! Who uses the network, for `why`: the traffic of every cgroup over a short time, ranked.
//!
//! Only on demand: the programs that count are in the kernel for that time only, and leave it also when nobody waits for the answer any more.
//! [`rank`] is pure. Decides nothing.
//!
//! What is counted are the IP packets at the sockets of this host and of its containers, on every interface but loopback. That is not quite
//! what a threshold compares: traffic between pods of one node counts here and not on its physical interface, what the host forwards for
//! others is on the interface and has no socket here, and background traffic is not told apart.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agent_ebpf::{OWNERS, OwnerCounters};

use crate::{
    cgroups::{self, Cgroup},
    clock::BootTime,
    config::ProbeMode,
    owner::{Owner, POD_LOGS, PodNames},
    printable::printable,
    probes::{OwnerProbe, OwnerTraffic},
};

/// Most owners named.
pub const TOP: usize = 3;

/// Loading takes 20 MB for a moment: many askers must not take many times that.
static LOADING: Mutex<()> = Mutex::new(());

/// An owner and its traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Name for people.
    pub owner: String,
    /// Bytes received per second.
    pub rx_bytes_per_sec: f64,
    /// Bytes sent per second.
    pub tx_bytes_per_sec: f64,
}

/// The up to [`TOP`] owners with most traffic in the `over` to come, the busiest first; empty if no socket had any. Does not block the
/// runtime, and leaves nothing in the kernel when dropped.
///
/// # Errors
/// Why it cannot be told, in one line.
pub async fn busiest_over(over: Duration, mode: ProbeMode) -> Result<Vec<Share>, String> {
    match mode {
        ProbeMode::Auto | ProbeMode::Always => {}
        ProbeMode::Off => return Err("eBPF programs are switched off (`probes = \"off\"`)".into()),
    }
    let (probe, began) = on_a_thread(|| {
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = OwnerProbe::attach(&cgroups::root()?)?;
        Ok((probe, BootTime::now()))
    })
    .await?;
    tokio::time::sleep(over).await;
    on_a_thread(move || {
        let traffic = probe.read()?;
        let over = BootTime::now().since(began);
        drop(probe);
        let cgroups = cgroups::all(&cgroups::root()?);
        Ok(rank(&traffic, over, &cgroups, &PodNames::read(Path::new(POD_LOGS))))
    })
    .await
}

/// The same as lines for people, which also say why nobody can be named.
pub fn named(busiest: Result<Vec<Share>, String>) -> Vec<String> {
    match busiest {
        Ok(shares) if shares.is_empty() => {
            vec!["no socket of this host in that moment: over, forwarded, or not IP".into()]
        }
        Ok(shares) => shares.iter().map(ToString::to_string).collect(),
        Err(why) => vec![format!("cannot tell: {why}")],
    }
}

/// Loading, and reading folders, takes milliseconds.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(format!("look for the cgroups with most traffic: {error}")))
}

/// The up to [`TOP`] owners with most traffic over a time `over`.
pub fn rank(traffic: &OwnerTraffic, over: Duration, cgroups: &[Cgroup], names: &PodNames) -> Vec<Share> {
    if over.is_zero() {
        return Vec::new();
    }
    let paths: BTreeMap<u64, &str> = cgroups.iter().map(|cgroup| (cgroup.id, cgroup.path.as_str())).collect();
    let mut owners = BTreeMap::<String, OwnerCounters>::new();
    let told = traffic.by_cgroup.iter().map(|(id, counters)| {
        let owner = match paths.get(id) {
            Some(path) => Owner::of(path).named(names),
            None => format!("cgroup {id} (not found: it may be gone)"),
        };
        (owner, counters)
    });
    let missed = (format!("cgroups beyond the first {}", OWNERS - 1), &traffic.missed);
    for (owner, counters) in told.chain([missed]) {
        let sum = owners.entry(owner).or_default();
        sum.rx_bytes = sum.rx_bytes.saturating_add(counters.rx_bytes);
        sum.tx_bytes = sum.tx_bytes.saturating_add(counters.tx_bytes);
    }
    let mut ranked: Vec<_> = owners
        .into_iter()
        .filter(|(_, bytes)| bytes.rx_bytes > 0 || bytes.tx_bytes > 0)
        .collect();
    ranked.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.rx_bytes.saturating_add(bytes.tx_bytes)));
    ranked.truncate(TOP);
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let per_second = |bytes: u64| bytes as f64 / over.as_secs_f64();
    let shares = ranked.into_iter().map(|(owner, bytes)| Share {
        owner,
        rx_bytes_per_sec: per_second(bytes.rx_bytes),
        tx_bytes_per_sec: per_second(bytes.tx_bytes),
    });
    shares.collect()
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:.0} B/s received, {:.0} B/s sent",
            printable(&self.owner),
            self.rx_bytes_per_sec,
            self.tx_bytes_per_sec
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(id: u64, path: &str) -> Cgroup {
        Cgroup {
            folder: Path::new("/sys/fs/cgroup").join(path),
            path: path.into(),
            id,
            is_parent: false,
        }
    }

    const fn bytes(rx_bytes: u64, tx_bytes: u64) -> OwnerCounters {
        OwnerCounters { rx_bytes, tx_bytes }
    }

    fn ranked(traffic: &OwnerTraffic) -> Vec<String> {
        let cgroups = [
            cgroup(1, ""),
            cgroup(7, "system.slice/ssh.service"),
            cgroup(8, "system.slice/ssh.service/more"),
            cgroup(9, "system.slice/cron.service"),
            cgroup(10, "user.slice/user-1000.slice/session-3.scope"),
        ];
        let shares = rank(traffic, Duration::from_millis(500), &cgroups, &PodNames::default());
        shares.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranks_owners_by_both_directions() {
        let traffic = OwnerTraffic {
            by_cgroup: [
                (1, bytes(1, 1)),
                (7, bytes(100, 50)),
                (8, bytes(0, 150)),
                (9, bytes(0, 0)),
                (10, bytes(0, 500)),
            ]
            .into(),
            missed: OwnerCounters::default(),
        };
        let expected = [
            "user 1000 session 3: 0 B/s received, 1000 B/s sent",
            "service ssh: 200 B/s received, 400 B/s sent",
            "no cgroup of its own (kernel, or processes in the root): 2 B/s received, 2 B/s sent",
        ];
        assert_eq!(ranked(&traffic), expected);
    }

    #[test]
    fn what_is_gone_or_had_no_room_is_said() {
        let traffic = OwnerTraffic {
            by_cgroup: [(4711, bytes(10, 0))].into(),
            missed: bytes(0, 20),
        };
        let expected = [
            "cgroups beyond the first 4095: 0 B/s received, 40 B/s sent",
            "cgroup 4711 (not found: it may be gone): 20 B/s received, 0 B/s sent",
        ];
        assert_eq!(ranked(&traffic), expected);
        assert_eq!(rank(&traffic, Duration::ZERO, &[], &PodNames::default()), []);
    }

    #[tokio::test]
    async fn switched_off_is_a_reason() {
        let why = busiest_over(Duration::ZERO, ProbeMode::Off).await.unwrap_err();
        assert!(why.contains("switched off"), "{why}");
    }
}
