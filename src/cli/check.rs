//! `reprieve check`: tries configuration and map against the live system.
//!
//! Invariant: it looks only. Nothing is declared, written or deleted, and one finding hides no other: a server that does
//! not answer is waited for a few seconds, and by nobody but its own part.

mod believed;
mod servers;

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::timeout;

use super::{
    CliError,
    output::{Output, aligned},
};
use crate::{
    app::App,
    domain::{
        ids::ResourceRef,
        map::{ObjectsAt, ResourceKind, ResourceMap, SoftDelete},
    },
    store::{
        StoreError,
        foreign_keys::{ForeignKeys, Met, Spared},
        guards, inspect, migrate,
    },
};

/// For a server to say anything. Whoever looks at the output waits for it.
const ANSWER: Duration = Duration::from_secs(10);

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
        let mut all = Findings::default();
        all.add(Level::Ok, "configuration", "no mistakes");
        let width = widest(&app);
        output.say(|| shown(&all, true, width))?;
        let mut parts = parts(&app);
        while let Some(part) = parts.next().await {
            // a part that has nothing to say is no empty line
            if !part.0.is_empty() {
                output.say(|| shown(&part, false, width))?;
            }
            all.0.extend(part.0);
        }
        output.document(&all.0)?;
        let problems = all.0.iter().filter(|finding| finding.level == Level::Problem).count();
        if problems == 0 { Ok(()) } else { Err(CliError::Check(problems)) }
    }
}

/// All servers are asked at once, and shown in this order as soon as each is known: one that does not answer costs
/// seconds, however many there are.
fn parts(app: &App) -> impl Stream<Item = Findings> + Unpin {
    let stores = app.stores.iter().map(|(name, store)| servers::store(app, name, store).boxed());
    let parts: Vec<BoxFuture<'_, Findings>> =
        [database(app).boxed()].into_iter().chain(stores).chain([servers::broker(app).boxed()]).collect();
    let at_once = parts.len();
    stream::iter(parts).buffered(at_once)
}

/// Of all that findings can be about: parts that are shown one after the other are one table.
fn widest(app: &App) -> usize {
    let kinds = app.trash.map().kinds().flat_map(|kind| {
        let guarded = kind.references.iter().map(|reference| format!("{} / {}", kind.kind, reference.name));
        guarded.chain([kind.kind.to_string()]).collect::<Vec<_>>()
    });
    let buckets =
        app.stores.iter().flat_map(|(name, store)| store.buckets.iter().map(move |of| servers::about(name, of)));
    let names = kinds.chain(buckets).map(|about| about.chars().count());
    names.max().unwrap_or_default().max("configuration".len())
}

fn shown(part: &Findings, is_first: bool, width: usize) -> String {
    let header = if is_first { ["", "about", "finding"].as_slice() } else { &[] };
    let rows = part.0.iter().map(|finding| {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "WARNING",
            Level::Problem => "PROBLEM",
        };
        vec![level.to_owned(), finding.about.clone(), finding.finding.clone()]
    });
    aligned(header, rows, &["PROBLEM".len(), width])
}

/// The database with schema, map and guards. What was found before it fell silent stays.
async fn database(app: &App) -> Findings {
    let mut findings = Findings::default();
    let problem = match timeout(ANSWER, app.store.own_conn()).await {
        Ok(Ok(_answers)) => {
            // each question has its own limit in the database; this one is for a database that falls silent
            let kinds = u32::try_from(app.trash.map().kinds().count()).unwrap_or(u32::MAX);
            let limit = app.config.database.statement_timeout.saturating_mul(kinds.saturating_add(1)) + ANSWER;
            match timeout(limit, check_database(app, &mut findings)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(silent(&app.store.address(), limit)),
            }
        }
        Ok(Err(error)) => Some(format!("{}: {error}", app.store.address())),
        Err(_) => Some(silent(&app.store.address(), ANSWER)),
    };
    if let Some(problem) = problem {
        findings.add(Level::Problem, "database", problem);
    }
    findings
}

fn silent(address: &str, limit: Duration) -> String {
    format!("{address} did not answer within {}", humantime::format_duration(limit))
}

async fn check_database(app: &App, findings: &mut Findings) -> Result<(), StoreError> {
    match migrate::compare(&app.store).await?.mismatch() {
        None => findings.add(Level::Ok, "database", "answers, and the schema `reprieve` fits this program"),
        Some(why) => findings.add(Level::Problem, "database", why),
    }
    let mut conn = app.store.conn().await?;
    inspect::look_only(&mut conn).await?;
    check_overlaps(app, findings);
    check_shared_rows(app, findings);
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

/// Kinds whose rows are those of another kind, too: what is trashed as the one would be missing as the other.
fn check_shared_rows(app: &App, findings: &mut Findings) {
    for kind in app.trash.map().kinds() {
        for other in app.trash.map().kinds().filter(|other| other.kind > kind.kind && other.table == kind.table) {
            if kind.filter.is_none() || other.filter.is_none() {
                let found = format!(
                    "it and the kind {} can be the same rows of {}: a purge deletes a row and the objects of its own kind \
                     alone; say with `where` which rows are of which kind",
                    other.kind, kind.table
                );
                findings.add(Level::Warning, kind.kind.to_string(), found);
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
    for Met { key, spares_few, too_late_for } in keys.met_by(kind) {
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
            _ if let Some(other) = too_late_for => format!(
                "the foreign key {place} refuses the deletion of rows of {onto} that it points at, and the map deletes \
                 those of {other} first: the [[resource.rows]] of {} belongs before that of {other}",
                key.table
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
