//! The objects that a resource names one by one, recorded for its tombstone, and who else names them.
//!
//! Invariant: a record is written by one statement, in the server, from what the map's query returns; either all of it is
//! an object's name in a bucket that was meant, or nothing of it stays. Nothing here reads more than it is asked for.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row, postgres::PgArguments, query::Query};

use super::{
    StoreError,
    platform::{MOST_BLOCKERS, bind_id},
};
use crate::domain::{
    ids::{IdType, ResourceId, ResourceRef, TombstoneId},
    location::{KeyPlace, Location},
    map::{NamedObjects, ResourceKind, ResourceMap, Sql},
};

/// Characters of a name that cannot be one which are told.
const MOST_TOLD: usize = 200;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "what cannot be recorded must not be purged"]
pub enum Written {
    /// All of it; how many are new in each place.
    All(Vec<u64>),
    /// This cannot be the name of an object. `None`: a null.
    NoKey(Option<String>),
    /// This key has no ETag, and was to have one.
    NoEtag(String),
    /// An address in a bucket that is none of the places.
    ForeignBucket(String),
}

/// One recorded object.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Recorded {
    /// Its key.
    pub key: String,
    /// What it was recorded with, where it is to be deleted only while it is the same.
    pub etag: Option<String>,
}

/// The map's query as a table of names; its columns are cast where they are used, for their types are the platform's.
pub(super) fn names_sql(named: &NamedObjects) -> String {
    let (columns, etag) =
        if named.only_if_unchanged { ("name, etag", "q.etag::text collate \"C\"") } else { ("name", "null::text") };
    format!(
        "select q.name::text collate \"C\" as name, {etag} as etag from (\n{}\n) as q({columns})",
        named.keys.as_str()
    )
}

/// Records what the rows of a resource name, beside what is there already.
///
/// # Errors
/// The query of the map failed.
pub async fn record(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    named: &NamedObjects,
    id: &ResourceId,
    tombstone: TombstoneId,
    places: &[KeyPlace],
) -> Result<Written, StoreError> {
    // a place is nobody's whose bucket is not, or no longer, one of this query's
    let buckets: Vec<&str> =
        places.iter().map(|at| if named.reaches(&at.store, &at.bucket) { at.bucket.as_str() } else { "" }).collect();
    let sql = format!(
        "with named as materialized ({names}),
         cut as (
             select name, btrim(etag, '\"') as etag, starts_with(name, 's3://') as whole,
                    case when starts_with(name, 's3://') then split_part(substr(name, 6), '/', 1) else $3 end as bucket
             from named),
         placed as materialized (
             select name, etag, bucket, p.place - 1 as place,
                    case when whole then substr(name, length(bucket) + 7) else name end as key
             from cut left join unnest($4::text[]) with ordinality as p(bucket_of_place, place)
                  on p.bucket_of_place = cut.bucket and cut.bucket <> ''),
         judged as materialized (
             select placed.*,
                    case when name ~ '^[a-zA-Z][a-zA-Z0-9+.-]*://' and not starts_with(name, 's3://') then 'key'
                         when bucket is null or bucket = '' or coalesce(octet_length(key), 0) not between 1 and 1024 then 'key'
                         when place is null then 'bucket'
                         when $5 and coalesce(etag, '') = '' then 'etag' end as fault
             from placed),
         written as (
             insert into reprieve.recorded_objects (tombstone_id, place, key, etag)
             select $2, place::smallint, key, etag from judged where fault is null
             on conflict do nothing returning place)
         select (select array_agg((select count(*) from written w where w.place = n.place))
                 from generate_series(0, cardinality($4::text[]) - 1) as n(place)) as counts,
                bad.fault, left(bad.name, {MOST_TOLD}), bad.bucket
         from (values (1)) as one(row) left join (select * from judged where fault is not null limit 1) as bad on true",
        names = names_sql(named)
    );
    let query = bind_id(sqlx::query(AssertSqlSafe(sql)), kind.id_type, id)?;
    let query = query.bind(tombstone.0).bind(named.only_bucket()).bind(buckets).bind(named.only_if_unchanged);
    let what = || format!("the keys query of kind {}", kind.kind);
    let row = query.fetch_one(conn).await.map_err(|error| StoreError::of_platform(error, what))?;
    let (counts, fault): (Option<Vec<i64>>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let (name, bucket): (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(match fault.as_deref() {
        None => Written::All(counts.unwrap_or_default().into_iter().map(|n| u64::try_from(n).unwrap_or(0)).collect()),
        Some("etag") => Written::NoEtag(name.unwrap_or_default()),
        Some("bucket") => Written::ForeignBucket(bucket.unwrap_or_default()),
        Some(_) => Written::NoKey(name),
    })
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From<'a> {
    /// At the first.
    Start,
    /// At this key, or the first behind it.
    At(&'a str),
    /// Behind this key.
    After(&'a str),
}

/// Up to `limit` recorded objects of a tombstone in one of its places, by key.
///
/// # Errors
/// The statement failed.
pub async fn page(
    conn: &mut PgConnection,
    tombstone: TombstoneId,
    place: usize,
    from: From<'_>,
    limit: usize,
) -> Result<Vec<Recorded>, StoreError> {
    let (key, inclusive) = match from {
        From::Start => ("", false),
        From::At(key) => (key, true),
        From::After(key) => (key, false),
    };
    let sql = format!(
        "select key, etag from reprieve.recorded_objects
         where tombstone_id = $1 and place = $2 and key {} $3 order by key limit $4",
        if inclusive { ">=" } else { ">" }
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(tombstone.0)
        .bind(i16::try_from(place).unwrap_or(i16::MAX))
        .bind(key)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await?)
}

/// One who names an object.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Namer {
    /// The object's name; `None`: the query returned a null.
    pub name: Option<String>,
    /// The resource's id, spelt as its row spells it where there is one; `None`: the query returned a null.
    pub id: Option<String>,
    /// Whether there is such a resource: its row, or its tombstone in the trash. A null is nobody's id, and is believed.
    pub is_known: bool,
}

/// An id that came as text, as a value of its column's type: one uuid can be spelt in several ways. Null: no such value.
fn value_of(id: &str, id_type: IdType) -> String {
    const UUID: &str = "([0-9a-f]{4}-?){7}[0-9a-f]{4}";
    match id_type {
        IdType::Uuid => format!("case when {id} ~* '^({UUID}|\\{{{UUID}\\}})$' then {id}::uuid end"),
        IdType::Integer => format!(
            "case when {id} ~ '^[+-]?[0-9]{{1,30}}$' then
                 case when {id}::numeric between -9223372036854775808 and 9223372036854775807 then {id}::bigint end end"
        ),
        IdType::Text => id.to_owned(),
    }
}

/// The statement that asks a kind's inverse query. Whoever is past the point of no return counts no more, and neither
/// does one whose purge has taken its row, however long the platform keeps links to it. A purge that found no row is not
/// that of one who has the id now. A name with a null is somebody's. One who is there speaks before one who is not.
///
/// Names are compared byte by byte, whatever the platform's collation holds for equal; ids as their column compares them.
fn namers_sql(kind: &ResourceKind, inner: &Sql) -> String {
    let inner = inner.as_str();
    let (table, id) = (&kind.table, &kind.id);
    let (own, value) = (value_of("u.id", kind.id_type), value_of("n.id", kind.id_type));
    format!(
        "with n as materialized (
             select q.name::text collate \"C\" as name, q.id::text collate \"default\" as id
             from (\n{inner}\n) as q(name, id)),
         own as materialized (select {own} as id from unnest($2::text[]) as u(id)),
         said as (
             select n.name, r.id is not null as there, coalesce(r.id, v.id::text, n.id) as id,
                    coalesce(r.own, exists (select from own where own.id = v.id)) as own
             from n
             cross join lateral (select {value} as id) as v
             left join lateral (
                 select r.{id}::text collate \"default\" as id, exists (select from own where own.id = r.{id}) as own
                 from {table} as r where r.{id} = v.id limit 1) as r on true),
         needing as (
             select s.name, s.id, s.id is null or s.there or exists (
                        select from reprieve.tombstones t
                        where t.kind = any($3) and t.resource_id = s.id and t.state in ('trashed', 'blocked')) as is_known
             from said s
             where s.id is null or (not s.own
                 and not exists (select from reprieve.tombstones t
                     where t.kind = any($3) and t.resource_id = s.id and t.state in ('purging', 'stuck')
                       and (t.row_found or not s.there))
                 and not (not s.there and exists (select from reprieve.tombstones t
                     where t.kind = any($3) and t.resource_id = s.id and t.state = 'purged'))))
         select distinct on (name) name, id, is_known from needing order by name, is_known desc, id"
    )
}

/// Of the objects with these names, those that a resource of the kind names which may still need them, apart from `but`:
/// each with one such resource.
///
/// # Errors
/// The query of the map failed: then nobody knows.
pub async fn namers(
    conn: &mut PgConnection,
    map: &ResourceMap,
    kind: &ResourceKind,
    named: &NamedObjects,
    but: &BTreeSet<ResourceRef>,
    names: &[String],
) -> Result<Vec<Namer>, StoreError> {
    let (kin, own) = kin_of(map, kind, but);
    let found = sqlx::query_as(AssertSqlSafe(namers_sql(kind, &named.named_by))).bind(names).bind(own).bind(kin);
    let what = || format!("the named_by query of kind {}", kind.kind);
    found.fetch_all(conn).await.map_err(|error| StoreError::of_platform(error, what))
}

/// The kinds of a kind's table, which are one resource by each id; and the ids of those of `but` that are theirs.
fn kin_of<'a>(
    map: &'a ResourceMap,
    kind: &ResourceKind,
    but: &'a BTreeSet<ResourceRef>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let kin: Vec<&str> =
        map.kinds().filter(|other| other.table == kind.table).map(|other| other.kind.as_str()).collect();
    let own = but.iter().filter(|one| kin.contains(&one.kind.as_str())).map(|one| one.id.as_str()).collect();
    (kin, own)
}

/// Objects whose names begin with `start` and that a resource of the kind names which may still need them, apart from
/// `but`: each with one such resource; at most [`MOST_BLOCKERS`].
///
/// # Errors
/// The query of the map failed: then nobody knows.
pub async fn namers_below(
    conn: &mut PgConnection,
    map: &ResourceMap,
    kind: &ResourceKind,
    named_below: &Sql,
    but: &BTreeSet<ResourceRef>,
    start: &str,
) -> Result<Vec<Namer>, StoreError> {
    let (kin, own) = kin_of(map, kind, but);
    let sql = format!("select * from ({}) as found limit {MOST_BLOCKERS}", namers_sql(kind, named_below));
    let found = sqlx::query_as(AssertSqlSafe(sql)).bind(start).bind(own).bind(kin);
    let what = || format!("the named_below query of kind {}", kind.kind);
    found.fetch_all(conn).await.map_err(|error| StoreError::of_platform(error, what))
}

/// Resources that wait in the trash, apart from `but`, with an object recorded below one of these prefixes, and the first
/// such key; at most [`MOST_BLOCKERS`].
///
/// # Errors
/// The statement failed.
pub async fn recorded_below(
    conn: &mut PgConnection,
    but: &ResourceRef,
    prefixes: &[Location],
) -> Result<Vec<(String, String, String)>, StoreError> {
    let (stores, buckets, starts): (Vec<_>, Vec<_>, Vec<_>) =
        prefixes.iter().map(|at| (at.store.as_str(), at.bucket.as_str(), at.prefix.as_str())).collect();
    // from holder to holder of records and not over all of the trash, and of each the first key from the prefix on: if
    // that does not lie below it, none does
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "with recursive holder as (
             (select tombstone_id as id from reprieve.recorded_objects order by tombstone_id limit 1)
             union all
             select (select o.tombstone_id from reprieve.recorded_objects o
                     where o.tombstone_id > h.id order by o.tombstone_id limit 1)
             from holder h where h.id is not null)
         select t.kind, t.resource_id, first.key from holder h
         join reprieve.tombstones t on t.id = h.id
         cross join lateral (
             select p, row_number() over (order by n) - 1 as place
             from jsonb_array_elements(t.locations) with ordinality as l(p, n) where p ? 'keys') as of
         join unnest($3::text[], $4::text[], $5::text[]) as below(store, bucket, prefix)
             on below.store = of.p ->> 'store' and below.bucket = of.p ->> 'bucket'
         cross join lateral (
             select o.key from reprieve.recorded_objects o
             where o.tombstone_id = t.id and o.place = of.place and o.key >= below.prefix collate \"C\"
             order by o.key limit 1) as first
         where t.state in ('trashed', 'blocked') and not (t.kind = $1 and t.resource_id = $2)
           and starts_with(first.key, below.prefix) limit {MOST_BLOCKERS}"
    )))
    .bind(but.kind.as_str())
    .bind(but.id.as_str())
    .bind(stores)
    .bind(buckets)
    .bind(starts)
    .fetch_all(conn)
    .await?)
}

/// The two statements that use a kind's queries, for a resource and a name that nobody has; the first takes an id.
pub(super) fn trial_sql(kind: &ResourceKind, named: &NamedObjects) -> (String, String) {
    (format!("select * from ({}) as names limit 1", names_sql(named)), namers_sql(kind, &named.named_by))
}

/// The same of a query about what lies below a prefix; it takes a text.
pub(super) fn trial_below_sql(kind: &ResourceKind, named_below: &Sql) -> String {
    namers_sql(kind, named_below)
}

/// Binds what [`trial_sql`]'s second statement asks about: nothing.
pub(super) fn bind_nobody<'q>(query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
    query.bind(vec!["reprieve-check-nothing".to_owned()]).bind(Vec::<String>::new()).bind(Vec::<String>::new())
}

/// Of these prefixes, those that a resource which waits in the trash would have emptied, apart from `but`: each with one
/// such resource.
///
/// # Errors
/// The statement failed.
pub async fn waiting_below(
    conn: &mut PgConnection,
    but: &ResourceRef,
    at: &KeyPlace,
    prefixes: &[&str],
) -> Result<Vec<(String, String, String)>, StoreError> {
    Ok(sqlx::query_as(
        "select distinct on (1) place ->> 'prefix', t.kind, t.resource_id from reprieve.tombstones t
         cross join jsonb_array_elements(t.locations) as place
         where t.state in ('trashed', 'blocked') and not (t.kind = $1 and t.resource_id = $2)
           and place ->> 'store' = $3 and place ->> 'bucket' = $4 and place ->> 'prefix' = any($5)
         order by 1, 2, 3",
    )
    .bind(but.kind.as_str())
    .bind(but.id.as_str())
    .bind(at.store.as_str())
    .bind(&at.bucket)
    .bind(prefixes)
    .fetch_all(conn)
    .await?)
}

/// Of these keys, those that are recorded for another resource which waits in the trash: each with one such resource.
///
/// # Errors
/// The statement failed.
pub async fn waiting_for(
    conn: &mut PgConnection,
    but: &ResourceRef,
    at: &KeyPlace,
    keys: &[&str],
) -> Result<Vec<(String, String, String)>, StoreError> {
    // `offset 0`: key by key, never all that somebody in the trash has recorded
    Ok(sqlx::query_as(
        "select distinct on (1) r.key, t.kind, t.resource_id
         from unnest($5::text[]) as asked(key)
         cross join lateral (
             select * from reprieve.recorded_objects o where o.key = asked.key collate \"C\" offset 0) as r
         join reprieve.tombstones t on t.id = r.tombstone_id
         cross join lateral (
             select p from jsonb_array_elements(t.locations) with ordinality as l(p, n)
             where p ? 'keys' order by n offset r.place limit 1) as place
         where t.state in ('trashed', 'blocked') and not (t.kind = $1 and t.resource_id = $2)
           and p ->> 'store' = $3 and p ->> 'bucket' = $4
         order by 1, 2, 3",
    )
    .bind(but.kind.as_str())
    .bind(but.id.as_str())
    .bind(at.store.as_str())
    .bind(&at.bucket)
    .bind(keys)
    .fetch_all(conn)
    .await?)
}

/// The ETags that some objects of a place were recorded with, by key; of those that were recorded with one.
///
/// # Errors
/// The statement failed.
pub async fn etags(
    conn: &mut PgConnection,
    tombstone: TombstoneId,
    place: usize,
    keys: &[&str],
) -> Result<BTreeMap<String, String>, StoreError> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "select key, etag from reprieve.recorded_objects
         where tombstone_id = $1 and place = $2 and key = any($3) and etag is not null",
    )
    .bind(tombstone.0)
    .bind(i16::try_from(place).unwrap_or(i16::MAX))
    .bind(keys)
    .fetch_all(conn)
    .await?;
    Ok(found.into_iter().collect())
}

/// Forgets all records of a tombstone.
///
/// # Errors
/// The statement failed.
pub async fn forget_all(conn: &mut PgConnection, tombstone: TombstoneId) -> Result<(), StoreError> {
    sqlx::query("delete from reprieve.recorded_objects where tombstone_id = $1")
        .bind(tombstone.0)
        .execute(conn)
        .await?;
    Ok(())
}
