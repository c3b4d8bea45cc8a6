//! Answers of a store as they come over the wire, read by the library's own files, which are private there.

#[path = "../../src/objects/s3/answer.rs"]
mod answer;
#[path = "../../src/objects/s3/decode.rs"]
mod decode;

use std::fmt::Write;
use std::hint::black_box;

use aws_smithy_runtime_api::client::interceptors::context::Output;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::ser_de::DeserializeResponse;
use aws_smithy_types::config_bag::ConfigBag;
use criterion::{BatchSize, Criterion, Throughput};
use reprieve::domain::outcome::{KeyOutcome, ObjectRef};

use self::answer::{Entry, attribute};
use self::decode::Decode;

const FIELDS: &str = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>\
    <ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>1024</Size><StorageClass>STANDARD</StorageClass>\
    <Owner><ID>75aa57f09aa0c8caeab4f8c24e99d10f8e7faeebf76c078efc7c6caea54ba06a</ID></Owner>";

fn document(root: &str, head: &str, each: impl Iterator<Item = String>) -> String {
    let mut text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root}>{head}");
    each.for_each(|part| text.push_str(&part));
    let _ = write!(text, "</{root}>");
    text
}

fn answered(text: String) -> HttpResponse {
    HttpResponse::new(200.try_into().expect("a status"), text.into())
}

/// One answer a call; `entries` says how many are in it.
fn read<T: Send + Sync + std::fmt::Debug + 'static>(
    c: &mut Criterion,
    name: &str,
    reader: &dyn DeserializeResponse,
    (text, entries): (String, impl Fn(&T) -> usize),
    expected: usize,
) {
    let (response, config) = (answered(text), ConfigBag::base());
    let read = || reader.deserialize_nonstreaming_with_config(black_box(&response), &config).expect("well formed");
    assert_eq!(entries(read().downcast_ref().expect("of this type")), expected, "or something else would be measured");
    let mut group = c.benchmark_group("answers");
    group.throughput(Throughput::Elements(expected as u64));
    group.bench_function(name, |b| b.iter(|| -> Output { read() }));
    group.finish();
}

pub(crate) fn answers(c: &mut Criterion, asked: &[ObjectRef]) {
    use aws_sdk_s3::operation::{
        delete_objects::DeleteObjectsOutput, list_object_versions::ListObjectVersionsOutput,
        list_objects_v2::ListObjectsV2Output,
    };
    let each = |part: fn(&str) -> String| asked.iter().map(move |object| part(&object.key.replace('/', "%2F")));
    let head = "<Name>b</Name><IsTruncated>true</IsTruncated><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType>";
    let page = document("ListBucketResult", head, each(|key| format!("<Contents><Key>{key}</Key>{FIELDS}</Contents>")));
    let entries = |page: &ListObjectsV2Output| page.contents().len();
    read(c, "a page", &Decode::List, (page, entries), asked.len());
    let versions = document(
        "ListVersionsResult",
        head,
        each(|key| {
            let id = "<VersionId>3sL4kqtJlcpXroDTDmJrmSpXd3dIbrHY</VersionId><IsLatest>true</IsLatest>";
            format!("<Version><Key>{key}</Key>{id}{FIELDS}</Version>")
        }),
    );
    let entries = |page: &ListObjectVersionsOutput| page.versions().len();
    read(c, "a page of versions", &Decode::Versions, (versions, entries), asked.len());
    let deleted = document(
        "DeleteResult",
        "",
        asked.iter().map(|object| format!("<Deleted><Key>{}</Key></Deleted>", object.key)),
    );
    let entries = |answer: &DeleteObjectsOutput| answer.deleted().len();
    read(c, "what was deleted", &Decode::Delete, (deleted, entries), asked.len());

    let mut group = c.benchmark_group("answers");
    group.throughput(Throughput::Elements(asked.len() as u64));
    // in another order than asked for, which a store may answer in
    let mention = |object: &ObjectRef| Entry { key: object.key.clone(), version: None, outcome: KeyOutcome::Deleted };
    let entries: Vec<Entry> = asked.iter().rev().map(mention).collect();
    assert!(attribute(asked, entries.clone()).iter().all(|(_, outcome)| outcome.is_gone()));
    group.bench_function("an outcome for each key", |b| {
        b.iter_batched(|| entries.clone(), |entries| attribute(black_box(asked), entries), BatchSize::SmallInput);
    });
    group.finish();
}
