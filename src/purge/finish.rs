//! The end: the resource's own row, the tombstone, the receipt, in the transaction that has deleted the last child rows.
//!
//! Invariant: a receipt exists exactly when the row is gone and the tombstone closed. The row is deleted last of all, and
//! none that came after the point of no return.

use serde_json::{Value, json};

use super::{PurgeError, Purger, rows::RowsGone};
use crate::{
    domain::{map::ResourceKind, tombstone::Tombstone},
    failpoint, history,
    queue::message::PurgeTask,
    store::{
        Tx,
        audit::Happened,
        commit, outbox, platform, recorded,
        tombstones::{
            self,
            purging::{self, Fenced},
        },
    },
};

/// Statements of the end that may take long: the delete of a row with all that hangs on it, what is recorded, and those
/// that wait for locks.
const ENDING: u32 = 5;

/// A purge that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) tombstone: Tombstone,
    /// Seconds from the point of no return to here.
    pub(super) seconds: f64,
    /// Seconds from the end of the window to here.
    pub(super) lag: f64,
}

impl Purger {
    pub(super) async fn finish(&self, gone: RowsGone) -> Result<Finished, PurgeError> {
        self.store.within(ENDING, self.end(gone)).await
    }

    async fn end(&self, gone: RowsGone) -> Result<Finished, PurgeError> {
        let RowsGone { claimed, mut tx, locked, uncounted } = gone;
        let kind = self.kind_of(&claimed)?;
        let row = self.delete_own_row(&mut tx, kind, &claimed.tombstone).await?;
        let rows = uncounted + row;
        let mut tombstone = claimed.tombstone;
        tombstone.progress = claimed.progress;
        tombstone.progress.rows_deleted += rows;
        let seconds = (locked.ends - locked.began).as_seconds_f64();
        let lag = (locked.ends - tombstone.purge_after).as_seconds_f64();
        let receipt = receipt(&tombstone, row, seconds);
        let told = history::telling(Happened::Purged, &tombstone, &self.provenance(), receipt);
        if purging::finish(&mut tx, &claimed.lease, &claimed.progress, rows, &told).await? == Fenced::Lost {
            return Err(PurgeError::LeaseLost);
        }
        if !tombstone.recorded.is_empty() {
            // a worker that was cut off may have written some since they were forgotten
            recorded::forget_all(&mut tx, tombstone.id).await?;
        }
        if let Some(parent) = tombstone.parent {
            // it may have waited for this child
            if tombstones::wake(&mut tx, parent).await? {
                let task = PurgeTask { tombstone: parent }.encode();
                outbox::schedule_purge(&mut tx, parent, &task, std::time::Duration::ZERO).await?;
            }
        }
        failpoint::at("finish.uncommitted");
        commit(tx).await?;
        failpoint::at("finish.committed");
        Ok(Finished { tombstone, seconds, lag })
    }

    /// Deletes the resource's own row, unless it was gone at the point of no return: one that has its id now, perhaps
    /// since a moment ago, is another's.
    async fn delete_own_row(&self, tx: &mut Tx, kind: &ResourceKind, tombstone: &Tombstone) -> Result<u64, PurgeError> {
        if tombstone.row_found == Some(false) {
            return Ok(0);
        }
        let id = &tombstone.resource.id;
        let row = platform::delete_row(tx, kind, id).await?;
        if row == 0 && platform::has_row(tx, kind, id).await? {
            return Err(PurgeError::RowsStay(kind.table.to_string()));
        }
        Ok(row)
    }
}

/// What the purge did, as the audit log keeps it.
fn receipt(tombstone: &Tombstone, row_deleted: u64, seconds: f64) -> Value {
    let progress = &tombstone.progress;
    let mut receipt = json!({
        "objects": {
            "listed": progress.objects_listed,
            "deleted": progress.objects_deleted,
            "absent": progress.objects_absent,
            "failed": progress.objects_failed,
            "unknown": progress.objects_unknown,
            "older_versions": progress.versions_gone,
            "delete_markers": progress.markers_gone,
        },
        "uploads_aborted": progress.uploads_aborted,
        "bytes_freed": progress.bytes_freed,
        "rows_deleted": progress.rows_deleted,
        "row_found": tombstone.row_found,
        "row_deleted": row_deleted == 1,
        "verified_empty": tombstone.locations,
        "seconds": seconds,
        "trashed_by": tombstone.actor,
        "correlation_id": tombstone.cause.correlation_id,
        "name": tombstone.name,
    });
    if !tombstone.recorded.is_empty() {
        receipt["objects"]["kept"] = progress.objects_kept.into();
        receipt["recorded"] = json!(tombstone.recorded);
    }
    receipt
}
