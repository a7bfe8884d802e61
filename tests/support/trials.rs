//! Tests that need something the machine may lack. They are listed as ignored, with the reason, and never as passed.

use libtest_mimic::{Failed, Trial};

/// A test that runs anywhere.
pub(crate) fn anywhere(name: &str, test: fn()) -> Trial {
    Trial::test(name, caught(test))
}

/// A test that needs root.
pub(crate) fn as_root(name: &str, test: fn()) -> Trial {
    if nix::unistd::geteuid().is_root() {
        Trial::test(name, caught(test))
    } else {
        Trial::test(name, caught(test))
            .with_kind("needs root")
            .with_ignored_flag(true)
    }
}

/// A test that needs root, a message bus of its own, and a kernel that can suspend in principle.
pub(crate) fn with_bus(name: &str, test: fn()) -> Trial {
    if super::fake_login1::missing() || !std::path::Path::new("/sys/power").is_dir() {
        Trial::test(name, caught(test))
            .with_kind("needs root, dbus-daemon and /sys/power")
            .with_ignored_flag(true)
    } else {
        as_root(name, test)
    }
}

/// A test that needs root and OpenSSH.
pub(crate) fn with_sshd(name: &str, test: fn()) -> Trial {
    match super::sshd::missing() {
        None => Trial::test(name, caught(test)),
        Some(_) => Trial::test(name, caught(test))
            .with_kind("needs root and OpenSSH")
            .with_ignored_flag(true),
    }
}

fn caught(test: fn()) -> impl FnOnce() -> Result<(), Failed> + Send + 'static {
    move || {
        test();
        Ok(())
    }
}
