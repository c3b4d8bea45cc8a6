//! Purges: deliveries, what a purge came to, and the objects of its listings.
//!
//! Invariant: a delivery that was received ends in exactly one way, whatever becomes of it.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

use super::Make;
use crate::domain::{ids::Kind, location::StoreName, progress::Progress};

/// How a delivery ended.
const ENDS: [&str; 12] = [
    "purged",
    "continued",
    "blocked",
    "deferred",
    "failed",
    "stuck",
    "nothing",
    "lease_lost",
    "error",
    "panic",
    "malformed",
    "database_away",
];

const OUTCOMES: [&str; 4] = ["deleted", "absent", "failed", "unknown"];

/// From the blink of an eye to half a day.
const DURATIONS: [f64; 10] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0];

/// From a second to a month.
const LAGS: [f64; 12] =
    [1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0];

/// Who lets a stuck purge go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetriedBy {
    /// Somebody who asked.
    Request,
    /// The date until which an object was locked.
    Date,
}

impl RetriedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Date => "date",
        }
    }
}

/// Counted of purges.
pub struct Purges {
    received: IntCounter,
    ends: IntCounterVec,
    in_progress: IntGauge,
    started: IntCounterVec,
    finished: IntCounterVec,
    blocked: IntCounterVec,
    stuck: IntCounterVec,
    retried: IntCounterVec,
    seconds: HistogramVec,
    lag: HistogramVec,
    objects: IntCounterVec,
    key_retries: IntCounterVec,
    bytes_freed: IntCounterVec,
    rows_deleted: IntCounterVec,
    uploads_aborted: IntCounterVec,
}

/// A delivery that is being worked on. One that is dropped without an end was cut off.
#[must_use = "a delivery ends"]
pub struct InProgress<'a>(&'a Purges);

impl InProgress<'_> {
    /// It ended like this, one of the ways that are listed here.
    pub fn ended(self, end: &str) {
        self.0.ends.with_label_values(&[end]).inc();
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.in_progress.dec();
    }
}

impl Purges {
    pub(super) fn new(make: &Make<'_>) -> Self {
        let by_kind = |name, help| make.counters(name, help, &["kind"]);
        let ends = make.counters("reprieve_deliveries_total", "Purge tasks, by how they ended.", &["end"]);
        for end in ENDS {
            ends.with_label_values(&[end]);
        }
        Self {
            received: make.counter("reprieve_deliveries_received_total", "Purge tasks taken from the broker."),
            ends,
            in_progress: make.whole("reprieve_deliveries_in_progress", "Purge tasks being worked on."),
            started: by_kind("reprieve_purges_started_total", "Purges that passed the point of no return."),
            finished: by_kind("reprieve_purges_finished_total", "Purges that came to their end."),
            blocked: by_kind("reprieve_purges_blocked_total", "Looks at something due that found it in use."),
            stuck: by_kind("reprieve_purges_stuck_total", "Purges set aside."),
            retried: make.counters("reprieve_purges_retried_total", "Stuck purges that go on.", &["kind", "by"]),
            seconds: make.histograms(
                "reprieve_purge_duration_seconds",
                "Time from the point of no return to the end of a purge.",
                &["kind"],
                &DURATIONS,
            ),
            lag: make.histograms(
                "reprieve_purge_lag_seconds",
                "Time from the end of the window to the end of the purge.",
                &["kind"],
                &LAGS,
            ),
            objects: make.counters(
                "reprieve_objects_total",
                "Objects of listings, by what became of each in a pass.",
                &["store", "outcome"],
            ),
            key_retries: make.counters("reprieve_key_retries_total", "Keys sent again.", &["store"]),
            bytes_freed: by_kind("reprieve_freed_bytes_total", "Bytes of the objects of finished purges."),
            rows_deleted: by_kind("reprieve_rows_deleted_total", "Rows deleted by finished purges."),
            uploads_aborted: by_kind("reprieve_uploads_aborted_total", "Uploads aborted by finished purges."),
        }
    }

    pub(super) fn expect(&self, kind: &Kind) {
        let kind = kind.as_str();
        let counters = [&self.started, &self.finished, &self.blocked, &self.stuck];
        for counter in counters.into_iter().chain([&self.bytes_freed, &self.rows_deleted, &self.uploads_aborted]) {
            counter.with_label_values(&[kind]);
        }
        for by in [RetriedBy::Request, RetriedBy::Date] {
            self.retried.with_label_values(&[kind, by.as_str()]);
        }
        self.seconds.with_label_values(&[kind]);
        self.lag.with_label_values(&[kind]);
    }

    pub(super) fn expect_store(&self, store: &StoreName) {
        for outcome in OUTCOMES {
            self.objects.with_label_values(&[store.as_str(), outcome]);
        }
        self.key_retries.with_label_values(&[store.as_str()]);
    }

    /// A task was taken from the broker.
    pub fn received(&self) -> InProgress<'_> {
        self.received.inc();
        self.in_progress.inc();
        InProgress(self)
    }

    /// One passed the point of no return.
    pub fn started(&self, kind: &Kind) {
        self.started.with_label_values(&[kind.as_str()]).inc();
    }

    /// One is in use.
    pub fn blocked(&self, kind: &Kind) {
        self.blocked.with_label_values(&[kind.as_str()]).inc();
    }

    /// One was set aside.
    pub fn stuck(&self, kind: &Kind) {
        self.stuck.with_label_values(&[kind.as_str()]).inc();
    }

    /// One that was set aside goes on.
    pub fn retried(&self, kind: &Kind, by: RetriedBy) {
        self.retried.with_label_values(&[kind.as_str(), by.as_str()]).inc();
    }

    /// One came to its end, so many seconds after it began, and after its window ended.
    pub fn finished(&self, kind: &Kind, progress: &Progress, seconds: f64, lag: f64) {
        let kind = kind.as_str();
        self.finished.with_label_values(&[kind]).inc();
        self.seconds.with_label_values(&[kind]).observe(seconds);
        self.lag.with_label_values(&[kind]).observe(lag);
        self.bytes_freed.with_label_values(&[kind]).inc_by(progress.bytes_freed);
        self.rows_deleted.with_label_values(&[kind]).inc_by(progress.rows_deleted);
        self.uploads_aborted.with_label_values(&[kind]).inc_by(progress.uploads_aborted);
    }

    /// What became of objects of listings.
    pub fn objects(&self, store: &StoreName, counted: &Progress) {
        let counts = [counted.objects_deleted, counted.objects_absent, counted.objects_failed, counted.objects_unknown];
        for (outcome, count) in OUTCOMES.into_iter().zip(counts) {
            self.objects.with_label_values(&[store.as_str(), outcome]).inc_by(count);
        }
    }

    /// So many keys are sent again.
    pub fn key_retries(&self, store: &StoreName, keys: usize) {
        self.key_retries.with_label_values(&[store.as_str()]).inc_by(keys as u64);
    }
}
