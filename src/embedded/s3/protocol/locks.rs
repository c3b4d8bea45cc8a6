//! Object lock over the wire: retention and legal hold of single versions, and whether a bucket knows them.
//!
//! Invariant: a date that has passed is refused, so that nobody takes an object to be locked that is not.

use std::time::SystemTime;

use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::Handlers;
use crate::embedded::s3::bucket::ObjectLock;
use crate::embedded::s3::lock::{Bypass, Lock, LockMode, Retention};
use crate::embedded::s3::store::version_named;

impl Handlers {
    pub(super) fn lock_configuration(&self, bucket: &str) -> S3Result<GetObjectLockConfigurationOutput> {
        let object_lock = self.store.with(bucket, |bucket| Ok(bucket.object_lock))?;
        if object_lock == ObjectLock::Absent {
            return Err(s3_error!(
                ObjectLockConfigurationNotFoundError,
                "Object Lock configuration does not exist for this bucket"
            ));
        }
        let enabled = ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED);
        let configuration = ObjectLockConfiguration { object_lock_enabled: Some(enabled), rule: None };
        Ok(GetObjectLockConfigurationOutput { object_lock_configuration: Some(configuration) })
    }

    pub(super) fn retention(&self, asked: &GetObjectRetentionInput) -> S3Result<GetObjectRetentionOutput> {
        let version = version_named(asked.version_id.as_deref())?;
        let lock = self.store.with_mut(&asked.bucket, |bucket| bucket.lock_mut(&asked.key, version).copied())?;
        let kept = lock.retention.ok_or_else(no_lock)?;
        let retention = ObjectLockRetention {
            mode: Some(ObjectLockRetentionMode::from_static(mode_name(kept.mode))),
            retain_until_date: Some(kept.until.into()),
        };
        Ok(GetObjectRetentionOutput { retention: Some(retention) })
    }

    pub(super) fn set_retention(&self, asked: &PutObjectRetentionInput) -> S3Result<PutObjectRetentionOutput> {
        let version = version_named(asked.version_id.as_deref())?;
        let bypass = Bypass::from(asked.bypass_governance_retention);
        let wanted = asked.retention.as_ref();
        let mode = wanted.and_then(|wanted| wanted.mode.as_ref()).map(ObjectLockRetentionMode::as_str);
        let until = wanted.and_then(|wanted| wanted.retain_until_date.clone());
        let retention = retention_asked(mode, until)?;
        self.store.with_mut(&asked.bucket, |bucket| bucket.lock_mut(&asked.key, version)?.retain(retention, bypass))?;
        Ok(PutObjectRetentionOutput { request_charged: None })
    }

    pub(super) fn legal_hold(&self, asked: &GetObjectLegalHoldInput) -> S3Result<GetObjectLegalHoldOutput> {
        let version = version_named(asked.version_id.as_deref())?;
        let lock = self.store.with_mut(&asked.bucket, |bucket| bucket.lock_mut(&asked.key, version).copied())?;
        let status = if lock.legal_hold { ObjectLockLegalHoldStatus::ON } else { ObjectLockLegalHoldStatus::OFF };
        let status = Some(ObjectLockLegalHoldStatus::from_static(status));
        Ok(GetObjectLegalHoldOutput { legal_hold: Some(ObjectLockLegalHold { status }) })
    }

    pub(super) fn set_legal_hold(&self, asked: &PutObjectLegalHoldInput) -> S3Result<PutObjectLegalHoldOutput> {
        let version = version_named(asked.version_id.as_deref())?;
        let status = asked.legal_hold.as_ref().and_then(|hold| hold.status.as_ref());
        let hold = hold_asked(status)?.ok_or_else(|| s3_error!(MalformedXML, "a status is required"))?;
        self.store.with_mut(&asked.bucket, |bucket| {
            bucket.lock_mut(&asked.key, version)?.legal_hold = hold;
            Ok(())
        })?;
        Ok(PutObjectLegalHoldOutput { request_charged: None })
    }
}

/// The lock that the headers of a write ask for.
pub(super) fn lock_asked(
    mode: Option<&ObjectLockMode>,
    until: Option<Timestamp>,
    hold: Option<&ObjectLockLegalHoldStatus>,
) -> S3Result<Lock> {
    let retention = retention_asked(mode.map(ObjectLockMode::as_str), until)?;
    Ok(Lock { retention, legal_hold: hold_asked(hold)?.unwrap_or(false) })
}

pub(super) fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => ObjectLockMode::GOVERNANCE,
        LockMode::Compliance => ObjectLockMode::COMPLIANCE,
    }
}

fn retention_asked(mode: Option<&str>, until: Option<Timestamp>) -> S3Result<Option<Retention>> {
    let (mode, until) = match (mode, until) {
        (None, None) => return Ok(None),
        (Some(ObjectLockMode::GOVERNANCE), Some(until)) => (LockMode::Governance, until),
        (Some(ObjectLockMode::COMPLIANCE), Some(until)) => (LockMode::Compliance, until),
        _ => return Err(s3_error!(InvalidArgument, "a retention takes a known mode and a date")),
    };
    let until = SystemTime::from(time::OffsetDateTime::from(until));
    if until <= SystemTime::now() {
        return Err(s3_error!(InvalidArgument, "The retain until date must be in the future!"));
    }
    Ok(Some(Retention { mode, until }))
}

fn hold_asked(status: Option<&ObjectLockLegalHoldStatus>) -> S3Result<Option<bool>> {
    match status.map(ObjectLockLegalHoldStatus::as_str) {
        None => Ok(None),
        Some(ObjectLockLegalHoldStatus::ON) => Ok(Some(true)),
        Some(ObjectLockLegalHoldStatus::OFF) => Ok(Some(false)),
        Some(_) => Err(s3_error!(InvalidArgument, "a legal hold is ON or OFF")),
    }
}

fn no_lock() -> s3s::S3Error {
    s3_error!(NoSuchObjectLockConfiguration, "The specified object does not have a ObjectLock configuration")
}
