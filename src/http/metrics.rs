//! `/metrics`: the process's counters, and facts of the database as they are at the scrape.
//!
//! Invariant: a scrape always gets an answer. Without the database it has the counters and `reprieve_database_up 0`,
//! and no fact is shown that was not read just now. Every kind has a series for every open state, zeros too, so that a
//! series does not end when its last tombstone closes.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::{Encoder, Gauge, GaugeVec, Opts, Registry, TextEncoder, core::Collector};
use tokio::time::timeout;

use super::{Shared, health::PROBE};
use crate::{
    domain::{map::ResourceMap, state::State as Stands},
    store::{
        Store, StoreError, outbox,
        tombstones::{self, Open},
    },
};

/// What was read.
struct Facts {
    /// By kind and state.
    open: Vec<Open>,
    /// Rows, rows that are due, and for how many seconds the oldest of those has been.
    outbox: (i64, i64, f64),
}

/// `GET /metrics`.
pub(super) async fn scrape(State(api): State<Shared>) -> Response {
    let facts = match timeout(PROBE, read(api.trash.store())).await {
        Ok(Ok(facts)) => Some(facts),
        Ok(Err(error)) => {
            tracing::warn!(%error, "scraped without the database");
            None
        }
        Err(_) => {
            tracing::warn!(error = "no answer in time", "scraped without the database");
            None
        }
    };
    let text = api.metrics.render() + &render(facts.as_ref(), api.trash.map());
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn read(store: &Store) -> Result<Facts, StoreError> {
    let mut conn = store.conn().await?;
    Ok(Facts { open: tombstones::count_open(&mut conn).await?, outbox: outbox::depth(&mut conn).await? })
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a count beyond 2^53 is none")]
fn render(facts: Option<&Facts>, map: &ResourceMap) -> String {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, value: f64| {
        let gauge = register(&registry, Gauge::new(name, help).expect("the names are valid"));
        gauge.set(value);
    };
    gauge("reprieve_database_up", "Whether the database answered this scrape.", f64::from(u8::from(facts.is_some())));
    if let Some(Facts { open, outbox: (rows, due, oldest) }) = facts {
        gauge("reprieve_outbox_rows", "Messages in the outbox, those for later too.", *rows as f64);
        gauge("reprieve_outbox_due_rows", "Messages in the outbox that are due.", *due as f64);
        gauge("reprieve_outbox_oldest_due_seconds", "How long the oldest due message has been due.", *oldest);
        let opts = Opts::new("reprieve_open_tombstones", "Tombstones that are not closed, by kind and state.");
        let open_gauges = GaugeVec::new(opts, &["kind", "state"]).expect("the names are valid");
        let open_gauges = register(&registry, open_gauges);
        let help = "How long ago the window of the tombstone ended that is overdue longest, by kind and state.";
        let opts = Opts::new("reprieve_oldest_overdue_seconds", help);
        let overdue = GaugeVec::new(opts, &["kind", "state"]).expect("the names are valid");
        let overdue = register(&registry, overdue);
        for ((kind, state), (count, oldest)) in with_zeros(open, map) {
            open_gauges.with_label_values(&[kind, state]).set(count as f64);
            overdue.with_label_values(&[kind, state]).set(oldest);
        }
    }
    let mut text = Vec::new();
    // writing into memory does not fail
    let _ = TextEncoder::new().encode(&registry.gather(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// By kind and state: how many, and for how many seconds the oldest has been due.
fn with_zeros<'a>(open: &'a [Open], map: &'a ResourceMap) -> BTreeMap<(&'a str, &'a str), (i64, f64)> {
    let states = || Stands::ALL.into_iter().filter(|state| state.is_open()).map(Stands::as_str);
    let zeros = map.kinds().flat_map(|kind| states().map(|state| ((kind.kind.as_str(), state), (0, 0.0))));
    let found = open.iter().map(|of| ((of.kind.as_str(), of.state.as_str()), (of.count, of.oldest_overdue)));
    zeros.chain(found).collect()
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}
