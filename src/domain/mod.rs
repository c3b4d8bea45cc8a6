//! The rules, pure: no I/O, no clock, no raw JSON. Everything else depends on this, and this on nothing.

pub mod cause;
pub mod ids;
pub mod location;
pub mod map;
pub mod outcome;
pub mod progress;
pub mod retention;
pub mod state;
pub mod tombstone;
pub mod words;
