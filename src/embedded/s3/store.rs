//! The buckets in memory, and the way to fill them and to look at them without HTTP.
//!
//! Invariant: every operation is one critical section, so a listing never sees half a delete and each request takes
//! effect at once or not at all. The lock is never held across an await.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use s3s::{S3Result, s3_error};

use super::bucket::{Bucket, ObjectLock, Objects};
use super::lock::{Bypass, Lock, Retention};
use super::version::{Content, Version, VersionId};

/// Whether a bucket keeps what is overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// Never turned on.
    Off,
    /// Every write and delete makes a version or a marker of its own.
    Enabled,
    /// Older versions stay; new writes and markers are the "null" version, of which a key has one.
    Suspended,
}

/// A version or delete marker, as [`MemoryBuckets::versions`] shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    /// Its key.
    pub key: String,
    /// Its id; "null" for what was written without versioning.
    pub version: String,
    /// Bytes; `None` for a delete marker.
    pub size: Option<u64>,
}

/// The buckets. Looking at one that does not exist shows nothing; changing it fails.
#[derive(Debug, Default)]
pub struct MemoryBuckets {
    buckets: Mutex<BTreeMap<String, Bucket>>,
    sequence: Arc<AtomicU64>,
}

impl MemoryBuckets {
    /// Makes a bucket without versions; fails when it exists.
    pub fn create_bucket(&self, bucket: &str) -> S3Result<()> {
        self.create(bucket, ObjectLock::Absent)
    }

    /// Makes a bucket with object lock, and so with versions; fails when it exists.
    pub fn create_locked_bucket(&self, bucket: &str) -> S3Result<()> {
        self.create(bucket, ObjectLock::Enabled)
    }

    /// Turns versioning on or suspends it.
    pub fn set_versioning(&self, bucket: &str, versioning: Versioning) -> S3Result<()> {
        self.with_mut(bucket, |bucket| bucket.set_versioning(versioning))
    }

    /// Stores an object and returns its version id.
    pub fn put(&self, bucket: &str, key: &str, body: impl Into<Bytes>) -> S3Result<String> {
        let content = Arc::new(Content::plain(body.into()));
        self.with_mut(bucket, |bucket| bucket.put(key, content, Lock::default())).map(|id| id.to_string())
    }

    /// Stores the same body under many keys; they share it, so a million of them cost little.
    pub fn put_all(
        &self,
        bucket: &str,
        keys: impl IntoIterator<Item = String>,
        body: impl Into<Bytes>,
    ) -> S3Result<()> {
        let content = Arc::new(Content::plain(body.into()));
        self.with_mut(bucket, |bucket| {
            keys.into_iter().try_for_each(|key| bucket.put(&key, Arc::clone(&content), Lock::default()).map(drop))
        })
    }

    /// Deletes an object as a client would: with versions this leaves a marker.
    pub fn delete(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.with_mut(bucket, |bucket| bucket.delete(key, None, Bypass::Nothing)).map(drop)
    }

    /// Sets or lifts the retention of the latest version of an object, whatever it was; the date may be past.
    pub fn set_retention(&self, bucket: &str, key: &str, retention: Option<Retention>) -> S3Result<()> {
        self.with_mut(bucket, |bucket| {
            bucket.lock_mut(key, None)?.retention = retention;
            Ok(())
        })
    }

    /// Puts the latest version of an object under legal hold.
    pub fn hold(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.with_mut(bucket, |bucket| {
            bucket.lock_mut(key, None)?.legal_hold = true;
            Ok(())
        })
    }

    /// Lifts the legal hold of the latest version of an object.
    pub fn release(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.with_mut(bucket, |bucket| {
            bucket.lock_mut(key, None)?.legal_hold = false;
            Ok(())
        })
    }

    /// The names of the buckets, in order.
    pub fn buckets(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The body of an object, if it is there.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.look(bucket, |objects| live(objects.get(key)?).map(|content| content.body.clone())).flatten()
    }

    /// The keys of the objects whose keys start with `prefix`, in order.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.look(bucket, |objects| {
            below(objects, prefix)
                .filter(|(_, versions)| live(versions).is_some())
                .map(|(key, _)| key.clone())
                .collect()
        })
        .unwrap_or_default()
    }

    /// How many objects have keys that start with `prefix`.
    pub fn count(&self, bucket: &str, prefix: &str) -> usize {
        self.look(bucket, |objects| below(objects, prefix).filter(|(_, versions)| live(versions).is_some()).count())
            .unwrap_or(0)
    }

    /// All that is stored there, versions and delete markers too: for each key newest first.
    pub fn versions(&self, bucket: &str, prefix: &str) -> Vec<StoredVersion> {
        self.look(bucket, |objects| {
            below(objects, prefix)
                .flat_map(|(key, versions)| versions.iter().rev().map(move |version| stored(key, version)))
                .collect()
        })
        .unwrap_or_default()
    }

    /// How many bytes are stored there, older versions included.
    pub fn bytes(&self, bucket: &str, prefix: &str) -> u64 {
        self.versions(bucket, prefix).iter().filter_map(|version| version.size).sum()
    }

    /// The keys of the multipart uploads in progress there, one entry an upload.
    pub fn uploads(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.with(bucket, |bucket| Ok(bucket.uploads.after(prefix, "", None).map(|(key, ..)| key.to_owned()).collect()))
            .unwrap_or_default()
    }

    pub(super) fn create(&self, name: &str, object_lock: ObjectLock) -> S3Result<()> {
        if !s3s::path::check_bucket_name(name) {
            return Err(s3_error!(InvalidBucketName, "The specified bucket is not valid."));
        }
        let mut buckets = self.lock();
        if buckets.contains_key(name) {
            return Err(s3_error!(BucketAlreadyOwnedByYou, "you already own a bucket of this name"));
        }
        buckets.insert(name.to_owned(), Bucket::new(object_lock, Arc::clone(&self.sequence)));
        Ok(())
    }

    /// Removes a bucket that holds neither a version nor a marker; uploads go along with it, as on S3.
    pub(super) fn remove(&self, name: &str) -> S3Result<()> {
        let mut buckets = self.lock();
        match buckets.get(name) {
            None => Err(no_such_bucket()),
            Some(bucket) if !bucket.objects.is_empty() => {
                Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty"))
            }
            Some(_) => {
                buckets.remove(name);
                Ok(())
            }
        }
    }

    pub(super) fn with<T>(&self, name: &str, look: impl FnOnce(&Bucket) -> S3Result<T>) -> S3Result<T> {
        look(self.lock().get(name).ok_or_else(no_such_bucket)?)
    }

    pub(super) fn with_mut<T>(&self, name: &str, change: impl FnOnce(&mut Bucket) -> S3Result<T>) -> S3Result<T> {
        change(self.lock().get_mut(name).ok_or_else(no_such_bucket)?)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        // Should a handler panic, the tests that follow are better off with the buckets as they are.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look<T>(&self, bucket: &str, look: impl FnOnce(&Objects) -> T) -> Option<T> {
        self.with(bucket, |bucket| Ok(look(&bucket.objects))).ok()
    }
}

fn below<'a>(objects: &'a Objects, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Vec<Version>)> {
    objects.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
}

fn live(versions: &[Version]) -> Option<&Arc<Content>> {
    versions.last()?.content.as_ref()
}

fn stored(key: &str, version: &Version) -> StoredVersion {
    StoredVersion {
        key: key.to_owned(),
        version: version.id.to_string(),
        size: version.content.as_ref().map(|content| content.body.len() as u64),
    }
}

fn no_such_bucket() -> s3s::S3Error {
    s3_error!(NoSuchBucket, "The specified bucket does not exist")
}

/// Reads a version id as a client names it.
pub(super) fn version_named(id: Option<&str>) -> S3Result<Option<VersionId>> {
    id.map(|id| VersionId::parse(id).ok_or_else(|| s3_error!(InvalidArgument, "Invalid version id specified")))
        .transpose()
}
