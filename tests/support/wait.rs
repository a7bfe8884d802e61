//! Waiting for something to become true, with a deadline that is generous: it ends a test that hangs, it does not measure.

use std::{thread, time::Duration};

use vmstation_agent::clock::BootTime;

/// Looks every 20 ms until it is true; whether it became so in time.
pub(crate) fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    let began = BootTime::now();
    loop {
        if done() {
            return true;
        }
        if BootTime::now().since(began) > within {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How much longer things may take with an emulated CPU, which may have to share a real one with two more.
fn patience() -> u32 {
    if std::env::var_os("VMSTATION_GUEST").is_some() {
        5
    } else {
        1
    }
}

/// Like [`wait_until`], with a result and more patience in a guest; panics with the last reason why not.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let mut last = Err(String::new());
    wait_until(patience() * within, || {
        last = attempt();
        last.is_ok()
    });
    last.unwrap_or_else(|why| panic!("not {what} within {within:?}: {why}"))
}
