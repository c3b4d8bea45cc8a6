//! Guards: triggers on the platform's tables that refuse a new use of what is in the trash.
//!
//! Invariant: trigger and trash lock the same row, the resource's, before either looks for the other, so one of them
//! always sees what the other has done. Installing replaces our own triggers and touches no other.

use sqlx::{AssertSqlSafe, PgConnection};

use super::StoreError;
use crate::domain::map::{Guard, Reference, ResourceKind, ResourceMap};

/// A guard of the map, and whether the database has it as the map says it.
#[derive(Debug, Clone)]
pub struct GuardState {
    /// The kind that it guards.
    pub kind: String,
    /// The reference that it belongs to.
    pub reference: String,
    /// The table that its trigger sits on.
    pub table: String,
    /// Whether it is there, and as the map says it now.
    pub installed: bool,
    /// Why it could not be installed, if it could not.
    pub mistake: Option<String>,
}

/// A guard of the map with its kind, its reference, and the name of its trigger: unique in the map, at most 63 bytes.
struct Placed<'a> {
    kind: &'a ResourceKind,
    reference: &'a Reference,
    guard: &'a Guard,
    trigger: String,
}

fn each(map: &ResourceMap) -> impl Iterator<Item = Placed<'_>> {
    map.kinds().flat_map(|kind| {
        kind.references.iter().enumerate().filter_map(move |(at, reference)| {
            let short: String = kind.kind.as_str().chars().take(44).collect();
            let trigger = format!("reprieve_guard_{short}_{at}");
            Some(Placed { kind, reference, guard: reference.guard.as_ref()?, trigger })
        })
    })
}

/// Installs every guard of the map in place of those from an earlier map. Takes a lock on each guarded table for a
/// moment; to be called in a transaction, so that no use slips through in between.
///
/// # Errors
/// A table or column does not exist, or we may not create triggers there.
pub async fn install(conn: &mut PgConnection, map: &ResourceMap) -> Result<usize, StoreError> {
    // two that install at once would both find nothing to drop
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('reprieve.guards', 0))").execute(&mut *conn).await?;
    let earlier: Vec<(String, String)> = sqlx::query_as(
        "select quote_ident(t.tgname), t.tgrelid::regclass::text from pg_catalog.pg_trigger t
         where t.tgfoid = 'reprieve.guard'::regproc and not t.tgisinternal and t.tgparentid = 0",
    )
    .fetch_all(&mut *conn)
    .await?;
    for (trigger, table) in earlier {
        sqlx::query(AssertSqlSafe(format!("drop trigger {trigger} on {table}"))).execute(&mut *conn).await?;
    }
    let mut count = 0;
    for Placed { kind, reference, guard, trigger } in each(map) {
        let table = qualified(&mut *conn, kind).await?;
        let arguments = arguments(kind, guard, &table).map(|text| format!("'{}'", text.replace('\'', "''")));
        let sql = format!(
            "create trigger \"{trigger}\" before insert or update on {} for each row execute function reprieve.guard({})",
            guard.table,
            arguments.join(", ")
        );
        let what = || format!("installing the guard of {:?} on {}", reference.name, guard.table);
        try_out(&mut *conn, kind, guard, &table).await.map_err(|error| StoreError::of_platform(error, what))?;
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut *conn)
            .await
            .map_err(|error| StoreError::of_platform(error, what))?;
        count += 1;
    }
    Ok(count)
}

/// Reads once what the trigger will read: its arguments are not looked at before it fires, and a column that does not
/// exist would guard nothing.
async fn try_out(conn: &mut PgConnection, kind: &ResourceKind, guard: &Guard, table: &str) -> sqlx::Result<()> {
    let when = guard.when.as_ref().map_or("true", |when| when.as_str());
    let trial = format!(
        "select 1 from (select r.{} as used from {} as r where ({when}\n) is true) as u
         join {table} as k on k.{} = u.used limit 0",
        guard.column, guard.table, kind.id
    );
    sqlx::query(AssertSqlSafe(trial)).persistent(false).execute(conn).await.map(|_| ())
}

/// What the trigger is told, as `reprieve.guard()` reads it.
fn arguments(kind: &ResourceKind, guard: &Guard, table: &str) -> [String; 5] {
    let when = guard.when.as_ref().map_or("", |when| when.as_str());
    [kind.kind.as_str(), table, &kind.id.to_string(), guard.column.as_str(), when].map(str::to_owned)
}

/// The resource's table with its schema, which a trigger needs: it runs with a search path of its own.
async fn qualified(conn: &mut PgConnection, kind: &ResourceKind) -> Result<String, StoreError> {
    let found: Option<String> = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)",
    )
    .bind(kind.table.to_string())
    .fetch_optional(conn)
    .await?;
    found.ok_or_else(|| StoreError::Unusable(format!("there is no table {} (kind {})", kind.table, kind.kind)))
}

/// Which guards are there.
///
/// # Errors
/// The statement failed.
pub async fn states(conn: &mut PgConnection, map: &ResourceMap) -> Result<Vec<GuardState>, StoreError> {
    let mut states = Vec::new();
    for Placed { kind, reference, guard, trigger } in each(map) {
        let (told, mistake) = match qualified(&mut *conn, kind).await {
            Ok(table) => {
                let mistake = try_out(&mut *conn, kind, guard, &table).await.err();
                // as pg_trigger keeps them: each with a NUL behind it
                let each = arguments(kind, guard, &table).into_iter();
                let told: Vec<u8> = each.flat_map(|text| text.into_bytes().into_iter().chain([0])).collect();
                (told, mistake.map(|error| error.to_string()))
            }
            Err(StoreError::Unusable(mistake)) => (Vec::new(), Some(mistake)),
            Err(error) => return Err(error),
        };
        let installed: bool = sqlx::query_scalar(
            "select exists (select from pg_catalog.pg_trigger
                 where tgrelid = to_regclass($1) and tgname = $2 and tgenabled <> 'D' and tgargs = $3)",
        )
        .bind(guard.table.to_string())
        .bind(trigger)
        .bind(told)
        .fetch_one(&mut *conn)
        .await?;
        states.push(GuardState {
            kind: kind.kind.to_string(),
            reference: reference.name.clone(),
            table: guard.table.to_string(),
            installed,
            mistake,
        });
    }
    Ok(states)
}
