//! How much lies below the prefixes of a plan now, as a purge would meet it.
//!
//! Invariant: looking is bounded, in pages and in time; where it stopped before the end the figures are a lower bound,
//! and say so. A store that does not answer spoils its own figures and never the plan.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    domain::{location::Location, outcome::EntryKind},
    objects::stores::{NamedStore, Stores},
};

/// Pages listed of one location: a hundred thousand objects.
const MOST_PAGES: usize = 100;

/// Pages listed of one location's uploads: ten thousand.
const MOST_UPLOAD_PAGES: usize = 10;

/// Locations counted at a time: a cascade has many, and most are small.
const AT_A_TIME: usize = 8;

/// For all locations together. Whoever waits for a dry run waits for this, too.
const AT_MOST: Duration = Duration::from_secs(10);

/// What lies below one prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Where.
    pub location: Location,
    /// Objects; an older version and a delete marker are such, as in the receipt.
    pub objects: u64,
    /// Of them, versions behind a newer one or behind a delete marker.
    pub older_versions: u64,
    /// Of them, delete markers.
    pub delete_markers: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// There may be more: counting stopped.
    pub at_least: bool,
    /// Why the store did not tell, or not to the end.
    pub error: Option<String>,
    /// Unfinished multipart uploads, which no listing of objects shows.
    pub uploads: Uploads,
}

/// The unfinished multipart uploads below one prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Uploads {
    /// How many.
    pub count: u64,
    /// There may be more: counting stopped.
    pub at_least: bool,
    /// Why the store did not tell, or not to the end.
    pub error: Option<String>,
}

/// Counts what lies at these places. Changes nothing.
pub async fn count(stores: &Stores, locations: Vec<Location>) -> Vec<Count> {
    let deadline = Instant::now() + AT_MOST;
    let counts = locations.into_iter().map(|location| Count::of(stores, location, deadline));
    stream::iter(counts).buffered(AT_A_TIME).collect().await
}

impl Count {
    async fn of(stores: &Stores, location: Location, deadline: Instant) -> Self {
        let mut count = Self {
            location,
            objects: 0,
            older_versions: 0,
            delete_markers: 0,
            bytes: 0,
            at_least: false,
            error: None,
            uploads: Uploads::default(),
        };
        match stores.at(&count.location) {
            Ok(store) => {
                count.error = count.add_objects(store, deadline).await.err();
                count.uploads.error = count.add_uploads(store, deadline).await.err();
            }
            Err(error) => {
                count.error = Some(error.to_string());
                count.uploads.error = Some(error.to_string());
            }
        }
        count
    }

    async fn add_objects(&mut self, store: &NamedStore, deadline: Instant) -> Result<(), String> {
        let mut after = None;
        for _ in 0..MOST_PAGES {
            let (bucket, prefix) = (&self.location.bucket, self.location.prefix.as_str());
            let listing = store.objects.list(bucket, prefix, after.as_ref());
            let Some(page) = within(deadline, listing).await else { break };
            let page = page.map_err(|error| error.to_string())?;
            for entry in &page.entries {
                self.objects += 1;
                self.older_versions += u64::from(entry.kind == EntryKind::Older);
                self.delete_markers += u64::from(entry.kind == EntryKind::Marker);
                self.bytes += entry.size;
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
        self.at_least = true;
        Ok(())
    }

    async fn add_uploads(&mut self, store: &NamedStore, deadline: Instant) -> Result<(), String> {
        let mut after = None;
        for _ in 0..MOST_UPLOAD_PAGES {
            let (bucket, prefix) = (&self.location.bucket, self.location.prefix.as_str());
            let listing = store.objects.list_uploads(bucket, prefix, after.as_ref());
            let Some(page) = within(deadline, listing).await else { break };
            let page = page.map_err(|error| error.to_string())?;
            self.uploads.count += page.uploads.len() as u64;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
        self.uploads.at_least = true;
        Ok(())
    }
}

/// Begins nothing that cannot be waited for.
async fn within<T>(deadline: Instant, listing: impl Future<Output = T>) -> Option<T> {
    if Instant::now() >= deadline {
        return None;
    }
    timeout_at(deadline, listing).await.ok()
}
