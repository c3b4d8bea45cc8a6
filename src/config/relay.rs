//! `[relay]` and `[sweeper]`: from the outbox to the broker, and what makes up for lost messages.

use std::time::Duration;

use super::reader::Reader;

/// The relay's settings.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// How often the outbox is looked at while it is quiet.
    pub poll: Duration,
    /// Messages in flight at once; purge tasks are counted apart from events and replies.
    pub window: u16,
    /// Purge tasks that may wait in the broker; more wait in the outbox.
    pub max_queued: u32,
    /// How long a relay keeps messages to itself. If it dies, another sends them after this; if it is only slow, they
    /// are sent twice, which does no harm.
    pub lease: Duration,
}

/// The sweeper's settings.
#[derive(Debug, Clone)]
pub struct SweeperConfig {
    /// How often it looks.
    pub interval: Duration,
    /// When a task that was handed to the broker and led to nothing counts as lost.
    pub redeliver_after: Duration,
    /// How long the answers to requests are remembered, against duplicates.
    pub remember_requests: Duration,
}

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// With a look every half second this feeds 2,000 purges a second. A small one costs a worker 20 ms of processor time in
/// an unoptimised build, so a process of one core feeds on it for 20 seconds, far less than `redeliver_after`.
const MAX_QUEUED: u32 = 1_000;

/// Reads `[relay]`.
pub fn read_relay(section: Reader<'_>) -> RelayConfig {
    let relay = RelayConfig {
        poll: section.duration("poll", 500 * MILLI, 10 * MILLI..=MINUTE),
        window: section.count("window", 256, 1..=4096),
        max_queued: section.count("max_queued", MAX_QUEUED, 1..=1_000_000),
        lease: section.duration("lease", 30 * SECOND, SECOND..=60 * MINUTE),
    };
    section.finish();
    relay
}

/// Reads `[sweeper]`.
pub fn read_sweeper(section: Reader<'_>) -> SweeperConfig {
    let sweeper = SweeperConfig {
        interval: section.duration("interval", MINUTE / 2, 10 * MILLI..=60 * MINUTE),
        redeliver_after: section.duration("redeliver_after", 15 * MINUTE, 100 * MILLI..=7 * DAY),
        remember_requests: section.duration("remember_requests", 30 * DAY, MINUTE..=3650 * DAY),
    };
    section.finish();
    sweeper
}
