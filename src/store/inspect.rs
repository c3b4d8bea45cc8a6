//! What the live database says of the map, for `reprieve check`.
//!
//! Invariant: looks only; every statement is a `select` of nothing or a look into the catalogue.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, types::Json};

use super::{
    Store, StoreError,
    error::said,
    platform::{Locking, bind_id, find, reference_sql, text_sql},
    recorded,
};
use crate::domain::{
    ids::{IdType, Kind, ResourceId},
    map::{NamedObjects, ObjectsAt, ResourceKind, ResourceMap, SoftDelete},
};

/// Whether the index `i` finds the rows whose column `a` has a given value: it begins with the column, is whole, and leaves
/// out no row but those without a value.
macro_rules! finds_rows {
    () => {
        "i.indkey[0] = a.attnum and i.indisvalid
         and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname))
         and (select x.relam from pg_catalog.pg_class x where x.oid = i.indexrelid)
             in (select m.oid from pg_catalog.pg_am m where m.amname in ('btree', 'hash'))"
    };
}

/// A foreign key onto a table that loses rows when a resource is purged.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ForeignKey {
    /// The table that has it, as `schema.table`.
    pub table: String,
    /// Its first column.
    pub column: String,
    /// Whether an index finds rows by that column; without one every deleted row scans the table.
    pub indexed: bool,
}

/// From here on this connection cannot write: a query of the map may call a function that does.
///
/// # Errors
/// The statement failed.
pub async fn look_only(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set default_transaction_read_only = on").execute(conn).await?;
    Ok(())
}

/// Statements of a kind's trial that may take long: the map's queries.
const OF_A_KIND: u32 = 5;

/// Something of the map that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What, and how.
    pub what: String,
    /// Whether it fails again until somebody changes the map, the tables or the permissions: something that the map names is
    /// not there, is of another type, or may not be read. Anything else may pass.
    pub is_lasting: bool,
}

impl Failure {
    fn of(what: &str, error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // syntax error or access rule violation; data exception; invalid schema name
        let is_lasting = code.is_some_and(|code| ["42", "22", "3F"].iter().any(|class| code.starts_with(class)));
        Self { what: format!("{what} failed: {}", said(error)), is_lasting }
    }
}

/// Tries every kind of a map, on a connection that cannot write and is not used again.
///
/// # Errors
/// The database is away.
pub async fn try_map(store: &Store, map: &ResourceMap) -> Result<Vec<(Kind, Failure)>, StoreError> {
    use sqlx::Connection;
    let mut conn = store.own_conn().await?;
    let mut failures = Vec::new();
    let kinds = async {
        look_only(&mut conn).await?;
        for kind in map.kinds() {
            let of_kind = async { Ok::<_, StoreError>(try_queries(&mut conn, kind).await) };
            let failed = store.within(OF_A_KIND, of_kind).await?;
            failures.extend(failed.into_iter().map(|failure| (kind.kind.clone(), failure)));
        }
        Ok(())
    };
    let tried = kinds.await;
    // it goes in any case
    let _ = store.within(0, async { Ok::<_, StoreError>(conn.close().await?) }).await;
    tried.map(|()| failures)
}

/// An id that no row of a kind has.
pub fn nobody(kind: &ResourceKind) -> ResourceId {
    ResourceId::from_stored(match kind.id_type {
        IdType::Uuid => uuid::Uuid::nil().to_string(),
        IdType::Integer => "-9223372036854775808".into(),
        IdType::Text => "reprieve-check-nobody".into(),
    })
}

/// Runs every query of a kind for an id that no row has, and reads a row that does not exist.
///
/// # Errors
/// None; what failed is in the list, empty when all is well.
pub async fn try_queries(conn: &mut PgConnection, kind: &ResourceKind) -> Vec<Failure> {
    let nobody = nobody(kind);
    let mut failures = Vec::new();
    if let Err(error) = find(conn, kind, &nobody, Locking::None).await {
        failures.push(match &error {
            StoreError::Platform { what, source } => Failure::of(what, source),
            _ => Failure { what: error.to_string(), is_lasting: matches!(error, StoreError::Unusable(_)) },
        });
    }
    let mut statements = Vec::new();
    for reference in &kind.references {
        statements.push((format!("the reference query {:?}", reference.name), reference_sql(reference)));
    }
    for children in &kind.children {
        statements.push((format!("the children query for {}", children.kind), text_sql(&children.query)));
    }
    for at in &kind.objects {
        if let ObjectsAt::Query { query, .. } = at {
            statements.push(("the objects query".to_owned(), text_sql(query)));
        }
    }
    for named in kind.named_objects() {
        let (keys, namers) = recorded::trial_sql(kind, named);
        statements.push(("the keys query".to_owned(), keys));
        let asked = recorded::bind_nobody(sqlx::query(AssertSqlSafe(namers)).persistent(false));
        if let Err(error) = asked.fetch_all(&mut *conn).await {
            failures.push(Failure::of("the named_by query", &error));
        }
        if let Some(below) = &named.named_below {
            let asked = sqlx::query(AssertSqlSafe(recorded::trial_below_sql(kind, below))).persistent(false);
            let asked = asked.bind("reprieve-check-nothing/").bind(Vec::<String>::new()).bind(Vec::<String>::new());
            if let Err(error) = asked.fetch_all(&mut *conn).await {
                failures.push(Failure::of("the named_below query", &error));
            }
        }
    }
    if let Some(size) = &kind.size {
        let sql = format!("select sum({size}) from {} where {} = $1", kind.table, kind.id);
        statements.push(("the size".to_owned(), sql));
    }
    for rows in &kind.rows {
        let sql = format!("select 1 from {} where {} = $1 limit 1", rows.table, rows.column);
        statements.push((format!("reading child rows from {}", rows.table), sql));
    }
    for (what, sql) in statements {
        let query = match bind_id(sqlx::query(AssertSqlSafe(sql)).persistent(false), kind.id_type, &nobody) {
            Ok(query) => query,
            Err(error) => {
                failures.push(Failure { what: error.to_string(), is_lasting: true });
                continue;
            }
        };
        if let Err(error) = query.fetch_all(&mut *conn).await {
            failures.push(Failure::of(&what, &error));
        }
    }
    failures
}

/// The type of the column that holds the platform's mark, as `format_type` spells it; `None` if there is no such column.
///
/// # Errors
/// The statement failed.
pub async fn mark_type(conn: &mut PgConnection, kind: &ResourceKind) -> Result<Option<String>, StoreError> {
    let Some(SoftDelete::Timestamp(column) | SoftDelete::Boolean(column) | SoftDelete::Pair { column, .. }) =
        &kind.soft_delete
    else {
        return Ok(None);
    };
    Ok(sqlx::query_scalar(
        "select format_type(atttypid, null) from pg_catalog.pg_attribute
         where attrelid = to_regclass($1) and attname = $2 and not attisdropped",
    )
    .bind(kind.table.to_string())
    .bind(column.as_str())
    .fetch_optional(conn)
    .await?)
}

/// The foreign keys that point at `table` (quoted).
///
/// # Errors
/// The statement failed.
pub async fn foreign_keys_onto(conn: &mut PgConnection, table: &str) -> Result<Vec<ForeignKey>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "select n.nspname || '.' || r.relname as table, a.attname::text as column,
                exists (select from pg_catalog.pg_index i where i.indrelid = c.conrelid and ",
        finds_rows!(),
        ") as indexed
         from pg_catalog.pg_constraint c
         join pg_catalog.pg_class r on r.oid = c.conrelid
         join pg_catalog.pg_namespace n on n.oid = r.relnamespace
         join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
         where c.contype = 'f' and c.confrelid = to_regclass($1) and c.conparentid = 0
         order by 1, 2"
    ))
    .bind(table)
    .fetch_all(conn)
    .await?)
}

/// Whether the database keeps the kind's ids unique: by a unique index on the id column alone, for all rows.
///
/// # Errors
/// The statement failed.
pub async fn id_is_unique(conn: &mut PgConnection, kind: &ResourceKind) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_index i
             join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
             where i.indrelid = to_regclass($1) and a.attname = $2
               and i.indisunique and i.indisvalid and i.indpred is null and i.indnkeyatts = 1)",
    )
    .bind(kind.table.to_string())
    .bind(kind.id.as_str())
    .fetch_one(conn)
    .await?)
}

/// A foreign key without an index, behind a cascade: the column, and the table that it points at.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Unindexed {
    /// As `schema.table.column`.
    pub column: String,
    /// As `schema.table`.
    pub onto: String,
}

/// The foreign keys without an index onto tables whose rows are deleted by cascades alone, however long, that begin at
/// `tables` (quoted).
///
/// # Errors
/// The statement failed.
pub async fn unindexed_behind_cascades(
    conn: &mut PgConnection,
    tables: &[String],
) -> Result<Vec<Unindexed>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "with recursive named as (select to_regclass(t)::oid as oid from unnest($1::text[]) as t),
         losing as (
             select oid from named
             union
             select c.conrelid from pg_catalog.pg_constraint c join losing l on c.confrelid = l.oid
             where c.contype = 'f' and c.confdeltype = 'c' and c.conparentid = 0)
         select n.nspname || '.' || r.relname || '.' || a.attname as column, ns.nspname || '.' || rs.relname as onto
         from losing l
         join pg_catalog.pg_constraint c on c.confrelid = l.oid
         join pg_catalog.pg_class r on r.oid = c.conrelid
         join pg_catalog.pg_namespace n on n.oid = r.relnamespace
         join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
         join pg_catalog.pg_class rs on rs.oid = c.confrelid
         join pg_catalog.pg_namespace ns on ns.oid = rs.relnamespace
         where c.contype = 'f' and c.conparentid = 0 and l.oid not in (select oid from named where oid is not null)
           and not exists (select from pg_catalog.pg_index i where i.indrelid = c.conrelid and ",
        finds_rows!(),
        ") order by 1"
    ))
    .bind(tables)
    .fetch_all(conn)
    .await?)
}

/// Whether an index of `table` (quoted) finds rows by `column`.
///
/// # Errors
/// The statement failed.
pub async fn is_indexed(conn: &mut PgConnection, table: &str, column: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(concat!(
        "select exists (select from pg_catalog.pg_index i
             join pg_catalog.pg_attribute a on a.attrelid = i.indrelid
             where i.indrelid = to_regclass($1) and a.attname = $2 and ",
        finds_rows!(),
        ")"
    ))
    .bind(table)
    .bind(column)
    .fetch_one(conn)
    .await?)
}

/// The tables that a query about objects' names would have to read whole, since no index finds what it asks for. A query
/// that does not prepare has none; [`try_queries`] tells of it.
///
/// # Errors
/// The statement failed.
pub async fn scanned_for_names(conn: &mut PgConnection, named: &NamedObjects) -> Result<Vec<String>, StoreError> {
    let sql = format!("explain (format json) select * from (\n{}\n) as q(name, id)", named.named_by.as_str());
    // whatever has an index is read by it then, also a table that is too small to be worth it today
    sqlx::query("set enable_seqscan = off").execute(&mut *conn).await?;
    let explain = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false);
    let plan: Result<Json<Value>, _> =
        explain.bind(vec!["reprieve-check-nothing".to_owned()]).fetch_one(&mut *conn).await;
    sqlx::query("reset enable_seqscan").execute(&mut *conn).await?;
    let mut tables = Vec::new();
    if let Ok(Json(plan)) = plan {
        scans_of(&plan, &mut tables);
    }
    tables.sort();
    tables.dedup();
    Ok(tables)
}

fn scans_of(plan: &Value, tables: &mut Vec<String>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| scans_of(part, tables)),
        Value::Object(node) => {
            if node.get("Node Type").and_then(Value::as_str) == Some("Seq Scan") {
                tables.extend(node.get("Relation Name").and_then(Value::as_str).map(str::to_owned));
            }
            node.values().for_each(|part| scans_of(part, tables));
        }
        _ => {}
    }
}
