//! One delivery's share of a purge: claim it, go on where it stands, and write down what comes next.
//!
//! Invariant: a slice ends in exactly one way, and each way but the lost lease has written what happens next before it
//! returns. A panic is one of these ways: it is counted like the death of a worker. While it runs a heartbeat extends
//! the lease; when the heartbeat finds the lease lost, the slice is dropped where it stands, which is what a crash would
//! have done.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;

use super::{
    Budget, PurgeError, Purger,
    checkpoint::Checkpoint,
    claim::{Claim, Claimed},
    empty::{Emptied, Emptying},
    locks::may_be_locked,
    rows::Rows,
    uploads::Aborting,
    verify::Verification,
};
use crate::{
    domain::{ids::TombstoneId, state::State, tombstone::Tombstone},
    failpoint, history,
    queue::message::PurgeTask,
    store::{
        StoreError, Tx,
        audit::Happened,
        commit, outbox, silent,
        tombstones::{
            self,
            purging::{self, Fenced, Lease, PassOn, SetAside, Setback},
        },
    },
    telemetry::trace::part,
};

/// Statements of a claim that may take long: the map's queries, and the one about foreign keys.
const CLAIM: u32 = 6;
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
    /// Panicked; tried again later.
    Panicked(String),
    /// Set aside, for this reason.
    Stuck(String),
    /// Nothing to do.
    Nothing(&'static str),
    /// Another worker has taken over.
    LeaseLost,
}

impl SliceEnd {
    /// Whether nothing is wrong: it got further, or has a good reason not to.
    pub(super) fn is_well(&self) -> bool {
        !matches!(self, Self::Failed(_) | Self::Panicked(_) | Self::Stuck(_))
    }

    /// The label of the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Purged => "purged",
            Self::Continues => "continued",
            Self::Blocked(_) => "blocked",
            Self::Deferred(_) => "deferred",
            Self::Failed(_) => "failed",
            Self::Panicked(_) => "panic",
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
    /// Objects are left.
    Leftovers {
        lease: Lease,
        reason: String,
        then: Then,
    },
}

/// What to do about objects that are left.
enum Then {
    /// Some are left for good, or until a date.
    GiveUp { until: Option<OffsetDateTime> },
    /// One of a number of attempts.
    TryAgain,
    /// The store is away or asks for less; nothing is known against the objects.
    WaitForTheStore,
}

impl Purger {
    /// Works on a tombstone for one slice.
    ///
    /// # Errors
    /// The database cannot be reached; what was begun resumes when the lease has run out.
    pub async fn run_slice(&self, id: TombstoneId, budget: &Budget) -> Result<SliceEnd, StoreError> {
        let claim = AssertUnwindSafe(self.store.within(CLAIM, self.claim(id))).catch_unwind().await;
        let claimed = match claim.unwrap_or_else(|panic| Err(PurgeError::Panicked(said(&*panic)))) {
            Ok(Claim::Ours(claimed)) => claimed,
            Ok(Claim::Blocked(blockers)) => return Ok(SliceEnd::Blocked(blockers.len())),
            Ok(Claim::Deferred(reason)) => return Ok(SliceEnd::Deferred(reason)),
            Ok(Claim::Nothing(why)) => return Ok(SliceEnd::Nothing(why)),
            Ok(Claim::Ended(end)) => return Ok(end),
            Err(PurgeError::Panicked(what)) => {
                tracing::error!(tombstone.id = %id, what, "claim panicked");
                self.set_back(id, &what).await?;
                return Ok(SliceEnd::Panicked(what));
            }
            Err(PurgeError::Store(error)) => return Err(error),
            Err(error) => return Err(StoreError::Unusable(error.to_string())),
        };
        let (lease, tombstone) = (claimed.lease.clone(), claimed.tombstone.clone());
        if tombstone.state != State::Purging {
            self.metrics.purges().started(&tombstone.resource.kind);
        }
        tracing::info!(tombstone.id = %id, resource = %tombstone.resource, fence = lease.fence.0, "purging");
        let worked = tokio::select! {
            worked = AssertUnwindSafe(self.stages(claimed, budget)).catch_unwind() =>
                worked.unwrap_or_else(|panic| Err(PurgeError::Panicked(said(&*panic)))),
            lost = self.keep_alive(&lease) => Err(lost),
        };
        self.store.within(CONCLUSION, self.conclude(&tombstone, &lease, worked)).await
    }

    async fn stages(&self, mut claimed: Box<Claimed>, budget: &Budget) -> Result<Outcome, PurgeError> {
        claimed.checkpoint = self.recall(&claimed).await?;
        let emptied = match part("empty", self.empty(claimed, budget)).await? {
            Emptying::Emptied(emptied) => emptied,
            Emptying::OutOfTime(claimed) => return Ok(Outcome::OutOfTime(claimed.lease)),
            Emptying::Paused(claimed) => return Ok(Outcome::Paused(claimed.lease)),
            Emptying::Leftovers(mut claimed) => {
                let mut reason = claimed.checkpoint.describe_leftovers();
                let leftovers = &claimed.checkpoint.leftovers;
                let mut then = match () {
                    () if leftovers.iter().any(|left| left.permanent) => Then::GiveUp { until: None },
                    () if leftovers.iter().all(|left| left.outage) => Then::WaitForTheStore,
                    () => Then::TryAgain,
                };
                if leftovers.iter().any(|left| left.permanent && may_be_locked(left)) {
                    let locks = self.ask_locks(&claimed).await;
                    if !locks.is_nothing() {
                        reason = format!("{reason}; {locks}");
                        then = Then::GiveUp { until: locks.free_at() };
                    }
                }
                self.begin_anew(&mut claimed).await?;
                return Ok(Outcome::Leftovers { lease: claimed.lease, reason, then });
            }
        };
        // nothing is written between a pass without leftovers and the purge's end, which has the counters then
        let pass = emptied.claimed.clone();
        let ended = self.after_emptying(emptied, budget).await;
        match &ended {
            // these write nothing else either
            Ok(_) | Err(PurgeError::LeaseLost | PurgeError::Store(StoreError::Unavailable(_))) => {}
            Err(_) => {
                if let Err(error) = self.keep_counts(&pass).await {
                    tracing::warn!(tombstone.id = %pass.lease.id, %error, "counters of the pass not written");
                }
            }
        }
        ended
    }

    async fn after_emptying(&self, emptied: Emptied, budget: &Budget) -> Result<Outcome, PurgeError> {
        let no_uploads = match part("uploads", self.abort_uploads(emptied, budget)).await? {
            Aborting::Done(no_uploads) => no_uploads,
            Aborting::OutOfTime(claimed) => {
                self.keep_counts(&claimed).await?;
                return Ok(Outcome::OutOfTime(claimed.lease));
            }
            Aborting::Paused(claimed) => {
                self.keep_counts(&claimed).await?;
                return Ok(Outcome::Paused(claimed.lease));
            }
        };
        let verified = match part("verify", self.verify(no_uploads, budget)).await? {
            Verification::Verified(verified) => verified,
            Verification::OutOfTime(claimed) => {
                self.keep_counts(&claimed).await?;
                return Ok(Outcome::OutOfTime(claimed.lease));
            }
            Verification::Refilled(mut claimed, reason) => {
                self.begin_anew(&mut claimed).await?;
                return Ok(Outcome::Leftovers { lease: claimed.lease, reason, then: Then::TryAgain });
            }
        };
        match part("rows", self.delete_rows(verified, budget)).await? {
            Rows::Gone(gone) => Ok(Outcome::Finished(Box::new(part("finish", self.finish(*gone)).await?))),
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

    /// Where the purge goes on.
    async fn recall(&self, claimed: &Claimed) -> Result<Checkpoint, StoreError> {
        if claimed.tombstone.state != State::Purging {
            // it has just begun
            return Ok(Checkpoint::default());
        }
        let load = async { purging::load_checkpoint(&mut *self.store.conn().await?, claimed.lease.id).await };
        let stored = self.store.within(1, load).await?;
        Ok(stored.map(Checkpoint::from_json).transpose().map(Option::unwrap_or_default).unwrap_or_else(|error| {
            // of another version; it only says where to go on, and a pass from the beginning ends at the same place
            tracing::warn!(tombstone.id = %claimed.lease.id, %error, "checkpoint cannot be read, the pass begins anew");
            Checkpoint::default()
        }))
    }

    /// Extends the lease every third of it; returns only when it is lost, or has run out. Whatever the stages wait for
    /// then, perhaps on a connection that has died without a word, they wait no longer.
    async fn keep_alive(&self, lease: &Lease) -> PurgeError {
        loop {
            tokio::time::sleep(lease.duration / 3).await;
            let renew = async { purging::renew(&mut *self.store.conn().await?, lease).await };
            // who stood still for longer than that still gets to hear that it is lost
            let limit = lease.duration.saturating_sub(lease.age()).max(lease.duration / 3);
            match timeout(limit, renew).await {
                Ok(Ok(Fenced::Lost)) => return PurgeError::LeaseLost,
                Ok(Ok(Fenced::Ours { .. })) => {}
                Ok(Err(error)) if lease.age() < lease.duration => {
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
                // the one line of a purge with its figures, those of the receipt
                tracing::info!(
                    tombstone.id = %tombstone.id, resource = %tombstone.resource,
                    objects.listed = progress.objects_listed, objects.deleted = progress.objects_deleted,
                    objects.absent = progress.objects_absent, objects.kept = progress.objects_kept,
                    objects.older_versions = progress.versions_gone, objects.delete_markers = progress.markers_gone,
                    uploads_aborted = progress.uploads_aborted, bytes_freed = progress.bytes_freed,
                    rows_deleted = progress.rows_deleted, duration_s = finished.seconds, lag_s = finished.lag, "purged"
                );
                self.metrics.purges().finished(&tombstone.resource.kind, progress, finished.seconds, finished.lag);
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
            Ok(Outcome::Leftovers { lease, reason, then }) => match then {
                Then::GiveUp { until } => {
                    let setback = Setback { reason, until, at_least: self.recheck.delay_for(1) };
                    self.give_up_in(self.store.begin().await?, tombstone, &lease, setback).await
                }
                Then::TryAgain => self.count_failure(tombstone, &lease, reason).await,
                Then::WaitForTheStore => self.wait_out(tombstone, &lease, reason, Duration::ZERO).await,
            },
            Err(PurgeError::LeaseLost) => {
                tracing::warn!(tombstone.id = %tombstone.id, fence = lease.fence.0, "lease lost, stopping");
                Ok(SliceEnd::LeaseLost)
            }
            Err(PurgeError::Store(error @ StoreError::Unavailable(_))) => Err(error),
            Err(PurgeError::Panicked(what)) => {
                tracing::error!(tombstone.id = %tombstone.id, what, "slice panicked");
                let mut tx = self.store.begin().await?;
                if purging::count_death(&mut tx, lease).await? == Fenced::Lost {
                    return Ok(SliceEnd::LeaseLost);
                }
                match self.after_death(tx, tombstone, lease, &what).await? {
                    SliceEnd::Failed(reason) => Ok(SliceEnd::Panicked(reason)),
                    end => Ok(end),
                }
            }
            Err(error) if error.is_hopeless() => self.give_up(tombstone, lease, error.to_string()).await,
            Err(error) if error.is_outage() => {
                self.wait_out(tombstone, lease, error.to_string(), error.retry_after()).await
            }
            Err(error) => self.count_failure(tombstone, lease, error.to_string()).await,
        }
    }

    /// Sets the purge aside: nothing but somebody's help can finish it.
    async fn give_up(&self, tombstone: &Tombstone, lease: &Lease, reason: String) -> Result<SliceEnd, StoreError> {
        self.give_up_in(self.store.begin().await?, tombstone, lease, for_help(reason)).await
    }

    async fn give_up_in(
        &self,
        mut tx: Tx,
        tombstone: &Tombstone,
        lease: &Lease,
        setback: Setback,
    ) -> Result<SliceEnd, StoreError> {
        let set_aside = purging::give_up(&mut tx, lease, &setback).await?;
        let Setback { reason, until, .. } = setback;
        let until = until.and_then(|until| until.format(&Rfc3339).ok());
        let details = json!({ "reason": reason, "attempts": tombstone.attempts + 1, "until": until });
        let by = self.provenance();
        let waits = matches!(set_aside, SetAside::For(_));
        match set_aside {
            SetAside::Lost => return Ok(SliceEnd::LeaseLost),
            SetAside::ForHelp => {
                history::record_without_task(&mut tx, Happened::Stuck, tombstone, &by, details).await?;
            }
            SetAside::For(wait) => {
                history::record(&mut tx, Happened::Stuck, tombstone, &by, details).await?;
                let task = PurgeTask { tombstone: tombstone.id }.encode();
                outbox::schedule_purge(&mut tx, tombstone.id, &task, wait).await?;
            }
        }
        failpoint::at("give_up.uncommitted");
        commit(tx).await?;
        failpoint::at("give_up.committed");
        self.metrics.purges().stuck(&tombstone.resource.kind);
        if waits {
            // nobody is needed: it goes on by itself then
            tracing::warn!(
                tombstone.id = %tombstone.id, resource = %tombstone.resource, reason, until, "stuck until a date"
            );
        } else {
            tracing::error!(tombstone.id = %tombstone.id, resource = %tombstone.resource, reason, "stuck");
        }
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

    /// One more worker has died over it, counted in `tx`, with nothing settled since the last: another try after a
    /// back-off, which leaves the others that died with it in peace, or none.
    pub(super) async fn after_death(
        &self,
        mut tx: Tx,
        tombstone: &Tombstone,
        lease: &Lease,
        what: &str,
    ) -> Result<SliceEnd, StoreError> {
        let deaths = purging::deaths(&mut tx, tombstone.id).await?;
        let reason = match deaths {
            0 | 1 => what.to_owned(),
            _ => format!("{what}; {deaths} times in a row without getting further"),
        };
        if deaths >= self.config.max_attempts {
            return self.give_up_in(tx, tombstone, lease, for_help(reason)).await;
        }
        self.pass_on_in(tx, tombstone, lease, self.backoff.delay_for(deaths), PassOn::Died(&reason)).await?;
        Ok(SliceEnd::Failed(reason))
    }

    /// A server is away or asks to be left alone: wait for it at least as long as it asks, and longer each time, however
    /// often. Where this delivery got further, the waits begin anew.
    async fn wait_out(
        &self,
        tombstone: &Tombstone,
        lease: &Lease,
        reason: String,
        at_least: Duration,
    ) -> Result<SliceEnd, StoreError> {
        let mut conn = self.store.conn().await?;
        let waits = purging::waits(&mut conn, tombstone.id, &tombstone.progress).await?.saturating_add(1);
        drop(conn);
        let wait = self.backoff.delay_for(waits).max(at_least);
        self.pass_on(tombstone, lease, wait, PassOn::Outage { reason: &reason, waits }).await?;
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
        self.pass_on_in(self.store.begin().await?, tombstone, lease, wait, why).await
    }

    async fn pass_on_in(
        &self,
        mut tx: Tx,
        tombstone: &Tombstone,
        lease: &Lease,
        wait: Duration,
        why: PassOn<'_>,
    ) -> Result<(), StoreError> {
        if purging::pass_on(&mut tx, lease, wait, why).await? == Fenced::Lost {
            return Ok(());
        }
        if let PassOn::Outage { reason, .. } | PassOn::Failed(reason) | PassOn::Died(reason) = why {
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
        failpoint::at("pass_on.uncommitted");
        commit(tx).await?;
        failpoint::at("pass_on.committed");
        Ok(())
    }

    /// Notes on a tombstone what befell a task that nobody has the lease for, and looks again, later each time.
    /// `false`: it is closed, not due, or in living hands, and nothing was noted.
    pub(super) async fn set_back(&self, id: TombstoneId, reason: &str) -> Result<bool, StoreError> {
        let note = async {
            let mut tx = self.store.begin().await?;
            let waits = tombstones::waits(&mut tx, id).await?;
            let wait = self.backoff.delay_for(waits.saturating_add(1));
            if !tombstones::set_back(&mut tx, id, reason, wait).await? {
                return Ok(false);
            }
            outbox::schedule_purge(&mut tx, id, &PurgeTask { tombstone: id }.encode(), wait).await?;
            failpoint::at("set_back.uncommitted");
            commit(tx).await?;
            failpoint::at("set_back.committed");
            Ok(true)
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

/// Set aside until somebody helps.
fn for_help(reason: String) -> Setback {
    Setback { reason, until: None, at_least: Duration::ZERO }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("its worker panicked: {}", text.unwrap_or("see its log"))
}
