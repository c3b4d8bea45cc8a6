//! One bucket: its objects with their versions.
//!
//! Invariant: a key is in the map as long as it has a version or a delete marker, its versions oldest first and never
//! an empty list. Which writes keep the version before them is decided here alone, by the state of versioning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use s3s::{S3Result, s3_error};

use super::lock::{Bypass, Lock};
use super::store::Versioning;
use super::uploads::Uploads;
use super::version::{Content, Version, VersionId};

/// Objects by key; `String` sorts bytewise, as S3 lists.
pub(super) type Objects = BTreeMap<String, Vec<Version>>;

/// Whether versions in the bucket can be locked; fixed when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObjectLock {
    Enabled,
    Absent,
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) created: SystemTime,
    pub(super) versioning: Versioning,
    pub(super) object_lock: ObjectLock,
    pub(super) objects: Objects,
    pub(super) uploads: Uploads,
    /// Numbers the writes of all buckets of a store.
    sequence: Arc<AtomicU64>,
}

/// What a delete did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    /// The object is gone, or was not there; without versions there is no more to say.
    Gone,
    /// This version is gone, or was not there.
    Version(VersionId),
    /// This delete marker is gone.
    Marker(VersionId),
    /// This delete marker now hides the object.
    Hidden(VersionId),
}

impl Bucket {
    pub(super) fn new(object_lock: ObjectLock, sequence: Arc<AtomicU64>) -> Self {
        Self {
            created: SystemTime::now(),
            versioning: match object_lock {
                ObjectLock::Enabled => Versioning::Enabled,
                ObjectLock::Absent => Versioning::Off,
            },
            object_lock,
            objects: Objects::new(),
            uploads: Uploads::default(),
            sequence,
        }
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Stores a new latest version.
    pub(super) fn put(&mut self, key: &str, content: Arc<Content>, lock: Lock) -> S3Result<VersionId> {
        if lock.is_set() {
            self.require_object_lock()?;
        }
        Ok(self.push(key, Some(content), lock))
    }

    /// Deletes a version for good, or without one hides or deletes the object, as versioning has it.
    pub(super) fn delete(&mut self, key: &str, version: Option<VersionId>, bypass: Bypass) -> S3Result<Deletion> {
        match (version, self.versioning) {
            (Some(id), _) => self.delete_version(key, id, bypass),
            (None, Versioning::Off) => {
                self.objects.remove(key);
                Ok(Deletion::Gone)
            }
            (None, Versioning::Enabled | Versioning::Suspended) => {
                Ok(Deletion::Hidden(self.push(key, None, Lock::default())))
            }
        }
    }

    /// The version asked for, or the latest; may be a delete marker.
    pub(super) fn version(&self, key: &str, version: Option<VersionId>) -> S3Result<&Version> {
        let versions = self.objects.get(key).map(Vec::as_slice).unwrap_or_default();
        match version {
            Some(id) => versions
                .iter()
                .find(|version| version.id == id)
                .ok_or_else(|| s3_error!(NoSuchVersion, "The specified version does not exist.")),
            None => versions.last().ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist.")),
        }
    }

    /// The locks of a version that is an object, to read or to change.
    pub(super) fn lock_mut(&mut self, key: &str, version: Option<VersionId>) -> S3Result<&mut Lock> {
        self.require_object_lock()?;
        let found = self.version(key, version)?;
        if found.is_marker() {
            return Err(s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource."));
        }
        let id = found.id;
        self.objects
            .get_mut(key)
            .and_then(|versions| versions.iter_mut().find(|version| version.id == id))
            .map(|version| &mut version.lock)
            .ok_or_else(|| s3_error!(NoSuchVersion))
    }

    /// Refuses in a bucket without object lock.
    pub(super) fn require_object_lock(&self) -> S3Result<()> {
        match self.object_lock {
            ObjectLock::Enabled => Ok(()),
            ObjectLock::Absent => Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration")),
        }
    }

    /// Turns versioning on or suspends it; it never goes back to off.
    pub(super) fn set_versioning(&mut self, versioning: Versioning) -> S3Result<()> {
        if self.object_lock == ObjectLock::Enabled && versioning != Versioning::Enabled {
            return Err(s3_error!(
                InvalidBucketState,
                "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed."
            ));
        }
        if versioning == Versioning::Off && self.versioning != Versioning::Off {
            return Err(s3_error!(InvalidRequest, "versioning can be suspended, but never be removed"));
        }
        self.versioning = versioning;
        Ok(())
    }

    fn push(&mut self, key: &str, content: Option<Arc<Content>>, lock: Lock) -> VersionId {
        let sequence = self.next_sequence();
        let id = match self.versioning {
            Versioning::Enabled => VersionId::Numbered(sequence),
            Versioning::Off | Versioning::Suspended => VersionId::Null,
        };
        let version = Version { id, sequence, modified: SystemTime::now(), content, lock };
        match self.objects.get_mut(key) {
            Some(versions) => {
                // A null version takes the place of the one before. It cannot be locked: locks need versioning on.
                if id == VersionId::Null {
                    versions.retain(|version| version.id != VersionId::Null);
                }
                versions.push(version);
            }
            None => {
                self.objects.insert(key.to_owned(), vec![version]);
            }
        }
        id
    }

    fn delete_version(&mut self, key: &str, id: VersionId, bypass: Bypass) -> S3Result<Deletion> {
        let Some(versions) = self.objects.get_mut(key) else { return Ok(Deletion::Version(id)) };
        let Some(place) = versions.iter().position(|version| version.id == id) else {
            return Ok(Deletion::Version(id));
        };
        versions[place].lock.permit_delete(bypass)?;
        let gone = versions.remove(place);
        if versions.is_empty() {
            self.objects.remove(key);
        }
        Ok(if gone.is_marker() { Deletion::Marker(id) } else { Deletion::Version(id) })
    }
}
