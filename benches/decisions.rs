//! What one check costs besides reading: a sample judged, and the idle machine told. Pure code.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use vmstation_agent::{
    clock::BootTime,
    config::Policy,
    counters::{Interface, Reading, SshSeen},
    idle::{Event, Finding, Idle, Settings},
    sample::{CpuUse, NetRates, Sample, TrafficRates},
    verdict::{Verdict, judge},
};

const AT: BootTime = BootTime(Duration::from_secs(1000));

fn known<T>(value: T) -> Reading<T> {
    Reading::Known {
        value,
        source: vmstation_agent::counters::Source::Kernel,
    }
}

/// Of a node with four interfaces and 64 CPUs.
fn sample(percent: f64) -> Sample {
    let rates = NetRates {
        user: TrafficRates {
            rx_bytes_per_sec: 100.0,
            tx_bytes_per_sec: 100.0,
        },
        ..NetRates::default()
    };
    let interface = |index| Interface {
        index,
        name: format!("eth{index}"),
    };
    Sample {
        at: AT,
        over: Duration::from_secs(10),
        net: known((1..=4).map(|index| (interface(index), rates)).collect()),
        cpu: known(CpuUse {
            percent,
            by_cpu: (0..64).map(|cpu| (cpu, percent)).collect(),
            ..CpuUse::default()
        }),
        ssh: known(SshSeen::default()),
        pods: Reading::NotConfigured,
    }
}

fn idle() -> Idle {
    let settings = Settings {
        enabled: true,
        inactivity_timeout: Duration::from_secs(7200),
        grace_period: Duration::from_secs(60),
        warn_before: None,
        min_awake: Duration::from_secs(180),
    };
    Idle::new(settings, AT)
}

fn check(sample: &Sample, policy: &Policy, idle: &mut Idle) {
    let judgement = judge(sample, policy);
    let event = Event::Checked {
        begun: AT,
        finding: match judgement.verdict {
            Verdict::Quiet => Finding::Quiet,
            Verdict::Busy(_) => Finding::Busy,
        },
        last_activity: judgement.last_activity,
    };
    black_box(idle.handle(event, AT));
}

fn decisions(criterion: &mut Criterion) {
    let policy = Policy::default();
    let mut group = criterion.benchmark_group("check");
    group
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_secs(1));
    for (name, percent) in [("quiet", 1.0), ("busy", 90.0)] {
        let sample = sample(percent);
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                idle,
                |idle| check(black_box(&sample), &policy, idle),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
