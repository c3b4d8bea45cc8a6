//! Trash, restore and purge against a real PostgreSQL with a platform's real tables, and object stores whose faults
//! the tests choose. No test waits for a time to pass: what has to be due is made due in the database.

#[path = "../support/mod.rs"]
mod support;

#[path = "../faults/tcp_proxy.rs"]
mod tcp_proxy;

mod bench;
mod gate;

mod asked;
mod backlog;
mod bystanders;
mod cascade;
mod claiming;
mod connections;
mod counting;
mod cutting;
mod deaths;
mod emptying;
mod flow;
mod foreign_keys;
mod guards;
mod intake;
mod interrupted;
mod keyed;
mod kinds;
mod leases;
mod locked;
mod migrating;
mod nul;
mod places;
mod replaced;
mod requesting;
mod restoring;
mod retrying;
mod rows;
mod shared;
mod small;
mod stops;
mod stranded;
mod tables;
mod trashing;
mod unanswered;
mod unchanged;
mod uploads;
mod versions;
