//! The platform's own tables, by way of the resource map. The only file that builds SQL from names and queries.
//!
//! Invariant: names are quoted identifiers that `domain::map` has checked, values are bound, and a query from the map
//! runs inside a `select … from ( … )`, where PostgreSQL accepts nothing that writes. A failure names the query.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, postgres::PgArguments, query::Query};

use super::StoreError;
use crate::domain::{
    ids::{IdType, ResourceId, ResourceRef},
    map::{ChildRows, Children, ObjectsAt, Reference, ResourceKind, SoftDelete, Sql},
    tombstone::Blocker,
};

/// The most users of one reference that are named.
pub const MOST_BLOCKERS: i64 = 100;

/// What a resource's row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceRow {
    /// Its name, where the kind has names.
    pub name: Option<String>,
    /// Whether it is (still) of this kind, by the map's `where`.
    pub fits: bool,
    /// Whether the platform's own mark says deleted; `None` where it has no mark.
    pub marked: Option<bool>,
    /// The columns that the prefix templates need, as text.
    pub columns: BTreeMap<String, Option<String>>,
}

/// Whether to lock a row that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// Just look.
    None,
    /// Keep everybody else from changing or newly referencing it until the transaction ends.
    ForUpdate,
}

/// How often a row is looked for that is replaced whenever somebody waits for it.
const LOOKS: usize = 3;

/// Reads a resource's row by its id.
///
/// # Errors
/// [`StoreError::Platform`] where table or columns do not fit the map, [`StoreError::Unusable`] where the id is not
/// unique, [`StoreError::Busy`] where the row was replaced each time that this waited for it.
pub async fn find(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    locking: Locking,
) -> Result<Option<ResourceRow>, StoreError> {
    for _ in 0..LOOKS {
        let found = look_for(&mut *conn, kind, id, locking).await?;
        // who waits for a row that is deleted and inserted again finds neither: the new one is younger than its statement
        if found.is_some() || locking == Locking::None || !has_row(&mut *conn, kind, id).await? {
            return Ok(found);
        }
    }
    let why = "it is replaced each time, or a row-security policy hides it from those who may lock it";
    let why = format!("the row {id} of {} is there and cannot be locked: {why}", kind.table);
    Err(StoreError::Busy(sqlx::Error::Protocol(why)))
}

async fn look_for(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    locking: Locking,
) -> Result<Option<ResourceRow>, StoreError> {
    let locks = locking == Locking::ForUpdate;
    if locks && kind.filter.is_some() {
        // in a statement of its own: one that waits for a lock and then reads would see the row as it is now and
        // everything else, such as a table that the map's `where` asks, as it was before the wait
        let sql = format!("select 1 from {} where {} = $1 for update", kind.table, kind.id);
        let locked = bind_id(query(sql), kind.id_type, id)?.fetch_optional(&mut *conn).await;
        let what = || format!("locking a row of {} of kind {}", kind.table, kind.kind);
        if locked.map_err(|error| StoreError::of_platform(error, what))?.is_none() {
            return Ok(None);
        }
    }
    let columns: Vec<&str> = template_columns(kind).collect();
    let mut selected = vec![
        kind.name.as_ref().map_or_else(|| "null::text".to_owned(), |name| format!("{name}::text")),
        kind.filter.as_ref().map_or_else(|| "true".to_owned(), |filter| format!("(({}\n) is true)", filter.as_str())),
        kind.soft_delete.as_ref().map_or_else(|| "null::boolean".to_owned(), marked_expression),
    ];
    selected.extend(columns.iter().map(|column| format!("\"{column}\"::text")));
    selected.push(format!("{}::text", kind.id));
    // without a `where`, nothing but the row is asked for
    let lock = if locks && kind.filter.is_none() { " for update" } else { "" };
    let sql = format!("select {} from {} where {} = $1 limit 2{lock}", selected.join(", "), kind.table, kind.id);
    let rows = bind_id(query(sql), kind.id_type, id)?.fetch_all(conn).await;
    let what = || format!("reading {} of kind {}", kind.table, kind.kind);
    let rows = rows.map_err(|error| StoreError::of_platform(error, what))?;
    let row = match rows.as_slice() {
        [] => return Ok(None),
        [row] => row,
        several => return Err(not_unique(kind, id, several.len() as u64)),
    };
    // prefixes are made of the id as it is spelt, so under a collation that takes two spellings for one they would be others
    let spelt: String = row.try_get(columns.len() + 3)?;
    if spelt != id.as_str() {
        return Err(StoreError::Unusable(format!(
            "the row that {} has for the id {id} is spelt {spelt:?}: ask for it by that",
            kind.table
        )));
    }
    let columns = columns
        .iter()
        .enumerate()
        .map(|(at, column)| Ok(((*column).to_owned(), row.try_get::<Option<String>, _>(at + 3)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    Ok(Some(ResourceRow { name: row.try_get(0)?, fits: row.try_get(1)?, marked: row.try_get(2)?, columns }))
}

/// Bytes of a kind in the trash that are not purged yet, by the platform's own column; `None` where it has none.
///
/// # Errors
/// [`StoreError::Platform`] where the column is no number, or may not be read.
pub async fn bytes_in_trash(conn: &mut PgConnection, kind: &ResourceKind) -> Result<Option<f64>, StoreError> {
    let Some(size) = &kind.size else { return Ok(None) };
    let id = match kind.id_type {
        IdType::Uuid => "t.resource_id::uuid",
        IdType::Integer => "t.resource_id::bigint",
        IdType::Text => "t.resource_id",
    };
    let sql = format!(
        "select coalesce(sum(greatest(p.{size}::numeric - t.bytes_freed, 0)), 0)::float8
         from reprieve.tombstones t join {} p on p.{} = {id}
         where t.kind = $1 and t.state in ('trashed', 'blocked', 'purging', 'stuck')",
        kind.table, kind.id
    );
    let bytes = sqlx::query_scalar(AssertSqlSafe(sql)).bind(kind.kind.as_str()).fetch_one(conn).await;
    Ok(Some(bytes.map_err(|error| StoreError::of_platform(error, || format!("adding up the size of {}", kind.kind)))?))
}

/// One tombstone stands for one row; a map whose ids are not unique must not delete several by one.
fn not_unique(kind: &ResourceKind, id: &ResourceId, rows: u64) -> StoreError {
    StoreError::Unusable(format!(
        "the id {id} has {rows} rows or more in {}: the column {} does not fit as the id of kind {}, it is not unique",
        kind.table, kind.id, kind.kind
    ))
}

fn template_columns(kind: &ResourceKind) -> impl Iterator<Item = &str> {
    kind.objects.iter().flat_map(|at| match at {
        ObjectsAt::Template { prefix, .. } => prefix.columns().collect::<Vec<_>>(),
        ObjectsAt::Query { .. } | ObjectsAt::Keys(_) => Vec::new(),
    })
}

fn marked_expression(mark: &SoftDelete) -> String {
    match mark {
        SoftDelete::Timestamp(column) => format!("({column} is not null)"),
        SoftDelete::Boolean(column) => format!("({column} is true)"),
        SoftDelete::Pair { column, trashed, .. } => {
            format!("({column}::text is not distinct from {})", literal(trashed))
        }
    }
}

/// A text literal whose type PostgreSQL finds out itself, as an enumeration's column needs it.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Sets or clears the platform's own mark. Touches nothing where the kind has none. A mark that is set already keeps
/// its time. `false`: there is no such row.
///
/// # Errors
/// The platform's table refused it.
pub async fn mark(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    deleted: bool,
) -> Result<bool, StoreError> {
    let Some(mark) = &kind.soft_delete else { return Ok(true) };
    let (column, value) = match mark {
        SoftDelete::Timestamp(column) if deleted => (column, format!("coalesce({column}, now())")),
        SoftDelete::Timestamp(column) => (column, "null".to_owned()),
        SoftDelete::Boolean(column) => (column, deleted.to_string()),
        SoftDelete::Pair { column, live, trashed } => (column, literal(if deleted { trashed } else { live })),
    };
    let sql = format!("update {} set {column} = {value} where {} = $1", kind.table, kind.id);
    let done = bind_id(query(sql), kind.id_type, id)?.execute(conn).await;
    let what = || format!("marking a row of {} ({column}) of kind {}", kind.table, kind.kind);
    Ok(done.map_err(|error| StoreError::of_platform(error, what))?.rows_affected() == 1)
}

/// Who uses a resource, by every reference of its kind; at most [`MOST_BLOCKERS`] of each.
///
/// # Errors
/// A reference query failed: then nobody knows, and the caller must not go on as if nobody did.
pub async fn blockers(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
) -> Result<Vec<Blocker>, StoreError> {
    let resource = ResourceRef { kind: kind.kind.clone(), id: id.clone() }.to_string();
    let mut blockers = Vec::new();
    for reference in &kind.references {
        let rows = bind_id(query(reference_sql(reference)), kind.id_type, id)?.fetch_all(&mut *conn).await;
        let what = || format!("the reference query {:?} of kind {}", reference.name, kind.kind);
        for row in rows.map_err(|error| StoreError::of_platform(error, what))? {
            blockers.push(Blocker {
                resource: resource.clone(),
                reference: reference.name.clone(),
                id: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
                label: row.try_get::<Option<String>, _>(1)?.unwrap_or_default(),
            });
        }
    }
    Ok(blockers)
}

/// The statement that runs a reference query: at least two columns, id and label.
pub(super) fn reference_sql(reference: &Reference) -> String {
    let inner = reference.query.as_str();
    format!("select q.id::text, q.label::text from (\n{inner}\n) as q(id, label) limit {MOST_BLOCKERS}")
}

/// The ids of a resource's children of one kind, as text and unchecked.
///
/// # Errors
/// The query failed.
pub async fn child_ids(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    children: &Children,
) -> Result<Vec<String>, StoreError> {
    let what = || format!("the children query for {} of kind {}", children.kind, kind.kind);
    texts(conn, kind, id, &children.query, what).await
}

/// The `s3://bucket/prefix/` addresses that an objects query returns, unchecked.
///
/// # Errors
/// The query failed.
pub async fn addresses(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    sql: &Sql,
) -> Result<Vec<String>, StoreError> {
    texts(conn, kind, id, sql, || format!("the objects query of kind {}", kind.kind)).await
}

async fn texts(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    sql: &Sql,
    what: impl Fn() -> String,
) -> Result<Vec<String>, StoreError> {
    let rows = bind_id(query(text_sql(sql)), kind.id_type, id)?.fetch_all(conn).await;
    let rows = rows.map_err(|error| StoreError::of_platform(error, &what))?;
    rows.iter()
        .map(|row| {
            row.try_get::<Option<String>, _>(0)?
                .ok_or_else(|| StoreError::Unusable(format!("{} returned a null", what())))
        })
        .collect()
}

/// The statement that runs a query for one text column.
pub(super) fn text_sql(sql: &Sql) -> String {
    format!("select q.value::text from (\n{}\n) as q(value)", sql.as_str())
}

/// Which of a kind's `tables` have child rows of a resource, in their order.
///
/// # Errors
/// A table or column is not as the map says.
pub async fn tables_with_rows<'k>(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    tables: Vec<&'k ChildRows>,
) -> Result<Vec<&'k ChildRows>, StoreError> {
    if tables.is_empty() {
        return Ok(tables);
    }
    let each = tables.iter().map(|rows| format!("exists (select from {} where {} = $1)", rows.table, rows.column));
    let sql = format!("select array[{}]", each.collect::<Vec<_>>().join(", "));
    let found = bind_id(query(sql), kind.id_type, id)?.fetch_one(conn).await;
    let what = || format!("looking for child rows of kind {}", kind.kind);
    let found: Vec<bool> = found.map_err(|error| StoreError::of_platform(error, what))?.try_get(0)?;
    Ok(tables.into_iter().zip(found).filter_map(|(rows, has_some)| has_some.then_some(rows)).collect())
}

/// Deletes up to `limit` child rows and says how many went. By `ctid`, the fastest way at scale; the column is
/// compared again, since a `ctid` is unique within one partition alone. A row that somebody is just changing is passed
/// over (when that change is done), so fewer than `limit` does not mean that none is left.
///
/// # Errors
/// The platform's table refused it.
pub async fn delete_child_rows(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    rows: &ChildRows,
    id: &ResourceId,
    limit: u64,
) -> Result<u64, StoreError> {
    let (table, column) = (&rows.table, &rows.column);
    let sql = format!(
        "delete from {table} where {column} = $1
         and ctid = any (array(select ctid from {table} where {column} = $1 limit $2))"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let done = bind_id(query(sql), kind.id_type, id)?.bind(limit).execute(conn).await;
    let what = || format!("deleting child rows from {table} of kind {}", kind.kind);
    Ok(done.map_err(|error| StoreError::of_platform(error, what))?.rows_affected())
}

/// Whether there is a row with a resource's id.
///
/// # Errors
/// Table or column are not as the map says.
pub async fn has_row(conn: &mut PgConnection, kind: &ResourceKind, id: &ResourceId) -> Result<bool, StoreError> {
    let sql = format!("select exists (select from {} where {} = $1)", kind.table, kind.id);
    let found = bind_id(query(sql), kind.id_type, id)?.fetch_one(conn).await;
    let what = || format!("looking for the row of {} of kind {}", kind.table, kind.kind);
    Ok(found.map_err(|error| StoreError::of_platform(error, what))?.try_get(0)?)
}

/// Deletes the resource's own row; 0 where the platform has removed it already, or keeps it.
///
/// # Errors
/// The platform's table refused it, as with a foreign key that the map does not know.
pub async fn delete_row(conn: &mut PgConnection, kind: &ResourceKind, id: &ResourceId) -> Result<u64, StoreError> {
    let sql = format!("delete from {} where {} = $1", kind.table, kind.id);
    let done = bind_id(query(sql), kind.id_type, id)?.execute(conn).await;
    let what = || format!("deleting the row from {} of kind {}", kind.table, kind.kind);
    match done.map_err(|error| StoreError::of_platform(error, what))?.rows_affected() {
        rows @ (0 | 1) => Ok(rows),
        // the caller's transaction is rolled back
        several => Err(not_unique(kind, id, several)),
    }
}

/// Kept prepared, although the platform changes its tables while we run: PostgreSQL then plans such a statement anew,
/// and refuses it only where its result would have other types. Hence the casts to text.
fn query<'q>(sql: String) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(sql))
}

/// Binds an id with its own type, so that `$1` compares with the platform's columns without a cast.
pub(super) fn bind_id<'q>(
    query: Query<'q, Postgres, PgArguments>,
    id_type: IdType,
    id: &ResourceId,
) -> Result<Query<'q, Postgres, PgArguments>, StoreError> {
    let unusable = |_| StoreError::Unusable(format!("the stored id {id} is no longer of its kind's id_type"));
    Ok(match id_type {
        IdType::Uuid => query.bind(uuid::Uuid::parse_str(id.as_str()).map_err(|_| unusable(()))?),
        IdType::Integer => query.bind(id.as_str().parse::<i64>().map_err(|_| unusable(()))?),
        IdType::Text => query.bind(id.as_str().to_owned()),
    })
}
