//! Object storage as Reprieve sees it: list below a prefix, delete by name, abort unfinished uploads, look at a bucket.
//!
//! Invariant: nothing here deletes by prefix or by pattern. A delete names its objects one by one and answers with one
//! outcome for each. What a prefix holds is known from a listing alone.

pub(crate) mod error;
pub mod faulty;
pub mod flow;
pub mod memory;
pub mod s3;
pub mod stores;

use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;

use crate::domain::outcome::{BatchOutcome, EntryKind, FailureClass, KeyFailure, KeyOutcome, ObjectRef, RetryAfter};

/// The most keys that one DeleteObjects request may name (S3 API reference, DeleteObjects).
pub const MAX_BATCH: usize = 1000;

/// One object, or one version or delete marker of it, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// What to name in a delete.
    pub object: ObjectRef,
    /// Bytes; 0 for a delete marker.
    pub size: u64,
    /// What it is.
    pub kind: EntryKind,
}

impl ObjectEntry {
    /// Where a listing goes on after it.
    pub fn cursor(&self) -> Cursor {
        Cursor { key: self.object.key.clone(), version: self.object.version.clone() }
    }
}

/// Where a listing goes on: the last entry that has been seen, which may have been deleted since. Holds in another
/// process and on another day.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// The last key seen.
    pub key: String,
    /// The last version of it seen, where versions are listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A page of a listing, at most [`MAX_BATCH`] entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the store's order: most sort by key, bytewise (SeaweedFS by path, Express buckets not at all),
    /// and show the versions of a key together. May be empty although more follow.
    pub entries: Vec<ObjectEntry>,
    /// Where to go on; `None` when the store says that this was the last page.
    pub next: Option<Cursor>,
}

/// A multipart upload that was begun and neither completed nor aborted. Its parts are stored, and no listing of objects
/// shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The key of the object that it would become.
    pub key: String,
    /// Its id; a key can have several uploads.
    pub id: String,
}

/// A page of unfinished uploads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadPage {
    /// In the store's order. May be empty although more follow.
    pub uploads: Vec<UnfinishedUpload>,
    /// Where to go on: a key, and an upload's id in place of a version. `None` when this was the last page.
    pub next: Option<Cursor>,
}

/// Whether a bucket keeps old versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// Never enabled: one object a key.
    Off,
    /// Enabled, or suspended with versions left over: every version and delete marker has to go.
    Kept,
}

/// How strictly a version is kept until a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Who has the right may bypass it, and says so in the request.
    Governance,
    /// Nobody may.
    Compliance,
}

/// Until when a version is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How strictly.
    pub mode: LockMode,
    /// The first moment at which it may be deleted.
    pub until: OffsetDateTime,
}

/// What keeps a version from being deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectLock {
    /// Its retention; the date may have passed.
    pub retention: Option<Retention>,
    /// Whether it is kept until somebody lifts the hold.
    pub legal_hold: bool,
}

/// How long every new version of a bucket is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRetention {
    /// How strictly.
    pub mode: LockMode,
    /// For how many days; a year is told as 365.
    pub days: u32,
}

/// Whether the unfinished uploads of a bucket can be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadsListed {
    /// They can.
    Yes,
    /// The store does not offer it, and is taken to have none.
    NotOffered,
    /// It denies it, for this reason: a purge would not come to its end.
    Denied(String),
}

/// What `reprieve check` shows of a bucket. Nothing is written or deleted to find it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketFacts {
    /// Whether old versions are kept.
    pub versioning: Versioning,
    /// Whether object lock is on: locked objects cannot be purged before their date. `None`: the store does not say.
    pub object_lock: Option<bool>,
    /// The lock of every new version, where the bucket has one.
    pub default_retention: Option<DefaultRetention>,
    /// Whether unfinished uploads can be listed.
    pub uploads: UploadsListed,
    /// Whether listings come url-encoded, so that keys which XML cannot carry can be listed.
    pub url_encoded: bool,
    /// How deletes are sent, by the settings and by what was learned so far.
    pub deletes: &'static str,
}

/// A request to the store that failed as a whole. Told with what came first: a list shows the beginning of a reason.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {code}{}, at s3://{bucket}/{prefix}", if message.is_empty() { String::new() } else { format!(": {message}") })]
pub struct ObjectsError {
    /// The S3 operation, such as `ListObjectsV2`.
    pub operation: &'static str,
    /// The bucket asked.
    pub bucket: String,
    /// The prefix or key asked, where there is one.
    pub prefix: String,
    /// The store's code, such as `NoSuchBucket`; `Timeout` or `Connection` where no answer came.
    pub code: String,
    /// The store's message.
    pub message: String,
    /// How to meet it.
    pub class: FailureClass,
    /// The time for which the store asks to be left alone, where it names one.
    pub retry_after: Option<RetryAfter>,
}

/// The code of objects that were not tried: the time for one call was used up, or the caller's permit was over.
pub const NOT_ATTEMPTED: &str = "NotAttempted";

/// What is said of objects whose permit was over.
const PERMIT_OVER: &str = "the right to delete it was no longer certain";

/// Says, right before a request that destroys leaves, whether it still may.
#[derive(Clone)]
pub struct Permit(Arc<dyn Fn() -> bool + Send + Sync>);

impl Permit {
    /// Holds for as long as `holds` says so.
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    /// Always holds.
    pub fn unlimited() -> Self {
        Self::new(|| true)
    }

    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Permit").field(&self.holds()).finish()
    }
}

fn not_attempted(message: &str) -> KeyOutcome {
    let (code, message) = (NOT_ATTEMPTED.to_owned(), message.to_owned());
    KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Transient })
}

/// The code of objects that were to be deleted only while they are unchanged, where nobody can tell.
pub const NO_CONDITIONS: &str = "NoConditionalDelete";

fn no_conditions() -> KeyOutcome {
    let message = "the store has not shown that it heeds ETags in deletes, or keeps versions: whether it is unchanged cannot be told";
    let (code, message) = (NO_CONDITIONS.to_owned(), message.to_owned());
    KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Permanent })
}

/// A store of objects. All implementations pass `tests/contract/objects.rs`.
#[async_trait]
pub trait ObjectStore: Send + Sync + std::fmt::Debug {
    /// One page of what lies below `prefix` (keys that start with it, bytewise, and no others), after `after`.
    /// On a bucket that keeps versions, all versions and delete markers; else the objects.
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError>;

    /// Deletes the named objects and says what became of each: one outcome for each different object, in the order of
    /// asking. A request that failed as a whole shows as the same outcome for every key: `Failed` where the store
    /// surely did nothing, `Unknown` where the answer was lost, with the reason in [`BatchOutcome::lost_answer`]. A
    /// store that asks to be left alone for a time says so in [`BatchOutcome::retry_after`]. Does not retry keys; that is
    /// the caller's, who can stop between. More than [`MAX_BATCH`] objects take several requests, one after another; a
    /// caller that wants to stop in between asks for no more than that.
    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome;

    /// As [`ObjectStore::delete`], but sends nothing on its own account, no further request and no retry, once `permit`
    /// has ended. What was not sent is `Failed` with [`NOT_ATTEMPTED`]; what was to be sent again is `Unknown`. For a
    /// store whose `delete` sends several requests, asking once is not enough.
    async fn delete_while(&self, permit: &Permit, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        if permit.holds() {
            self.delete(bucket, objects).await
        } else {
            BatchOutcome::uniform(objects, &not_attempted(PERMIT_OVER))
        }
    }

    /// As [`ObjectStore::delete_while`], but each object only while it has this ETag (without its quotes). One that has
    /// another fails with `PreconditionFailed`; some stores say that of one that is absent, too. Sends nothing to a store
    /// that does not heed such conditions, and no version: what is not compared is not deleted.
    async fn delete_unchanged(&self, _: &Permit, _bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        let objects: Vec<ObjectRef> = objects.iter().map(|(object, _)| object.clone()).collect();
        BatchOutcome::uniform(&objects, &no_conditions())
    }

    /// One page of the uploads below `prefix` that are neither completed nor aborted, after `after`. A store that does not
    /// offer the operation has none.
    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError>;

    /// Aborts an upload, which frees its parts. Sends nothing once `permit` has ended. One that has ended meanwhile, either
    /// way, is absent: it may be an object by now.
    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome;

    /// What keeps the object from being deleted, as far as the store tells. Where it has no locks, nothing does.
    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError>;

    /// Looks at the bucket: fails when it does not exist or may not be read.
    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError>;
}

#[async_trait]
impl<S: ObjectStore + ?Sized> ObjectStore for Arc<S> {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        (**self).list(bucket, prefix, after).await
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        (**self).delete(bucket, objects).await
    }

    async fn delete_while(&self, permit: &Permit, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        (**self).delete_while(permit, bucket, objects).await
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        (**self).delete_unchanged(permit, bucket, objects).await
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        (**self).list_uploads(bucket, prefix, after).await
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        (**self).abort_upload(permit, bucket, upload).await
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        (**self).lock_of(bucket, object).await
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        (**self).facts(bucket).await
    }
}
