//! Requests to change something, and HTTP as a whole.
//!
//! Invariant: a request is counted once, after its transaction is committed or given up. What a code of a refusal means
//! is told from [`REASONS`]; one that is not in it is no refusal.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::Make;
use crate::domain::{ids::Kind, tombstone::Tombstone};

/// Codes of refusals: the request is one, and may be carried out another time, or otherwise.
const REASONS: [&str; 11] = [
    "in_use",
    "protected",
    "held",
    "not_found",
    "not_in_trash",
    "past_return",
    "row_gone",
    "not_stuck",
    "unsafe_place",
    "retention_too_short",
    "message_id_reused",
];

/// Every route, and what is said of a path that is none.
const ROUTES: [&str; 12] = [
    "/health/live",
    "/health/ready",
    "/health/startup",
    "/metrics",
    "/v1/tombstones",
    "/v1/resources/{kind}/{id}",
    "/v1/resources/{kind}/{id}/trash",
    "/v1/resources/{kind}/{id}/restore",
    "/v1/resources/{kind}/{id}/hold",
    "/v1/resources/{kind}/{id}/release",
    "/v1/resources/{kind}/{id}/retry",
    "none",
];

/// From an hour to a month.
const WINDOWS: [f64; 9] =
    [60.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 1_209_600.0, 2_592_000.0, 7_776_000.0];

const ANSWERS: [f64; 9] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Over HTTP.
    Api,
    /// By message.
    Message,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Into the trash.
    Trash,
    /// Out of it.
    Restore,
    /// To see that something is purged.
    Purge,
    /// A hold.
    Hold,
    /// The end of one.
    Release,
    /// Another try of what is stuck.
    Retry,
    /// What cannot be read.
    Unknown,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    /// Carried out, or done before.
    Ok,
    /// Not now, for a reason.
    Refused,
    /// It can never be carried out.
    Malformed,
    /// The database was away or busy.
    Failed,
}

impl Origin {
    const ALL: [Self; 2] = [Self::Api, Self::Message];

    fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Message => "message",
        }
    }
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Trash, Self::Restore, Self::Purge, Self::Hold, Self::Release, Self::Retry, Self::Unknown];

    /// The operation of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == name)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Trash => "trash",
            Self::Restore => "restore",
            Self::Purge => "purge",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Retry => "retry",
            Self::Unknown => "unknown",
        }
    }
}

impl Result {
    const ALL: [Self; 4] = [Self::Ok, Self::Refused, Self::Malformed, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
        }
    }
}

/// Counted of requests.
pub struct Requests {
    requests: IntCounterVec,
    refusals: IntCounterVec,
    trashed: IntCounterVec,
    restored: IntCounterVec,
    window_left: HistogramVec,
    http: IntCounterVec,
    http_seconds: HistogramVec,
}

impl Requests {
    pub(super) fn new(make: &Make<'_>) -> Self {
        let this = Self {
            requests: make.counters(
                "reprieve_requests_total",
                "Requests to change something, by how they were answered.",
                &["origin", "operation", "result"],
            ),
            refusals: make.counters(
                "reprieve_refusals_total",
                "Requests refused, by the code of the refusal.",
                &["operation", "reason"],
            ),
            trashed: make.counters(
                "reprieve_tombstones_trashed_total",
                "Tombstones written, those of a cascade too.",
                &["kind", "origin"],
            ),
            restored: make.counters(
                "reprieve_tombstones_restored_total",
                "Tombstones taken back, those of a cascade too.",
                &["kind", "origin"],
            ),
            window_left: make.histograms(
                "reprieve_restore_window_left_seconds",
                "What was left of the window when something was restored.",
                &["kind"],
                &WINDOWS,
            ),
            http: make.counters(
                "reprieve_http_requests_total",
                "HTTP requests answered, by route and class of status.",
                &["route", "status"],
            ),
            http_seconds: make.histograms(
                "reprieve_http_request_duration_seconds",
                "Time from a request to its answer.",
                &["route"],
                &ANSWERS,
            ),
        };
        this.show();
        this
    }

    fn show(&self) {
        for operation in Operation::ALL {
            for (origin, result) in Origin::ALL.into_iter().flat_map(|o| Result::ALL.map(|r| (o, r))) {
                self.requests.with_label_values(&[origin.as_str(), operation.as_str(), result.as_str()]);
            }
            for reason in REASONS.into_iter().filter(|_| operation != Operation::Unknown) {
                self.refusals.with_label_values(&[operation.as_str(), reason]);
            }
        }
        for route in ROUTES {
            for status in ["2xx", "4xx", "5xx"] {
                self.http.with_label_values(&[route, status]);
            }
            self.http_seconds.with_label_values(&[route]);
        }
    }

    pub(super) fn expect(&self, kind: &Kind) {
        for origin in Origin::ALL {
            self.trashed.with_label_values(&[kind.as_str(), origin.as_str()]);
            self.restored.with_label_values(&[kind.as_str(), origin.as_str()]);
        }
        self.window_left.with_label_values(&[kind.as_str()]);
    }

    /// Counts one that was carried out.
    pub fn carried_out(&self, origin: Origin, operation: Operation) {
        self.count(origin, operation, Result::Ok);
    }

    /// Counts one that was not, by the code of its answer.
    pub fn not_carried_out(&self, origin: Origin, operation: Operation, code: &str) {
        match REASONS.into_iter().find(|reason| *reason == code) {
            Some(reason) => {
                self.refusals.with_label_values(&[operation.as_str(), reason]).inc();
                self.count(origin, operation, Result::Refused);
            }
            None if ["unavailable", "internal", "deadline_exceeded"].contains(&code) => {
                self.count(origin, operation, Result::Failed);
            }
            None => self.count(origin, operation, Result::Malformed),
        }
    }

    fn count(&self, origin: Origin, operation: Operation, result: Result) {
        self.requests.with_label_values(&[origin.as_str(), operation.as_str(), result.as_str()]).inc();
    }

    /// Counts tombstones that were written.
    pub fn trashed<'a>(&self, origin: Origin, tombstones: impl IntoIterator<Item = &'a Tombstone>) {
        for tombstone in tombstones {
            self.trashed.with_label_values(&[tombstone.resource.kind.as_str(), origin.as_str()]).inc();
        }
    }

    /// Counts tombstones that were taken back.
    pub fn restored<'a>(&self, origin: Origin, tombstones: impl IntoIterator<Item = &'a Tombstone>) {
        for tombstone in tombstones {
            let kind = tombstone.resource.kind.as_str();
            self.restored.with_label_values(&[kind, origin.as_str()]).inc();
            let left = tombstone.closed_at.map_or(0.0, |at| (tombstone.purge_after - at).as_seconds_f64());
            self.window_left.with_label_values(&[kind]).observe(left.max(0.0));
        }
    }

    /// Counts an answer over HTTP. `route` is one that the router has matched, or `none`.
    pub fn answered(&self, route: &str, status: u16, took: Duration) {
        let class = match status {
            500.. => "5xx",
            400.. => "4xx",
            _ => "2xx",
        };
        self.http.with_label_values(&[route, class]).inc();
        self.http_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}
