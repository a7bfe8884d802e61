//! Which class a frame belongs to. Looks at headers only, counts nothing and changes nothing; what it cannot read is user traffic.
//!
//! One parser, compiled twice. [`Direct`] reads packet memory and gives up on rare shapes (in-band VLAN tags, IPv4 options, IPv6 extension
//! headers, options of Geneve, devices without Ethernet header, headers outside of the linear part), so that every offset is a constant.
//! [`Copied`] has the kernel copy each header and knows all shapes; it runs only when the first gave up.

use core::{mem::MaybeUninit, ptr};

use agent_ebpf::{GENEVE_PORT, NET_CIDRS, NetClass, NetRule, Side, Transport, VXLAN_PORTS};
use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, LpmTrie, lpm_trie::Key},
    helpers::bpf_skb_load_bytes,
    macros::btf_map,
    programs::TcContext,
};

#[btf_map]
static VMS_NET_RULES: Array<u64, { NetRule::WORDS as usize }> = Array::new();

/// Networks of background peers. Keys in network byte order; the value means nothing.
#[btf_map]
static VMS_NET_CIDR4: LpmTrie<[u8; 4], u32, { NET_CIDRS as usize }> = LpmTrie::new();
#[btf_map]
static VMS_NET_CIDR6: LpmTrie<[u8; 16], u32, { NET_CIDRS as usize }> = LpmTrie::new();

/// Direction of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Way {
    Received = 0,
    Sent = 1,
}

// Ethertypes (include/uapi/linux/if_ether.h), ports and the like are compared as they stand in the frame.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();
const VLAN: u16 = 0x8100_u16.to_be();
const QINQ: u16 = 0x88a8_u16.to_be();
const LLDP: u16 = 0x88cc_u16.to_be();
const EAPOL: u16 = 0x888e_u16.to_be();
const ETHERNET_IN_GENEVE: u16 = 0x6558_u16.to_be();

// Protocols of IP (IANA "Assigned Internet Protocol Numbers").
const HOP_BY_HOP: u8 = 0;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Most IPv6 extension headers that are followed. RFC 8200, 4.1, recommends an order in which there are at most five before the transport's.
const EXTENSIONS: usize = 5;

/// A header: plain bytes and 16-bit words, so that reading it at an even offset is aligned.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ethernet {
    destination: [u16; 3],
    source: [u16; 3],
    ethertype: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Tag {
    tci: u16,
    ethertype: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4 {
    /// Version and header length in words of 4 bytes.
    begin: u8,
    tos: u8,
    length: u16,
    id: u16,
    /// Flags and offset.
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: [u8; 4],
    destination: [u8; 4],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv6 {
    begin: u8,
    class: u8,
    flow: u16,
    length: u16,
    next: u8,
    hops: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// Begin of the extension headers that are followed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Extension {
    next: u8,
    /// In words of 8 bytes without the first one; nothing in a fragment header, which has 8 bytes.
    length: u8,
    /// Of a fragment header.
    offset: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
}

/// What follows the ports of UDP, then the begin of a VXLAN or Geneve header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tunnel {
    length: u16,
    checksum: u16,
    /// VXLAN: flags. Geneve: version and length of the options in words of 4 bytes.
    begin: u8,
    flags: u8,
    /// Geneve only.
    ethertype: u16,
}

/// Bytes of a frame.
trait Frame {
    /// Whether rare shapes are somebody else's.
    const GIVES_UP: bool;

    /// The header at `offset`; `None`: it cannot be had here.
    fn header<T: Copy>(&self, offset: usize) -> Option<T>;

    /// The same offset.
    fn forget(&self, offset: usize) -> usize;
}

/// The linear part, in place.
struct Direct {
    data: usize,
    end: usize,
}

impl Frame for Direct {
    const GIVES_UP: bool = true;

    #[inline(always)]
    fn header<T: Copy>(&self, offset: usize) -> Option<T> {
        let start = self.data + offset;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, as the verifier makes sure. Headers have no padding and every bit pattern is a value. The kernel
        // lays frames out so that these offsets are even.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        offset
    }
}

/// All of the frame, by a helper.
struct Copied {
    skb: *mut __sk_buff,
}

impl Frame for Copied {
    const GIVES_UP: bool = false;

    #[inline(always)]
    fn header<T: Copy>(&self, offset: usize) -> Option<T> {
        let mut header = MaybeUninit::<T>::uninit();
        let (Ok(offset), Ok(length)) = (u32::try_from(offset), u32::try_from(size_of::<T>())) else {
            return None;
        };
        // SAFETY: the helper fills the header or fails; every bit pattern is a value.
        unsafe {
            (bpf_skb_load_bytes(self.skb.cast(), offset, header.as_mut_ptr().cast(), length) == 0)
                .then(|| header.assume_init())
        }
    }

    /// Makes the verifier forget how it got here, or it would follow all that comes after for each way on its own: what is read from the
    /// middle of a stack slot can be anything.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "headers end far below 64 KiB")]
    fn forget(&self, offset: usize) -> usize {
        #[repr(C, align(8))]
        struct Slot {
            begin: u16,
            middle: u16,
        }
        let slot = Slot {
            begin: 0,
            middle: offset as u16,
        };
        // SAFETY: initialised, aligned, and alive.
        usize::from(unsafe { ptr::read_volatile(&raw const slot.middle) })
    }
}

/// What was found in one layer of a frame. Always complete: the verifier refuses to copy what was never set.
#[derive(Clone, Copy)]
struct Found {
    what: What,
    /// Where the frame inside begins, for [`What::Ethernet`], [`What::Ipv4`] and [`What::Ipv6`].
    at: usize,
}

#[derive(Clone, Copy)]
enum What {
    User,
    Background,
    Multicast,
    /// The frame carries another one, which begins with this header.
    Ethernet,
    Ipv4,
    Ipv6,
    /// A header could not be had.
    Short,
}

const USER: Found = Found::only(What::User);
const BACKGROUND: Found = Found::only(What::Background);
const MULTICAST: Found = Found::only(What::Multicast);
const SHORT: Found = Found::only(What::Short);

impl Found {
    const fn only(what: What) -> Self {
        Self { what, at: 0 }
    }
}

/// The class of the frame of this run.
#[inline(always)]
pub(crate) fn classify(ctx: &TcContext, way: Way) -> NetClass {
    let direct = Direct {
        data: ctx.data(),
        end: ctx.data_end(),
    };
    match class(&direct, ethertype(ctx.skb.skb), way) {
        Some(class) => class,
        None => match classify_copied(ctx.skb.skb, way as u32) {
            1 => NetClass::Background,
            2 => NetClass::Multicast,
            _ => NetClass::User,
        },
    }
}

/// The class of a packet that begins with the header of IP, as cgroups see it. Without an Ethernet header its address tells whether it goes
/// to a group: 224.0.0.0 and above, or ff00::/8. A broadcast to a subnet's own address looks like any other.
#[inline(always)]
pub(crate) fn classify_packet(skb: *mut __sk_buff, way: Way) -> NetClass {
    match classify_packet_copied(skb, way as u32) {
        1 => NetClass::Background,
        2 => NetClass::Multicast,
        _ => NetClass::User,
    }
}

#[inline(never)]
fn classify_packet_copied(skb: *mut __sk_buff, way: u32) -> u32 {
    let way = if way == Way::Received as u32 {
        Way::Received
    } else {
        Way::Sent
    };
    let frame = Copied { skb };
    let (to_group, begin) = match ethertype(skb) {
        IPV4 => (
            frame
                .header::<Ipv4>(0)
                .is_some_and(|header| header.destination[0] >= 224),
            What::Ipv4,
        ),
        IPV6 => (
            frame
                .header::<Ipv6>(0)
                .is_some_and(|header| header.destination[0] == 0xff),
            What::Ipv6,
        ),
        _ => (false, What::User),
    };
    if to_group {
        return NetClass::Multicast as u32;
    }
    let outer = layer(&frame, Found::only(begin), way);
    (match layer(&frame, outer, way).what {
        What::Background => NetClass::Background,
        What::Multicast => NetClass::Multicast,
        What::User | What::Ethernet | What::Ipv4 | What::Ipv6 | What::Short => NetClass::User,
    }) as u32
}

/// The same for every shape, as number of the class. A function of its own: its registers and stack are not those of the quick way.
#[inline(never)]
fn classify_copied(skb: *mut __sk_buff, way: u32) -> u32 {
    let way = if way == Way::Received as u32 {
        Way::Received
    } else {
        Way::Sent
    };
    let class = class(&Copied { skb }, ethertype(skb), way);
    class.unwrap_or(NetClass::User) as u32
}

/// `skb->protocol`: what the device or the sender said that the frame is.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits in a field of 32")]
fn ethertype(skb: *mut __sk_buff) -> u16 {
    // SAFETY: the context of this run.
    unsafe { (*skb).protocol as u16 }
}

/// `None`: gave up.
#[inline(always)]
fn class<F: Frame>(frame: &F, ethertype: u16, way: Way) -> Option<NetClass> {
    let outer = layer(frame, outermost(frame, ethertype), way);
    match layer(frame, outer, way).what {
        What::User => Some(NetClass::User),
        What::Background => Some(NetClass::Background),
        What::Multicast => Some(NetClass::Multicast),
        // A tunnel in a tunnel.
        What::Ethernet | What::Ipv4 | What::Ipv6 => Some(NetClass::User),
        What::Short => None,
    }
}

/// Goes one layer deeper, if there is one.
#[inline(always)]
fn layer<F: Frame>(frame: &F, found: Found, way: Way) -> Found {
    let at = frame.forget(found.at);
    match found.what {
        What::Ethernet => ethernet(frame, at, way),
        What::Ipv4 => ipv4(frame, at, way),
        What::Ipv6 => ipv6(frame, at, way),
        What::User | What::Background | What::Multicast | What::Short => found,
    }
}

/// Frames of a device without Ethernet header (WireGuard, tun) begin with that of IP. Nothing says so but that the kernel's word for the
/// protocol does not stand where Ethernet has it.
#[inline(always)]
fn outermost<F: Frame>(frame: &F, ethertype: u16) -> Found {
    let Some(header) = frame.header::<Ethernet>(0) else {
        return SHORT;
    };
    if header.ethertype == ethertype {
        return Found::only(What::Ethernet);
    }
    if F::GIVES_UP {
        return SHORT;
    }
    let [version, _] = header.destination[0].to_ne_bytes();
    Found::only(match (ethertype, version >> 4) {
        (IPV4, 4) => What::Ipv4,
        (IPV6, 6) => What::Ipv6,
        _ => What::Ethernet,
    })
}

#[inline(always)]
fn ethernet<F: Frame>(frame: &F, at: usize, way: Way) -> Found {
    let Some(header) = frame.header::<Ethernet>(at) else {
        return SHORT;
    };
    let [first, _] = header.destination[0].to_ne_bytes();
    // The group bit (IEEE 802).
    if first & 1 != 0 {
        return MULTICAST;
    }
    let mut ethertype = header.ethertype;
    let mut at = at + size_of::<Ethernet>();
    if matches!(ethertype, VLAN | QINQ) {
        if F::GIVES_UP {
            return SHORT;
        }
        let Some(tag) = frame.header::<Tag>(at) else {
            return SHORT;
        };
        (ethertype, at) = (tag.ethertype, at + size_of::<Tag>());
        if matches!(ethertype, VLAN | QINQ) {
            let Some(tag) = frame.header::<Tag>(at) else {
                return SHORT;
            };
            (ethertype, at) = (tag.ethertype, at + size_of::<Tag>());
        }
    }
    let at = frame.forget(at);
    match ethertype {
        IPV4 => ipv4(frame, at, way),
        IPV6 => ipv6(frame, at, way),
        ARP | LLDP | EAPOL => BACKGROUND,
        _ => USER,
    }
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, at: usize, way: Way) -> Found {
    let Some(header) = frame.header::<Ipv4>(at) else {
        return SHORT;
    };
    if header.begin != 0x45 {
        if F::GIVES_UP {
            return SHORT;
        }
        if header.begin >> 4 != 4 || header.begin & 0xf < 5 {
            return USER;
        }
    }
    if holds(NetRule::CIDRS_V4) {
        let peer = match way {
            Way::Received => header.source,
            Way::Sent => header.destination,
        };
        if VMS_NET_CIDR4.get(&Key::new(32, peer)).is_some() {
            return BACKGROUND;
        }
    }
    let length = if F::GIVES_UP {
        size_of::<Ipv4>()
    } else {
        usize::from(header.begin & 0xf) * 4
    };
    // The offset without the flags.
    let later_fragment = header.fragment & 0x1fff_u16.to_be() != 0;
    transport(frame, at + length, way, header.protocol, later_fragment)
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, at: usize, way: Way) -> Found {
    let Some(header) = frame.header::<Ipv6>(at) else {
        return SHORT;
    };
    if header.begin >> 4 != 6 {
        return USER;
    }
    if holds(NetRule::CIDRS_V6) {
        let peer = match way {
            Way::Received => header.source,
            Way::Sent => header.destination,
        };
        if VMS_NET_CIDR6.get(&Key::new(128, peer)).is_some() {
            return BACKGROUND;
        }
    }
    let (mut next, mut at, mut later_fragment) = (header.next, at + size_of::<Ipv6>(), false);
    if is_extension(next) {
        if F::GIVES_UP {
            return SHORT;
        }
        for _ in 0..EXTENSIONS {
            if !is_extension(next) {
                break;
            }
            let Some(extension) = frame.header::<Extension>(at) else {
                return SHORT;
            };
            if next == FRAGMENT {
                later_fragment |= extension.offset & 0xfff8_u16.to_be() != 0;
                at += 8;
            } else {
                at += 8 + usize::from(extension.length) * 8;
            }
            next = extension.next;
            if later_fragment {
                break;
            }
        }
    }
    transport(frame, frame.forget(at), way, next, later_fragment)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// `later_fragment`: nothing of the transport's header is in this frame.
#[inline(always)]
fn transport<F: Frame>(frame: &F, at: usize, way: Way, protocol: u8, later_fragment: bool) -> Found {
    let kind = match protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ if holds(NetRule::protocol(protocol)) => return BACKGROUND,
        IPIP if !later_fragment => {
            return Found { what: What::Ipv4, at };
        }
        IPV6_IN_IP if !later_fragment => {
            return Found { what: What::Ipv6, at };
        }
        _ => return USER,
    };
    if later_fragment {
        return USER;
    }
    let Some(ports) = frame.header::<Ports>(at) else {
        return SHORT;
    };
    let (local, peer) = match way {
        Way::Received => (ports.destination, ports.source),
        Way::Sent => (ports.source, ports.destination),
    };
    if holds(NetRule::port(kind, Side::Local, local)) || holds(NetRule::port(kind, Side::Peer, peer)) {
        return BACKGROUND;
    }
    match kind {
        Transport::Tcp => USER,
        Transport::Udp => tunnel(frame, at + size_of::<Ports>(), ports.destination),
    }
}

#[inline(always)]
fn holds(rule: NetRule) -> bool {
    VMS_NET_RULES.get(rule.word).is_some_and(|word| word & rule.mask != 0)
}

/// A tunnel is known by the port that its packets are sent to; the other tells its flows apart.
#[inline(always)]
fn tunnel<F: Frame>(frame: &F, at: usize, port: u16) -> Found {
    /// Of UDP and of either tunnel.
    const HEADERS: u16 = 16;
    const VXLAN: [u16; 2] = [VXLAN_PORTS[0].to_be(), VXLAN_PORTS[1].to_be()];
    let is_vxlan = port == VXLAN[0] || port == VXLAN[1];
    if !is_vxlan && port != GENEVE_PORT.to_be() {
        return USER;
    }
    let Some(header) = frame.header::<Tunnel>(at) else {
        return SHORT;
    };
    let inside = at + size_of::<Tunnel>() + 4;
    if is_vxlan {
        if header.length == HEADERS.to_be() {
            return BACKGROUND;
        }
        return Found {
            what: What::Ethernet,
            at: inside,
        };
    }
    let options = usize::from(header.begin & 0x3f) * 4;
    if options != 0 && F::GIVES_UP {
        return SHORT;
    }
    if usize::from(u16::from_be(header.length)) == usize::from(HEADERS) + options {
        return BACKGROUND;
    }
    match header.ethertype {
        ETHERNET_IN_GENEVE => Found {
            what: What::Ethernet,
            at: inside + options,
        },
        IPV4 => Found {
            what: What::Ipv4,
            at: inside + options,
        },
        IPV6 => Found {
            what: What::Ipv6,
            at: inside + options,
        },
        _ => USER,
    }
}
