//! `/metrics`: what the process has counted and, where it has the role `api`, facts of the database.
//!
//! Invariant: a scrape always gets an answer. Without the database it has the counters and `reprieve_database_up 0`; from
//! a database that answers and is too slow to be read it has the facts that were found last, with their age. Scrapes that
//! come together read once, at whichever listener. Every kind has a series for every open state, zeros too, so that a
//! series does not end when its last tombstone closes.

use std::time::Duration;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::Registry;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{Shared, health::PROBE};
use crate::{
    domain::{ids::Kind, map::ResourceMap, state::State as Stands},
    store::{
        Store, StoreError, brief,
        facts::{self, Fact},
        platform,
    },
    telemetry::metrics::{Make, text_of},
};

/// How long what was asked is not asked again.
const FRESH: Duration = Duration::from_secs(1);

/// How many times as long as a read took there is no other, whether it succeeded or not: whoever has millions of tombstones
/// pays for them with a tenth of one connection at most, however often it is scraped.
const PAUSE: u32 = 10;

/// For the facts to be read, by the database's clock and, a little later, by ours: scrapers give up after ten seconds.
const LONGEST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(6));

/// How a tombstone can have come about.
const ORIGINS: [&str; 3] = ["api", "message", "cli"];
const TOPICS: [&str; 3] = ["purge", "event", "reply"];
const SCOPES: [&str; 3] = ["all", "kind", "store"];
const WITHIN: [&str; 3] = ["1h", "1d", "7d"];

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Last>);

#[derive(Debug)]
struct Last {
    /// When the database was asked for a sign of life, and whether it gave one.
    asked: Option<(Instant, bool)>,
    /// When a read ended, and how long it took; `None` before the first, and after the database was away.
    read: Option<(Instant, Duration)>,
    /// What the last read that succeeded found.
    found: Option<Found>,
    /// When that was; before the first, since when there is none.
    since: Instant,
}

impl Default for Last {
    fn default() -> Self {
        Self { asked: None, read: None, found: None, since: Instant::now() }
    }
}

#[derive(Debug)]
struct Found {
    facts: Vec<Fact>,
    /// Bytes in the trash, by kind.
    bytes: Vec<(Kind, f64)>,
}

/// `GET /metrics`.
pub(super) async fn scrape(State(api): State<Shared>) -> Response {
    let mut text = String::new();
    if api.shows_facts {
        // whoever comes meanwhile waits for what this one reads
        let mut last = api.facts.0.lock().await;
        last.refresh(api.trash.store(), api.trash.map()).await;
        text = last.render(api.trash.map());
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], api.metrics.render() + &text).into_response()
}

impl Last {
    /// A database that is away is asked again by the next scrape; a read that failed has cost as much as one that succeeded.
    async fn refresh(&mut self, store: &Store, map: &ResourceMap) {
        if self.asked.is_some_and(|(at, _)| at.elapsed() < FRESH) {
            return;
        }
        let answers = matches!(timeout(PROBE, store.ping()).await, Ok(Ok(())));
        self.asked = Some((Instant::now(), answers));
        if !answers {
            tracing::warn!("scraped without the database");
            self.read = None;
            return;
        }
        if self.read.is_some_and(|(at, took)| at.elapsed() < took * PAUSE) {
            return;
        }
        let began = Instant::now();
        // a scraper that hangs up meanwhile cuts the read off, and the next one does not begin it anew at once
        self.read = Some((began, LONGEST.0));
        let read = timeout(LONGEST.1, find(store, map)).await;
        self.read = Some((Instant::now(), began.elapsed()));
        match read {
            Ok(Ok(found)) => (self.found, self.since) = (Some(found), Instant::now()),
            Ok(Err(error)) => tracing::warn!(%error, "scraped without new facts"),
            Err(_) => tracing::warn!(error = "no answer in time", "scraped without new facts"),
        }
    }

    fn render(&self, map: &ResourceMap) -> String {
        let registry = Registry::new();
        let make = Make::on(&registry);
        let answers = self.asked.is_some_and(|(_, answers)| answers);
        make.whole("reprieve_database_up", "Whether the database answers.").set(answers.into());
        let took = self.read.map(|(_, took)| took).unwrap_or_default();
        make.gauge("reprieve_database_read_duration_seconds", "How long its facts took.").set(took.as_secs_f64());
        let age = self.since.elapsed();
        make.gauge("reprieve_database_read_age_seconds", "How old they are.").set(age.as_secs_f64());
        if let Some(found) = self.found.as_ref().filter(|_| answers) {
            found.show(&make, map);
        }
        text_of(&registry)
    }
}

/// Facts first: sizes that cannot be read, or not in time, hide nothing else.
async fn find(store: &Store, map: &ResourceMap) -> Result<Found, StoreError> {
    let ends = Instant::now() + LONGEST.0;
    let left = || ends.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut tx = store.begin().await?;
    brief(&mut tx, left()).await?;
    let facts = facts::read(&mut tx).await?;
    tx.commit().await.map_err(StoreError::from)?;
    let mut bytes = Vec::new();
    for kind in map.kinds() {
        let mut tx = store.begin().await?;
        brief(&mut tx, left()).await?;
        match platform::bytes_in_trash(&mut tx, kind).await {
            Ok(Some(of)) => bytes.push((kind.kind.clone(), of)),
            Ok(None) => {}
            Err(error @ (StoreError::Platform { .. } | StoreError::Busy(_))) => {
                tracing::warn!(%error, "scraped without the size of what is in the trash");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Found { facts, bytes })
}

impl Found {
    /// Zeros first, and what was found over them: kinds that have left the map and are still in the trash are shown too.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a count beyond 2^53 is none")]
    fn show(&self, make: &Make<'_>, map: &ResourceMap) {
        let gauges = |name: &str, help: &str, labels: &[&str]| make.gauges(name, help, labels);
        let kind_state = ["kind", "state"];
        let open = gauges("reprieve_open_tombstones", "Tombstones that are not closed.", &kind_state);
        let help = "Stuck ones that go on by themselves on a date, when what is locked may be deleted.";
        let locked = gauges("reprieve_locked_tombstones", help, &["kind"]);
        let help = "For how long the window of the one that is overdue longest has been over.";
        let overdue = gauges("reprieve_oldest_overdue_seconds", help, &kind_state);
        let help = "Tombstones whose window ends within that time.";
        let coming = gauges("reprieve_coming_due_tombstones", help, &["kind", "within"]);
        let help = "Tombstones written in the last hour.";
        let trashed = gauges("reprieve_recently_trashed_tombstones", help, &["kind", "origin"]);
        let rows = gauges("reprieve_outbox_rows", "Messages in the outbox, those for later too.", &["topic"]);
        let due = gauges("reprieve_outbox_due_rows", "Messages in the outbox that are due.", &["topic"]);
        let help = "For how long the oldest due message has been due.";
        let oldest = gauges("reprieve_outbox_oldest_due_seconds", help, &["topic"]);
        let holds = make.gauge("reprieve_holds", "Holds in force.");
        let pauses = gauges("reprieve_pauses", "Pauses in force.", &["scope"]);
        let bytes = gauges("reprieve_trash_bytes", "Bytes in the trash that are not purged yet.", &["kind"]);
        for kind in map.kinds().map(|kind| kind.kind.as_str()) {
            for state in Stands::ALL.into_iter().filter(|state| state.is_open()).map(Stands::as_str) {
                open.with_label_values(&[kind, state]);
                overdue.with_label_values(&[kind, state]);
            }
            locked.with_label_values(&[kind]);
            WITHIN.iter().for_each(|within| drop(coming.with_label_values(&[kind, within])));
            ORIGINS.iter().for_each(|origin| drop(trashed.with_label_values(&[kind, origin])));
        }
        for topic in TOPICS {
            [&rows, &due, &oldest].iter().for_each(|gauge| drop(gauge.with_label_values(&[topic])));
        }
        SCOPES.iter().for_each(|scope| drop(pauses.with_label_values(&[scope])));
        for fact in &self.facts {
            match fact {
                Fact::Open { kind, state, count, coming_due, locked: until_a_date, oldest_overdue } => {
                    locked.with_label_values(&[kind]).add(*until_a_date as f64);
                    open.with_label_values(&[kind, state]).set(*count as f64);
                    overdue.with_label_values(&[kind, state]).set(*oldest_overdue);
                    for (within, count) in WITHIN.iter().zip(coming_due) {
                        // of what is trashed and of what is blocked
                        coming.with_label_values(&[kind.as_str(), within]).add(*count as f64);
                    }
                }
                Fact::Trashed { kind, origin, count } => {
                    trashed.with_label_values(&[kind, origin]).set(*count as f64);
                }
                Fact::Outbox { topic, rows: all, due: of_them, oldest: seconds } => {
                    rows.with_label_values(&[topic]).set(*all as f64);
                    due.with_label_values(&[topic]).set(*of_them as f64);
                    oldest.with_label_values(&[topic]).set(*seconds);
                }
                Fact::Holds(count) => holds.set(*count as f64),
                Fact::Pauses { scope, count } => pauses.with_label_values(&[scope]).set(*count as f64),
            }
        }
        for (kind, of) in &self.bytes {
            bytes.with_label_values(&[kind.as_str()]).set(*of);
        }
    }
}
