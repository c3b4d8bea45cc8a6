//! Where the objects of a live resource lie, by its row as it is now.
//!
//! Invariant: no place leaves here that could not be trusted with a delete, and none inside of another. Asked when a
//! resource is trashed, and once more at the point of no return, when a place that is new keeps it from being purged.
//! Objects that are named one by one are recorded instead, in the database, which is also asked again for those that came
//! later: one with a name that cannot be one is refused, and nothing of it is recorded.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::{
    domain::{
        ids::{ResourceId, TombstoneId},
        location::{KeyPlace, Location, UnsafePlace, parse_address},
        map::{ObjectsAt, ResourceKind},
    },
    store::{
        StoreError,
        platform::{self, ResourceRow},
        recorded::{self, Written},
    },
};

/// Why the places cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum UnknownPlace {
    /// A prefix that could reach too far, or a column that cannot stand in one.
    #[error(transparent)]
    Unsafe(#[from] UnsafePlace),
    /// An objects query named a bucket that its store does not list.
    #[error("its objects query names the bucket {0:?}, which its store does not list")]
    ForeignBucket(String),
    /// The database, or a query of the map.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Every place of a resource's objects: sorted, each once, and none inside another.
///
/// # Errors
/// [`UnknownPlace`].
pub async fn resolve(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    row: &ResourceRow,
) -> Result<Vec<Location>, UnknownPlace> {
    let mut found = BTreeSet::new();
    for at in &kind.objects {
        match at {
            ObjectsAt::Template { store, address, bucket, prefix } => {
                let prefix = prefix.render(id, |column| row.columns.get(column).cloned().flatten())?;
                found.insert(Location::new(store.clone(), bucket.clone(), prefix, address));
            }
            ObjectsAt::Query { store, address: server, buckets, query } => {
                for address in platform::addresses(&mut *conn, kind, id, query).await? {
                    let (bucket, prefix) = parse_address(&address)?;
                    if !buckets.contains(&bucket) {
                        return Err(UnknownPlace::ForeignBucket(bucket));
                    }
                    found.insert(Location::new(store.clone(), bucket, prefix, server));
                }
            }
            ObjectsAt::Keys(_) => {}
        }
    }
    let mut places: Vec<Location> = Vec::new();
    for place in found {
        // sorted, so what contains a place comes before it
        if !places.iter().any(|outer| outer.contains(&place)) {
            places.push(place);
        }
    }
    Ok(places)
}

/// Records what a resource's rows name now, for a tombstone with these places, beside what is recorded already; counts
/// what is new there, and gives back how much that is. The caller's transaction is spoiled by an error.
///
/// # Errors
/// [`UnknownPlace`]: a name that no object can have, or one in a bucket that is none of `places`.
pub async fn record(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    tombstone: TombstoneId,
    places: &mut [KeyPlace],
) -> Result<u64, UnknownPlace> {
    let mut new = 0;
    for named in kind.named_objects() {
        match recorded::record(&mut *conn, kind, named, id, tombstone, places).await? {
            Written::All(counts) => {
                for (place, count) in places.iter_mut().zip(counts) {
                    place.keys += count;
                    new += count;
                }
            }
            Written::NoKey(name) => {
                let name = name.map_or_else(|| "a null".to_owned(), |name| format!("{name:?}"));
                return Err(UnsafePlace::Key(name).into());
            }
            Written::NoEtag(key) => return Err(UnsafePlace::NoEtag(key).into()),
            Written::ForeignBucket(bucket) => return Err(UnknownPlace::ForeignBucket(bucket)),
        }
    }
    Ok(new)
}
