//! DeleteObject and DeleteObjects.
//!
//! Invariant: deleting what is not there succeeds, as on S3, unless on a condition. A batch is refused whole or carried out key by key, and
//! then says of each key what became of it, unless the request is quiet or a fault rule has it otherwise.

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Result, s3_error};

use super::Handlers;
use super::objects::check_conditions;
use crate::embedded::s3::bucket::{Bucket, Deletion};
use crate::embedded::s3::faults::{Effect, KeyAnswer, KeyFault};
use crate::embedded::s3::lock::Bypass;
use crate::embedded::s3::store::version_named;
use crate::embedded::s3::version::VersionId;

/// The most keys of one request (S3 API reference, DeleteObjects).
const MAX_BATCH: usize = 1000;

/// The longest key, in bytes of UTF-8 (S3 user guide, object key names).
const MAX_KEY: usize = 1024;

impl Handlers {
    pub(super) fn delete_one(&self, asked: &DeleteObjectInput) -> S3Result<DeleteObjectOutput> {
        if asked.if_match_last_modified_time.is_some() || asked.if_match_size.is_some() {
            return Err(s3_error!(NotImplemented, "of conditions, deletes know ETags alone"));
        }
        let version = version_named(asked.version_id.as_deref())?;
        let bypass = Bypass::from(asked.bypass_governance_retention);
        let done = self.store.with_mut(&asked.bucket, |bucket| {
            check_conditions(bucket, &asked.key, asked.if_match.as_ref(), None)?;
            bucket.delete(&asked.key, version, bypass)
        })?;
        let (delete_marker, id) = match done {
            Deletion::Gone => (None, None),
            Deletion::Version(id) => (None, Some(id)),
            Deletion::Marker(id) | Deletion::Hidden(id) => (Some(true), Some(id)),
        };
        let version_id = id.map(|id| id.to_string());
        Ok(DeleteObjectOutput { delete_marker, request_charged: None, version_id })
    }

    pub(super) fn delete_many(&self, asked: &S3Request<DeleteObjectsInput>) -> S3Result<DeleteObjectsOutput> {
        require_checksum(asked)?;
        let DeleteObjectsInput { bucket, delete, bypass_governance_retention, .. } = &asked.input;
        check_batch(&delete.objects)?;
        let bypass = Bypass::from(*bypass_governance_retention);
        let mut deleted = Vec::new();
        let mut errors = Vec::new();
        self.store.with_mut(bucket, |bucket| {
            for object in &delete.objects {
                match self.delete_named(bucket, object, bypass) {
                    Some(Ok(gone)) => deleted.push(gone),
                    Some(Err(error)) => errors.push(key_error(object, &error)),
                    None => {}
                }
            }
            Ok(())
        })?;
        if delete.quiet == Some(true) {
            deleted.clear();
        }
        Ok(DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), request_charged: None })
    }

    /// What the answer says of one key; `None` when a fault rule leaves it out.
    fn delete_named(
        &self,
        bucket: &mut Bucket,
        object: &ObjectIdentifier,
        bypass: Bypass,
    ) -> Option<S3Result<DeletedObject>> {
        let Some(KeyFault { effect, answer }) = self.faults.key(&object.key) else {
            return Some(delete_in(bucket, object, bypass));
        };
        let done = match effect {
            Effect::Deleted => delete_in(bucket, object, bypass).ok(),
            Effect::Kept => None,
        };
        match answer {
            KeyAnswer::Omitted => None,
            KeyAnswer::Deleted => Some(Ok(done.unwrap_or_else(|| DeletedObject {
                key: Some(object.key.clone()),
                version_id: object.version_id.clone(),
                ..Default::default()
            }))),
            KeyAnswer::Error(code) => {
                let code = s3s::S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(s3s::S3ErrorCode::InternalError);
                Some(Err(S3Error::with_message(code, "asked for by a fault rule")))
            }
        }
    }
}

fn delete_in(bucket: &mut Bucket, object: &ObjectIdentifier, bypass: Bypass) -> S3Result<DeletedObject> {
    if object.key.is_empty() {
        return Err(s3_error!(UserKeyMustBeSpecified));
    }
    if object.key.len() > MAX_KEY {
        return Err(s3_error!(KeyTooLongError, "Your key is too long"));
    }
    let wanted = object.e_tag.clone().map(ETagCondition::ETag);
    check_conditions(bucket, &object.key, wanted.as_ref(), None)?;
    let version = match object.version_id.as_deref() {
        // Unlike DeleteObject, a batch answers NoSuchVersion for ids that S3 never gave out.
        Some(id) => Some(VersionId::parse(id).ok_or_else(|| {
            s3_error!(NoSuchVersion, "The version ID specified in the request does not match an existing version.")
        })?),
        None => None,
    };
    let mut answer =
        DeletedObject { key: Some(object.key.clone()), version_id: object.version_id.clone(), ..Default::default() };
    match bucket.delete(&object.key, version, bypass)? {
        Deletion::Gone | Deletion::Version(_) => {}
        Deletion::Marker(id) | Deletion::Hidden(id) => {
            answer.delete_marker = Some(true);
            answer.delete_marker_version_id = Some(id.to_string());
        }
    }
    Ok(answer)
}

/// S3 wants the body of a batch protected by a checksum, and so refuses clients that forgot it. `s3s` does not check
/// its value; the signature covers the body.
fn require_checksum(asked: &S3Request<DeleteObjectsInput>) -> S3Result<()> {
    let is_checksum = |name: &str| name == "content-md5" || name.starts_with("x-amz-checksum-");
    if asked.headers.keys().any(|name| is_checksum(name.as_str())) {
        return Ok(());
    }
    Err(s3_error!(InvalidRequest, "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"))
}

/// What S3 refuses before it looks at any key.
fn check_batch(objects: &[ObjectIdentifier]) -> S3Result<()> {
    if objects.is_empty() || objects.len() > MAX_BATCH || !objects.iter().all(|object| fits_xml(&object.key)) {
        return Err(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        ));
    }
    if objects.iter().any(|object| object.last_modified_time.is_some() || object.size.is_some()) {
        return Err(s3_error!(NotImplemented, "of conditions, deletes know ETags alone"));
    }
    Ok(())
}

/// Whether XML 1.0 can carry the key (its production "Char"); the parser in `s3s` is laxer than that of S3.
fn fits_xml(key: &str) -> bool {
    key.chars().all(|char| matches!(char, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..))
}

fn key_error(object: &ObjectIdentifier, error: &S3Error) -> Error {
    Error {
        code: Some(error.code().as_str().to_owned()),
        key: Some(object.key.clone()),
        message: Some(error.message().unwrap_or_default().to_owned()),
        version_id: object.version_id.clone(),
    }
}
