//! What clients have asked of the server: a counter an operation, and the latest requests in order.
//!
//! Invariant: a request is counted once, when its signature has been checked and before any fault or any work, so a
//! test that waits for a count knows that the store has seen it. Requests with a wrong signature are not counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many requests the log remembers; `reprieve dev` runs for days.
const LOG_LENGTH: usize = 10_000;

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// The operations of the S3 API that the server has, by their names there.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the S3 API reference documents each operation under its name")]
        pub enum Operation {
            $($name,)*
            /// Any other; answered with `NotImplemented`.
            Unsupported,
        }

        impl Operation {
            pub(super) fn named(name: &str) -> Self {
                match name {
                    $(stringify!($name) => Self::$name,)*
                    _ => Self::Unsupported,
                }
            }
        }
    };
}

operations! {
    AbortMultipartUpload,
    CompleteMultipartUpload,
    CreateBucket,
    CreateMultipartUpload,
    DeleteBucket,
    DeleteObject,
    DeleteObjects,
    GetBucketVersioning,
    GetObject,
    GetObjectLegalHold,
    GetObjectLockConfiguration,
    GetObjectRetention,
    HeadBucket,
    HeadObject,
    ListBuckets,
    ListMultipartUploads,
    ListObjects,
    ListObjectsV2,
    ListObjectVersions,
    PutBucketVersioning,
    PutObject,
    PutObjectLegalHold,
    PutObjectRetention,
    UploadPart,
}

/// A request as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// What was asked.
    pub operation: Operation,
    /// Of which bucket; empty for `ListBuckets`.
    pub bucket: String,
    /// Of which object, where the address names one (that of `DeleteObjects` names none).
    pub key: Option<String>,
}

/// The requests so far.
#[derive(Debug, Default)]
pub struct Requests {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<Operation, u64>,
    log: VecDeque<LoggedRequest>,
}

impl Requests {
    /// How often an operation was asked for.
    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().counts.get(&operation).copied().unwrap_or(0)
    }

    /// How many requests there were.
    pub fn total(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// The latest requests, at most 10,000, oldest first.
    pub fn log(&self) -> Vec<LoggedRequest> {
        self.lock().log.iter().cloned().collect()
    }

    /// Forgets all.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }

    pub(super) fn note(&self, request: LoggedRequest) {
        let mut inner = self.lock();
        *inner.counts.entry(request.operation).or_default() += 1;
        if inner.log.len() == LOG_LENGTH {
            inner.log.pop_front();
        }
        inner.log.push_back(request);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counters are whole after every statement, so a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
