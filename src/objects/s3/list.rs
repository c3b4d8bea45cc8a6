//! One page of a listing, decoded and checked.
//!
//! Invariants: an entry that does not lie below the prefix is an error, never an entry, because what a listing shows
//! gets deleted. A page either moves on or ends the listing, after a bounded number of requests. A cursor names the
//! last entry seen, not a continuation token, so that it holds in another process and on another day.

use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;

use super::decode::Decode;
use super::{S3Store, Scope};
use crate::domain::outcome::{EntryKind, FailureClass, ObjectRef};
use crate::objects::{Cursor, MAX_BATCH, ObjectEntry, ObjectsError, Page};

/// How many empty pages that promise more are followed within one call. Stores send them when they skip over many
/// entries that do not show (delete markers, expired uploads).
pub(super) const EMPTY_PAGES: usize = 100;

/// The version id of objects that were written without versioning (S3 User Guide, null version ID).
const NULL_VERSION: &str = "null";

pub(super) const PAGE: i32 = MAX_BATCH as i32;

impl S3Store {
    /// Current objects, by ListObjectsV2.
    pub(super) async fn list_current(&self, scope: Scope<'_>, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let scope = scope.of("ListObjectsV2");
        let request = self
            .client
            .list_objects_v2()
            .bucket(scope.bucket)
            .prefix(scope.subject)
            .max_keys(PAGE)
            .encoding_type(EncodingType::Url);
        let mut place = request.clone().set_start_after(after.map(|cursor| cursor.key.clone()));
        for _ in 0..EMPTY_PAGES {
            let answer = place.customize().interceptor(Decode::List).send().await;
            let answer = answer.map_err(|error| self.failed(scope, &error))?;
            let entries = current_entries(&scope, &answer)?;
            if !scope.truncated(answer.is_truncated, &entries)? {
                return Ok(Page { entries, next: None });
            }
            if let Some(last) = entries.last() {
                let next = Cursor { key: last.object.key.clone(), version: None };
                return scope.moved_on(after, Page { entries, next: Some(next) });
            }
            let token = answer.next_continuation_token.filter(|token| !token.is_empty());
            let token = token.ok_or_else(|| scope.broken("an empty page promises more and does not say where"))?;
            place = request.clone().continuation_token(token);
        }
        Err(scope.endless())
    }

    /// Every version and delete marker, by ListObjectVersions.
    pub(super) async fn list_versions(&self, scope: Scope<'_>, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let scope = scope.of("ListObjectVersions");
        let request = self
            .client
            .list_object_versions()
            .bucket(scope.bucket)
            .prefix(scope.subject)
            .max_keys(PAGE)
            .encoding_type(EncodingType::Url);
        let mut place = after.cloned();
        for _ in 0..EMPTY_PAGES {
            let (key, version) = place.map(|cursor| (cursor.key, cursor.version)).unzip();
            let asked = request.clone().set_key_marker(key).set_version_id_marker(version.flatten());
            let answer = asked.customize().interceptor(Decode::Versions).send().await;
            let answer = answer.map_err(|error| self.failed(scope, &error))?;
            let entries = version_entries(&scope, &answer, after)?;
            if !scope.truncated(answer.is_truncated, &entries)? {
                return Ok(Page { entries, next: None });
            }
            let next = next_version(&scope, &answer, &entries)?;
            let empty = entries.is_empty();
            let page = scope.moved_on(after, Page { entries, next: Some(next) })?;
            if !empty {
                return Ok(page);
            }
            place = page.next;
        }
        Err(scope.endless())
    }
}

impl Scope<'_> {
    /// Whether more follows. An empty page ends a purge, so it has to say that it is the last; an answer with nothing
    /// in it at all does not.
    pub(super) fn truncated<T>(&self, sent: Option<bool>, entries: &[T]) -> Result<bool, ObjectsError> {
        match sent {
            Some(truncated) => Ok(truncated),
            // A full page without the field may well have a successor; the next page tells.
            None if !entries.is_empty() => Ok(true),
            None => Err(self.broken("an empty page does not say that it is the last")),
        }
    }

    /// A store that ignores the cursor would be listed for ever; the last entry of its page shows it.
    fn moved_on(&self, after: Option<&Cursor>, page: Page) -> Result<Page, ObjectsError> {
        if after.is_some() && page.next.as_ref() == after {
            return Err(self.broken("the page ends where it was told to start"));
        }
        Ok(page)
    }

    pub(super) fn broken(&self, message: &str) -> ObjectsError {
        self.error("BrokenListing", message, FailureClass::Permanent)
    }

    pub(super) fn endless(&self) -> ObjectsError {
        let message = format!("{EMPTY_PAGES} empty pages in a row promised more");
        self.error("EmptyPages", &message, FailureClass::Transient)
    }

    /// The key as the store holds it, checked to lie below the prefix.
    pub(super) fn key(&self, sent: Option<&str>, encoded: bool) -> Result<String, ObjectsError> {
        let sent = sent.ok_or_else(|| self.broken("an entry without a key"))?;
        let key = decode(sent, encoded).ok_or_else(|| self.broken("a key that is not UTF-8"))?;
        if key.starts_with(self.subject) {
            return Ok(key);
        }
        Err(self.broken(&format!("the key {key:?} is not below the prefix asked for")))
    }
}

/// Undoes `encoding-type=url`, where the answer says that it was applied. There `+` is a space.
pub(super) fn decode(sent: &str, encoded: bool) -> Option<String> {
    if !encoded {
        return Some(sent.to_owned());
    }
    let spaced = sent.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn bytes(size: Option<i64>) -> u64 {
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0)
}

fn current_entries(scope: &Scope<'_>, answer: &ListObjectsV2Output) -> Result<Vec<ObjectEntry>, ObjectsError> {
    let encoded = answer.encoding_type == Some(EncodingType::Url);
    let entry = |object: &aws_sdk_s3::types::Object| {
        let key = scope.key(object.key(), encoded)?;
        let object_ref = ObjectRef { key, version: None };
        Ok(ObjectEntry { object: object_ref, size: bytes(object.size()), kind: EntryKind::Current })
    };
    answer.contents().iter().map(entry).collect()
}

/// Versions and markers come as two lists; together they are sorted as the store would: by key, newest first. A version
/// behind `after` is an older one, even if all before it are deleted by now and the store calls it the latest.
fn version_entries(
    scope: &Scope<'_>,
    answer: &ListObjectVersionsOutput,
    after: Option<&Cursor>,
) -> Result<Vec<ObjectEntry>, ObjectsError> {
    let encoded = answer.encoding_type == Some(EncodingType::Url);
    let object = |key: Option<&str>, version: Option<&str>| {
        let version = version.filter(|version| !version.is_empty()).unwrap_or(NULL_VERSION).to_owned();
        Ok(ObjectRef { key: scope.key(key, encoded)?, version: Some(version) })
    };
    let versions = answer.versions().iter().map(|version| {
        let object = object(version.key(), version.version_id())?;
        let seen_before = after.is_some_and(|after| after.key == object.key);
        let kind =
            if version.is_latest() == Some(true) && !seen_before { EntryKind::Current } else { EntryKind::Older };
        Ok((version.last_modified().copied(), ObjectEntry { object, size: bytes(version.size()), kind }))
    });
    let markers = answer.delete_markers().iter().map(|marker| {
        let object = object(marker.key(), marker.version_id())?;
        Ok((marker.last_modified().copied(), ObjectEntry { object, size: 0, kind: EntryKind::Marker }))
    });
    let mut entries = versions.chain(markers).collect::<Result<Vec<_>, ObjectsError>>()?;
    entries.sort_by(|(a_written, a), (b_written, b)| a.object.key.cmp(&b.object.key).then(b_written.cmp(a_written)));
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

/// Where the store says to go on. One that does not say is asked to go on after the last key: that may skip versions
/// of this key, which the next listing from the start shows.
fn next_version(
    scope: &Scope<'_>,
    answer: &ListObjectVersionsOutput,
    entries: &[ObjectEntry],
) -> Result<Cursor, ObjectsError> {
    let encoded = answer.encoding_type == Some(EncodingType::Url);
    let Some(marker) = answer.next_key_marker().filter(|marker| !marker.is_empty()) else {
        let last = entries.last().ok_or_else(|| scope.broken("an empty page promises more and does not say where"))?;
        return Ok(Cursor { key: last.object.key.clone(), version: None });
    };
    let key = decode(marker, encoded).ok_or_else(|| scope.broken("a marker that is not UTF-8"))?;
    let version = answer.next_version_id_marker().filter(|version| !version.is_empty()).map(str::to_owned);
    Ok(Cursor { key, version })
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::DateTime;
    use aws_sdk_s3::types::{DeleteMarkerEntry, Object, ObjectVersion};

    use super::*;

    const SCOPE: Scope<'static> = Scope { operation: "ListObjectsV2", bucket: "b", subject: "a/" };

    #[test]
    fn keys_are_decoded_only_when_the_answer_says_that_they_are_encoded() {
        assert_eq!(decode("a%2Fb+c%2B", true).as_deref(), Some("a/b c+"));
        assert_eq!(decode("a%2Fb+c%2B", false).as_deref(), Some("a%2Fb+c%2B"));
        assert_eq!(decode("%FF", true), None);
    }

    #[test]
    fn a_key_outside_the_prefix_is_an_error() {
        let answer = ListObjectsV2Output::builder().contents(Object::builder().key("ab").build()).build();
        let error = current_entries(&SCOPE, &answer).expect_err("not below a/");
        assert_eq!((error.code.as_str(), error.class), ("BrokenListing", FailureClass::Permanent));
    }

    #[test]
    fn versions_and_markers_are_merged_newest_first_and_a_missing_version_is_null() {
        let at = DateTime::from_secs;
        let version = |key: &str, at: DateTime| ObjectVersion::builder().key(key).last_modified(at);
        let answer = ListObjectVersionsOutput::builder()
            .versions(version("a/1", at(30)).version_id("v3").size(3).is_latest(true).build())
            .versions(version("a/1", at(10)).build())
            .versions(version("a/2", at(10)).version_id("").build())
            .delete_markers(DeleteMarkerEntry::builder().key("a/1").version_id("v2").last_modified(at(20)).build())
            .build();
        let entries = version_entries(&SCOPE, &answer, None).expect("all below a/");
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.object.key.as_str(), e.object.version.as_deref().unwrap_or("-"), e.size))
            .collect();
        assert_eq!(seen, [("a/1", "v3", 3), ("a/1", "v2", 0), ("a/1", "null", 0), ("a/2", "null", 0)]);
        let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [EntryKind::Current, EntryKind::Marker, EntryKind::Older, EntryKind::Older]);
        let after = Cursor { key: "a/1".into(), version: Some("v4".into()) };
        let rest = version_entries(&SCOPE, &answer, Some(&after)).expect("all below a/");
        assert_eq!(rest[0].kind, EntryKind::Older, "the latest because those before it are deleted by now");
    }

    #[test]
    fn only_a_page_that_says_so_is_the_last() {
        let object = ObjectRef { key: "a/1".into(), version: None };
        let entries = [ObjectEntry { object, size: 1, kind: EntryKind::Current }];
        assert!(SCOPE.truncated::<ObjectEntry>(None, &[]).is_err());
        assert_eq!(SCOPE.truncated(None, &entries).ok(), Some(true));
        assert_eq!(SCOPE.truncated::<ObjectEntry>(Some(false), &[]).ok(), Some(false));
    }

    #[test]
    fn a_page_that_ends_where_it_began_is_an_error() {
        let cursor = Cursor { key: "a/1".into(), version: None };
        let page = Page { entries: Vec::new(), next: Some(cursor.clone()) };
        assert!(SCOPE.moved_on(Some(&cursor), page.clone()).is_err());
        assert!(SCOPE.moved_on(None, page).is_ok());
    }
}
