//! A test on a thread in network and mount namespaces of its own, which the processes that it starts take theirs from.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::netns;

/// Runs `test` there, with loopback up and without IPv6's own chatter; panics as it does.
pub(crate) fn in_namespaces(test: impl FnOnce() + Send + 'static) {
    let test = thread::spawn(move || {
        netns::enter();
        netns::no_ipv6();
        test();
    });
    if let Err(panic) = test.join() {
        resume_unwind(panic);
    }
}

/// Tells the threads of a scope that it is over, also when an assertion failed: the scope waits for them.
pub(crate) struct OnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
