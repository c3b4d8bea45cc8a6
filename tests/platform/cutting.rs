//! When a long listing is cut into ranges that are listed at the same time: where deletes wait for it, and not where it
//! waits for them.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use reprieve::domain::location::StoreName;
use reprieve::domain::outcome::{BatchOutcome, KeyOutcome, ObjectRef};
use reprieve::objects::flow::{Ceiling, Flow};
use reprieve::objects::stores::{NamedStore, Stores};
use reprieve::objects::{
    BucketFacts, Cursor, ObjectLock, ObjectStore, ObjectsError, Page, Permit, UnfinishedUpload, UploadPage,
};
use reprieve::purge::{Purger, SliceEnd};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::bench::{BUCKET, Bench, budget};
use crate::gate::GateStore;
use crate::keyed::{MAP, TABLES};

/// Pages that the objects fill, of which the last is not whole; a page is a batch.
const PAGES: usize = 10;
const OBJECTS: usize = 6_950;

/// Which of the two waits for the other. Neither waits for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    /// A delete is answered when four more pages were listed than there were deletes before it.
    Deletes,
    /// The first pages come when the batches before them are gone.
    Listings,
    /// A delete is answered when the next has begun, so that each page finds one in flight; the third page comes when
    /// the delete before that one is answered, and takes several times as long as it did.
    Alike,
}

#[derive(Debug)]
struct Paced {
    inner: Arc<GateStore>,
    slow: Slow,
    lists: watch::Sender<usize>,
    deletes_begun: watch::Sender<usize>,
    /// How long the last delete took.
    delete_took: Mutex<Duration>,
    deletes: watch::Sender<usize>,
    listing: AtomicUsize,
    most_listing: AtomicUsize,
}

impl Paced {
    fn is_cut(&self) -> bool {
        self.most_listing.load(Ordering::SeqCst) > 1
    }
}

async fn until(count: &watch::Sender<usize>, met: impl Fn(usize) -> bool) {
    count.subscribe().wait_for(|count| met(*count)).await.expect("the sender is ours");
}

#[async_trait]
impl ObjectStore for Paced {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let before = *self.lists.borrow();
        if self.slow == Slow::Listings && before < 3 {
            until(&self.deletes, |deletes| deletes >= before).await;
        }
        if self.slow == Slow::Alike && !self.is_cut() {
            until(&self.deletes_begun, |begun| begun >= before).await;
            until(&self.deletes, |deletes| deletes + 1 >= before).await;
            if before == 2 {
                let delete_took = *self.delete_took.lock().expect("nobody panics with it");
                sleep((4 * delete_took).max(Duration::from_millis(20))).await;
            }
        }
        let listing = self.listing.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_listing.fetch_max(listing, Ordering::SeqCst);
        // whoever lists at the same time begins
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let page = self.inner.list(bucket, prefix, after).await;
        self.listing.fetch_sub(1, Ordering::SeqCst);
        self.lists.send_modify(|lists| *lists += 1);
        page
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let began = Instant::now();
        self.deletes_begun.send_modify(|begun| *begun += 1);
        let number = *self.deletes_begun.borrow();
        // a listing that was cut may never get that far
        match self.slow {
            Slow::Deletes => until(&self.lists, |lists| lists >= (number + 4).min(PAGES) || self.is_cut()).await,
            Slow::Alike => until(&self.deletes_begun, |begun| begun > number.min(PAGES - 1) || self.is_cut()).await,
            Slow::Listings => {}
        }
        let answer = self.inner.delete(bucket, objects).await;
        *self.delete_took.lock().expect("nobody panics with it") = began.elapsed();
        self.deletes.send_modify(|deletes| *deletes += 1);
        answer
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        self.inner.list_uploads(bucket, prefix, after).await
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        self.inner.abort_upload(permit, bucket, upload).await
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        self.inner.lock_of(bucket, object).await
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        self.inner.facts(bucket).await
    }
}

/// Purges a folder; says how many listings it took, and how many there were at the same time.
async fn listings(slow: Slow, concurrency: u32) -> (usize, usize) {
    let bench = Bench::with(MAP, TABLES, |_| ()).await;
    bench.run("insert into plat.folders values ('f')").await;
    (0..OBJECTS).for_each(|n| bench.objects.memory().put(BUCKET, &format!("folders/f/{n:04}"), 1));
    let id = bench.trash_due("folder", "f").await;
    let store = Arc::new(Paced {
        inner: bench.objects.clone(),
        slow,
        lists: watch::Sender::new(0),
        deletes_begun: watch::Sender::new(0),
        delete_took: Mutex::new(Duration::ZERO),
        deletes: watch::Sender::new(0),
        listing: AtomicUsize::new(0),
        most_listing: AtomicUsize::new(0),
    });
    let name = StoreName::parse("main").expect("a name");
    let config = &bench.config.stores[&name];
    let concurrency = NonZeroU32::new(concurrency).expect("some");
    let named = NamedStore {
        objects: store.clone(),
        batch_size: config.batch_size,
        buckets: config.buckets.clone(),
        address: config.address(),
        flow: Flow::new(Ceiling { concurrency, objects_per_second: None }),
    };
    let (map, purge) = (Arc::new(bench.config.map.clone()), bench.config.purge.clone());
    let stores = Stores::new([(name, named)]);
    let purger = Purger::new(bench.store.clone(), map, stores, purge, bench.metrics.clone()).expect("fine settings");
    assert_eq!(purger.run_slice(id, &budget()).await.expect("no outage"), SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((bench.objects(), progress.objects_deleted), (0, OBJECTS as u64));
    (*store.lists.borrow(), store.most_listing.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_listing_is_cut_where_deletes_wait_for_it() {
    let (lists, at_once) = listings(Slow::Listings, 4).await;
    // each range, all of them once more, and the verification
    assert!(lists > PAGES + 3 && at_once > 1, "{lists} listings, {at_once} at once");
}

#[tokio::test]
async fn a_listing_that_is_ahead_of_the_deletes_is_not_cut() {
    let (lists, at_once) = listings(Slow::Deletes, 4).await;
    assert_eq!((lists, at_once), (PAGES + 1, 1), "each page once, and the verification");
}

#[tokio::test]
async fn a_listing_is_not_cut_where_one_delete_at_a_time_is_allowed() {
    let (lists, at_once) = listings(Slow::Listings, 1).await;
    assert_eq!((lists, at_once), (PAGES + 1, 1));
}

#[tokio::test]
async fn a_listing_is_cut_where_a_page_takes_as_long_as_a_delete_although_one_is_in_flight() {
    let (lists, at_once) = listings(Slow::Alike, 2).await;
    assert!(lists > PAGES + 3 && at_once > 1, "{lists} listings, {at_once} at once");
}
