//! `reprieve check`: tries configuration and map against the live system.
//!
//! Invariant: it looks only. Nothing is declared, written or deleted, and one finding hides no other.

mod believed;

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;
use sqlx::PgConnection;

use super::{
    CliError,
    output::{Output, counted, table},
};
use crate::{
    app::App,
    domain::{
        ids::ResourceRef,
        location::StoreName,
        map::{ObjectsAt, ResourceKind, ResourceMap, SoftDelete},
    },
    objects::{BucketFacts, DefaultRetention, LockMode, UploadsListed, Versioning},
    queue::TaskQueue,
    store::{
        StoreError,
        foreign_keys::{ForeignKeys, Met, Spared},
        guards, inspect, migrate,
    },
};

#[derive(Debug, Args)]
pub(super) struct Check {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Works, and may surprise.
    Warning,
    /// Will not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    about: String,
    finding: String,
}

/// Everything found, in the order of looking.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, about: impl Into<String>, finding: impl Into<String>) {
        self.0.push(Finding { level, about: about.into(), finding: finding.into() });
    }
}

impl Check {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let mut findings = Findings::default();
        findings.add(Level::Ok, "configuration", "no mistakes");
        if let Err(error) = check_database(&app, &mut findings).await {
            findings.add(Level::Problem, "database", app.store.why_away(error).await.to_string());
        }
        check_stores(&app, &mut findings).await;
        check_broker(&app, &mut findings).await;
        let problems = findings.0.iter().filter(|finding| finding.level == Level::Problem).count();
        output.print(&findings.0, |findings| {
            let rows = findings.iter().map(|finding| {
                let level = match finding.level {
                    Level::Ok => "ok",
                    Level::Warning => "WARNING",
                    Level::Problem => "PROBLEM",
                };
                vec![level.to_owned(), finding.about.clone(), finding.finding.clone()]
            });
            table(&["", "about", "finding"], rows)
        })?;
        if problems == 0 { Ok(()) } else { Err(CliError::Check(problems)) }
    }
}

async fn check_database(app: &App, findings: &mut Findings) -> Result<(), StoreError> {
    app.store.ping().await?;
    match migrate::compare(&app.store).await?.mismatch() {
        None => findings.add(Level::Ok, "database", "answers, and the schema `reprieve` fits this program"),
        Some(why) => findings.add(Level::Problem, "database", why),
    }
    let mut conn = app.store.conn().await?;
    inspect::look_only(&mut conn).await?;
    check_overlaps(app, findings);
    check_prefixes_over_names(app, findings);
    believed::queried_prefixes(app.trash.map(), findings);
    believed::buckets_of_one_name(&app.config.stores, findings);
    let keys = ForeignKeys::read(&mut conn, app.trash.map(), app.config.purge.row_chunk).await?;
    for kind in app.trash.map().kinds() {
        check_kind(&mut conn, app.trash.map(), &keys, kind, findings).await?;
    }
    for guard in guards::states(&mut conn, app.trash.map()).await? {
        let about = format!("{} / {}", guard.kind, guard.reference);
        if let Some(mistake) = guard.mistake {
            findings.add(Level::Problem, about, format!("its guard on {} cannot work: {mistake}", guard.table));
        } else if guard.installed {
            findings.add(Level::Ok, about, format!("its guard on {} is installed", guard.table));
        } else {
            let advice = "new uses of what is in the trash are not refused: run `reprieve migrate --guards`";
            findings.add(
                Level::Warning,
                about,
                format!("its guard on {} is not installed as the map says it; {advice}", guard.table),
            );
        }
    }
    Ok(())
}

/// Kinds of which one's objects may lie inside of the other's, as far as the map tells.
fn check_overlaps(app: &App, findings: &mut Findings) {
    for outer in app.trash.map().kinds() {
        // kinds that are parts of one table have ids of their own
        for inner in app.trash.map().kinds().filter(|inner| inner.kind != outer.kind && inner.table != outer.table) {
            let is_child = outer.children.iter().any(|children| children.kind == inner.kind);
            if !is_child && let Some((a, b)) = outer.may_reach(inner) {
                let found = format!(
                    "its objects below {a} may include those of the kind {} below {b}: if they can, name it under \
                     [[resource.children]], so that each purge looks for it",
                    inner.kind
                );
                findings.add(Level::Warning, outer.kind.to_string(), found);
            }
        }
    }
}

/// Kinds that are emptied by prefix in a bucket where another kind names objects one by one.
fn check_prefixes_over_names(app: &App, findings: &mut Findings) {
    let map = app.trash.map();
    for kind in map.kinds() {
        let places = kind.objects.iter().flat_map(|at| match at {
            ObjectsAt::Template { store, bucket, .. } => vec![(store, bucket)],
            ObjectsAt::Query { store, buckets, .. } => buckets.iter().map(|bucket| (store, bucket)).collect(),
            ObjectsAt::Keys(_) => Vec::new(),
        });
        let places: BTreeSet<_> = places.collect();
        for other in map.kinds() {
            let both = places.iter().find(|(store, bucket)| {
                other.named_objects().any(|at| at.named_below.is_none() && at.reaches(store, bucket))
            });
            if let Some((_, bucket)) = both {
                let found = format!(
                    "a purge empties its prefixes in {bucket} without asking whether the kind {} names an object below \
                     them: say with `named_below` how to find out",
                    other.kind
                );
                findings.add(Level::Warning, kind.kind.to_string(), found);
            }
        }
    }
}

async fn check_kind(
    conn: &mut PgConnection,
    map: &ResourceMap,
    keys: &ForeignKeys,
    kind: &ResourceKind,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let about = kind.kind.to_string();
    let failures = inspect::try_queries(conn, kind).await;
    if failures.is_empty() {
        findings.add(Level::Ok, &about, "its table, columns and queries fit the database");
    }
    for failure in failures {
        findings.add(Level::Problem, &about, failure.what);
    }
    if !inspect::id_is_unique(conn, kind).await? {
        let found =
            format!("no unique index keeps {}.{} unique: an id must belong to one row alone", kind.table, kind.id);
        findings.add(Level::Problem, &about, found);
    }
    if let (Some(mark), Some(found)) = (&kind.soft_delete, inspect::mark_type(conn, kind).await?) {
        let fits = match mark {
            SoftDelete::Timestamp(_) => found.starts_with("timestamp") || found == "date",
            SoftDelete::Boolean(_) => found == "boolean",
            SoftDelete::Pair { .. } => !found.starts_with("timestamp") && found != "boolean",
        };
        if !fits {
            findings.add(
                Level::Problem,
                &about,
                format!("its soft_delete column is of the type {found}, which does not fit its form"),
            );
        }
    }
    for named in kind.named_objects() {
        for table in inspect::scanned_for_names(conn, named).await? {
            let found = format!(
                "no index of {table} finds what its named_by query asks for: each batch of a purge reads it whole"
            );
            findings.add(Level::Warning, &about, found);
        }
    }
    if kind.references.is_empty() {
        findings.add(Level::Warning, &about, "nothing in the map keeps it alive: it has no [[resource.references]]");
    }
    let mapped: Vec<String> = kind.rows.iter().map(|rows| rows.table.to_string()).collect();
    for key in inspect::foreign_keys_onto(conn, &kind.table.to_string()).await? {
        if !key.indexed {
            let child = format!("{}.{}", key.table, key.column);
            findings.add(Level::Warning, &about, format!(
                "{child} has no index: each deleted row scans that table, and so does each question before a trash or a \
                 purge, with the resource's row locked; one that takes longer than a statement may keeps it from beginning"
            ));
        }
    }
    for rows in &kind.rows {
        if !inspect::is_indexed(conn, &rows.table.to_string(), rows.column.as_str()).await? {
            let place = format!("{}.{}", rows.table, rows.column);
            findings.add(Level::Warning, &about, format!("{place} has no index: each chunk of rows scans the table"));
        }
        for key in inspect::foreign_keys_onto(conn, &rows.table.to_string()).await? {
            if !key.indexed {
                let child = format!("{}.{}", key.table, key.column);
                findings.add(Level::Warning, &about, format!("{child} points at {} and has no index: deleting rows there becomes slow by orders of magnitude", rows.table));
            }
        }
    }
    check_foreign_keys(conn, map, keys, kind, findings).await;
    let losing: Vec<String> = mapped.into_iter().chain([kind.table.to_string()]).collect();
    for key in inspect::unindexed_behind_cascades(conn, &losing).await? {
        let text = format!(
            "{} points at {}, whose rows go in a cascade, and has no index: the cascade becomes slow by orders of magnitude",
            key.column, key.onto
        );
        findings.add(Level::Warning, &about, text);
    }
    Ok(())
}

/// What the foreign keys do to a purge of a kind, however far behind its rows.
async fn check_foreign_keys(
    conn: &mut PgConnection,
    map: &ResourceMap,
    keys: &ForeignKeys,
    kind: &ResourceKind,
    findings: &mut Findings,
) {
    for Met { key, spares_few } in keys.met_by(kind) {
        let (place, onto) = (format!("{}.{}", key.table, key.columns.join(", ")), &key.onto);
        let found = match (key.action.as_str(), keys.kind_of(map, key)) {
            ("n" | "d", _) => {
                format!("the foreign key {place} is set to null or its default by a purge: that lineage is erased")
            }
            ("c", Some(other)) => format!(
                "the foreign key {place} deletes rows of the kind {} with those of {onto}: what would take one along is \
                 refused as in use",
                other.kind
            ),
            ("c", None) => format!(
                "the foreign key {place} deletes its rows in one cascade with those of {onto}, and no plan counts them; \
                 with many rows map them as [[resource.rows]]"
            ),
            _ if spares_few => format!(
                "the foreign key {place} refuses the deletion of rows of {onto} that it points at, unless they go in one \
                 transaction: what has purge.row_chunk child rows or more, and such rows, is refused as in use"
            ),
            _ => format!(
                "the foreign key {place} refuses the deletion of rows of {onto} that it points at: what has such rows \
                 is refused as in use, until they are gone or the map deletes them"
            ),
        };
        findings.add(Level::Warning, kind.kind.to_string(), found);
    }
    let nobody = ResourceRef { kind: kind.kind.clone(), id: inspect::nobody(kind) };
    let mut answers = keys.taken(conn, map, &nobody).await.map(|_| ());
    for spared in [Spared::Nobody, Spared::Earlier(&[])] {
        if answers.is_ok() {
            answers = keys.refusing(conn, map, &nobody, spared).await.map(|_| ());
        }
    }
    if let Err(error) = answers {
        findings.add(Level::Problem, kind.kind.to_string(), error.to_string());
    }
}

async fn check_stores(app: &App, findings: &mut Findings) {
    for (name, store) in app.stores.iter() {
        for bucket in &store.buckets {
            let about = format!("store {name}, bucket {bucket}");
            match store.objects.facts(bucket).await {
                Ok(facts) => {
                    let versions = match facts.versioning {
                        Versioning::Off => "no versions",
                        Versioning::Kept => "keeps versions",
                    };
                    let lock = match facts.object_lock {
                        Some(true) => "object lock is on",
                        Some(false) => "no object lock",
                        None => "object lock unknown",
                    };
                    findings.add(
                        Level::Ok,
                        &about,
                        format!("answers; {versions}, {lock}; deletes go {}", facts.deletes),
                    );
                    if facts.object_lock == Some(true) {
                        findings.add(Level::Warning, &about, "locked objects cannot be purged before their date");
                    }
                    check_abilities(&facts, &about, findings);
                    match facts.versioning {
                        Versioning::Kept => check_conditions(app, name, bucket, &about, findings),
                        Versioning::Off => believed::conditions(app.trash.map(), name, bucket, &about, findings),
                    }
                }
                Err(error) => findings.add(Level::Problem, &about, error.to_string()),
            }
        }
    }
}

/// Kinds whose objects are compared before they are deleted, in a bucket that keeps versions.
fn check_conditions(app: &App, store: &StoreName, bucket: &str, about: &str, findings: &mut Findings) {
    for kind in app.trash.map().kinds() {
        if kind.named_objects().any(|named| named.only_if_unchanged && named.reaches(store, bucket)) {
            let found = format!(
                "keeps versions, where only_if_unchanged cannot be told: no object of the kind {} would be deleted",
                kind.kind
            );
            findings.add(Level::Problem, about, found);
        }
    }
}

/// What of a bucket can surprise, or keep a purge from its end.
fn check_abilities(facts: &BucketFacts, about: &str, findings: &mut Findings) {
    if let Some(DefaultRetention { mode, days }) = facts.default_retention {
        let mode = match mode {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        };
        let found = format!("every new object is locked in {mode} mode for {}", counted(days.into(), "day"));
        findings.add(Level::Warning, about, found);
    }
    match &facts.uploads {
        UploadsListed::Yes => {}
        UploadsListed::NotOffered => {
            findings.add(Level::Ok, about, "has no listing of unfinished uploads, and is taken to have none");
        }
        UploadsListed::Denied(code) => findings.add(
            Level::Problem,
            about,
            format!("its unfinished uploads cannot be listed ({code}), so no purge would come to its end there"),
        ),
    }
    if !facts.url_encoded {
        let found = "does not encode names in listings: an object whose name XML cannot carry keeps its prefix from being listed";
        findings.add(Level::Warning, about, found);
    }
}

async fn check_broker(app: &App, findings: &mut Findings) {
    let Some(queue) = app.rabbitmq() else {
        findings.add(
            Level::Warning,
            "broker",
            "there is no section [broker]: `serve` refuses the roles intake, relay and worker without",
        );
        return;
    };
    if let Err(error) = queue.publisher().await {
        findings.add(Level::Problem, "broker", error.to_string());
        return;
    }
    match queue.depths().await {
        Ok(depths) => {
            let waiting =
                format!("waiting: {}, {}", counted(depths.requests, "request"), counted(depths.purge, "purge task"));
            findings.add(Level::Ok, "broker", format!("answers, its queues are there; {waiting}"));
            if depths.dead > 0 {
                findings.add(
                    Level::Warning,
                    "broker",
                    format!("{} in the dead-letter queue", counted(depths.dead, "message")),
                );
            }
        }
        Err(error) if app.config.broker.as_ref().is_some_and(|broker| broker.declare) => {
            let error = error.to_string();
            // what to do is said for those who declare nothing
            let missing = error.split("; start once with").next().unwrap_or(&error);
            findings.add(Level::Warning, "broker", format!("answers; `serve` declares what is missing ({missing})"));
        }
        Err(error) => findings.add(Level::Problem, "broker", error.to_string()),
    }
}
