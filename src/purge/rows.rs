//! Deletes the child rows, a few thousand a transaction.
//!
//! Invariant: rows go after the objects that they alone list, which is why this takes [`Verified`]. Each chunk is
//! deleted and counted in one fenced transaction, which also asks for pauses.

use super::{Budget, PurgeError, Purger, claim::Claimed, verify::Verified};
use crate::{
    domain::{map::ResourceKind, tombstone::Tombstone},
    failpoint,
    store::{
        StoreError, Tx, commit,
        platform::{self, Locking},
        tombstones::purging::{self, Fenced},
    },
};

/// No child row is left.
#[derive(Debug)]
pub(super) struct RowsGone {
    pub(super) claimed: Box<Claimed>,
}

/// Where deleting rows ended.
#[derive(Debug)]
#[must_use]
pub(super) enum Rows {
    /// Done; to be finished.
    Gone(RowsGone),
    /// The slice is over; the next one verifies again and goes on.
    OutOfTime(Box<Claimed>),
    /// Somebody paused it.
    Paused(Box<Claimed>),
}

impl Purger {
    pub(super) async fn delete_rows(&self, verified: Verified, budget: &Budget) -> Result<Rows, PurgeError> {
        let Verified { mut claimed } = verified;
        let kind = self.kind_of(&claimed)?;
        for rows in &kind.rows {
            loop {
                if budget.is_spent(claimed.has_worked) {
                    return Ok(Rows::OutOfTime(claimed));
                }
                let mut tx = self.store.begin().await?;
                self.no_newcomer(&mut tx, kind, &claimed.tombstone).await?;
                let resource = &claimed.tombstone.resource;
                let chunk = self.config.row_chunk;
                let deleted = platform::delete_child_rows(&mut tx, kind, rows, &resource.id, chunk).await?;
                if deleted == 0 {
                    break;
                }
                let Fenced::Ours { paused } = purging::count_rows(&mut tx, &claimed.lease, deleted).await? else {
                    return Err(PurgeError::LeaseLost);
                };
                failpoint::at("rows.uncommitted");
                commit(tx).await?;
                failpoint::at("rows.committed");
                claimed.progress.rows_deleted += deleted;
                claimed.has_worked = true;
                if paused {
                    return Ok(Rows::Paused(claimed));
                }
            }
            failpoint::at("rows.table_done");
        }
        failpoint::at("rows.done");
        Ok(Rows::Gone(RowsGone { claimed }))
    }

    /// A row that was gone at the point of no return and is there now is another's, who took the id again: nothing of
    /// it is touched.
    pub(super) async fn no_newcomer(
        &self,
        tx: &mut Tx,
        kind: &ResourceKind,
        tombstone: &Tombstone,
    ) -> Result<(), PurgeError> {
        if tombstone.row_found != Some(false) {
            return Ok(());
        }
        match platform::find(tx, kind, &tombstone.resource.id, Locking::None).await? {
            None => Ok(()),
            Some(_) => Err(PurgeError::Newcomer),
        }
    }

    /// The kind of a purge that has begun; it may have left the map since, and then nobody knows its rows.
    pub(super) fn kind_of(&self, claimed: &Claimed) -> Result<&ResourceKind, StoreError> {
        let name = claimed.tombstone.resource.kind.as_str();
        self.map.kind(name).map_err(|_| {
            StoreError::Unusable(format!("the resource map no longer has the kind {name}; add it again to finish"))
        })
    }
}
