//! A tombstone as the table has it.
//!
//! Invariant: a row that this program cannot read is an error, never a guess.

use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    domain::{
        cause::Cause,
        ids::{Fence, Kind, ResourceId, ResourceRef, TombstoneId},
        location::{KeyPlace, Location},
        progress::Progress,
        state::State,
        tombstone::Tombstone,
    },
    store::StoreError,
};

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    id: Uuid,
    kind: String,
    resource_id: String,
    name: Option<String>,
    state: String,
    actor: String,
    origin: String,
    reason: Option<String>,
    correlation_id: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    trashed_at: OffsetDateTime,
    purge_after: OffsetDateTime,
    parent: Option<Uuid>,
    locations: Json<Value>,
    blockers: Json<Value>,
    attempts: i32,
    next_attempt_at: OffsetDateTime,
    retry_at: Option<OffsetDateTime>,
    last_error: Option<String>,
    fence: i64,
    lease_owner: Option<String>,
    lease_until: Option<OffsetDateTime>,
    objects_listed: i64,
    objects_deleted: i64,
    objects_absent: i64,
    versions_gone: i64,
    markers_gone: i64,
    objects_failed: i64,
    objects_unknown: i64,
    uploads_aborted: i64,
    objects_kept: i64,
    bytes_freed: i64,
    rows_deleted: i64,
    row_found: Option<bool>,
    purging_at: Option<OffsetDateTime>,
    closed_at: Option<OffsetDateTime>,
}

/// Counters are never negative; the table's checks see to it.
fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Row {
    /// The row's id, for a message about a row that cannot be read.
    pub(super) fn id(&self) -> TombstoneId {
        TombstoneId(self.id)
    }
}

/// Reads what a column of tombstone `id` holds as JSON.
fn parsed<T: DeserializeOwned>(id: Uuid, column: &str, value: Value) -> Result<T, StoreError> {
    serde_json::from_value(value)
        .map_err(|error| StoreError::Unusable(format!("the {column} of tombstone {id} cannot be read: {error}")))
}

impl TryFrom<Row> for Tombstone {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let state = State::parse(&row.state).ok_or_else(|| {
            StoreError::Unusable(format!("tombstone {} has the unknown state {:?}", row.id, row.state))
        })?;
        let places: Vec<Value> = parsed(row.id, "locations", row.locations.0)?;
        let (mut locations, mut recorded) = (Vec::<Location>::new(), Vec::<KeyPlace>::new());
        for place in places {
            if place.get("keys").is_some() {
                recorded.push(parsed(row.id, "locations", place)?);
            } else {
                locations.push(parsed(row.id, "locations", place)?);
            }
        }
        Ok(Self {
            id: TombstoneId(row.id),
            resource: ResourceRef { kind: Kind::from_stored(row.kind), id: ResourceId::from_stored(row.resource_id) },
            name: row.name,
            state,
            actor: row.actor,
            origin: row.origin,
            reason: row.reason,
            cause: Cause::from_stored(row.correlation_id, row.traceparent.as_deref(), row.tracestate.as_deref()),
            trashed_at: row.trashed_at,
            purge_after: row.purge_after,
            parent: row.parent.map(TombstoneId),
            locations,
            recorded,
            blockers: parsed(row.id, "blockers", row.blockers.0)?,
            attempts: u32::try_from(row.attempts).unwrap_or(0),
            next_attempt_at: row.next_attempt_at,
            retry_at: row.retry_at,
            last_error: row.last_error,
            fence: Fence(row.fence),
            lease_owner: row.lease_owner,
            lease_until: row.lease_until,
            progress: Progress {
                objects_listed: count(row.objects_listed),
                objects_deleted: count(row.objects_deleted),
                objects_absent: count(row.objects_absent),
                versions_gone: count(row.versions_gone),
                markers_gone: count(row.markers_gone),
                objects_failed: count(row.objects_failed),
                objects_unknown: count(row.objects_unknown),
                uploads_aborted: count(row.uploads_aborted),
                objects_kept: count(row.objects_kept),
                bytes_freed: count(row.bytes_freed),
                rows_deleted: count(row.rows_deleted),
            },
            row_found: row.row_found,
            purging_at: row.purging_at,
            closed_at: row.closed_at,
        })
    }
}
