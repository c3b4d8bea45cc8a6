//! Private throwaway servers, so that the demo and the tests need nothing running: real where it matters.
pub mod keeper;
pub mod postgres;
