//! A test double: objects in memory, ordered as S3 orders them, with versions where a bucket keeps them.
//!
//! Invariant: passes the same contract as the real stores. Not for production: nothing survives the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{BucketFacts, Cursor, MAX_BATCH, ObjectEntry, ObjectStore, ObjectsError, Page, Versioning};
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, distinct};

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
    /// The source of version ids.
    written: u64,
}

#[derive(Debug, Clone)]
struct Version {
    id: Option<String>,
    size: u64,
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
        let bucket = Bucket { versioning, keys: BTreeMap::new(), written: 0 };
        self.lock().insert(name.to_owned(), bucket);
    }

    /// Writes an object; a new version of it where the bucket keeps versions. The bucket is made when it is missing.
    pub fn put(&self, bucket: &str, key: &str, size: u64) {
        let mut buckets = self.lock();
        let bucket = buckets.entry(bucket.to_owned()).or_insert_with(|| Bucket {
            versioning: Versioning::Off,
            keys: BTreeMap::new(),
            written: 0,
        });
        bucket.write(key, size);
    }

    /// How many objects the bucket holds, versions and delete markers counted one by one.
    pub fn count(&self, bucket: &str) -> usize {
        self.lock().get(bucket).map_or(0, |bucket| bucket.keys.values().map(Vec::len).sum())
    }

    /// A panic while the lock is held leaves whole objects behind, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn write(&mut self, key: &str, size: u64) {
        self.written += 1;
        let versions = self.keys.entry(key.to_owned()).or_default();
        match self.versioning {
            Versioning::Off => *versions = vec![Version { id: None, size }],
            Versioning::Kept => {
                versions.insert(0, Version { id: Some(format!("v{:012}", self.written)), size });
            }
        }
    }

    fn delete(&mut self, object: &ObjectRef) -> KeyOutcome {
        match (self.versioning, object.version.as_deref()) {
            (Versioning::Off, None | Some("null")) => {
                self.keys.remove(&object.key);
            }
            // A delete marker: what this bucket lists as a version of no size.
            (Versioning::Kept, None) => self.write(&object.key, 0),
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

    /// Everything below `prefix` after `after`, in order. A cursor without a version lies after all of its key.
    fn below<'a>(&'a self, prefix: &'a str, after: Option<&'a Cursor>) -> impl Iterator<Item = ObjectEntry> + 'a {
        let keys = self.keys.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix));
        let entries = keys.flat_map(|(key, versions)| versions.iter().map(move |version| (key, version)));
        let entries = entries.filter(move |(key, version)| {
            let Some(after) = after else { return true };
            // Ids grow with time, so this holds when the cursor's own version has been deleted meanwhile.
            **key > after.key || (**key == after.key && after.version.is_some() && version.id < after.version)
        });
        entries.map(|(key, version)| ObjectEntry {
            object: ObjectRef { key: key.clone(), version: version.id.clone() },
            size: version.size,
        })
    }
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

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        let buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| no_such_bucket("Facts", bucket))?;
        Ok(BucketFacts { versioning: found.versioning, object_lock: Some(false) })
    }
}
