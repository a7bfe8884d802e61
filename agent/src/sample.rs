//! Two readings and the time between them, turned into rates. Pure: no clock, no file, no threshold.
//!
//! Of a signal that two can tell, the program is believed if it counted for the whole time between the readings, else the plain counters.
//!
//! A counter that is smaller than before, or a CPU without an earlier value, has a new baseline: its rate is unknown for this one sample,
//! which keeps the host awake for it and no longer.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::BootTime,
    counters::{
        Counters, CpuTotals, Interface, NetTotals, PodsSeen, Program, Reading, Source, SshSeen, Traffic, Twofold,
    },
};

/// What happened between two readings.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Time of the later reading.
    pub at: BootTime,
    /// Time between the readings.
    pub over: Duration,
    /// Traffic by interface.
    pub net: Reading<BTreeMap<Interface, NetRates>>,
    /// CPU use.
    pub cpu: Reading<CpuUse>,
    /// SSH sessions at the later reading.
    pub ssh: Reading<SshSeen>,
    /// Pods at the later reading.
    pub pods: Reading<PodsSeen>,
}

/// Traffic of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NetRates {
    /// Traffic of class user; all of it where the classes are not told apart.
    pub user: TrafficRates,
    /// Background traffic.
    pub background: TrafficRates,
    /// Broadcast and multicast.
    pub multicast: TrafficRates,
    /// The counters themselves, for showing.
    pub totals: NetTotals,
}

/// Traffic of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrafficRates {
    /// Bytes received per second, >= 0.
    pub rx_bytes_per_sec: f64,
    /// Bytes sent per second, >= 0.
    pub tx_bytes_per_sec: f64,
}

/// CPU use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// Busy share of all CPUs without the agent's own, or that of the pods if only they count; percent, 0 to 100.
    pub percent: f64,
    /// Busy share of each CPU, percent, 0 to 100.
    pub by_cpu: BTreeMap<u32, f64>,
    /// Context switches per second.
    pub switches_per_sec: f64,
}

impl NetRates {
    /// All classes together.
    pub fn all(&self) -> TrafficRates {
        let sum = |part: fn(&TrafficRates) -> f64| part(&self.user) + part(&self.background) + part(&self.multicast);
        TrafficRates {
            rx_bytes_per_sec: sum(|rates| rates.rx_bytes_per_sec),
            tx_bytes_per_sec: sum(|rates| rates.tx_bytes_per_sec),
        }
    }
}

impl TrafficRates {
    /// Bytes per second in both directions.
    pub fn bytes_per_sec(&self) -> f64 {
        self.rx_bytes_per_sec + self.tx_bytes_per_sec
    }

    /// `None`: a counter went backwards.
    fn between(before: Traffic, after: Traffic, over: Duration) -> Option<Self> {
        Some(Self {
            rx_bytes_per_sec: per_second(before.rx_bytes, after.rx_bytes, over)?,
            tx_bytes_per_sec: per_second(before.tx_bytes, after.tx_bytes, over)?,
        })
    }
}

impl Sample {
    /// What happened from `before` to `after`.
    pub fn between(before: &Counters, after: &Counters) -> Self {
        let over = after.at.since(before.at);
        Self {
            at: after.at,
            over,
            net: either(&before.net, &after.net, over, traffic_rates, net_rates),
            cpu: either(&before.cpu, &after.cpu, over, cpu_use, cpu_use),
            ssh: after.ssh.clone(),
            pods: after.pods.clone(),
        }
    }

    /// The sample of a single reading: everything that is a rate is unknown.
    pub fn first(reading: &Counters) -> Self {
        Self {
            at: reading.at,
            over: Duration::ZERO,
            net: unknown_rate(&reading.net.plain),
            cpu: unknown_rate(&reading.cpu.plain),
            ssh: reading.ssh.clone(),
            pods: reading.pods.clone(),
        }
    }
}

const FIRST_READING: &str = "first reading: a rate needs two";

fn unknown_rate<C, R>(reading: &Reading<C>) -> Reading<R> {
    match reading {
        Reading::Known { .. } => Reading::Unreadable(FIRST_READING.into()),
        Reading::Unreadable(why) => Reading::Unreadable(why.clone()),
        Reading::NotConfigured => Reading::NotConfigured,
    }
}

/// What the program tells, if it counted all the time; else what the plain counters do.
fn either<P, C, R>(
    before: &Twofold<P, C>,
    after: &Twofold<P, C>,
    over: Duration,
    plain_rate: fn(&P, &P, Duration) -> Result<R, String>,
    program_rate: fn(&C, &C, Duration) -> Result<R, String>,
) -> Reading<R> {
    if matches!(after.plain, Reading::NotConfigured) {
        return Reading::NotConfigured;
    }
    match (&before.program, &after.program) {
        (
            Program::Counts {
                value: before,
                epoch: first,
            },
            Program::Counts {
                value: after,
                epoch: second,
            },
        ) if first == second && !over.is_zero() => match program_rate(before, after, over) {
            Ok(value) => Reading::Known {
                value,
                source: Source::Kernel,
            },
            Err(why) => Reading::Unreadable(why),
        },
        (_, Program::Counts { .. } | Program::Away) => {
            rates(&before.plain, &after.plain, over, &Source::Plain, plain_rate)
        }
        (_, Program::Failed(why)) => {
            let source = Source::Fallback(why.clone());
            rates(&before.plain, &after.plain, over, &source, plain_rate)
        }
    }
}

fn rates<C, R>(
    before: &Reading<C>,
    after: &Reading<C>,
    over: Duration,
    source: &Source,
    rate: fn(&C, &C, Duration) -> Result<R, String>,
) -> Reading<R> {
    match (before, after) {
        (_, Reading::NotConfigured) => Reading::NotConfigured,
        (_, Reading::Unreadable(why)) => Reading::Unreadable(why.clone()),
        (Reading::Unreadable(_) | Reading::NotConfigured, Reading::Known { .. }) => {
            Reading::Unreadable(FIRST_READING.into())
        }
        (Reading::Known { .. }, Reading::Known { .. }) if over.is_zero() => {
            Reading::Unreadable("no time passed between two readings".into())
        }
        (Reading::Known { value: before, .. }, Reading::Known { value: after, .. }) => {
            match rate(before, after, over) {
                Ok(value) => Reading::Known {
                    value,
                    source: source.clone(),
                },
                Err(why) => Reading::Unreadable(why),
            }
        }
    }
}

/// Plain counters tell no classes: in doubt all of it is user traffic.
fn traffic_rates(
    before: &BTreeMap<Interface, Traffic>,
    after: &BTreeMap<Interface, Traffic>,
    over: Duration,
) -> Result<BTreeMap<Interface, NetRates>, String> {
    let as_user = |traffic: &BTreeMap<Interface, Traffic>| {
        let user = |(interface, user): (&Interface, &Traffic)| {
            let totals = NetTotals {
                user: *user,
                ..NetTotals::default()
            };
            (interface.clone(), totals)
        };
        traffic.iter().map(user).collect()
    };
    net_rates(&as_user(before), &as_user(after), over)
}

fn net_rates(
    before: &BTreeMap<Interface, NetTotals>,
    after: &BTreeMap<Interface, NetTotals>,
    over: Duration,
) -> Result<BTreeMap<Interface, NetRates>, String> {
    if after.is_empty() {
        return Err("no network interface to watch: none is physical, or the configured ones do not exist".into());
    }
    let earlier: BTreeMap<u32, &NetTotals> = before
        .iter()
        .map(|(interface, totals)| (interface.index, totals))
        .collect();
    after
        .iter()
        .map(|(interface, totals)| {
            // An interface that appeared since then counts from zero.
            let start = earlier.get(&interface.index).copied().copied().unwrap_or_default();
            let rates = |class: fn(&NetTotals) -> Traffic| {
                TrafficRates::between(class(&start), class(totals), over)
                    .ok_or_else(|| format!("the counters of {} went backwards: new baseline", interface.name))
            };
            Ok((
                interface.clone(),
                NetRates {
                    user: rates(|totals| totals.user)?,
                    background: rates(|totals| totals.background)?,
                    multicast: rates(|totals| totals.multicast)?,
                    totals: *totals,
                },
            ))
        })
        .collect()
}

/// Plain busy time may step back by a tick; see [`crate::procfs::cpu`]. The slowest ticks are 10 ms long.
const TICK: Duration = Duration::from_millis(10);

fn cpu_use(before: &CpuTotals, after: &CpuTotals, over: Duration) -> Result<CpuUse, String> {
    if after.busy.is_empty() {
        return Err("no CPU is listed as online".into());
    }
    let mut by_cpu = BTreeMap::new();
    let mut busy = Duration::ZERO;
    for (&cpu, &now) in &after.busy {
        let start = before
            .busy
            .get(&cpu)
            .ok_or_else(|| format!("CPU {cpu} came online: new baseline"))?;
        if now + TICK < *start {
            return Err(format!("busy time of CPU {cpu} went backwards: new baseline"));
        }
        let spent = now.saturating_sub(*start);
        busy += spent;
        by_cpu.insert(cpu, percent(spent, over));
    }
    let counts = match &after.pods {
        None => busy.saturating_sub(after.own.saturating_sub(before.own)),
        Some(after) => pods_use(before.pods.as_ref(), after)?,
    };
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 CPUs")]
    let cpus = after.busy.len() as f64;
    let switches_per_sec =
        per_second(before.switches, after.switches, over).ok_or("context switches went backwards: new baseline")?;
    Ok(CpuUse {
        percent: percent(counts, over.mul_f64(cpus)),
        by_cpu,
        switches_per_sec,
    })
}

/// CPU time of the pods. A cgroup that appeared since then counts from zero.
fn pods_use(
    before: Option<&BTreeMap<String, Duration>>,
    after: &BTreeMap<String, Duration>,
) -> Result<Duration, String> {
    let before = before.ok_or(FIRST_READING)?;
    if let Some(gone) = before.keys().find(|cgroup| !after.contains_key(*cgroup)) {
        return Err(format!("the cgroup {gone} is gone: new baseline"));
    }
    let used = after.iter().map(|(cgroup, used)| {
        let start = before.get(cgroup).copied().unwrap_or_default();
        used.checked_sub(start)
            .ok_or_else(|| format!("the CPU time of {cgroup} went backwards: new baseline"))
    });
    used.sum()
}

fn per_second(before: u64, after: u64, over: Duration) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let delta = after.checked_sub(before)? as f64;
    Some(delta / over.as_secs_f64())
}

/// Readings of the CPUs are a few microseconds apart, so that a share can come out a little above 100.
fn percent(part: Duration, whole: Duration) -> f64 {
    (100.0 * part.as_secs_f64() / whole.as_secs_f64()).clamp(0.0, 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain<T>(value: T) -> Reading<T> {
        Reading::Known {
            value,
            source: Source::Plain,
        }
    }

    fn counts<T>(value: T) -> Program<T> {
        Program::Counts { value, epoch: 1 }
    }

    fn counted<P, C>(signal: &mut Twofold<P, C>) -> &mut C {
        match &mut signal.program {
            Program::Counts { value, .. } => value,
            Program::Away | Program::Failed(_) => panic!("the program counts"),
        }
    }

    fn reading(at: u64, rx: u64, tx: u64, busy_ms: [u64; 2], own_ms: u64) -> Counters {
        let eth0 = Interface {
            index: 2,
            name: "eth0".into(),
        };
        let totals = NetTotals {
            user: Traffic {
                rx_bytes: rx,
                tx_bytes: tx,
                ..Traffic::default()
            },
            background: Traffic {
                tx_bytes: 10 * tx,
                ..Traffic::default()
            },
            ..NetTotals::default()
        };
        let cpu = CpuTotals {
            busy: [
                (0, Duration::from_millis(busy_ms[0])),
                (1, Duration::from_millis(busy_ms[1])),
            ]
            .into(),
            switches: at * 10,
            own: Duration::from_millis(own_ms),
            pods: None,
        };
        Counters {
            at: BootTime(Duration::from_secs(at)),
            net: Twofold {
                plain: plain([(eth0.clone(), totals.all())].into()),
                program: counts([(eth0, totals)].into()),
            },
            cpu: Twofold {
                plain: plain(cpu.clone()),
                program: counts(cpu),
            },
            ssh: Reading::NotConfigured,
            pods: Reading::NotConfigured,
        }
    }

    #[test]
    fn rates_are_deltas_over_time() {
        let sample = Sample::between(
            &reading(100, 1000, 0, [0, 500], 0),
            &reading(110, 11_000, 500, [5000, 500], 1000),
        );
        assert_eq!(sample.over, Duration::from_secs(10));
        let net = sample.net.known().unwrap().values().next().unwrap();
        assert!((net.user.rx_bytes_per_sec - 1000.0).abs() < 1e-9);
        assert!((net.user.tx_bytes_per_sec - 50.0).abs() < 1e-9);
        assert!((net.background.bytes_per_sec() - 500.0).abs() < 1e-9);
        assert!(net.multicast.bytes_per_sec().abs() < 1e-9);
        assert!((net.all().bytes_per_sec() - 1550.0).abs() < 1e-9);
        let cpu = sample.cpu.known().unwrap();
        assert!((cpu.by_cpu[&0] - 50.0).abs() < 1e-9);
        assert!(cpu.by_cpu[&1].abs() < 1e-9);
        // 5 s of CPU 0, less 1 s of our own, of 20 CPU seconds.
        assert!((cpu.percent - 20.0).abs() < 1e-9);
        assert!((cpu.switches_per_sec - 10.0).abs() < 1e-9);
    }

    #[test]
    fn e3_a_counter_that_goes_backwards_is_unknown_for_one_sample() {
        let (high, low, next) = (
            reading(1, 900, 0, [90, 90], 0),
            reading(2, 10, 0, [10, 10], 0),
            reading(3, 20, 0, [20, 20], 0),
        );
        let restarted = Sample::between(&high, &low);
        assert!(
            matches!(&restarted.net, Reading::Unreadable(why) if why.contains("eth0")),
            "{restarted:?}"
        );
        assert!(
            matches!(&restarted.cpu, Reading::Unreadable(why) if why.contains("CPU 0")),
            "{restarted:?}"
        );
        let settled = Sample::between(&low, &next);
        assert!(
            settled.net.known().is_some() && settled.cpu.known().is_some(),
            "{settled:?}"
        );
    }

    #[test]
    fn e4_a_cpu_that_comes_online_is_a_new_baseline_and_one_that_leaves_is_dropped() {
        let both = reading(1, 0, 0, [10, 10], 0);
        let mut one = reading(2, 0, 0, [20, 0], 0);
        counted(&mut one.cpu).busy.remove(&1);
        assert_eq!(Sample::between(&both, &one).cpu.known().unwrap().by_cpu.len(), 1);
        assert!(matches!(
            Sample::between(&one, &reading(3, 0, 0, [30, 0], 0)).cpu,
            Reading::Unreadable(_)
        ));
    }

    #[test]
    fn only_pods_count_if_only_pods_are_asked_for() {
        let at = |at: u64, pods: &[(&str, u64)]| {
            let mut reading = reading(at, 0, 0, [at * 1000, at * 1000], 0);
            let pods = pods
                .iter()
                .map(|(name, ms)| ((*name).to_owned(), Duration::from_millis(*ms)));
            counted(&mut reading.cpu).pods = Some(pods.collect());
            reading
        };
        let cpu = |before: &Counters, after: &Counters| match Sample::between(before, after).cpu {
            Reading::Known { value, .. } => Ok(value.percent),
            Reading::Unreadable(why) => Err(why),
            Reading::NotConfigured => panic!("not configured"),
        };
        let before = at(10, &[("kubepods.slice", 1000)]);
        // The node was busy all the time, the pods for 4 of 20 CPU seconds.
        assert_eq!(cpu(&before, &at(20, &[("kubepods.slice", 5000)])), Ok(20.0));
        assert_eq!(
            cpu(&before, &at(20, &[("kubepods.slice", 1000), ("kubepods", 2000)])),
            Ok(10.0)
        );
        assert!(
            cpu(&before, &at(20, &[("kubepods.slice", 999)]))
                .unwrap_err()
                .contains("backwards")
        );
        assert!(cpu(&before, &at(20, &[])).unwrap_err().contains("is gone"));
        let of_node = reading(1, 0, 0, [0, 0], 0);
        assert_eq!(cpu(&of_node, &before), Err(FIRST_READING.into()));
    }

    #[test]
    fn an_interface_that_appears_counts_from_zero() {
        let before = reading(1, 0, 0, [0, 0], 0);
        let mut after = reading(2, 0, 0, [0, 0], 0);
        let new = Interface {
            index: 7,
            name: "eth1".into(),
        };
        counted(&mut after.net).insert(
            new.clone(),
            NetTotals {
                user: Traffic {
                    rx_bytes: 4096,
                    ..Traffic::default()
                },
                ..NetTotals::default()
            },
        );
        let sample = Sample::between(&before, &after);
        assert!((sample.net.known().unwrap()[&new].user.bytes_per_sec() - 4096.0).abs() < 1e-9);
    }

    #[test]
    fn e7_no_interface_is_unreadable_never_zero() {
        let mut bare = reading(2, 0, 0, [0, 0], 0);
        bare.net = Twofold {
            plain: plain(BTreeMap::new()),
            program: counts(BTreeMap::new()),
        };
        assert!(matches!(
            Sample::between(&reading(1, 0, 0, [0, 0], 0), &bare).net,
            Reading::Unreadable(_)
        ));
    }

    #[test]
    fn doubt_stays_doubt() {
        let good = reading(1, 0, 0, [0, 0], 0);
        assert!(matches!(Sample::first(&good).net, Reading::Unreadable(_)));
        assert!(
            matches!(Sample::between(&good, &good).cpu, Reading::Unreadable(_)),
            "no time passed"
        );
        let mut lost = reading(2, 0, 0, [0, 0], 0);
        lost.cpu = Twofold {
            plain: Reading::Unreadable("gone".into()),
            program: Program::Away,
        };
        assert_eq!(Sample::between(&good, &lost).cpu, Reading::Unreadable("gone".into()));
        assert!(matches!(
            Sample::between(&lost, &reading(3, 0, 0, [0, 0], 0)).cpu,
            Reading::Unreadable(_)
        ));
    }

    #[test]
    fn the_program_is_believed_only_if_it_counted_all_the_time() {
        let source = |before: &Counters, after: &Counters| match Sample::between(before, after).net {
            Reading::Known { value, source } => (value.into_values().next().unwrap().user.rx_bytes_per_sec, source),
            other => panic!("{other:?}"),
        };
        let before = reading(100, 1000, 100, [0, 0], 0);
        let after = reading(110, 2000, 200, [0, 0], 0);
        assert_eq!(source(&before, &after), (100.0, Source::Kernel));

        let mut again = after.clone();
        again.net.program = Program::Counts {
            value: counted(&mut again.net).clone(),
            epoch: 2,
        };
        assert_eq!(
            source(&before, &again),
            (100.0, Source::Plain),
            "attached anew meanwhile"
        );

        let mut away = before.clone();
        away.net.program = Program::Away;
        assert_eq!(source(&away, &after), (100.0, Source::Plain), "attached meanwhile");
        away = after.clone();
        away.net.program = Program::Away;
        assert_eq!(source(&before, &away), (100.0, Source::Plain), "taken out meanwhile");
        away.net.program = Program::Failed("no BTF".into());
        assert_eq!(source(&before, &away), (100.0, Source::Fallback("no BTF".into())));
    }

    #[test]
    fn a_step_back_of_a_tick_is_no_new_baseline() {
        let (high, low) = (reading(1, 0, 0, [15, 15], 0), reading(2, 0, 0, [10, 15], 0));
        let sample = Sample::between(&high, &low);
        assert!(sample.cpu.known().unwrap().percent.abs() < 1e-9, "{sample:?}");
    }
}
