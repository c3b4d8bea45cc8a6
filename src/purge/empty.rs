//! Empties the locations of a tombstone: list, delete in batches, account for every key.
//!
//! Invariant: before a batch leaves, one fenced write has stored it, settled the batch before it, extended the lease
//! and asked for pauses. A worker whose lease is lost, or may be, sends nothing more. Keys that fail in passing are tried
//! again alone; one that cannot be deleted holds up no other. `Unknown` becomes absent by a fresh listing and nothing
//! else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::{
    Budget, PurgeError, Purger,
    checkpoint::{Checkpoint, Entry, Staying},
    claim::Claimed,
};
use crate::{
    domain::{
        location::Location,
        outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, RetryAfter},
        progress::Progress,
    },
    failpoint,
    objects::{Cursor, ObjectsError, Permit, stores::NamedStore},
    store::tombstones::purging::{self, Fenced, Lease},
};

/// Every location was listed to its end, and nothing was left behind.
#[derive(Debug)]
pub(super) struct Emptied {
    pub(super) claimed: Box<Claimed>,
}

/// Where emptying ended.
#[derive(Debug)]
#[must_use]
pub(super) enum Emptying {
    /// Done; to be verified.
    Emptied(Emptied),
    /// The slice is over; the checkpoint says where to go on.
    OutOfTime(Box<Claimed>),
    /// Somebody paused it.
    Paused(Box<Claimed>),
    /// The pass is over and objects are left, as the checkpoint says.
    Leftovers(Box<Claimed>),
}

/// What became of every key of a batch.
struct Settled {
    outcomes: HashMap<ObjectRef, KeyOutcome>,
    /// Why the last try was not answered, for the keys that are unknown.
    lost_answer: Option<KeyFailure>,
    /// The store wants to be left alone before the others are settled.
    away: Option<ObjectsError>,
}

/// The longest wait for a key within a delivery; a store that asks for more is left to a later one.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Requests that the last try of a batch without an answer is spread over, so that what has an answer gets it. The
/// next pass does the same with what is left, until one key stands alone.
const LAST_REQUESTS: usize = 8;

/// Whether the next batch may leave.
enum Go {
    On,
    Paused,
}

impl Purger {
    /// Goes on with the pass over the locations, or begins one.
    pub(super) async fn empty(&self, mut claimed: Box<Claimed>, budget: &Budget) -> Result<Emptying, PurgeError> {
        if claimed.checkpoint.is_fresh() {
            claimed.progress.begin_pass();
        }
        while let Some(location) = claimed.tombstone.locations.get(claimed.checkpoint.location).cloned() {
            let store = self.stores.at(&location)?.clone();
            let in_hand = std::mem::take(&mut claimed.checkpoint.in_hand);
            if !in_hand.is_empty() {
                // sent by whoever worked on this before; nobody has counted it
                if let Some(end) = self.delete_batch(&mut claimed, &store, &location, in_hand, budget).await? {
                    return Ok(end.of(claimed));
                }
            }
            let page = store
                .objects
                .list(&location.bucket, location.prefix.as_str(), claimed.checkpoint.after.as_ref())
                .await?;
            failpoint::at("empty.listed");
            for chunk in page.entries.chunks(store.batch_size) {
                let batch = chunk.iter().map(Entry::from).collect();
                if let Some(end) = self.delete_batch(&mut claimed, &store, &location, batch, budget).await? {
                    return Ok(end.of(claimed));
                }
            }
            let checkpoint = &mut claimed.checkpoint;
            match page.next {
                Some(next) => checkpoint.after = Some(next),
                None => {
                    checkpoint.location += 1;
                    checkpoint.after = None;
                    failpoint::at("empty.location_done");
                }
            }
        }
        if let Go::Paused = self.write_checkpoint(&claimed).await? {
            return Ok(Emptying::Paused(claimed));
        }
        failpoint::at("empty.pass_done");
        if claimed.progress.has_leftovers() {
            Ok(Emptying::Leftovers(claimed))
        } else {
            Ok(Emptying::Emptied(Emptied { claimed }))
        }
    }

    /// Writes the batch down, deletes it, counts it. `Some`: the slice has to end here.
    async fn delete_batch(
        &self,
        claimed: &mut Claimed,
        store: &NamedStore,
        location: &Location,
        batch: Vec<Entry>,
        budget: &Budget,
    ) -> Result<Option<Early>, PurgeError> {
        if budget.is_spent(claimed.has_worked) {
            claimed.checkpoint.in_hand = batch;
            self.write_checkpoint(claimed).await?;
            return Ok(Some(Early::OutOfTime));
        }
        claimed.checkpoint.in_hand = batch;
        // a crash from here on leaves a batch that is written down and not counted: it will be sent again
        if let Go::Paused = self.write_checkpoint(claimed).await? {
            return Ok(Some(Early::Paused));
        }
        failpoint::at("empty.written");
        let Settled { outcomes, lost_answer, away } = self.settle(store, location, claimed, budget).await?;
        failpoint::at("empty.answered");
        claimed.has_worked = true;
        let mut batch = std::mem::take(&mut claimed.checkpoint.in_hand);
        if away.is_some() {
            // what has gone is counted; the others are all that is sent when the store may be asked again, or one that
            // grants a number at a time would grant the same ones for ever
            let is_gone = |entry: &Entry| outcomes.get(&entry.object()).is_some_and(KeyOutcome::is_gone);
            (batch, claimed.checkpoint.in_hand) = batch.into_iter().partition(is_gone);
        }
        let mut counted = Progress::default();
        for entry in &batch {
            let object = entry.object();
            // each object of a listing is named once in it; one named twice counts once
            let outcome = outcomes.get(&object).unwrap_or(&KeyOutcome::Unknown);
            counted.count(outcome, entry.size, entry.kind);
            claimed.progress.count(outcome, entry.size, entry.kind);
            let why = match (outcome, &lost_answer) {
                (KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent, _) => continue,
                (KeyOutcome::Failed(why), _) => Staying::Failed(why),
                (KeyOutcome::Unknown, Some(why)) => Staying::Unanswered(why),
                (KeyOutcome::Unknown, None) => Staying::Unmentioned,
            };
            claimed.checkpoint.leave(&object, why);
        }
        self.metrics.count_objects(&location.store, &counted);
        if let Some(error) = away {
            let _ = self.write_checkpoint(claimed).await?;
            return Err(error.into());
        }
        claimed.checkpoint.after = batch.last().map(Entry::cursor);
        // counted here alone: a crash before the next batch is written down sends this one again
        failpoint::at("empty.counted");
        Ok(None)
    }

    /// Deletes the batch in hand until every key is settled: gone, absent, or failed for good in this pass; or until the
    /// store wants to be left alone. An error when it is away: nothing of the batch was done then.
    async fn settle(
        &self,
        store: &NamedStore,
        location: &Location,
        claimed: &Claimed,
        budget: &Budget,
    ) -> Result<Settled, PurgeError> {
        let Checkpoint { in_hand: batch, after, .. } = &claimed.checkpoint;
        let permit = permit_of(&claimed.lease);
        let mut settled = HashMap::with_capacity(batch.len());
        let mut pending: Vec<ObjectRef> = batch.iter().map(Entry::object).collect();
        let mut passing: BTreeMap<ObjectRef, KeyOutcome> = BTreeMap::new();
        let (mut lost_answer, mut retry_after) = (None::<KeyFailure>, None);
        for attempt in 1..=self.config.key_attempts {
            let is_last = attempt == self.config.key_attempts;
            self.still_ours(&claimed.lease).await?;
            let unanswered = is_last.then_some(lost_answer.as_ref()).flatten();
            let answer = delete(store, location, &permit, &pending, unanswered).await;
            retry_after = answer.retry_after();
            lost_answer = answer.lost_answer().cloned();
            passing.clear();
            for (object, outcome) in answer.into_outcomes() {
                if is_passing(&outcome) {
                    passing.insert(object, outcome);
                } else {
                    settled.insert(object, outcome);
                }
            }
            if passing.is_empty() {
                break;
            }
            let wait = self.key_backoff.delay_for(attempt).max(retry_after.map(RetryAfter::wait).unwrap_or_default());
            if wait > LONGEST_WAIT
                && let Some(error) = away(location, &passing, lost_answer.as_ref(), retry_after)
            {
                return Ok(Settled { outcomes: settled, lost_answer, away: Some(error) });
            }
            if !is_last {
                self.metrics.key_retries(&location.store, passing.len());
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LONGEST_WAIT)) => {}
                    () = budget.stop.cancelled() => break,
                }
                pending = passing.keys().cloned().collect();
            }
        }
        if passing.is_empty() {
            return Ok(Settled { outcomes: settled, lost_answer: None, away: None });
        }
        let present = still_there(store, location, after.as_ref(), &passing).await?;
        // nothing at all was done
        if settled.is_empty()
            && present.len() == passing.len()
            && let Some(error) = away(location, &passing, lost_answer.as_ref(), retry_after)
        {
            return Err(error.into());
        }
        for (object, outcome) in passing {
            let outcome = match outcome {
                _ if !present.contains(&object) => KeyOutcome::AlreadyAbsent,
                outcome => outcome,
            };
            settled.insert(object, outcome);
        }
        Ok(Settled { outcomes: settled, lost_answer, away: None })
    }

    /// Asks the database where the lease is no longer certain: this process may have been stopped, or cut off, for so
    /// long that another has finished the purge, and that the platform has put new objects at the same keys.
    async fn still_ours(&self, lease: &Lease) -> Result<(), PurgeError> {
        if lease.is_certain() {
            return Ok(());
        }
        tracing::warn!(tombstone.id = %lease.id, fence = lease.fence.0, "lease no longer certain, asking for it");
        let mut conn = self.store.conn().await?;
        match purging::renew(&mut conn, lease).await? {
            Fenced::Ours { .. } => Ok(()),
            Fenced::Lost => Err(PurgeError::LeaseLost),
        }
    }

    /// Fences, settles, extends, and asks for pauses, in one write.
    async fn write_checkpoint(&self, claimed: &Claimed) -> Result<Go, PurgeError> {
        let mut conn = self.store.conn().await?;
        let checkpoint = serde_json::to_value(&claimed.checkpoint)?;
        match purging::checkpoint(&mut conn, &claimed.lease, &claimed.progress, &checkpoint).await? {
            Fenced::Ours { paused: false } => Ok(Go::On),
            Fenced::Ours { paused: true } => Ok(Go::Paused),
            Fenced::Lost => Err(PurgeError::LeaseLost),
        }
    }

    /// Forgets the pass, so that the next one lists everything anew.
    pub(super) async fn begin_anew(&self, claimed: &mut Claimed) -> Result<(), PurgeError> {
        claimed.checkpoint = Checkpoint::default();
        let _ = self.write_checkpoint(claimed).await?;
        failpoint::at("empty.begun_anew");
        Ok(())
    }
}

/// Nothing is sent on the strength of a lease that may have run out.
fn permit_of(lease: &Lease) -> Permit {
    let lease = lease.clone();
    Permit::new(move || lease.is_certain())
}

/// Which of `asked` a fresh listing still shows. They were listed one after the other from `after` on, so it ends with
/// the first page that shows other objects and none of them; an empty page with more to follow says nothing. Should
/// one hide further on, the verification finds it.
async fn still_there(
    store: &NamedStore,
    location: &Location,
    after: Option<&Cursor>,
    asked: &BTreeMap<ObjectRef, KeyOutcome>,
) -> Result<BTreeSet<ObjectRef>, PurgeError> {
    let mut present = BTreeSet::new();
    let mut after = after.cloned();
    loop {
        let page = store.objects.list(&location.bucket, location.prefix.as_str(), after.as_ref()).await?;
        let known = present.len();
        let shows_nothing = page.entries.is_empty();
        let shown = page.entries.iter().map(|entry| &entry.object).filter(|object| asked.contains_key(object));
        present.extend(shown.cloned());
        after = match page.next {
            Some(next) if (shows_nothing || present.len() > known) && present.len() < asked.len() => Some(next),
            _ => return Ok(present),
        };
    }
}

/// One request, or several when one that named the same objects was not answered: a key that the store stumbles over
/// takes the others of its request along.
async fn delete(
    store: &NamedStore,
    location: &Location,
    permit: &Permit,
    objects: &[ObjectRef],
    unanswered: Option<&KeyFailure>,
) -> BatchOutcome {
    let requests = match unanswered {
        // it asked for less, not for more
        Some(why) if why.class != FailureClass::Throttled => LAST_REQUESTS,
        _ => 1,
    };
    let mut answer = BatchOutcome::uniform(&[], &KeyOutcome::Unknown);
    for part in objects.chunks(objects.len().div_ceil(requests).max(1)) {
        answer = answer.merge(store.objects.delete_while(permit, &location.bucket, part).await);
    }
    if let Some(why) = answer.lost_answer() {
        tracing::warn!(s3.bucket = location.bucket, code = why.code, message = why.message, "answer lost");
    }
    answer
}

/// Whether another try may change it.
fn is_passing(outcome: &KeyOutcome) -> bool {
    match outcome {
        KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent => false,
        KeyOutcome::Failed(why) => why.class != FailureClass::Permanent,
        KeyOutcome::Unknown => true,
    }
}

/// The error of a store that says nothing about the keys themselves: it names a time to come back, it asks for less,
/// or it did not answer.
fn away(
    location: &Location,
    passing: &BTreeMap<ObjectRef, KeyOutcome>,
    lost_answer: Option<&KeyFailure>,
    retry_after: Option<RetryAfter>,
) -> Option<ObjectsError> {
    let reasons = passing.values().map(|outcome| match outcome {
        KeyOutcome::Failed(why) => (why.class == FailureClass::Throttled, Some(why)),
        _ => (lost_answer.is_some_and(|why| why.class != FailureClass::Permanent), lost_answer),
    });
    let is_away = retry_after.is_some() || reasons.clone().all(|(is_away, _)| is_away);
    let why = reasons.max_by_key(|(is_away, _)| *is_away)?.1.filter(|_| is_away)?;
    let only = passing.keys().next().filter(|_| passing.len() == 1);
    Some(ObjectsError {
        operation: "DeleteObjects",
        bucket: location.bucket.clone(),
        prefix: only.map_or_else(|| location.prefix.as_str().to_owned(), |object| object.key.clone()),
        code: why.code.clone(),
        message: why.message.clone(),
        // never for good: a later delivery asks again
        class: FailureClass::Transient,
        retry_after,
    })
}

/// A slice that ends before the pass does.
enum Early {
    OutOfTime,
    Paused,
}

impl Early {
    fn of(self, claimed: Box<Claimed>) -> Emptying {
        match self {
            Self::OutOfTime => Emptying::OutOfTime(claimed),
            Self::Paused => Emptying::Paused(claimed),
        }
    }
}
