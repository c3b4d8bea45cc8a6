//! Counters of what this process did. Facts of the database are read when they are asked for and are not kept here.
//!
//! Invariant: no label holds an id, so the number of series is that of kinds, stores and outcomes.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, GenericCounter},
};

use crate::domain::{ids::Kind, location::StoreName, progress::Progress};

/// The registry and its counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    objects: IntCounterVec,
    key_retries: IntCounterVec,
    slices: IntCounterVec,
    purges: IntCounterVec,
    purge_seconds: HistogramVec,
    bytes_freed: IntCounterVec,
    rows_deleted: IntCounterVec,
    requests: IntCounterVec,
    dead_letters: IntCounterVec,
    published: IntCounter,
    unpublished: IntCounter,
    swept: IntCounter,
    queue_messages: IntGaugeVec,
    reconnects: IntCounterVec,
    http_requests: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let registry = Registry::new();
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("the names are valid");
            register(&registry, counters)
        };
        let plain =
            |name: &str, help: &str| register(&registry, GenericCounter::new(name, help).expect("the names are valid"));
        // a gauge without labels would say 0 where nobody has looked
        let queue_messages = Opts::new("reprieve_queue_messages", "Messages waiting, when this relay last looked.");
        let queue_messages = IntGaugeVec::new(queue_messages, &["queue"]).expect("the names are valid");
        let buckets = vec![0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0];
        let seconds = HistogramOpts::new(
            "reprieve_purge_duration_seconds",
            "Time from the point of no return to the end of a purge.",
        )
        .buckets(buckets);
        let purge_seconds = HistogramVec::new(seconds, &["kind"]).expect("the names are valid");
        Self {
            objects: labelled(
                "reprieve_objects_total",
                "Objects asked to be deleted, by outcome.",
                &["store", "outcome"],
            ),
            key_retries: labelled("reprieve_key_retries_total", "Keys that were tried again.", &["store"]),
            slices: labelled("reprieve_deliveries_total", "Purge deliveries, by how they ended.", &["end"]),
            purges: labelled("reprieve_purges_total", "Purges that came to their end.", &["kind"]),
            purge_seconds: register(&registry, purge_seconds),
            bytes_freed: labelled("reprieve_freed_bytes_total", "Bytes of the objects of finished purges.", &["kind"]),
            rows_deleted: labelled("reprieve_rows_deleted_total", "Rows deleted by finished purges.", &["kind"]),
            requests: labelled("reprieve_requests_total", "Requests by message, by result.", &["op", "result"]),
            dead_letters: labelled("reprieve_dead_letters_total", "Messages set aside.", &["queue"]),
            published: plain("reprieve_published_total", "Messages that the broker confirmed."),
            unpublished: plain("reprieve_publish_failures_total", "Messages that the broker did not take."),
            swept: plain("reprieve_swept_total", "Tasks that were lost and written again."),
            queue_messages: register(&registry, queue_messages),
            reconnects: labelled("reprieve_reconnects_total", "Connections to the broker made anew.", &["role"]),
            http_requests: labelled(
                "reprieve_http_requests_total",
                "HTTP requests, by route and status.",
                &["method", "route", "status"],
            ),
            registry,
        }
    }

    pub(crate) fn count_objects(&self, store: &StoreName, counted: &Progress) {
        for (outcome, count) in [
            ("deleted", counted.objects_deleted),
            ("absent", counted.objects_absent),
            ("failed", counted.objects_failed),
            ("unknown", counted.objects_unknown),
        ] {
            self.objects.with_label_values(&[store.as_str(), outcome]).inc_by(count);
        }
    }

    pub(crate) fn key_retries(&self, store: &StoreName, keys: usize) {
        self.key_retries.with_label_values(&[store.as_str()]).inc_by(keys as u64);
    }

    pub(crate) fn slice(&self, end: &str) {
        self.slices.with_label_values(&[end]).inc();
    }

    pub(crate) fn purged(&self, kind: &Kind, progress: &Progress, seconds: f64) {
        self.purges.with_label_values(&[kind.as_str()]).inc();
        self.purge_seconds.with_label_values(&[kind.as_str()]).observe(seconds);
        self.bytes_freed.with_label_values(&[kind.as_str()]).inc_by(progress.bytes_freed);
        self.rows_deleted.with_label_values(&[kind.as_str()]).inc_by(progress.rows_deleted);
    }

    pub(crate) fn request(&self, op: &str, result: &str) {
        self.requests.with_label_values(&[op, result]).inc();
    }

    pub(crate) fn dead_letter(&self, queue: &str) {
        self.dead_letters.with_label_values(&[queue]).inc();
    }

    pub(crate) fn published(&self, messages: usize) {
        self.published.inc_by(messages as u64);
    }

    pub(crate) fn unpublished(&self) {
        self.unpublished.inc();
    }

    pub(crate) fn swept(&self, tasks: usize) {
        self.swept.inc_by(tasks as u64);
    }

    pub(crate) fn tasks_waiting(&self, messages: u64) {
        self.queue_messages.with_label_values(&["purge"]).set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    pub(crate) fn reconnect(&self, role: &str) {
        self.reconnects.with_label_values(&[role]).inc();
    }

    pub(crate) fn http_request(&self, method: &str, route: &str, status: u16) {
        self.http_requests.with_label_values(&[method, route, &status.to_string()]).inc();
    }

    /// In Prometheus's text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // writing into memory does not fail
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}
