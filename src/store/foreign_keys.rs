//! The platform's foreign keys that a purge runs into: those that delete rows along, and those that refuse.
//!
//! Invariant: looks only. A row that refuses is one that points at what a purge deletes, and that neither the map nor a
//! cascade deletes before. Whether a key points there is the catalogue's to say, whatever the map knows of that table.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{
    StoreError,
    platform::{bind_id, literal},
};
use crate::domain::{
    ids::ResourceRef,
    map::{ChildRows, ResourceKind, ResourceMap},
};

/// The most rows of one key that are counted.
pub const MOST_COUNTED: u64 = 100;

/// The most rows of one table of which it is asked who points at them: a resource with millions of child rows must not
/// be kept from its purge by a question that takes longer than a statement may.
const MOST_LOOKED_AT: u64 = 100_000;

/// How long the catalogue's answer is taken for true. A migration of the platform that adds a key is rare, and a purge
/// that misses it is refused at its rows, as it would be without this.
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
    /// `a` no action, `r` restrict, `c` cascade, `n` set null, `d` set default (`pg_constraint.confdeltype`).
    pub action: String,
    onto_columns: Vec<String>,
    /// Asked at the end of a transaction, not of a statement.
    deferred: bool,
    /// The trigger that acts on a deletion; several of one row act in the order of their names.
    trigger: String,
    table_oid: i64,
    onto_oid: i64,
}

impl Key {
    fn refuses(&self) -> bool {
        matches!(self.action.as_str(), "a" | "r")
    }

    /// The condition that joins its row `from` to the row `onto`.
    fn joins(&self, from: &str, onto: &str) -> String {
        let pairs = self.columns.iter().zip(&self.onto_columns);
        let equal = pairs.map(|(own, other)| format!("{from}.{} = {onto}.{}", quoted(own), quoted(other)));
        equal.collect::<Vec<_>>().join(" and ")
    }
}

/// Rows that would refuse a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusing {
    /// Their table.
    pub table: String,
    /// The key, by its constraint's name.
    pub key: String,
    /// How many there are, up to [`MOST_COUNTED`].
    pub rows: u64,
    /// There are more.
    pub at_least: bool,
}

/// Rows that a purge deletes: those that one table of the map holds for a resource, or those that go in a cascade.
#[derive(Debug)]
struct Doomed<'k> {
    table_oid: i64,
    table: String,
    /// When, in the order of the purge: the map's child rows one after the other, and the resource's own row last.
    turn: usize,
    /// How many cascades away from the map's rows. One follows when all keys onto the rows before it have acted.
    depth: usize,
    why: Why<'k>,
}

#[derive(Debug)]
enum Why<'k> {
    /// The column holds the resource's id.
    Mapped(String),
    /// The key deletes them along with those rows.
    Cascade(&'k Key, usize),
}

impl Doomed<'_> {
    /// Whether these rows are gone when the key asks for rows that point at those at `onto`.
    fn goes_before(&self, key: &Key, onto: usize, doomed: &[Doomed<'_>]) -> bool {
        let at = &doomed[onto];
        match self.why {
            _ if self.turn != at.turn => self.turn < at.turn,
            Why::Cascade(by, from) if from == onto => by.trigger < key.trigger,
            _ => self.depth <= at.depth,
        }
    }
}

/// What to ask about one key.
struct Question<'k> {
    key: &'k Key,
    sql: String,
    /// Whether it mentions `$2`.
    names_earlier: bool,
}

/// Which resources a condition is about.
#[derive(Debug, Clone, Copy)]
enum Whose<'k> {
    /// The one that is asked about: `$1`.
    Its,
    /// Those of a kind that go before it: `$2`, or in the trash.
    Earlier(&'k ResourceKind),
}

impl Whose<'_> {
    fn condition(self, column: &str) -> String {
        match self {
            Self::Its => format!("{column} = $1"),
            Self::Earlier(kind) => {
                let (kind, named) = (literal(kind.kind.as_str()), literal(&format!("{} ", kind.kind)));
                format!(
                    "({named} || {column}::text = any ($2)
                     or exists (select from reprieve.tombstones d
                                where d.kind = {kind} and d.resource_id = {column}::text
                                and d.state in ('trashed', 'blocked', 'purging', 'stuck')))"
                )
            }
        }
    }
}

/// Who is gone by the time that a resource's rows are deleted, and so refuses nothing.
#[derive(Debug, Clone, Copy)]
pub enum Spared<'a> {
    /// Nobody but its own rows: they are about to be deleted.
    Nobody,
    /// The rows of these, which go before it, and of everything that is in the trash by now: a later look, before
    /// anything is destroyed, waits for them.
    Earlier(&'a [&'a ResourceRef]),
}

/// The foreign keys that matter to a map, read again when they may have changed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<Option<Read>>>);

#[derive(Debug, Clone)]
struct Read {
    at: Instant,
    keys: Arc<ForeignKeys>,
}

impl Known {
    /// They, from the catalogue or as they were a moment ago.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn keys(&self, conn: &mut PgConnection, map: &ResourceMap) -> Result<Arc<ForeignKeys>, StoreError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Read { keys, .. }) = known.filter(|read| read.at.elapsed() < FRESH) {
            return Ok(keys);
        }
        let (at, keys) = (Instant::now(), Arc::new(ForeignKeys::read(conn, map).await?));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Read { at, keys: keys.clone() });
        Ok(keys)
    }
}

/// The foreign keys that matter to a map.
#[derive(Debug, Default)]
pub struct ForeignKeys {
    keys: Vec<Key>,
    oids: BTreeMap<String, i64>,
}

impl ForeignKeys {
    /// Reads them from the catalogue: those onto the map's tables, and onto what goes with their rows in cascades. One
    /// that no trigger enforces is none.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read(conn: &mut PgConnection, map: &ResourceMap) -> Result<Self, StoreError> {
        let of_kind = |kind: &ResourceKind| {
            let rows = kind.rows.iter().map(|rows| rows.table.to_string());
            rows.chain([kind.table.to_string()]).collect::<Vec<_>>()
        };
        let mut tables: Vec<String> = map.kinds().flat_map(of_kind).collect();
        tables.sort();
        tables.dedup();
        let oids: Vec<(String, i64)> = sqlx::query_as(
            "select m.name, to_regclass(m.name)::oid::bigint from unnest($1::text[]) as m(name)
             where to_regclass(m.name) is not null",
        )
        .bind(&tables)
        .fetch_all(&mut *conn)
        .await?;
        // a key onto a partitioned table holds for its partitions, and has copies there that are not looked at
        let keys = sqlx::query_as(
            "with recursive losing(oid) as (
                 select to_regclass(m.name)::oid from unnest($1::text[]) as m(name) where to_regclass(m.name) is not null
                 union
                 select c.conrelid from losing l
                 cross join lateral (select l.oid union select a.relid::oid from pg_partition_ancestors(l.oid) a) whole(oid)
                 join pg_catalog.pg_constraint c on c.confrelid = whole.oid
                 where c.contype = 'f' and c.confdeltype = 'c' and c.conparentid = 0)
             select c.conname::text as name, c.conrelid::bigint as table_oid, l.oid::bigint as onto_oid,
                    (select format('%I.%I', n.nspname, r.relname) from pg_catalog.pg_class r
                     join pg_catalog.pg_namespace n on n.oid = r.relnamespace where r.oid = c.conrelid) as table,
                    (select format('%I.%I', n.nspname, r.relname) from pg_catalog.pg_class r
                     join pg_catalog.pg_namespace n on n.oid = r.relnamespace where r.oid = l.oid) as onto,
                    (select array_agg(a.attname::text order by k.at) from unnest(c.conkey) with ordinality k(num, at)
                     join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num) as columns,
                    (select array_agg(a.attname::text order by k.at) from unnest(c.confkey) with ordinality k(num, at)
                     join pg_catalog.pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num) as onto_columns,
                    c.confdeltype::text as action, c.condeferred as deferred, g.tgname::text as trigger
             from losing l
             cross join lateral (select l.oid union select a.relid::oid from pg_partition_ancestors(l.oid) a) whole(oid)
             join pg_catalog.pg_constraint c on c.confrelid = whole.oid
             -- bit 8 of a trigger's type: on delete
             join pg_catalog.pg_trigger g on g.tgconstraint = c.oid and g.tgrelid = c.confrelid and g.tgtype & 8 = 8
             where c.contype = 'f' and c.conparentid = 0 and g.tgenabled <> 'D'
             order by 4, 1, 5",
        )
        .bind(&tables)
        .fetch_all(conn)
        .await?;
        Ok(Self { keys, oids: oids.into_iter().collect() })
    }

    /// The keys onto rows that a purge of a kind deletes. Of those that refuse, the ones of tables from which
    /// it deletes nothing in time; of those that cascade, the ones of tables that the map does not name.
    pub fn met_by(&self, kind: &ResourceKind) -> Vec<&Key> {
        let doomed = self.doomed(kind);
        let mut met: Vec<&Key> = Vec::new();
        for (at, going) in doomed.iter().enumerate() {
            for key in self.onto(kind, going) {
                let spared = key.refuses() && !Self::gone_before(&doomed, key, at).is_empty();
                let is_mapped = |own: &Doomed<'_>| matches!(own.why, Why::Mapped(_)) && own.table_oid == key.table_oid;
                let spared = spared || key.action == "c" && doomed.iter().any(is_mapped);
                if !spared && !met.contains(&key) {
                    met.push(key);
                }
            }
        }
        met
    }

    /// The rows that would refuse to let a resource's rows be deleted, of its child rows the first hundred thousand of
    /// each table. Asks nothing where no key can refuse.
    ///
    /// # Errors
    /// A table may not be read: then nobody knows.
    pub async fn refusing(
        &self,
        conn: &mut PgConnection,
        map: &ResourceMap,
        resource: &ResourceRef,
        spared: Spared<'_>,
    ) -> Result<Vec<Refusing>, StoreError> {
        let Ok(kind) = map.kind(resource.kind.as_str()) else { return Ok(Vec::new()) };
        let questions = self.questions(map, kind, spared);
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let each = questions.iter().enumerate();
        let each = each.map(|(at, question)| format!("select {at}::bigint, ({})", question.sql));
        let sql = each.collect::<Vec<_>>().join("\nunion all ");
        let mut query = bind_id(sqlx::query(AssertSqlSafe(sql)), kind.id_type, &resource.id)?;
        if let Spared::Earlier(earlier) = spared
            && questions.iter().any(|question| question.names_earlier)
        {
            query = query.bind(earlier.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        let what = || format!("asking which rows refuse the deletion of a row of kind {} by a foreign key", kind.kind);
        let mut found: Vec<Refusing> = Vec::new();
        for row in query.fetch_all(conn).await.map_err(|error| StoreError::of_platform(error, what))? {
            let (at, rows): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let Some(Question { key, .. }) = usize::try_from(at).ok().and_then(|at| questions.get(at)) else {
                continue;
            };
            let rows = u64::try_from(rows).unwrap_or(0);
            let known = found.iter_mut().find(|known| known.key == key.name && known.table == key.table);
            let (counted, at_least) = (rows.min(MOST_COUNTED), rows > MOST_COUNTED);
            match known {
                // the same rows may point at what goes in two ways
                Some(known) => (known.rows, known.at_least) = (known.rows.max(counted), known.at_least || at_least),
                None if rows > 0 => {
                    let (table, key) = (key.table.clone(), key.name.clone());
                    found.push(Refusing { table, key, rows: counted, at_least });
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// Each key that can refuse, with the query that counts who does.
    fn questions<'k>(&'k self, map: &ResourceMap, kind: &ResourceKind, spared: Spared<'_>) -> Vec<Question<'k>> {
        let doomed = self.doomed(kind);
        let mut questions = Vec::new();
        for (at, going) in doomed.iter().enumerate() {
            for key in self.onto(kind, going).into_iter().filter(|key| key.refuses()) {
                let own = Self::gone_before(&doomed, key, at);
                let mut gone: Vec<String> = own.into_iter().map(|own| holds(&doomed, own, "x", Whose::Its)).collect();
                let is_own = gone.len();
                if matches!(spared, Spared::Earlier(_)) {
                    for other in map.kinds() {
                        let theirs = self.doomed(other);
                        let here = (0..theirs.len()).filter(|own| theirs[*own].table_oid == key.table_oid);
                        gone.extend(here.map(|own| holds(&theirs, own, "x", Whose::Earlier(other))));
                    }
                }
                let names_earlier = gone.len() > is_own;
                let stays: String = gone.iter().map(|gone| format!(" and ({gone}) is not true")).collect();
                let (table, onto, joins) = (&key.table, &going.table, key.joins("x", "t"));
                let goes = holds(&doomed, at, "t", Whose::Its);
                let onto = format!("(select t.* from {onto} t where {goes} limit {MOST_LOOKED_AT}) t");
                let sql = format!(
                    "select count(*) from (select 1 from {table} x
                     where exists (select from {onto} where {joins}){stays} limit {}) q",
                    MOST_COUNTED + 1
                );
                questions.push(Question { key, sql, names_earlier });
            }
        }
        questions
    }

    /// Which of the doomed are rows of a key's own table that are gone when it asks for those that point at the rows at
    /// `onto`.
    fn gone_before(doomed: &[Doomed<'_>], key: &Key, onto: usize) -> Vec<usize> {
        let goes =
            |own: &Doomed<'_>| own.table_oid == key.table_oid && (key.deferred || own.goes_before(key, onto, doomed));
        (0..doomed.len()).filter(|own| goes(&doomed[*own])).collect()
    }

    /// The keys onto rows that go, but those whose rows go before by the same column.
    fn onto<'k>(&'k self, kind: &ResourceKind, doomed: &Doomed<'_>) -> Vec<&'k Key> {
        let is_own = matches!(&doomed.why, Why::Mapped(_)) && doomed.turn == kind.rows.len();
        let known = |key: &Key| is_own && self.is_mapped(kind, key);
        self.keys.iter().filter(|key| key.onto_oid == doomed.table_oid && !known(key)).collect()
    }

    /// Whether the map deletes the rows of a key onto the resource's own row, by the key's own column.
    fn is_mapped(&self, kind: &ResourceKind, key: &Key) -> bool {
        let by = |rows: &ChildRows| {
            let is_its = self.oids.get(&rows.table.to_string()) == Some(&key.table_oid);
            is_its && key.columns == [rows.column.as_str()]
        };
        key.onto_columns == [kind.id.as_str()] && kind.rows.iter().any(by)
    }

    /// What a purge of a kind deletes.
    fn doomed(&self, kind: &ResourceKind) -> Vec<Doomed<'_>> {
        let rows = kind.rows.iter().map(|rows| (&rows.table, &rows.column));
        let tables = rows.chain([(&kind.table, &kind.id)]).enumerate();
        let mut doomed: Vec<Doomed<'_>> = tables
            .filter_map(|(turn, (table, column))| {
                let table = table.to_string();
                let table_oid = *self.oids.get(&table)?;
                Some(Doomed { table_oid, table, turn, depth: 0, why: Why::Mapped(column.to_string()) })
            })
            .collect();
        let mut at = 0;
        while at < doomed.len() {
            let (turn, depth) = (doomed[at].turn, doomed[at].depth + 1);
            for key in self.onto(kind, &doomed[at]).into_iter().filter(|key| key.action == "c") {
                if !is_behind(&doomed, at, key) {
                    let (table_oid, table) = (key.table_oid, key.table.clone());
                    doomed.push(Doomed { table_oid, table, turn, depth, why: Why::Cascade(key, at) });
                }
            }
            at += 1;
        }
        doomed
    }
}

/// Whether rows go by that key already on the way to them: a key onto its own table is followed once.
fn is_behind(doomed: &[Doomed<'_>], mut at: usize, key: &Key) -> bool {
    while let Why::Cascade(by, from) = doomed[at].why {
        if by == key {
            return true;
        }
        at = from;
    }
    false
}

/// The condition that `row`, an alias of the table, is among the doomed.
fn holds(doomed: &[Doomed<'_>], at: usize, row: &str, whose: Whose<'_>) -> String {
    match &doomed[at].why {
        Why::Mapped(column) => whose.condition(&format!("{row}.{column}")),
        Why::Cascade(key, from) => {
            let above = format!("{row}_");
            let rest = holds(doomed, *from, &above, whose);
            format!("exists (select from {} {above} where {} and {rest})", doomed[*from].table, key.joins(row, &above))
        }
    }
}

/// A name of the catalogue, for SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
