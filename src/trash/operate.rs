//! What operators do: hold and release, pause and resume, retry.
//!
//! Invariant: each is written with who and why, and each is idempotent and says whether it changed anything.

use serde_json::json;
use sqlx::PgConnection;

use super::{NoRetry, TrashBin, TrashError, error::timestamp};
use crate::{
    domain::{
        ids::{Kind, ResourceId, ResourceRef, TombstoneId},
        state::State,
        tombstone::{Provenance, Tombstone},
    },
    failpoint, history,
    queue::message::PurgeTask,
    store::{
        StoreError,
        audit::{self, Happened, NewEntry},
        commit, holds, outbox,
        pauses::{self, Pause, Scope},
        platform::{self, Locking},
        tombstones::{self, Candidate},
    },
};

/// Tombstones woken in one transaction: their rows are locked until it ends.
const WAKE_AT_ONCE: u32 = 1000;

impl TrashBin {
    /// Holds a resource: it is neither trashed nor purged until released. `false`: it was held before.
    ///
    /// # Errors
    /// [`TrashError::PastReturn`] where it is too late, [`TrashError::NotFound`] where there is nothing to hold.
    pub async fn hold(&self, resource: &ResourceRef, by: &Provenance) -> Result<bool, TrashError> {
        let mut tx = self.store.begin().await?;
        // the row's lock orders this against a trash, the tombstone's against the point of no return
        let kind = self.kind_of(resource)?;
        let open = match tombstones::open_of(&mut tx, resource).await? {
            Some(open) => tombstones::lock(&mut tx, open.id).await?,
            None => None,
        };
        let row = platform::find(&mut tx, kind, &resource.id, Locking::ForUpdate).await?;
        // while we waited for its lock it may have been closed
        match open.filter(|tombstone| tombstone.state.is_open()) {
            Some(tombstone) if !tombstone.state.is_restorable() => {
                return Err(TrashError::PastReturn { tombstone: Box::new(tombstone) });
            }
            None if !row.is_some_and(|row| row.fits) => return Err(TrashError::NotFound(resource.clone())),
            _ => {}
        }
        let changed = holds::insert(&mut tx, resource, by).await?;
        if changed {
            note(&mut tx, Happened::Held, Some(resource), by, json!({})).await?;
        }
        commit(tx).await?;
        Ok(changed)
    }

    /// Reads the resource of a hold. One that has left the map since can still be released: the table knows it.
    ///
    /// # Errors
    /// As [`TrashBin::resource`], where nothing of that name is held either.
    pub async fn held_resource(&self, kind: &str, id: &str) -> Result<ResourceRef, TrashError> {
        let unknown = match self.resource(kind, id) {
            Ok(resource) => return Ok(resource),
            Err(unknown) => unknown,
        };
        let (kind, id) = (Kind::from_stored(kind.to_owned()), ResourceId::from_stored(id.to_owned()));
        let resource = ResourceRef { kind, id };
        match holds::find(&mut *self.store.conn().await?, &resource).await? {
            Some(_) => Ok(resource),
            None => Err(unknown),
        }
    }

    /// Releases a hold. What has come due meanwhile is looked at now. `false`: there was no hold.
    ///
    /// # Errors
    /// The database.
    pub async fn release(&self, resource: &ResourceRef, by: &Provenance) -> Result<bool, TrashError> {
        let mut tx = self.store.begin().await?;
        let changed = holds::delete(&mut tx, resource).await?;
        if changed {
            note(&mut tx, Happened::Released, Some(resource), by, json!({})).await?;
            // what a cascade brought along was held with it; children first, as everybody who locks several
            let open = tombstones::open_of(&mut tx, resource).await?;
            let held = match open {
                Some(open) => tombstones::family_of(&mut tx, open.id).await?,
                None => Vec::new(),
            };
            for id in held {
                if tombstones::wake(&mut tx, id).await? {
                    outbox::hurry(&mut tx, &[id]).await?;
                }
            }
        }
        commit(tx).await?;
        Ok(changed)
    }

    /// Pauses purging, from the next batch on. `false`: it was paused before.
    ///
    /// # Errors
    /// The database.
    pub async fn pause(&self, scope: &Scope, by: &Provenance) -> Result<bool, TrashError> {
        let mut tx = self.store.begin().await?;
        let changed = pauses::insert(&mut tx, scope, by).await?;
        if changed {
            note(&mut tx, Happened::Paused, None, by, json!({ "scope": scope.to_string() })).await?;
        }
        commit(tx).await?;
        Ok(changed)
    }

    /// Every pause.
    ///
    /// # Errors
    /// The database.
    pub async fn pauses(&self) -> Result<Vec<Pause>, TrashError> {
        Ok(pauses::list(&mut *self.store.conn().await?).await?)
    }

    /// Resumes purging; what it kept is looked at now, as far as it is due. `false`: it was not paused. The pause is lifted
    /// first and for itself: thousands may have come due behind it, and what is not woken looks again by itself.
    ///
    /// # Errors
    /// The database. When waking fails, that is logged.
    pub async fn resume(&self, scope: &Scope, by: &Provenance) -> Result<bool, TrashError> {
        let mut tx = self.store.begin().await?;
        let changed = pauses::delete(&mut tx, scope).await?;
        if changed {
            note(&mut tx, Happened::Resumed, None, by, json!({ "scope": scope.to_string() })).await?;
        }
        commit(tx).await?;
        if changed && let Err(error) = self.wake_paused(scope).await {
            tracing::warn!(%error, %scope, "resumed, but not all that is due was woken: it looks again by itself");
        }
        Ok(changed)
    }

    async fn wake_paused(&self, scope: &Scope) -> Result<(), StoreError> {
        let mut last = None;
        // ends: each turn goes on after the ids of the one before
        loop {
            let mut tx = self.store.begin().await?;
            let woken = tombstones::wake_paused(&mut tx, scope, last, WAKE_AT_ONCE).await?;
            outbox::hurry(&mut tx, &woken).await?;
            commit(tx).await?;
            if woken.len() < WAKE_AT_ONCE as usize {
                return Ok(());
            }
            last = woken.last().copied();
        }
    }

    /// The tombstone that a retry would let go on: its purge is stuck, or waits for its next try.
    ///
    /// # Errors
    /// [`TrashError::NotInTrash`] or [`TrashError::NothingToRetry`].
    pub async fn retriable(&self, resource: &ResourceRef) -> Result<Tombstone, TrashError> {
        let mut conn = self.store.conn().await?;
        let id = open_id(&mut conn, resource).await?;
        let candidate = tombstones::candidate(&mut conn, id).await?;
        judge(&mut conn, resource, candidate).await
    }

    /// Lets a purge go on that is stuck, or tries one now that waits for its next try. Gives it back as it was.
    ///
    /// # Errors
    /// As [`TrashBin::retriable`].
    pub async fn retry(&self, resource: &ResourceRef, by: &Provenance) -> Result<Tombstone, TrashError> {
        let mut tx = self.store.begin().await?;
        let id = open_id(&mut tx, resource).await?;
        let candidate = tombstones::lock_candidate(&mut tx, id).await?;
        let was = judge(&mut tx, resource, candidate).await?;
        if !tombstones::purging::retry(&mut tx, id).await? {
            let tombstone = Box::new(was);
            return Err(TrashError::NothingToRetry { tombstone, why: NoRetry::WorkedOn });
        }
        // a task that was to leave later leaves now
        outbox::schedule_purge(&mut tx, id, &PurgeTask { tombstone: id }.encode(), std::time::Duration::ZERO).await?;
        let mut details = json!({ "was": was.last_error });
        if was.state == State::Purging {
            details["waited_until"] = json!(timestamp(was.next_attempt_at));
        }
        history::record(&mut tx, Happened::Retried, &was, by, details).await?;
        failpoint::at("retry.uncommitted");
        commit(tx).await?;
        failpoint::at("retry.committed");
        Ok(was)
    }
}

async fn open_id(conn: &mut PgConnection, resource: &ResourceRef) -> Result<TombstoneId, TrashError> {
    let open = tombstones::open_of(conn, resource).await?;
    open.map(|open| open.id).ok_or_else(|| TrashError::NotInTrash(resource.clone()))
}

/// Says why there is nothing to retry, where there is not. The guard of the statement that does it is the same.
async fn judge(
    conn: &mut PgConnection,
    resource: &ResourceRef,
    candidate: Option<Candidate>,
) -> Result<Tombstone, TrashError> {
    // whoever had it locked may have closed it
    let open = candidate.filter(|candidate| candidate.tombstone.state.is_open());
    let open = open.ok_or_else(|| TrashError::NotInTrash(resource.clone()))?;
    let Candidate { tombstone, due_in, is_leased, .. } = open;
    let why = match tombstone.state {
        State::Stuck => return Ok(tombstone),
        State::Purging if is_leased => NoRetry::WorkedOn,
        State::Purging => match pauses::concerning(conn, &tombstone).await? {
            Some(pause) => NoRetry::Paused(pause),
            None if due_in.is_zero() => NoRetry::Due,
            None => return Ok(tombstone),
        },
        State::Trashed | State::Blocked | State::Restored | State::Purged => NoRetry::NotBegun,
    };
    Err(TrashError::NothingToRetry { tombstone: Box::new(tombstone), why })
}

async fn note(
    conn: &mut PgConnection,
    event: Happened,
    resource: Option<&ResourceRef>,
    by: &Provenance,
    details: serde_json::Value,
) -> Result<(), StoreError> {
    let open = match resource {
        Some(resource) => tombstones::open_of(&mut *conn, resource).await?,
        None => None,
    };
    audit::write(conn, NewEntry { event, tombstone: open.map(|open| open.id), resource, by, details }).await
}
