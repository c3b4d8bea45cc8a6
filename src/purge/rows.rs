//! Deletes the child rows, a few thousand a transaction.
//!
//! Invariant: rows go after the objects that they alone list, which is why this takes [`Verified`]. Each chunk is
//! deleted and counted in one fenced transaction, which also asks for pauses. The last chunk, for most resources the
//! only one, goes in the transaction that ends the purge.

use super::{Budget, PurgeError, Purger, claim::Claimed, verify::Verified};
use crate::{
    domain::{map::ResourceKind, tombstone::Tombstone},
    failpoint,
    store::{
        StoreError, Tx, commit, platform,
        tombstones::purging::{self, Fenced, Locked},
    },
};

/// Statements of a transaction that may take long, beside those on child rows: for locks, and on the resource's row.
const BESIDE_ROWS: u32 = 4;

/// How often a transaction may go over the tables: to delete, to wait for changes, and to find nothing.
const ROUNDS: u32 = 3;

/// No child row is left, once the transaction is committed that deletes the last of them.
#[derive(Debug)]
pub(super) struct RowsGone {
    pub(super) claimed: Box<Claimed>,
    /// Holds the tombstone's lock.
    pub(super) tx: Tx,
    pub(super) locked: Locked,
    /// Rows that it has deleted and nobody has counted.
    pub(super) uncounted: u64,
}

/// Where deleting rows ended.
#[derive(Debug)]
#[must_use]
pub(super) enum Rows {
    /// Done; to be finished.
    Gone(Box<RowsGone>),
    /// The slice is over; the next one verifies again and goes on.
    OutOfTime(Box<Claimed>),
    /// Somebody paused it.
    Paused(Box<Claimed>),
}

/// What one transaction has come to.
enum Step {
    /// It is committed.
    Committed { deleted: u64, paused: bool },
    /// It has deleted the last rows, and is to end the purge.
    Last { tx: Tx, uncounted: u64 },
}

/// What one transaction has deleted.
enum Chunk {
    /// The last rows that there were.
    Last(u64),
    /// As many as fit, or all but what somebody was just changing; never none.
    Some(u64),
}

impl Purger {
    pub(super) async fn delete_rows(&self, verified: Verified, budget: &Budget) -> Result<Rows, PurgeError> {
        let Verified { mut claimed } = verified;
        let kind = self.kind_of(&claimed)?;
        let mut is_long = false;
        loop {
            if budget.is_spent(claimed.has_worked) {
                return Ok(Rows::OutOfTime(claimed));
            }
            let tables = u32::try_from(kind.rows.len()).unwrap_or(u32::MAX);
            let statements = BESIDE_ROWS.saturating_add(ROUNDS.saturating_mul(tables.saturating_add(1)));
            let (deleted, paused) = match self.store.within(statements, self.next_rows(kind, &claimed)).await? {
                Step::Committed { deleted, paused } => (deleted, paused),
                Step::Last { mut tx, uncounted } => {
                    // before the lock: a heartbeat waits for that
                    self.forget_recorded(&mut tx, &claimed).await?;
                    // the tombstone first and the platform's row second, as everybody locks them; and no more than a
                    // lock, for a guard that meets a change in progress waits for it, while the row's end may wait for
                    // what the guard holds
                    let locked = self.store.within(1, purging::lock(&mut tx, &claimed.lease)).await?;
                    let locked = locked.ok_or(PurgeError::LeaseLost)?;
                    if locked.paused {
                        return Ok(Rows::Paused(claimed));
                    }
                    failpoint::at("rows.done");
                    return Ok(Rows::Gone(Box::new(RowsGone { claimed, tx, locked, uncounted })));
                }
            };
            claimed.progress.rows_deleted += deleted;
            claimed.has_worked = true;
            if !std::mem::replace(&mut is_long, true) {
                // the end, which would tell it, is some way off
                self.keep_counts(&claimed).await?;
            }
            if paused {
                return Ok(Rows::Paused(claimed));
            }
        }
    }

    /// One transaction.
    async fn next_rows(&self, kind: &ResourceKind, claimed: &Claimed) -> Result<Step, PurgeError> {
        let mut tx = self.store.begin().await?;
        self.no_newcomer(&mut tx, kind, &claimed.tombstone).await?;
        let chunk = self.delete_chunk(&mut tx, kind, &claimed.tombstone).await?;
        // rows of one who came meanwhile may be among them; nothing is committed
        self.no_newcomer(&mut tx, kind, &claimed.tombstone).await?;
        let deleted = match chunk {
            Chunk::Some(deleted) => deleted,
            Chunk::Last(uncounted) => return Ok(Step::Last { tx, uncounted }),
        };
        let Fenced::Ours { paused } = purging::count_rows(&mut tx, &claimed.lease, deleted).await? else {
            return Err(PurgeError::LeaseLost);
        };
        failpoint::at("rows.uncommitted");
        commit(tx).await?;
        failpoint::at("rows.committed");
        Ok(Step::Committed { deleted, paused })
    }

    /// Deletes up to a chunk of rows, table after table, as the map has them: children first.
    async fn delete_chunk(&self, tx: &mut Tx, kind: &ResourceKind, tombstone: &Tombstone) -> Result<Chunk, PurgeError> {
        let (id, chunk) = (&tombstone.resource.id, u64::from(self.config.row_chunk));
        let (mut deleted, mut is_again) = (0, false);
        let mut tables: Vec<_> = kind.rows.iter().collect();
        // to look at a single one first costs as much as to delete what it nearly always has
        let mut is_single = tables.len() == 1;
        loop {
            if !std::mem::take(&mut is_single) {
                tables = platform::tables_with_rows(&mut *tx, kind, id, tables).await?;
            }
            if tables.is_empty() {
                return Ok(Chunk::Last(deleted));
            }
            for rows in &tables {
                let gone = platform::delete_child_rows(&mut *tx, kind, rows, id, chunk - deleted).await?;
                deleted += gone;
                if deleted >= chunk || (gone == 0 && deleted > 0) {
                    return Ok(Chunk::Some(deleted));
                }
                if gone == 0 {
                    // whoever was just changing them has been waited for, and has done so by the second time
                    if std::mem::replace(&mut is_again, true) {
                        return Err(PurgeError::RowsStay(rows.table.to_string()));
                    }
                    break;
                }
                failpoint::at("rows.table_done");
            }
        }
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
        match platform::has_row(tx, kind, &tombstone.resource.id).await? {
            false => Ok(()),
            true => Err(PurgeError::Newcomer),
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
