//! What happened to a tombstone, told twice: to the audit log and, as an event, to whoever listens.
//!
//! Invariant: both are written in the transaction that does what they tell, so neither can tell of what did not happen.

use serde_json::Value;
use sqlx::PgConnection;

use crate::{
    domain::tombstone::{Provenance, Tombstone},
    queue::message,
    store::{
        StoreError,
        audit::{self, Happened, PurgeTask, Telling},
        storable_json,
    },
};

/// What is to be told of it, for the statement that does it.
pub fn telling<'a>(event: Happened, tombstone: &'a Tombstone, by: &Provenance, details: Value) -> Telling<'a> {
    let details = storable_json(details);
    // what a worker does belongs to what the tombstone does
    let by = by.clone().within(by.cause.or(&tombstone.cause));
    Telling {
        event,
        tombstone: tombstone.id,
        resource: &tombstone.resource,
        routing_key: format!("{}.{}", tombstone.resource.kind, event.as_str()),
        payload: message::event(event.as_str(), tombstone, &by, &details),
        by,
        details,
    }
}

/// Records it.
///
/// # Errors
/// The statement failed.
pub async fn record(
    conn: &mut PgConnection,
    event: Happened,
    tombstone: &Tombstone,
    by: &Provenance,
    details: Value,
) -> Result<(), StoreError> {
    audit::write_and_tell(conn, &telling(event, tombstone, by, details), PurgeTask::Stays).await
}

/// Records it, and takes the tombstone's purge task out of the outbox.
///
/// # Errors
/// The statement failed.
pub async fn record_without_task(
    conn: &mut PgConnection,
    event: Happened,
    tombstone: &Tombstone,
    by: &Provenance,
    details: Value,
) -> Result<(), StoreError> {
    audit::write_and_tell(conn, &telling(event, tombstone, by, details), PurgeTask::Goes).await
}
