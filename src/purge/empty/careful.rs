//! One batch at a time, for stores that do not list their keys in their order, and for objects that are recorded by key.
//!
//! Invariant: a batch is written down, key by key, before it is sent, and what of it is not settled stays in hand, in however
//! many requests it goes. Whoever resumes sends it again (deleting twice is deleting once) and counts it then, so every
//! object is counted exactly once, whenever a worker died: no order of keys is needed to know which of them were sent.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    End, Go,
    keyed::{Part, Spot},
    settle::{Cut, Order, Place, Settled},
    tried::{Headway, Tried},
};
use crate::{
    domain::outcome::{FailureClass, KeyOutcome},
    failpoint,
    objects::{ObjectsError, error::is_too_fast, flow::Pass},
    purge::{
        Budget, PurgeError, Purger,
        checkpoint::{Entry, Staying},
        claim::Claimed,
    },
};

/// The longest that a question holds the place in flight of its batch: others want to send.
const LONGEST_QUESTION: Duration = Duration::from_millis(500);

/// Slow questions for one batch; the last holds its place for as long as it takes, or a batch might never leave where each
/// place is long waited for.
const QUESTIONS: u32 = 3;

impl Purger {
    /// Goes on with a location, or begins with it.
    pub(super) async fn empty_carefully(
        &self,
        place: &Place,
        claimed: &mut Claimed,
        budget: &Budget,
    ) -> Result<End, PurgeError> {
        let in_hand = std::mem::take(&mut claimed.checkpoint.in_hand);
        if !in_hand.is_empty() {
            // sent by whoever worked on this before; nobody has counted it
            if let Some(end) = self.delete_in_hand(place, claimed, in_hand, None, budget).await? {
                return Ok(end);
            }
        }
        loop {
            let page = place.list(claimed.checkpoint.after.as_ref()).await?;
            for chunk in page.entries.chunks(place.batch_size()) {
                let batch = chunk.iter().map(Entry::from).collect();
                if let Some(end) = self.delete_in_hand(place, claimed, batch, None, budget).await? {
                    return Ok(end);
                }
            }
            match page.next {
                Some(next) => claimed.checkpoint.after = Some(next),
                None => return Ok(End::Listed),
            }
        }
    }

    /// Writes the batch down, deletes it, counts it; of recorded objects those that nobody else needs. `Some`: the slice
    /// has to end here.
    ///
    /// It goes in parts of what the store takes at once by now, which may be less than when it was cut. The rest stays in
    /// hand: whoever died may have deleted it, and then no listing shows what is still to be counted.
    pub(super) async fn delete_in_hand(
        &self,
        place: &Place,
        claimed: &mut Claimed,
        batch: Vec<Entry>,
        recorded: Option<Spot<'_>>,
        budget: &Budget,
    ) -> Result<Option<End>, PurgeError> {
        claimed.checkpoint.in_hand = batch;
        // before another try of recorded objects others are asked again whether they need them, so all of it is tried
        // again; the gate itself ends it where the store wants to be left alone for long
        let tries = if recorded.is_some() { self.config.key_attempts } else { 1 };
        let (mut attempt, mut headway) = (1, Headway::new(place.batch_size()));
        loop {
            let ended = self.try_in_hand(place, claimed, recorded, budget).await;
            let is_further = headway.look(place.batch_size(), ended.is_ok());
            match ended {
                Ok(None) if !claimed.checkpoint.in_hand.is_empty() => {
                    attempt = 1;
                    continue;
                }
                Err(PurgeError::Objects(error)) if tries > 1 && is_nothing_done(&error) => {
                    if is_further {
                        // none of the tries was with so few
                        attempt = 0;
                    }
                    let is_flow_control = is_too_fast(&error.code) && headway.is_recent();
                    if attempt >= tries && !is_flow_control {
                        return Err(error.into());
                    }
                }
                ended => return ended,
            }
            tokio::select! {
                () = budget.is_over(claimed.has_worked) => return Ok(Some(End::OutOfTime)),
                () = tokio::time::sleep(self.key_backoff.delay_for(attempt)) => {}
            }
            attempt += 1;
        }
    }

    /// Deletes the first part of the batch in hand.
    async fn try_in_hand(
        &self,
        place: &Place,
        claimed: &mut Claimed,
        recorded: Option<Spot<'_>>,
        budget: &Budget,
    ) -> Result<Option<End>, PurgeError> {
        if budget.is_spent(claimed.has_worked) {
            let _ = self.write_checkpoint(claimed).await?;
            return Ok(Some(End::OutOfTime));
        }
        // a crash from here on leaves a batch that is written down and not counted: it will be sent again
        if let Go::Paused = self.write_checkpoint(claimed).await? {
            return Ok(Some(End::Paused));
        }
        failpoint::at("careful.written");
        let Some((pass, part)) = self.place_and_answer(place, claimed, recorded, budget).await? else {
            return Ok(Some(End::OutOfTime));
        };
        let settled = self.send(&part.conditions(place), claimed, pass, &part, recorded, budget).await?;
        failpoint::at("careful.answered");
        claimed.has_worked = true;
        if let Some(cut) = self.count_part(place, claimed, part, settled) {
            let _ = self.write_checkpoint(claimed).await?;
            return match cut {
                Cut::Away(error) => Err(error.into()),
                Cut::OutOfTime => Ok(Some(End::OutOfTime)),
            };
        }
        // counted here alone: a crash before the next write sends this one again
        failpoint::at("careful.counted");
        Ok(None)
    }

    /// Counts a part and takes it out of hand; where it was cut short, that of it which has gone. The others are all that
    /// is sent when the store may be asked again, or one that grants a number at a time would grant the same ones for ever.
    fn count_part(&self, place: &Place, claimed: &mut Claimed, part: Part, settled: Settled) -> Option<Cut> {
        let Settled { outcomes, lost_answer, cut } = settled;
        let Claimed { checkpoint, progress, .. } = claimed;
        let before = *progress;
        let is_gone = |entry: &Entry| outcomes.get(&entry.object()).is_some_and(KeyOutcome::is_gone);
        for entry in part.named.iter().filter(|entry| cut.is_none() || is_gone(entry)) {
            let object = entry.object();
            // each object of a listing is named once in it; one named twice counts once
            let outcome = outcomes.get(&object).unwrap_or(&KeyOutcome::Unknown);
            progress.count(outcome, entry.size, entry.kind);
            if let Some(why) = Staying::of(outcome, lost_answer.as_ref()) {
                checkpoint.leave(&object, why);
            }
        }
        self.metrics.purges().objects(&place.location.store, &progress.since(&before));
        let rest = checkpoint.in_hand.split_off(part.len());
        if cut.is_some() {
            checkpoint.in_hand.retain(|entry| !is_gone(entry));
            checkpoint.in_hand.extend(rest);
        } else {
            part.count_withheld(progress);
            checkpoint.after = checkpoint.in_hand.last().map(Entry::cursor);
            checkpoint.in_hand = rest;
        }
        cut
    }

    /// A place in flight, and the part of the batch that it is for, asked right before the request: with nothing but its
    /// own way to the store in between. `None`: the time is over.
    ///
    /// A question that takes long gives its place to others until it is answered, and the answer counts if a place is to
    /// be had again within as long as that took.
    async fn place_and_answer(
        &self,
        place: &Place,
        claimed: &Claimed,
        recorded: Option<Spot<'_>>,
        budget: &Budget,
    ) -> Result<Option<(Pass, Part)>, PurgeError> {
        let mut round = 1;
        loop {
            let in_hand = &claimed.checkpoint.in_hand;
            let entries = &in_hand[..place.batch_size().min(in_hand.len())];
            let keys = entries.len();
            let Some(pass) = take_place(place, claimed, keys, budget).await? else { return Ok(None) };
            let Some(spot) = recorded else { return Ok(Some((pass, Part::of(entries.to_vec())))) };
            let began = Instant::now();
            let part = {
                let mut asking = pin!(self.withhold(place, claimed, spot, entries.to_vec()));
                match timeout(LONGEST_QUESTION, asking.as_mut()).await {
                    Ok(part) => return Ok(Some((pass, part?))),
                    Err(_) if round >= QUESTIONS => return Ok(Some((pass, asking.await?))),
                    Err(_) => {
                        drop(pass);
                        asking.await?
                    }
                }
            };
            if let Ok(taken) = timeout(began.elapsed(), take_place(place, claimed, keys, budget)).await {
                return Ok(taken?.map(|pass| (pass, part)));
            }
            round += 1;
        }
    }

    /// Sends a part, now that the gate has let it through, and again what has to be.
    async fn send(
        &self,
        place: &Place,
        claimed: &Claimed,
        pass: Pass,
        part: &Part,
        recorded: Option<Spot<'_>>,
        budget: &Budget,
    ) -> Result<Settled, PurgeError> {
        let objects: Vec<_> = part.named.iter().map(Entry::object).collect();
        if objects.is_empty() {
            return Ok(Settled { outcomes: BTreeMap::new(), lost_answer: None, cut: None });
        }
        let mut tried = Tried::default();
        let answer = place.delete(&objects).await;
        pass.heard(&answer);
        tried.take(answer);
        let order = match recorded {
            Some(_) => Order::Named,
            None => Order::From(claimed.checkpoint.after.as_ref()),
        };
        let mut settled = self.settle(place, &claimed.lease, tried, order, budget).await?;
        self.explain_changes(place, &mut settled.outcomes).await?;
        Ok(settled)
    }
}

/// Waits at the gate. `None`: the time is over.
async fn take_place(
    place: &Place,
    claimed: &Claimed,
    keys: usize,
    budget: &Budget,
) -> Result<Option<Pass>, PurgeError> {
    tokio::select! {
        biased;
        () = budget.is_over(claimed.has_worked) => Ok(None),
        pass = place.enter(keys) => Ok(Some(pass?)),
    }
}

/// Whether a delete was not carried out for a reason that may pass within moments.
fn is_nothing_done(error: &ObjectsError) -> bool {
    error.operation == "DeleteObjects" && error.class == FailureClass::Transient
}
