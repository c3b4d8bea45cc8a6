//! Reprieve: a trash bin for data platforms.
pub mod domain;
pub mod embedded;
pub mod objects;
pub mod queue;
