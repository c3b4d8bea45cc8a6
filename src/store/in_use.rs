//! Whether anybody uses a resource: one statement for all who may, since nearly always nobody does.
//!
//! Invariant: a `false` is the answer of every one of them, each asked in the database as it was when the statement
//! began. Who it is, and which question failed where the statement does, they say when they are asked one by one.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{
    StoreError,
    foreign_keys::ForeignKeys,
    platform::{bind_id, reference_sql},
};
use crate::domain::{
    ids::ResourceId,
    map::{ResourceKind, ResourceMap},
};

/// Which questions are worth asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// A reference of the map finds somebody.
    pub by_reference: bool,
    /// A row refuses its deletion by a foreign key.
    pub by_foreign_key: bool,
    /// Objects are recorded by key for somebody in the trash, whoever that is and wherever they are.
    pub by_records: bool,
}

impl InUse {
    /// Nobody has looked: each has to be asked.
    pub const PERHAPS: Self = Self { by_reference: true, by_foreign_key: true, by_records: true };
}

/// Looks.
///
/// # Errors
/// One of the questions failed: then nobody knows.
pub async fn look(
    conn: &mut PgConnection,
    map: &ResourceMap,
    keys: &ForeignKeys,
    kind: &ResourceKind,
    id: &ResourceId,
) -> Result<InUse, StoreError> {
    let references = kind.references.iter().map(|reference| format!("exists ({})", reference_sql(reference)));
    let rows = keys.counts_refusing(map, kind)?.into_iter().map(|count| format!("({count}) > 0"));
    // the first entry of the index, not of the table: that may be full of rows that are gone
    let sql = format!(
        "select {}, {}, (select tombstone_id from reprieve.recorded_objects order by tombstone_id limit 1) is not null",
        any_of(references),
        any_of(rows)
    );
    let found = bind_id(sqlx::query(AssertSqlSafe(sql)), kind.id_type, id)?.fetch_one(conn).await;
    let what = || format!("asking who uses a row of kind {}", kind.kind);
    let found = found.map_err(|error| StoreError::of_platform(error, what))?;
    Ok(InUse { by_reference: found.try_get(0)?, by_foreign_key: found.try_get(1)?, by_records: found.try_get(2)? })
}

fn any_of(conditions: impl Iterator<Item = String>) -> String {
    let all = conditions.collect::<Vec<_>>().join(" or ");
    if all.is_empty() { "false".into() } else { format!("({all})") }
}
