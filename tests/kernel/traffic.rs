//! Frames are counted to the byte, on interfaces that come and go.

use std::{collections::BTreeMap, time::Duration};

use vmstation_agent::{
    counters::{Interface, NetTotals, Traffic},
    interfaces::{self, LinkWatch},
    probes::{Family, Probes},
};

use crate::{all_running, eventually, interface, netns};

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
    netns::no_ipv6();
    netns::runtime().block_on(async {
        const SECOND: Duration = Duration::from_secs(1);
        let handle = netns::rtnetlink();
        let named = ["vms0".to_owned(), "vms2".to_owned()];
        let mut probes = all_running(&[]);
        let mut watch = LinkWatch::new().expect("rtnetlink");
        let mut follow = async |probes: &mut Probes, wanted: &[&str]| loop {
            let found = interfaces::select(&named).expect("interfaces");
            probes.sync_interfaces(&found);
            if found.iter().map(|found| found.name.as_str()).eq(wanted.iter().copied()) {
                return;
            }
            watch.changed().await.expect("rtnetlink");
        };
        follow(&mut probes, &[]).await;
        assert_eq!(
            interfaces::select(&[]).expect("interfaces"),
            [],
            "no interface of the namespace is physical"
        );

        for round in 0..2 {
            netns::veth(&handle, "vms0", "vms1").await;
            tokio::time::timeout(SECOND, follow(&mut probes, &["vms0"]))
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
            follow(&mut probes, &["vms0", "vms2"]).await;
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
            tokio::time::timeout(SECOND, follow(&mut probes, &["vms2"]))
                .await
                .expect("dropped within a second");
            assert_eq!(by_name(&probes), [("vms2".into(), Ok(Traffic::default()))].into());
            netns::remove(&handle, "vms2").await;
            follow(&mut probes, &[]).await;
            assert!(probes.net().is_empty());
        }
        assert_eq!(probes.state(Family::Net), Ok(()));
    });
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
