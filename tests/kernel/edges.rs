//! Activity beyond an armed budget is told once; within it, or when nothing is armed, never.

use std::{
    collections::BTreeSet,
    os::fd::BorrowedFd,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use vmstation_agent::{
    clock::BootTime,
    edges::{Budget, Edge},
    probes::Probes,
};

use crate::{
    all_running, eventually,
    frames::{ethernet, ethernet_to},
    interface,
    netns::{self, FrameSender},
};

/// For local experiments (IEEE 802): of class user.
const EXPERIMENT: u16 = 0x88b5;
const ARP: u16 = 0x0806;
const FRAME: u64 = 100;
const BUSY: Duration = Duration::from_millis(50);

/// Two cables; the programs are on the `vms` end of each. This thread stays on one CPU, which accounts for itself.
fn cables() -> Probes {
    netns::no_ipv6();
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        netns::veth(&handle, "vms0", "peer0").await;
        netns::veth(&handle, "vms1", "peer1").await;
    });
    pin(sched_getcpu().unwrap());
    let mut probes = all_running(&[]);
    probes.sync_interfaces(&[interface("vms0"), interface("vms1")]);
    probes
}

pub(crate) fn traffic_beyond_the_budget_is_told_once() {
    let mut probes = cables();
    let [node, other] = ["vms0", "vms1"].map(FrameSender::new);
    send(&node, 100);
    assert_eq!(probes.edge_records(), [], "nothing was armed");

    for round in 0..3 {
        let armed = BootTime::now();
        probes.arm_edges(traffic(10 * FRAME)).unwrap();
        // Each interface for itself.
        send(&other, 10);
        send(&node, 10);
        assert_eq!(
            probes.edge_records(),
            [],
            "round {round}: what the budget holds was told"
        );
        assert!(!readable(probes.edge_fd().unwrap(), PollTimeout::ZERO));
        // A frame is sent when the call returns, and the record is there.
        send(&node, 1);
        assert!(readable(probes.edge_fd().unwrap(), PollTimeout::from(10_000_u16)));
        let told = probes.edge_records();
        let [Edge::Traffic { at, interface, bytes }] = &told[..] else {
            panic!("round {round}: {told:?}");
        };
        assert_eq!((interface.as_str(), *bytes), ("vms0", 11 * FRAME), "round {round}");
        assert!(*at >= armed && *at <= BootTime::now(), "{at} is not after {armed}");
        send(&node, 10_000);
        send(&other, 10_000);
        assert_eq!(probes.edge_records(), [], "round {round}: told twice");
    }

    // Received is as good as sent.
    probes.arm_edges(traffic(10 * FRAME)).unwrap();
    send(&FrameSender::new("peer1"), 100);
    eventually(|| interfaces(&probes.edge_records()), &vec!["vms1".to_owned()]);

    probes.arm_edges(traffic(0)).unwrap();
    probes.disarm_edges().unwrap();
    send(&node, 100);
    assert_eq!(probes.edge_records(), [], "told although it was disarmed");
    probes.arm_edges(Budget::default()).unwrap();
    send(&node, 100);
    assert_eq!(probes.edge_records(), [], "told without a budget");
}

pub(crate) fn traffic_that_is_not_the_users_is_never_told() {
    let mut probes = cables();
    let node = FrameSender::new("vms0");
    probes.arm_edges(traffic(0)).unwrap();
    for _ in 0..1000 {
        node.send(&ethernet(ARP, &[0; 28]));
        node.send(&ethernet_to([0xff; 6], EXPERIMENT, &[0; 86]));
    }
    let net = probes.net();
    let totals = net[&interface("vms0")].as_ref().unwrap();
    assert_eq!(
        (totals.background.tx_packets, totals.multicast.tx_packets),
        (1000, 1000)
    );
    assert_eq!(probes.edge_records(), []);
    send(&node, 1);
    assert_eq!(interfaces(&probes.edge_records()), ["vms0"]);
}

pub(crate) fn cpus_that_are_beyond_it_together_tell_once_each_at_most() {
    let mut probes = cables();
    let cpus: Vec<_> = probes.cpu().unwrap().busy.into_keys().collect();
    for round in 0..100 {
        probes.arm_edges(traffic(10 * FRAME)).unwrap();
        let start = Barrier::new(cpus.len());
        thread::scope(|scope| {
            for cpu in &cpus {
                let start = &start;
                scope.spawn(move || {
                    pin(usize::try_from(*cpu).unwrap());
                    let node = FrameSender::new("vms0");
                    start.wait();
                    send(&node, 100);
                });
            }
        });
        let told = probes.edge_records();
        assert!((1..=cpus.len()).contains(&told.len()), "round {round}: {told:?}");
    }
}

pub(crate) fn a_burst_is_told_without_what_was_before() {
    let mut probes = all_running(&[]);
    let cpus = probes.cpu().unwrap().busy.len();
    pin(sched_getcpu().unwrap());
    spin(4 * BUSY);
    assert_eq!(probes.edge_records(), [], "nothing was armed");

    for round in 0..3 {
        // Busy as it is armed.
        spin(4 * BUSY);
        let armed = BootTime::now();
        probes.arm_edges(cpu(BUSY)).unwrap();
        spin(4 * BUSY);
        // The CPU goes idle, or to somebody else.
        let mut told = Vec::new();
        let some = || {
            told.extend(probes.edge_records());
            !told.is_empty()
        };
        eventually(some, &true);
        for edge in &told {
            let Edge::Cpu { at, busy, .. } = edge else {
                panic!("round {round}: {edge:?}");
            };
            assert!(
                *busy > BUSY && *busy <= at.since(armed),
                "round {round}: {edge:?} since {armed}"
            );
        }
        spin(4 * BUSY);
        thread::sleep(BUSY);
        told.extend(probes.edge_records());
        let by_cpu: BTreeSet<_> = told.iter().filter_map(place).collect();
        assert!(
            by_cpu.len() == told.len() && told.len() <= cpus,
            "round {round}: told twice: {told:?}"
        );
    }

    // More than any CPU can do in that time.
    probes.arm_edges(cpu(Duration::from_secs(600))).unwrap();
    spin(4 * BUSY);
    thread::sleep(BUSY);
    assert_eq!(probes.edge_records(), [], "what the budget holds was told");
    probes.arm_edges(cpu(Duration::ZERO)).unwrap();
    probes.disarm_edges().unwrap();
    // One may be told in the moment that it was armed.
    drop(probes.edge_records());
    spin(4 * BUSY);
    thread::sleep(BUSY);
    assert_eq!(probes.edge_records(), [], "told although it was disarmed");
}

pub(crate) fn a_cpu_that_never_idles_is_told_while_it_switches() {
    let mut probes = all_running(&[]);
    let busiest = *probes.cpu().unwrap().busy.keys().next_back().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let spinners = [(); 2].map(|()| {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            pin(usize::try_from(busiest).unwrap());
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })
    });
    probes.arm_edges(cpu(BUSY)).unwrap();
    let told = || {
        let told = probes.edge_records();
        // Another CPU may have been first.
        let is_it = told.iter().any(|edge| place(edge) == Some(busiest));
        if !is_it && !told.is_empty() {
            probes.arm_edges(cpu(BUSY)).unwrap();
        }
        is_it
    };
    eventually(told, &true);
    over.store(true, Ordering::Relaxed);
    for spinner in spinners {
        spinner.join().unwrap();
    }
}

fn traffic(bytes: u64) -> Budget {
    Budget {
        traffic_bytes: Some(bytes),
        busy: None,
    }
}

fn cpu(busy: Duration) -> Budget {
    Budget {
        traffic_bytes: None,
        busy: Some(busy),
    }
}

fn interfaces(told: &[Edge]) -> Vec<String> {
    told.iter()
        .map(|edge| match edge {
            Edge::Traffic { interface, .. } => interface.clone(),
            Edge::Cpu { .. } => panic!("not armed: {edge:?}"),
        })
        .collect()
}

fn place(edge: &Edge) -> Option<u32> {
    match edge {
        Edge::Traffic { .. } => None,
        Edge::Cpu { cpu, .. } => Some(*cpu),
    }
}

/// Frames of [`FRAME`] bytes, of class user.
fn send(sender: &FrameSender, count: usize) {
    let frame = ethernet(EXPERIMENT, &[0; 86]);
    assert_eq!(frame.len() as u64, FRAME);
    for _ in 0..count {
        sender.send(&frame);
    }
}

fn readable(fd: BorrowedFd<'_>, within: PollTimeout) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], within).unwrap() == 1
}

/// This thread, to one CPU.
fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

fn spin(time: Duration) {
    let start = BootTime::now();
    while BootTime::now().since(start) < time {
        std::hint::spin_loop();
    }
}
