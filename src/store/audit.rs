//! The audit log: append-only; a trigger refuses everything else.
//!
//! Invariant: an entry is written in the transaction that does what it tells.

use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::domain::{
    ids::{ResourceRef, TombstoneId},
    tombstone::Provenance,
};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A tombstone was written.
    Trashed,
    /// A request was refused.
    Refused,
    /// It was taken back.
    Restored,
    /// Due, but in use.
    Blocked,
    /// The point of no return.
    PurgeBegun,
    /// A delivery failed and will be tried again.
    PurgeFailed,
    /// Set aside.
    Stuck,
    /// An operator let it go on.
    Retried,
    /// The end; the details are the receipt.
    Purged,
    /// An operator's "do not purge".
    Held,
    /// The hold's end.
    Released,
    /// Purging was paused.
    Paused,
    /// And resumed.
    Resumed,
}

impl Happened {
    /// As the log and the events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trashed => "trashed",
            Self::Refused => "refused",
            Self::Restored => "restored",
            Self::Blocked => "blocked",
            Self::PurgeBegun => "purge_begun",
            Self::PurgeFailed => "purge_failed",
            Self::Stuck => "stuck",
            Self::Retried => "retried",
            Self::Purged => "purged",
            Self::Held => "held",
            Self::Released => "released",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }
}

/// An entry to write.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// What happened.
    pub event: Happened,
    /// To which tombstone, if one is concerned.
    pub tombstone: Option<TombstoneId>,
    /// To which resource, if one is concerned.
    pub resource: Option<&'a ResourceRef>,
    /// By whom and why, and as part of what; so is the event beside it.
    pub by: &'a Provenance,
    /// Figures and circumstances.
    pub details: Value,
}

/// The life-cycle event beside an entry.
#[derive(Debug)]
pub struct Event<'a> {
    /// Of the events exchange.
    pub routing_key: &'a str,
    /// The message.
    pub payload: &'a Value,
}

/// What becomes of the purge task that a tombstone may have in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurgeTask {
    /// It stays as it is.
    Stays,
    /// It goes: it has been taken up, or nothing is left to do.
    Goes,
}

/// An entry as it is kept.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Entry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What happened.
    pub event: String,
    /// By whom.
    pub actor: String,
    /// By which way.
    pub origin: String,
    /// Why.
    pub reason: Option<String>,
    /// As part of what.
    pub correlation_id: Option<String>,
    /// Figures and circumstances.
    pub details: Value,
}

/// Entries that are read at once.
const MOST: i64 = 1000;

/// Writes an entry.
///
/// # Errors
/// The statement failed.
pub async fn write(conn: &mut PgConnection, entry: NewEntry<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "insert into reprieve.audit (event, tombstone_id, kind, resource_id, actor, origin, reason, details, correlation_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(entry.event.as_str())
    .bind(entry.tombstone.map(|id| id.0))
    .bind(entry.resource.map(|resource| resource.kind.as_str()))
    .bind(entry.resource.map(|resource| resource.id.as_str()))
    .bind(entry.by.actor.as_str())
    .bind(&entry.by.origin)
    .bind(entry.by.reason.as_deref())
    .bind(Json(entry.details))
    .bind(entry.by.cause.correlation_id())
    .execute(conn)
    .await?;
    Ok(())
}

/// As [`write()`], together with the event that tells the same, in one statement; `task` says what becomes of the
/// tombstone's purge task.
///
/// # Errors
/// The statement failed.
pub async fn write_and_tell(
    conn: &mut PgConnection,
    entry: NewEntry<'_>,
    event: Event<'_>,
    task: PurgeTask,
) -> Result<(), StoreError> {
    sqlx::query(
        "with event as (
             insert into reprieve.outbox
                 (id, topic, destination, payload, tombstone_id, correlation_id, traceparent, tracestate)
             values ($9, 'event', $10, $11, $2, $13, $14, $15)),
         task as (delete from reprieve.outbox where $12 and tombstone_id = $2 and topic = 'purge')
         insert into reprieve.audit (event, tombstone_id, kind, resource_id, actor, origin, reason, details, correlation_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $13)",
    )
    .bind(entry.event.as_str())
    .bind(entry.tombstone.map(|id| id.0))
    .bind(entry.resource.map(|resource| resource.kind.as_str()))
    .bind(entry.resource.map(|resource| resource.id.as_str()))
    .bind(entry.by.actor.as_str())
    .bind(&entry.by.origin)
    .bind(entry.by.reason.as_deref())
    .bind(Json(entry.details))
    .bind(Uuid::now_v7())
    .bind(event.routing_key)
    .bind(Json(event.payload))
    .bind(task == PurgeTask::Goes)
    .bind(entry.by.cause.correlation_id())
    .bind(entry.by.cause.traceparent())
    .bind(entry.by.cause.tracestate())
    .execute(conn)
    .await?;
    Ok(())
}

/// A resource's history over all of its stays in the trash, oldest first; the newest 1000 entries at most.
///
/// # Errors
/// The statement failed.
pub async fn of_resource(conn: &mut PgConnection, resource: &ResourceRef) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = sqlx::query_as(
        "select at, event, actor, origin, reason, correlation_id, details from reprieve.audit
         where kind = $1 and resource_id = $2 order by id desc limit $3",
    )
    .bind(resource.kind.as_str())
    .bind(resource.id.as_str())
    .bind(MOST)
    .fetch_all(conn)
    .await?;
    entries.reverse();
    Ok(entries)
}

/// A tombstone's history, oldest first; the newest 1000 entries at most.
///
/// # Errors
/// The statement failed.
pub async fn of_tombstone(conn: &mut PgConnection, id: TombstoneId) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = sqlx::query_as(
        "select at, event, actor, origin, reason, correlation_id, details from reprieve.audit
         where tombstone_id = $1 order by id desc limit $2",
    )
    .bind::<Uuid>(id.0)
    .bind(MOST)
    .fetch_all(conn)
    .await?;
    entries.reverse();
    Ok(entries)
}
