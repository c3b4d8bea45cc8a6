//! What a first try has not settled: tried again alone, and in the end looked for in a listing.
//!
//! Invariant: `Unknown` becomes absent by a fresh listing and nothing else. Nothing is sent on the strength of a lease
//! that may have run out. A store that asks for less or does not answer says nothing about the keys: that is no failure
//! of theirs, however often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    look::look,
    range::just_before,
    tried::{Headway, Tried, has_gone, is_flow_control},
};
use crate::{
    domain::{
        location::{KeyPlace, Location, StoreName},
        outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, RetryAfter},
    },
    objects::{
        Cursor, ObjectsError, Permit,
        flow::{Closed, Gate, Pass},
        stores::NamedStore,
    },
    purge::{Budget, PurgeError, Purger},
    store::tombstones::purging::{self, Fenced, Lease},
};

/// The longest wait for a key within a delivery; a store that asks for more is left to a later one.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Requests that the last try of a batch without an answer is spread over, so that what has an answer gets it. The
/// next pass does the same with what is left, until one key stands alone.
const LAST_REQUESTS: usize = 8;

/// Where a purge is at work, and by what right.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) store: NamedStore,
    pub(super) location: Below,
    pub(super) gate: Arc<Gate>,
    pub(super) permit: Permit,
    /// Of recorded objects that must not have changed, the ETags, by key.
    pub(super) unchanged: Arc<BTreeMap<String, String>>,
}

/// What a purge has in its hands there.
#[derive(Debug, Clone)]
pub(super) struct Below {
    pub(super) store: StoreName,
    pub(super) bucket: String,
    /// Empty where objects are recorded by key. Nothing is deleted for lying below it then.
    pub(super) prefix: String,
}

/// What became of every object.
pub(super) struct Settled {
    pub(super) outcomes: BTreeMap<ObjectRef, KeyOutcome>,
    /// Why the last try was not answered, for the objects that are unknown.
    pub(super) lost_answer: Option<KeyFailure>,
    /// Why the others are not settled, if there are others.
    pub(super) cut: Option<Cut>,
}

/// Why objects are left unsettled and uncounted, for whoever asks for them again.
#[derive(Debug)]
pub(super) enum Cut {
    /// The store wants to be left alone.
    Away(ObjectsError),
    /// The time is over. The store takes them, but no faster.
    OutOfTime,
}

/// In which order a store lists, which decides how to look for a few objects among many.
pub(super) enum Order<'a> {
    /// By key, as far as was seen: SeaweedFS lists `x/` as `x`, before `x.y`.
    Sorted,
    /// Some other; these were listed one after the other from here on.
    From(Option<&'a Cursor>),
    /// Nobody has listed: these are known by their keys.
    Named,
}

impl Place {
    pub(super) fn new(store: &NamedStore, location: &Location, lease: &Lease) -> Self {
        let lease = lease.clone();
        Self {
            gate: store.flow.gate(&location.bucket),
            store: store.clone(),
            location: Below {
                store: location.store.clone(),
                bucket: location.bucket.clone(),
                prefix: location.prefix.as_str().to_owned(),
            },
            permit: Permit::new(move || lease.is_certain()),
            unchanged: Arc::default(),
        }
    }

    /// Where objects are recorded by key.
    pub(super) fn of_keys(store: &NamedStore, place: &KeyPlace, lease: &Lease) -> Self {
        let lease = lease.clone();
        let (store_name, bucket) = (place.store.clone(), place.bucket.clone());
        Self {
            gate: store.flow.gate(&place.bucket),
            store: store.clone(),
            location: Below { store: store_name, bucket, prefix: String::new() },
            permit: Permit::new(move || lease.is_certain()),
            unchanged: Arc::default(),
        }
    }

    /// How many objects go into one request now.
    pub(super) fn batch_size(&self) -> usize {
        self.gate.keys_at_once(self.store.batch_size).max(1)
    }

    /// Waits at the gate; an error when the store wants to be left alone for longer than anybody waits here.
    pub(super) async fn enter(&self, keys: usize) -> Result<Pass, ObjectsError> {
        self.gate.enter(keys).await.map_err(|closed| ObjectsError {
            operation: "DeleteObjects",
            bucket: self.location.bucket.clone(),
            prefix: self.location.prefix.as_str().to_owned(),
            code: closed.why.as_ref().map_or_else(|| "SlowDown".to_owned(), |why| why.code.clone()),
            message: described(&closed),
            class: FailureClass::Throttled,
            retry_after: Some(RetryAfter::seconds(closed.wait.as_secs_f64().ceil() as u64)),
        })
    }

    /// Sends one request, now that the gate has let it through.
    pub(super) async fn delete(&self, objects: &[ObjectRef]) -> BatchOutcome {
        let bucket = &self.location.bucket;
        let answer = if self.unchanged.is_empty() {
            self.store.objects.delete_while(&self.permit, bucket, objects).await
        } else {
            self.delete_unchanged(objects).await
        };
        if let Some(why) = answer.lost_answer() {
            tracing::warn!(s3.bucket = bucket, code = why.code, message = why.message, "answer lost");
        }
        answer
    }

    /// Each object that must not have changed on that condition, the others as ever.
    async fn delete_unchanged(&self, objects: &[ObjectRef]) -> BatchOutcome {
        let bucket = &self.location.bucket;
        let (mut plain, mut conditional) = (Vec::new(), Vec::new());
        for object in objects {
            match self.unchanged.get(&object.key) {
                Some(etag) => conditional.push((object.clone(), etag.clone())),
                None => plain.push(object.clone()),
            }
        }
        let mut answer = self.store.objects.delete_unchanged(&self.permit, bucket, &conditional).await;
        if !plain.is_empty() {
            answer = answer.merge(self.store.objects.delete_while(&self.permit, bucket, &plain).await);
        }
        answer.in_order_of(objects)
    }

    /// One request, or several when one that named the same objects was not answered: a key that the store stumbles over
    /// takes the others of its request along. Where it is cut short, and up to the first that is asked to come later, the
    /// outcomes are of those before.
    async fn delete_again(
        &self,
        objects: &[ObjectRef],
        tried: &Tried,
        unanswered: Option<&KeyFailure>,
        budget: &Budget,
    ) -> (BatchOutcome, Option<Cut>) {
        let requests = match unanswered {
            // it asked for less, not for more
            Some(why) if why.class != FailureClass::Throttled => LAST_REQUESTS,
            _ => 1,
        };
        let most = objects.len().div_ceil(requests);
        let mut whole = BatchOutcome::uniform(&[], &KeyOutcome::Unknown);
        let mut rest = objects;
        while !rest.is_empty() {
            if has_gone(&whole) && budget.is_spent(true) {
                return (whole, Some(Cut::OutOfTime));
            }
            // asked each time: the store may just have refused as many
            let (part, later) = rest.split_at(most.min(self.batch_size()).min(rest.len()));
            let pass = match self.enter(part.len()).await {
                Ok(pass) => pass,
                Err(error) => return (whole, Some(Cut::Away(error))),
            };
            let answer = self.delete(part).await;
            let is_refused = is_flow_control(answer.iter().map(|(_, outcome)| outcome), answer.lost_answer());
            if is_refused && answer.retry_after().is_none() && tried.are_singled_out(part) {
                // the store has something against these, which says nothing of the bucket
                drop(pass);
            } else {
                pass.heard(&answer);
            }
            whole = whole.merge(answer);
            if is_refused {
                break;
            }
            rest = later;
        }
        (whole, None)
    }

    /// Which of `asked` a fresh listing still shows.
    async fn still_there(
        &self,
        order: &Order<'_>,
        asked: &BTreeMap<ObjectRef, KeyOutcome>,
    ) -> Result<BTreeSet<ObjectRef>, PurgeError> {
        match order {
            Order::Sorted => {
                // what is shown is there; what is not may lie elsewhere in an order that nobody has noticed
                let mut present = self.still_there_by_key(asked).await?;
                let missing = asked.keys().filter(|object| !present.contains(object));
                present.extend(self.looked_for(missing, asked).await?);
                Ok(present)
            }
            Order::From(after) => self.still_there_from(*after, asked).await,
            Order::Named => self.looked_for(asked.keys(), asked).await,
        }
    }

    /// Looks for the keys of these, and says which of `asked` are there.
    async fn looked_for(
        &self,
        these: impl Iterator<Item = &ObjectRef>,
        asked: &BTreeMap<ObjectRef, KeyOutcome>,
    ) -> Result<BTreeSet<ObjectRef>, PurgeError> {
        let keys: BTreeSet<&str> = these.map(|object| object.key.as_str()).collect();
        let shown = look(&self.store, &self.location.bucket, &keys).await?;
        Ok(shown.into_iter().map(|entry| entry.object).filter(|object| asked.contains_key(object)).collect())
    }

    /// Lists from right before the first of them, and from one page to the next of them that it does not reach.
    async fn still_there_by_key(
        &self,
        asked: &BTreeMap<ObjectRef, KeyOutcome>,
    ) -> Result<BTreeSet<ObjectRef>, PurgeError> {
        let mut present = BTreeSet::new();
        let mut after = asked.keys().next().and_then(|first| at(&first.key));
        loop {
            let page = self.list(after.as_ref()).await?;
            let shown = page.entries.iter().map(|entry| &entry.object).filter(|object| asked.contains_key(object));
            present.extend(shown.cloned());
            let Some(next) = page.next else { return Ok(present) };
            // the versions of its last key may go on
            let is_further = |object: &&ObjectRef| (&object.key, object.version.is_some()) > (&next.key, false);
            let Some(further) = asked.keys().find(is_further) else { return Ok(present) };
            after = if further.key > next.key { at(&further.key) } else { Some(next) };
        }
    }

    /// They were listed one after the other, so it ends with the first page that shows other objects and none of them;
    /// an empty page with more to follow says nothing. Should one hide further on, the verification finds it.
    async fn still_there_from(
        &self,
        after: Option<&Cursor>,
        asked: &BTreeMap<ObjectRef, KeyOutcome>,
    ) -> Result<BTreeSet<ObjectRef>, PurgeError> {
        let mut present = BTreeSet::new();
        let mut after = after.cloned();
        loop {
            let page = self.list(after.as_ref()).await?;
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

    pub(super) async fn list(&self, after: Option<&Cursor>) -> Result<crate::objects::Page, ObjectsError> {
        self.store.objects.list(&self.location.bucket, self.location.prefix.as_str(), after).await
    }

    /// The error of a store that says nothing about the keys themselves: it names a time to come back, it asks for less,
    /// or it did not answer.
    fn away(&self, tried: &Tried) -> Option<ObjectsError> {
        let Tried { passing, lost_answer, retry_after, .. } = tried;
        let reasons = passing.values().map(|outcome| match outcome {
            KeyOutcome::Failed(why) => (why.class == FailureClass::Throttled, Some(why)),
            _ => (lost_answer.as_ref().is_some_and(|why| why.class != FailureClass::Permanent), lost_answer.as_ref()),
        });
        let is_away = retry_after.is_some() || reasons.clone().all(|(is_away, _)| is_away);
        let why = reasons.max_by_key(|(is_away, _)| *is_away)?.1.filter(|_| is_away)?;
        let only = passing.keys().next().filter(|_| passing.len() == 1);
        let several = passing.keys().next().filter(|_| passing.len() > 1);
        let of_which = several.map(|object| format!("{} objects, such as {:?}", passing.len(), object.key));
        let message = match of_which {
            Some(of_which) if why.message.is_empty() => of_which,
            Some(of_which) => format!("{} ({of_which})", why.message),
            None => why.message.clone(),
        };
        Some(ObjectsError {
            operation: "DeleteObjects",
            bucket: self.location.bucket.clone(),
            prefix: only.map_or_else(|| self.location.prefix.as_str().to_owned(), |object| object.key.clone()),
            code: why.code.clone(),
            message,
            // never for good: a later delivery asks again
            class: FailureClass::Transient,
            retry_after: *retry_after,
        })
    }
}

/// Why nothing is asked of a bucket, for people.
fn described(closed: &Closed) -> String {
    let said = closed.why.as_ref().map(|why| why.message.as_str()).filter(|message| !message.is_empty());
    let said = said.map(|message| format!("{message}; ")).unwrap_or_default();
    // without figures: a history tells once what is the same each time
    let refusals = match closed.refusals {
        0 | 1 => "the store asks to come back later",
        _ => "the store refuses one request after another",
    };
    format!("{said}{refusals}, and the bucket is left alone for a while")
}

/// A cursor that shows this key and what follows.
fn at(key: &str) -> Option<Cursor> {
    just_before(key).map(|key| Cursor { key, version: None })
}

impl Purger {
    /// Tries what is passing again until every object is settled: gone, absent, or failed for good in this pass; or until
    /// the store wants to be left alone, or takes no more in this time. An error when it is away: nothing was done then.
    ///
    /// Where it asks for less, a try after which less is left, or after which less is asked for, is none of a number of
    /// tries.
    pub(super) async fn settle(
        &self,
        place: &Place,
        lease: &Lease,
        mut tried: Tried,
        order: Order<'_>,
        budget: &Budget,
    ) -> Result<Settled, PurgeError> {
        let cut =
            |tried: Tried, why| Settled { outcomes: tried.settled, lost_answer: tried.lost_answer, cut: Some(why) };
        let store = &place.location.store;
        let tries = match order {
            // before another try, others have to be asked again whether they need it: that is up to the next pass
            Order::Named => 1,
            Order::Sorted | Order::From(_) => self.config.key_attempts,
        };
        let (mut attempt, mut headway, mut is_further) = (1, Headway::new(place.batch_size()), false);
        while !tried.passing.is_empty() {
            let asked = tried.retry_after.map(RetryAfter::wait).unwrap_or_default();
            let wait = self.key_backoff.delay_for(attempt).max(asked);
            if wait > LONGEST_WAIT
                && let Some(error) = place.away(&tried)
            {
                return Ok(cut(tried, Cut::Away(error)));
            }
            if attempt >= tries {
                break;
            }
            if is_further && tried.is_flow_control() && budget.is_spent(true) {
                return Ok(cut(tried, Cut::OutOfTime));
            }
            self.metrics.purges().key_retries(store, tried.passing.len());
            tokio::select! {
                () = tokio::time::sleep(wait.min(LONGEST_WAIT)) => {}
                () = budget.stop.cancelled() => break,
            }
            self.still_ours(lease).await?;
            let before = tried.passing.len();
            let is_last = attempt + 1 == self.config.key_attempts;
            let unanswered = tried.lost_answer.clone().filter(|_| is_last);
            let pending: Vec<ObjectRef> = tried.passing.keys().cloned().collect();
            let (answer, why) = place.delete_again(&pending, &tried, unanswered.as_ref(), budget).await;
            if let Some(why) = why {
                // what has gone is counted: whoever lists anew does not see it
                tried.hear(&answer);
                tried.sort(answer);
                return Ok(cut(tried, why));
            }
            tried.take(answer);
            is_further = headway.look(place.batch_size(), tried.passing.len() < before);
            attempt = match () {
                () if !tried.is_flow_control() => attempt + 1,
                () if is_further => 1,
                () if tried.are_singled_out(&pending) => attempt + 1,
                () if headway.is_recent() && !budget.is_spent(true) => attempt,
                () => attempt + 1,
            };
        }
        if tried.passing.is_empty() {
            return Ok(Settled { outcomes: tried.settled, lost_answer: None, cut: None });
        }
        let present = place.still_there(&order, &tried.passing).await?;
        if !tried.anything_done
            && present.len() == tried.passing.len()
            && let Some(error) = place.away(&tried)
        {
            return Err(error.into());
        }
        let Tried { mut settled, passing, lost_answer, .. } = tried;
        for (object, outcome) in passing {
            let outcome = if present.contains(&object) { outcome } else { KeyOutcome::AlreadyAbsent };
            settled.insert(object, outcome);
        }
        Ok(Settled { outcomes: settled, lost_answer, cut: None })
    }

    /// Asks the database where the lease is no longer certain: this process may have been stopped, or cut off, for so
    /// long that another has finished the purge, and that the platform has put new objects at the same keys.
    pub(super) async fn still_ours(&self, lease: &Lease) -> Result<(), PurgeError> {
        if lease.is_certain() {
            return Ok(());
        }
        tracing::warn!(tombstone.id = %lease.id, fence = lease.fence.0, "lease no longer certain, asking for it");
        let renew = async { purging::renew(&mut *self.store.conn().await?, lease).await };
        match self.store.within(1, renew).await? {
            Fenced::Ours { .. } => Ok(()),
            Fenced::Lost => Err(PurgeError::LeaseLost),
        }
    }
}
