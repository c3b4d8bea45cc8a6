//! The sweeper: finds tombstones that are due and for which nothing is under way, and writes their tasks anew.
//!
//! Invariant: the broker may be wiped, a message lost, a worker killed: what is due comes back by itself. A sweep
//! writes hints only; it changes no tombstone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    config::SweeperConfig,
    failpoint,
    queue::message::PurgeTask,
    store::{Store, StoreError, commit, outbox, requests, tombstones},
    telemetry::Metrics,
};

/// Tombstones taken up in one transaction.
const BATCH: u32 = 500;

/// Statements of a sweep that may take long; it looks through every open tombstone.
const SWEEP: u32 = 5;

/// Sweeps.
#[derive(Debug, Clone)]
pub struct Sweeper {
    store: Store,
    config: SweeperConfig,
    metrics: Metrics,
}

impl Sweeper {
    /// A sweeper.
    pub fn new(store: Store, config: SweeperConfig, metrics: Metrics) -> Self {
        Self { store, config, metrics }
    }

    /// Sweeps every interval until `stop` is cancelled. Several may run side by side.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut away = false;
        loop {
            let swept = self.store.within(SWEEP, self.sweep()).await;
            self.metrics.messages().sweep(swept.is_ok());
            match swept {
                Ok(0) => away = false,
                Ok(found) => {
                    away = false;
                    tracing::info!(found, "overdue tombstones without a task, written again");
                }
                Err(error) if !away => {
                    away = true;
                    tracing::error!(%error, "sweep failed");
                }
                Err(error) => tracing::debug!(%error, "sweep failed again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.config.interval) => {}
            }
        }
    }

    /// One sweep; says how many tasks it wrote.
    ///
    /// # Errors
    /// The database.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let mut found = 0;
        loop {
            let mut tx = self.store.begin().await?;
            let overdue = tombstones::overdue(&mut tx, self.config.redeliver_after, BATCH).await?;
            for id in &overdue {
                let task = PurgeTask { tombstone: *id }.encode();
                outbox::schedule_purge(&mut tx, *id, &task, Duration::ZERO).await?;
            }
            failpoint::at("sweeper.uncommitted");
            commit(tx).await?;
            failpoint::at("sweeper.committed");
            found += overdue.len();
            self.metrics.messages().swept(overdue.len());
            if overdue.len() < BATCH as usize {
                break;
            }
        }
        let mut conn = self.store.conn().await?;
        requests::forget(&mut conn, self.config.remember_requests).await?;
        Ok(found)
    }
}
