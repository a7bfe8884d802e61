//! Frames are counted to the byte, on interfaces that come and go.

use std::{collections::BTreeMap, time::Duration};

use vmstation_agent::{
    counters::{Interface, NetTotals, Traffic},
    interfaces::{self, LinkWatch},
    probes::{Family, Probes},
};

use crate::{all_running, eventually, interface, netns};

/// An interface that comes, goes or changes is noticed within this time.
const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn one_frame_is_counted_to_the_byte() {
    count_frames(1);
}

pub(crate) fn many_frames_are_counted_to_the_byte() {
    count_frames(100_000);
}

/// Sends `count` frames each way and compares both ends' counters.
fn count_frames(count: usize) {
    netns::no_ipv6();
    let runtime = netns::runtime();
    runtime.block_on(async { netns::veth(&netns::rtnetlink(), "vms0", "vms1").await });
    let ends = [interface("vms0"), interface("vms1")];
    let mut probes = all_running(&[]);
    probes.sync_interfaces(&ends);
    let frames = [
        (60, false),
        (61, false),
        (64, true),
        (333, true),
        (1514, false),
        (1518, true),
    ];
    let frames = frames.map(|(len, tagged)| netns::frame(len, tagged));
    let mut expected = [Traffic::default(); 2];
    for (from, to) in [(0, 1), (1, 0)] {
        let sender = netns::FrameSender::new(&ends[from].name);
        for (number, frame) in frames.iter().cycle().take(count).enumerate() {
            sender.send(frame);
            expected[from].tx_packets += 1;
            expected[from].tx_bytes += frame.len() as u64;
            expected[to].rx_packets += 1;
            expected[to].rx_bytes += frame.len() as u64;
            // Fewer than net.core.netdev_max_backlog (1000) are under way, or the kernel would drop some.
            if (number + 1) % 500 == 0 || number + 1 == count {
                let seen = || {
                    ends.each_ref()
                        .map(|end| probes.net()[end].as_ref().map(NetTotals::all).map_err(String::clone))
                };
                eventually(seen, &expected.map(Ok));
            }
        }
    }
}

pub(crate) fn interfaces_come_and_go() {
    const NAMED: [&str; 2] = ["vms0", "vms2"];
    netns::no_ipv6();
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        let mut probes = all_running(&[]);
        let mut watch = LinkWatch::new().expect("rtnetlink");
        follow(&mut probes, &mut watch, &NAMED, &[]).await;
        assert_eq!(
            interfaces::select(&[]).expect("interfaces"),
            [],
            "no interface of the namespace is physical"
        );

        for round in 0..2 {
            netns::veth(&handle, "vms0", "vms1").await;
            tokio::time::timeout(SECOND, follow(&mut probes, &mut watch, &NAMED, &["vms0"]))
                .await
                .expect("attached within a second");
            assert_eq!(
                by_name(&probes),
                [("vms0".into(), Ok(Traffic::default()))].into(),
                "round {round}"
            );
            netns::FrameSender::new("vms0").send(&netns::frame(100, false));
            let one = Traffic {
                tx_bytes: 100,
                tx_packets: 1,
                ..Traffic::default()
            };
            assert_eq!(by_name(&probes), [("vms0".into(), Ok(one))].into());

            netns::veth(&handle, "vms2", "vms3").await;
            follow(&mut probes, &mut watch, &NAMED, &["vms0", "vms2"]).await;
            assert_eq!(
                by_name(&probes),
                [("vms0".into(), Ok(one)), ("vms2".into(), Ok(Traffic::default()))].into()
            );

            netns::remove(&handle, "vms0").await;
            assert_eq!(
                probes.net().len(),
                2,
                "until the list is read again, the interface is there, with the reason why it is not counted"
            );
            tokio::time::timeout(SECOND, follow(&mut probes, &mut watch, &NAMED, &["vms2"]))
                .await
                .expect("dropped within a second");
            assert_eq!(by_name(&probes), [("vms2".into(), Ok(Traffic::default()))].into());
            netns::remove(&handle, "vms2").await;
            follow(&mut probes, &mut watch, &NAMED, &[]).await;
            assert!(probes.net().is_empty());
        }
        assert_eq!(probes.state(Family::Net), Ok(()));
    });
}

/// Waits by netlink until these are the interfaces of `named` that there are.
async fn follow(probes: &mut Probes, watch: &mut LinkWatch, named: &[&str], wanted: &[&str]) {
    let named: Vec<String> = named.iter().copied().map(String::from).collect();
    loop {
        let found = interfaces::select(&named).expect("interfaces");
        probes.sync_interfaces(&found);
        if found.iter().map(|found| found.name.as_str()).eq(wanted.iter().copied()) {
            return;
        }
        watch.changed().await.expect("rtnetlink");
    }
}

pub(crate) fn interfaces_are_renamed_and_moved() {
    const NAMED: [&str; 2] = ["vms0", "vms9"];
    netns::no_ipv6();
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        let mut probes = all_running(&[]);
        let mut watch = LinkWatch::new().expect("rtnetlink");
        netns::veth(&handle, "vms0", "vms1").await;
        follow(&mut probes, &mut watch, &NAMED, &["vms0"]).await;
        netns::FrameSender::new("vms0").send(&netns::frame(100, false));

        netns::ip("link set vms0 down");
        netns::ip("link set vms0 name vms9");
        netns::ip("link set vms9 up");
        tokio::time::timeout(SECOND, follow(&mut probes, &mut watch, &NAMED, &["vms9"]))
            .await
            .expect("renamed within a second");
        netns::FrameSender::new("vms9").send(&netns::frame(60, false));
        let both = Traffic {
            tx_bytes: 160,
            tx_packets: 2,
            ..Traffic::default()
        };
        assert_eq!(by_name(&probes), [("vms9".into(), Ok(both))].into());

        let _elsewhere = netns::move_away(&handle, "vms9").await;
        tokio::time::timeout(SECOND, follow(&mut probes, &mut watch, &NAMED, &[]))
            .await
            .expect("dropped within a second");
        assert!(probes.net().is_empty());
    });
}

pub(crate) fn bridge_and_macvlan_count_once() {
    netns::no_ipv6();
    cables();
    // With snooping it joins a group of its own (RFC 4286), and says so up to two times when it comes up.
    netns::ip("link add vmsbr type bridge mcast_snooping 0");
    netns::ip("link set vms0 master vmsbr");
    netns::ip("link set vmsbr up");
    netns::ip("link add link vms2 name vmsmac type macvlan mode bridge");
    netns::ip("link set vmsmac up");
    each_frame_counts_once(&["vmsbr", "vmsmac"]);
}

pub(crate) fn bond_and_vlan_count_once() {
    netns::no_ipv6();
    cables();
    netns::ip("link add vmsbond type bond mode balance-rr miimon 50");
    for port in ["vms0", "vms2"] {
        netns::ip(&format!("link set {port} down"));
        netns::ip(&format!("link set {port} master vmsbond"));
    }
    netns::ip("link set vmsbond up");
    netns::ip("link add link vmsbond name vmsvlan type vlan id 42");
    netns::ip("link set vmsvlan up");
    let carrier = || std::fs::read_to_string("/sys/class/net/vmsvlan/carrier").unwrap_or_default();
    eventually(carrier, &"1\n".to_owned());
    each_frame_counts_once(&["vmsbond", "vmsvlan"]);
}

fn cables() {
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        netns::veth(&handle, "vms0", "vms1").await;
        netns::veth(&handle, "vms2", "vms3").await;
    });
}

/// One frame out of each of `uppers`, which lie on vms0 and vms2, and one into each of these.
fn each_frame_counts_once(uppers: &[&str]) {
    let named: Vec<String> = uppers
        .iter()
        .chain(&["vms0", "vms2"])
        .copied()
        .map(String::from)
        .collect();
    let selected = interfaces::select(&named).unwrap();
    assert_eq!(
        selected
            .iter()
            .map(|interface| interface.name.as_str())
            .collect::<Vec<_>>(),
        ["vms0", "vms2"]
    );
    let left_out = interfaces::left_out(&named).unwrap();
    assert!(left_out.keys().eq(uppers), "{left_out:?}");
    assert_eq!(interfaces::select(&[]).unwrap(), [], "none of these is physical");
    assert_eq!(
        interfaces::select(&[uppers[0].to_owned()]).unwrap().len(),
        1,
        "on its own it counts"
    );

    let mut probes = all_running(&[]);
    probes.sync_interfaces(&selected);
    for upper in uppers {
        netns::FrameSender::new(upper).send(&netns::frame(100, false));
    }
    for peer in ["vms1", "vms3"] {
        netns::FrameSender::new(peer).send(&netns::frame(100, false));
    }
    let packets = || {
        let counted = probes.net().into_values().map(|totals| totals.unwrap().all());
        counted.fold([0, 0], |[received, sent], one| {
            [received + one.rx_packets, sent + one.tx_packets]
        })
    };
    eventually(packets, &[2, uppers.len() as u64]);
}

pub(crate) fn interfaces_that_share_a_slot_are_refused() {
    let mut probes = all_running(&[]);
    let lo = interface("lo");
    let twin = Interface {
        index: lo.index + agent_ebpf::NET_SLOTS,
        name: "twin0".into(),
    };
    probes.sync_interfaces(&[lo.clone(), twin.clone()]);
    let net = probes.net();
    assert!(net[&lo].is_ok());
    assert!(
        net[&twin]
            .as_ref()
            .is_err_and(|why| why.contains("share its counter with lo")),
        "{net:?}"
    );
}

fn by_name(probes: &Probes) -> BTreeMap<String, Result<Traffic, String>> {
    probes
        .net()
        .into_iter()
        .map(|(interface, totals)| (interface.name, totals.map(|totals| totals.all())))
        .collect()
}
