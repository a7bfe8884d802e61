//! Bytes are attributed to the cgroup whose socket sent or received them, and what counts them leaves the kernel.

use std::{
    env, fs,
    net::{Ipv4Addr, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::Path,
    process::{self, ExitCode},
    time::Duration,
};

use agent_ebpf::OwnerCounters;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, sockopt,
};
use vmstation_agent::{
    cgroups as host,
    clock::BootTime,
    config::{Policy, ProbeMode},
    counters::{NetTotals, Traffic},
    kubepods,
    owner::PodNames,
    probes::{OwnerProbe, OwnerTraffic, PodsProbe},
    talkers,
};

use crate::{
    cgroups::{ADDRESS, CONTAINER, Cgroups, frame_to, network},
    classes::{Random, fuzzed, seeds},
    eventually,
    lifecycle::{BPF, NET_ADMIN, SYS_ADMIN, bpf_objects, drop_capabilities, still_there},
    netns, this_program,
};

/// IP and UDP.
const HEADERS: u64 = 28;

fn id(folder: &Path) -> u64 {
    fs::metadata(folder).unwrap().ino()
}

fn send(socket: &UdpSocket, count: u64, bytes: usize) {
    for _ in 0..count {
        // Counted on its way out, whether anybody is there or not.
        let _unreachable = socket.send_to(&vec![0; bytes], "192.0.2.2:9");
    }
}

/// A packet to a socket of the node, from the other end of the cable.
fn arrive(to: &UdpSocket, bytes: usize) {
    netns::FrameSender::new("vms1").send(&frame_to("vms0", to, bytes));
    let mut buffer = vec![0; bytes + 1];
    assert_eq!(to.recv(&mut buffer).expect("it arrives"), bytes);
}

fn socket(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

pub(crate) fn bytes_are_the_cgroups_of_their_sockets() {
    network();
    let cgroups = Cgroups::new();
    assert_eq!(host::root().as_deref(), Ok(cgroups.root()));
    let folders = [CONTAINER, "system.slice/quiet.service", "user.slice"].map(|path| cgroups.make(path));
    let [pod, service, user] = &folders;
    let ids = folders.each_ref().map(|folder| id(folder));
    let sockets = folders
        .each_ref()
        .map(|folder| cgroups.inside(folder, || socket(ADDRESS)));
    let local = cgroups.inside(user, || socket(Ipv4Addr::LOCALHOST));

    let probe = OwnerProbe::attach(cgroups.root()).expect("attached");
    // Others can be there too, and at one of the cgroups.
    let same = OwnerProbe::attach(cgroups.root()).expect("attached twice");
    let inner = OwnerProbe::attach(pod).expect("attached below");
    send(&sockets[0], 1000, 1000);
    send(&sockets[1], 7, 100);
    arrive(&sockets[0], 333);
    arrive(&sockets[1], 44);
    local.send_to(&[0; 500], local.local_addr().unwrap()).unwrap();
    assert_eq!(local.recv(&mut [0; 501]).unwrap(), 500);

    let of_pod = OwnerCounters {
        rx_bytes: 333 + HEADERS,
        tx_bytes: 1000 * (1000 + HEADERS),
    };
    let of_service = OwnerCounters {
        rx_bytes: 44 + HEADERS,
        tx_bytes: 7 * (100 + HEADERS),
    };
    for probe in [&probe, &same] {
        let traffic = probe.read().unwrap();
        let seen = ids.map(|id| traffic.by_cgroup.get(&id).copied());
        // Loopback does not count.
        assert_eq!(seen, [Some(of_pod), Some(of_service), None]);
        assert_eq!(traffic.missed, OwnerCounters::default());
        // What others on this machine do meanwhile is theirs; the rest of the ranking is ours.
        let ours = OwnerTraffic {
            by_cgroup: traffic
                .by_cgroup
                .into_iter()
                .filter(|(id, _)| ids.contains(id))
                .collect(),
            ..traffic
        };
        let shares = talkers::rank(
            &ours,
            Duration::from_secs(1),
            &host::all(cgroups.root()),
            &PodNames::default(),
        );
        let names: Vec<_> = shares.iter().map(|share| share.owner.as_str()).collect();
        let pod = "pod 8f3c0a52-11d2-4c0e-9d1e-6f2a7b9c0d1e container 4be1c4cba2c7 (containerd)";
        assert_eq!(names, [pod, "service quiet"]);
    }
    assert_eq!(inner.read().unwrap().by_cgroup, [(ids[0], of_pod)].into());
    drop((same, inner));
    send(&sockets[1], 1, 0);
    let later = probe.read().unwrap().by_cgroup[&id(service)];
    assert_eq!(
        later.tx_bytes,
        of_service.tx_bytes + HEADERS,
        "the others are gone, this one counts"
    );

    let objects = bpf_objects(process::id());
    assert_eq!(still_there(&objects), objects);
    drop(probe);
    eventually(|| still_there(&objects), &[].into());
}

pub(crate) fn cgroups_without_room_are_counted_together() {
    network();
    let cgroups = Cgroups::new();
    let folders = ["a", "b", "c", "d"].map(|path| cgroups.make(path));
    let sockets = folders
        .each_ref()
        .map(|folder| cgroups.inside(folder, || socket(ADDRESS)));
    let probe = OwnerProbe::attach_with_room(cgroups.root(), 2).expect("attached");
    for socket in &sockets {
        send(socket, 10, 72);
    }
    let traffic = probe.read().unwrap();
    // One of ours, unless somebody else on this machine was first.
    assert_eq!(traffic.by_cgroup.len(), 1, "{traffic:?}");
    let each = 10 * (72 + HEADERS);
    let found: Vec<_> = folders
        .iter()
        .filter_map(|folder| traffic.by_cgroup.get(&id(folder)))
        .collect();
    assert!(found.iter().all(|found| found.tx_bytes == each), "{traffic:?}");
    assert!(
        traffic.missed.tx_bytes >= (4 - found.len() as u64) * each,
        "{traffic:?}"
    );
}

pub(crate) fn a_question_cut_short_leaves_nothing_attached() {
    let why = netns::runtime().block_on(talkers::busiest_over(Duration::from_millis(1), ProbeMode::Auto));
    // Fault E1. The namespace has a /sys of its own, without cgroups.
    assert!(
        why.as_ref().is_err_and(|why| why.contains("no cgroup v2 is mounted")),
        "{why:?}"
    );

    let _cgroups = Cgroups::new();
    let before = bpf_objects(process::id());
    netns::runtime().block_on(async {
        let asked = tokio::spawn(talkers::busiest_over(Duration::from_secs(3600), ProbeMode::Auto));
        let attached = async {
            loop {
                let objects = bpf_objects(process::id());
                if objects.iter().filter(|(kind, _)| kind == "link_id").count() == 2 {
                    return objects;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let attached = tokio::time::timeout(Duration::from_secs(10), attached)
            .await
            .expect("attached");
        assert!(
            attached.iter().filter(|(kind, _)| kind == "prog_id").count() >= 2,
            "{attached:?}"
        );
        asked.abort();
        assert!(asked.await.is_err_and(|error| error.is_cancelled()));
        let left: std::collections::BTreeSet<_> = attached.difference(&before).cloned().collect();
        eventually(|| still_there(&left), &[].into());
    });
    assert_eq!(bpf_objects(process::id()), before);
}

pub(crate) fn pods_are_counted_by_class_and_nobody_else_is() {
    network();
    let cgroups = Cgroups::new();
    let pod = cgroups.make(CONTAINER);
    let service = cgroups.make("system.slice/ssh.service");
    let [pod_socket, service_socket] = [&pod, &service].map(|folder| cgroups.inside(folder, || socket(ADDRESS)));
    let pods = kubepods::find(&cgroups.make("")).expect("there is one");
    let paths: Vec<_> = pods.iter().map(|cgroup| cgroup.path.as_str()).collect();
    assert_eq!(paths, ["kubepods.slice"]);

    let probe = PodsProbe::attach(&pods, &Policy::default().detection.background).expect("attached");
    assert_eq!(probe.read(), Ok(NetTotals::default()));
    for socket in [&pod_socket, &service_socket] {
        send(socket, 100, 200);
        arrive(socket, 50);
    }
    // The time of day, a group, everybody.
    pod_socket.set_broadcast(true).unwrap();
    for (to, count) in [("192.0.2.2:123", 3), ("239.1.2.3:5000", 5), ("255.255.255.255:5000", 7)] {
        for _ in 0..count {
            pod_socket.send_to(&[0; 48], to).unwrap();
        }
    }
    let seen = probe.read().unwrap();
    let sent = |count: u64, bytes: u64| Traffic {
        tx_bytes: count * (bytes + HEADERS),
        tx_packets: count,
        ..Traffic::default()
    };
    let user = Traffic {
        rx_bytes: 50 + HEADERS,
        rx_packets: 1,
        ..sent(100, 200)
    };
    assert_eq!(
        (seen.user, seen.background, seen.multicast),
        (user, sent(3, 48), sent(12, 48))
    );
    let last = seen.last_user.expect("just now");
    assert!(BootTime::now().since(last) < Duration::from_secs(10));

    // E8, and a kubelet that makes its cgroups anew.
    assert!(probe.holds());
    drop((pod_socket, service_socket, cgroups));
    eventually(|| probe.holds(), &false);
}

pub(crate) fn fuzzed_packets_of_pods_are_in_exactly_one_class() {
    const PACKETS: u64 = 20_000;
    network();
    let cgroups = Cgroups::new();
    let pod = cgroups.make(CONTAINER);
    // Sends IP packets as they are, but for length, checksum and source.
    let raw = cgroups.inside(&pod, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        nix::sys::socket::socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).expect("raw socket")
    });
    // More than waits for a neighbour that never answers, so that sending never does.
    setsockopt(&raw, sockopt::SndBufForce, &(8 << 20)).expect("SO_SNDBUFFORCE");
    let pods = kubepods::find(&cgroups.make("")).expect("there is one");
    let probe = PodsProbe::attach(&pods, &Policy::default().detection.background).expect("attached");
    let (seeds, mut random) = (seeds(), Random(0x9e37_79b9_7f4a_7c15));
    let peer = SockaddrIn::new(192, 0, 2, 2, 0);
    let mut bytes = 0;
    for number in 0..PACKETS {
        let mut packet = fuzzed(&seeds, &mut random).split_off(14);
        packet.resize(packet.len().max(32), 0);
        packet[0] = 0x45 + u8::try_from(random.below(4)).unwrap();
        sendto(raw.as_raw_fd(), &packet, &peer, MsgFlags::empty())
            .unwrap_or_else(|error| panic!("packet {number}, {packet:02x?}: {error}"));
        bytes += packet.len() as u64;
    }
    let seen = probe.read().unwrap();
    let all = Traffic {
        tx_packets: PACKETS,
        tx_bytes: bytes,
        ..Traffic::default()
    };
    assert_eq!(seen.all(), all, "{seen:?}");
    let classes = [seen.user, seen.background, seen.multicast];
    assert!(classes.iter().all(|class| class.tx_packets > 500), "{seen:?}");
}

pub(crate) fn missing_capabilities_are_the_reason() {
    let cgroups = Cgroups::new();
    let attach_without = |capabilities: &'static [u32]| {
        let mut command = this_program("owner");
        drop_capabilities(&mut command, capabilities);
        let output = command.arg(cgroups.root()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(attach_without(&[SYS_ADMIN]), "attached\n");
    for (without, needed) in [
        (&[SYS_ADMIN, NET_ADMIN], "CAP_NET_ADMIN"),
        (&[SYS_ADMIN, BPF], "CAP_BPF"),
    ] {
        let said = attach_without(without);
        assert!(
            said.contains(needed) && said.contains("Operation not permitted"),
            "{said}"
        );
    }
}

/// Helper: says whether it can attach to the cgroup that it is given, or why not.
pub(crate) fn attach_or_say_why() -> ExitCode {
    let root = env::args_os().nth(1).expect("a cgroup");
    match OwnerProbe::attach(Path::new(&root)) {
        Ok(_probe) => println!("attached"),
        Err(why) => println!("{why}"),
    }
    ExitCode::SUCCESS
}
