//! What an object file contains: the programs of the eBPF object, the LLVM a tool is linked with, the glibc a program wants.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// Programs of an eBPF object as `section/name`, sorted.
pub(crate) fn programs(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes).context("parse the eBPF object")?;
    let mut programs: Vec<String> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
        .filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let name = section.name().ok()?;
            let is_program = section.kind() == SectionKind::Text && name != ".text";
            is_program.then(|| format!("{} ({name})", symbol.name().unwrap_or("?")))
        })
        .collect();
    programs.sort();
    Ok(programs)
}

/// Major version of the libLLVM a program is linked with; `None` if that is not known (linked statically, or not an ELF file).
pub(crate) fn linked_llvm(program: &Path) -> Option<u32> {
    let bytes = fs::read(program).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    let names = file.section_by_name(".dynstr")?.uncompressed_data().ok()?;
    names
        .split(|byte| *byte == 0)
        .find_map(|name| llvm_major(std::str::from_utf8(name).ok()?))
}

/// Newest version of glibc a program asks for; `None` if it needs none (linked statically).
pub(crate) fn newest_glibc(program: &Path) -> Option<(u32, u32)> {
    let bytes = fs::read(program).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    let names = file.section_by_name(".dynstr")?.uncompressed_data().ok()?;
    names
        .split(|byte| *byte == 0)
        .filter_map(|name| glibc_version(std::str::from_utf8(name).ok()?))
        .max()
}

/// `GLIBC_2.34`; `GLIBC_PRIVATE` has no number.
fn glibc_version(symbol_version: &str) -> Option<(u32, u32)> {
    let mut numbers = symbol_version.strip_prefix("GLIBC_")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `libLLVM.so.22.1` and `libLLVM-14.so.1` name their version.
fn llvm_major(library: &str) -> Option<u32> {
    let rest = library
        .strip_prefix("libLLVM.so.")
        .or_else(|| library.strip_prefix("libLLVM-"))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_llvm_is_in_the_name_of_its_library() {
        assert_eq!(llvm_major("libLLVM.so.22.1"), Some(22));
        assert_eq!(llvm_major("libLLVM-14.so.1"), Some(14));
        assert_eq!(llvm_major("libc.so.6"), None);
        assert_eq!(llvm_major("libLLVM.so.x"), None);
    }

    #[test]
    fn versions_of_glibc_compare_as_numbers() {
        assert_eq!(glibc_version("GLIBC_2.34"), Some((2, 34)));
        assert_eq!(glibc_version("GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(glibc_version("GLIBC_PRIVATE"), None);
        assert!(glibc_version("GLIBC_2.9") < glibc_version("GLIBC_2.34"));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(programs(b"not an object").is_err());
    }
}
