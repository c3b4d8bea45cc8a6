//! Carries a plan out: marks, tombstones, purge tasks, history, in one transaction.
//!
//! Invariant: a crash before the commit leaves nothing, after it everything; the purge task waits in the outbox until
//! the window has passed.

use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Plan, TrashBin, TrashError, TrashRequest};
use crate::{
    domain::{
        ids::TombstoneId,
        location::{KeyPlace, Location},
        tombstone::Tombstone,
    },
    failpoint, history,
    queue::message::PurgeTask,
    store::{audit::Happened, commit, outbox, platform, tombstones},
};

/// What a trash did.
#[derive(Debug, Clone, Serialize)]
pub struct Trashed {
    /// The resource's tombstone.
    pub tombstone: Tombstone,
    /// It was in the trash before; nothing has changed.
    pub already: bool,
    /// The tombstones of what went with it.
    pub children: Vec<Tombstone>,
    /// Children that were in the trash before, by tombstones of their own.
    pub children_already: Vec<Tombstone>,
    /// What the request asked for otherwise than the tombstone has it, where it was in the trash before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_taken: Vec<&'static str>,
}

impl Trashed {
    /// The tombstones that this has written.
    pub fn written(&self) -> impl Iterator<Item = &Tombstone> {
        std::iter::once(&self.tombstone).filter(|_| !self.already).chain(&self.children)
    }
}

/// What the event and the audit log say beside who and what.
#[derive(Serialize)]
struct TrashedDetails<'a> {
    #[serde(with = "time::serde::rfc3339")]
    purge_after: OffsetDateTime,
    locations: &'a [Location],
    #[serde(skip_serializing_if = "<[KeyPlace]>::is_empty")]
    recorded: &'a [KeyPlace],
    parent: Option<TombstoneId>,
}

impl TrashBin {
    /// Puts a resource, and the children asked for, into the trash: all of it or nothing.
    ///
    /// # Errors
    /// [`TrashError`]; nothing has changed then.
    pub async fn trash(&self, request: &TrashRequest) -> Result<Trashed, TrashError> {
        let mut tx = self.store.begin().await?;
        let trashed = self.trash_in(&mut tx, request).await?;
        failpoint::at("trash.uncommitted");
        commit(tx).await?;
        failpoint::at("trash.committed");
        Ok(trashed)
    }

    /// As [`TrashBin::trash`], in the caller's transaction. Roll it back on an error: part of it may be written.
    ///
    /// # Errors
    /// [`TrashError`].
    pub async fn trash_in(&self, conn: &mut PgConnection, request: &TrashRequest) -> Result<Trashed, TrashError> {
        let Plan { mut members, already, children_already, not_taken } = self.plan_in(&mut *conn, request).await?;
        if let Some(tombstone) = already {
            return Ok(Trashed { tombstone, already: true, children: Vec::new(), children_already, not_taken });
        }
        let ids: Vec<TombstoneId> = members.iter().map(|_| TombstoneId::new()).collect();
        let mut written = Vec::with_capacity(members.len());
        for (member, id) in members.iter_mut().zip(&ids) {
            self.record(&mut *conn, member, *id).await?;
            let recorded: Vec<KeyPlace> = member.recorded.iter().map(|keys| keys.place.clone()).collect();
            let kind = self.kind_of(&member.resource)?;
            platform::mark(&mut *conn, kind, &member.resource.id, true).await?;
            let new = tombstones::NewTombstone {
                id: *id,
                resource: &member.resource,
                name: member.name.as_deref(),
                by: &request.by,
                retention: member.retention,
                parent: member.parent.map(|at| ids[at]),
                locations: &member.locations,
                recorded: &recorded,
            };
            let tombstone = tombstones::insert(&mut *conn, new).await?;
            let task = PurgeTask { tombstone: *id }.encode();
            outbox::schedule_purge(&mut *conn, *id, &task, member.retention.duration()).await?;
            let details = json!(TrashedDetails {
                purge_after: tombstone.purge_after,
                locations: &tombstone.locations,
                recorded: &tombstone.recorded,
                parent: tombstone.parent,
            });
            history::record(&mut *conn, Happened::Trashed, &tombstone, &request.by, details).await?;
            written.push(tombstone);
        }
        let tombstone = written.remove(0);
        Ok(Trashed { tombstone, already: false, children: written, children_already, not_taken })
    }
}
