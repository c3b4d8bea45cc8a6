//! Multipart uploads over the wire.
//!
//! Invariant: an upload is seen by ListMultipartUploads from its creation until it is completed or aborted, and its
//! object by no listing before it is completed.

use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::Handlers;
use super::listings::{Encoding, limit_asked};
use super::locks::lock_asked;
use super::objects::{check_conditions, read};
use crate::embedded::s3::store::Versioning;
use crate::embedded::s3::uploads::{NamedPart, Upload};

impl Handlers {
    pub(super) fn create_upload(&self, asked: CreateMultipartUploadInput) -> S3Result<CreateMultipartUploadOutput> {
        let lock = lock_asked(
            asked.object_lock_mode.as_ref(),
            asked.object_lock_retain_until_date,
            asked.object_lock_legal_hold_status.as_ref(),
        )?;
        let metadata = asked.metadata.unwrap_or_default().into_iter().collect();
        let upload = Upload::new(asked.content_type, metadata, lock);
        let id = self.store.with_mut(&asked.bucket, |bucket| {
            if lock.is_set() {
                bucket.require_object_lock()?;
            }
            let sequence = bucket.next_sequence();
            Ok(bucket.uploads.create(&asked.key, sequence, upload))
        })?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(asked.bucket),
            key: Some(asked.key),
            upload_id: Some(id),
            ..Default::default()
        })
    }

    pub(super) async fn put_part(&self, asked: UploadPartInput) -> S3Result<UploadPartOutput> {
        let body = read(asked.body).await?;
        let etag = self.store.with_mut(&asked.bucket, |bucket| {
            bucket.uploads.put_part(&asked.key, &asked.upload_id, asked.part_number, body)
        })?;
        Ok(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() })
    }

    pub(super) fn complete_upload(
        &self,
        asked: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let named = asked.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let named = named
            .into_iter()
            .map(|part| match (part.part_number, part.e_tag) {
                (Some(number), Some(etag)) => Ok(NamedPart { number, etag: etag.into_value() }),
                _ => Err(s3_error!(MalformedXML, "a part is named by number and ETag")),
            })
            .collect::<S3Result<Vec<_>>>()?;
        let (etag, version_id) = self.store.with_mut(&asked.bucket, |bucket| {
            check_conditions(bucket, &asked.key, asked.if_match.as_ref(), asked.if_none_match.as_ref())?;
            let (content, lock) = bucket.uploads.complete(&asked.key, &asked.upload_id, &named)?;
            let etag = content.etag.clone();
            let id = bucket.put(&asked.key, content, lock)?;
            Ok((etag, (bucket.versioning != Versioning::Off).then(|| id.to_string())))
        })?;
        Ok(CompleteMultipartUploadOutput {
            bucket: Some(asked.bucket),
            key: Some(asked.key),
            e_tag: Some(ETag::Strong(etag)),
            version_id,
            ..Default::default()
        })
    }

    pub(super) fn abort_upload(&self, asked: &AbortMultipartUploadInput) -> S3Result<AbortMultipartUploadOutput> {
        if asked.if_match_initiated_time.is_some() {
            return Err(s3_error!(NotImplemented, "conditional aborts are not supported"));
        }
        self.store.with_mut(&asked.bucket, |bucket| bucket.uploads.abort(&asked.key, &asked.upload_id))?;
        Ok(AbortMultipartUploadOutput { request_charged: None })
    }

    pub(super) fn list_uploads(&self, asked: &ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
        if asked.delimiter.as_deref().is_some_and(|delimiter| !delimiter.is_empty()) {
            return Err(s3_error!(NotImplemented, "uploads are listed without delimiters"));
        }
        let encoding = Encoding::asked(asked.encoding_type.as_ref())?;
        let limit = limit_asked(asked.max_uploads)?;
        let prefix = asked.prefix.as_deref().unwrap_or_default();
        let key_marker = asked.key_marker.as_deref().unwrap_or_default();
        // S3 API reference: without a key marker the upload id marker is ignored.
        let id_marker = asked.upload_id_marker.as_deref().filter(|_| !key_marker.is_empty());
        let (page, more) = self.store.with(&asked.bucket, |bucket| {
            let mut rest = bucket.uploads.after(prefix, key_marker, id_marker).peekable();
            let page: Vec<_> =
                rest.by_ref().take(limit).map(|(key, id, upload)| upload_entry(key, id, upload)).collect();
            Ok((page, limit > 0 && rest.peek().is_some()))
        })?;
        let last = page.last().filter(|_| more);
        Ok(ListMultipartUploadsOutput {
            bucket: Some(asked.bucket.clone()),
            encoding_type: asked.encoding_type.clone(),
            is_truncated: Some(more),
            key_marker: Some(encoding.apply(key_marker)),
            upload_id_marker: Some(id_marker.unwrap_or_default().to_owned()),
            max_uploads: Some(i32::try_from(limit).expect("a page has at most 1000 entries")),
            next_key_marker: last.and_then(|last| last.key.as_deref()).map(|key| encoding.apply(key)),
            next_upload_id_marker: last.and_then(|last| last.upload_id.clone()),
            prefix: Some(encoding.apply(prefix)),
            uploads: Some(
                page.into_iter()
                    .map(|entry| MultipartUpload { key: entry.key.map(|key| encoding.apply(&key)), ..entry })
                    .collect(),
            ),
            ..Default::default()
        })
    }
}

fn upload_entry(key: &str, id: &str, upload: &Upload) -> MultipartUpload {
    MultipartUpload {
        key: Some(key.to_owned()),
        upload_id: Some(id.to_owned()),
        initiated: Some(upload.initiated.into()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        ..Default::default()
    }
}
