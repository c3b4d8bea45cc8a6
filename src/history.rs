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
        audit::{self, Event, Happened, NewEntry, PurgeTask},
        storable_json,
    },
};

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
    write(conn, event, Of { tombstone, by, details }, PurgeTask::Stays).await
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
    write(conn, event, Of { tombstone, by, details }, PurgeTask::Goes).await
}

struct Of<'a> {
    tombstone: &'a Tombstone,
    by: &'a Provenance,
    details: Value,
}

async fn write(conn: &mut PgConnection, event: Happened, of: Of<'_>, task: PurgeTask) -> Result<(), StoreError> {
    let Of { tombstone, by, details } = of;
    let details = storable_json(details);
    // what a worker does belongs to what the tombstone does
    let by = &by.clone().within(by.cause.or(&tombstone.cause));
    let payload = &message::event(event.as_str(), tombstone, by, &details);
    let routing_key = &format!("{}.{}", tombstone.resource.kind, event.as_str());
    let entry = NewEntry { event, tombstone: Some(tombstone.id), resource: Some(&tombstone.resource), by, details };
    audit::write_and_tell(conn, entry, Event { routing_key, payload }, task).await
}
