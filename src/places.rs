//! Where the objects of a live resource lie, by its row as it is now.
//!
//! Invariant: no place leaves here that could not be trusted with a delete, and none inside of another. Asked when a
//! resource is trashed, and once more at the point of no return, when a place that is new keeps it from being purged.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::{
    domain::{
        ids::ResourceId,
        location::{Location, UnsafePlace, parse_address},
        map::{ObjectsAt, ResourceKind},
    },
    store::{
        StoreError,
        platform::{self, ResourceRow},
    },
};

/// Why the places cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
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
/// [`PlaceError`].
pub async fn resolve(
    conn: &mut PgConnection,
    kind: &ResourceKind,
    id: &ResourceId,
    row: &ResourceRow,
) -> Result<Vec<Location>, PlaceError> {
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
                        return Err(PlaceError::ForeignBucket(bucket));
                    }
                    found.insert(Location::new(store.clone(), bucket, prefix, server));
                }
            }
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
