//! Where fields lie in the structures of the running kernel, from its BTF. Knows no more of the format than that needs.
//!
//! Format: Documentation/bpf/btf.rst of the kernel. A reader lives for the time of loading and is dropped with its 6 MB.

use std::fs;

use thiserror::Error;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u32 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Length of `struct btf_type`, of `struct btf_member`.
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

/// Why an offset is not known.
#[derive(Debug, Error)]
pub(super) enum KernelTypesError {
    #[error("read {PATH}, the kernel's type information (BTF; needs CONFIG_DEBUG_INFO_BTF)")]
    Read(#[from] std::io::Error),
    #[error("{PATH} is not BTF as the kernel documents it")]
    Malformed,
    #[error("this kernel has no field {1} in struct {0}")]
    NoField(&'static str, &'static str),
}

/// The kernel's types.
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins, by type id less one (id 0 is `void`).
    types: Vec<usize>,
}

impl KernelTypes {
    /// Reads them.
    pub(super) fn read() -> Result<Self, KernelTypesError> {
        Self::parse(fs::read(PATH)?).ok_or(KernelTypesError::Malformed)
    }

    /// Bytes from the start of `structure` to `field`, which may lie in anonymous structures and unions inside it.
    pub(super) fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, KernelTypesError> {
        self.types
            .iter()
            .filter(|&&at| self.kind(at) == Some(KIND_STRUCT) && self.is_named(at, structure))
            .find_map(|&at| self.bit_offset(at, field))
            .map(|bits| bits / 8)
            .ok_or(KernelTypesError::NoField(structure, field))
    }

    /// Header: magic u16, version u8, flags u8, then u32: length of the header, and where types and strings lie behind it.
    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |place: usize| word(&bytes, 4 * place);
        if word(0)? & 0xffff != MAGIC {
            return None;
        }
        let [header, types_at, types_len, strings_at] = [word(1)?, word(2)?, word(3)?, word(4)?].map(index);
        let (mut at, end, strings) = (header + types_at, header + types_at + types_len, header + strings_at);
        let mut read = Self {
            bytes,
            strings,
            types: Vec::new(),
        };
        while at < end {
            read.types.push(at);
            at += TYPE_LEN + read.trailer(at)?;
        }
        read.types.shrink_to_fit();
        Some(read)
    }

    /// Bytes that follow a type.
    fn trailer(&self, at: usize) -> Option<usize> {
        let count = index(word(&self.bytes, at + 4)? & 0xffff);
        Some(match self.kind(at)? {
            1 | 14 | 17 => 4, // int, variable, declaration tag
            3 => 12,          // array
            KIND_STRUCT | KIND_UNION => MEMBER_LEN * count,
            6 | 13 => 8 * count,       // enum, function prototype
            15 | 19 => 12 * count,     // section, 64-bit enum
            2 | 7..=12 | 16 | 18 => 0, // pointer, forward, typedef, qualifiers, function, float, type tag
            _ => return None,
        })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(word(&self.bytes, at + 4)? >> 24 & 0x1f)
    }

    /// Bits from the start of the structure or union at `at` to the field.
    fn bit_offset(&self, at: usize, field: &str) -> Option<u32> {
        let info = word(&self.bytes, at + 4)?;
        let has_bitfields = info >> 31 != 0;
        (0..index(info & 0xffff)).find_map(|number| {
            let member = at + TYPE_LEN + MEMBER_LEN * number;
            let [name, id, offset] = [0, 4, 8].map(|part| word(&self.bytes, member + part));
            let offset = if has_bitfields { offset? & 0x00ff_ffff } else { offset? };
            if name? != 0 {
                return self.is_named(member, field).then_some(offset);
            }
            let inner = *self.types.get(index(id?).checked_sub(1)?)?;
            match self.kind(inner)? {
                KIND_STRUCT | KIND_UNION => Some(offset + self.bit_offset(inner, field)?),
                _ => None,
            }
        })
    }

    /// Types and members begin with the offset of their name.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let string = word(&self.bytes, at).and_then(|offset| self.bytes.get(self.strings + index(offset)..));
        string.is_some_and(|rest| {
            rest.strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn index(word: u32) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int`; `struct outer { int first; union { int a; struct { int b; int c; }; }; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0first\0a\0b\0c\0";
        let (int, outer, first, a, b, c) = (1, 5, 11, 17, 19, 21);
        let of = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![int, of(1, 0), 4, 32],
            vec![0, of(KIND_STRUCT, 2), 8, b, 1, 0, c, 1, 32],
            vec![0, of(KIND_UNION, 2), 8, a, 1, 0, 0, 2, 0],
            vec![outer, of(KIND_STRUCT, 2), 12, first, 1, 0, 0, 3, 32],
        ]
        .concat();
        let types_len = 4 * u32::try_from(types.len()).unwrap();
        let strings_len = u32::try_from(strings.len()).unwrap();
        let header = [MAGIC | 1 << 16, 24, 0, types_len, types_len, strings_len];
        let words = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
        words.chain(*strings).collect()
    }

    #[test]
    fn fields_are_found_in_anonymous_members() {
        let types = KernelTypes::parse(sample()).unwrap();
        let offset = |field| types.offset("outer", field).unwrap();
        assert_eq!([offset("first"), offset("a"), offset("b"), offset("c")], [0, 4, 4, 8]);
        assert!(types.offset("outer", "firs").is_err());
        assert!(types.offset("oute", "first").is_err());
    }

    #[test]
    fn a_damaged_file_is_refused_and_never_panics() {
        let sample = sample();
        for len in 0..sample.len() {
            if let Some(types) = KernelTypes::parse(sample[..len].to_vec()) {
                let _ = types.offset("outer", "c");
            }
        }
        assert!(KernelTypes::parse(b"ELF".to_vec()).is_none());
    }
}
