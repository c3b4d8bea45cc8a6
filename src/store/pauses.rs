//! Pauses: nothing is destroyed, anywhere, in one kind or in one store, until they are lifted.
//!
//! Invariant: a pause takes effect before the next batch of a running purge; the checkpoint that fences a batch reads
//! this table in the same statement.

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;
use crate::domain::{
    ids::Kind,
    location::StoreName,
    tombstone::{Provenance, Tombstone},
};

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// One kind.
    Kind(Kind),
    /// Whatever has objects in one store.
    Store(StoreName),
}

impl Scope {
    /// As the table has it: what kind of pause, and its name.
    pub(super) fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::All => ("all", ""),
            Self::Kind(kind) => ("kind", kind.as_str()),
            Self::Store(store) => ("store", store.as_str()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all purging"),
            Self::Kind(kind) => write!(f, "purging of the kind {kind}"),
            Self::Store(store) => write!(f, "purging in the store {store}"),
        }
    }
}

/// A pause.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Pause {
    /// `all`, `kind` or `store`.
    pub scope: String,
    /// The kind's or store's name.
    pub name: String,
    /// Who paused.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Pause {
    /// Whether it is the pause of exactly this.
    pub fn is_of(&self, scope: &Scope) -> bool {
        scope.parts() == (self.scope.as_str(), self.name.as_str())
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}{}{}", self.scope, if self.name.is_empty() { "" } else { " " }, self.name)
    }
}

/// A pause that concerns a tombstone, if any.
///
/// # Errors
/// The statement failed.
pub async fn concerning(conn: &mut PgConnection, tombstone: &Tombstone) -> Result<Option<Pause>, StoreError> {
    Ok(sqlx::query_as(
        "select scope, name, actor, reason, created_at from reprieve.pauses
         where scope = 'all' or (scope = 'kind' and name = $1) or (scope = 'store' and name = any($2)) limit 1",
    )
    .bind(tombstone.resource.kind.as_str())
    .bind(tombstone.stores())
    .fetch_optional(conn)
    .await?)
}

/// Every pause.
///
/// # Errors
/// The statement failed.
pub async fn list(conn: &mut PgConnection) -> Result<Vec<Pause>, StoreError> {
    Ok(sqlx::query_as("select scope, name, actor, reason, created_at from reprieve.pauses order by created_at")
        .fetch_all(conn)
        .await?)
}

/// Pauses; `false` if it was paused already.
///
/// # Errors
/// The statement failed.
pub async fn insert(conn: &mut PgConnection, scope: &Scope, by: &Provenance) -> Result<bool, StoreError> {
    let (kind, name) = scope.parts();
    let done = sqlx::query(
        "insert into reprieve.pauses (scope, name, actor, reason) values ($1, $2, $3, $4) on conflict do nothing",
    )
    .bind(kind)
    .bind(name)
    .bind(by.actor.as_str())
    .bind(by.reason.as_deref())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Resumes; `false` if it was not paused.
///
/// # Errors
/// The statement failed.
pub async fn delete(conn: &mut PgConnection, scope: &Scope) -> Result<bool, StoreError> {
    let (kind, name) = scope.parts();
    let done = sqlx::query("delete from reprieve.pauses where scope = $1 and name = $2")
        .bind(kind)
        .bind(name)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
