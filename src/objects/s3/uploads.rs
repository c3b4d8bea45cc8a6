//! Multipart uploads that nobody has finished: one page of them, and the end of one.
//!
//! Invariant: as in a listing of objects, an upload that does not lie below the prefix is an error and never an entry,
//! because what is listed here gets aborted.

use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsOutput;
use aws_sdk_s3::types::EncodingType;

use super::decode::Decode;
use super::list::{EMPTY_PAGES, PAGE, decode};
use super::permitted::Permitted;
use super::{S3Store, Scope, not_offered};
use crate::domain::outcome::{FailureClass, KeyOutcome};
use crate::objects::error::UNREADABLE;
use crate::objects::{
    Cursor, ObjectsError, PERMIT_OVER, Permit, UnfinishedUpload, UploadPage, UploadsListed, not_attempted,
};

impl S3Store {
    pub(super) async fn unfinished_uploads(
        &self,
        scope: Scope<'_>,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        // Plainly first: SeaweedFS echoes the encoding here and sends the keys as they are, which makes others of them.
        match self.uploads_page(scope, after, None).await {
            Err(error) if error.code == UNREADABLE => self.uploads_page(scope, after, Some(EncodingType::Url)).await,
            page => page,
        }
    }

    async fn uploads_page(
        &self,
        scope: Scope<'_>,
        after: Option<&Cursor>,
        encoding: Option<EncodingType>,
    ) -> Result<UploadPage, ObjectsError> {
        let request = self
            .client
            .list_multipart_uploads()
            .bucket(scope.bucket)
            .prefix(scope.subject)
            .max_uploads(PAGE)
            .set_encoding_type(encoding.clone());
        let mut place = after.cloned();
        for _ in 0..EMPTY_PAGES {
            let (key, id) = place.clone().map(|cursor| (cursor.key, cursor.version)).unzip();
            let asked = request.clone().set_key_marker(key).set_upload_id_marker(id.flatten()).customize();
            let answer = match asked.interceptor(Decode::Uploads).send().await {
                Ok(answer) => answer,
                Err(error) => {
                    let verdict = self.verdict(scope, &error);
                    return if not_offered(&verdict) { Ok(UploadPage::default()) } else { Err(scope.failed(&verdict)) };
                }
            };
            let uploads = entries(&scope, &answer, encoding.is_some())?;
            if !scope.truncated(answer.is_truncated, &uploads)? {
                return Ok(UploadPage { uploads, next: None });
            }
            let next = next(&scope, &answer, &uploads, encoding.is_some())?;
            if place.as_ref() == Some(&next) {
                return Err(scope.broken("the page ends where it was told to start"));
            }
            if !uploads.is_empty() {
                return Ok(UploadPage { uploads, next: Some(next) });
            }
            place = Some(next);
        }
        Err(scope.endless())
    }

    /// Whether they can be listed, without a look at any.
    pub(super) async fn uploads_listed(&self, bucket: &str) -> Result<UploadsListed, ObjectsError> {
        let scope = Scope { operation: "ListMultipartUploads", bucket, subject: "" };
        let Err(error) = self.client.list_multipart_uploads().bucket(bucket).max_uploads(1).send().await else {
            return Ok(UploadsListed::Yes);
        };
        let verdict = self.verdict(scope, &error);
        match verdict.class() {
            _ if not_offered(&verdict) => Ok(UploadsListed::NotOffered),
            FailureClass::Permanent => Ok(UploadsListed::Denied(verdict.code)),
            FailureClass::Transient | FailureClass::Throttled => Err(scope.failed(&verdict)),
        }
    }

    pub(super) async fn abort(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        let scope = Scope { operation: "AbortMultipartUpload", bucket, subject: &upload.key };
        let permitted = Permitted::by(permit);
        let request = self.client.abort_multipart_upload().bucket(bucket).key(&upload.key).upload_id(&upload.id);
        match request.customize().interceptor(permitted.clone()).send().await {
            Ok(_) => KeyOutcome::Deleted,
            // an attempt before the one that was refused may have been carried out: aborting again does no harm
            Err(_) if permitted.has_refused() => not_attempted(PERMIT_OVER),
            Err(error) => self.verdict(scope, &error).into_outcome(),
        }
    }
}

fn entries(
    scope: &Scope<'_>,
    answer: &ListMultipartUploadsOutput,
    asked: bool,
) -> Result<Vec<UnfinishedUpload>, ObjectsError> {
    let encoded = asked && answer.encoding_type == Some(EncodingType::Url);
    let entry = |upload: &aws_sdk_s3::types::MultipartUpload| {
        let id = upload.upload_id().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| scope.broken("an upload without an id"))?.to_owned();
        Ok(UnfinishedUpload { key: scope.key(upload.key(), encoded)?, id })
    };
    answer.uploads().iter().map(entry).collect()
}

/// Where the store says to go on, or else after the last upload shown.
fn next(
    scope: &Scope<'_>,
    answer: &ListMultipartUploadsOutput,
    uploads: &[UnfinishedUpload],
    asked: bool,
) -> Result<Cursor, ObjectsError> {
    let encoded = asked && answer.encoding_type == Some(EncodingType::Url);
    let Some(marker) = answer.next_key_marker().filter(|marker| !marker.is_empty()) else {
        let last = uploads.last().ok_or_else(|| scope.broken("an empty page promises more and does not say where"))?;
        return Ok(Cursor { key: last.key.clone(), version: Some(last.id.clone()) });
    };
    let key = decode(marker, encoded).ok_or_else(|| scope.broken("a marker that is not UTF-8"))?;
    let version = answer.next_upload_id_marker().filter(|id| !id.is_empty()).map(str::to_owned);
    Ok(Cursor { key, version })
}
