//! What only a purge can find out, and what it has to believe: `check` says so where it cannot look.
//!
//! Invariant: whatever is said here is a warning. Nothing is asked of a store: the one question that would tell is a delete.

use std::collections::BTreeMap;

use super::{Findings, Level};
use crate::{
    config::StoreConfig,
    domain::{
        location::StoreName,
        map::{ObjectsAt, ResourceKind, ResourceMap},
    },
};

/// Buckets of one name in several stores: whether these are one server by two addresses, nobody but its people know.
pub(super) fn buckets_of_one_name(stores: &BTreeMap<StoreName, StoreConfig>, findings: &mut Findings) {
    for (at, (name, store)) in stores.iter().enumerate() {
        for (other_name, other) in stores.iter().skip(at + 1) {
            if let Some(bucket) = store.buckets.iter().find(|bucket| other.buckets.contains(bucket)) {
                let found = format!(
                    "it lists a bucket {bucket}, as {name} does: if {} and {} are one server, nobody sees that what one \
                     kind names there is below the prefix of another; then list the bucket in one of them alone",
                    store.address(),
                    other.address()
                );
                findings.add(Level::Warning, format!("store {other_name}"), found);
            }
        }
    }
}

/// Kinds whose objects go only while they have their ETag, in a bucket that keeps no versions.
pub(super) fn conditions(map: &ResourceMap, store: &StoreName, bucket: &str, about: &str, findings: &mut Findings) {
    for kind in map.kinds() {
        if kind.named_objects().any(|named| named.only_if_unchanged && named.reaches(store, bucket)) {
            let found = format!(
                "whether it compares ETags, only a delete can show, and check sends none: a purge of the kind {} asks \
                 first, and where the store does not show it deletes nothing and is stuck with NoConditionalDelete",
                kind.kind
            );
            findings.add(Level::Warning, about, found);
        }
    }
}

/// Kinds whose prefixes a query returns: which those are, nobody knows before it is asked for one resource.
pub(super) fn queried_prefixes(map: &ResourceMap, findings: &mut Findings) {
    for kind in map.kinds() {
        let queried = kind.objects.iter().filter_map(|at| match at {
            ObjectsAt::Query { store, buckets, .. } => Some((store, buckets)),
            ObjectsAt::Template { .. } | ObjectsAt::Keys(_) => None,
        });
        let places: Vec<(&StoreName, &String)> =
            queried.flat_map(|(store, buckets)| buckets.iter().map(move |bucket| (store, bucket))).collect();
        for other in map.kinds() {
            let is_in = |(store, bucket): &&(&StoreName, &String)| {
                other.named_objects().any(|named| named.reaches(store, bucket))
            };
            if let Some((_, bucket)) = places.iter().find(is_in) {
                let found = format!(
                    "an object in {bucket} that it names is not kept for a live {0} below whose prefix it lies: which \
                     prefixes those are, only the objects query of {0} knows",
                    kind.kind
                );
                findings.add(Level::Warning, other.kind.to_string(), found);
            }
            if kind.kind != other.kind
                && !is_family(kind, other)
                && let Some((_, bucket)) = places.iter().find(|(store, bucket)| is_emptied(other, store, bucket))
            {
                let found = format!(
                    "whether a prefix in {bucket} that its objects query returns lies inside one of the kind {}, or around \
                     one, cannot be told, and the query is believed: let each address hold the resource's id",
                    other.kind
                );
                findings.add(Level::Warning, kind.kind.to_string(), found);
            }
        }
    }
}

/// Each purge looks for children by itself, and kinds that are parts of one table have ids of their own.
fn is_family(a: &ResourceKind, b: &ResourceKind) -> bool {
    let is_parent = |a: &ResourceKind, b: &ResourceKind| a.children.iter().any(|children| children.kind == b.kind);
    a.table == b.table || is_parent(a, b) || is_parent(b, a)
}

/// Whether a purge of the kind empties prefixes there.
fn is_emptied(kind: &ResourceKind, store: &StoreName, bucket: &str) -> bool {
    kind.objects.iter().any(|at| match at {
        ObjectsAt::Template { store: own, bucket: of, .. } => own == store && of == bucket,
        ObjectsAt::Query { store: own, buckets, .. } => own == store && buckets.iter().any(|of| of == bucket),
        ObjectsAt::Keys(_) => false,
    })
}
