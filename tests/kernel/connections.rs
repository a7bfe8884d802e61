//! Connections to the SSH ports: counters, records, and what must not count.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use agent_ebpf::{SshCounters, SshRecord, SshRecordKind};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{Backlog, listen},
    },
};
use vmstation_agent::{
    clock::BootTime,
    config::{ProbeMode, SshNamespaces},
    probes::{Family, Probes},
};

use crate::{all_running, eventually, netns};

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    ClientCloses,
    /// The client's FIN finds the server's socket, or, if the client was slow to acknowledge, a smaller one that does not count (FIN_WAIT2).
    ServerCloses,
    ServerShutsDown,
    ClientResets,
    ServerResets,
}

pub(crate) fn ssh_connections_and_bytes_are_exact() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut probes = all_running(&[port]);
    let ends = [
        End::ClientCloses,
        End::ServerCloses,
        End::ServerShutsDown,
        End::ClientResets,
        End::ServerResets,
    ];
    let (mut expected, mut clients, mut unsettled) = (SshCounters::default(), Vec::new(), 0);
    let before = BootTime::now();
    for (number, end) in ends.into_iter().cycle().take(200).enumerate() {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        clients.push(peer);
        let (request, answer) = (vec![1; 10 + number * 7], vec![2; 20 + number * 31]);
        client.write_all(&request).unwrap();
        server.read_exact(&mut vec![0; request.len()]).unwrap();
        server.write_all(&answer).unwrap();
        client.read_exact(&mut vec![0; answer.len()]).unwrap();
        // Acknowledges the answer: a reset would throw a late acknowledgement away.
        client.write_all(&[3]).unwrap();
        server.read_exact(&mut [0]).unwrap();
        // As in tcp_info, a FIN is one byte for whoever received or acknowledged it.
        let (fin_received, fin_acknowledged) = match end {
            End::ServerCloses => {
                unsettled += 1;
                (false, true)
            }
            End::ClientCloses | End::ServerShutsDown => (true, true),
            End::ClientResets | End::ServerResets => (false, false),
        };
        finish(client, server, end);
        expected.opened += 1;
        expected.closed += 1;
        expected.rx_bytes += request.len() as u64 + 1 + u64::from(fin_received);
        expected.tx_bytes += answer.len() as u64 + u64::from(fin_acknowledged);
    }
    eventually(|| probes.ssh().map(|seen| (seen.opened, seen.closed)), &Ok((200, 200)));
    let seen = probes.ssh().unwrap();
    assert_eq!((seen.tx_bytes, seen.lost), (expected.tx_bytes, 0));
    let rx = expected.rx_bytes..=expected.rx_bytes + unsettled;
    assert!(
        rx.contains(&seen.rx_bytes),
        "{} bytes received, not {rx:?}",
        seen.rx_bytes
    );
    let last = BootTime::from_nanos(probes.ssh().unwrap().last_activity_ns);
    assert!(
        before <= last && last <= BootTime::now(),
        "{last} is not between {before} and now"
    );

    assert!(readable(&probes));
    let records = connection_records(&mut probes);
    assert!(!readable(&probes));
    assert!(records.is_sorted_by_key(|record| record.at_ns));
    for kind in [SshRecordKind::Opened, SshRecordKind::Closed] {
        let of_kind = records.iter().filter(|record| record.kind == kind as u32);
        let peers = of_kind.map(|record| {
            SocketAddr::new(
                Ipv4Addr::from_bits(u32::from_be_bytes(*record.peer.last_chunk().unwrap())).into(),
                record.peer_port,
            )
        });
        assert!(peers.eq(clients.iter().copied()), "each connection has one {kind:?}");
    }
    assert!(
        records
            .iter()
            .all(|record| record.local_port == port && record.peer[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
    );
}

fn finish(mut client: TcpStream, mut server: TcpStream, end: End) {
    let at_end = |stream: &mut TcpStream| assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let is_reset = |stream: &mut TcpStream| {
        assert_eq!(
            stream.read(&mut [0]).unwrap_err().raw_os_error(),
            Some(libc::ECONNRESET)
        );
    };
    match end {
        End::ClientCloses => {
            drop(client);
            at_end(&mut server);
        }
        End::ServerCloses => {
            drop(server);
            at_end(&mut client);
        }
        End::ServerShutsDown => {
            server.shutdown(Shutdown::Write).unwrap();
            at_end(&mut client);
            drop(client);
            at_end(&mut server);
        }
        End::ClientResets => {
            netns::reset_on_close(&client);
            drop(client);
            is_reset(&mut server);
        }
        End::ServerResets => {
            netns::reset_on_close(&server);
            drop(server);
            is_reset(&mut client);
        }
    }
}

pub(crate) fn ssh_counts_the_listening_side_only() {
    let watched = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = watched.local_addr().unwrap().port();
    let mut probes = all_running(&[1, port]);
    for _ in 0..10 {
        // The client's port is the watched one.
        let client = netns::connect_from(SocketAddr::from(([127, 0, 0, 2], port)), other.local_addr().unwrap());
        let (server, _) = other.accept().unwrap();
        netns::reset_on_close(&client);
        drop((client, server));
    }
    drop(other);
    assert!(
        TcpStream::connect(("127.0.0.1", 1)).is_err(),
        "nobody listens on port 1"
    );
    // A stranger's connection to another port and back, and one that counts, over IPv6.
    let six = TcpListener::bind(("::1", port)).unwrap();
    let client = TcpStream::connect(("::1", port)).unwrap();
    let from = client.local_addr().unwrap();
    drop(client);
    drop(six.accept().unwrap());
    eventually(
        || probes.ssh().map(|seen| (seen.opened, seen.closed, seen.lost)),
        &Ok((1, 1, 0)),
    );
    let opened = connection_records(&mut probes)
        .into_iter()
        .find(|record| record.kind == SshRecordKind::Opened as u32)
        .unwrap();
    assert_eq!(SocketAddr::from((opened.peer, opened.peer_port)), from);
}

pub(crate) fn ssh_connections_from_before_end_with_a_record() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, peer) = listener.accept().unwrap();
    let mut probes = all_running(&[listener.local_addr().unwrap().port()]);
    drop((client, server));
    let mut records = Vec::new();
    let ended = || {
        records.extend(connection_records(&mut probes));
        records.len()
    };
    eventually(ended, &1);
    assert_eq!(
        (records[0].kind, records[0].peer_port),
        (SshRecordKind::Closed as u32, peer.port())
    );
    let seen = probes.ssh().unwrap();
    assert_eq!((seen.opened, seen.closed, seen.rx_bytes, seen.tx_bytes), (0, 0, 0, 0));
}

pub(crate) fn ssh_server_forks_are_told() {
    let mut probes = all_running(&[]);
    let spawn = || {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    spawn();
    fs::write("/proc/self/comm", "sshd-session").unwrap();
    let child = spawn();
    fs::write("/proc/self/comm", "kernel-test").unwrap();
    spawn();
    let ours: Vec<_> = probes
        .ssh_records()
        .into_iter()
        .filter(|record| record.pid == std::process::id())
        .collect();
    let [record] = ours[..] else { panic!("{ours:?}") };
    assert_eq!((record.kind, record.child), (SshRecordKind::Forked as u32, child));
    assert!(BootTime::from_nanos(record.at_ns) <= BootTime::now());
}

pub(crate) fn ssh_in_another_network_namespace_does_not_count() {
    const PORT: u16 = 2022;
    let load = |namespaces| {
        let probes = Probes::load_with(&[PORT], namespaces, ProbeMode::Always);
        assert_eq!(probes.state(Family::Ssh), Ok(()));
        probes
    };
    let (mut own, mut all) = (load(SshNamespaces::Host), load(SshNamespaces::All));
    // A connection, and a fork of something that looks like its server.
    let visit = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        netns::reset_on_close(&client);
        drop((client, server));
        fs::write("/proc/thread-self/comm", "sshd-session").unwrap();
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let pod = thread::spawn(move || {
        netns::enter();
        visit()
    });
    let in_pod = pod.join().unwrap();
    let at_home = thread::spawn(visit).join().unwrap();
    let both = |probes: &Probes| probes.ssh().map(|seen| (seen.opened, seen.closed, seen.lost));
    eventually(|| both(&all), &Ok((2, 2, 0)));
    assert_eq!(both(&own), Ok((1, 1, 0)));
    let forked = |probes: &mut Probes| -> Vec<u32> {
        let records = probes.ssh_records().into_iter();
        let ours = records.filter(|record| record.kind == SshRecordKind::Forked as u32);
        ours.map(|record| record.child)
            .filter(|child| [in_pod, at_home].contains(child))
            .collect()
    };
    assert_eq!(forked(&mut all), [in_pod, at_home]);
    assert_eq!(forked(&mut own), [at_home]);
}

pub(crate) fn a_flood_of_connections_is_counted_and_bounded() {
    const AT_ONCE: u64 = 400;
    const CLIENTS: u64 = 4;
    // Both ends of each: more descriptors than most logins have by default.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    // All of them fit, however late they are accepted: one that did not would be tried again, later each time.
    listen(&listener, Backlog::new(2000).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut probes = all_running(&[address.port()]);
    let memory = map_memory();
    let accepts =
        thread::spawn(move || -> Vec<_> { (0..AT_ONCE * CLIENTS).map(|_| listener.accept().unwrap()).collect() });
    let connect = move || -> Vec<_> { (0..AT_ONCE).map(|_| TcpStream::connect(address).unwrap()).collect() };
    let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(connect)).collect();
    let held: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let accepted = accepts.join().unwrap();
    held.iter().for_each(netns::reset_on_close);
    drop((held, accepted));
    let all = AT_ONCE * CLIENTS;
    // Every opening counts, and every end of what was opened: none is left in the kernel when its socket is gone.
    eventually(|| probes.ssh().map(|seen| (seen.opened, seen.closed)), &Ok((all, all)));
    let lost = probes.ssh().unwrap().lost;
    let mut records = 0;
    loop {
        let taken = probes.ssh_records();
        if taken.is_empty() {
            break;
        }
        records += taken
            .iter()
            .filter(|record| record.local_port == address.port())
            .count() as u64;
    }
    assert!(
        lost > 0 && records > 0,
        "a flood this large does not fit: {records} records, {lost} lost"
    );
    assert!(
        records + lost >= 2 * all,
        "{records} records and {lost} lost of {}",
        2 * all
    );
    assert!(!memory.is_empty());
    assert_eq!(map_memory(), memory, "the maps grow with the connections");
}

/// Bytes locked by every map that this process holds, by name of the file that tells (`memlock` in /proc/PID/fdinfo).
fn map_memory() -> Vec<u64> {
    let files = fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    let mut bytes: Vec<u64> = texts
        .filter(|text| text.contains("map_id:"))
        .filter_map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"))?;
            line.trim().parse().ok()
        })
        .collect();
    bytes.sort_unstable();
    bytes
}

pub(crate) fn a_full_ring_buffer_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut probes = all_running(&[address.port()]);
    for _ in 0..1000 {
        let client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        netns::reset_on_close(&client);
        drop((client, server));
    }
    // 2000 records for a ring with room for 1,365; connections are counted all the same.
    eventually(
        || probes.ssh().map(|seen| (seen.opened, seen.closed)),
        &Ok((1000, 1000)),
    );
    let lost = probes.ssh().unwrap().lost;
    assert!(lost >= 2000 - 1365, "{lost} lost");
    let mut records = connection_records(&mut probes).len() as u64;
    records += connection_records(&mut probes).len() as u64;
    assert!(records + lost >= 2000, "{records} records and {lost} lost");
    drop(TcpStream::connect(address).unwrap());
    assert!(
        !connection_records(&mut probes).is_empty(),
        "a ring that was full works again"
    );
}

/// Without those of forks, which real SSH servers on the machine may cause.
fn connection_records(probes: &mut Probes) -> Vec<SshRecord> {
    let mut records = probes.ssh_records();
    records.retain(|record| record.kind != SshRecordKind::Forked as u32);
    records
}

fn readable(probes: &Probes) -> bool {
    let mut fds = [PollFd::new(probes.ssh_fd().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}
