//! ListObjects, ListObjectsV2 and ListObjectVersions.
//!
//! Invariant: with `encoding-type=url` every name in the answer is encoded and the answer says so; without it names
//! are sent as they are, even those that XML cannot carry. Markers and tokens name the last entry shown, so a listing
//! goes on right although entries were deleted meanwhile.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::Handlers;
use crate::embedded::s3::bucket::Bucket;
use crate::embedded::s3::listing::{self, Entry, MAX_PAGE, Marker, Page, Scope};
use crate::embedded::s3::requests::Operation;
use crate::embedded::s3::store::version_named;
use crate::embedded::s3::version::Version;

/// S3 leaves these alone in url-encoded names; a space becomes a plus.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b'/').remove(b' ');

/// Tells our continuation tokens from what clients make up.
const TOKEN_MARK: &str = "1-";

/// How names are written in an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Encoding {
    Raw,
    Url,
}

impl Encoding {
    pub(super) fn asked(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Self::Raw),
            Some(EncodingType::URL) => Ok(Self::Url),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    pub(super) fn apply(self, name: &str) -> String {
        match self {
            Self::Raw => name.to_owned(),
            Self::Url => utf8_percent_encode(name, KEPT).to_string().replace(' ', "+"),
        }
    }
}

/// The length of the page to make: what is asked for, up to 1000.
pub(super) fn limit_asked(limit: Option<i32>) -> S3Result<usize> {
    let limit = limit.map_or(Ok(MAX_PAGE), usize::try_from);
    limit.map(|limit| limit.min(MAX_PAGE)).map_err(|_| s3_error!(InvalidArgument, "a page cannot be less than empty"))
}

/// What the three listings have in common.
struct Query<'a> {
    scope: Scope<'a>,
    encoding: Encoding,
    bucket: &'a str,
    /// Entries to show before the listing claims to be complete, by a fault rule.
    cut_short: Option<usize>,
}

impl Query<'_> {
    fn run<T>(
        &self,
        handlers: &Handlers,
        list: impl FnOnce(&Bucket) -> Page<'_>,
        answer: impl FnOnce(Page<'_>) -> T,
    ) -> S3Result<T> {
        handlers.store.with(self.bucket, |bucket| {
            let mut page = list(bucket);
            if let Some(entries) = self.cut_short {
                page.entries.truncate(entries);
                page.truncated = false;
            }
            Ok(answer(page))
        })
    }

    fn max_keys(&self) -> i32 {
        i32::try_from(self.scope.limit).expect("a page has at most 1000 entries")
    }

    fn delimiter(&self) -> Option<String> {
        self.scope.delimiter.map(|delimiter| self.encoding.apply(delimiter))
    }

    fn prefix(&self) -> String {
        self.encoding.apply(self.scope.prefix)
    }

    fn objects(&self, page: &Page<'_>) -> Vec<Object> {
        let objects = page.entries.iter().filter_map(|entry| match entry {
            Entry::Version { key, version, .. } => Some(Object {
                key: Some(self.encoding.apply(key)),
                e_tag: etag(version),
                last_modified: Some(version.modified.into()),
                size: Some(size(version)),
                storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
                ..Default::default()
            }),
            Entry::Prefix(_) => None,
        });
        objects.collect()
    }

    fn common_prefixes(&self, page: &Page<'_>) -> Vec<CommonPrefix> {
        let prefixes = page.entries.iter().filter_map(|entry| match entry {
            Entry::Prefix(prefix) => Some(CommonPrefix { prefix: Some(self.encoding.apply(prefix)) }),
            Entry::Version { .. } => None,
        });
        prefixes.collect()
    }
}

impl Handlers {
    pub(super) fn list_v2(&self, asked: &ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
        let query = Query {
            scope: scope_asked(asked.prefix.as_deref(), asked.delimiter.as_deref(), asked.max_keys)?,
            encoding: Encoding::asked(asked.encoding_type.as_ref())?,
            bucket: &asked.bucket,
            cut_short: self.faults.cut_short(Operation::ListObjectsV2),
        };
        let token = asked.continuation_token.as_deref().map(name_in_token).transpose()?;
        let name = token.as_deref().or(asked.start_after.as_deref()).unwrap_or_default();
        query.run(
            self,
            |bucket| listing::objects(&bucket.objects, query.scope, Marker { name, version: None }),
            |page| ListObjectsV2Output {
                name: Some(asked.bucket.clone()),
                prefix: Some(query.prefix()),
                delimiter: query.delimiter(),
                encoding_type: asked.encoding_type.clone(),
                max_keys: Some(query.max_keys()),
                key_count: i32::try_from(page.entries.len()).ok(),
                start_after: asked.start_after.as_deref().map(|name| query.encoding.apply(name)),
                continuation_token: asked.continuation_token.clone(),
                is_truncated: Some(page.truncated),
                next_continuation_token: last_name(&page).map(token_for),
                contents: Some(query.objects(&page)),
                common_prefixes: Some(query.common_prefixes(&page)),
                ..Default::default()
            },
        )
    }

    pub(super) fn list_v1(&self, asked: &ListObjectsInput) -> S3Result<ListObjectsOutput> {
        let query = Query {
            scope: scope_asked(asked.prefix.as_deref(), asked.delimiter.as_deref(), asked.max_keys)?,
            encoding: Encoding::asked(asked.encoding_type.as_ref())?,
            bucket: &asked.bucket,
            cut_short: self.faults.cut_short(Operation::ListObjects),
        };
        let name = asked.marker.as_deref().unwrap_or_default();
        query.run(
            self,
            |bucket| listing::objects(&bucket.objects, query.scope, Marker { name, version: None }),
            |page| ListObjectsOutput {
                name: Some(asked.bucket.clone()),
                prefix: Some(query.prefix()),
                delimiter: query.delimiter(),
                encoding_type: asked.encoding_type.clone(),
                max_keys: Some(query.max_keys()),
                marker: Some(query.encoding.apply(name)),
                is_truncated: Some(page.truncated),
                // S3 API reference: sent only with a delimiter; else the last key is the marker.
                next_marker: query.scope.delimiter.and(last_name(&page)).map(|name| query.encoding.apply(name)),
                contents: Some(query.objects(&page)),
                common_prefixes: Some(query.common_prefixes(&page)),
                ..Default::default()
            },
        )
    }

    pub(super) fn list_versions(&self, asked: &ListObjectVersionsInput) -> S3Result<ListObjectVersionsOutput> {
        let query = Query {
            scope: scope_asked(asked.prefix.as_deref(), asked.delimiter.as_deref(), asked.max_keys)?,
            encoding: Encoding::asked(asked.encoding_type.as_ref())?,
            bucket: &asked.bucket,
            cut_short: self.faults.cut_short(Operation::ListObjectVersions),
        };
        let name = asked.key_marker.as_deref().unwrap_or_default();
        let version = asked.version_id_marker.as_deref().filter(|id| !id.is_empty());
        if name.is_empty() && version.is_some() {
            return Err(s3_error!(InvalidArgument, "A version-id marker cannot be specified without a key marker."));
        }
        let marker = Marker { name, version: version_named(version)? };
        query.run(
            self,
            |bucket| listing::versions(&bucket.objects, query.scope, marker),
            |page| {
                let (versions, delete_markers) = split(&page, query.encoding);
                ListObjectVersionsOutput {
                    name: Some(asked.bucket.clone()),
                    prefix: Some(query.prefix()),
                    delimiter: query.delimiter(),
                    encoding_type: asked.encoding_type.clone(),
                    max_keys: Some(query.max_keys()),
                    key_marker: Some(query.encoding.apply(name)),
                    version_id_marker: Some(version.unwrap_or_default().to_owned()),
                    is_truncated: Some(page.truncated),
                    next_key_marker: last_name(&page).map(|name| query.encoding.apply(name)),
                    next_version_id_marker: last_version(&page),
                    versions: Some(versions),
                    delete_markers: Some(delete_markers),
                    common_prefixes: Some(query.common_prefixes(&page)),
                    ..Default::default()
                }
            },
        )
    }
}

fn scope_asked<'a>(prefix: Option<&'a str>, delimiter: Option<&'a str>, limit: Option<i32>) -> S3Result<Scope<'a>> {
    Ok(Scope {
        prefix: prefix.unwrap_or_default(),
        delimiter: delimiter.filter(|delimiter| !delimiter.is_empty()),
        limit: limit_asked(limit)?,
    })
}

/// Where the next page goes on; `None` when there is none.
fn last_name<'a>(page: &Page<'a>) -> Option<&'a str> {
    page.entries.last().filter(|_| page.truncated).map(|entry| match *entry {
        Entry::Version { key, .. } => key,
        Entry::Prefix(prefix) => prefix,
    })
}

fn last_version(page: &Page<'_>) -> Option<String> {
    match page.entries.last().filter(|_| page.truncated)? {
        Entry::Version { version, .. } => Some(version.id.to_string()),
        Entry::Prefix(_) => None,
    }
}

/// Tokens are opaque to clients, and must survive XML whatever the key is.
fn token_for(name: &str) -> String {
    format!("{TOKEN_MARK}{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

fn name_in_token(token: &str) -> S3Result<String> {
    let name = token.strip_prefix(TOKEN_MARK).and_then(|name| percent_decode_str(name).decode_utf8().ok());
    name.map(Into::into).ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))
}

fn split(page: &Page<'_>, encoding: Encoding) -> (Vec<ObjectVersion>, Vec<DeleteMarkerEntry>) {
    let mut versions = Vec::new();
    let mut markers = Vec::new();
    for entry in &page.entries {
        let Entry::Version { key, version, is_latest } = entry else { continue };
        let key = Some(encoding.apply(key));
        let (is_latest, last_modified) = (Some(*is_latest), Some(version.modified.into()));
        let version_id = Some(version.id.to_string());
        if version.is_marker() {
            markers.push(DeleteMarkerEntry { is_latest, key, last_modified, owner: None, version_id });
        } else {
            versions.push(ObjectVersion {
                e_tag: etag(version),
                is_latest,
                key,
                last_modified,
                size: Some(size(version)),
                storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
                version_id,
                ..Default::default()
            });
        }
    }
    (versions, markers)
}

fn etag(version: &Version) -> Option<ETag> {
    version.content.as_ref().map(|content| ETag::Strong(content.etag.clone()))
}

fn size(version: &Version) -> i64 {
    let bytes = version.content.as_ref().map_or(0, |content| content.body.len());
    i64::try_from(bytes).expect("no body in memory has 2^63 bytes")
}
