//! Resources of the map whose rows go along with another's: as its child rows, or in cascades.
//!
//! Invariant: every row that PostgreSQL would delete is looked at, however many cascades away and in whatever circles
//! they lead; only ways that reach no kind's table are left out.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{ForeignKeys, Key};
use crate::{
    domain::{
        ids::{ResourceId, ResourceRef},
        map::{ResourceKind, ResourceMap},
    },
    store::{
        StoreError,
        platform::{MOST_BLOCKERS, bind_id},
    },
};

/// What a purge of a kind starts from and follows to come to rows of a kind.
struct Ways<'k> {
    /// Tables of the purge's own rows, and the column that holds the resource's id.
    starts: Vec<(String, &'k str)>,
    cascades: Vec<&'k Key>,
    /// Kinds that may be come to.
    ends: Vec<&'k ResourceKind>,
}

impl ForeignKeys {
    /// The resources of any kind whose rows would go with this one's: at most [`MOST_BLOCKERS`] of each kind. Asks nothing
    /// where none can.
    ///
    /// # Errors
    /// A table may not be read, or there are too many rows on the way for the time of a statement: then nobody knows.
    pub async fn taken(
        &self,
        conn: &mut PgConnection,
        map: &ResourceMap,
        resource: &ResourceRef,
    ) -> Result<Vec<ResourceRef>, StoreError> {
        let Ok(kind) = map.kind(resource.kind.as_str()) else { return Ok(Vec::new()) };
        let ways = self.ways(map, kind);
        if ways.ends.is_empty() {
            return Ok(Vec::new());
        }
        let sql = self.sql(kind, &ways);
        let rows = bind_id(sqlx::query(AssertSqlSafe(sql)), kind.id_type, &resource.id)?.fetch_all(conn).await;
        let what = || format!("looking for resources whose rows go with one of kind {}", kind.kind);
        let mut found = Vec::new();
        for row in rows.map_err(|error| StoreError::of_platform(error, what))? {
            let (at, id): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(end) = usize::try_from(at).ok().and_then(|at| ways.ends.get(at)) {
                found.push(ResourceRef { kind: end.kind.clone(), id: ResourceId::from_stored(id) });
            }
        }
        Ok(found)
    }

    /// The kind whose table a key is of.
    pub fn kind_of<'m>(&self, map: &'m ResourceMap, key: &Key) -> Option<&'m ResourceKind> {
        let root = |kind: &ResourceKind| self.tables.get(&kind.table.to_string()).map(|table| table.root);
        map.kinds().find(|kind| root(kind) == Some(key.table_root))
    }

    fn ways<'k>(&'k self, map: &'k ResourceMap, kind: &'k ResourceKind) -> Ways<'k> {
        let root = |table: &str| self.tables.get(table).map(|table| table.root);
        let end_of = |kind: &ResourceKind| root(&kind.table.to_string());
        let all: Vec<&Key> = self.keys.iter().filter(|key| key.action == "c").collect();
        let mut leading: BTreeSet<i64> = map.kinds().filter_map(end_of).collect();
        while all.iter().any(|key| leading.contains(&key.table_root) && leading.insert(key.onto_root)) {}
        let children: Vec<(String, &str)> =
            kind.rows.iter().map(|rows| (rows.table.to_string(), rows.column.as_str())).collect();
        let mut come_to: BTreeSet<i64> = children.iter().filter_map(|(table, _)| root(table)).collect();
        let mut losing: BTreeSet<i64> = come_to.iter().copied().chain(end_of(kind)).collect();
        let follows =
            |key: &&Key, losing: &BTreeSet<i64>| losing.contains(&key.onto_root) && leading.contains(&key.table_root);
        while all.iter().any(|key| follows(key, &losing) && losing.insert(key.table_root)) {}
        let cascades: Vec<&Key> = all.into_iter().filter(|key| follows(key, &losing)).collect();
        come_to.extend(cascades.iter().map(|key| key.table_root));
        let own = Some((kind.table.to_string(), kind.id.as_str()));
        let own = own.filter(|(table, _)| cascades.iter().any(|key| Some(key.onto_root) == root(table)));
        let starts = children.into_iter().filter(|(table, _)| root(table).is_some_and(|root| leading.contains(&root)));
        let ends = map.kinds().filter(|other| end_of(other).is_some_and(|root| come_to.contains(&root)));
        Ways { starts: starts.chain(own).collect(), ends: ends.collect(), cascades }
    }

    /// The statement that walks all rows that go, by table and place, each once.
    fn sql(&self, kind: &ResourceKind, ways: &Ways<'_>) -> String {
        let starts = ways.starts.iter();
        let starts = starts.map(|(table, column)| format!("select tableoid, ctid from {table} where {column} = $1"));
        let next = ways.cascades.iter().map(|key| {
            let joins = key.joins("x", "t");
            format!(
                "select x.tableoid, x.ctid from {} x join {} t on {joins}
                 where t.tableoid = g.part and t.ctid = g.place",
                key.table, key.onto
            )
        });
        let next = next.collect::<Vec<_>>().join("\nunion all ");
        let next = if next.is_empty() {
            String::new()
        } else {
            format!("union select n.* from gone g cross join lateral ({next}) n")
        };
        let root = |kind: &ResourceKind| self.tables.get(&kind.table.to_string()).map(|table| table.root);
        let ends = ways.ends.iter().enumerate().map(|(at, end)| {
            let mut which = String::new();
            if let Some(filter) = &end.filter {
                which += &format!(" and (({}\n) is true)", filter.as_str());
            }
            if root(end) == root(kind) {
                // the resource's own row, whatever it is called
                which += &format!(" and ({} = $1) is not true", kind.id);
            }
            format!(
                "(select {at}::bigint, e.id from gone g cross join lateral
                     (select {}::text as id from {} where tableoid = g.part and ctid = g.place{which}) e
                  limit {MOST_BLOCKERS})",
                end.id, end.table
            )
        });
        format!(
            "with recursive gone(part, place) as (({}) {next})\n{}",
            starts.collect::<Vec<_>>().join("\nunion all "),
            ends.collect::<Vec<_>>().join("\nunion all ")
        )
    }
}
