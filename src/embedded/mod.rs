//! What `reprieve demo` and `reprieve dev` run in place of servers, all of it private to one process and on loopback.
//!
//! Invariant: nothing here reaches a server that was there before, whatever the environment says, and nothing that it
//! starts outlives the process.

pub mod keeper;
pub mod platform;
pub mod postgres;
pub mod s3;
pub mod sample;
