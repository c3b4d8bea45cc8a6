//! The HTTP API as its clients meet it: through a real listener, over a real PostgreSQL with the platform's tables.

#[path = "../support/exposition.rs"]
mod exposition;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod bodies;
mod client;
mod fixture;
mod health;
mod operate;
mod reads;
mod server;
mod trash;
