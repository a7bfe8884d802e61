//! What is background traffic, in the maps where the programs look it up. Changed while they run.

use std::{collections::BTreeMap, net::IpAddr};

use agent_ebpf::NetRule;
use aya::{
    Ebpf, Pod,
    maps::{Array, LpmTrie, MapData, MapError, lpm_trie::Key},
};

use super::{reason, take};
use crate::config::Background;

/// The maps of one copy of the object.
pub(super) struct Rules {
    words: Array<MapData, u64>,
    /// The words that are not 0.
    told: BTreeMap<u32, u64>,
    cidr4: LpmTrie<MapData, [u8; 4], u32>,
    cidr6: LpmTrie<MapData, [u8; 16], u32>,
}

impl Rules {
    /// Nothing is background yet that has a port or needs a protocol.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, String> {
        Ok(Self {
            words: take(ebpf, "VMS_NET_RULES")?,
            told: BTreeMap::new(),
            cidr4: take(ebpf, "VMS_NET_CIDR4")?,
            cidr6: take(ebpf, "VMS_NET_CIDR6")?,
        })
    }

    /// Changes what is background, from the next frame on.
    pub(super) fn set(&mut self, background: &Background) -> Result<(), String> {
        const WHAT: &str = "tell the programs what is background traffic";
        let wrong = |error: MapError| reason(WHAT, &error);
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for cidr in &background.cidrs {
            match cidr.network() {
                IpAddr::V4(network) => v4.push(Key::new(cidr.prefix().into(), network.octets())),
                IpAddr::V6(network) => v6.push(Key::new(cidr.prefix().into(), network.octets())),
            }
        }
        replace(&mut self.cidr4, &v4).map_err(wrong)?;
        replace(&mut self.cidr6, &v6).map_err(wrong)?;
        let words = words(background);
        for word in self.told.keys().chain(words.keys()) {
            let bits = words.get(word).copied().unwrap_or(0);
            self.words.set(*word, bits, 0).map_err(wrong)?;
        }
        self.told = words;
        Ok(())
    }
}

/// The words of the rules that are not 0.
fn words(background: &Background) -> BTreeMap<u32, u64> {
    let ports = background.ports.iter().flat_map(|rule| {
        let sides = rule.sides().iter();
        sides.map(|side| NetRule::port(rule.transport, *side, rule.port.to_be()))
    });
    let protocols = background
        .protocols
        .iter()
        .map(|protocol| NetRule::protocol(protocol.0));
    let cidrs = background.cidrs.iter().map(|cidr| match cidr.network() {
        IpAddr::V4(_) => NetRule::CIDRS_V4,
        IpAddr::V6(_) => NetRule::CIDRS_V6,
    });
    let mut words = BTreeMap::new();
    for NetRule { word, mask } in ports.chain(protocols).chain(cidrs) {
        *words.entry(word).or_default() |= mask;
    }
    words
}

/// Makes `keys` all that is in the trie.
fn replace<K: Pod + PartialEq>(trie: &mut LpmTrie<MapData, K, u32>, keys: &[Key<K>]) -> Result<(), MapError> {
    let is = |one: &Key<K>, other: &Key<K>| one.prefix_len() == other.prefix_len() && one.data() == other.data();
    let there: Vec<Key<K>> = trie.keys().collect::<Result<_, _>>()?;
    for old in there.iter().filter(|old| !keys.iter().any(|key| is(key, old))) {
        trie.remove(old)?;
    }
    for new in keys.iter().filter(|new| !there.iter().any(|key| is(key, new))) {
        trie.insert(new, 0, 0)?;
    }
    Ok(())
}
