//! PutObject, GetObject and HeadObject.
//!
//! Invariant: what is read is what was written under that very key; a delete marker reads as absent and says so in a
//! header.

use s3s::dto::*;
use s3s::{Body, S3Error, S3ErrorCode, S3Result, s3_error};
use std::sync::Arc;

use super::Handlers;
use super::locks::{lock_asked, mode_name};
use crate::embedded::s3::bucket::Bucket;
use crate::embedded::s3::store::{Versioning, version_named};
use crate::embedded::s3::version::{Content, Version};

impl Handlers {
    pub(super) async fn put(&self, asked: PutObjectInput) -> S3Result<PutObjectOutput> {
        let lock = lock_asked(
            asked.object_lock_mode.as_ref(),
            asked.object_lock_retain_until_date,
            asked.object_lock_legal_hold_status.as_ref(),
        )?;
        if asked.write_offset_bytes.is_some() {
            return Err(s3_error!(NotImplemented, "appending is not supported"));
        }
        let content = Content {
            content_type: asked.content_type,
            metadata: asked.metadata.unwrap_or_default().into_iter().collect(),
            ..Content::plain(read(asked.body).await?)
        };
        let e_tag = Some(ETag::Strong(content.etag.clone()));
        let version_id = self.store.with_mut(&asked.bucket, |bucket| {
            check_conditions(bucket, &asked.key, asked.if_match.as_ref(), asked.if_none_match.as_ref())?;
            let id = bucket.put(&asked.key, Arc::new(content), lock)?;
            Ok((bucket.versioning != Versioning::Off).then(|| id.to_string()))
        })?;
        Ok(PutObjectOutput { e_tag, version_id, ..Default::default() })
    }

    pub(super) fn get(&self, asked: &GetObjectInput) -> S3Result<GetObjectOutput> {
        let conditional = asked.if_match.is_some()
            || asked.if_none_match.is_some()
            || asked.if_modified_since.is_some()
            || asked.if_unmodified_since.is_some();
        if conditional || asked.part_number.is_some() {
            return Err(s3_error!(NotImplemented, "conditional reads and reads of parts are not supported"));
        }
        let found = self.find(&asked.bucket, &asked.key, asked.version_id.as_deref())?;
        let (version, content) = (&found.version, &found.content);
        let whole = content.body.len() as u64;
        let (body, content_range) = match &asked.range {
            None => (content.body.clone(), None),
            Some(range) => {
                let part = range.check(whole)?;
                let header = format!("bytes {}-{}/{whole}", part.start, part.end - 1);
                let to_place = |place: u64| usize::try_from(place).expect("the place is within a body in memory");
                (content.body.slice(to_place(part.start)..to_place(part.end)), Some(header))
            }
        };
        Ok(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(body.len())),
            content_range,
            body: Some(StreamingBlob::from(Body::from(body))),
            content_type: content.content_type.clone(),
            e_tag: Some(ETag::Strong(content.etag.clone())),
            last_modified: Some(version.modified.into()),
            metadata: metadata(content),
            object_lock_mode: version.lock.retention.map(|kept| ObjectLockMode::from_static(mode_name(kept.mode))),
            object_lock_retain_until_date: version.lock.retention.map(|kept| kept.until.into()),
            object_lock_legal_hold_status: found.legal_hold(),
            version_id: found.version_id(),
            ..Default::default()
        })
    }

    pub(super) fn head_one(&self, asked: &HeadObjectInput) -> S3Result<HeadObjectOutput> {
        let conditional = asked.if_match.is_some()
            || asked.if_none_match.is_some()
            || asked.if_modified_since.is_some()
            || asked.if_unmodified_since.is_some();
        if conditional || asked.part_number.is_some() || asked.range.is_some() {
            return Err(s3_error!(NotImplemented, "conditional and partial looks are not supported"));
        }
        let found = self.find(&asked.bucket, &asked.key, asked.version_id.as_deref())?;
        let (version, content) = (&found.version, &found.content);
        Ok(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(content.body.len())),
            content_type: content.content_type.clone(),
            e_tag: Some(ETag::Strong(content.etag.clone())),
            last_modified: Some(version.modified.into()),
            metadata: metadata(content),
            object_lock_mode: version.lock.retention.map(|kept| ObjectLockMode::from_static(mode_name(kept.mode))),
            object_lock_retain_until_date: version.lock.retention.map(|kept| kept.until.into()),
            object_lock_legal_hold_status: found.legal_hold(),
            version_id: found.version_id(),
            ..Default::default()
        })
    }

    fn find(&self, bucket: &str, key: &str, version: Option<&str>) -> S3Result<Found> {
        let asked = version_named(version)?;
        self.store.with(bucket, |bucket| {
            let version = bucket.version(key, asked)?;
            match &version.content {
                Some(content) => {
                    Ok(Found { content: Arc::clone(content), version: version.clone(), versioning: bucket.versioning })
                }
                None => Err(marker_error(version, asked.is_some())),
            }
        })
    }
}

/// A version with its content, taken out of the store.
struct Found {
    version: Version,
    content: Arc<Content>,
    versioning: Versioning,
}

impl Found {
    fn version_id(&self) -> Option<String> {
        (self.versioning != Versioning::Off).then(|| self.version.id.to_string())
    }

    fn legal_hold(&self) -> Option<ObjectLockLegalHoldStatus> {
        let on = || ObjectLockLegalHoldStatus::from_static(ObjectLockLegalHoldStatus::ON);
        self.version.lock.legal_hold.then(on)
    }
}

/// The whole body. It is in memory already, so an error means that its framing or signature was wrong.
pub(super) async fn read(body: Option<StreamingBlob>) -> S3Result<bytes::Bytes> {
    let Some(body) = body else { return Ok(bytes::Bytes::new()) };
    let whole = Body::from(body).store_all_limited(usize::MAX).await;
    whole.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))
}

/// The two conditions that S3 knows for writes.
pub(super) fn check_conditions(
    bucket: &Bucket,
    key: &str,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let current = bucket.version(key, None).ok().and_then(|version| version.content.as_ref());
    let failed = || s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold");
    match (if_match, current) {
        (None, _) | (Some(ETagCondition::Any), Some(_)) => {}
        (Some(ETagCondition::ETag(wanted)), Some(content)) if wanted.value() == content.etag => {}
        (Some(_), None) => return Err(s3_error!(NoSuchKey, "The specified key does not exist.")),
        (Some(_), Some(_)) => return Err(failed()),
    }
    match (if_none_match, current) {
        (None, _) | (Some(ETagCondition::Any), None) => Ok(()),
        (Some(ETagCondition::Any), Some(_)) => Err(failed()),
        (Some(ETagCondition::ETag(_)), _) => Err(s3_error!(NotImplemented, "writes know only If-None-Match: *")),
    }
}

fn marker_error(marker: &Version, by_id: bool) -> S3Error {
    let mut error = if by_id {
        s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource.")
    } else {
        s3_error!(NoSuchKey, "The specified key does not exist.")
    };
    let mut headers = hyper::HeaderMap::new();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/xml"));
    headers.insert("x-amz-delete-marker", hyper::header::HeaderValue::from_static("true"));
    if let Ok(id) = hyper::header::HeaderValue::from_str(&marker.id.to_string()) {
        headers.insert("x-amz-version-id", id);
    }
    error.set_headers(headers);
    error
}

fn metadata(content: &Content) -> Option<Metadata> {
    (!content.metadata.is_empty()).then(|| content.metadata.clone().into_iter().collect())
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("no body in memory has 2^63 bytes")
}
