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
        audit::{self, Happened, NewEntry},
        outbox,
    },
};

/// Records it.
///
/// # Errors
/// A statement failed.
pub async fn record(
    conn: &mut PgConnection,
    event: Happened,
    tombstone: &Tombstone,
    by: &Provenance,
    details: Value,
) -> Result<(), StoreError> {
    let message = message::event(event.as_str(), tombstone, by.actor.as_str(), &details);
    let routing_key = format!("{}.{}", tombstone.resource.kind, event.as_str());
    outbox::event(&mut *conn, &routing_key, &message, tombstone.id).await?;
    let entry = NewEntry { event, tombstone: Some(tombstone.id), resource: Some(&tombstone.resource), by, details };
    audit::write(conn, entry).await
}
