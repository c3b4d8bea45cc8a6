//! Aborts what no listing of objects shows: multipart uploads below the prefixes that nobody has finished.
//!
//! Invariant: [`NoUploads`] is made here and nowhere else, and only after a listing of each location's uploads, from the
//! beginning, has shown none. It comes before the verification and not after it: an upload that its writer completes
//! meanwhile is an object by then, which the fresh listing shows. An abort that fails keeps the rows like an object that
//! stays; one that cannot be aborted holds up no other.

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};

use super::{Budget, PurgeError, Purger, claim::Claimed, empty::Emptied};
use crate::{
    domain::{
        location::Location,
        outcome::{FailureClass, KeyFailure, KeyOutcome},
    },
    failpoint,
    objects::{ObjectsError, Permit, UnfinishedUpload, stores::NamedStore},
    store::tombstones::purging::{self, Fenced},
};

/// Aborts in flight: they go one by one, as single deletes do.
const IN_FLIGHT: usize = 8;

/// Uploads between two looks at the time, pauses and the lease: a page shows up to a thousand.
const BATCH: usize = 100;

/// Listings of one location in a slice. Aborting can take more than one try while parts are still being sent (S3 API
/// reference, AbortMultipartUpload), and some stores (SeaweedFS) leave uploads out between two pages; what is there after
/// so many is left to a later slice.
const LISTINGS: usize = 20;

/// Every location was emptied of objects, and then no unfinished upload was left.
#[derive(Debug)]
pub(super) struct NoUploads {
    pub(super) claimed: Box<Claimed>,
}

/// Where aborting ended.
#[derive(Debug)]
#[must_use]
pub(super) enum Aborting {
    /// None is left; to be verified.
    Done(NoUploads),
    /// The slice is over.
    OutOfTime(Box<Claimed>),
    /// Somebody paused it.
    Paused(Box<Claimed>),
}

/// Why to stop before the uploads of a location are gone.
enum Early {
    OutOfTime,
    Paused,
}

impl Purger {
    pub(super) async fn abort_uploads(&self, emptied: Emptied, budget: &Budget) -> Result<Aborting, PurgeError> {
        let Emptied { mut claimed } = emptied;
        for location in claimed.tombstone.locations.clone() {
            let store = self.stores.at(&location)?.clone();
            match self.abort_below(&mut claimed, &store, &location, budget).await? {
                None => {}
                Some(Early::OutOfTime) => return Ok(Aborting::OutOfTime(claimed)),
                Some(Early::Paused) => return Ok(Aborting::Paused(claimed)),
            }
        }
        failpoint::at("uploads.none_left");
        Ok(Aborting::Done(NoUploads { claimed }))
    }

    /// Lists and aborts until a listing shows none.
    async fn abort_below(
        &self,
        claimed: &mut Claimed,
        store: &NamedStore,
        location: &Location,
        budget: &Budget,
    ) -> Result<Option<Early>, PurgeError> {
        for _ in 0..LISTINGS {
            let (mut after, mut shown, mut refused) = (None, 0, None);
            loop {
                let page =
                    store.objects.list_uploads(&location.bucket, location.prefix.as_str(), after.as_ref()).await?;
                shown += page.uploads.len();
                for batch in page.uploads.chunks(BATCH) {
                    if budget.is_spent(claimed.has_worked) {
                        // what is refused is listed first again: whoever goes on would not get further than this
                        return refused.map_or(Ok(Some(Early::OutOfTime)), |error: ObjectsError| Err(error.into()));
                    }
                    let failed = match self.abort_batch(claimed, store, location, batch).await? {
                        Go::On(failed) => failed,
                        Go::Paused => return Ok(Some(Early::Paused)),
                    };
                    if let Some(error) = failed {
                        if error.class != FailureClass::Permanent {
                            return Err(error.into());
                        }
                        refused.get_or_insert(error);
                    }
                }
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            match refused {
                Some(error) => return Err(error.into()),
                None if shown == 0 => return Ok(None),
                None => {}
            }
        }
        let message = format!("uploads are still listed after {LISTINGS} rounds of aborting them");
        let failure = KeyFailure { code: "StillListed".into(), message, class: FailureClass::Transient };
        Err(not_aborted(location, location.prefix.as_str(), failure).into())
    }

    /// Aborts a batch of uploads and counts them. A crash before they are counted leaves them uncounted, and gone.
    async fn abort_batch(
        &self,
        claimed: &mut Claimed,
        store: &NamedStore,
        location: &Location,
        uploads: &[UnfinishedUpload],
    ) -> Result<Go, PurgeError> {
        // fences, extends the lease and asks for pauses
        if let Some(stop) = self.count_uploads(claimed, 0).await? {
            return Ok(stop);
        }
        let lease = claimed.lease.clone();
        let permit = Permit::new(move || lease.is_certain());
        // Boxed: the compiler cannot yet show that a stream of borrowing futures is `Send` (rust-lang/rust#102211).
        let abort = |upload| store.objects.abort_upload(&permit, &location.bucket, upload).boxed();
        let aborts: Vec<BoxFuture<'_, KeyOutcome>> = uploads.iter().map(abort).collect();
        let outcomes: Vec<KeyOutcome> = stream::iter(aborts).buffered(IN_FLIGHT).collect().await;
        failpoint::at("uploads.aborted");
        claimed.has_worked = true;
        let aborted = outcomes.iter().filter(|outcome| **outcome == KeyOutcome::Deleted).count() as u64;
        let paused = self.count_uploads(claimed, aborted).await?;
        failpoint::at("uploads.counted");
        let failures = uploads.iter().zip(outcomes).filter_map(|(upload, outcome)| match outcome {
            // the next listing tells about those without an answer
            KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent | KeyOutcome::Unknown => None,
            KeyOutcome::Failed(why) => Some(not_aborted(location, &upload.key, why)),
        });
        // what may pass is waited for, whatever else there is
        let worst = failures.min_by_key(|error| error.class == FailureClass::Permanent);
        Ok(paused.unwrap_or(Go::On(worst)))
    }

    async fn count_uploads(&self, claimed: &mut Claimed, aborted: u64) -> Result<Option<Go>, PurgeError> {
        let count = async {
            let mut conn = self.store.conn().await?;
            purging::count_uploads(&mut conn, &claimed.lease, aborted).await
        };
        match self.store.within(1, count).await? {
            Fenced::Lost => Err(PurgeError::LeaseLost),
            Fenced::Ours { paused } => {
                claimed.progress.uploads_aborted += aborted;
                Ok(paused.then_some(Go::Paused))
            }
        }
    }
}

/// Whether to go on after a batch, and what could not be aborted.
enum Go {
    On(Option<ObjectsError>),
    Paused,
}

fn not_aborted(location: &Location, key: &str, why: KeyFailure) -> ObjectsError {
    let KeyFailure { code, message, class } = why;
    let (bucket, prefix) = (location.bucket.clone(), key.to_owned());
    ObjectsError { operation: "AbortMultipartUpload", bucket, prefix, code, message, class, retry_after: None }
}
