//! The resource map: what a platform's kinds are, in its own tables. Nothing else in Reprieve knows a platform.
//!
//! Invariant: a [`ResourceMap`] is whole. Every kind that a child names exists, no two kinds have one name, and a
//! kind that owns objects says where. What only the live system can tell (do the columns exist, do the queries
//! prepare) is `reprieve check`'s.

use std::{collections::BTreeMap, fmt};

use super::{
    ids::{IdType, Kind, ResourceId},
    location::{KeyPlace, PrefixTemplate, StoreName},
    retention::Retention,
};

/// An SQL identifier, to be quoted exactly as it is written here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Column(String);

/// A table, with its schema where one is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    schema: Option<Column>,
    name: Column,
}

/// A condition or query in SQL, written by whoever wrote the map. `$1` is the resource's id, with the id's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql(String);

/// Not an identifier, or not usable SQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSql {
    /// Not an identifier.
    #[error(
        "{0:?} is not a column or table name: letters, digits, _ and $, a letter or _ first, at most 63; no quotes"
    )]
    Identifier(String),
    /// Empty, or more than one statement.
    #[error("expected one SQL expression or query without a semicolon, found {0:?}")]
    Statement(String),
    /// A parameter that nobody gives.
    #[error("the query mentions ${0}, but its only parameter is $1, the id of the resource")]
    OtherParameter(u8),
    /// A query that does not say which resource it is about.
    #[error("the query does not mention $1, the id of the resource: it would answer the same for every one")]
    NoParameter,
}

impl Column {
    /// # Errors
    /// [`InvalidSql::Identifier`].
    pub fn parse(raw: &str) -> Result<Self, InvalidSql> {
        let well_formed = (1..=63).contains(&raw.len())
            && raw.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$');
        if well_formed { Ok(Self(raw.to_owned())) } else { Err(InvalidSql::Identifier(raw.to_owned())) }
    }

    /// As written in the map.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Table {
    /// Reads `table` or `schema.table`.
    ///
    /// # Errors
    /// [`InvalidSql::Identifier`].
    pub fn parse(raw: &str) -> Result<Self, InvalidSql> {
        let refuse = |_| InvalidSql::Identifier(raw.to_owned());
        match raw.split_once('.') {
            Some((schema, name)) => Ok(Self {
                schema: Some(Column::parse(schema).map_err(refuse)?),
                name: Column::parse(name).map_err(refuse)?,
            }),
            None => Ok(Self { schema: None, name: Column::parse(raw)? }),
        }
    }
}

impl Sql {
    /// A condition, such as `is_active`.
    ///
    /// # Errors
    /// [`InvalidSql::Statement`].
    pub fn condition(raw: &str) -> Result<Self, InvalidSql> {
        let text = raw.trim();
        if text.is_empty() || text.contains(';') {
            return Err(InvalidSql::Statement(raw.chars().take(200).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// A query about one resource; a semicolon at its end is dropped.
    ///
    /// # Errors
    /// [`InvalidSql::Statement`], or [`InvalidSql::NoParameter`] where it does not mention `$1`.
    pub fn query(raw: &str) -> Result<Self, InvalidSql> {
        let sql = Self::condition(raw.trim().trim_end_matches(';'))?;
        if let Some(other) = (2..=9).find(|n| sql.0.contains(&format!("${n}"))) {
            return Err(InvalidSql::OtherParameter(other));
        }
        if sql.0.contains("$1") { Ok(sql) } else { Err(InvalidSql::NoParameter) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Quoted for SQL.
impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// Quoted for SQL.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// How the platform marks a row as deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SoftDelete {
    /// A timestamp: null while live.
    Timestamp(Column),
    /// A boolean: false while live.
    Boolean(Column),
    /// A text column with one value for each.
    Pair {
        /// The column.
        column: Column,
        /// Its value while live.
        live: String,
        /// Its value in the trash.
        trashed: String,
    },
}

/// What is never trashed, whatever is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protection {
    /// By name; matched whole.
    pub names: Vec<String>,
    /// By id.
    pub ids: Vec<ResourceId>,
}

/// Where a kind's objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectsAt {
    /// Below a prefix made from the row.
    Template {
        /// The store.
        store: StoreName,
        /// Where the store is.
        address: String,
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: PrefixTemplate,
    },
    /// Below the `s3://bucket/prefix/` addresses that a query returns.
    Query {
        /// The store.
        store: StoreName,
        /// Where the store is.
        address: String,
        /// The only buckets that an address may name.
        buckets: Vec<String>,
        /// The query: one text column.
        query: Sql,
    },
    /// Wherever they are: a query names them one by one.
    Keys(NamedObjects),
}

/// Objects that a query names one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedObjects {
    /// The store.
    pub store: StoreName,
    /// Where the store is.
    pub address: String,
    /// The only buckets that they may be in.
    pub buckets: Vec<String>,
    /// Names the objects of a resource: a key, or `s3://bucket/key`, and with `only_if_unchanged` its ETag.
    pub keys: Sql,
    /// Names the resources of some objects: `$1` is a list of such names; columns: name, id.
    pub named_by: Sql,
    /// Names the resources of the objects below a prefix: `$1` is what such names begin with; columns: name, id.
    pub named_below: Option<Sql>,
    /// Whether an object is deleted only while it has the ETag that was recorded.
    pub only_if_unchanged: bool,
}

impl NamedObjects {
    /// Whether it can name objects of that bucket.
    pub fn reaches(&self, store: &StoreName, bucket: &str) -> bool {
        self.store == *store && self.buckets.iter().any(|own| own == bucket)
    }

    /// The bucket of a key without one.
    pub fn only_bucket(&self) -> Option<&str> {
        match self.buckets.as_slice() {
            [bucket] => Some(bucket),
            _ => None,
        }
    }
}

/// Rows that go with the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRows {
    /// Their table.
    pub table: Table,
    /// The column with the resource's id.
    pub column: Column,
}

/// What keeps a resource alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What people call it: `active model`.
    pub name: String,
    /// Returns the rows that use the resource: id, label.
    pub query: Sql,
    /// A trigger that refuses new uses of what is in the trash.
    pub guard: Option<Guard>,
}

/// Where a guard's trigger sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The table whose rows use the resource.
    pub table: Table,
    /// Its column with the resource's id.
    pub column: Column,
    /// Which of its rows count as a use; all without it.
    pub when: Option<Sql>,
}

/// Resources that can be trashed along with this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Children {
    /// Their kind.
    pub kind: Kind,
    /// Returns their ids.
    pub query: Sql,
}

/// One kind of resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceKind {
    /// Its name.
    pub kind: Kind,
    /// The table of its rows.
    pub table: Table,
    /// Which of the table's rows are of this kind; all without it.
    pub filter: Option<Sql>,
    /// The column of the id.
    pub id: Column,
    /// The type of the id.
    pub id_type: IdType,
    /// The column of the name people know it by.
    pub name: Option<Column>,
    /// The column of how many bytes its objects have, for the metrics; null counts as none.
    pub size: Option<Column>,
    /// How the platform marks it as deleted; without it only the tombstone says so.
    pub soft_delete: Option<SoftDelete>,
    /// Its restore window.
    pub retention: Retention,
    /// What of it is never trashed.
    pub protect: Protection,
    /// Where its objects lie; empty for a kind of rows alone.
    pub objects: Vec<ObjectsAt>,
    /// Child rows, in the order of deletion.
    pub rows: Vec<ChildRows>,
    /// What keeps it alive.
    pub references: Vec<Reference>,
    /// What can go with it when asked.
    pub children: Vec<Children>,
}

impl ResourceKind {
    /// Two prefix templates, ours and one of `inner`, of which ours can give a prefix that contains one of the other.
    /// `None` where none can. Of places that a query names nothing is known.
    pub fn may_reach<'a>(&'a self, inner: &'a Self) -> Option<(&'a PrefixTemplate, &'a PrefixTemplate)> {
        self.objects.iter().flat_map(|a| inner.objects.iter().map(move |b| (a, b))).find_map(|pair| match pair {
            (
                ObjectsAt::Template { store, bucket, prefix, .. },
                ObjectsAt::Template { store: inner_store, bucket: inner_bucket, prefix: inner_prefix, .. },
            ) => {
                let one_bucket = store == inner_store && bucket == inner_bucket;
                (one_bucket && prefix.may_contain(self.id_type, inner_prefix, inner.id_type))
                    .then_some((prefix, inner_prefix))
            }
            _ => None,
        })
    }

    /// The entries that name objects one by one.
    pub fn named_objects(&self) -> impl Iterator<Item = &NamedObjects> {
        self.objects.iter().filter_map(|at| match at {
            ObjectsAt::Keys(named) => Some(named),
            ObjectsAt::Template { .. } | ObjectsAt::Query { .. } => None,
        })
    }

    /// The buckets that these can be in, each once.
    pub fn key_places(&self) -> Vec<KeyPlace> {
        let mut places: Vec<KeyPlace> = Vec::new();
        for named in self.named_objects() {
            for bucket in &named.buckets {
                if !places.iter().any(|known| named.store == known.store && *bucket == known.bucket) {
                    let (store, endpoint) = (named.store.clone(), named.address.clone());
                    places.push(KeyPlace { store, bucket: bucket.clone(), endpoint, keys: 0 });
                }
            }
        }
        places
    }

    /// Whether a query says where some of its objects lie.
    pub fn asks_for_places(&self) -> bool {
        self.objects.iter().any(|at| matches!(at, ObjectsAt::Query { .. }))
    }
}

/// Every kind of a platform.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceMap {
    kinds: BTreeMap<Kind, ResourceKind>,
}

/// A kind that the map does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {asked:?}; the map has: {known}")]
pub struct UnknownKind {
    asked: String,
    known: String,
}

impl ResourceMap {
    /// A map of kinds that the caller has checked against each other (`config` reports each clash with its key).
    pub fn new(kinds: impl IntoIterator<Item = ResourceKind>) -> Self {
        Self { kinds: kinds.into_iter().map(|kind| (kind.kind.clone(), kind)).collect() }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`UnknownKind`], which names those there are.
    pub fn kind(&self, name: &str) -> Result<&ResourceKind, UnknownKind> {
        self.kinds.iter().find(|(kind, _)| kind.as_str() == name).map(|(_, found)| found).ok_or_else(|| UnknownKind {
            asked: name.chars().take(80).collect(),
            known: self.kinds.keys().map(Kind::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// Every kind, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &ResourceKind> {
        self.kinds.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_break_out_of_their_quotes_are_refused() {
        for raw in ["", "a\"b", "a b", "1a", "a;b", "a.b.c", "é", "a'b"] {
            assert!(Table::parse(raw).is_err(), "{raw:?}");
        }
        assert_eq!(Table::parse("heimdall.models").unwrap().to_string(), "\"heimdall\".\"models\"");
    }

    #[test]
    fn a_query_must_be_one_statement_about_the_resource() {
        assert_eq!(Sql::query("select 1 where a = $1;").unwrap().as_str(), "select 1 where a = $1");
        assert_eq!(Sql::query("select 1"), Err(InvalidSql::NoParameter));
        assert_eq!(Sql::query("select $1, $2"), Err(InvalidSql::OtherParameter(2)));
        assert!(matches!(Sql::query("select $1; drop table x"), Err(InvalidSql::Statement(_))));
        assert!(matches!(Sql::query("  "), Err(InvalidSql::Statement(_))));
    }
}
