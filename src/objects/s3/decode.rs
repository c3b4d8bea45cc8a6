//! Reads the answers that hold a thousand keys each, in place of the SDK's decoder, which takes several times as long.
//!
//! Invariant: an answer is taken whole and well formed, or it is none: the request failed with an answer that nobody can
//! read. What it does not take along are fields that nothing here looks at. Answers that are not 200 are the SDK's.

use std::error::Error;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{DeleteMarkerEntry, DeletedObject, EncodingType, Error as Refused, Object, ObjectVersion};
use aws_smithy_runtime_api::client::interceptors::context::{Output, OutputOrError};
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use quick_xml::Reader;
use quick_xml::events::Event;

/// Takes the place of the SDK's decoder for one operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decode {
    /// ListObjectsV2.
    List,
    /// ListObjectVersions.
    Versions,
    /// DeleteObjects.
    Delete,
}

/// An answer that is not one.
#[derive(Debug, thiserror::Error)]
#[error("no whole XML document of the kind that was asked for")]
struct Unreadable;

impl Intercept for Decode {
    fn name(&self) -> &'static str {
        "Decode"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        if context.response().status().as_u16() == 200 {
            config.interceptor_state().store_put(SharedResponseDeserializer::new(*self));
        }
        Ok(())
    }
}

impl DeserializeResponse for Decode {
    fn deserialize_nonstreaming_with_config(&self, response: &HttpResponse, _: &ConfigBag) -> OutputOrError {
        let text = response.body().bytes().and_then(|bytes| std::str::from_utf8(bytes).ok());
        let output = text.and_then(|text| match self {
            Self::List => list(text).map(Output::erase),
            Self::Versions => versions(text).map(Output::erase),
            Self::Delete => deletes(text).map(Output::erase),
        });
        output.ok_or_else(|| OrchestratorError::other(Unreadable))
    }
}

/// A page; `None`: not one that this reads.
fn list(text: &str) -> Option<ListObjectsV2Output> {
    let mut page = ListObjectsV2Output::builder();
    let (mut contents, mut object) = (Vec::new(), Object::builder());
    let mut is_whole = true;
    walk(text, "ListBucketResult", |path, text| match path {
        ["IsTruncated"] => match boolean(text) {
            Some(more) => page = page.clone().is_truncated(more),
            None => is_whole = false,
        },
        ["EncodingType"] => page = page.clone().encoding_type(EncodingType::from(text)),
        ["NextContinuationToken"] => page = page.clone().next_continuation_token(text),
        ["Contents", "Key"] => object = std::mem::take(&mut object).key(text),
        ["Contents", "Size"] => match text.trim().parse() {
            Ok(size) => object = std::mem::take(&mut object).size(size),
            Err(_) => is_whole = false,
        },
        ["Contents"] => contents.push(std::mem::take(&mut object).build()),
        _ => {}
    })?;
    is_whole.then(|| page.set_contents(Some(contents)).build())
}

/// A page of versions and delete markers; `None`: not one that this reads.
fn versions(text: &str) -> Option<ListObjectVersionsOutput> {
    let mut page = ListObjectVersionsOutput::builder();
    let (mut versions, mut markers) = (Vec::new(), Vec::new());
    let (mut version, mut marker) = (ObjectVersion::builder(), DeleteMarkerEntry::builder());
    let mut is_whole = true;
    let written = |text: &str| DateTime::from_str(text.trim(), DateTimeFormat::DateTimeWithOffset);
    walk(text, "ListVersionsResult", |path, text| match path {
        ["IsTruncated"] => match boolean(text) {
            Some(more) => page = page.clone().is_truncated(more),
            None => is_whole = false,
        },
        ["EncodingType"] => page = page.clone().encoding_type(EncodingType::from(text)),
        ["NextKeyMarker"] => page = page.clone().next_key_marker(text),
        ["NextVersionIdMarker"] => page = page.clone().next_version_id_marker(text),
        ["Version", "Key"] => version = std::mem::take(&mut version).key(text),
        ["Version", "VersionId"] => version = std::mem::take(&mut version).version_id(text),
        ["Version", "IsLatest"] => version = std::mem::take(&mut version).is_latest(text.trim() == "true"),
        ["Version", "LastModified"] => match written(text) {
            Ok(at) => version = std::mem::take(&mut version).last_modified(at),
            Err(_) => is_whole = false,
        },
        ["Version", "Size"] => match text.trim().parse() {
            Ok(size) => version = std::mem::take(&mut version).size(size),
            Err(_) => is_whole = false,
        },
        ["Version"] => versions.push(std::mem::take(&mut version).build()),
        ["DeleteMarker", "Key"] => marker = std::mem::take(&mut marker).key(text),
        ["DeleteMarker", "VersionId"] => marker = std::mem::take(&mut marker).version_id(text),
        ["DeleteMarker", "LastModified"] => match written(text) {
            Ok(at) => marker = std::mem::take(&mut marker).last_modified(at),
            Err(_) => is_whole = false,
        },
        ["DeleteMarker"] => markers.push(std::mem::take(&mut marker).build()),
        _ => {}
    })?;
    is_whole.then(|| page.set_versions(Some(versions)).set_delete_markers(Some(markers)).build())
}

/// What became of the keys; `None`: not an answer that this reads.
fn deletes(text: &str) -> Option<DeleteObjectsOutput> {
    let (mut gone, mut refused) = (Vec::new(), Vec::new());
    let (mut deleted, mut failed) = (DeletedObject::builder(), Refused::builder());
    walk(text, "DeleteResult", |path, text| match path {
        ["Deleted", "Key"] => deleted = std::mem::take(&mut deleted).key(text),
        ["Deleted", "VersionId"] => deleted = std::mem::take(&mut deleted).version_id(text),
        ["Deleted", "DeleteMarkerVersionId"] => {
            deleted = std::mem::take(&mut deleted).delete_marker_version_id(text);
        }
        ["Deleted"] => gone.push(std::mem::take(&mut deleted).build()),
        ["Error", "Key"] => failed = std::mem::take(&mut failed).key(text),
        ["Error", "VersionId"] => failed = std::mem::take(&mut failed).version_id(text),
        ["Error", "Code"] => failed = std::mem::take(&mut failed).code(text),
        ["Error", "Message"] => failed = std::mem::take(&mut failed).message(text),
        ["Error"] => refused.push(std::mem::take(&mut failed).build()),
        _ => {}
    })?;
    Some(DeleteObjectsOutput::builder().set_deleted(Some(gone)).set_errors(Some(refused)).build())
}

/// As stores write it. What is neither of the two must not be taken for "no", which ends a listing.
fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Calls `leave` at the end of each element below the root, with its path from there and its text. `None`: this is no
/// whole document with that root.
fn walk(document: &str, root: &str, mut leave: impl FnMut(&[&str], &str)) -> Option<()> {
    let mut reader = Reader::from_str(document);
    let mut path: Vec<&str> = Vec::with_capacity(4);
    let mut text = String::new();
    let mut is_closed = false;
    loop {
        let before = usize::try_from(reader.buffer_position()).ok()?;
        match reader.read_event().ok()? {
            Event::Start(start) => {
                // the name as it stands in the document, which outlives the event
                let name = name_at(document, before, start.local_name().as_ref())?;
                if is_closed || (path.is_empty() && name != root) {
                    return None;
                }
                path.push(name);
                text.clear();
            }
            Event::Empty(empty) => {
                let name = name_at(document, before, empty.local_name().as_ref())?;
                path.push(name);
                leave(path.get(1..)?, "");
                path.pop();
            }
            Event::Text(part) => text.push_str(&part.decode().ok()?),
            Event::CData(part) => text.push_str(&part.decode().ok()?),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                Some(c) => text.push(c),
                None => text.push_str(quick_xml::escape::resolve_predefined_entity(&reference.decode().ok()?)?),
            },
            Event::End(_) => {
                leave(path.get(1..)?, &text);
                path.pop()?;
                text.clear();
                is_closed = path.is_empty();
            }
            Event::Eof => return is_closed.then_some(()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// The slice of the document that is this name, which begins within a few bytes after `from`.
fn name_at<'a>(document: &'a str, from: usize, name: &[u8]) -> Option<&'a str> {
    let name = std::str::from_utf8(name).ok()?;
    let rest = document.get(from..)?;
    let at = rest.find(name)?;
    rest.get(at..at + name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_what_xml_escapes() {
        let page = list(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><Name>b</Name><Prefix>a/</Prefix>\
             <IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>\
             <NextContinuationToken>t&amp;1</NextContinuationToken>\
             <Contents><Key>a/&lt;&#x31;&#50;&quot;</Key><ETag>\"e\"</ETag><Size>12</Size></Contents>\
             <Contents><Key><![CDATA[a/&]]></Key><Size> 0 </Size><Owner><ID>Key</ID></Owner></Contents>\
             <CommonPrefixes><Prefix>a/b/</Prefix></CommonPrefixes></ListBucketResult>",
        )
        .expect("a page");
        let contents: Vec<_> = page.contents().iter().map(|object| (object.key(), object.size())).collect();
        assert_eq!(contents, [(Some("a/<12\""), Some(12)), (Some("a/&"), Some(0))]);
        assert_eq!((page.is_truncated, page.next_continuation_token()), (Some(true), Some("t&1")));
        assert_eq!(page.encoding_type(), Some(&EncodingType::Url));
    }

    #[test]
    fn a_page_of_versions_is_read_with_its_delete_markers() {
        let page = versions(
            "<ListVersionsResult><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><KeyMarker/>\
             <NextKeyMarker>a/2%20</NextKeyMarker><NextVersionIdMarker>v9</NextVersionIdMarker>\
             <DeleteMarker><Key>a/1</Key><VersionId>m</VersionId><IsLatest>true</IsLatest>\
             <LastModified>1970-01-01T00:00:02.000Z</LastModified><Owner><ID>me</ID></Owner></DeleteMarker>\
             <Version><Key>a/1</Key><VersionId>null</VersionId><IsLatest>false</IsLatest>\
             <LastModified>1970-01-01T00:00:01.5Z</LastModified><ETag>\"e\"</ETag><Size>7</Size></Version>\
             <Version><IsLatest>true</IsLatest><Key>a/2</Key></Version></ListVersionsResult>",
        )
        .expect("a page");
        let seen: Vec<_> = page
            .versions()
            .iter()
            .map(|v| (v.key(), v.version_id(), v.is_latest(), v.size(), v.last_modified().map(|at| at.as_nanos())))
            .collect();
        assert_eq!(
            seen,
            [
                (Some("a/1"), Some("null"), Some(false), Some(7), Some(1_500_000_000)),
                (Some("a/2"), None, Some(true), None, None)
            ]
        );
        let markers: Vec<_> = page
            .delete_markers()
            .iter()
            .map(|marker| (marker.key(), marker.version_id(), marker.last_modified().map(DateTime::secs)))
            .collect();
        assert_eq!(markers, [(Some("a/1"), Some("m"), Some(2))]);
        assert_eq!((page.is_truncated, page.encoding_type()), (Some(true), Some(&EncodingType::Url)));
        assert_eq!((page.next_key_marker(), page.next_version_id_marker()), (Some("a/2%20"), Some("v9")));
    }

    #[test]
    fn an_answer_to_a_delete_is_read_with_every_entry() {
        let answer = deletes(
            "<DeleteResult><Deleted><Key>a</Key><VersionId>v</VersionId></Deleted>\
             <Error><Key>b</Key><Code>AccessDenied</Code><Message>no &amp; no</Message><VersionId/></Error>\
             <Deleted><Key>c</Key><DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>m</DeleteMarkerVersionId></Deleted>\
             </DeleteResult>",
        )
        .expect("an answer");
        let deleted: Vec<_> = answer
            .deleted()
            .iter()
            .map(|gone| (gone.key(), gone.version_id(), gone.delete_marker_version_id()))
            .collect();
        assert_eq!(deleted, [(Some("a"), Some("v"), None), (Some("c"), None, Some("m"))]);
        let failed: Vec<_> =
            answer.errors().iter().map(|failed| (failed.key(), failed.code(), failed.message())).collect();
        assert_eq!(failed, [(Some("b"), Some("AccessDenied"), Some("no & no"))]);
    }

    #[test]
    fn what_is_not_whole_or_not_such_an_answer_is_none() {
        let page = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size></Contents>\
                    </ListBucketResult>";
        assert!(list(page).is_some());
        for end in 0..page.len() {
            assert!(list(&page[..end]).is_none(), "{}", &page[..end]);
        }
        for other in ["", "<html></html>", "<Error><Code>SlowDown</Code></Error>", "{}", "<a>&nope;</a>"] {
            assert!(list(other).is_none() && versions(other).is_none() && deletes(other).is_none(), "{other}");
        }
        let version =
            "<ListVersionsResult><Version><LastModified>yesterday</LastModified></Version></ListVersionsResult>";
        assert!(versions(version).is_none());
        assert!(list("<ListBucketResult><Contents><Size>many</Size></Contents></ListBucketResult>").is_none());
        assert!(list("<ListBucketResult><Name>&nope;</Name></ListBucketResult>").is_none());
    }

    #[test]
    fn a_page_that_says_neither_yes_nor_no_to_more_is_none() {
        for said in ["<IsTruncated/>", "<IsTruncated>1</IsTruncated>", "<IsTruncated>TRUE</IsTruncated>"] {
            assert!(list(&format!("<ListBucketResult>{said}</ListBucketResult>")).is_none(), "{said}");
            assert!(versions(&format!("<ListVersionsResult>{said}</ListVersionsResult>")).is_none(), "{said}");
        }
        let spaced = list("<ListBucketResult><IsTruncated> false\n</IsTruncated></ListBucketResult>");
        assert_eq!(spaced.and_then(|page| page.is_truncated), Some(false));
    }
}
