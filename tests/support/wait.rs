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

/// Like [`wait_until`], with a result; panics with the last reason why not.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let mut last = Err(String::new());
    wait_until(within, || {
        last = attempt();
        last.is_ok()
    });
    last.unwrap_or_else(|why| panic!("not {what} within {within:?}: {why}"))
}
