//! Back from the trash.
//!
//! Invariant: a restore and the point of no return lock the same tombstone, so exactly one of them happens. What is
//! restored has lost no object.

use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use super::{TrashBin, TrashError};
use crate::{
    domain::{
        ids::ResourceRef,
        state::State,
        tombstone::{Provenance, Tombstone},
    },
    failpoint, history,
    store::{
        audit::Happened,
        commit,
        platform::{self, Locking},
        recorded, tombstones,
    },
};

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The resource's tombstone, closed.
    pub tombstone: Tombstone,
    /// It had been restored before; nothing has changed.
    pub already: bool,
    /// The tombstones of the children that came back with it.
    pub children: Vec<Tombstone>,
    /// Children past the point of no return, or whose rows somebody else has removed; only a partial restore leaves
    /// them behind.
    pub lost: Vec<Tombstone>,
}

impl Restored {
    /// The tombstones that this has closed.
    pub fn closed(&self) -> impl Iterator<Item = &Tombstone> {
        std::iter::once(&self.tombstone).filter(|_| !self.already).chain(&self.children)
    }
}

/// What to do when some of the children are past the point of no return, or have no row any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfChildrenLost {
    /// Restore nothing.
    Refuse,
    /// Restore the rest.
    RestoreTheRest,
}

impl TrashBin {
    /// Takes a resource, and the children that were trashed along with it, out of the trash.
    ///
    /// # Errors
    /// [`TrashError`]; nothing has changed then.
    pub async fn restore(
        &self,
        resource: &ResourceRef,
        if_lost: IfChildrenLost,
        by: &Provenance,
    ) -> Result<Restored, TrashError> {
        let mut tx = self.store.begin().await?;
        let restored = self.restore_in(&mut tx, resource, if_lost, by).await?;
        failpoint::at("restore.uncommitted");
        commit(tx).await?;
        failpoint::at("restore.committed");
        Ok(restored)
    }

    /// As [`TrashBin::restore`], in the caller's transaction. Roll it back on an error: part of it may be written.
    ///
    /// # Errors
    /// [`TrashError`].
    pub async fn restore_in(
        &self,
        conn: &mut PgConnection,
        resource: &ResourceRef,
        if_lost: IfChildrenLost,
        by: &Provenance,
    ) -> Result<Restored, TrashError> {
        let Some(newest) = tombstones::newest_of(&mut *conn, resource).await? else {
            let kind = self.kind_of(resource)?;
            let row = platform::find(&mut *conn, kind, &resource.id, Locking::None).await?;
            return Err(if row.is_some_and(|row| row.fits) {
                TrashError::NotInTrash(resource.clone())
            } else {
                TrashError::NotFound(resource.clone())
            });
        };
        if newest.state == State::Restored {
            return Ok(Restored { tombstone: newest, already: true, children: Vec::new(), lost: Vec::new() });
        }
        // children before parents, as the claim of a child does
        for id in tombstones::family_of(&mut *conn, newest.id).await? {
            tombstones::lock(&mut *conn, id).await?;
        }
        let tombstone = match self.restore_one(&mut *conn, &newest, by).await {
            // somebody else's restore was waited for
            Err(TrashError::PastReturn { tombstone }) if tombstone.state == State::Restored => {
                return Ok(Restored { tombstone: *tombstone, already: true, children: Vec::new(), lost: Vec::new() });
            }
            restored => restored?,
        };
        let (mut children, mut lost) = (Vec::new(), Vec::new());
        let mut parents = vec![tombstone.id];
        while let Some(parent) = parents.pop() {
            for child in tombstones::children_of(&mut *conn, parent).await? {
                match self.restore_one(&mut *conn, &child, by).await {
                    Ok(child) => {
                        parents.push(child.id);
                        children.push(child);
                    }
                    Err(TrashError::PastReturn { tombstone }) if tombstone.state == State::Restored => {}
                    Err(TrashError::PastReturn { tombstone }) if if_lost == IfChildrenLost::RestoreTheRest => {
                        lost.push(*tombstone);
                    }
                    Err(TrashError::RowGone(_)) if if_lost == IfChildrenLost::RestoreTheRest => lost.push(child),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Restored { tombstone, already: false, children, lost })
    }

    async fn restore_one(
        &self,
        conn: &mut PgConnection,
        seen: &Tombstone,
        by: &Provenance,
    ) -> Result<Tombstone, TrashError> {
        // waits here for a claim in progress, and then sees what it has decided
        let now = tombstones::lock(&mut *conn, seen.id).await?.unwrap_or_else(|| seen.clone());
        let kind = self.kind_of(&now.resource)?;
        if now.state.is_restorable()
            && platform::find(&mut *conn, kind, &now.resource.id, Locking::ForUpdate).await?.is_none()
        {
            return Err(TrashError::RowGone(now.resource));
        }
        let Some(restored) = tombstones::restore(&mut *conn, now.id).await? else {
            return Err(TrashError::PastReturn { tombstone: Box::new(now) });
        };
        platform::mark(&mut *conn, kind, &restored.resource.id, false).await?;
        if !restored.recorded.is_empty() {
            recorded::forget_all(&mut *conn, restored.id).await?;
        }
        let details = json!({ "parent": restored.parent });
        history::record_without_task(conn, Happened::Restored, &restored, by, details).await?;
        Ok(restored)
    }
}
