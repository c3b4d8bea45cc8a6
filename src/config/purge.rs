//! `[purge]`: how workers claim, empty, verify and delete.

use std::time::Duration;

use super::reader::Reader;

/// The workers' settings.
#[derive(Debug, Clone)]
pub struct PurgeConfig {
    /// Purges at once in one process.
    pub concurrency: u16,
    /// How long a worker may be silent before another takes over; a heartbeat extends it every third of it.
    pub lease: Duration,
    /// How long one delivery is worked on before the rest becomes a new task. Well below the broker's 30 minutes.
    pub slice: Duration,
    /// Child rows deleted in one transaction.
    pub row_chunk: u32,
    /// Tries of a key that fails in passing, within one delivery.
    pub key_attempts: u32,
    /// Failed deliveries, or deaths of its workers in a row, before a purge is set aside as stuck.
    pub max_attempts: u32,
    /// The first wait after a failed delivery; doubles.
    pub backoff_initial: Duration,
    /// The longest wait after a failed delivery.
    pub backoff_max: Duration,
    /// The first wait before a blocked resource is looked at again; doubles.
    pub recheck_initial: Duration,
    /// The longest wait before a blocked resource is looked at again.
    pub recheck_max: Duration,
}

/// Reads the section.
pub fn read(section: Reader<'_>) -> PurgeConfig {
    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let purge = PurgeConfig {
        concurrency: section.count("concurrency", 16, 1..=256),
        lease: section.duration("lease", MINUTE, SECOND..=60 * MINUTE),
        slice: section.duration("slice", 2 * MINUTE, MILLI..=15 * MINUTE),
        row_chunk: section.count("row_chunk", 5_000, 1..=100_000),
        key_attempts: section.count("key_attempts", 4, 1..=20),
        max_attempts: section.count("max_attempts", 10, 1..=1_000),
        backoff_initial: section.duration("backoff_initial", 5 * SECOND, MILLI..=DAY),
        backoff_max: section.duration("backoff_max", 60 * MINUTE, MILLI..=7 * DAY),
        recheck_initial: section.duration("recheck_initial", MINUTE, MILLI..=DAY),
        recheck_max: section.duration("recheck_max", 60 * MINUTE, MILLI..=7 * DAY),
    };
    if purge.backoff_max < purge.backoff_initial {
        section.problem("backoff_max", "must not be shorter than backoff_initial");
    }
    if purge.recheck_max < purge.recheck_initial {
        section.problem("recheck_max", "must not be shorter than recheck_initial");
    }
    section.finish();
    purge
}
