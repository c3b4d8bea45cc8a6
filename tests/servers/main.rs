//! The private servers start, answer real requests, and never outlive the process that started them.

#[path = "../support/mod.rs"]
mod support;

mod heimdall;
mod keeper;
mod postgres;
mod rabbitmq;
mod seaweedfs;
mod synthetic_s3;
