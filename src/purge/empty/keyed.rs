//! Objects that are recorded by key: looked up, asked for whether somebody else needs them, deleted one batch at a time.
//!
//! Invariant: no request names an object for which every kind was not asked right before whether another resource needs
//! it (see [`Question`]); what another needs stays, is counted as kept, and keeps nothing from its end. What is recorded and
//! not kept is looked for anew before its rows may go. What was named late is recorded before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    End, Go,
    look::{look, look_on},
    settle::Place,
};
use crate::{
    bystanders::named::{Kept, Question},
    domain::{
        location::KeyPlace,
        outcome::{FailureClass, KeyFailure, KeyOutcome, ObjectRef},
        progress::Progress,
    },
    failpoint,
    objects::{Cursor, MAX_BATCH, ObjectEntry, stores::NamedStore},
    places::{self, UnknownPlace},
    purge::{
        Budget, PurgeError, Purger,
        checkpoint::{Entry, Looked},
        claim::Claimed,
    },
    store::{
        StoreError, Tx, commit,
        recorded::{self, Recorded},
        tombstones::purging,
    },
};

/// Statements of one question that may take long: the map's queries.
const ASKING: u32 = 5;

/// One of a tombstone's places of recorded objects.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    /// Which.
    at: usize,
    place: &'a KeyPlace,
}

/// The first entries of the batch in hand, as many as go into one request: what it names, and what it does not.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// It names these.
    pub(super) named: Vec<Entry>,
    /// Somebody else needs these.
    kept: Vec<Entry>,
    /// And these, which are not there any more: a worker of ours deleted them and died, perhaps.
    gone: Vec<Entry>,
    /// The ETags that objects of those it names must have, by key.
    unchanged: Arc<BTreeMap<String, String>>,
}

impl Part {
    /// Of objects that nobody is asked about.
    pub(super) fn of(named: Vec<Entry>) -> Self {
        Self { named, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.named.len() + self.kept.len() + self.gone.len()
    }

    pub(super) fn conditions(&self, place: &Place) -> Place {
        Place { unchanged: Arc::clone(&self.unchanged), ..place.clone() }
    }

    /// Counts what it does not name.
    pub(super) fn count_withheld(&self, progress: &mut Progress) {
        progress.objects_kept += self.kept.len() as u64;
        for entry in &self.gone {
            progress.count(&KeyOutcome::AlreadyAbsent, entry.size, entry.kind);
        }
    }
}

/// What the last look has found.
#[must_use]
pub(in crate::purge) enum Left {
    Nothing,
    Some(String),
    /// It goes on in the next slice.
    OutOfTime,
}

/// The code of objects that have changed since they were recorded.
const CHANGED: &str = "Changed";

impl Purger {
    /// Goes on with the places of recorded objects, or begins with them.
    pub(super) async fn empty_recorded(&self, claimed: &mut Claimed, budget: &Budget) -> Result<End, PurgeError> {
        let prefixes = claimed.tombstone.locations.len();
        while let Some(at) = claimed.checkpoint.location.checked_sub(prefixes)
            && let Some(recorded) = claimed.tombstone.recorded.get(at).cloned()
        {
            let place = Place::of_keys(self.stores.at_keys(&recorded)?, &recorded, &claimed.lease);
            match self.empty_keys(&place, claimed, at, &recorded, budget).await? {
                end @ (End::OutOfTime | End::Paused) => return Ok(end),
                End::Listed | End::Split | End::Unsorted => {
                    claimed.checkpoint.next_location();
                    failpoint::at("keyed.place_done");
                }
            }
        }
        Ok(End::Listed)
    }

    async fn empty_keys(
        &self,
        place: &Place,
        claimed: &mut Claimed,
        at: usize,
        recorded: &KeyPlace,
        budget: &Budget,
    ) -> Result<End, PurgeError> {
        let spot = Spot { at, place: recorded };
        let in_hand = std::mem::take(&mut claimed.checkpoint.in_hand);
        if !in_hand.is_empty() {
            // sent by whoever worked on this before; nobody has counted it
            if let Some(end) = self.delete_in_hand(place, claimed, in_hand, Some(spot), budget).await? {
                return Ok(end);
            }
        }
        loop {
            let from = claimed.checkpoint.after.as_ref();
            let page = self.page_of(claimed, at, from).await?;
            let Some(last) = page.last() else { return Ok(End::Listed) };
            let after = Cursor { key: last.key.clone(), version: None };
            let shown = self.look_for(&place.store, recorded, &page, from).await?;
            for batch in shown.chunks(place.batch_size()) {
                let batch = batch.iter().map(Entry::from).collect();
                if let Some(end) = self.delete_in_hand(place, claimed, batch, Some(spot), budget).await? {
                    return Ok(end);
                }
            }
            claimed.checkpoint.after = Some(after);
            // what is gone already is a step as well
            claimed.has_worked = true;
            if budget.is_spent(claimed.has_worked) {
                let _ = self.write_checkpoint(claimed).await?;
                return Ok(End::OutOfTime);
            }
            if shown.is_empty()
                && let Go::Paused = self.write_checkpoint(claimed).await?
            {
                return Ok(End::Paused);
            }
        }
    }

    /// Tells what somebody else needs from what may go, and says on which conditions that goes.
    pub(super) async fn withhold(
        &self,
        place: &Place,
        claimed: &Claimed,
        spot: Spot<'_>,
        entries: Vec<Entry>,
    ) -> Result<Part, PurgeError> {
        let objects: Vec<_> = entries.iter().map(Entry::object).collect();
        let keys: BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
        let kept = self.needed_by_others(claimed, spot.place, &keys).await?;
        let asked: BTreeSet<&str> = kept.keys().map(String::as_str).collect();
        let shown = look(&place.store, &spot.place.bucket, &asked).await?;
        let shown: BTreeSet<_> = shown.into_iter().map(|entry| entry.object).collect();
        let keys: Vec<&str> = keys.into_iter().collect();
        let etags = async {
            let mut conn = self.store.conn().await?;
            recorded::etags(&mut conn, claimed.tombstone.id, spot.at, &keys).await
        };
        let unchanged = self.store.within(1, etags).await?;
        let mut part = Part { unchanged: Arc::new(unchanged), ..Part::default() };
        for entry in entries {
            let object = entry.object();
            match kept.get(&object.key) {
                None => part.named.push(entry),
                Some(by) if shown.contains(&object) => {
                    tracing::debug!(s3.key = object.key, by, "object is kept");
                    part.kept.push(entry);
                }
                Some(_) => part.gone.push(entry),
            }
        }
        Ok(part)
    }

    /// Looks for what is recorded, still there, and needed by nobody else, or came to be named since. What was looked at in
    /// an earlier slice is not looked at again, or the last look at a million scattered keys would never end.
    pub(in crate::purge) async fn find_recorded(
        &self,
        claimed: &mut Claimed,
        budget: &Budget,
    ) -> Result<Left, PurgeError> {
        if self.record_late(claimed).await? > 0 {
            return Ok(Left::Some("an object that was not named before".to_owned()));
        }
        let Looked { place, mut after } = claimed.checkpoint.looked.take().unwrap_or_default();
        for (at, recorded) in claimed.tombstone.recorded.clone().iter().enumerate().skip(place) {
            loop {
                let (left, next) = self.recorded_left(claimed, at, recorded, after.as_ref()).await?;
                if let Some(entry) = left.first() {
                    return Ok(Left::Some(format!("s3://{}/{}", recorded.bucket, entry.object.key)));
                }
                after = next;
                if after.is_none() {
                    break;
                }
                claimed.has_worked = true;
                if budget.is_spent(claimed.has_worked) {
                    claimed.checkpoint.looked = Some(Looked { place: at, after });
                    let _ = self.write_checkpoint(claimed).await?;
                    return Ok(Left::OutOfTime);
                }
            }
        }
        // looking is no step: rows get theirs, or a slice that is too short for both would begin anew for ever
        claimed.has_worked = false;
        Ok(Left::Nothing)
    }

    /// What is left of a page of records and needed by nobody else, and where to go on.
    pub(in crate::purge) async fn recorded_left(
        &self,
        claimed: &Claimed,
        at: usize,
        recorded: &KeyPlace,
        after: Option<&Cursor>,
    ) -> Result<(Vec<ObjectEntry>, Option<Cursor>), PurgeError> {
        let store = self.stores.at_keys(recorded)?;
        let page = self.page_of(claimed, at, after).await?;
        let Some(last) = page.last() else { return Ok((Vec::new(), None)) };
        let mut shown = self.look_for(store, recorded, &page, None).await?;
        let keys: BTreeSet<&str> = shown.iter().map(|entry| entry.object.key.as_str()).collect();
        let kept = self.needed_by_others(claimed, recorded, &keys).await?;
        shown.retain(|entry| !kept.contains_key(&entry.object.key));
        Ok((shown, Some(Cursor { key: last.key.clone(), version: None })))
    }

    /// Records what the resource's rows have come to name since it was trashed; says how much. A crash leaves all of it or
    /// nothing. Where the row was gone at the point of no return, one that has its id now is another's.
    pub(super) async fn record_late(&self, claimed: &Claimed) -> Result<u64, PurgeError> {
        let tombstone = &claimed.tombstone;
        if tombstone.recorded.is_empty() || tombstone.row_found != Some(true) {
            return Ok(0);
        }
        let kind = self.kind_of(claimed)?;
        let record = async {
            let mut places = tombstone.recorded.clone();
            let mut tx = self.store.begin().await?;
            let new = places::record(&mut tx, kind, &tombstone.resource.id, tombstone.id, &mut places).await;
            let new = new.map_err(|error| match error {
                UnknownPlace::Store(error) => error,
                other => StoreError::Unusable(other.to_string()),
            })?;
            // a purge that somebody else goes on with, or has ended, gets no records of ours
            if purging::lock(&mut tx, &claimed.lease).await?.is_none() {
                return Err(PurgeError::LeaseLost);
            }
            failpoint::at("keyed.uncommitted");
            commit(tx).await?;
            Ok(new)
        };
        let new = self.store.within(ASKING, record).await?;
        failpoint::at("keyed.recorded");
        Ok(new)
    }

    /// Forgets what was recorded, in the transaction that is to end the purge. Whatever fails before the end is committed
    /// brings all of it back, so that nothing of it is taken for news, and what was kept is counted again by the next pass.
    pub(in crate::purge) async fn forget_recorded(&self, tx: &mut Tx, claimed: &Claimed) -> Result<(), StoreError> {
        if claimed.tombstone.recorded.is_empty() {
            return Ok(());
        }
        self.store.within(1, recorded::forget_all(tx, claimed.tombstone.id)).await?;
        failpoint::at("keyed.forgotten");
        Ok(())
    }

    /// Of objects that the store has not deleted because of their ETags, those that are gone are absent, whatever it says
    /// of an ETag that is not there; the others have changed since they were recorded.
    pub(super) async fn explain_changes(
        &self,
        place: &Place,
        outcomes: &mut BTreeMap<ObjectRef, KeyOutcome>,
    ) -> Result<(), PurgeError> {
        let is_refused = |outcome: &KeyOutcome| matches!(outcome, KeyOutcome::Failed(why) if matches!(why.code.as_str(), "PreconditionFailed" | "Http412"));
        let refused: BTreeSet<&str> = outcomes
            .iter()
            .filter(|(object, outcome)| place.unchanged.contains_key(&object.key) && is_refused(outcome))
            .map(|(object, _)| object.key.as_str())
            .collect();
        if refused.is_empty() {
            return Ok(());
        }
        let shown = look(&place.store, &place.location.bucket, &refused).await?;
        let shown: BTreeSet<&ObjectRef> = shown.iter().map(|entry| &entry.object).collect();
        for (object, outcome) in outcomes.iter_mut() {
            if place.unchanged.contains_key(&object.key) && is_refused(outcome) {
                let (code, message) = (CHANGED.into(), "it has changed since it was recorded".into());
                *outcome = match shown.contains(object) {
                    true => KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Permanent }),
                    false => KeyOutcome::AlreadyAbsent,
                };
            }
        }
        Ok(())
    }

    async fn page_of(&self, claimed: &Claimed, at: usize, after: Option<&Cursor>) -> Result<Vec<Recorded>, StoreError> {
        let from = match after {
            None => recorded::From::Start,
            // more versions of its key may follow
            Some(Cursor { key, version: Some(_) }) => recorded::From::At(key),
            Some(Cursor { key, version: None }) => recorded::From::After(key),
        };
        let page = async {
            let mut conn = self.store.conn().await?;
            recorded::page(&mut conn, claimed.tombstone.id, at, from, MAX_BATCH).await
        };
        self.store.within(1, page).await
    }

    /// What the store has of a page of records; of the key at whose version somebody stopped, only what comes after that:
    /// what comes before is counted, and may be there still, since it is kept or cannot go.
    async fn look_for(
        &self,
        store: &NamedStore,
        recorded: &KeyPlace,
        page: &[Recorded],
        from: Option<&Cursor>,
    ) -> Result<Vec<ObjectEntry>, PurgeError> {
        let mut keys: BTreeSet<&str> = page.iter().map(|object| object.key.as_str()).collect();
        let mut shown = match from {
            Some(version @ Cursor { key, version: Some(_) }) if keys.remove(key.as_str()) => {
                look_on(store, &recorded.bucket, version).await?
            }
            _ => Vec::new(),
        };
        shown.extend(look(store, &recorded.bucket, &keys).await?);
        Ok(shown)
    }

    /// Which of the keys another resource needs. Where the row was gone at the point of no return and is there now,
    /// nobody knows whose the names are that it has. One that is restored while this is asked is in the trash or live, and
    /// never neither.
    async fn needed_by_others(
        &self,
        claimed: &Claimed,
        recorded: &KeyPlace,
        keys: &BTreeSet<&str>,
    ) -> Result<Kept, PurgeError> {
        let kind = self.kind_of(claimed)?;
        let keys: Vec<&str> = keys.iter().copied().collect();
        let ask = async {
            let mut tx = self.store.begin_snapshot().await?;
            self.no_newcomer(&mut tx, kind, &claimed.tombstone).await?;
            let (map, of) = (&self.map, &claimed.tombstone.resource);
            let leaving = BTreeSet::from([of.clone()]);
            let question = Question { map, of, leaving: &leaving, at: recorded, keys: &keys };
            Ok::<_, PurgeError>(question.kept(&mut tx).await?)
        };
        // each kind's queries may take long
        let kept = self.store.within(ASKING, ask).await?;
        failpoint::at("keyed.asked");
        Ok(kept)
    }
}
