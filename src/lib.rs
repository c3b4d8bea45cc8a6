//! Reprieve: a trash bin for data platforms.
pub mod config;
pub mod domain;
pub mod embedded;
pub mod history;
pub mod objects;
pub mod queue;
pub mod retry;
pub mod store;
pub mod trash;
