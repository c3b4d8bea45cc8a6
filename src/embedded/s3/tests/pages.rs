//! The pages of a listing against a model that is plainly right and slow.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use s3s::S3Result;

use crate::embedded::s3::bucket::{Bucket, ObjectLock};
use crate::embedded::s3::listing::{self, Entry, Marker, Scope};
use crate::embedded::s3::lock::{Bypass, Lock};
use crate::embedded::s3::store::Versioning;
use crate::embedded::s3::version::{Content, VersionId};

/// What became of a key: how many versions were written, and whether a delete marker ends them.
type History = (String, usize, bool);

fn histories() -> impl Strategy<Value = Vec<History>> {
    // Few letters, so that prefixes, delimiters and keys meet; two that sort at the ends of Unicode.
    let key = "[ab/\u{1}\u{10ffff}]{1,5}";
    proptest::collection::vec((key, 1..4_usize, any::<bool>()), 0..25)
}

fn bucket_with(histories: &[History]) -> S3Result<Bucket> {
    let mut bucket = Bucket::new(ObjectLock::Absent, Arc::default());
    bucket.set_versioning(Versioning::Enabled)?;
    for (key, writes, deleted) in histories {
        for _ in 0..*writes {
            bucket.put(key, Arc::new(Content::plain(Bytes::new())), Lock::default())?;
        }
        if *deleted {
            bucket.delete(key, None, Bypass::Nothing)?;
        }
    }
    Ok(bucket)
}

/// The name under which a listing shows a key.
fn shown(key: &str, prefix: &str, delimiter: Option<&str>) -> Option<String> {
    let rest = key.strip_prefix(prefix)?;
    let cut = delimiter.and_then(|delimiter| rest.find(delimiter).map(|place| place + delimiter.len()));
    Some(format!("{prefix}{}", &rest[..cut.unwrap_or(rest.len())]))
}

proptest! {
    #[test]
    fn pages_of_objects_show_each_name_once_and_in_order(
        histories in histories(),
        prefix in "[ab/]{0,2}",
        delimiter in proptest::option::of("[ab/]{1,2}"),
        limit in 1..5_usize,
    ) {
        let bucket = bucket_with(&histories).unwrap();
        let delimiter = delimiter.as_deref();
        let live = bucket.objects.iter().filter(|(_, versions)| versions.last().is_some_and(|last| !last.is_marker()));
        let expected: BTreeSet<_> = live.filter_map(|(key, _)| shown(key, &prefix, delimiter)).collect();

        let mut seen: Vec<String> = Vec::new();
        loop {
            let name = seen.last().cloned().unwrap_or_default();
            let scope = Scope { prefix: &prefix, delimiter, limit };
            let page = listing::objects(&bucket.objects, scope, Marker { name: &name, version: None });
            prop_assert!(page.entries.len() <= limit);
            prop_assert!(!page.truncated || page.entries.len() == limit);
            seen.extend(page.entries.iter().map(|entry| match *entry {
                Entry::Version { key, .. } => key.to_owned(),
                Entry::Prefix(prefix) => prefix.to_owned(),
            }));
            if !page.truncated {
                break;
            }
        }
        prop_assert_eq!(seen, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn pages_of_versions_end_with_all_gone_when_each_is_deleted_once_shown(
        histories in histories(),
        limit in 1..5_usize,
    ) {
        let mut bucket = bucket_with(&histories).unwrap();
        let stored: usize = bucket.objects.values().map(Vec::len).sum();
        let mut gone = 0;
        let mut seen: Option<(String, VersionId)> = None;
        loop {
            let marker = seen.as_ref().map_or_else(Marker::default, |(key, id)| Marker { name: key, version: Some(*id) });
            let page = listing::versions(&bucket.objects, Scope { prefix: "", delimiter: None, limit }, marker);
            let more = page.truncated;
            let batch: Vec<_> = page.entries.iter().filter_map(|entry| match *entry {
                Entry::Version { key, version, .. } => Some((key.to_owned(), version.id)),
                Entry::Prefix(_) => None,
            }).collect();
            for (key, id) in &batch {
                bucket.delete(key, Some(*id), Bypass::Nothing).unwrap();
            }
            gone += batch.len();
            seen = batch.last().cloned();
            if !more {
                break;
            }
        }
        prop_assert!(bucket.objects.is_empty());
        prop_assert_eq!(gone, stored);
    }
}
