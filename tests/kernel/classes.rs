//! Every frame is in the class it belongs to, whatever is around its headers, and in exactly one.

use std::{collections::BTreeMap, io::Write as _};

use vmstation_agent::{
    clock::BootTime,
    config::{Background, Direction, Policy},
    counters::{NetTotals, Traffic},
    probes::{Probes, Way},
};

use crate::{
    all_running, eventually,
    frames::{
        Host, ICMP, ICMPV6, TCP, UDP, ethernet, ethernet_to, extension, geneve, ipv4, ipv4_with, ipv6, tagged, tcp,
        udp, vxlan,
    },
    interface, netns,
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const ETHERNET: u16 = 0x6558;
const US: Host = Host(1);
const THEM: Host = Host(2);
const ANY: u16 = 40_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    User,
    Background,
    Multicast,
}
use Class::{Background as B, Multicast as M, User as U};

/// A frame that [`US`] sends to [`THEM`].
pub(crate) struct Flow {
    name: String,
    frame: Vec<u8>,
    /// To the sender.
    sent: Class,
    /// To the receiver.
    received: Class,
}

fn flow(name: impl Into<String>, frame: Vec<u8>, sent: Class, received: Class) -> Flow {
    Flow {
        name: name.into(),
        frame,
        sent,
        received,
    }
}

pub(crate) fn every_flow_is_in_its_class_to_the_byte() {
    let (mut probes, ends) = pair(&Policy::default().detection.background);
    let sender = netns::FrameSender::new(&ends[0].name);
    let mut expected = [BTreeMap::<Class, Traffic>::new(), BTreeMap::new()];
    let flows: Vec<_> = [by_port(), by_hand(), large()].into_iter().flatten().collect();
    assert!(flows.len() > 500, "{}", flows.len());
    let start = BootTime::now();
    for flow in &flows {
        sender.send(&flow.frame);
        let bytes = flow.frame.len() as u64;
        let sent = expected[0].entry(flow.sent).or_default();
        (sent.tx_packets, sent.tx_bytes) = (sent.tx_packets + 1, sent.tx_bytes + bytes);
        let received = expected[1].entry(flow.received).or_default();
        (received.rx_packets, received.rx_bytes) = (received.rx_packets + 1, received.rx_bytes + bytes);
        // One at a time, so that a wrong one is named.
        let seen = || (flow.name.clone(), ends.each_ref().map(|end| by_class(&probes, end)));
        eventually(seen, &(flow.name.clone(), expected.clone()));
    }
    for end in &ends {
        let totals = probes.net()[end].clone().unwrap();
        let frames: u64 = totals.all().rx_packets + totals.all().tx_packets;
        assert_eq!(frames, flows.len() as u64, "every frame once");
        let last = totals.last_user.expect("there was user traffic");
        assert!(
            last <= BootTime::now() && start.before(std::time::Duration::from_millis(20)) <= last,
            "{last:?}"
        );
    }
    // Attached afresh, an interface counts from 0 in every class.
    probes.sync_interfaces(&[]);
    probes.sync_interfaces(&ends);
    assert_eq!(probes.net()[&ends[0]], Ok(NetTotals::default()));
}

/// Every default port, from both ends, both ways, in every wrapping.
fn by_port() -> Vec<Flow> {
    let mut flows = Vec::new();
    let rules = Policy::default().detection.background.ports;
    assert!(rules.iter().any(|rule| rule.port == 22), "SSH is its own signal");
    for rule in rules {
        let (client, server) = match rule.direction {
            Direction::In => (U, B),
            Direction::Out => (B, U),
            Direction::Both => (B, B),
        };
        let protocol = match rule.transport {
            agent_ebpf::Transport::Tcp => TCP,
            agent_ebpf::Transport::Udp => UDP,
        };
        let segment = |from: u16, to: u16| {
            let payload = vec![7; usize::from(rule.port % 97)];
            if protocol == TCP {
                tcp(from, to, &payload)
            } else {
                udp(from, to, &payload)
            }
        };
        flows.extend(wrapped(
            &format!("request, {rule}"),
            protocol,
            &segment(ANY, rule.port),
            client,
            server,
        ));
        flows.extend(wrapped(
            &format!("answer, {rule}"),
            protocol,
            &segment(rule.port, ANY),
            server,
            client,
        ));
    }
    flows
}

/// The segment in everything that can be around it.
fn wrapped(name: &str, protocol: u8, segment: &[u8], sent: Class, received: Class) -> Vec<Flow> {
    let v4 = ipv4(US, THEM, protocol, segment);
    let v6 = ipv6(US, THEM, protocol, segment);
    let (in_v4, in_v6) = (ethernet(IPV4, &v4), ethernet(IPV6, &v6));
    let tunnel = |port: u16, payload: &[u8]| ethernet(IPV4, &ipv4(US, THEM, UDP, &udp(ANY, port, payload)));
    let tunnel6 = |port: u16, payload: &[u8]| ethernet(IPV6, &ipv6(US, THEM, UDP, &udp(ANY, port, payload)));
    let frames = [
        ("IPv4", in_v4.clone()),
        ("IPv6", in_v6.clone()),
        ("VLAN", tagged(VLAN, &in_v4)),
        ("VLAN, IPv6", tagged(VLAN, &in_v6)),
        ("two VLAN tags", tagged(QINQ, &tagged(VLAN, &in_v4))),
        (
            "IPv4 options",
            ethernet(IPV4, &ipv4_with(US, THEM, protocol, &[1; 12], 0, segment)),
        ),
        (
            "first fragment",
            ethernet(IPV4, &ipv4_with(US, THEM, protocol, &[], 0x2000, segment)),
        ),
        (
            "IPv6 extensions",
            ethernet(
                IPV6,
                &ipv6(US, THEM, 0, &extension(60, 1, &extension(protocol, 0, segment))),
            ),
        ),
        ("VXLAN 4789", tunnel(4789, &vxlan(&in_v4))),
        ("VXLAN 8472, IPv6", tunnel(8472, &vxlan(&in_v6))),
        ("VXLAN over IPv6", tunnel6(4789, &vxlan(&in_v4))),
        ("VXLAN in VLAN", tagged(VLAN, &tunnel(8472, &vxlan(&in_v4)))),
        ("VLAN in VXLAN", tunnel(8472, &vxlan(&tagged(VLAN, &in_v4)))),
        ("Geneve", tunnel(6081, &geneve(ETHERNET, &[], &in_v4))),
        ("Geneve with options", tunnel(6081, &geneve(ETHERNET, &[0; 8], &in_v6))),
        ("Geneve without Ethernet", tunnel(6081, &geneve(IPV4, &[], &v4))),
        ("IP in IP", ethernet(IPV4, &ipv4(US, THEM, 4, &v4))),
        ("IPv6 in IP", ethernet(IPV4, &ipv4(US, THEM, 41, &v6))),
        ("IPv6 in IPv6", ethernet(IPV6, &ipv6(US, THEM, 41, &v6))),
    ];
    frames
        .map(|(wrapping, frame)| flow(format!("{name} in {wrapping}"), frame, sent, received))
        .into()
}

fn by_hand() -> Vec<Flow> {
    let v4 = |protocol, payload: &[u8]| ethernet(IPV4, &ipv4(US, THEM, protocol, payload));
    let v6 = |protocol, payload: &[u8]| ethernet(IPV6, &ipv6(US, THEM, protocol, payload));
    let tunnel = |port: u16, payload: &[u8]| v4(UDP, &udp(ANY, port, payload));
    let web = tcp(ANY, 443, &[1; 900]);
    let in_v4 = v4(TCP, &web);
    let mut flows = wrapped("web request", TCP, &web, U, U);
    flows.extend(wrapped("web answer", TCP, &tcp(443, ANY, &[2; 1100]), U, U));
    flows.extend(wrapped("QUIC", UDP, &udp(ANY, 443, &[3; 50]), U, U));
    flows.extend(wrapped("ping", ICMP, &[8, 0, 0, 0, 0, 1, 0, 1], B, B));
    flows.extend(wrapped("neighbour discovery", ICMPV6, &[135, 0, 0, 0], B, B));
    flows.extend(wrapped("VRRP", 112, &[0x31, 1, 100, 1], B, B));
    flows.extend(wrapped("GRE", 47, &[0; 40], U, U));
    flows.extend([
        flow("DNS server", v4(UDP, &udp(ANY, 53, b"query")), B, U),
        flow("SSH to others", v4(TCP, &tcp(ANY, 22, &[0; 36])), U, B),
        flow("SSH from others", v4(TCP, &tcp(22, ANY, &[0; 36])), B, U),
        flow("ARP", ethernet(0x0806, &[0; 28]), B, B),
        flow("LLDP to one", ethernet(0x88cc, &[0; 60]), B, B),
        flow("802.1X", ethernet(0x888e, &[0; 4]), B, B),
        flow("ARP request", ethernet_to([0xff; 6], 0x0806, &[0; 28]), M, M),
        flow("LLDP", ethernet_to([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0; 60]), M, M),
        flow(
            "spanning tree",
            ethernet_to([1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42, 0x42, 3]),
            M,
            M,
        ),
        flow(
            "mDNS",
            ethernet_to(
                [1, 0, 0x5e, 0, 0, 0xfb],
                IPV4,
                &ipv4(US, Host(251), UDP, &udp(5353, 5353, &[0; 80])),
            ),
            M,
            M,
        ),
        flow(
            "DHCP",
            ethernet_to([0xff; 6], IPV4, &ipv4(US, Host(255), UDP, &udp(68, 67, &[0; 300]))),
            M,
            M,
        ),
        flow(
            "router solicitation",
            ethernet_to([0x33, 0x33, 0, 0, 0, 2], IPV6, &ipv6(US, THEM, ICMPV6, &[133, 0, 0, 0])),
            M,
            M,
        ),
        flow(
            "broadcast with a VLAN tag",
            tagged(VLAN, &ethernet_to([0xff; 6], 0x0806, &[0; 28])),
            M,
            M,
        ),
        flow("empty VXLAN", tunnel(8472, &vxlan(&[])), B, B),
        flow("empty Geneve", tunnel(6081, &geneve(ETHERNET, &[0; 4], &[])), B, B),
        flow("ARP in VXLAN", tunnel(4789, &vxlan(&ethernet(0x0806, &[0; 28]))), B, B),
        flow(
            "ARP request in VXLAN",
            tunnel(4789, &vxlan(&ethernet_to([0xff; 6], 0x0806, &[0; 28]))),
            M,
            M,
        ),
        // Doubt.
        flow("unknown ethertype", ethernet(0x88b5, &[0; 100]), U, U),
        flow("LLC to one", ethernet(3, &[0xf0, 0xf0, 3]), U, U),
        flow("no IPv4 header", ethernet(IPV4, &[]), U, U),
        flow(
            "half an IPv4 header",
            ethernet(IPV4, &ipv4(US, THEM, ICMP, &[])[..19]),
            U,
            U,
        ),
        flow("wrong version", ethernet(IPV4, &v6(ICMPV6, &[])[14..]), U, U),
        flow("header length below 5", ethernet(IPV4, &[0x44; 40]), U, U),
        flow(
            "half an IPv6 header",
            ethernet(IPV6, &ipv6(US, THEM, ICMPV6, &[])[..39]),
            U,
            U,
        ),
        flow("TCP without ports", v4(TCP, &[0x18]), U, U),
        flow(
            "options beyond the end",
            ethernet(IPV4, &{
                let mut packet = ipv4(US, THEM, TCP, &[]);
                packet[0] = 0x4f;
                packet
            }),
            U,
            U,
        ),
        flow(
            "later fragment of what could be NTP",
            ethernet(IPV4, &ipv4_with(US, THEM, UDP, &[], 0x0001, &udp(123, 123, &[]))),
            U,
            U,
        ),
        flow(
            "later fragment of IPv6",
            v6(44, &[&[UDP, 0, 0, 8, 0, 0, 0, 1], &udp(123, 123, &[])[..]].concat()),
            U,
            U,
        ),
        flow(
            "first fragment of IPv6",
            v6(44, &[&[UDP, 0, 0, 1, 0, 0, 0, 1], &udp(123, 123, &[])[..]].concat()),
            B,
            B,
        ),
        flow(
            "later fragment of a ping",
            ethernet(IPV4, &ipv4_with(US, THEM, ICMP, &[], 0x0010, &[0; 64])),
            B,
            B,
        ),
        flow(
            "more extension headers than anybody sends",
            v6(
                0,
                &(0..8).fold(udp(123, 123, &[]), |inner, n| {
                    extension(if n == 0 { UDP } else { 60 }, 0, &inner)
                }),
            ),
            U,
            U,
        ),
        flow(
            "extension header beyond the end",
            v6(0, &extension(UDP, 9, &[])[..16]),
            U,
            U,
        ),
        flow(
            "VXLAN cut off",
            tunnel(8472, &vxlan(&v4(UDP, &udp(123, 123, &[])))[..20]),
            U,
            U,
        ),
        flow(
            "a tunnel in a tunnel",
            tunnel(8472, &vxlan(&tunnel(4789, &vxlan(&v4(UDP, &udp(123, 123, &[])))))),
            U,
            U,
        ),
        flow(
            "three VLAN tags",
            tagged(VLAN, &tagged(VLAN, &tagged(VLAN, &v4(ICMP, &[8])))),
            U,
            B,
        ),
        flow(
            "unknown content of Geneve",
            tunnel(6081, &geneve(0x1234, &[], &in_v4)),
            U,
            U,
        ),
        flow(
            "from a VXLAN port",
            v4(UDP, &udp(8472, 9999, &vxlan(&v4(ICMP, &[8])))),
            U,
            U,
        ),
        flow(
            "WireGuard, as nobody configured it",
            v4(UDP, &udp(51820, 51820, &[4; 148])),
            U,
            U,
        ),
    ]);
    flows
}

/// More than a page: the kernel keeps nothing but the Ethernet header of such a frame in the linear part.
fn large() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (name, protocol, segment, class) in [
        ("large NTP", UDP, udp(123, 123, &[0; 6000]), B),
        ("large download", TCP, tcp(443, ANY, &[0; 6000]), U),
    ] {
        flows.extend(wrapped(name, protocol, &segment, class, class));
    }
    flows
}

/// What is configured replaces what was, in the kernel, while the programs stay attached.
pub(crate) fn rules_change_without_attaching_again() {
    let (mut probes, ends) = pair(&Background::default());
    let sender = netns::FrameSender::new(&ends[0].name);
    let wireguard = ethernet(IPV4, &ipv4(US, THEM, UDP, &udp(51820, 51820, &[4; 148])));
    let gre = ethernet(IPV6, &ipv6(US, THEM, 47, &[0; 40]));
    let in_vxlan = ethernet(
        IPV4,
        &ipv4(
            Host(9),
            Host(8),
            UDP,
            &udp(
                ANY,
                8472,
                &vxlan(&ethernet(IPV6, &ipv6(US, THEM, TCP, &tcp(1, 2, &[])))),
            ),
        ),
    );
    let ntp = ethernet(IPV4, &ipv4(Host(8), Host(9), UDP, &udp(123, 123, &[])));
    let frames = [&wireguard, &gre, &in_vxlan, &ntp];
    let mut before = ends.each_ref().map(|end| by_class(&probes, end));
    let mut classes = |probes: &Probes| {
        frames.map(|frame| {
            sender.send(frame);
            let mut now = before.clone();
            eventually(
                || {
                    now = ends.each_ref().map(|end| by_class(probes, end));
                    let frames = |totals: &[BTreeMap<Class, Traffic>; 2], end: usize| -> u64 {
                        totals[end]
                            .values()
                            .map(|traffic| traffic.tx_packets + traffic.rx_packets)
                            .sum()
                    };
                    [0, 1].map(|end| frames(&now, end) - frames(&before, end))
                },
                &[1, 1],
            );
            let grown = |end: usize| {
                let grown = |class: &Class| now[end].get(class) != before[end].get(class);
                [U, B, M].into_iter().find(grown).expect("one class grew")
            };
            let classes = (grown(0), grown(1));
            before = now;
            classes
        })
    };
    let background = |toml: &str| {
        let text = format!("[network_background]\ndefaults = false\n{toml}");
        let loaded = Policy::parse(
            &text,
            vmstation_agent::config::Format::Toml,
            "autosleep.toml".as_ref(),
            &|_| None,
        );
        loaded.unwrap().policy.detection.background
    };
    assert_eq!(classes(&probes), [(U, U); 4], "nothing is background");
    for (toml, expected) in [
        ("ports = [\"51820/udp\"]", [(B, B), (U, U), (U, U), (U, U)]),
        ("ports = [\"8472/udp in\"]", [(U, U), (U, U), (U, B), (U, U)]),
        ("protocols = [\"gre\"]", [(U, U), (B, B), (U, U), (U, U)]),
        // The sender's peer is 192.0.2.2, the receiver's 192.0.2.1.
        ("cidrs = [\"192.0.2.2\"]", [(B, U), (U, U), (U, U), (U, U)]),
        ("cidrs = [\"192.0.2.0/28\"]", [(B, B), (U, U), (B, B), (B, B)]),
        (
            "cidrs = [\"192.0.2.8/30\", \"10.0.0.0/8\"]",
            [(U, U), (U, U), (B, B), (B, B)],
        ),
        // The flow inside counts, not only the tunnel.
        (
            "cidrs = [\"2001:db8::2\", \"2001:db8:1::/48\"]",
            [(U, U), (B, U), (B, U), (U, U)],
        ),
        ("", [(U, U); 4]),
        (
            "ports = [\"123/udp out\"]\nprotocols = [47]",
            [(U, U), (B, B), (U, U), (B, B)],
        ),
    ] {
        probes.set_background(&background(toml)).unwrap();
        assert_eq!(classes(&probes), expected, "{toml}");
    }
}

/// A device of WireGuard or a tunnel has packets of IP and no Ethernet around them.
pub(crate) fn packets_without_ethernet_have_classes() {
    netns::no_ipv6();
    let mut device = netns::runtime().block_on(async { netns::tun(&netns::rtnetlink(), "vms0").await });
    let end = interface("vms0");
    let mut probes = all_running(&[]);
    probes.set_background(&Policy::default().detection.background).unwrap();
    probes.sync_interfaces(std::slice::from_ref(&end));
    let mut expected = BTreeMap::<Class, Traffic>::new();
    for (class, packet) in [
        (U, ipv4(THEM, US, TCP, &tcp(443, ANY, &[1; 300]))),
        (B, ipv4(THEM, US, TCP, &tcp(ANY, 9100, &[2; 30]))),
        (B, ipv6(THEM, US, UDP, &udp(123, ANY, &[3; 48]))),
        (U, ipv6(THEM, US, UDP, &udp(443, ANY, &[4; 48]))),
        (
            B,
            ipv4(THEM, US, UDP, &udp(ANY, 8472, &vxlan(&ethernet(0x0806, &[0; 28])))),
        ),
    ] {
        device.write_all(&packet).unwrap();
        let traffic = expected.entry(class).or_default();
        (traffic.rx_packets, traffic.rx_bytes) = (traffic.rx_packets + 1, traffic.rx_bytes + packet.len() as u64);
        eventually(|| by_class(&probes, &end), &expected);
    }
}

/// Whatever comes: no fault, one class, every byte.
pub(crate) fn fuzzed_frames_are_in_exactly_one_class() {
    // An emulated CPU takes minutes for all of them, and they are the same.
    let frames = if std::env::var_os("VMSTATION_GUEST").is_some() {
        10_000
    } else {
        100_000
    };
    netns::no_ipv6();
    let lo = interface("lo");
    let mut probes = all_running(&[]);
    probes.set_background(&Policy::default().detection.background).unwrap();
    probes.sync_interfaces(std::slice::from_ref(&lo));
    let seeds = seeds();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut before = probes.net()[&lo].clone().unwrap();
    let mut counts = BTreeMap::<Class, u64>::new();
    for number in 0..frames {
        let frame = fuzzed(&seeds, &mut random);
        let way = if random.below(2) == 0 { Way::Received } else { Way::Sent };
        probes
            .run_over(way, &frame)
            .unwrap_or_else(|why| panic!("frame {number}, {way:?}, {frame:02x?}: {why}"));
        let after = probes.net()[&lo].clone().unwrap();
        let grown: Vec<_> = [
            (U, before.user, after.user),
            (B, before.background, after.background),
            (M, before.multicast, after.multicast),
        ]
        .into_iter()
        .filter(|(_, before, after)| before != after)
        .collect();
        let [(class, was, is)] = grown[..] else {
            panic!("frame {number}, {way:?}, {frame:02x?} is in {grown:?}")
        };
        let mut expected = was;
        match way {
            Way::Received => {
                (expected.rx_packets, expected.rx_bytes) = (was.rx_packets + 1, was.rx_bytes + frame.len() as u64);
            }
            Way::Sent => {
                (expected.tx_packets, expected.tx_bytes) = (was.tx_packets + 1, was.tx_bytes + frame.len() as u64);
            }
        }
        assert_eq!(is, expected, "frame {number}, {way:?}, {frame:02x?}");
        *counts.entry(class).or_default() += 1;
        before = after;
    }
    println!("{counts:?}");
    assert!(
        counts.values().all(|count| *count > 1000) && counts.len() == 3,
        "{counts:?}"
    );
}

/// What noise is made of.
pub(crate) fn seeds() -> Vec<Flow> {
    [by_port(), by_hand()].into_iter().flatten().collect()
}

/// Noise, a frame cut off, or a frame with some bytes changed. The kernel runs over no frame whose outermost IP header is cut off (those
/// are in the table of flows).
pub(crate) fn fuzzed(seeds: &[Flow], random: &mut Random) -> Vec<u8> {
    const SHORTEST: usize = 15;
    let seed = &seeds[random.below(seeds.len())].frame;
    let mut frame = seed.clone();
    match random.below(4) {
        0 => frame = (0..SHORTEST + random.below(200)).map(|_| random.byte()).collect(),
        1 => frame.truncate(SHORTEST + random.below(frame.len().max(SHORTEST + 1) - SHORTEST)),
        2 => {
            for _ in 0..=random.below(4) {
                let at = random.below(frame.len().min(120));
                frame[at] = random.byte();
            }
        }
        _ => {
            // Noise behind headers that lead there.
            let from = 14 + random.below(frame.len().max(15) - 14);
            frame[from..].fill_with(|| random.byte());
        }
    }
    let shortest = match u16::from_be_bytes([frame[12], frame[13]]) {
        IPV4 => 34,
        IPV6 => 54,
        _ => SHORTEST,
    };
    frame.resize(frame.len().max(shortest), 0);
    frame
}

/// xorshift64: the same frames in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

/// Two ends of a cable, counted.
fn pair(background: &Background) -> (Probes, [vmstation_agent::counters::Interface; 2]) {
    netns::no_ipv6();
    netns::runtime().block_on(async {
        let handle = netns::rtnetlink();
        netns::veth(&handle, "vms0", "vms1").await;
        for end in ["vms0", "vms1"] {
            netns::set_mtu(&handle, end, 9000).await;
        }
    });
    let ends = [interface("vms0"), interface("vms1")];
    let mut probes = all_running(&[]);
    probes.set_background(background).unwrap();
    probes.sync_interfaces(&ends);
    (probes, ends)
}

/// The classes in which there was any traffic.
fn by_class(probes: &Probes, end: &vmstation_agent::counters::Interface) -> BTreeMap<Class, Traffic> {
    let totals = probes.net()[end].clone().unwrap();
    let classes = [(U, totals.user), (B, totals.background), (M, totals.multicast)];
    classes
        .into_iter()
        .filter(|(_, traffic)| *traffic != Traffic::default())
        .collect()
}
