//! What stores are asked and answer, counted around the [`ObjectStore`] that is asked.
//!
//! Invariant: each call is counted once, also one that nobody waits for any more, and each key named in it has exactly
//! one outcome. A store's counters are found once, when it is made: a call takes no lock here, and a key costs a look at
//! its outcome.

use std::sync::Arc;

use async_trait::async_trait;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use tokio::time::Instant;

use super::{Make, raise};
use crate::{
    domain::{
        location::StoreName,
        outcome::{BatchOutcome, FailureClass, KeyOutcome, ObjectRef},
    },
    objects::{
        BucketFacts, Cursor, ObjectLock, ObjectStore, ObjectsError, Page, Permit, UnfinishedUpload, UploadPage,
        flow::Open,
    },
};

const OPERATIONS: [&str; 5] = ["list", "delete", "list_uploads", "abort_upload", "look"];
const RESULTS: [&str; 6] = ["ok", "partial", "throttled", "transient", "permanent", "dropped"];
const KEYS: [&str; 6] = ["deleted", "absent", "failed_transient", "failed_throttled", "failed_permanent", "unknown"];

/// From 5 milliseconds to a minute: a batch of 1000 was measured at 4.4 seconds on a slow store.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// A place in [`OPERATIONS`].
#[derive(Clone, Copy)]
enum Operation {
    List,
    Delete,
    ListUploads,
    AbortUpload,
    Look,
}

/// A place in [`RESULTS`].
#[derive(Clone, Copy)]
enum Said {
    Ok,
    Partial,
    Throttled,
    Transient,
    Permanent,
    Dropped,
}

/// A place in [`KEYS`].
#[derive(Clone, Copy)]
enum OfKey {
    Deleted,
    Absent,
    Transient,
    Throttled,
    Permanent,
    Unknown,
}

/// Of every store.
pub(super) struct Vectors {
    requested: IntCounterVec,
    keys: IntCounterVec,
    requests: IntCounterVec,
    seconds: HistogramVec,
    attempts: IntCounterVec,
    unlisted: IntCounterVec,
    allowed: IntGaugeVec,
    in_flight: IntGaugeVec,
    batch_size: IntGaugeVec,
    paced: GaugeVec,
    pause: GaugeVec,
}

/// Of one store.
#[derive(Debug)]
pub struct OfStore {
    requested: IntCounter,
    keys: [IntCounter; KEYS.len()],
    requests: [[IntCounter; RESULTS.len()]; OPERATIONS.len()],
    seconds: [Histogram; OPERATIONS.len()],
    attempts: IntCounter,
    unlisted: IntCounter,
}

/// Of one bucket's gate.
#[derive(Debug)]
pub struct OfGate {
    allowed: IntGauge,
    in_flight: IntGauge,
    batch_size: IntGauge,
    paced: Gauge,
    pause: Gauge,
}

impl Vectors {
    pub(super) fn new(make: &Make<'_>) -> Self {
        let place = ["store", "bucket"];
        Self {
            requested: make.counters(
                "reprieve_store_keys_requested_total",
                "Keys named in delete requests.",
                &["store"],
            ),
            keys: make.counters(
                "reprieve_store_keys_total",
                "Keys named in delete requests, by what the answer said of each.",
                &["store", "outcome"],
            ),
            requests: make.counters(
                "reprieve_store_requests_total",
                "Calls of a store, by what came of them.",
                &["store", "operation", "result"],
            ),
            seconds: make.histograms(
                "reprieve_store_request_duration_seconds",
                "How long such a call took.",
                &["store", "operation"],
                &SECONDS,
            ),
            attempts: make.counters("reprieve_store_attempts_total", "HTTP requests sent to the store.", &["store"]),
            unlisted: make.counters(
                "reprieve_store_unlisted_errors_total",
                "Errors with a code that is not known.",
                &["store"],
            ),
            allowed: make.wholes("reprieve_store_requests_allowed", "Deletes that may be in flight now.", &place),
            in_flight: make.wholes("reprieve_store_requests_in_flight", "Deletes in flight.", &place),
            batch_size: make.wholes("reprieve_store_batch_size", "Keys that a delete request may name now.", &place),
            paced: make.gauges(
                "reprieve_store_paced_keys_per_second",
                "The rate that the store was found to grant; 0: none.",
                &place,
            ),
            pause: make.gauges(
                "reprieve_store_pause_seconds",
                "For how long the store still wants to be left alone.",
                &place,
            ),
        }
    }

    pub(super) fn of(&self, store: &StoreName) -> OfStore {
        let store = store.as_str();
        OfStore {
            requested: self.requested.with_label_values(&[store]),
            keys: KEYS.map(|outcome| self.keys.with_label_values(&[store, outcome])),
            requests: OPERATIONS.map(|op| RESULTS.map(|said| self.requests.with_label_values(&[store, op, said]))),
            seconds: OPERATIONS.map(|op| self.seconds.with_label_values(&[store, op])),
            attempts: self.attempts.with_label_values(&[store]),
            unlisted: self.unlisted.with_label_values(&[store]),
        }
    }

    pub(super) fn of_gate(&self, store: &StoreName, bucket: &str) -> OfGate {
        let place = [store.as_str(), bucket];
        OfGate {
            allowed: self.allowed.with_label_values(&place),
            in_flight: self.in_flight.with_label_values(&place),
            batch_size: self.batch_size.with_label_values(&place),
            paced: self.paced.with_label_values(&place),
            pause: self.pause.with_label_values(&place),
        }
    }
}

impl OfGate {
    /// What the gate says now, where a request may have `most` keys.
    pub fn stands(&self, open: Open, most: usize) {
        let keys = open.keys_at_once.map_or(most, |keys| keys.min(most));
        self.allowed.set(open.allowed.into());
        self.in_flight.set(open.in_flight.into());
        self.batch_size.set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.paced.set(open.keys_per_second.unwrap_or(0.0));
        self.pause.set(open.closed_for.as_secs_f64());
    }
}

impl OfStore {
    /// What the client has counted by itself: HTTP requests, and errors with a code that it does not know.
    pub fn client(&self, attempts: u64, unlisted: u64) {
        raise(&self.attempts, attempts);
        raise(&self.unlisted, unlisted);
    }

    fn ask(&self, operation: Operation) -> Call<'_> {
        Call { of: self, operation, began: Instant::now(), said: Said::Dropped, unsettled: 0 }
    }

    fn ask_to_delete(&self, keys: usize) -> Call<'_> {
        self.requested.inc_by(keys as u64);
        Call { unsettled: keys as u64, ..self.ask(Operation::Delete) }
    }
}

/// A call under way. Dropped before it is answered, it counts as that, with its keys unknown.
struct Call<'a> {
    of: &'a OfStore,
    operation: Operation,
    began: Instant,
    said: Said,
    /// Keys whose outcome is not known.
    unsettled: u64,
}

impl Call<'_> {
    fn answered<T>(mut self, answer: Result<T, ObjectsError>) -> Result<T, ObjectsError> {
        self.said = match &answer {
            Ok(_) => Said::Ok,
            Err(error) => said(error.class),
        };
        answer
    }

    fn deleted(mut self, answer: BatchOutcome) -> BatchOutcome {
        let mut counts = [0u64; KEYS.len()];
        for (_, outcome) in answer.iter() {
            counts[of_key(outcome) as usize] += 1;
        }
        // one that was named twice has one outcome: its second naming stays without
        self.unsettled = self.unsettled.saturating_sub(answer.len() as u64);
        for (counter, count) in self.of.keys.iter().zip(counts) {
            counter.inc_by(count);
        }
        let of = |key: OfKey| counts[key as usize];
        let gone = of(OfKey::Deleted) + of(OfKey::Absent);
        self.said = match answer.lost_answer() {
            _ if answer.retry_after().is_some() || of(OfKey::Throttled) > 0 => Said::Throttled,
            Some(why) => said(why.class),
            None if gone == answer.len() as u64 => Said::Ok,
            None if of(OfKey::Permanent) == answer.len() as u64 => Said::Permanent,
            None if of(OfKey::Transient) == answer.len() as u64 => Said::Transient,
            None => Said::Partial,
        };
        answer
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let operation = self.operation as usize;
        self.of.keys[OfKey::Unknown as usize].inc_by(self.unsettled);
        self.of.seconds[operation].observe(self.began.elapsed().as_secs_f64());
        self.of.requests[operation][self.said as usize].inc();
    }
}

fn said(class: FailureClass) -> Said {
    match class {
        FailureClass::Transient => Said::Transient,
        FailureClass::Throttled => Said::Throttled,
        FailureClass::Permanent => Said::Permanent,
    }
}

fn of_key(outcome: &KeyOutcome) -> OfKey {
    match outcome {
        KeyOutcome::Deleted => OfKey::Deleted,
        KeyOutcome::AlreadyAbsent => OfKey::Absent,
        KeyOutcome::Failed(why) => match why.class {
            FailureClass::Transient => OfKey::Transient,
            FailureClass::Throttled => OfKey::Throttled,
            FailureClass::Permanent => OfKey::Permanent,
        },
        KeyOutcome::Unknown => OfKey::Unknown,
    }
}

/// A store that is counted.
#[derive(Debug)]
pub struct Metered<S> {
    inner: S,
    of: Arc<OfStore>,
}

impl<S> Metered<S> {
    /// Counts what `inner` is asked.
    pub fn new(inner: S, of: Arc<OfStore>) -> Self {
        Self { inner, of }
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Metered<S> {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let call = self.of.ask(Operation::List);
        call.answered(self.inner.list(bucket, prefix, after).await)
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let call = self.of.ask_to_delete(objects.len());
        call.deleted(self.inner.delete(bucket, objects).await)
    }

    async fn delete_while(&self, permit: &Permit, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let call = self.of.ask_to_delete(objects.len());
        call.deleted(self.inner.delete_while(permit, bucket, objects).await)
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        let call = self.of.ask_to_delete(objects.len());
        call.deleted(self.inner.delete_unchanged(permit, bucket, objects).await)
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        let call = self.of.ask(Operation::ListUploads);
        call.answered(self.inner.list_uploads(bucket, prefix, after).await)
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        let mut call = self.of.ask(Operation::AbortUpload);
        let outcome = self.inner.abort_upload(permit, bucket, upload).await;
        call.said = match &outcome {
            KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent => Said::Ok,
            KeyOutcome::Failed(why) => said(why.class),
            KeyOutcome::Unknown => Said::Transient,
        };
        outcome
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        let call = self.of.ask(Operation::Look);
        call.answered(self.inner.lock_of(bucket, object).await)
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        let call = self.of.ask(Operation::Look);
        call.answered(self.inner.facts(bucket).await)
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use super::*;
    use crate::{
        domain::outcome::KeyFailure,
        objects::flow::{Ceiling, Flow},
        telemetry::Metrics,
    };

    const MOST: usize = 400;

    #[tokio::test(start_paused = true)]
    async fn the_batch_size_in_force_falls_with_what_the_store_grants_at_once_and_is_never_above_the_configured_one() {
        let ceiling = Ceiling { concurrency: NonZeroU32::MIN, objects_per_second: None };
        let (gate, metrics) = (Flow::new(ceiling).gate("b"), Metrics::new());
        for (store, most) in [("main", MOST), ("small", 7)] {
            let (of, gate) = (metrics.of_gate(&StoreName::parse(store).expect("a name"), "b"), gate.clone());
            metrics.at_each_scrape(move || of.stands(gate.open(), most));
        }
        let shown = |store: &str| {
            let (series, text) =
                (format!("reprieve_store_batch_size{{bucket=\"b\",store=\"{store}\"}} "), metrics.render());
            let value = text.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned);
            value.unwrap_or_else(|| panic!("no {series} in {text}"))
        };
        assert_eq!((shown("main"), shown("small")), ("400".into(), "7".into()), "before any answer");

        let objects: Vec<_> = (0..MOST).map(|n| ObjectRef { key: n.to_string(), version: None }).collect();
        let (code, message) = ("SlowDown".into(), String::new());
        let refused = KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Throttled });
        let mut requests = 0;
        while gate.keys_at_once(MOST) == MOST {
            requests += 1;
            assert!(requests < 100, "refused again and again, and still asked for as many");
            match gate.enter(MOST).await {
                Ok(pass) => pass.heard(&BatchOutcome::uniform(&objects, &refused)),
                Err(closed) => tokio::time::sleep(closed.wait + Duration::from_millis(1)).await,
            }
        }
        assert_eq!((shown("main"), shown("small")), ((MOST / 2).to_string(), "7".into()));
    }
}
