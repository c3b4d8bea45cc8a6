//! What `reprieve demo` and `reprieve dev` run in place of servers, all of it private to one process and on loopback.

pub mod keeper;
pub mod postgres;
pub mod s3;
