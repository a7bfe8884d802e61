//! The node agent: watches activity and decides when the host may sleep. `driver` is where everything comes together.
pub mod clock;
pub mod config;
pub mod counters;
pub mod history;
pub mod idle;
pub mod interfaces;
pub mod keeper;
pub mod lock;
pub mod power_log;
pub mod printable;
pub mod probes;
pub mod procfs;
pub mod readable;
pub mod sample;
pub mod sessions;
pub mod state_file;
pub mod verdict;
