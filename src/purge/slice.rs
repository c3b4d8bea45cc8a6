//! One delivery's share of a purge: claim it, go on where it stands, and write down what comes next.
//!
//! Invariant: a slice ends in exactly one way, and each way but the lost lease has written what happens next before it
//! returns. While it runs a heartbeat extends the lease; when the heartbeat finds the lease lost, the slice is dropped
//! where it stands, which is what a crash would have done.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{
    Budget, PurgeError, Purger,
    claim::{Claim, Claimed},
    empty::Emptying,
    rows::Rows,
    verify::Verification,
};
use crate::{
    domain::{ids::TombstoneId, tombstone::Tombstone},
    history,
    queue::message::PurgeTask,
    store::{
        StoreError,
        audit::Happened,
        commit, outbox, silent,
        tombstones::{
            self,
            purging::{self, Fenced, Lease, PassOn},
        },
    },
};

/// Statements of a claim that may take long: the map's queries.
const CLAIM: u32 = 5;
/// Statements after a slice that may take long: they wait for locks.
const CONCLUSION: u32 = 2;

/// How a slice ended.
#[derive(Debug, Clone, PartialEq)]
pub enum SliceEnd {
    /// Purged, with its receipt in the audit log.
    Purged,
    /// Out of time; the rest is a new task.
    Continues,
    /// In use, by so many; looked at again later.
    Blocked(usize),
    /// Not now, for this reason.
    Deferred(String),
    /// Failed; tried again later.
    Failed(String),
    /// Set aside, for this reason.
    Stuck(String),
    /// Nothing to do.
    Nothing(&'static str),
    /// Another worker has taken over.
    LeaseLost,
}

impl SliceEnd {
    /// The label of the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Purged => "purged",
            Self::Continues => "continued",
            Self::Blocked(_) => "blocked",
            Self::Deferred(_) => "deferred",
            Self::Failed(_) => "failed",
            Self::Stuck(_) => "stuck",
            Self::Nothing(_) => "nothing",
            Self::LeaseLost => "lease_lost",
        }
    }
}

/// What the stages came to, before it is written down.
enum Outcome {
    Finished(Box<super::finish::Finished>),
    OutOfTime(Lease),
    Paused(Lease),
    /// Objects are left; whether some of them for good.
    Leftovers {
        lease: Lease,
        reason: String,
        permanent: bool,
    },
}

impl Purger {
    /// Works on a tombstone for one slice.
    ///
    /// # Errors
    /// The database cannot be reached; what was begun resumes when the lease has run out.
    pub async fn run_slice(&self, id: TombstoneId, budget: &Budget) -> Result<SliceEnd, StoreError> {
        let claimed = match self.store.within(CLAIM, self.claim(id)).await {
            Ok(Claim::Ours(claimed)) => claimed,
            Ok(Claim::Blocked(blockers)) => return Ok(SliceEnd::Blocked(blockers.len())),
            Ok(Claim::Deferred(reason)) => return Ok(SliceEnd::Deferred(reason)),
            Ok(Claim::Nothing(why)) => return Ok(SliceEnd::Nothing(why)),
            Err(PurgeError::Store(error)) => return Err(error),
            Err(error) => return Err(StoreError::Unusable(error.to_string())),
        };
        let (lease, tombstone) = (claimed.lease, claimed.tombstone.clone());
        tracing::info!(tombstone.id = %id, resource = %tombstone.resource, fence = lease.fence.0, "purging");
        let worked = tokio::select! {
            worked = self.stages(claimed, budget) => worked,
            lost = self.keep_alive(&lease) => Err(lost),
        };
        self.store.within(CONCLUSION, self.conclude(&tombstone, &lease, worked)).await
    }

    async fn stages(&self, claimed: Box<Claimed>, budget: &Budget) -> Result<Outcome, PurgeError> {
        let emptied = match self.empty(claimed, budget).await? {
            Emptying::Emptied(emptied) => emptied,
            Emptying::OutOfTime(claimed) => return Ok(Outcome::OutOfTime(claimed.lease)),
            Emptying::Paused(claimed) => return Ok(Outcome::Paused(claimed.lease)),
            Emptying::Leftovers(mut claimed) => {
                let reason = claimed.checkpoint.describe_leftovers();
                let permanent = claimed.checkpoint.leftovers.iter().any(|left| left.permanent);
                self.begin_anew(&mut claimed).await?;
                return Ok(Outcome::Leftovers { lease: claimed.lease, reason, permanent });
            }
        };
        let verified = match self.verify(emptied).await? {
            Verification::Verified(verified) => verified,
            Verification::Refilled(mut claimed, found) => {
                self.begin_anew(&mut claimed).await?;
                let reason = format!(
                    "objects appeared after their prefix was emptied, such as {found}: is a writer still running?"
                );
                return Ok(Outcome::Leftovers { lease: claimed.lease, reason, permanent: false });
            }
        };
        match self.delete_rows(verified, budget).await? {
            Rows::Gone(gone) => Ok(Outcome::Finished(Box::new(self.finish(gone).await?))),
            Rows::OutOfTime(mut claimed) => {
                // whoever goes on has to list again before it deletes another row
                self.begin_anew(&mut claimed).await?;
                Ok(Outcome::OutOfTime(claimed.lease))
            }
            Rows::Paused(mut claimed) => {
                self.begin_anew(&mut claimed).await?;
                Ok(Outcome::Paused(claimed.lease))
            }
        }
    }

    /// Extends the lease every third of it; returns only when it is lost, or has run out. Whatever the stages wait for
    /// then, perhaps on a connection that has died without a word, they wait no longer.
    async fn keep_alive(&self, lease: &Lease) -> PurgeError {
        let mut extended = Instant::now();
        loop {
            tokio::time::sleep(lease.duration / 3).await;
            let asked = Instant::now();
            let renew = async { purging::renew(&mut *self.store.conn().await?, lease).await };
            // who stood still for longer than that still gets to hear that it is lost
            let limit = (extended + lease.duration).max(asked + lease.duration / 3);
            match timeout_at(limit, renew).await {
                Ok(Ok(Fenced::Lost)) => return PurgeError::LeaseLost,
                Ok(Ok(Fenced::Ours { .. })) => extended = asked,
                Ok(Err(error)) if extended.elapsed() < lease.duration => {
                    tracing::warn!(tombstone.id = %lease.id, %error, "lease not extended");
                }
                Ok(Err(error)) => return error.into(),
                Err(_) => return StoreError::Unavailable(silent(lease.duration)).into(),
            }
        }
    }

    async fn conclude(
        &self,
        tombstone: &Tombstone,
        lease: &Lease,
        worked: Result<Outcome, PurgeError>,
    ) -> Result<SliceEnd, StoreError> {
        match worked {
            Ok(Outcome::Finished(finished)) => {
                let progress = &finished.tombstone.progress;
                tracing::info!(
                    tombstone.id = %tombstone.id, resource = %tombstone.resource,
                    objects = progress.objects_gone(), bytes = progress.bytes_freed, rows = progress.rows_deleted,
                    duration_s = finished.seconds, "purged"
                );
                self.metrics.purged(&tombstone.resource.kind, progress, finished.seconds);
                Ok(SliceEnd::Purged)
            }
            Ok(Outcome::OutOfTime(lease)) => {
                self.pass_on(tombstone, &lease, Duration::ZERO, PassOn::Continues).await?;
                Ok(SliceEnd::Continues)
            }
            Ok(Outcome::Paused(lease)) => {
                self.pass_on(tombstone, &lease, self.recheck.delay_for(1), PassOn::Paused).await?;
                Ok(SliceEnd::Deferred("paused".into()))
            }
            Ok(Outcome::Leftovers { lease, reason, permanent: true }) => self.give_up(tombstone, &lease, reason).await,
            Ok(Outcome::Leftovers { lease, reason, permanent: false }) => {
                self.count_failure(tombstone, &lease, reason).await
            }
            Err(PurgeError::LeaseLost) => {
                tracing::warn!(tombstone.id = %tombstone.id, fence = lease.fence.0, "lease lost, stopping");
                Ok(SliceEnd::LeaseLost)
            }
            Err(PurgeError::Store(error @ StoreError::Unavailable(_))) => Err(error),
            Err(error) if error.is_hopeless() => self.give_up(tombstone, lease, error.to_string()).await,
            Err(error) if error.is_outage() => self.wait_out(tombstone, lease, error.to_string()).await,
            Err(error) => self.count_failure(tombstone, lease, error.to_string()).await,
        }
    }

    /// Sets the purge aside: nothing but somebody's help can finish it.
    async fn give_up(&self, tombstone: &Tombstone, lease: &Lease, reason: String) -> Result<SliceEnd, StoreError> {
        let mut tx = self.store.begin().await?;
        if purging::give_up(&mut tx, lease, &reason).await? == Fenced::Lost {
            return Ok(SliceEnd::LeaseLost);
        }
        let details = json!({ "reason": reason, "attempts": tombstone.attempts + 1 });
        history::record(&mut tx, Happened::Stuck, tombstone, &self.provenance(), details).await?;
        outbox::remove_purge(&mut tx, tombstone.id).await?;
        commit(tx).await?;
        tracing::error!(tombstone.id = %tombstone.id, resource = %tombstone.resource, reason, "stuck");
        Ok(SliceEnd::Stuck(reason))
    }

    /// One of a number of attempts has failed: another after a back-off, or none.
    async fn count_failure(
        &self,
        tombstone: &Tombstone,
        lease: &Lease,
        reason: String,
    ) -> Result<SliceEnd, StoreError> {
        let attempt = tombstone.attempts.saturating_add(1);
        if attempt >= self.config.max_attempts {
            return self.give_up(tombstone, lease, reason).await;
        }
        let wait = self.backoff.delay_for(attempt);
        self.pass_on(tombstone, lease, wait, PassOn::Failed(&reason)).await?;
        Ok(SliceEnd::Failed(reason))
    }

    /// A server is away: wait for it, longer each time, however often.
    async fn wait_out(&self, tombstone: &Tombstone, lease: &Lease, reason: String) -> Result<SliceEnd, StoreError> {
        let mut conn = self.store.conn().await?;
        let waits = tombstones::waits(&mut conn, tombstone.id).await?;
        drop(conn);
        let wait = self.backoff.delay_for(waits.saturating_add(1));
        self.pass_on(tombstone, lease, wait, PassOn::Outage(&reason)).await?;
        Ok(SliceEnd::Failed(reason))
    }

    /// Gives the lease back and writes the next task.
    async fn pass_on(
        &self,
        tombstone: &Tombstone,
        lease: &Lease,
        wait: Duration,
        why: PassOn<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        if purging::pass_on(&mut tx, lease, wait, why).await? == Fenced::Lost {
            return Ok(());
        }
        if let PassOn::Outage(reason) | PassOn::Failed(reason) = why {
            let counted = matches!(why, PassOn::Failed(_));
            let details = json!({ "reason": reason, "attempt": tombstone.attempts + u32::from(counted) });
            history::record(&mut tx, Happened::PurgeFailed, tombstone, &self.provenance(), details).await?;
            tracing::warn!(
                tombstone.id = %tombstone.id, resource = %tombstone.resource, reason,
                wait_ms = wait.as_millis(), "purge failed, will try again"
            );
        }
        let task = PurgeTask { tombstone: tombstone.id }.encode();
        outbox::schedule_purge(&mut tx, tombstone.id, &task, wait).await?;
        commit(tx).await
    }

    /// Notes on a tombstone that its slice panicked, and looks again.
    pub(super) async fn note_panic(&self, id: TombstoneId, reason: &str) -> Result<(), StoreError> {
        let note = async {
            let mut tx = self.store.begin().await?;
            tombstones::note_error(&mut tx, id, reason).await?;
            let task = PurgeTask { tombstone: id }.encode();
            outbox::schedule_purge(&mut tx, id, &task, self.backoff.delay_for(1)).await?;
            commit(tx).await
        };
        self.store.within(CONCLUSION, note).await
    }

    /// Brings a tombstone back after a slice that could not even write down what comes next.
    pub(super) async fn look_again(&self, id: TombstoneId) -> Result<(), StoreError> {
        let write = async {
            let mut conn = self.store.conn().await?;
            let task = PurgeTask { tombstone: id }.encode();
            outbox::schedule_purge(&mut conn, id, &task, self.backoff.delay_for(1)).await
        };
        self.store.within(1, write).await
    }
}
