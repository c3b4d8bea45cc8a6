//! Object lock: what keeps one version from being deleted.
//!
//! Invariant: a locked version goes only when its lock has run out or was lifted, or, in governance mode, when the
//! request asks to bypass it. Legal hold and compliance mode know no bypass.

use std::time::SystemTime;

use s3s::{S3Error, S3Result, s3_error};

/// How strict a retention is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Can be bypassed by a request that asks for it (every client of this server may).
    Governance,
    /// Cannot be bypassed, nor shortened.
    Compliance,
}

/// Until when a version is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How strictly.
    pub mode: LockMode,
    /// The first moment at which it may be deleted.
    pub until: SystemTime,
}

impl Retention {
    fn is_active(&self) -> bool {
        self.until > SystemTime::now()
    }
}

/// Whether a request carries `x-amz-bypass-governance-retention: true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bypass {
    Governance,
    Nothing,
}

impl From<Option<bool>> for Bypass {
    fn from(header: Option<bool>) -> Self {
        if header == Some(true) { Self::Governance } else { Self::Nothing }
    }
}

/// The locks of one version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) retention: Option<Retention>,
    pub(super) legal_hold: bool,
}

impl Lock {
    pub(super) fn is_set(&self) -> bool {
        self.retention.is_some() || self.legal_hold
    }

    /// Refuses with AccessDenied while the version is locked.
    pub(super) fn permit_delete(&self, bypass: Bypass) -> S3Result<()> {
        if self.legal_hold || self.retained(bypass) { Err(denied()) } else { Ok(()) }
    }

    /// Sets or, with `None`, lifts the retention; only what tightens it is free.
    pub(super) fn retain(&mut self, retention: Option<Retention>, bypass: Bypass) -> S3Result<()> {
        if let (true, Some(old)) = (self.retained(bypass), self.retention) {
            let tightened = retention.is_some_and(|new| {
                new.until >= old.until && (old.mode == LockMode::Governance || new.mode == LockMode::Compliance)
            });
            if !tightened {
                return Err(denied());
            }
        }
        self.retention = retention;
        Ok(())
    }

    fn retained(&self, bypass: Bypass) -> bool {
        self.retention.is_some_and(|retention| {
            retention.is_active() && (retention.mode == LockMode::Compliance || bypass == Bypass::Nothing)
        })
    }
}

fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied because object protected by object lock.")
}
