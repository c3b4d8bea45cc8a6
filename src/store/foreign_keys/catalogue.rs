//! What PostgreSQL's catalogue says of the foreign keys onto a map's tables.
//!
//! Invariant: whether a key is enforced, and when, is said by the trigger that acts on a deletion, not by the constraint:
//! triggers can be disabled, and what is restricted is asked about at once however deferred the constraint is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::PgConnection;

use crate::{
    domain::map::{ResourceKind, ResourceMap},
    store::StoreError,
};

/// How long the catalogue's answer is taken for true. A migration of the platform that adds a key is rare, and a purge
/// that misses it does what it would do if the key came a moment after its claim.
const FRESH: Duration = Duration::from_secs(10);

/// One foreign key, onto a table that loses rows to a purge.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Key {
    /// Its constraint's name.
    pub name: String,
    /// The table that has it, as `schema.table`, quoted where it has to be.
    pub table: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// The table that loses rows.
    pub onto: String,
    /// `a` no action, `r` restrict, `c` cascade, `n` set null, `d` set default (`pg_constraint.confdeltype`); also `r`
    /// where a column that would be null may not be.
    pub action: String,
    pub(super) onto_columns: Vec<String>,
    /// Asked at the end of a transaction, not of a statement.
    pub(super) deferred: bool,
    /// The trigger that acts on a deletion; several of one row act in the order of their names.
    pub(super) trigger: String,
    pub(super) table_oid: i64,
    /// The whole that its table is a partition of, or its table.
    pub(super) table_root: i64,
    pub(super) onto_oid: i64,
    pub(super) onto_root: i64,
    /// The one part of that table that it is onto.
    only: Option<i64>,
}

impl Key {
    pub(super) fn refuses(&self) -> bool {
        matches!(self.action.as_str(), "a" | "r")
    }

    /// The condition that joins its row `from` to the row `onto`.
    pub(super) fn joins(&self, from: &str, onto: &str) -> String {
        let pairs = self.columns.iter().zip(&self.onto_columns);
        let equal = pairs.map(|(own, other)| format!("{from}.{} = {onto}.{}", quoted(own), quoted(other)));
        let only = self.only.map(|part| format!("{onto}.tableoid = {part}::oid"));
        equal.chain(only).collect::<Vec<_>>().join(" and ")
    }
}

/// The foreign keys that matter to a map, read again when they may have changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Known {
    read: Arc<Mutex<Option<Read>>>,
    row_chunk: u32,
}

#[derive(Debug, Clone)]
struct Read {
    at: Instant,
    keys: Arc<ForeignKeys>,
}

impl Known {
    /// None yet, of a service that deletes so many child rows in one transaction.
    pub fn new(row_chunk: u32) -> Self {
        Self { read: Arc::default(), row_chunk }
    }

    /// They, from the catalogue or as they were a moment ago.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn keys(&self, conn: &mut PgConnection, map: &ResourceMap) -> Result<Arc<ForeignKeys>, StoreError> {
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Read { keys, .. }) = known.filter(|read| read.at.elapsed() < FRESH) {
            return Ok(keys);
        }
        let (at, keys) = (Instant::now(), Arc::new(ForeignKeys::read(conn, map, self.row_chunk).await?));
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Read { at, keys: keys.clone() });
        Ok(keys)
    }
}

/// The foreign keys that matter to a map.
#[derive(Debug)]
pub struct ForeignKeys {
    pub(super) keys: Vec<Key>,
    pub(super) tables: BTreeMap<String, Table>,
    /// Child rows that go in one transaction.
    pub(super) row_chunk: u32,
}

/// A table of the map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) oid: i64,
    /// The whole that it is a partition of, or it.
    pub(super) root: i64,
}

impl ForeignKeys {
    /// Reads them from the catalogue: those onto the map's tables, and onto what goes with their rows in cascades. One
    /// that no trigger enforces is none. A purge deletes `row_chunk` child rows in one transaction.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read(conn: &mut PgConnection, map: &ResourceMap, row_chunk: u32) -> Result<Self, StoreError> {
        let of_kind = |kind: &ResourceKind| {
            let rows = kind.rows.iter().map(|rows| rows.table.to_string());
            rows.chain([kind.table.to_string()]).collect::<Vec<_>>()
        };
        let mut names: Vec<String> = map.kinds().flat_map(of_kind).collect();
        names.sort();
        names.dedup();
        let tables: Vec<(String, i64, i64)> = sqlx::query_as(
            "select m.name, to_regclass(m.name)::oid::bigint,
                    coalesce(pg_partition_root(to_regclass(m.name)), to_regclass(m.name))::oid::bigint
             from unnest($1::text[]) as m(name) where to_regclass(m.name) is not null",
        )
        .bind(&names)
        .fetch_all(&mut *conn)
        .await?;
        let keys = sqlx::query_as(KEYS).bind(&names).fetch_all(conn).await?;
        let tables = tables.into_iter().map(|(name, oid, root)| (name, Table { oid, root })).collect();
        Ok(Self { keys, tables, row_chunk })
    }
}

/// The keys onto the tables `$1`, and onto what goes with their rows. A key onto a partitioned table holds for its
/// partitions and has copies for them, which are not looked at but for their triggers: before PostgreSQL 15, no others
/// act on a deletion there. A key may also be onto a partition alone, or onto a table that inherits.
const KEYS: &str = "
    with recursive
    part(whole, oid) as (
        select i.inhparent, i.inhrelid from pg_catalog.pg_inherits i
        union
        select p.whole, i.inhrelid from part p join pg_catalog.pg_inherits i on i.inhparent = p.oid),
    losing(oid) as (
        select to_regclass(m.name)::oid from unnest($1::text[]) as m(name) where to_regclass(m.name) is not null
        union
        select c.conrelid from losing l
        cross join lateral (select l.oid union select a.relid::oid from pg_partition_ancestors(l.oid) a
                            union select p.oid from part p where p.whole = l.oid) target(oid)
        join pg_catalog.pg_constraint c on c.confrelid = target.oid
        where c.contype = 'f' and c.confdeltype = 'c' and c.conparentid = 0),
    copy(of, oid, onto, depth) as (
        select c.oid, c.oid, c.confrelid, 0 from pg_catalog.pg_constraint c where c.contype = 'f' and c.conparentid = 0
        union all
        select y.of, c.oid, c.confrelid, y.depth + 1 from copy y
        join pg_catalog.pg_constraint c on c.conparentid = y.oid),
    acting(of, name, deferred) as (
        select y.of, (array_agg(g.tgname::text order by y.depth, g.tgname))[1], bool_and(g.tginitdeferred)
        from copy y join pg_catalog.pg_trigger g on g.tgconstraint = y.oid and g.tgrelid = y.onto
        -- bit 8 of a trigger's type: on delete
        where g.tgtype & 8 = 8 and g.tgenabled <> 'D' group by y.of),
    named(oid, name) as (
        select r.oid, format('%I.%I', n.nspname, r.relname) from pg_catalog.pg_class r
        join pg_catalog.pg_namespace n on n.oid = r.relnamespace)
    select c.conname::text as name, c.conrelid::bigint as table_oid, l.oid::bigint as onto_oid,
           coalesce(pg_partition_root(c.conrelid), c.conrelid)::oid::bigint as table_root,
           coalesce(pg_partition_root(l.oid), l.oid)::oid::bigint as onto_root,
           (select n.name from named n where n.oid = c.conrelid) as table,
           (select n.name from named n where n.oid = l.oid) as onto,
           (select array_agg(a.attname::text order by k.at) from unnest(c.conkey) with ordinality k(num, at)
            join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num) as columns,
           (select array_agg(a.attname::text order by k.at) from unnest(c.confkey) with ordinality k(num, at)
            join pg_catalog.pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num) as onto_columns,
           (select r.oid::bigint from pg_catalog.pg_class r
            where r.oid = c.confrelid and r.oid <> l.oid and r.relkind = 'r') as only,
           -- what has to be null and may not be refuses like a restriction; before PostgreSQL 15 all columns are set
           case when exists (
               select from jsonb_array_elements_text(
                   coalesce(nullif(to_jsonb(c) -> 'confdelsetcols', 'null'), to_jsonb(c.conkey))) k(num)
               join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num::int2
               where a.attnotnull and (c.confdeltype = 'n' or c.confdeltype = 'd' and not a.atthasdef))
               then 'r' else c.confdeltype::text end as action,
           g.deferred, g.name as trigger
    from losing l
    cross join lateral (select l.oid union select a.relid::oid from pg_partition_ancestors(l.oid) a
                        union select p.oid from part p where p.whole = l.oid) target(oid)
    join pg_catalog.pg_constraint c on c.confrelid = target.oid
    join acting g on g.of = c.oid
    where c.contype = 'f' and c.conparentid = 0
    order by 6, 1, 7";

/// A name of the catalogue, for SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
