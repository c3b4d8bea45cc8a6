//! Empties the locations of a tombstone: list, delete in batches, account for every key.
//!
//! Invariant: before a batch leaves, one fenced write has announced it, settled what was answered before, extended the
//! lease and asked for pauses. A worker whose lease is lost, or may be, sends nothing more. Keys that fail in passing
//! are tried again alone; one that cannot be deleted holds up no other.

mod careful;
mod keyed;
mod lane;
pub(super) mod look;
mod pipeline;
pub(super) mod range;
mod settle;
mod tried;

use super::{Budget, PurgeError, Purger, claim::Claimed};
use crate::{
    failpoint,
    store::tombstones::purging::{self, Fenced},
};

pub(super) use keyed::Left;
use pipeline::Pipeline;
use settle::Place;

/// Every location was listed to its end, and nothing was left behind.
#[derive(Debug)]
pub(super) struct Emptied {
    pub(super) claimed: Box<Claimed>,
}

/// Where emptying ended.
#[derive(Debug)]
#[must_use]
pub(super) enum Emptying {
    /// Done; to be verified.
    Emptied(Emptied),
    /// The slice is over; the checkpoint says where to go on.
    OutOfTime(Box<Claimed>),
    /// Somebody paused it.
    Paused(Box<Claimed>),
    /// The pass is over and objects are left, as the checkpoint says.
    Leftovers(Box<Claimed>),
}

/// Whether the next batch may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Paused,
}

/// Where the work on one location ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum End {
    /// It was listed to its end.
    Listed,
    /// It was listed in several ranges, each to its end.
    Split,
    /// The store does not list its keys in their order.
    Unsorted,
    OutOfTime,
    Paused,
}

impl Purger {
    /// Goes on with the pass over the locations, or begins one.
    pub(super) async fn empty(&self, mut claimed: Box<Claimed>, budget: &Budget) -> Result<Emptying, PurgeError> {
        if claimed.checkpoint.is_fresh() {
            claimed.progress.begin_pass();
            self.record_late(&claimed).await?;
        }
        while let Some(location) = claimed.tombstone.locations.get(claimed.checkpoint.location).cloned() {
            let place = Place::new(self.stores.at(&location)?, &location, &claimed.lease);
            let end = if claimed.checkpoint.is_careful() {
                self.empty_carefully(&place, &mut claimed, budget).await?
            } else {
                Pipeline::over(self, &place, &mut claimed, budget).run().await?
            };
            let checkpoint = &mut claimed.checkpoint;
            match end {
                End::OutOfTime => return Ok(Emptying::OutOfTime(claimed)),
                End::Paused => return Ok(Emptying::Paused(claimed)),
                End::Unsorted => {
                    tracing::info!(store = %location.store, "keys are not listed in their order, one batch at a time");
                    checkpoint.go_carefully();
                }
                End::Split => checkpoint.sweep(),
                End::Listed => {
                    checkpoint.next_location();
                    failpoint::at("empty.location_done");
                }
            }
        }
        match self.empty_recorded(&mut claimed, budget).await? {
            End::OutOfTime => return Ok(Emptying::OutOfTime(claimed)),
            End::Paused => return Ok(Emptying::Paused(claimed)),
            End::Listed | End::Split | End::Unsorted => {}
        }
        // nothing is written here: what goes on from here writes the counters with its own end, and a crash before that
        // lists the last batches again
        failpoint::at("empty.pass_done");
        if claimed.progress.has_leftovers() {
            Ok(Emptying::Leftovers(claimed))
        } else {
            Ok(Emptying::Emptied(Emptied { claimed }))
        }
    }

    /// Fences, settles, extends, and asks for pauses, in one write.
    async fn write_checkpoint(&self, claimed: &Claimed) -> Result<Go, PurgeError> {
        let checkpoint = claimed.checkpoint.to_json()?;
        let write = async {
            let mut conn = self.store.conn().await?;
            purging::checkpoint(&mut conn, &claimed.lease, &claimed.progress, &checkpoint).await
        };
        // the heartbeat has a connection of its own: nothing else ends the wait on one that has died without a word
        match self.store.within(1, write).await? {
            Fenced::Ours { paused: false } => Ok(Go::On),
            Fenced::Ours { paused: true } => Ok(Go::Paused),
            Fenced::Lost => Err(PurgeError::LeaseLost),
        }
    }

    /// Writes down what the pass has come to, where something else than its end comes next.
    pub(super) async fn keep_counts(&self, claimed: &Claimed) -> Result<(), PurgeError> {
        let _ = self.write_checkpoint(claimed).await?;
        Ok(())
    }

    /// Forgets the pass, so that the next one lists everything anew.
    pub(super) async fn begin_anew(&self, claimed: &mut Claimed) -> Result<(), PurgeError> {
        claimed.checkpoint = claimed.checkpoint.anew();
        let _ = self.write_checkpoint(claimed).await?;
        failpoint::at("empty.begun_anew");
        Ok(())
    }
}
