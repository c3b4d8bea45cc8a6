//! One stored version of an object, or a delete marker.
//!
//! Invariant: versions are ordered by when they were written, and a numbered id tells that order by itself. So a
//! listing can go on after a version that was deleted since, which a purge does on every page.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use s3s::crypto::{Checksum, Md5};

use super::lock::Lock;

/// What tells the versions of one key apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VersionId {
    /// Written while versioning was off or suspended; a key has at most one.
    Null,
    /// Written while versioning was on, by the place in the order of all writes.
    Numbered(u64),
}

impl VersionId {
    /// `None` for what this server never gave out.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let is_ours = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_ours.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self::Numbered)
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Numbered(number) => write!(f, "{number:016x}"),
        }
    }
}

/// The bytes and what belongs to them; shared by objects that were seeded with the same body.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) body: Bytes,
    /// Without quotes.
    pub(super) etag: String,
    pub(super) content_type: Option<String>,
    pub(super) metadata: HashMap<String, String>,
}

impl Content {
    pub(super) fn plain(body: Bytes) -> Self {
        let etag = hex(Md5::checksum(&body).as_ref());
        Self { body, etag, content_type: None, metadata: HashMap::new() }
    }
}

/// A version.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) id: VersionId,
    /// The place in the order of all writes, for null versions too.
    pub(super) sequence: u64,
    pub(super) modified: SystemTime,
    /// `None` for a delete marker.
    pub(super) content: Option<Arc<Content>>,
    pub(super) lock: Lock,
}

impl Version {
    pub(super) fn is_marker(&self) -> bool {
        self.content.is_none()
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
