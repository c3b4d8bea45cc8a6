//! The law under faults: real binaries on real servers, while everything around them breaks.
//!
//! `docs/reliability.md` says which promise each of these tests tries to break. `scripts/faults` plays the long
//! campaign; `cargo test --locked --test faults` plays a short one with a fixed seed, and every single fault by itself.

#[path = "../support/amqp.rs"]
mod amqp;
#[allow(dead_code, reason = "the platform's tests use the rest of it")]
#[path = "../platform/bench.rs"]
mod bench;
#[path = "../support/exposition.rs"]
mod exposition;
#[allow(dead_code, reason = "the platform's tests use the rest of it")]
#[path = "../platform/gate.rs"]
mod gate;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/world.rs"]
mod world;

mod behind_proxy;
mod crowd;
mod environment;
mod lane;
mod mischief;
mod s3_proxy;
mod tcp_proxy;

mod backlog;
mod broker;
mod campaign;
mod clocks;
mod crash_points;
mod database;
mod deaths;
mod harness;
mod memory;
mod metrics;
mod race;
mod s3_keys;
mod s3_lasting;
mod s3_single;
mod s3_storm;
mod s3_versions;
mod zombie;
