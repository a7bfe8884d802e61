//! A guest that sleeps and what drives it from outside: `cargo xtask vm-test` boots it.

pub(crate) mod bed;
pub(crate) mod channel;
pub(crate) mod installation;
pub(crate) mod login;
pub(crate) mod qmp;
pub(crate) mod webhook;
