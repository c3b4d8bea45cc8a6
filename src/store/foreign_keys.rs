//! The platform's foreign keys that a purge runs into: those that delete rows along, and those that refuse.
//!
//! Invariant: looks only. A row that refuses is one that points at what a purge deletes, and that neither the map nor a
//! cascade deletes before. Whether a key points there is the catalogue's to say, whatever the map knows of that table.

mod catalogue;
mod taken;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

pub use catalogue::{ForeignKeys, Key, Known};

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

/// The most ways, by one table and cascade after another, that a purge of a kind may take to rows. Each stands in the
/// questions about it, and where cascades meet again and again there are exponentially many.
const MOST_WAYS: usize = 256;

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
    /// The map deletes rows of their table, and does so after those of this one that they point at.
    pub too_late_for: Option<String>,
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
    /// Whether these rows are gone when the key asks for rows that point at those at `onto`; the purge's `last` turn is
    /// the resource's own row.
    fn goes_before(&self, key: &Key, onto: usize, doomed: &[Doomed<'_>], last: usize) -> Option<Gone> {
        let at = &doomed[onto];
        let (is_gone, is_one_transaction) = match self.why {
            _ if self.turn < at.turn => (true, true),
            _ if key.deferred => (true, self.turn == last && at.turn == last),
            _ if self.turn > at.turn => (false, false),
            Why::Cascade(by, from) if from == onto => (by.trigger < key.trigger, at.turn == last),
            _ => (self.depth <= at.depth, at.turn == last),
        };
        is_gone.then_some(if is_one_transaction { Gone::Always } else { Gone::InOneChunk })
    }
}

/// When rows are gone by the time that a key asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// Whatever there is besides.
    Always,
    /// Where all child rows go in one transaction, and those of a table in one statement.
    InOneChunk,
}

/// A key that a purge of a kind meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met<'k> {
    /// Which.
    pub key: &'k Key,
    /// It refuses nothing where all child rows of a resource are fewer than go in one transaction.
    pub spares_few: bool,
    /// The map deletes rows of its table, and does so after those of this one that they point at.
    pub too_late_for: Option<&'k str>,
}

/// What to ask about one key.
struct Question<'k> {
    key: &'k Key,
    too_late_for: Option<&'k str>,
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

impl ForeignKeys {
    /// The keys onto rows that a purge of a kind deletes. Of those that refuse, the ones of tables from which
    /// it deletes nothing in time, or not always; of those that cascade, the ones of tables that the map does not name.
    pub fn met_by(&self, kind: &ResourceKind) -> Vec<Met<'_>> {
        let doomed = self.doomed(kind);
        let mut met: Vec<Met<'_>> = Vec::new();
        for (at, going) in doomed.iter().enumerate() {
            for key in self.onto(kind, going) {
                let gone = gone_before(&doomed, key, at, kind.rows.len());
                let always = key.refuses() && gone.iter().any(|(_, when)| *when == Gone::Always);
                let is_mapped = |own: &Doomed<'_>| matches!(own.why, Why::Mapped(_)) && own.table_oid == key.table_oid;
                let spared = always || key.action == "c" && doomed.iter().any(is_mapped);
                let too_late_for = too_late_for(&doomed, at, key).filter(|_| key.refuses());
                let this = Met { key, spares_few: key.refuses() && !gone.is_empty(), too_late_for };
                if !spared && !met.contains(&this) {
                    met.push(this);
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
        let questions = self.questions(map, kind, spared)?;
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
            let Some(Question { key, too_late_for, .. }) = usize::try_from(at).ok().and_then(|at| questions.get(at))
            else {
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
                    let too_late_for = too_late_for.map(str::to_owned);
                    found.push(Refusing { table, key, rows: counted, at_least, too_late_for });
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// For each key that can refuse a purge its end, the statement that counts the rows that do; `$1` is the id.
    ///
    /// # Errors
    /// There are too many ways to rows: then nobody knows.
    pub(super) fn counts_refusing(&self, map: &ResourceMap, kind: &ResourceKind) -> Result<Vec<String>, StoreError> {
        let questions = self.questions(map, kind, Spared::Nobody)?;
        Ok(questions.into_iter().map(|question| question.sql).collect())
    }

    /// Each key that can refuse, with the query that counts who does.
    fn questions<'k>(
        &'k self,
        map: &ResourceMap,
        kind: &'k ResourceKind,
        spared: Spared<'_>,
    ) -> Result<Vec<Question<'k>>, StoreError> {
        let doomed = self.doomed(kind);
        if doomed.len() > MOST_WAYS {
            return Err(StoreError::Unusable(format!(
                "nobody can tell which rows refuse the deletion of a row of kind {}: cascades lead in too many ways from \
                 it to other rows, more than {MOST_WAYS}",
                kind.kind
            )));
        }
        let in_one_chunk = self.in_one_chunk(kind);
        let mut questions = Vec::new();
        for (at, going) in doomed.iter().enumerate() {
            for key in self.onto(kind, going).into_iter().filter(|key| key.refuses()) {
                let own = gone_before(&doomed, key, at, kind.rows.len()).into_iter();
                let own = own.map(|(own, when)| match (holds(&doomed, own, "x", Whose::Its), when) {
                    (holds, Gone::Always) => holds,
                    (holds, Gone::InOneChunk) => format!("{holds} and {in_one_chunk}"),
                });
                let mut gone: Vec<String> = own.collect();
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
                let onto = format!("(select t.*, t.tableoid from {onto} t where {goes} limit {MOST_LOOKED_AT}) t");
                let sql = format!(
                    "select count(*) from (select 1 from {table} x
                     where exists (select from {onto} where {joins}){stays} limit {}) q",
                    MOST_COUNTED + 1
                );
                let too_late_for = too_late_for(&doomed, at, key);
                questions.push(Question { key, too_late_for, sql, names_earlier });
            }
        }
        Ok(questions)
    }

    /// The condition that all child rows go in the transaction that ends the purge.
    fn in_one_chunk(&self, kind: &ResourceKind) -> String {
        let tables = kind.rows.iter().map(|rows| format!("select from {} where {} = $1", rows.table, rows.column));
        let all = tables.collect::<Vec<_>>().join(" union all ");
        let chunk = self.row_chunk;
        format!("(select count(*) from (select from ({all}) r limit {chunk}) r) < {chunk}")
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
            let is_its = self.tables.get(&rows.table.to_string()).is_some_and(|table| table.oid == key.table_oid);
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
                let table_oid = self.tables.get(&table)?.oid;
                Some(Doomed { table_oid, table, turn, depth: 0, why: Why::Mapped(column.to_string()) })
            })
            .collect();
        let mut at = 0;
        while at < doomed.len() && doomed.len() <= MOST_WAYS {
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

/// Which of the doomed are rows of a key's own table that are gone when it asks for those that point at the rows at
/// `onto`, and when.
fn gone_before(doomed: &[Doomed<'_>], key: &Key, onto: usize, last: usize) -> Vec<(usize, Gone)> {
    let own = doomed.iter().enumerate().filter(|(_, own)| own.table_oid == key.table_oid);
    own.filter_map(|(at, own)| Some((at, own.goes_before(key, onto, doomed, last)?))).collect()
}

/// The table of the map whose child rows go before those of the key's own table, although these point at them, or at what
/// goes with them.
fn too_late_for<'k>(doomed: &[Doomed<'k>], mut onto: usize, key: &'k Key) -> Option<&'k str> {
    let turn = doomed[onto].turn;
    let last = doomed.iter().map(|own| own.turn).max()?;
    let is_later = |own: &Doomed<'_>| own.table_oid == key.table_oid && own.turn > turn && own.turn < last;
    let mut name = key.onto.as_str();
    while let Why::Cascade(by, from) = doomed[onto].why {
        (name, onto) = (by.onto.as_str(), from);
    }
    doomed.iter().any(|own| matches!(own.why, Why::Mapped(_)) && is_later(own)).then_some(name)
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
