//! The node agent: watches activity and decides when the host may sleep. `driver` is where everything comes together.
pub mod config;
