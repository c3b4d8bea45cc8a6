//! The bookkeeping of a purge, from the library's own files: it is private there, and has the same neighbours here.

#[path = "../../src/purge/checkpoint.rs"]
mod checkpoint;
pub(crate) mod empty;
