//! Into the trash and back: what users, services and operators ask for.
//!
//! Invariant: everything here happens before the point of no return and can be undone. A request is carried out whole
//! or not at all, and what refuses it is named whole: every blocker of every resource that a cascade would touch.

mod count;
mod error;
mod operate;
mod plan;
mod request_purge;
mod restore;
mod write;

use std::sync::Arc;

use serde::Serialize;

pub use self::{
    count::{Count, Uploads, count},
    error::{NoRetry, Refusals, TrashError, how_far, timestamp},
    plan::{KeyPlan, Member, Plan},
    request_purge::PurgeAnswer,
    restore::{IfChildrenLost, Restored},
    write::Trashed,
};
use crate::{
    config::{Config, RetentionConfig},
    domain::{
        ids::{Kind, ResourceRef},
        map::{ResourceKind, ResourceMap},
        retention::Retention,
        tombstone::Provenance,
    },
    store::{Store, foreign_keys::Known},
};

/// The trash bin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrashBin {
    store: Store,
    map: Arc<ResourceMap>,
    retention: RetentionConfig,
    keys: Known,
}

/// A request to trash.
#[derive(Debug, Clone, Serialize)]
pub struct TrashRequest {
    /// What.
    pub resource: ResourceRef,
    /// Kinds of children to trash along with it; children of other kinds stay.
    pub with: Vec<Kind>,
    /// A restore window of its own.
    #[serde(skip)]
    pub retention: Option<Retention>,
    /// By whom and why.
    pub by: Provenance,
}

impl TrashBin {
    /// A trash bin over the platform's database.
    pub fn new(store: Store, config: &Config) -> Self {
        Self {
            store,
            map: Arc::new(config.map.clone()),
            retention: config.retention,
            keys: Known::new(config.purge.row_chunk),
        }
    }

    /// The database, for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The resource map.
    pub fn map(&self) -> &ResourceMap {
        &self.map
    }

    /// Reads a kind and an id from outside.
    ///
    /// # Errors
    /// [`TrashError::UnknownKind`] or [`TrashError::MalformedId`].
    pub fn resource(&self, kind: &str, id: &str) -> Result<ResourceRef, TrashError> {
        let kind = self.map.kind(kind)?;
        let id = kind.id_type.parse(id).map_err(|error| TrashError::MalformedId { kind: kind.kind.clone(), error })?;
        Ok(ResourceRef { kind: kind.kind.clone(), id })
    }

    /// Reads the kinds that a cascade names.
    ///
    /// # Errors
    /// [`TrashError::UnknownKind`].
    pub fn kinds<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Kind>, TrashError> {
        names.into_iter().map(|name| Ok(self.map.kind(name)?.kind.clone())).collect()
    }

    fn kind_of(&self, resource: &ResourceRef) -> Result<&ResourceKind, TrashError> {
        Ok(self.map.kind(resource.kind.as_str())?)
    }
}
