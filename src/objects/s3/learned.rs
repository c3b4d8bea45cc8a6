//! What a store has been seen to take: which checksum of a batch, how many keys in it, whether batches at all, and in
//! which of its buckets conditions.
//!
//! Invariant: what is learned here changes how objects are named to the store, and never which, nor what an answer means.
//! It is of one client, and is forgotten with it. A setting is heeded and not learned over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::settings::{ChecksumPolicy, DeletePolicy, S3Settings};
use crate::objects::MAX_BATCH;

/// Batches in a row that a store answers with a server error, each tried several times by the SDK, before single
/// deletes are tried in their place.
const LASTING: u32 = 3;

/// A size that timed out is come back to by a sixteenth with each batch of the largest size that is answered.
const GROWTH: usize = 16;

/// What protects the body of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32,
    ContentMd5,
    None,
}

/// Which conditions a store heeds in deletes in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conditions {
    None,
    /// In single deletes.
    Single,
    /// In batches as well.
    Batches,
}

#[derive(Debug)]
pub(super) struct Learned {
    checksum: ChecksumPolicy,
    delete: DeletePolicy,
    /// It has refused CRC32 and taken the other.
    takes_md5: AtomicBool,
    /// It has said that it has no batches.
    no_batches: AtomicBool,
    /// What it has shown of conditions, by bucket: one server may serve buckets of different kinds. As many as the
    /// configuration lists, since no other is ever reached.
    conditions: Mutex<HashMap<String, Conditions>>,
    /// Server errors in a row for batches.
    in_vain: AtomicU32,
    /// Keys in a batch that it can be expected to answer in time.
    most: AtomicUsize,
}

impl Learned {
    pub(super) fn new(settings: &S3Settings) -> Self {
        Self {
            checksum: settings.checksum,
            delete: settings.delete,
            takes_md5: AtomicBool::new(false),
            no_batches: AtomicBool::new(false),
            conditions: Mutex::default(),
            in_vain: AtomicU32::new(0),
            most: AtomicUsize::new(MAX_BATCH),
        }
    }

    pub(super) fn checksum(&self) -> Checksum {
        match self.checksum {
            ChecksumPolicy::Auto if self.takes_md5.load(Ordering::Relaxed) => Checksum::ContentMd5,
            ChecksumPolicy::Auto | ChecksumPolicy::Crc32 => Checksum::Crc32,
            ChecksumPolicy::ContentMd5 => Checksum::ContentMd5,
            ChecksumPolicy::None => Checksum::None,
        }
    }

    /// How deletes are sent, in words.
    pub(super) fn describe(&self) -> &'static str {
        match (self.is_single(), self.checksum, self.checksum()) {
            (true, ..) => "one by one",
            (false, ChecksumPolicy::Auto, Checksum::Crc32) => {
                "in batches with CRC32, or Content-MD5 where that is refused"
            }
            (false, _, Checksum::Crc32) => "in batches with CRC32",
            (false, _, Checksum::ContentMd5) => "in batches with Content-MD5",
            (false, _, Checksum::None) => "in batches without a checksum",
        }
    }

    /// What to try where `refused` was refused.
    pub(super) fn instead_of(&self, refused: Checksum) -> Option<Checksum> {
        match (self.checksum, refused) {
            (ChecksumPolicy::Auto, Checksum::Crc32) => Some(Checksum::ContentMd5),
            (ChecksumPolicy::Auto, Checksum::ContentMd5) => Some(Checksum::Crc32),
            _ => None,
        }
    }

    /// Whether to name keys one by one from the start.
    pub(super) fn is_single(&self) -> bool {
        self.delete == DeletePolicy::Single || self.no_batches.load(Ordering::Relaxed)
    }

    /// Whether keys may go one by one where a batch does not.
    pub(super) fn may_go_singly(&self) -> bool {
        self.delete != DeletePolicy::Batch
    }

    /// The most keys for the next batch.
    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// It has answered a batch of so many keys.
    pub(super) fn answered(&self, checksum: Checksum, keys: usize) {
        self.in_vain.store(0, Ordering::Relaxed);
        self.takes_md5.store(checksum == Checksum::ContentMd5, Ordering::Relaxed);
        let grow = |most: usize| (keys >= most && most < MAX_BATCH).then(|| (most + most / GROWTH + 1).min(MAX_BATCH));
        let _ = self.most.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
    }

    /// It has not answered a batch of so many keys in time.
    pub(super) fn timed_out(&self, keys: usize) {
        self.most.fetch_min((keys / 2).max(1), Ordering::Relaxed);
    }

    /// It has answered a batch with a server error; whether that has been so for long.
    pub(super) fn failed(&self) -> bool {
        self.in_vain.fetch_add(1, Ordering::Relaxed) + 1 >= LASTING
    }

    /// Which conditions it heeds in the bucket, once it was asked.
    pub(super) fn conditions(&self, bucket: &str) -> Option<Conditions> {
        self.by_bucket().get(bucket).copied()
    }

    /// It has shown which conditions it heeds in the bucket. Who asked first is believed.
    pub(super) fn heeds(&self, bucket: &str, conditions: Conditions) {
        self.by_bucket().entry(bucket.to_owned()).or_insert(conditions);
    }

    /// Each step is a single change, so a poisoned lock is as good as any.
    fn by_bucket(&self) -> MutexGuard<'_, HashMap<String, Conditions>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has no batches.
    pub(super) fn has_no_batches(&self) {
        if !self.no_batches.swap(true, Ordering::Relaxed) {
            tracing::info!("store takes no batches, keys are deleted one by one from here on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_times_out_is_halved_and_grows_again_slowly() {
        let learned = Learned::new(&S3Settings::new("eu"));
        learned.timed_out(1000);
        learned.timed_out(500);
        assert_eq!(learned.most(), 250);
        learned.answered(Checksum::Crc32, 100);
        assert_eq!(learned.most(), 250, "a small one says nothing about a large one");
        learned.answered(Checksum::Crc32, 250);
        assert_eq!(learned.most(), 266);
        (0..100).for_each(|_| learned.answered(Checksum::Crc32, learned.most()));
        assert_eq!(learned.most(), MAX_BATCH);
        learned.timed_out(1);
        assert_eq!(learned.most(), 1, "never none");
    }

    #[test]
    fn a_setting_is_not_learned_over() {
        for (policy, checksum) in [
            (ChecksumPolicy::Crc32, Checksum::Crc32),
            (ChecksumPolicy::ContentMd5, Checksum::ContentMd5),
            (ChecksumPolicy::None, Checksum::None),
        ] {
            let learned = Learned::new(&S3Settings { checksum: policy, ..S3Settings::new("eu") });
            assert_eq!((learned.checksum(), learned.instead_of(checksum)), (checksum, None));
        }
        let learned = Learned::new(&S3Settings::new("eu"));
        assert_eq!(learned.instead_of(learned.checksum()), Some(Checksum::ContentMd5));
        learned.answered(Checksum::ContentMd5, 1);
        assert_eq!(learned.checksum(), Checksum::ContentMd5);
    }
}
