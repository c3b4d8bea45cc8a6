//! How often a connection was asked for, and how long that took: the pool itself does not say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How a pool of connections is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Connections that nobody uses.
    pub idle: u32,
    /// Connections that somebody uses.
    pub in_use: u32,
    /// As many as there may be.
    pub most: u32,
    /// Times a connection was asked for and had.
    pub acquired: u64,
    /// Times it was not.
    pub failed: u64,
    /// What all of these took.
    pub waited: Duration,
}

/// Shared by the clones of a store.
#[derive(Debug, Clone, Default)]
pub(super) struct Acquires(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    acquired: AtomicU64,
    failed: AtomicU64,
    waited_us: AtomicU64,
}

impl Acquires {
    /// Waits for a connection, and counts that. Who is dropped while waiting is not counted.
    pub(super) async fn count<T, E>(&self, asked: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let had = asked.await;
        let waited_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.waited_us.fetch_add(waited_us, Ordering::Relaxed);
        let counter = if had.is_ok() { &self.0.acquired } else { &self.0.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        had
    }

    pub(super) fn with(&self, idle: u32, in_use: u32, most: u32) -> Usage {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waited = Duration::from_micros(read(&self.0.waited_us));
        Usage { idle, in_use, most, acquired: read(&self.0.acquired), failed: read(&self.0.failed), waited }
    }
}
