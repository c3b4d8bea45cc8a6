//! The pages of a listing, of objects and of versions.
//!
//! Invariant: a page costs what it shows, not what the bucket holds: it starts by a look-up in the ordered map and
//! leaps over whole common prefixes. An entry, be it a key or a common prefix, is shown only when its name sorts after
//! the marker, so that pages never overlap and any name last seen is a good marker.

use std::collections::btree_map;
use std::ops::Bound;

use super::bucket::Objects;
use super::version::{Version, VersionId};

/// The most entries on one page (S3 API reference, ListObjectsV2).
pub(super) const MAX_PAGE: usize = 1000;

/// What a page is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) prefix: &'a str,
    /// Never empty.
    pub(super) delimiter: Option<&'a str>,
    pub(super) limit: usize,
}

/// The last entry that the client has seen; no key is empty, so the default is the very beginning.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marker<'a> {
    pub(super) name: &'a str,
    /// With it, the rest of the versions of the key are still to come.
    pub(super) version: Option<VersionId>,
}

/// An entry of a page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry<'a> {
    Version { key: &'a str, version: &'a Version, is_latest: bool },
    Prefix(&'a str),
}

/// A page.
#[derive(Debug, Default)]
pub(super) struct Page<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    /// Whether more follow.
    pub(super) truncated: bool,
}

/// A page of the objects: those keys whose latest version is no delete marker.
pub(super) fn objects<'a>(objects: &'a Objects, scope: Scope<'_>, marker: Marker<'_>) -> Page<'a> {
    page(objects, scope, marker, |key, versions| {
        let latest = versions.last().filter(|version| !version.is_marker());
        latest.map(|version| Entry::Version { key, version, is_latest: true }).into_iter()
    })
}

/// A page of all versions and delete markers, for each key newest first.
pub(super) fn versions<'a>(objects: &'a Objects, scope: Scope<'_>, marker: Marker<'_>) -> Page<'a> {
    page(objects, scope, marker, |key, versions| {
        let rest = match marker.version {
            Some(seen) if key == marker.name => older_than(versions, seen),
            _ => versions,
        };
        let latest = versions.last().map(|version| version.sequence);
        rest.iter().rev().map(move |version| Entry::Version {
            key,
            version,
            is_latest: Some(version.sequence) == latest,
        })
    })
}

/// The versions that come after `seen` in a listing. When a null version has been deleted since, its place is not
/// known any more; then all are listed again, because twice does no harm and never would.
fn older_than(versions: &[Version], seen: VersionId) -> &[Version] {
    let end = match seen {
        VersionId::Numbered(sequence) => versions.partition_point(|version| version.sequence < sequence),
        VersionId::Null => versions.iter().position(|version| version.id == seen).unwrap_or(versions.len()),
    };
    &versions[..end]
}

fn page<'a, I: Iterator<Item = Entry<'a>>>(
    objects: &'a Objects,
    scope: Scope<'_>,
    marker: Marker<'_>,
    entries_of: impl Fn(&'a str, &'a [Version]) -> I,
) -> Page<'a> {
    let mut page = Page::default();
    if scope.limit == 0 {
        return page;
    }
    let mut rest = start(objects, scope, marker);
    while let Some((key, versions)) = rest.next() {
        if !key.starts_with(scope.prefix) {
            break;
        }
        let prefix = common_prefix(key, scope);
        if let Some(prefix) = prefix
            && prefix <= marker.name
        {
            rest = from(objects, after_prefix(prefix));
            continue;
        }
        for entry in entries_of(key, versions) {
            if page.entries.len() == scope.limit {
                page.truncated = true;
                return page;
            }
            page.entries.push(prefix.map_or(entry, Entry::Prefix));
            if let Some(prefix) = prefix {
                rest = from(objects, after_prefix(prefix));
                break;
            }
        }
    }
    page
}

fn start<'a>(objects: &'a Objects, scope: Scope<'_>, marker: Marker<'_>) -> btree_map::Range<'a, String, Vec<Version>> {
    let after_marker =
        if marker.version.is_some() { Bound::Included(marker.name) } else { Bound::Excluded(marker.name) };
    let lower = if marker.name < scope.prefix { Bound::Included(scope.prefix) } else { after_marker };
    objects.range::<str, _>((lower, Bound::Unbounded))
}

fn from(objects: &Objects, lower: Option<String>) -> btree_map::Range<'_, String, Vec<Version>> {
    match lower {
        Some(lower) => objects.range(lower..),
        // No key can follow: an empty range.
        None => objects.range::<str, _>((Bound::Excluded(""), Bound::Excluded("\0"))),
    }
}

/// The part of the key up to the first delimiter after the prefix, with it.
fn common_prefix<'a>(key: &'a str, scope: Scope<'_>) -> Option<&'a str> {
    let delimiter = scope.delimiter?;
    let found = key[scope.prefix.len()..].find(delimiter)?;
    Some(&key[..scope.prefix.len() + found + delimiter.len()])
}

/// The smallest string that sorts after everything that starts with `prefix`, if there is one.
pub(super) fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // A range of chars leaps over the surrogates, and UTF-8 sorts as the code points do.
        if let Some(next) = (last..=char::MAX).nth(1) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}
