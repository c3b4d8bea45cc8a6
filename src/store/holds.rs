//! Holds: an operator's "do not purge" on a resource, in the trash or not.
//!
//! Invariant: while a hold stands, the resource is neither trashed nor brought past the point of no return, nor is
//! anything that a cascade brought into the trash along with it.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;
use crate::domain::{
    ids::{ResourceRef, TombstoneId},
    tombstone::Provenance,
};

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Hold {
    /// The resource's kind.
    pub kind: String,
    /// The resource's id.
    pub resource_id: String,
    /// Who holds it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// The hold on a resource, if any.
///
/// # Errors
/// The statement failed.
pub async fn find(conn: &mut PgConnection, resource: &ResourceRef) -> Result<Option<Hold>, StoreError> {
    Ok(sqlx::query_as(
        "select kind, resource_id, actor, reason, created_at from reprieve.holds where kind = $1 and resource_id = $2",
    )
    .bind(resource.kind.as_str())
    .bind(resource.id.as_str())
    .fetch_optional(conn)
    .await?)
}

/// The hold on a tombstone's resource, or on one whose cascade brought it into the trash: while that can come back,
/// what went with it has to come back too.
///
/// # Errors
/// The statement failed.
pub async fn concerning(conn: &mut PgConnection, tombstone: TombstoneId) -> Result<Option<Hold>, StoreError> {
    Ok(sqlx::query_as(
        "with recursive up as (
             select id, parent, kind, resource_id from reprieve.tombstones where id = $1
             union all
             select t.id, t.parent, t.kind, t.resource_id from reprieve.tombstones t join up on t.id = up.parent)
         select h.kind, h.resource_id, h.actor, h.reason, h.created_at
         from reprieve.holds h join up on h.kind = up.kind and h.resource_id = up.resource_id limit 1",
    )
    .bind(tombstone.0)
    .fetch_optional(conn)
    .await?)
}

/// Every hold, newest first; at most 1000.
///
/// # Errors
/// The statement failed.
pub async fn list(conn: &mut PgConnection) -> Result<Vec<Hold>, StoreError> {
    Ok(sqlx::query_as(
        "select kind, resource_id, actor, reason, created_at from reprieve.holds order by created_at desc limit 1000",
    )
    .fetch_all(conn)
    .await?)
}

/// Writes a hold; `false` if there is one already.
///
/// # Errors
/// The statement failed.
pub async fn insert(conn: &mut PgConnection, resource: &ResourceRef, by: &Provenance) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "insert into reprieve.holds (kind, resource_id, actor, reason) values ($1, $2, $3, $4) on conflict do nothing",
    )
    .bind(resource.kind.as_str())
    .bind(resource.id.as_str())
    .bind(by.actor.as_str())
    .bind(by.reason.as_deref())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a hold away; `false` if there was none.
///
/// # Errors
/// The statement failed.
pub async fn delete(conn: &mut PgConnection, resource: &ResourceRef) -> Result<bool, StoreError> {
    let done = sqlx::query("delete from reprieve.holds where kind = $1 and resource_id = $2")
        .bind(resource.kind.as_str())
        .bind(resource.id.as_str())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
