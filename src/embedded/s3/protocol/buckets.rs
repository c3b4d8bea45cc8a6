//! Operations on whole buckets.
//!
//! Invariant: a bucket that holds anything, be it only a delete marker, cannot be deleted.

use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::Handlers;
use crate::embedded::s3::REGION;
use crate::embedded::s3::bucket::ObjectLock;
use crate::embedded::s3::store::Versioning;

/// The most buckets on one page (S3 API reference, ListBuckets).
const MAX_BUCKETS: i32 = 10_000;

impl Handlers {
    pub(super) fn create(&self, asked: &CreateBucketInput) -> S3Result<CreateBucketOutput> {
        let object_lock = match asked.object_lock_enabled_for_bucket {
            Some(true) => ObjectLock::Enabled,
            Some(false) | None => ObjectLock::Absent,
        };
        self.store.create(&asked.bucket, object_lock)?;
        Ok(CreateBucketOutput { location: Some(format!("/{}", asked.bucket)) })
    }

    pub(super) fn head(&self, bucket: &str) -> S3Result<HeadBucketOutput> {
        self.store.with(bucket, |_| Ok(()))?;
        Ok(HeadBucketOutput { bucket_region: Some(REGION.to_owned()), ..Default::default() })
    }

    pub(super) fn list_all(&self, asked: &ListBucketsInput) -> S3Result<ListBucketsOutput> {
        let limit = match asked.max_buckets.unwrap_or(MAX_BUCKETS) {
            limit @ 1..=MAX_BUCKETS => usize::try_from(limit).map_err(|_| s3_error!(InvalidArgument))?,
            _ => return Err(s3_error!(InvalidArgument, "max-buckets must be between 1 and 10000")),
        };
        let prefix = asked.prefix.clone().unwrap_or_default();
        let after = asked.continuation_token.as_deref().unwrap_or_default();
        let buckets = self.store.lock();
        let mut wanted = buckets.iter().filter(|(name, _)| name.starts_with(&prefix) && name.as_str() > after);
        let page: Vec<Bucket> = wanted
            .by_ref()
            .take(limit)
            .map(|(name, bucket)| Bucket {
                bucket_region: Some(REGION.to_owned()),
                creation_date: Some(bucket.created.into()),
                name: Some(name.clone()),
            })
            .collect();
        let more = wanted.next().is_some();
        let continuation_token = page.last().and_then(|last| last.name.clone()).filter(|_| more);
        Ok(ListBucketsOutput { buckets: Some(page), continuation_token, owner: None, prefix: asked.prefix.clone() })
    }

    pub(super) fn versioning(&self, bucket: &str) -> S3Result<GetBucketVersioningOutput> {
        let status = self.store.with(bucket, |bucket| Ok(bucket.versioning))?;
        let status = match status {
            Versioning::Off => None,
            Versioning::Enabled => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED)),
            Versioning::Suspended => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::SUSPENDED)),
        };
        Ok(GetBucketVersioningOutput { mfa_delete: None, status })
    }

    pub(super) fn set_versioning(&self, asked: &PutBucketVersioningInput) -> S3Result<PutBucketVersioningOutput> {
        let configuration = &asked.versioning_configuration;
        if configuration.mfa_delete.as_ref().is_some_and(|status| status.as_str() == MFADelete::ENABLED) {
            return Err(s3_error!(NotImplemented, "MFA delete is not supported"));
        }
        let versioning = match configuration.status.as_ref().map(BucketVersioningStatus::as_str) {
            Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
            Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
            _ => return Err(s3_error!(IllegalVersioningConfigurationException)),
        };
        self.store.set_versioning(&asked.bucket, versioning)?;
        Ok(PutBucketVersioningOutput {})
    }
}
