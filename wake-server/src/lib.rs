//! The wake server, a file each for:
//!
//! ```text
//!              registry: who is who        presence: who is awake       store: what outlives a restart
//!                       └───────────────┐        │        ┌──────────────────┘
//! requests ──> server ──> api, page ──> hub (state, events) ──> waker ──> transmit (frames), arp (answers)
//!              limits, auth                                        └─ wake: what is to be done next (pure)
//! ```

pub mod api;
pub mod arp;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod complaint;
pub mod config;
pub mod cordon;
pub mod demand;
pub mod descriptors;
pub mod doctor;
pub mod drain;
pub mod fit;
pub mod forward;
mod https;
pub mod hub;
pub mod keeping;
mod keys;
pub mod lan;
pub mod limits;
pub mod magic;
pub mod metrics;
pub mod notify;
pub mod openapi;
pub mod origin;
pub mod page;
pub mod permission;
pub mod presence;
pub mod registry;
pub mod route;
pub mod server;
pub mod store;
pub mod transmit;
pub mod wake;
pub mod waker;
pub mod workload;
