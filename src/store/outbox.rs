//! The outbox: every message leaves through it, written in the transaction that caused it.
//!
//! Invariant: a row goes only after the broker has confirmed its message. A row that is written again while it is on
//! its way gets a new id, so the confirm of the old message does not take the new one with it. `available_at` is the
//! clock of the system.

use std::time::Duration;

use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::StoreError;
use crate::domain::{
    cause::{Cause, TraceContext},
    ids::TombstoneId,
};

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The purge queue.
    Purge,
    /// The events exchange; the destination is the routing key.
    Event,
    /// The queue that the destination names.
    Reply,
}

impl Topic {
    /// As the table and the metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Event => "event",
            Self::Reply => "reply",
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub struct Leased {
    /// The row's id, and the message's.
    pub id: Uuid,
    /// Where to.
    pub topic: Topic,
    /// Routing key or queue.
    pub destination: String,
    /// The message.
    pub payload: Value,
    /// What it belongs to; of a reply what the requester asked for.
    pub correlation_id: Option<String>,
    /// The trace that it is part of.
    pub trace: Option<TraceContext>,
    /// Of which tombstone.
    pub tombstone: Option<TombstoneId>,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// Writes (or moves) the one purge task of a tombstone, to leave after `wait`. It belongs to what the tombstone does.
///
/// # Errors
/// The statement failed.
pub async fn schedule_purge(
    conn: &mut PgConnection,
    tombstone: TombstoneId,
    payload: &Value,
    wait: Duration,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into reprieve.outbox
             (id, topic, destination, payload, tombstone_id, available_at, correlation_id, traceparent, tracestate)
         select $1, 'purge', '', $2, id, now() + $4 * interval '1 second', correlation_id, traceparent, tracestate
         from reprieve.tombstones where id = $3
         on conflict (tombstone_id) where topic = 'purge' do update
         set id = excluded.id, payload = excluded.payload, available_at = excluded.available_at,
             correlation_id = excluded.correlation_id, traceparent = excluded.traceparent,
             tracestate = excluded.tracestate, leased_until = null, attempts = 0, last_error = null",
    )
    .bind(Uuid::now_v7())
    .bind(Json(payload))
    .bind(tombstone.0)
    .bind(wait.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets the waiting tasks of these tombstones leave now. One that has none gets its task from the sweeper.
///
/// # Errors
/// The statement failed.
pub async fn hurry(conn: &mut PgConnection, tombstones: &[TombstoneId]) -> Result<(), StoreError> {
    sqlx::query("update reprieve.outbox set available_at = least(available_at, now()) where topic = 'purge' and tombstone_id = any($1)")
        .bind(tombstones.iter().map(|id| id.0).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(())
}

/// A reply to write.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The queue that the requester named.
    pub queue: &'a str,
    /// As the requester gave it, whatever it is.
    pub correlation_id: Option<&'a str>,
    /// The trace that it is part of.
    pub trace: Option<&'a TraceContext>,
    /// The message.
    pub payload: &'a Value,
}

/// Writes a reply.
///
/// # Errors
/// The statement failed.
pub async fn reply(conn: &mut PgConnection, reply: Reply<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "insert into reprieve.outbox (id, topic, destination, payload, correlation_id, traceparent, tracestate)
         values ($1, 'reply', $2, $3, $4, $5, $6)",
    )
    .bind(Uuid::now_v7())
    .bind(reply.queue)
    .bind(Json(reply.payload))
    .bind(reply.correlation_id)
    .bind(reply.trace.map(TraceContext::traceparent))
    .bind(reply.trace.and_then(TraceContext::tracestate))
    .execute(conn)
    .await?;
    Ok(())
}

/// How many rows a relay takes at once.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Purge tasks.
    pub tasks: u16,
    /// Events and replies.
    pub messages: u16,
}

/// Takes up to a `window` of rows that are due, the oldest first, for `lease`; another relay passes them over meanwhile.
/// A relay that dies with them loses nothing: they are taken again, and a message sent twice does no harm. Tasks and
/// messages have an index each, so that tasks that are held back are not read over and over on the way to a message.
///
/// # Errors
/// The statement failed.
pub async fn lease(conn: &mut PgConnection, window: Window, lease: Duration) -> Result<Vec<Leased>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "with tasks as (
             select id from reprieve.outbox
             where topic = 'purge' and available_at <= now() and (leased_until is null or leased_until < now())
             order by available_at, id limit $1 for update skip locked),
         messages as (
             select id from reprieve.outbox
             where topic <> 'purge' and available_at <= now() and (leased_until is null or leased_until < now())
             order by available_at, id limit $2 for update skip locked),
         leased as (
             update reprieve.outbox set leased_until = now() + $3 * interval '1 second'
             where id in (select id from tasks union all select id from messages)
             returning id, topic, destination, payload, correlation_id, traceparent, tracestate, tombstone_id, attempts,
                       available_at)
         select id, topic, destination, payload, correlation_id, traceparent, tracestate, tombstone_id, attempts
         from leased order by available_at, id",
    )
    .bind(i64::from(window.tasks))
    .bind(i64::from(window.messages))
    .bind(lease.as_secs_f64())
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Leased::from).collect())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    topic: String,
    destination: String,
    payload: Json<Value>,
    correlation_id: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    tombstone_id: Option<Uuid>,
    attempts: i32,
}

impl From<Row> for Leased {
    fn from(row: Row) -> Self {
        let topic = [Topic::Event, Topic::Reply].into_iter().find(|topic| topic.as_str() == row.topic);
        Self {
            id: row.id,
            topic: topic.unwrap_or(Topic::Purge),
            destination: row.destination,
            payload: row.payload.0,
            trace: Cause::from_stored(None, row.traceparent.as_deref(), row.tracestate.as_deref()).trace,
            correlation_id: row.correlation_id,
            tombstone: row.tombstone_id.map(TombstoneId),
            attempts: u32::try_from(row.attempts).unwrap_or(0),
        }
    }
}

/// Removes rows whose messages the broker has. One that is locked is just being written anew, or removed; if it is
/// neither in the end, it is sent once more when its lease has run out.
///
/// # Errors
/// The statement failed.
pub async fn confirm(conn: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "delete from reprieve.outbox where id in (
             select id from reprieve.outbox where id = any($1) for update skip locked)",
    )
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts a row back whose message the broker did not take, to be tried after `wait`.
///
/// # Errors
/// The statement failed.
pub async fn put_back(conn: &mut PgConnection, id: Uuid, reason: &str, wait: Duration) -> Result<(), StoreError> {
    sqlx::query(
        "update reprieve.outbox
         set leased_until = null, attempts = attempts + 1, last_error = $2,
             available_at = now() + $3 * interval '1 second'
         where id = $1",
    )
    .bind(id)
    .bind(reason)
    .bind(wait.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(())
}
