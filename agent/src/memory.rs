//! Gives memory back that only the start needed: reading the configuration, the command line, and loading programs touch far more code
//! and data than the agent does for the rest of its life. Owns nothing; never touches memory that anybody could have written.

use nix::libc;
use procfs::process::{MMPermissions, MMapPath, Process};

/// Gives back what the C library keeps for later, the pages of `object`, and all code; what is needed again is read again from its file,
/// which the kernel has in its cache: some 100 page faults. `object` must be a constant of the program.
pub fn give_back(object: Option<&'static [u8]>) {
    // SAFETY: may be called at any time; see malloc_trim(3).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    if let Some(object) = object {
        let start = object.as_ptr().addr();
        forget(start, start + object.len());
    }
    // Without a look at the mappings there is only more memory in use.
    let Ok(maps) = Process::myself().and_then(|own| own.maps()) else {
        return;
    };
    for map in maps {
        let is_code = map.perms == MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE;
        if let (true, MMapPath::Path(_), Ok(start), Ok(end)) = (
            is_code,
            map.pathname,
            usize::try_from(map.address.0),
            usize::try_from(map.address.1),
        ) {
            forget(start, end);
        }
    }
}

/// Of memory that is mapped from a file and was never written.
fn forget(start: usize, end: usize) {
    // SAFETY: a plain question.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else {
        return;
    };
    let (start, end) = (start.next_multiple_of(page), end / page * page);
    if start < end {
        // SAFETY: whole pages of code or constants: private, clean and backed by a file, so that the kernel reads the same again. It
        // refuses what is not mapped.
        unsafe {
            libc::madvise(
                std::ptr::without_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}
