//! What a trait means, run against everything that implements it.

#[path = "../support/mod.rs"]
mod support;

mod objects;
