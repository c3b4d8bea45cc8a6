//! The stores of a platform, by the names that the configuration gives them.
//!
//! Invariant: one client for each store in a process, shared by all tasks.

use std::{collections::BTreeMap, sync::Arc};

use super::ObjectStore;
use crate::domain::location::StoreName;

/// A store and what the configuration says of it.
#[derive(Debug, Clone)]
pub struct NamedStore {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// Keys in one delete request.
    pub batch_size: usize,
    /// The buckets that may be touched.
    pub buckets: Vec<String>,
}

/// A store that the configuration does not have (any more).
#[derive(Debug, Clone, thiserror::Error)]
#[error("there is no section [stores.{0}] in the configuration")]
pub struct UnknownStore(StoreName);

/// Every store. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stores(Arc<BTreeMap<StoreName, NamedStore>>);

impl Stores {
    /// The stores of these names.
    pub fn new(stores: impl IntoIterator<Item = (StoreName, NamedStore)>) -> Self {
        Self(Arc::new(stores.into_iter().collect()))
    }

    /// The store of that name.
    ///
    /// # Errors
    /// [`UnknownStore`].
    pub fn get(&self, name: &StoreName) -> Result<&NamedStore, UnknownStore> {
        self.0.get(name).ok_or_else(|| UnknownStore(name.clone()))
    }

    /// Every store with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&StoreName, &NamedStore)> {
        self.0.iter()
    }
}
