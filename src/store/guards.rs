//! Guards: triggers on the platform's tables that refuse a new use of what is in the trash.
//!
//! Invariant: trigger and trash lock the same row, the resource's, before either looks for the other, so one of them
//! always sees what the other has done. Installing replaces our own triggers and touches no other.

use sqlx::{AssertSqlSafe, PgConnection};

use super::StoreError;
use crate::domain::map::{Guard, ResourceKind, ResourceMap};

/// A guard of the map, and whether the database has it as the map says it.
#[derive(Debug, Clone)]
pub struct GuardState {
    /// The kind that it guards.
    pub kind: String,
    /// The reference that it belongs to.
    pub reference: String,
    /// The table that its trigger sits on.
    pub table: String,
    /// Whether it is there.
    pub installed: bool,
}

/// Trigger names are unique for a table, so kind and column suffice.
fn trigger_name(kind: &ResourceKind, guard: &Guard) -> String {
    let name = format!("reprieve_guard_{}_{}", kind.kind.as_str().replace('-', "_"), guard.column.as_str());
    name.chars().take(63).collect()
}

fn each(map: &ResourceMap) -> impl Iterator<Item = (&ResourceKind, &str, &Guard)> {
    map.kinds().flat_map(|kind| {
        kind.references
            .iter()
            .filter_map(move |reference| Some((kind, reference.name.as_str(), reference.guard.as_ref()?)))
    })
}

/// Installs every guard of the map, replacing those from an earlier map. Takes a lock on each guarded table for a moment.
///
/// # Errors
/// A table or column does not exist, or we may not create triggers there.
pub async fn install(conn: &mut PgConnection, map: &ResourceMap) -> Result<usize, StoreError> {
    let mut count = 0;
    for (kind, reference, guard) in each(map) {
        let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let arguments = [
            quote(kind.kind.as_str()),
            quote(&kind.table.to_string()),
            quote(&kind.id.to_string()),
            quote(guard.column.as_str()),
            quote(guard.when.as_ref().map_or("", |when| when.as_str())),
        ];
        let sql = format!(
            "create or replace trigger {} before insert or update on {} for each row execute function reprieve.guard({})",
            trigger_name(kind, guard),
            guard.table,
            arguments.join(", ")
        );
        let what = || format!("installing the guard of {reference:?} on {}", guard.table);
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut *conn)
            .await
            .map_err(|error| StoreError::of_platform(error, what))?;
        count += 1;
    }
    Ok(count)
}

/// Which guards are there.
///
/// # Errors
/// The statement failed.
pub async fn states(conn: &mut PgConnection, map: &ResourceMap) -> Result<Vec<GuardState>, StoreError> {
    let mut states = Vec::new();
    for (kind, reference, guard) in each(map) {
        let installed: bool = sqlx::query_scalar(
            "select exists (select from pg_catalog.pg_trigger
                 where tgrelid = to_regclass($1) and tgname = $2 and tgenabled <> 'D')",
        )
        .bind(guard.table.to_string())
        .bind(trigger_name(kind, guard))
        .fetch_one(&mut *conn)
        .await?;
        states.push(GuardState {
            kind: kind.kind.to_string(),
            reference: reference.to_owned(),
            table: guard.table.to_string(),
            installed,
        });
    }
    Ok(states)
}
