//! Multipart uploads that are neither completed nor aborted.
//!
//! Invariant: parts are stored bytes that no listing of objects shows; they are freed by completing or aborting and by
//! nothing else, which is why a purge has to look for uploads by themselves.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use s3s::crypto::{Checksum, Md5};
use s3s::{S3Error, S3Result, s3_error};

use super::lock::Lock;
use super::version::{Content, hex};

/// The least size of every part but the last (S3 user guide, multipart upload limits).
const MIN_PART: usize = 5 * 1024 * 1024;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) initiated: SystemTime,
    pub(super) content_type: Option<String>,
    pub(super) metadata: HashMap<String, String>,
    pub(super) lock: Lock,
    parts: BTreeMap<i32, Part>,
}

#[derive(Debug)]
struct Part {
    body: Bytes,
    md5: [u8; 16],
}

/// The uploads of a bucket, by key and then by start: ids are numbered.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    uploads: BTreeMap<(String, String), Upload>,
}

/// A part as the client names it when it completes the upload.
#[derive(Debug)]
pub(super) struct NamedPart {
    pub(super) number: i32,
    pub(super) etag: String,
}

impl Upload {
    pub(super) fn new(content_type: Option<String>, metadata: HashMap<String, String>, lock: Lock) -> Self {
        Self { initiated: SystemTime::now(), content_type, metadata, lock, parts: BTreeMap::new() }
    }
}

impl Uploads {
    /// Starts an upload; `sequence` makes its id.
    pub(super) fn create(&mut self, key: &str, sequence: u64, upload: Upload) -> String {
        let id = format!("upload-{sequence:016x}");
        self.uploads.insert((key.to_owned(), id.clone()), upload);
        id
    }

    /// Stores a part, in place of one of the same number. Answers with its ETag.
    pub(super) fn put_part(&mut self, key: &str, id: &str, number: i32, body: Bytes) -> S3Result<String> {
        if !(1..=10_000).contains(&number) {
            return Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"));
        }
        let upload = self.uploads.get_mut(&(key.to_owned(), id.to_owned())).ok_or_else(no_such_upload)?;
        let md5 = Md5::checksum(&body);
        upload.parts.insert(number, Part { body, md5 });
        Ok(hex(&md5))
    }

    /// Joins the named parts. The upload ends only when all is right.
    pub(super) fn complete(&mut self, key: &str, id: &str, named: &[NamedPart]) -> S3Result<(Arc<Content>, Lock)> {
        let place = (key.to_owned(), id.to_owned());
        let upload = self.uploads.get(&place).ok_or_else(no_such_upload)?;
        let parts = chosen_parts(upload, named)?;
        let mut body = BytesMut::new();
        let mut digests = Vec::new();
        for part in &parts {
            body.extend_from_slice(&part.body);
            digests.extend_from_slice(&part.md5);
        }
        let content = Content {
            body: body.freeze(),
            etag: format!("{}-{}", hex(Md5::checksum(&digests).as_ref()), parts.len()),
            content_type: upload.content_type.clone(),
            metadata: upload.metadata.clone(),
        };
        let lock = upload.lock;
        self.uploads.remove(&place);
        Ok((Arc::new(content), lock))
    }

    /// Ends an upload and frees its parts.
    pub(super) fn abort(&mut self, key: &str, id: &str) -> S3Result<()> {
        self.uploads.remove(&(key.to_owned(), id.to_owned())).map(drop).ok_or_else(no_such_upload)
    }

    /// The uploads whose key starts with `prefix`, after the marker: after all of `key`, or with an upload id after
    /// that one.
    pub(super) fn after<'a>(
        &'a self,
        prefix: &'a str,
        key: &str,
        id: Option<&str>,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a Upload)> {
        let marker = (key.to_owned(), id.unwrap_or_default().to_owned());
        let first = (prefix.to_owned(), String::new());
        let lower = if marker < first { Bound::Included(first) } else { Bound::Excluded(marker) };
        let skipped = id.is_none().then(|| key.to_owned());
        self.uploads
            .range((lower, Bound::Unbounded))
            .map(|((key, id), upload)| (key.as_str(), id.as_str(), upload))
            .skip_while(move |(key, ..)| skipped.as_deref() == Some(*key))
            .take_while(move |(key, ..)| key.starts_with(prefix))
    }
}

fn chosen_parts<'a>(upload: &'a Upload, named: &[NamedPart]) -> S3Result<Vec<&'a Part>> {
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload is completed with at least one part"));
    }
    if named.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let chosen = named
        .iter()
        .map(|named| {
            let part = upload.parts.get(&named.number).filter(|part| hex(&part.md5) == named.etag);
            part.ok_or_else(|| s3_error!(InvalidPart, "One or more of the specified parts could not be found."))
        })
        .collect::<S3Result<Vec<_>>>()?;
    let (_, all_but_last) = chosen.split_last().expect("at least one part was named");
    if all_but_last.iter().any(|part| part.body.len() < MIN_PART) {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }
    Ok(chosen)
}

fn no_such_upload() -> S3Error {
    s3_error!(NoSuchUpload, "The specified multipart upload does not exist.")
}
