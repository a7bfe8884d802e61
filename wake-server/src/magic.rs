//! The magic packet, as bytes. Pure: knows no interface and sends nothing.
//!
//! A sleeping card looks for the pattern anywhere in a frame (AMD, "Magic Packet Technology", publication 20213, 1995): so the same
//! payload goes into a bare Ethernet frame and into a UDP datagram.

use vmstation_protocol::MacAddr;

/// EtherType of Wake-on-LAN in a bare frame (IEEE registry of EtherTypes).
pub const ETHER_TYPE: u16 = 0x0842;
/// Where a frame goes that everybody is to see.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// How often the address is repeated.
const REPETITIONS: usize = 16;

/// Six bytes 0xff, the address 16 times, and the SecureOn password (4 or 6 bytes), if there is one: 102, 106 or 108 bytes.
pub fn payload(mac: MacAddr, secure_on: Option<&[u8]>) -> Vec<u8> {
    let password = secure_on.unwrap_or_default();
    let mut payload = Vec::with_capacity(BROADCAST.len() * (1 + REPETITIONS) + password.len());
    payload.extend(BROADCAST);
    for _ in 0..REPETITIONS {
        payload.extend(mac.bytes());
    }
    payload.extend(password);
    payload
}

/// The Ethernet frame around a payload, without the checksum, which the card adds.
pub fn frame(source: [u8; 6], destination: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let ether_type = ETHER_TYPE.to_be_bytes();
    [&destination, &source, ether_type.as_slice(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0xaf];

    #[test]
    fn a_payload_is_six_ff_and_sixteen_times_the_address() {
        let payload = payload(MacAddr::new(MAC).unwrap(), None);
        assert_eq!(payload.len(), 102);
        let (sync, addresses) = payload.split_at(6);
        assert_eq!(sync, BROADCAST);
        assert_eq!(addresses.chunks(6).filter(|&address| address == MAC).count(), 16);
    }

    #[test]
    fn the_password_is_the_end() {
        for password in [&[192, 0, 2, 1][..], &[1, 2, 3, 4, 5, 6]] {
            let mac = MacAddr::new(MAC).unwrap();
            let with = payload(mac, Some(password));
            assert_eq!(with, [&payload(mac, None), password].concat());
        }
    }

    #[test]
    fn a_frame_begins_with_its_destination_its_source_and_its_type() {
        let frame = frame([2, 0, 0, 0, 0, 1], MAC, &[7, 8, 9]);
        let expected = [&MAC[..], &[2, 0, 0, 0, 0, 1], &[0x08, 0x42], &[7, 8, 9]].concat();
        assert_eq!(frame, expected);
    }

    proptest! {
        /// What a card does: looks for six ff and sixteen times its own address, at any offset.
        #[test]
        fn the_card_it_is_for_finds_itself_and_no_other_does(one: [u8; 6], other: [u8; 6]) {
            let (Ok(one), Ok(other)) = (MacAddr::new(one), MacAddr::new(other)) else {
                return Ok(());
            };
            let frame = frame([2, 0, 0, 0, 0, 1], BROADCAST, &payload(one, Some(&[1; 6])));
            let wakes = |mac| frame.windows(102).any(|seen| seen == payload(mac, None));
            prop_assert!(wakes(one));
            prop_assert_eq!(wakes(other), one == other);
        }
    }
}
