//! The stores of a platform, by the names that the configuration gives them.
//!
//! Invariant: one client for each store in a process, shared by all tasks. A stored [`Location`] leads to a store only by
//! [`Stores::at`], which holds it against what the configuration says now: no bucket that is not listed, and no other
//! server than the one that it was resolved for, is ever asked for anything.

use std::{collections::BTreeMap, sync::Arc};

use super::{ObjectStore, flow::Flow};
use crate::domain::location::{KeyPlace, Location, StoreName};

/// A store and what the configuration says of it.
#[derive(Debug, Clone)]
pub struct NamedStore {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// Keys in one delete request.
    pub batch_size: usize,
    /// The buckets that may be touched.
    pub buckets: Vec<String>,
    /// Where it is: its endpoint, or `aws/REGION`.
    pub address: String,
    /// How much is asked of it at a time.
    pub flow: Flow,
}

/// A location that the configuration does not lead to (any more). Only somebody's help can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The configuration does not have the store.
    #[error("there is no section [stores.{0}] in the configuration")]
    UnknownStore(StoreName),
    /// The store does not list the bucket.
    #[error(
        "[stores.{store}] does not list the bucket {bucket:?}, so nothing in it is touched; list it again to go on"
    )]
    UnlistedBucket {
        /// The store.
        store: StoreName,
        /// The bucket.
        bucket: String,
    },
    /// The store's name stands for another server now, where the same prefix may be somebody else's, or empty.
    #[error(
        "store {store} was at {was} when this was trashed and is at {now} now; point it back, or give the new server a \
         name of its own"
    )]
    MovedStore {
        /// The store.
        store: StoreName,
        /// Its address when the location was resolved.
        was: String,
        /// Its address in the configuration.
        now: String,
    },
}

/// Every store. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stores(Arc<BTreeMap<StoreName, NamedStore>>);

impl Stores {
    /// The stores of these names.
    pub fn new(stores: impl IntoIterator<Item = (StoreName, NamedStore)>) -> Self {
        Self(Arc::new(stores.into_iter().collect()))
    }

    /// The store in which a location lies, if it may be touched.
    ///
    /// # Errors
    /// [`PlaceError`]: the store is gone or is another one now, or the bucket is no longer listed.
    pub fn at(&self, location: &Location) -> Result<&NamedStore, PlaceError> {
        let Location { store, bucket, endpoint, .. } = location;
        self.reach(store, bucket, endpoint.as_ref())
    }

    fn reach(&self, store: &StoreName, bucket: &str, endpoint: Option<&String>) -> Result<&NamedStore, PlaceError> {
        let named = self.0.get(store).ok_or_else(|| PlaceError::UnknownStore(store.clone()))?;
        if !named.buckets.iter().any(|listed| listed == bucket) {
            return Err(PlaceError::UnlistedBucket { store: store.clone(), bucket: bucket.to_owned() });
        }
        match endpoint {
            Some(was) if *was != named.address => {
                Err(PlaceError::MovedStore { store: store.clone(), was: was.clone(), now: named.address.clone() })
            }
            // a location of before addresses were kept has none
            Some(_) | None => Ok(named),
        }
    }

    /// The store in which recorded objects are, if it may be touched.
    ///
    /// # Errors
    /// As [`Stores::at`].
    pub fn at_keys(&self, place: &KeyPlace) -> Result<&NamedStore, PlaceError> {
        let KeyPlace { store, bucket, endpoint, .. } = place;
        self.reach(store, bucket, Some(endpoint))
    }

    /// Every store with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&StoreName, &NamedStore)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        domain::location::Prefix,
        objects::{flow::Ceiling, memory::MemoryStore},
    };

    fn place(store: &str, bucket: &str, address: &str) -> Location {
        let (store, prefix) = (StoreName::parse(store).unwrap(), Prefix::parse("a/1/").unwrap());
        Location::new(store, bucket.to_owned(), prefix, address)
    }

    #[test]
    fn only_what_the_configuration_still_leads_to_is_reached() {
        let main = StoreName::parse("main").unwrap();
        let objects = Arc::new(MemoryStore::new());
        let ceiling = Ceiling { concurrency: NonZeroU32::MIN, objects_per_second: None };
        let (buckets, address, flow) = (vec!["listed".into()], "http://a".into(), Flow::new(ceiling));
        let named = NamedStore { objects, batch_size: 1, buckets, address, flow };
        let stores = Stores::new([(main.clone(), named)]);
        let at = |place: &Location| stores.at(place).map(|_| ());
        assert_eq!(at(&place("main", "listed", "http://a")), Ok(()));
        assert_eq!(at(&Location { endpoint: None, ..place("main", "listed", "") }), Ok(()), "an older tombstone");
        let other = place("other", "listed", "http://a");
        assert_eq!(at(&other), Err(PlaceError::UnknownStore(other.store.clone())));
        let bucket = "unlisted".to_owned();
        assert_eq!(
            at(&place("main", &bucket, "http://a")),
            Err(PlaceError::UnlistedBucket { store: main.clone(), bucket })
        );
        let moved = PlaceError::MovedStore { store: main, was: "http://b".into(), now: "http://a".into() };
        assert_eq!(at(&place("main", "listed", "http://b")), Err(moved));
    }
}
