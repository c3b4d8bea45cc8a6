//! The real program on real servers: `reprieve` purges objects from SeaweedFS, on tasks from RabbitMQ, with rows in
//! PostgreSQL in the platform's tables. Every test has a database, a bucket and a broker namespace of its own.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/amqp.rs"]
mod amqp;
#[path = "../http/client.rs"]
mod client;
#[path = "../support/collector.rs"]
mod collector;
#[path = "../support/exposition.rs"]
mod exposition;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/world.rs"]
mod world;

mod cascade;
mod causes;
mod checks;
mod commands;
mod embedded;
mod golden;
mod health;
mod killed;
mod messages;
mod named;
mod paused;
mod producer;
mod readme;
mod reconnects;
mod roles;
mod terminated;
mod traces;
mod versions;
