//! `/metrics`: what the process has counted and, where it has the role `api`, facts of the database.
//!
//! Invariant: a scrape always gets an answer. Without the database it has the counters and `reprieve_database_up 0`, and no
//! fact is shown that is older than a few reads take. Scrapes that come together read once. Every kind has a series for
//! every open state, zeros too, so that a series does not end when its last tombstone closes.

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

use super::Shared;
use crate::{
    domain::{ids::Kind, map::ResourceMap, state::State as Stands},
    store::{
        Store, StoreError,
        facts::{self, Fact},
        platform,
    },
    telemetry::metrics::{Make, text_of},
};

/// How long what was read is shown again, and how many times as long as the read took: whoever has millions of tombstones
/// pays for them with a tenth of one connection at most, however often it is scraped.
const FRESH: (Duration, u32) = (Duration::from_secs(1), 10);

/// For the database to be read: scrapers give up after ten seconds.
const LONGEST: Duration = Duration::from_secs(5);

/// How a tombstone can have come about.
const ORIGINS: [&str; 3] = ["api", "message", "cli"];
const TOPICS: [&str; 3] = ["purge", "event", "reply"];
const SCOPES: [&str; 3] = ["all", "kind", "store"];
const WITHIN: [&str; 3] = ["1h", "1d", "7d"];

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Option<Read>>);

#[derive(Debug)]
struct Read {
    at: Instant,
    took: Duration,
    /// `None`: it failed.
    found: Option<Found>,
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
        let read = match last.take().filter(Read::is_fresh) {
            Some(read) => read,
            None => Read::of(api.trash.store(), api.trash.map()).await,
        };
        text = read.render(api.trash.map());
        *last = Some(read);
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], api.metrics.render() + &text).into_response()
}

impl Read {
    /// A failure is soon tried again.
    fn is_fresh(&self) -> bool {
        let as_long = if self.found.is_some() { self.took * FRESH.1 } else { Duration::ZERO };
        self.at.elapsed() < FRESH.0.max(as_long)
    }

    async fn of(store: &Store, map: &ResourceMap) -> Self {
        let began = Instant::now();
        let found = match timeout(LONGEST, find(store, map)).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::warn!(%error, "scraped without the database");
                None
            }
            Err(_) => {
                tracing::warn!(error = "no answer in time", "scraped without the database");
                None
            }
        };
        let at = Instant::now();
        Self { at, took: at - began, found }
    }

    fn render(&self, map: &ResourceMap) -> String {
        let registry = Registry::new();
        let make = Make::on(&registry);
        let up = make.whole("reprieve_database_up", "Whether the facts of the database could be read.");
        up.set(self.found.is_some().into());
        make.gauge("reprieve_database_read_duration_seconds", "How long that took.").set(self.took.as_secs_f64());
        make.gauge("reprieve_database_read_age_seconds", "How old it is.").set(self.at.elapsed().as_secs_f64());
        if let Some(found) = &self.found {
            found.show(&make, map);
        }
        text_of(&registry)
    }
}

async fn find(store: &Store, map: &ResourceMap) -> Result<Found, StoreError> {
    let mut conn = store.conn().await?;
    let facts = facts::read(&mut conn).await?;
    let mut bytes = Vec::new();
    for kind in map.kinds() {
        match platform::bytes_in_trash(&mut conn, kind).await {
            Ok(Some(of)) => bytes.push((kind.kind.clone(), of)),
            Ok(None) => {}
            Err(error @ StoreError::Platform { .. }) => {
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
            WITHIN.iter().for_each(|within| drop(coming.with_label_values(&[kind, within])));
            ORIGINS.iter().for_each(|origin| drop(trashed.with_label_values(&[kind, origin])));
        }
        for topic in TOPICS {
            [&rows, &due, &oldest].iter().for_each(|gauge| drop(gauge.with_label_values(&[topic])));
        }
        SCOPES.iter().for_each(|scope| drop(pauses.with_label_values(&[scope])));
        for fact in &self.facts {
            match fact {
                Fact::Open { kind, state, count, coming_due, oldest_overdue } => {
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
