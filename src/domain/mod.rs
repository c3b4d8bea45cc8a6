//! The rules, pure: no I/O, no clock, no raw JSON.
pub mod outcome;
