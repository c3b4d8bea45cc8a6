//! From a task to nothing left: claim, empty, verify, rows, finish.
//!
//! ```text
//! task ─▶ Claimed ─empty─▶ Emptied ─uploads─▶ NoUploads ─verify─▶ Verified ─rows─▶ RowsGone ─finish─▶ Finished ─▶ ack
//!            └── out of time, paused, failed: checkpoint, the rest is a new task ──┘
//! ```
//! Invariant: each stage takes the type that the stage before it returns, so rows cannot be deleted before a fresh
//! listing has shown that the objects are gone: it would not compile. Every stage can be entered anew from what the
//! database holds, so resuming after kill -9 is the normal path and not a second one. No message is held longer than
//! one slice.

mod checkpoint;
mod claim;
mod empty;
mod finish;
mod locks;
mod rows;
mod slice;
mod uploads;
mod verify;
pub mod worker;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::slice::SliceEnd;
use crate::{
    config::PurgeConfig,
    domain::{
        cause::Cause,
        map::ResourceMap,
        outcome::{FailureClass, RetryAfter},
        tombstone::Provenance,
    },
    objects::{
        ObjectsError,
        stores::{PlaceError, Stores},
    },
    retry::{Backoff, InvalidBackoff},
    store::{Store, StoreError, foreign_keys::Known},
    telemetry::{Metrics, trace},
};

/// Everything that the stages need. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Purger {
    store: Store,
    map: Arc<ResourceMap>,
    stores: Stores,
    config: PurgeConfig,
    /// Waits after failed deliveries.
    backoff: Backoff,
    /// Waits before what is blocked is looked at again.
    recheck: Backoff,
    /// Waits between tries of single keys.
    key_backoff: Backoff,
    /// Who we are, for leases: unique to this process.
    owner: String,
    /// For the claims of every task.
    keys: Known,
    metrics: Metrics,
}

/// Why a slice could not go on.
#[derive(Debug, thiserror::Error)]
enum PurgeError {
    /// Somebody else has taken over. Not a failure: stop, and touch nothing.
    #[error("the lease is lost: another worker has taken over")]
    LeaseLost,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store, as a whole request.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// Somebody has taken the id again.
    #[error(
        "the row was gone when the purge began, and now another one has its id: it is left alone, and its child rows too"
    )]
    Newcomer,
    /// A delete takes none of the rows that are there.
    #[error(
        "rows of {0} are found, and a delete takes none of them: does a trigger, a rule or a row policy keep them?"
    )]
    RowsStay(String),
    /// The configuration no longer leads to a location.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The checkpoint is not one that this program can read.
    #[error("the checkpoint cannot be read: {0}")]
    Checkpoint(#[from] serde_json::Error),
    /// A mistake in this program, or in one of its libraries.
    #[error("{0}")]
    Panicked(String),
}

impl PurgeError {
    /// A store or database that is away is waited for without end; everything else has a number of attempts.
    fn is_outage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Objects(error) => error.class != FailureClass::Permanent,
            Self::LeaseLost
            | Self::Newcomer
            | Self::RowsStay(_)
            | Self::Place(_)
            | Self::Checkpoint(_)
            | Self::Panicked(_) => false,
        }
    }

    /// The time for which a store asks to be left alone, where it names one.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Objects(error) => error.retry_after.map(RetryAfter::wait).unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }

    /// Whether another attempt cannot help before somebody changes something.
    fn is_hopeless(&self) -> bool {
        match self {
            Self::Objects(error) => error.class == FailureClass::Permanent,
            Self::Newcomer | Self::Place(_) | Self::Checkpoint(_) => true,
            Self::Store(_) | Self::LeaseLost | Self::RowsStay(_) | Self::Panicked(_) => false,
        }
    }
}

/// How long one delivery may be worked on.
#[derive(Debug, Clone)]
pub struct Budget {
    deadline: Instant,
    stop: CancellationToken,
}

impl Budget {
    /// Until the time is over or the token is cancelled, whichever comes first.
    pub fn new(time: Duration, stop: CancellationToken) -> Self {
        Self { deadline: Instant::now() + time, stop }
    }

    /// Whether to stop before the next step. The time alone ends nothing that has not done a step yet.
    fn is_spent(&self, has_worked: bool) -> bool {
        self.stop.is_cancelled() || (has_worked && Instant::now() >= self.deadline)
    }

    /// Returns when it is spent.
    async fn is_over(&self, has_worked: bool) {
        let deadline = if has_worked { Some(self.deadline) } else { None };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = async { tokio::time::sleep_until(deadline.expect("looked at")).await }, if deadline.is_some() => {}
        }
    }
}

impl Purger {
    /// A purger over these stores.
    ///
    /// # Errors
    /// Waits in the configuration that are no back-off.
    pub fn new(
        store: Store,
        map: Arc<ResourceMap>,
        stores: Stores,
        config: PurgeConfig,
        metrics: Metrics,
    ) -> Result<Self, InvalidBackoff> {
        const KEY_INITIAL: Duration = Duration::from_millis(100);
        const KEY_MAX: Duration = Duration::from_secs(5);
        Ok(Self {
            backoff: Backoff::new(config.backoff_initial, config.backoff_max)?,
            recheck: Backoff::new(config.recheck_initial, config.recheck_max)?,
            key_backoff: Backoff::new(KEY_INITIAL, KEY_MAX)?,
            owner: format!("{}-{}", std::process::id(), uuid::Uuid::new_v4()),
            keys: Known::new(config.row_chunk),
            store,
            map,
            stores,
            config,
            metrics,
        })
    }

    /// A worker acts in its own name; the reason is the tombstone's.
    fn provenance(&self) -> Provenance {
        Provenance {
            actor: crate::domain::ids::Actor::from_stored(format!("worker {}", self.owner)),
            origin: "worker".into(),
            reason: None,
            cause: Cause { correlation_id: None, trace: trace::current() },
        }
    }
}
