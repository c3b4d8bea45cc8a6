//! The audit log: append-only; a trigger refuses everything else.
//!
//! Invariant: an entry is written in the transaction that does what it tells.

use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, Postgres, postgres::PgArguments, query::Query, types::Json};
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

/// An entry about a tombstone and the life-cycle event beside it, which tell the same.
#[derive(Debug)]
pub struct Telling<'a> {
    /// What happened.
    pub event: Happened,
    /// To which tombstone.
    pub tombstone: TombstoneId,
    /// To which resource.
    pub resource: &'a ResourceRef,
    /// By whom and why, and as part of what.
    pub by: Provenance,
    /// Figures and circumstances.
    pub details: Value,
    /// Of the events exchange.
    pub routing_key: String,
    /// The message.
    pub payload: Value,
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

/// `told!("update … returning …", "columns")`: the statement that does what a [`Telling`] tells, returns these `columns`
/// of what it did, and writes entry and event where, and only where, it did it; the tombstone's purge task goes then (with
/// a third argument, on that condition). What it does returns the tombstone's `id`, at least, and has its own parameters
/// from `$15` on; [`Telling::bind_to`] binds those before.
macro_rules! told {
    ($does:literal, $columns:literal) => {
        told!($does, $columns, "true")
    };
    ($does:literal, $columns:literal, $task_goes:literal) => {
        concat!(
            "with done as (",
            $does,
            "),
             event as (
                 insert into reprieve.outbox
                     (id, topic, destination, payload, tombstone_id, correlation_id, traceparent, tracestate)
                 select $9, 'event', $10, $11, id, $12, $13, $14 from done),
             task as (
                 delete from reprieve.outbox o using done
                 where o.tombstone_id = done.id and o.topic = 'purge' and ",
            $task_goes,
            "),
             entry as (
                 insert into reprieve.audit
                     (event, tombstone_id, kind, resource_id, actor, origin, reason, details, correlation_id)
                 select $1, $2, $3, $4, $5, $6, $7, $8, $12 from done)
             select ",
            $columns,
            " from done"
        )
    };
}
pub(super) use told;

/// Writes both, in one statement; `task` says what becomes of the tombstone's purge task.
///
/// # Errors
/// The statement failed.
pub async fn write_and_tell(conn: &mut PgConnection, telling: &Telling<'_>, task: PurgeTask) -> Result<(), StoreError> {
    let sql = told!("select $2 as id", "id", "$15");
    telling.bind_to(sqlx::query(sql)).bind(task == PurgeTask::Goes).execute(conn).await?;
    Ok(())
}

impl Telling<'_> {
    /// Binds the parameters before those of what [`told!`] does.
    pub(super) fn bind_to<'q>(&self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(self.event.as_str())
            .bind(self.tombstone.0)
            .bind(self.resource.kind.as_str())
            .bind(self.resource.id.as_str())
            .bind(self.by.actor.as_str())
            .bind(&self.by.origin)
            .bind(self.by.reason.as_deref())
            .bind(Json(&self.details))
            .bind(Uuid::now_v7())
            .bind(&self.routing_key)
            .bind(Json(&self.payload))
            .bind(self.by.cause.correlation_id())
            .bind(self.by.cause.traceparent())
            .bind(self.by.cause.tracestate())
    }
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
