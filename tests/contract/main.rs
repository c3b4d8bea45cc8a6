//! What a trait promises, run against every implementation of it, the real one included.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod objects;
mod queue;
mod rabbitmq;
mod rabbitmq_down;
