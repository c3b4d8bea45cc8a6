//! The S3 operations: from the requests that `s3s` has parsed to the store, and back.
//!
//! Invariant: no operation decides anything here that the store has to decide as one; each takes the store's lock once.
//! A condition or option that would change what is deleted or listed, and that the server does not have, is refused.

mod buckets;
mod delete;
mod listings;
mod locks;
mod objects;
mod uploads;

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};

use super::faults::Faults;
use super::store::MemoryBuckets;

/// What answers the operations.
pub(super) struct Handlers {
    store: Arc<MemoryBuckets>,
    faults: Arc<Faults>,
}

impl Handlers {
    pub(super) fn new(store: Arc<MemoryBuckets>, faults: Arc<Faults>) -> Self {
        Self { store, faults }
    }
}

/// An operation as `s3s` calls it.
type Asked<I> = S3Request<I>;
type Answer<O> = S3Result<S3Response<O>>;

#[async_trait::async_trait]
impl S3 for Handlers {
    async fn create_bucket(&self, asked: Asked<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        self.create(&asked.input).map(S3Response::new)
    }

    async fn delete_bucket(&self, asked: Asked<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        self.store.remove(&asked.input.bucket).map(|()| S3Response::new(DeleteBucketOutput {}))
    }

    async fn head_bucket(&self, asked: Asked<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.head(&asked.input.bucket).map(S3Response::new)
    }

    async fn list_buckets(&self, asked: Asked<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        self.list_all(&asked.input).map(S3Response::new)
    }

    async fn get_bucket_versioning(&self, asked: Asked<GetBucketVersioningInput>) -> Answer<GetBucketVersioningOutput> {
        self.versioning(&asked.input.bucket).map(S3Response::new)
    }

    async fn put_bucket_versioning(&self, asked: Asked<PutBucketVersioningInput>) -> Answer<PutBucketVersioningOutput> {
        self.set_versioning(&asked.input).map(S3Response::new)
    }

    async fn put_object(&self, asked: Asked<PutObjectInput>) -> Answer<PutObjectOutput> {
        self.put(asked.input).await.map(S3Response::new)
    }

    async fn get_object(&self, asked: Asked<GetObjectInput>) -> Answer<GetObjectOutput> {
        self.get(&asked.input).map(S3Response::new)
    }

    async fn head_object(&self, asked: Asked<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        self.head_one(&asked.input).map(S3Response::new)
    }

    async fn delete_object(&self, asked: Asked<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.delete_one(&asked.input).map(S3Response::new)
    }

    async fn delete_objects(&self, asked: Asked<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.delete_many(&asked).map(S3Response::new)
    }

    async fn list_objects(&self, asked: Asked<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        self.list_v1(&asked.input).map(S3Response::new)
    }

    async fn list_objects_v2(&self, asked: Asked<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.list_v2(&asked.input).map(S3Response::new)
    }

    async fn list_object_versions(&self, asked: Asked<ListObjectVersionsInput>) -> Answer<ListObjectVersionsOutput> {
        self.list_versions(&asked.input).map(S3Response::new)
    }

    async fn get_object_lock_configuration(
        &self,
        asked: Asked<GetObjectLockConfigurationInput>,
    ) -> Answer<GetObjectLockConfigurationOutput> {
        self.lock_configuration(&asked.input.bucket).map(S3Response::new)
    }

    async fn get_object_retention(&self, asked: Asked<GetObjectRetentionInput>) -> Answer<GetObjectRetentionOutput> {
        self.retention(&asked.input).map(S3Response::new)
    }

    async fn put_object_retention(&self, asked: Asked<PutObjectRetentionInput>) -> Answer<PutObjectRetentionOutput> {
        self.set_retention(&asked.input).map(S3Response::new)
    }

    async fn get_object_legal_hold(&self, asked: Asked<GetObjectLegalHoldInput>) -> Answer<GetObjectLegalHoldOutput> {
        self.legal_hold(&asked.input).map(S3Response::new)
    }

    async fn put_object_legal_hold(&self, asked: Asked<PutObjectLegalHoldInput>) -> Answer<PutObjectLegalHoldOutput> {
        self.set_legal_hold(&asked.input).map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        asked: Asked<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.create_upload(asked.input).map(S3Response::new)
    }

    async fn upload_part(&self, asked: Asked<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.put_part(asked.input).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        asked: Asked<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.complete_upload(asked.input).map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        asked: Asked<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.abort_upload(&asked.input).map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        asked: Asked<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        self.list_uploads(&asked.input).map(S3Response::new)
    }
}
