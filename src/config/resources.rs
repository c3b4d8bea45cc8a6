//! `[[resource]]`: the resource map (see `domain::map`).
//!
//! Invariant: a map that loads names only kinds, stores and buckets that exist, and no prefix that could reach beyond
//! its resource.

use std::collections::BTreeMap;

use super::{
    reader::{Problems, Reader},
    stores::StoreConfig,
};
use crate::domain::{
    ids::{IdType, Kind},
    location::{PrefixTemplate, StoreName},
    map::{
        ChildRows, Children, Column, Guard, InvalidSql, NamedObjects, ObjectsAt, Protection, Reference, ResourceKind,
        ResourceMap, SoftDelete, Sql, Table,
    },
    retention::Retention,
};

/// Reads every `[[resource]]` of every file. `retention` is the default window.
pub fn read(
    tables: Vec<Reader<'_>>,
    stores: &BTreeMap<StoreName, StoreConfig>,
    retention: Retention,
    problems: &Problems,
) -> ResourceMap {
    let mut kinds: BTreeMap<Kind, ResourceKind> = BTreeMap::new();
    let mut children = Vec::new();
    for mut table in tables {
        if let Some(name) = table.text("kind") {
            table.name(&name);
        }
        let path = table.key("kind");
        let Some(kind) = read_kind(table, stores, retention) else { continue };
        children.extend(kind.children.iter().map(|child| (kind.kind.clone(), child.kind.clone())));
        if let Some(earlier) = kinds.insert(kind.kind.clone(), kind) {
            problems.add(
                path,
                format_args!(
                    "there is another resource of the kind {:?}; each kind is described once",
                    earlier.kind.as_str()
                ),
            );
        }
    }
    for (parent, child) in children {
        if !kinds.contains_key(&child) {
            let known = kinds.keys().map(Kind::as_str).collect::<Vec<_>>().join(", ");
            problems.add(
                format!("resource ({parent}).children.kind"),
                format_args!("there is no resource of the kind {:?}; the map has: {known}", child.as_str()),
            );
        }
    }
    refuse_shared_places(&kinds, problems);
    for kind in kinds.values() {
        for rows in &kind.rows {
            if let Some(other) = kinds.values().find(|other| other.kind != kind.kind && other.table == rows.table) {
                problems.add(
                    format!("resource ({}).rows.table", kind.kind),
                    format_args!(
                        "{} holds the resources of the kind {:?}, each with a life of its own; name it under [[resource.children]]",
                        rows.table, other.kind.as_str()
                    ),
                );
            }
        }
    }
    ResourceMap::new(kinds.into_values())
}

/// Two kinds whose rows are different ones must not have one place: purging either would delete the other's objects.
/// Places that only may lie inside of each other are `reprieve check`'s to warn of.
fn refuse_shared_places(kinds: &BTreeMap<Kind, ResourceKind>, problems: &Problems) {
    for kind in kinds.values() {
        for other in kinds.values().filter(|other| other.kind > kind.kind && other.table != kind.table) {
            if let Some((prefix, _)) = kind.may_reach(other).filter(|(a, b)| a == b) {
                problems.add(
                    format!("resource ({}).objects.prefix", other.kind),
                    format_args!(
                        "{prefix} is the place of the kind {:?} already: two resources with one id would share their objects",
                        kind.kind.as_str()
                    ),
                );
            }
        }
    }
}

fn read_kind(
    table: Reader<'_>,
    stores: &BTreeMap<StoreName, StoreConfig>,
    retention: Retention,
) -> Option<ResourceKind> {
    let kind = table.required("kind", "the name of this kind, such as \"dataset\"", Kind::parse);
    let rows_table = table.required("table", "the table of its rows, such as \"public.datasets\"", Table::parse);
    let filter = table.parsed("where", Sql::condition);
    let id = table.parsed("id", Column::parse);
    let id_type = table.parsed("id_type", parse_id_type).unwrap_or(IdType::Uuid);
    let name = table.parsed("name", Column::parse);
    let size = table.parsed("size", Column::parse);
    let soft_delete = read_soft_delete(&table);
    let retention = table.parsed("retention", Retention::parse).unwrap_or(retention);
    let protect = read_protection(&table, id_type);
    let objects = table.list("objects").into_iter().filter_map(|at| read_objects(at, stores)).collect();
    let rows = table.list("rows").into_iter().filter_map(read_child_rows).collect();
    let references = table.list("references").into_iter().filter_map(read_reference).collect();
    let children = table.list("children").into_iter().filter_map(read_children).collect();
    let id = if table.has("id") { id } else { Column::parse("id").ok() };
    table.finish();
    Some(ResourceKind {
        kind: kind?,
        table: rows_table?,
        filter,
        id: id?,
        id_type,
        name,
        size,
        soft_delete,
        retention,
        protect,
        objects,
        rows,
        references,
        children,
    })
}

fn parse_id_type(raw: &str) -> Result<IdType, String> {
    match raw {
        "uuid" => Ok(IdType::Uuid),
        "text" => Ok(IdType::Text),
        "integer" => Ok(IdType::Integer),
        other => Err(format!("{other:?} is not an id type: uuid, text or integer")),
    }
}

/// A column name alone is a timestamp; a table says `timestamp`, `boolean`, or `column` with `live` and `trashed`.
fn read_soft_delete(table: &Reader<'_>) -> Option<SoftDelete> {
    if table.value("soft_delete")?.is_string() {
        return table.parsed("soft_delete", Column::parse).map(SoftDelete::Timestamp);
    }
    let form = table.section("soft_delete");
    let timestamp = form.parsed("timestamp", Column::parse);
    let boolean = form.parsed("boolean", Column::parse);
    let column = form.parsed("column", Column::parse);
    let (live, trashed) = (form.text("live"), form.text("trashed"));
    let mark = match (timestamp, boolean, column, live, trashed) {
        (Some(column), None, None, None, None) => Some(SoftDelete::Timestamp(column)),
        (None, Some(column), None, None, None) => Some(SoftDelete::Boolean(column)),
        (None, None, Some(column), Some(live), Some(trashed)) if live != trashed => {
            Some(SoftDelete::Pair { column, live, trashed })
        }
        _ => {
            table.problem(
                "soft_delete",
                "expected a timestamp column's name, { timestamp = \"deleted_at\" }, { boolean = \"is_deleted\" } or \
                 { column = \"lifecycle_stage\", live = \"active\", trashed = \"deleted\" } with two different values",
            );
            None
        }
    };
    form.finish();
    mark
}

fn read_protection(table: &Reader<'_>, id_type: IdType) -> Protection {
    let protect = table.section("protect");
    let mut ids = Vec::new();
    for id in protect.texts("ids") {
        // one that is spelt as no id ever is would protect nothing
        match id_type.parse(&id) {
            Ok(id) => ids.push(id),
            Err(error) => protect.problem("ids", error.to_string()),
        }
    }
    let protection = Protection { names: protect.texts("names"), ids };
    if !protection.names.is_empty() && !table.has("name") {
        protect.problem("names", "needs the resource's key `name`, the column that holds the names");
    }
    protect.finish();
    protection
}

fn read_objects(at: Reader<'_>, stores: &BTreeMap<StoreName, StoreConfig>) -> Option<ObjectsAt> {
    let store = at.required("store", "the NAME of a [stores.NAME] section", StoreName::parse);
    let bucket = at.text("bucket");
    let template = at.parsed("prefix", PrefixTemplate::parse);
    let query = at.parsed("query", Sql::query);
    let keys = at.parsed("keys", Sql::query);
    if [at.has("prefix"), at.has("query"), at.has("keys")].into_iter().filter(|given| *given).count() != 1 {
        at.problem("prefix", "give one of `prefix` (a template such as \"datasets/{id}/\"), `query` and `keys`");
    }
    let named_by = read_named_by(&at);
    let named_below = at.parsed("named_below", |raw| inverse(raw, "what the names begin with"));
    let only_if_unchanged = at.flag("only_if_unchanged", false);
    let store_config = store.as_ref().and_then(|store| {
        let found = stores.get(store);
        if found.is_none() {
            let known = stores.keys().map(StoreName::as_str).collect::<Vec<_>>().join(", ");
            let others = if known.is_empty() { "write one".to_owned() } else { format!("there are: {known}") };
            at.problem("store", format_args!("there is no section [stores.{store}]; {others}"));
        }
        found
    });
    let address = store_config.map(StoreConfig::address).unwrap_or_default();
    let allowed = store_config.map(|store| store.buckets.clone()).unwrap_or_default();
    let buckets = match bucket {
        Some(bucket) if store_config.is_some() && !allowed.contains(&bucket) => {
            at.problem("bucket", format_args!("the store does not list {bucket:?}; it has: {}", allowed.join(", ")));
            Vec::new()
        }
        Some(bucket) => vec![bucket],
        None => allowed,
    };
    let objects = match (store, template, query) {
        (Some(store), Some(prefix), None) => match buckets.as_slice() {
            [bucket] => Some(ObjectsAt::Template { store, address, bucket: bucket.clone(), prefix }),
            [] => None,
            several => {
                at.problem("bucket", format_args!("say which: the store has {}", several.join(", ")));
                None
            }
        },
        (Some(store), None, Some(query)) => Some(ObjectsAt::Query { store, address, buckets, query }),
        (Some(store), None, None) => keys.zip(named_by).map(|(keys, named_by)| {
            ObjectsAt::Keys(NamedObjects { store, address, buckets, keys, named_by, named_below, only_if_unchanged })
        }),
        _ => None,
    };
    at.finish();
    objects
}

/// The inverse of `keys`, which alone tells whether somebody else needs an object.
fn read_named_by(at: &Reader<'_>) -> Option<Sql> {
    let hint = "SQL that returns the name and the resource's id for each of the names in $1, such as \
                \"select key, dataset_id from files where key = any($1)\": an object that another resource names is kept";
    if at.has("keys") {
        return at.required("named_by", hint, |raw| inverse(raw, "the list of names"));
    }
    for key in ["named_by", "named_below", "only_if_unchanged"] {
        if at.has(key) {
            at.problem(key, "belongs to `keys`, which is missing");
        }
    }
    None
}

/// A query that does not ask about one resource.
fn inverse(raw: &str, parameter: &str) -> Result<Sql, String> {
    Sql::query(raw).map_err(|error| match error {
        InvalidSql::NoParameter => format!("the query does not mention $1, {parameter}"),
        InvalidSql::OtherParameter(other) => {
            format!("the query mentions ${other}, but its only parameter is $1, {parameter}")
        }
        other => other.to_string(),
    })
}

fn read_child_rows(rows: Reader<'_>) -> Option<ChildRows> {
    let table = rows.required("table", "the table of the child rows", Table::parse);
    let column = rows.required("column", "its column with the resource's id", Column::parse);
    rows.finish();
    Some(ChildRows { table: table?, column: column? })
}

fn read_reference(reference: Reader<'_>) -> Option<Reference> {
    let name = reference.required("name", "what people call such a use, such as \"active model\"", non_empty);
    let query = reference.required("query", "SQL that returns id and label of the rows that use $1", Sql::query);
    let guard = reference.has("guard").then(|| {
        let guard = reference.section("guard");
        let table = guard.required("table", "the table whose rows use the resource", Table::parse);
        let column = guard.required("column", "its column with the resource's id", Column::parse);
        let when = guard.parsed("when", Sql::condition);
        guard.finish();
        Some(Guard { table: table?, column: column?, when })
    });
    reference.finish();
    Some(Reference { name: name?, query: query?, guard: guard.flatten() })
}

fn read_children(children: Reader<'_>) -> Option<Children> {
    let kind = children.required("kind", "the kind of the children", Kind::parse);
    let query = children.required("query", "SQL that returns the ids of the children of $1", Sql::query);
    children.finish();
    Some(Children { kind: kind?, query: query? })
}

fn non_empty(raw: &str) -> Result<String, &'static str> {
    if raw.trim().is_empty() { Err("must not be empty") } else { Ok(raw.trim().to_owned()) }
}
