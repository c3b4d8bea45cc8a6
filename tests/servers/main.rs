//! The private servers start, answer real requests, and never outlive the process that started them.

mod postgres;
