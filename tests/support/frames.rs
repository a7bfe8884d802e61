//! Frames as bytes, layer around layer. Checksums are 0: nobody who counts frames looks at them.

/// A host of the network, or somebody behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host(pub(crate) u8);

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Unicast, from nobody to nobody: no network stack answers.
pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    ethernet_to([0x02, 0, 0, 0, 0, 0x77], ethertype, payload)
}

pub(crate) fn ethernet_to(destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let source = [0x02, 0, 0, 0, 0, 0x66];
    [&destination, &source, &ethertype.to_be_bytes()[..], payload].concat()
}

/// The frame with one more VLAN tag in front of its ethertype.
pub(crate) fn tagged(tag_type: u16, frame: &[u8]) -> Vec<u8> {
    let tag = [tag_type.to_be_bytes(), 42_u16.to_be_bytes()].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

pub(crate) fn ipv4(from: Host, to: Host, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(from, to, protocol, &[], 0, payload)
}

/// `options`: a multiple of 4 bytes. `fragment`: flags and offset.
pub(crate) fn ipv4_with(from: Host, to: Host, protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let length = u16::try_from(20 + options.len() + payload.len()).unwrap();
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend([192, 0, 2, from.0, 192, 0, 2, to.0]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

pub(crate) fn ipv6(from: Host, to: Host, next: u8, payload: &[u8]) -> Vec<u8> {
    let address = |host: Host| [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host.0];
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(address(from));
    packet.extend(address(to));
    packet.extend(payload);
    packet
}

/// An extension header of IPv6 with `words` of 8 bytes beyond the first.
pub(crate) fn extension(next: u8, words: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 8 + usize::from(words) * 8];
    header[..2].copy_from_slice(&[next, words]);
    [&header, payload].concat()
}

pub(crate) fn tcp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    [&from.to_be_bytes(), &to.to_be_bytes(), &rest[..], payload].concat()
}

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    [&from.to_be_bytes(), &to.to_be_bytes(), &length, &[0, 0], payload].concat()
}

/// Payload of a VXLAN packet.
pub(crate) fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 1, 0], frame].concat()
}

/// Payload of a Geneve packet; `options`: a multiple of 4 bytes.
pub(crate) fn geneve(ethertype: u16, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).unwrap();
    let [high, low] = ethertype.to_be_bytes();
    [&[words, 0, high, low, 0, 0, 1, 0], options, inner].concat()
}
