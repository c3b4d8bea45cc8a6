//! The law under faults: real binaries on real servers, while everything around them breaks.
//!
//! `docs/reliability.md` says which promise each of these tests tries to break. `scripts/faults` plays the long
//! campaign; `cargo test --test faults` plays a short one with a fixed seed, and every single fault by itself.

#[path = "../support/amqp.rs"]
mod amqp;
mod broker;
mod database;
mod mischief;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
mod tcp_proxy;
#[path = "../support/world.rs"]
mod world;
