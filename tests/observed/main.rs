//! What an operator sees: the dashboard, the alerts and the runbook, held against a real Prometheus that scrapes the
//! real program in the middle of purges, and against the program's own command line.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/amqp.rs"]
mod amqp;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/world.rs"]
mod world;

mod alerts;
mod check;
mod dashboard;
mod prometheus;
mod promql;
mod queries;
mod runbook;
mod story;
mod web;
