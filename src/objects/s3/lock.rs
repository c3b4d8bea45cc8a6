//! What keeps a version from being deleted: its retention and its legal hold.
//!
//! Invariant: "we cannot tell" is an error here and never "not locked".

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode, ObjectLockRetentionMode};
use time::OffsetDateTime;

use super::decode::Decode;
use super::{S3Store, Scope, not_offered};
use crate::domain::outcome::ObjectRef;
use crate::objects::{DefaultRetention, LockMode, ObjectLock, ObjectsError, Retention};

impl S3Store {
    pub(super) async fn lock(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        let told = async {
            let (retention, legal_hold) =
                (self.retention(bucket, object).await?, self.legal_hold(bucket, object).await?);
            Ok(ObjectLock { retention, legal_hold })
        };
        match told.await {
            // not everybody who may look at the object may ask for its locks, and not every store answers that
            Err(error) => self.lock_by_head(bucket, object).await.ok_or(error),
            told => told,
        }
    }

    /// What the headers of the object say; `None` when they say nothing, which is not the same as "not locked".
    async fn lock_by_head(&self, bucket: &str, object: &ObjectRef) -> Option<ObjectLock> {
        let request = self.client.head_object().bucket(bucket).key(&object.key);
        let head = request.set_version_id(object.version.clone()).send().await.ok()?;
        let mode = head.object_lock_mode().map(|mode| match mode {
            ObjectLockMode::Compliance => LockMode::Compliance,
            _ => LockMode::Governance,
        });
        let until = head.object_lock_retain_until_date().and_then(date);
        let retention = mode.zip(until).map(|(mode, until)| Retention { mode, until });
        let hold = head.object_lock_legal_hold_status();
        if retention.is_none() && hold.is_none() {
            return None;
        }
        Some(ObjectLock { retention, legal_hold: hold == Some(&ObjectLockLegalHoldStatus::On) })
    }

    async fn retention(&self, bucket: &str, object: &ObjectRef) -> Result<Option<Retention>, ObjectsError> {
        let scope = Scope { operation: "GetObjectRetention", bucket, subject: &object.key };
        let request = self.client.get_object_retention().bucket(bucket).key(&object.key);
        let request = request.set_version_id(object.version.clone()).customize();
        match request.interceptor(Decode::Retention).send().await {
            Ok(answer) => {
                let Some(retention) = answer.retention() else { return Ok(None) };
                let mode = match retention.mode() {
                    Some(ObjectLockRetentionMode::Compliance) => LockMode::Compliance,
                    Some(_) => LockMode::Governance,
                    None => return Ok(None),
                };
                Ok(retention.retain_until_date().and_then(date).map(|until| Retention { mode, until }))
            }
            Err(error) => self.no_lock(scope, &error).map(|()| None),
        }
    }

    async fn legal_hold(&self, bucket: &str, object: &ObjectRef) -> Result<bool, ObjectsError> {
        let scope = Scope { operation: "GetObjectLegalHold", bucket, subject: &object.key };
        let request = self.client.get_object_legal_hold().bucket(bucket).key(&object.key);
        let request = request.set_version_id(object.version.clone()).customize();
        match request.interceptor(Decode::LegalHold).send().await {
            Ok(answer) => {
                let status = answer.legal_hold().and_then(|hold| hold.status());
                Ok(status == Some(&ObjectLockLegalHoldStatus::On))
            }
            Err(error) => self.no_lock(scope, &error).map(|()| false),
        }
    }

    /// Whether the error says that there is no lock: none on the object, none in the bucket, no object, or a delete marker.
    fn no_lock<E>(&self, scope: Scope<'_>, error: &SdkError<E, HttpResponse>) -> Result<(), ObjectsError>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let verdict = self.verdict(scope, error);
        match verdict.code.as_str() {
            "NoSuchObjectLockConfiguration"
            | "NoSuchObjectLegalHold"
            | "ObjectLockConfigurationNotFoundError"
            | "InvalidRequest"
            | "NoSuchKey"
            | "NoSuchVersion" => Ok(()),
            _ if not_offered(&verdict) => Ok(()),
            _ => Err(scope.failed(&verdict)),
        }
    }
}

/// The lock that a bucket gives to every new version.
pub(super) fn default_retention(sent: &aws_sdk_s3::types::DefaultRetention) -> Option<DefaultRetention> {
    let mode = match sent.mode()? {
        ObjectLockRetentionMode::Compliance => LockMode::Compliance,
        _ => LockMode::Governance,
    };
    let days = sent.days().or_else(|| sent.years().map(|years| years.saturating_mul(365)))?;
    Some(DefaultRetention { mode, days: u32::try_from(days).ok()? })
}

fn date(sent: &DateTime) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(sent.secs()).ok()
}
