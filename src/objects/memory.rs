//! A test double: objects in memory, ordered as S3 orders them, with versions where a bucket keeps them.
//!
//! Invariant: passes the same contract as the real stores. Not for production: nothing survives the process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use time::OffsetDateTime;

use super::{
    BucketFacts, Cursor, MAX_BATCH, ObjectEntry, ObjectLock, ObjectStore, ObjectsError, PERMIT_OVER, Page, Permit,
    UnfinishedUpload, UploadPage, UploadsListed, Versioning, no_conditions, not_attempted,
};
use crate::domain::outcome::{BatchOutcome, EntryKind, FailureClass, KeyFailure, KeyOutcome, ObjectRef, distinct};

/// Buckets in memory.
#[derive(Debug)]
pub struct MemoryStore {
    buckets: Mutex<HashMap<String, Bucket>>,
    page: usize,
}

#[derive(Debug)]
struct Bucket {
    versioning: Versioning,
    /// Of each key its versions, newest first; exactly one, without an id, where none are kept.
    keys: BTreeMap<String, Vec<Version>>,
    /// Uploads that nobody has finished, by key and id.
    uploads: BTreeSet<(String, String)>,
    /// By key, of every version of it.
    locks: HashMap<String, ObjectLock>,
    /// The source of the ids of versions and uploads.
    written: u64,
}

#[derive(Debug, Clone)]
struct Version {
    id: Option<String>,
    size: u64,
    is_marker: bool,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { buckets: Mutex::default(), page: MAX_BATCH }
    }
}

impl MemoryStore {
    /// No buckets, pages of [`MAX_BATCH`].
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with pages of `page` entries (at least one), so that a test can page with few objects.
    pub fn with_page(mut self, page: usize) -> Self {
        self.page = page.clamp(1, MAX_BATCH);
        self
    }

    /// The same with an empty bucket.
    pub fn with_bucket(self, name: &str, versioning: Versioning) -> Self {
        self.make_bucket(name, versioning);
        self
    }

    /// Makes an empty bucket, in place of one of this name.
    pub fn make_bucket(&self, name: &str, versioning: Versioning) {
        self.lock().insert(name.to_owned(), Bucket::new(versioning));
    }

    /// Writes an object; a new version of it where the bucket keeps versions. The bucket is made when it is missing.
    pub fn put(&self, bucket: &str, key: &str, size: u64) {
        let mut buckets = self.lock();
        let bucket = buckets.entry(bucket.to_owned()).or_insert_with(|| Bucket::new(Versioning::Off));
        bucket.write(key, size, false);
    }

    /// Begins an upload in a bucket that is there; gives back its id.
    pub fn begin_upload(&self, bucket: &str, key: &str) -> Option<String> {
        let mut buckets = self.lock();
        let bucket = buckets.get_mut(bucket)?;
        bucket.written += 1;
        let id = format!("u{:012}", bucket.written);
        bucket.uploads.insert((key.to_owned(), id.clone()));
        Some(id)
    }

    /// Makes objects of all uploads below `prefix`, as their writers would.
    pub fn complete_uploads(&self, bucket: &str, prefix: &str, size: u64) {
        let mut buckets = self.lock();
        let Some(bucket) = buckets.get_mut(bucket) else { return };
        let done: Vec<_> = bucket.uploads.iter().filter(|(key, _)| key.starts_with(prefix)).cloned().collect();
        for upload in done {
            bucket.write(&upload.0, size, false);
            bucket.uploads.remove(&upload);
        }
    }

    /// Locks every version of a key, or with the default lock frees them.
    pub fn lock_key(&self, bucket: &str, key: &str, lock: ObjectLock) {
        if let Some(bucket) = self.lock().get_mut(bucket) {
            bucket.locks.insert(key.to_owned(), lock);
        }
    }

    /// How many uploads nobody has finished in the bucket.
    pub fn uploads(&self, bucket: &str) -> usize {
        self.lock().get(bucket).map_or(0, |bucket| bucket.uploads.len())
    }

    /// How many objects the bucket holds, versions and delete markers counted one by one.
    pub fn count(&self, bucket: &str) -> usize {
        self.lock().get(bucket).map_or(0, |bucket| bucket.keys.values().map(Vec::len).sum())
    }

    /// The keys of a bucket, in their order.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.lock().get(bucket).map_or_else(Vec::new, |bucket| bucket.keys.keys().cloned().collect())
    }

    /// A panic while the lock is held leaves whole objects behind, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn new(versioning: Versioning) -> Self {
        Self { versioning, keys: BTreeMap::new(), uploads: BTreeSet::new(), locks: HashMap::new(), written: 0 }
    }

    fn write(&mut self, key: &str, size: u64, is_marker: bool) {
        self.written += 1;
        let versions = self.keys.entry(key.to_owned()).or_default();
        match self.versioning {
            Versioning::Off => *versions = vec![Version { id: None, size, is_marker }],
            Versioning::Kept => {
                versions.insert(0, Version { id: Some(format!("v{:012}", self.written)), size, is_marker });
            }
        }
    }

    fn lock_of(&self, key: &str) -> ObjectLock {
        self.locks.get(key).copied().unwrap_or_default()
    }

    fn delete(&mut self, object: &ObjectRef) -> KeyOutcome {
        let ObjectLock { retention, legal_hold } = self.lock_of(&object.key);
        let is_kept = legal_hold || retention.is_some_and(|retention| retention.until > OffsetDateTime::now_utc());
        if is_kept && (self.versioning == Versioning::Off || object.version.is_some()) {
            let (code, message) = ("AccessDenied".to_owned(), "object protected by object lock".to_owned());
            return KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Permanent });
        }
        match (self.versioning, object.version.as_deref()) {
            (Versioning::Off, None | Some("null")) => {
                self.keys.remove(&object.key);
            }
            (Versioning::Kept, None) => self.write(&object.key, 0, true),
            (_, Some(id)) => {
                let Some(versions) = self.keys.get_mut(&object.key) else { return KeyOutcome::AlreadyAbsent };
                let before = versions.len();
                versions.retain(|version| version.id.as_deref() != Some(id));
                let absent = versions.len() == before;
                if versions.is_empty() {
                    self.keys.remove(&object.key);
                }
                if absent {
                    return KeyOutcome::AlreadyAbsent;
                }
            }
        }
        KeyOutcome::Deleted
    }

    fn delete_unchanged(&mut self, object: &ObjectRef, etag: &str) -> KeyOutcome {
        if object.version.is_some() {
            return no_conditions();
        }
        match self.keys.get(&object.key).and_then(|versions| versions.first()).filter(|version| !version.is_marker) {
            Some(current) if etag_of(current.size) == etag => self.delete(object),
            // of what is absent as well, as SeaweedFS has it
            Some(_) | None => {
                let (code, message) = ("PreconditionFailed".to_owned(), "it has another ETag".to_owned());
                KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Permanent })
            }
        }
    }

    /// Everything below `prefix` after `after`, in order. A cursor without a version lies after all of its key.
    fn below<'a>(&'a self, prefix: &'a str, after: Option<&'a Cursor>) -> impl Iterator<Item = ObjectEntry> + 'a {
        let keys = self.keys.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix));
        let entries =
            keys.flat_map(|(key, versions)| versions.iter().enumerate().map(move |(age, version)| (key, age, version)));
        let entries = entries.filter(move |(key, _, version)| {
            let Some(after) = after else { return true };
            // Ids grow with time, so this holds when the cursor's own version has been deleted meanwhile.
            **key > after.key || (**key == after.key && after.version.is_some() && version.id < after.version)
        });
        entries.map(|(key, age, version)| ObjectEntry {
            object: ObjectRef { key: key.clone(), version: version.id.clone() },
            size: version.size,
            kind: match (version.is_marker, age) {
                (true, _) => EntryKind::Marker,
                (false, 0) => EntryKind::Current,
                (false, _) => EntryKind::Older,
            },
        })
    }
}

/// Objects here have no content: their size stands for it.
pub fn etag_of(size: u64) -> String {
    format!("{size:032x}")
}

fn no_such_bucket(operation: &'static str, bucket: &str) -> ObjectsError {
    ObjectsError {
        retry_after: None,
        operation,
        bucket: bucket.to_owned(),
        prefix: String::new(),
        code: "NoSuchBucket".to_owned(),
        message: "the bucket does not exist".to_owned(),
        class: FailureClass::Permanent,
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| no_such_bucket("List", bucket))?;
        let mut entries: Vec<_> = found.below(prefix, after).take(self.page + 1).collect();
        let more = entries.len() > self.page;
        entries.truncate(self.page);
        let next = entries
            .last()
            .filter(|_| more)
            .map(|last| Cursor { key: last.object.key.clone(), version: last.object.version.clone() });
        Ok(Page { entries, next })
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let mut buckets = self.lock();
        let Some(found) = buckets.get_mut(bucket) else {
            let ObjectsError { code, message, class, .. } = no_such_bucket("Delete", bucket);
            return BatchOutcome::uniform(objects, &KeyOutcome::Failed(KeyFailure { code, message, class }));
        };
        let asked = distinct(objects);
        let outcomes: Vec<_> = asked.iter().map(|object| (object.clone(), found.delete(object))).collect();
        BatchOutcome::reconcile(&asked, [], outcomes)
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        let asked: Vec<ObjectRef> = objects.iter().map(|(object, _)| object.clone()).collect();
        if !permit.holds() {
            return BatchOutcome::uniform(&asked, &not_attempted(PERMIT_OVER));
        }
        let mut buckets = self.lock();
        let Some(found) = buckets.get_mut(bucket) else {
            let ObjectsError { code, message, class, .. } = no_such_bucket("Delete", bucket);
            return BatchOutcome::uniform(&asked, &KeyOutcome::Failed(KeyFailure { code, message, class }));
        };
        let outcomes: Vec<_> =
            objects.iter().map(|(object, etag)| (object.clone(), found.delete_unchanged(object, etag))).collect();
        BatchOutcome::reconcile(&asked, [], outcomes)
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        let buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| no_such_bucket("ListUploads", bucket))?;
        let seen = |(key, id): &(String, String)| match after {
            Some(Cursor { key: last, version: Some(last_id) }) => (key, id) <= (last, last_id),
            Some(Cursor { key: last, version: None }) => key <= last,
            None => false,
        };
        let below = found.uploads.iter().filter(|upload| upload.0.starts_with(prefix) && !seen(upload));
        let entry = |(key, id): &(String, String)| UnfinishedUpload { key: key.clone(), id: id.clone() };
        let mut uploads: Vec<_> = below.take(self.page + 1).map(entry).collect();
        let more = uploads.len() > self.page;
        uploads.truncate(self.page);
        let last = uploads.last().filter(|_| more);
        let next = last.map(|last| Cursor { key: last.key.clone(), version: Some(last.id.clone()) });
        Ok(UploadPage { uploads, next })
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        if !permit.holds() {
            return not_attempted(PERMIT_OVER);
        }
        let mut buckets = self.lock();
        let Some(found) = buckets.get_mut(bucket) else {
            let ObjectsError { code, message, class, .. } = no_such_bucket("AbortUpload", bucket);
            return KeyOutcome::Failed(KeyFailure { code, message, class });
        };
        match found.uploads.remove(&(upload.key.clone(), upload.id.clone())) {
            true => KeyOutcome::Deleted,
            false => KeyOutcome::AlreadyAbsent,
        }
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        let buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| no_such_bucket("LockOf", bucket))?;
        Ok(found.lock_of(&object.key))
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        let buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| no_such_bucket("Facts", bucket))?;
        Ok(BucketFacts {
            versioning: found.versioning,
            object_lock: Some(false),
            default_retention: None,
            uploads: UploadsListed::Yes,
            url_encoded: true,
            deletes: "in batches",
        })
    }
}
