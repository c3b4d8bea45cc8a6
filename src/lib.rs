//! Reprieve: a trash bin for data platforms.
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod embedded;
pub mod history;
pub mod http;
pub mod intake;
pub mod objects;
pub mod purge;
pub mod queue;
pub mod relay;
pub mod retry;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod trash;
