//! "See that this is purged": what a platform says that has soft-deleted a row itself.
//!
//! Invariant: such a request never shortens a window. What has no tombstone yet gets one, and its window begins now;
//! what is live is refused.

use serde::Serialize;
use sqlx::PgConnection;

use super::{TrashBin, TrashError, TrashRequest};
use crate::{
    domain::{state::State, tombstone::Tombstone},
    store::{
        outbox,
        platform::{self, Locking},
        tombstones,
    },
};

/// What a request to purge led to.
#[derive(Debug, Clone, Serialize)]
pub struct PurgeAnswer {
    /// `scheduled` (a tombstone was written), `waiting` (its window is still open), `due` (it will be looked at now),
    /// `purging`, `stuck` or `purged`.
    pub status: &'static str,
    /// As it stands.
    pub tombstone: Tombstone,
    /// What this request has written, with its children.
    #[serde(skip)]
    pub written: Vec<Tombstone>,
}

impl TrashBin {
    /// Sees to it that a soft-deleted resource is purged when its window has passed, in the caller's transaction.
    ///
    /// # Errors
    /// [`TrashError::NotInTrash`] for what is live, and everything that can stand against trashing.
    pub async fn request_purge_in(
        &self,
        conn: &mut PgConnection,
        request: &TrashRequest,
    ) -> Result<PurgeAnswer, TrashError> {
        let resource = &request.resource;
        let newest = tombstones::newest_of(&mut *conn, resource).await?;
        if let Some(open) = newest.as_ref().filter(|tombstone| tombstone.state.is_open()) {
            return self.hurry(conn, open.clone()).await;
        }
        let kind = self.kind_of(resource)?;
        let row = platform::find(&mut *conn, kind, &resource.id, Locking::ForUpdate).await?;
        match (row.filter(|row| row.fits), newest) {
            (Some(row), _) if row.marked == Some(true) => {
                let trashed = self.trash_in(conn, request).await?;
                let written = trashed.written().cloned().collect();
                Ok(PurgeAnswer { status: "scheduled", tombstone: trashed.tombstone, written })
            }
            (Some(_), _) => Err(TrashError::NotInTrash(resource.clone())),
            (None, Some(purged)) if purged.state == State::Purged => {
                Ok(PurgeAnswer { status: "purged", tombstone: purged, written: Vec::new() })
            }
            (None, _) => Err(TrashError::NotFound(resource.clone())),
        }
    }

    async fn hurry(&self, conn: &mut PgConnection, open: Tombstone) -> Result<PurgeAnswer, TrashError> {
        let status = match open.state {
            State::Trashed | State::Blocked => {
                if tombstones::wake(&mut *conn, open.id).await? {
                    outbox::hurry(conn, &[open.id]).await?;
                    "due"
                } else {
                    "waiting"
                }
            }
            State::Purging => "purging",
            State::Stuck | State::Restored | State::Purged => "stuck",
        };
        Ok(PurgeAnswer { status, tombstone: open, written: Vec::new() })
    }
}
