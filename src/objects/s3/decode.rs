//! Reads the answers that hold a thousand keys each, in place of the SDK's decoder, which takes several times as long; and
//! those in which something missing would mean that nothing is there, since that decoder takes half a document for a whole.
//!
//! Invariant: an answer is taken whole and well formed, or it is none: the request failed with an answer that nobody can
//! read. What it does not take along are fields that nothing here looks at. Answers that are not 200 are the SDK's.

use std::error::Error;

use aws_sdk_s3::config::interceptors::BeforeSerializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::operation::delete_objects::{DeleteObjects, DeleteObjectsOutput};
use aws_sdk_s3::operation::get_bucket_versioning::{GetBucketVersioning, GetBucketVersioningOutput};
use aws_sdk_s3::operation::get_object_legal_hold::{GetObjectLegalHold, GetObjectLegalHoldOutput};
use aws_sdk_s3::operation::get_object_retention::{GetObjectRetention, GetObjectRetentionOutput};
use aws_sdk_s3::operation::list_multipart_uploads::{ListMultipartUploads, ListMultipartUploadsOutput};
use aws_sdk_s3::operation::list_object_versions::{ListObjectVersions, ListObjectVersionsOutput};
use aws_sdk_s3::operation::list_objects_v2::{ListObjectsV2, ListObjectsV2Output};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{
    BucketVersioningStatus, DeleteMarkerEntry, DeletedObject, EncodingType, Error as Refused, MultipartUpload, Object,
    ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention, ObjectLockRetentionMode, ObjectVersion,
};
use aws_smithy_runtime_api::client::interceptors::context::{Output, OutputOrError};
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::runtime_plugin::RuntimePlugin;
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use aws_smithy_types::config_bag::FrozenLayer;
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
    /// ListMultipartUploads.
    Uploads,
    /// GetBucketVersioning.
    Versioning,
    /// GetObjectRetention.
    Retention,
    /// GetObjectLegalHold.
    LegalHold,
}

/// An answer that is not one.
#[derive(Debug, thiserror::Error)]
#[error("no whole XML document of the kind that was asked for")]
struct Unreadable;

impl Intercept for Decode {
    fn name(&self) -> &'static str {
        "Decode"
    }

    // once for all attempts: what is put here stays from one to the next
    fn read_before_serialization(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        config.interceptor_state().store_put(SharedResponseDeserializer::new(*self));
        Ok(())
    }
}

impl DeserializeResponse for Decode {
    fn deserialize_nonstreaming_with_config(&self, response: &HttpResponse, config: &ConfigBag) -> OutputOrError {
        if response.status().as_u16() == 200 {
            let text = response.body().bytes().and_then(|bytes| std::str::from_utf8(bytes).ok());
            return text.and_then(|text| self.read(text)).ok_or_else(|| OrchestratorError::other(Unreadable));
        }
        let operation = self.operation();
        let sdks = operation.as_ref().and_then(|operation| operation.load::<SharedResponseDeserializer>());
        let sdks = sdks.ok_or_else(|| OrchestratorError::other("the SDK has no decoder of this operation"))?;
        sdks.deserialize_nonstreaming_with_config(response, config)
    }
}

impl Decode {
    fn read(self, text: &str) -> Option<Output> {
        match self {
            Self::List => list(text).map(Output::erase),
            Self::Versions => versions(text).map(Output::erase),
            Self::Delete => deletes(text).map(Output::erase),
            Self::Uploads => uploads(text).map(Output::erase),
            Self::Versioning => versioning(text).map(Output::erase),
            Self::Retention => retention(text).map(Output::erase),
            Self::LegalHold => legal_hold(text).map(Output::erase),
        }
    }

    /// What the SDK makes the operation of, its own decoder within.
    fn operation(self) -> Option<FrozenLayer> {
        match self {
            Self::List => ListObjectsV2::new().config(),
            Self::Versions => ListObjectVersions::new().config(),
            Self::Delete => DeleteObjects::new().config(),
            Self::Uploads => ListMultipartUploads::new().config(),
            Self::Versioning => GetBucketVersioning::new().config(),
            Self::Retention => GetObjectRetention::new().config(),
            Self::LegalHold => GetObjectLegalHold::new().config(),
        }
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
            Some(at) => version = std::mem::take(&mut version).last_modified(at),
            None => is_whole = false,
        },
        ["Version", "Size"] => match text.trim().parse() {
            Ok(size) => version = std::mem::take(&mut version).size(size),
            Err(_) => is_whole = false,
        },
        ["Version"] => versions.push(std::mem::take(&mut version).build()),
        ["DeleteMarker", "Key"] => marker = std::mem::take(&mut marker).key(text),
        ["DeleteMarker", "VersionId"] => marker = std::mem::take(&mut marker).version_id(text),
        ["DeleteMarker", "LastModified"] => match written(text) {
            Some(at) => marker = std::mem::take(&mut marker).last_modified(at),
            None => is_whole = false,
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

/// A page of unfinished uploads; `None`: not one that this reads.
fn uploads(text: &str) -> Option<ListMultipartUploadsOutput> {
    let mut page = ListMultipartUploadsOutput::builder();
    let (mut uploads, mut upload) = (Vec::new(), MultipartUpload::builder());
    let mut is_whole = true;
    walk(text, "ListMultipartUploadsResult", |path, text| match path {
        ["IsTruncated"] => match boolean(text) {
            Some(more) => page = page.clone().is_truncated(more),
            None => is_whole = false,
        },
        ["EncodingType"] => page = page.clone().encoding_type(EncodingType::from(text)),
        ["NextKeyMarker"] => page = page.clone().next_key_marker(text),
        ["NextUploadIdMarker"] => page = page.clone().next_upload_id_marker(text),
        ["Upload", "Key"] => upload = std::mem::take(&mut upload).key(text),
        ["Upload", "UploadId"] => upload = std::mem::take(&mut upload).upload_id(text),
        ["Upload"] => uploads.push(std::mem::take(&mut upload).build()),
        _ => {}
    })?;
    is_whole.then(|| page.set_uploads(Some(uploads)).build())
}

/// Whether versions are kept, which a bucket that never kept any answers with nothing; `None`: not such an answer.
fn versioning(text: &str) -> Option<GetBucketVersioningOutput> {
    let mut status = None;
    walk(text, "VersioningConfiguration", |path, text| {
        if path == ["Status"] {
            status = Some(BucketVersioningStatus::from(text.trim()));
        }
    })?;
    Some(GetBucketVersioningOutput::builder().set_status(status).build())
}

/// Until when a version is kept; `None`: not an answer that this reads.
fn retention(text: &str) -> Option<GetObjectRetentionOutput> {
    let mut retention = ObjectLockRetention::builder();
    let mut is_whole = true;
    walk(text, "Retention", |path, text| match path {
        ["Mode"] => retention = retention.clone().mode(ObjectLockRetentionMode::from(text.trim())),
        ["RetainUntilDate"] => match written(text) {
            Some(until) => retention = retention.clone().retain_until_date(until),
            None => is_whole = false,
        },
        _ => {}
    })?;
    is_whole.then(|| GetObjectRetentionOutput::builder().retention(retention.build()).build())
}

/// Whether a version is held; `None`: not an answer that this reads.
fn legal_hold(text: &str) -> Option<GetObjectLegalHoldOutput> {
    let mut status = None;
    walk(text, "LegalHold", |path, text| {
        if path == ["Status"] {
            status = Some(ObjectLockLegalHoldStatus::from(text.trim()));
        }
    })?;
    let hold = ObjectLockLegalHold::builder().set_status(status).build();
    Some(GetObjectLegalHoldOutput::builder().legal_hold(hold).build())
}

/// A date as S3 writes it.
fn written(text: &str) -> Option<DateTime> {
    DateTime::from_str(text.trim(), DateTimeFormat::DateTimeWithOffset).ok()
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
                if is_closed || (path.is_empty() && name != root) {
                    return None;
                }
                path.push(name);
                leave(path.get(1..)?, "");
                path.pop();
                is_closed = path.is_empty();
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
    fn what_is_cut_before_it_says_what_there_is_does_not_say_that_there_is_nothing() {
        let kept = "<VersioningConfiguration xmlns=\"x\"><Status>Enabled</Status></VersioningConfiguration>";
        let page = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><NextKeyMarker/>\
                    <Upload><Key>a/&amp;</Key><UploadId>u</UploadId><Owner><ID>Key</ID></Owner></Upload>\
                    </ListMultipartUploadsResult>";
        let locked =
            "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>1970-01-01T00:00:02Z</RetainUntilDate></Retention>";
        let held = "<LegalHold><Status>ON</Status></LegalHold>";
        for end in 0..kept.len() {
            assert!(versioning(&kept[..end]).is_none(), "{}", &kept[..end]);
        }
        for end in 0..page.len() {
            assert!(uploads(&page[..end]).is_none(), "{}", &page[..end]);
        }
        for end in 0..locked.len() {
            assert!(retention(&locked[..end]).is_none(), "{}", &locked[..end]);
        }
        for end in 0..held.len() {
            assert!(legal_hold(&held[..end]).is_none(), "{}", &held[..end]);
        }
        let status = |text| versioning(text).expect("whole").status;
        assert_eq!(status(kept), Some(BucketVersioningStatus::Enabled));
        for never in ["<VersioningConfiguration xmlns=\"x\"/>", "<VersioningConfiguration></VersioningConfiguration>"] {
            assert_eq!(status(never), None);
        }
        let page = uploads(page).expect("whole");
        let seen: Vec<_> = page.uploads().iter().map(|upload| (upload.key(), upload.upload_id())).collect();
        assert_eq!((seen, page.is_truncated), (vec![(Some("a/&"), Some("u"))], Some(false)));
        let until = retention(locked).expect("whole").retention.expect("one");
        assert_eq!((until.mode, until.retain_until_date.map(|at| at.secs())), (Some("COMPLIANCE".into()), Some(2)));
        assert_eq!(legal_hold(held).expect("whole").legal_hold.and_then(|hold| hold.status), Some("ON".into()));
    }

    #[test]
    fn a_second_document_behind_the_first_makes_it_none() {
        let page = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        for more in ["<x/>", "<x></x>", page] {
            assert!(list(&format!("{page}{more}")).is_none(), "{more}");
        }
        assert!(list(&format!("{page}\n")).is_some());
    }

    #[test]
    fn a_page_that_says_neither_yes_nor_no_to_more_is_none() {
        for said in ["<IsTruncated/>", "<IsTruncated>1</IsTruncated>", "<IsTruncated>TRUE</IsTruncated>"] {
            assert!(list(&format!("<ListBucketResult>{said}</ListBucketResult>")).is_none(), "{said}");
            assert!(versions(&format!("<ListVersionsResult>{said}</ListVersionsResult>")).is_none(), "{said}");
            let page = format!("<ListMultipartUploadsResult>{said}</ListMultipartUploadsResult>");
            assert!(uploads(&page).is_none(), "{said}");
        }
        let spaced = list("<ListBucketResult><IsTruncated> false\n</IsTruncated></ListBucketResult>");
        assert_eq!(spaced.and_then(|page| page.is_truncated), Some(false));
    }
}
