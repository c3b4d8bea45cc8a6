//! Listing and deleting at the same time, in as many requests as the store takes.
//!
//! Invariant: what is listed and not settled is bounded, whatever lies below the prefix. A batch leaves when the gate has
//! a place for it and its announcement is written down; several that find a place together are announced together. When
//! the slice ends, for whatever reason but a lost lease, what is in flight is waited for and counted.
//!
//! A long listing is cut into ranges that are listed at the same time, since one listing alone is slower than the
//! deletes. As a range is a guess at an order, one plain listing goes over everything afterwards.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::resume_unwind,
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::Instrument;

use super::{
    End, Go,
    lane::{Lane, Number, Stays, Unsorted},
    range::{Range, Weight},
    settle::{Cut, Order, Place, Settled},
    tried::{Tried, has_gone, is_passing},
};
use crate::{
    domain::{
        outcome::{BatchOutcome, KeyFailure, KeyOutcome, ObjectRef},
        progress::Progress,
    },
    failpoint,
    objects::{ObjectEntry, ObjectsError, Page, flow::Pass},
    purge::{Budget, PurgeError, Purger, claim::Claimed},
};

/// Ranges of one location at a time. Each is in the checkpoint.
const MOST_LANES: usize = 64;

/// Listings in flight.
const LISTINGS: usize = 16;

/// Pages that are listed, or about to be, and not sent: so many, and one for each delete that may be in flight.
const AHEAD: usize = 4;

/// Which lane.
type LaneId = u32;

/// A batch that was listed.
struct Listed {
    lane: LaneId,
    entries: Vec<ObjectEntry>,
}

/// Which batch of which lane an object is in, and what it counts for.
#[derive(Clone, Copy)]
struct Origin {
    lane: LaneId,
    number: Number,
    weight: Weight,
}

/// A batch that was answered.
struct Answered {
    lane: LaneId,
    number: Number,
    /// In the order of the objects.
    weights: Vec<Weight>,
    answer: BatchOutcome,
    took: Duration,
}

/// A page that was listed, or was not.
struct Fetched {
    lane: LaneId,
    page: Result<Page, ObjectsError>,
    took: Duration,
}

/// One location being emptied.
pub(super) struct Pipeline<'a> {
    purger: &'a Purger,
    place: &'a Place,
    claimed: &'a mut Claimed,
    budget: &'a Budget,
    lanes: BTreeMap<LaneId, Lane>,
    next_lane: LaneId,
    /// Whether the listing was cut into ranges.
    is_split: bool,
    /// Lanes whose next page is being fetched.
    pages: JoinSet<Fetched>,
    fetching: Vec<LaneId>,
    ready: VecDeque<Listed>,
    deletes: JoinSet<Answered>,
    /// How long the last delete took that did its work, and had some.
    delete_takes: Option<Duration>,
    /// What first tries have not settled, and where it belongs.
    tried: Tried,
    origins: HashMap<ObjectRef, Origin>,
    /// What the metrics know.
    reported: Progress,
    /// Why no further batch leaves.
    end: Option<End>,
}

impl<'a> Pipeline<'a> {
    /// Goes on with a location, or begins with it.
    pub(super) fn over(purger: &'a Purger, place: &'a Place, claimed: &'a mut Claimed, budget: &'a Budget) -> Self {
        let mut ranges = std::mem::take(&mut claimed.checkpoint.ranges);
        if ranges.is_empty() {
            ranges.push(Range::default());
        }
        let reported = claimed.progress;
        let mut this = Self {
            purger,
            place,
            claimed,
            budget,
            lanes: BTreeMap::new(),
            next_lane: 0,
            is_split: ranges.len() > 1,
            pages: JoinSet::new(),
            fetching: Vec::new(),
            ready: VecDeque::new(),
            deletes: JoinSet::new(),
            delete_takes: None,
            tried: Tried::default(),
            origins: HashMap::new(),
            reported,
            end: None,
        };
        ranges.into_iter().for_each(|range| this.open(range));
        this
    }

    fn open(&mut self, range: Range) {
        self.lanes.insert(self.next_lane, Lane::new(range));
        self.next_lane += 1;
    }

    /// Works until nothing is left, or the slice has to end. What was in flight is counted then, whatever happened.
    pub(super) async fn run(mut self) -> Result<End, PurgeError> {
        let mut worked = self.work().await;
        if matches!(worked, Err(PurgeError::LeaseLost)) {
            return worked;
        }
        self.pages.abort_all();
        while let Some(answered) = self.deletes.join_next().await {
            self.take_answer(come_back(answered));
        }
        // the time alone cuts no object's tries short, or a slice that is too short for them would never come to an end
        if matches!(worked, Ok(End::OutOfTime | End::Unsorted)) && !self.budget.stop.is_cancelled() {
            worked = self.try_again().await.and(worked);
        }
        if self.lanes.is_empty() && worked.is_ok() {
            return Ok(if self.needs_sweep() { End::Split } else { End::Listed });
        }
        self.write().await?;
        worked
    }

    /// A range is a guess at the order of the keys. What stays behind is for the next pass, which lists anew.
    fn needs_sweep(&self) -> bool {
        self.is_split && !self.claimed.checkpoint.is_swept && !self.claimed.progress.has_leftovers()
    }

    async fn work(&mut self) -> Result<End, PurgeError> {
        let mut entering = None;
        loop {
            self.fetch();
            if self.end.is_none() && self.budget.is_spent(self.claimed.has_worked) {
                self.end = Some(End::OutOfTime);
            }
            if let Some(end) = self.end {
                return Ok(end);
            }
            if self.tried.passing.len() >= self.place.store.batch_size || self.is_idle() {
                // out of the row: nobody looks at it meanwhile, and whoever is first in it holds up all the others
                entering = None;
                self.try_again().await?;
            }
            if entering.is_none() {
                self.part_next();
            }
            if let Some(next) = self.ready.front().filter(|_| entering.is_none()) {
                let (place, keys) = (self.place, next.entries.len());
                // made once, so that it keeps its place in the row
                entering = Some(Box::pin(async move { place.enter(keys).await }));
            }
            let is_waiting = entering.is_some() || !self.deletes.is_empty() || !self.pages.is_empty();
            tokio::select! {
                biased;
                Some(answered) = self.deletes.join_next() => {
                    self.take_answer(come_back(answered));
                }
                Some(fetched) = self.pages.join_next() => {
                    let Fetched { lane, page, took } = come_back(fetched);
                    failpoint::at("empty.listed");
                    if self.take_page(lane, page?, took).is_err() {
                        return Ok(End::Unsorted);
                    }
                }
                // a row at the gate can be long, and so can an answer
                () = self.budget.is_over(self.claimed.has_worked), if is_waiting => self.end = Some(End::OutOfTime),
                pass = async { entering.as_mut().expect("looked at").await }, if entering.is_some() => {
                    entering = None;
                    self.send(pass?).await?;
                }
                // without a lane that is left, or it goes on from the checkpoint
                else => return Ok(End::OutOfTime),
            }
        }
    }

    /// Whether nothing is under way, and nothing will be by itself.
    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.deletes.is_empty() && self.pages.is_empty()
    }

    /// Begins as many listings as are needed to keep the deletes busy.
    fn fetch(&mut self) {
        let ahead = AHEAD + usize::try_from(self.place.gate.allowed()).unwrap_or(usize::MAX);
        let idle: Vec<LaneId> = self.lanes.keys().copied().filter(|id| !self.fetching.contains(id)).collect();
        for id in idle {
            // a batch may be smaller than a page
            let waiting = self.ready.iter().map(|batch| batch.entries.len()).sum::<usize>() / self.place.batch_size();
            if self.fetching.len() >= LISTINGS || waiting + self.fetching.len() >= ahead {
                return;
            }
            let Some(after) = self.lanes[&id].to_list() else { continue };
            let (place, after) = (self.place.clone(), after.cloned());
            self.fetching.push(id);
            let fetch = async move {
                let asked = Instant::now();
                let page = place.list(after.as_ref()).await;
                Fetched { lane: id, page, took: asked.elapsed() }
            };
            self.pages.spawn(fetch.in_current_span());
        }
    }

    /// Whether deletes wait for listings, rather than the other way round: more could be in flight, by far, or by one where a
    /// page takes as long as a delete. A store that takes long to delete lists fast enough in one go, and each further
    /// listing would take from what it deletes with.
    fn is_starved(&self, page_took: Duration) -> bool {
        let allowed = usize::try_from(self.place.gate.allowed()).unwrap_or(usize::MAX);
        let is_late = self.delete_takes.is_some_and(|took| took < 2 * page_took) && self.deletes.len() < allowed;
        self.ready.is_empty() && self.place.gate.is_wide() && (is_late || 2 * self.deletes.len() < allowed)
    }

    /// Takes a page, and cuts what follows it into ranges where deletes wait for it.
    fn take_page(&mut self, id: LaneId, page: Page, took: Duration) -> Result<(), Unsorted> {
        self.fetching.retain(|fetching| *fetching != id);
        let may_split = self.is_starved(took) && !self.claimed.checkpoint.is_swept && self.lanes.len() < MOST_LANES / 2;
        let lane = self.lanes.get_mut(&id).expect("a lane that is being listed is not done");
        let batches = lane.take(page, self.place.batch_size())?;
        let prefix = self.place.location.prefix.as_str().len();
        let ranges = if may_split { lane.split(prefix) } else { Vec::new() };
        self.is_split |= !ranges.is_empty();
        self.ready.extend(batches.into_iter().map(|entries| Listed { lane: id, entries }));
        ranges.into_iter().for_each(|range| self.open(range));
        self.settle_lanes();
        Ok(())
    }

    /// Parts the next batch where the store takes fewer at once by now. Whether it did.
    fn part_next(&mut self) -> bool {
        let most = self.place.batch_size();
        let Some(Listed { lane: id, entries }) = self.ready.pop_front_if(|next| next.entries.len() > most) else {
            return false;
        };
        let lane = self.lanes.get_mut(&id).expect("a lane that has a batch to send is not done");
        for entries in lane.part(entries, most).into_iter().rev() {
            self.ready.push_front(Listed { lane: id, entries });
        }
        true
    }

    /// Announces the next batch, and those that find a place together with it; then sends them.
    async fn send(&mut self, pass: Pass) -> Result<(), PurgeError> {
        if self.part_next() {
            // as many were refused while it waited for its place, which was for all of them
            return Ok(());
        }
        let mut leaving = Vec::new();
        let mut pass = Some(pass);
        loop {
            self.part_next();
            let Some(next) = self.ready.front() else { break };
            let Some(pass) = pass.take().or_else(|| self.place.gate.try_enter(next.entries.len())) else { break };
            let Some(Listed { lane, entries }) = self.ready.pop_front() else { break };
            let number = self.lanes.get_mut(&lane).expect("it is not done").announce(&entries);
            leaving.push((pass, lane, number, entries));
        }
        // a crash from here on leaves batches that are announced and not counted: their range is listed again
        if let Go::Paused = self.write().await? {
            // not sent, but announced: whoever goes on finds all of them
            self.end = Some(End::Paused);
            return Ok(());
        }
        failpoint::at("empty.written");
        self.purger.still_ours(&self.claimed.lease).await?;
        self.claimed.has_worked = true;
        for (pass, lane, number, entries) in leaving {
            let place = self.place.clone();
            let delete = async move {
                let weights = entries.iter().map(Weight::from).collect();
                let objects: Vec<_> = entries.into_iter().map(|entry| entry.object).collect();
                let asked = Instant::now();
                let answer = place.delete(&objects).await;
                pass.heard(&answer);
                Answered { lane, number, weights, answer, took: asked.elapsed() }
            };
            self.deletes.spawn(delete.in_current_span());
        }
        Ok(())
    }

    /// Counts what a first try has settled, and keeps the rest to be tried again.
    fn take_answer(&mut self, answered: Answered) {
        failpoint::at("empty.answered");
        let Answered { lane, number, weights, answer, took } = answered;
        if 2 * weights.len() >= self.place.batch_size() && answer.iter().all(|(_, outcome)| outcome.is_gone()) {
            self.delete_takes = Some(took);
        }
        self.tried.hear(&answer);
        let others_went = has_gone(&answer);
        for ((object, outcome), weight) in answer.into_outcomes().into_iter().zip(weights) {
            let origin = Origin { lane, number, weight };
            if is_passing(&outcome) {
                self.origins.insert(object.clone(), origin);
                self.tried.keep(object, outcome, others_went);
            } else {
                self.count(object, outcome, None, origin);
            }
        }
        self.settle_lanes();
        // counted here alone: after a crash before the next write, what has gone is found gone
        failpoint::at("empty.counted");
    }

    /// Tries again what the first tries have not settled, if anything is.
    async fn try_again(&mut self) -> Result<(), PurgeError> {
        let tried = std::mem::take(&mut self.tried);
        if tried.passing.is_empty() {
            return Ok(());
        }
        let settled = self.purger.settle(self.place, &self.claimed.lease, tried, Order::Sorted, self.budget).await?;
        let Settled { outcomes, lost_answer, cut } = settled;
        for (object, outcome) in outcomes {
            let origin = self.origins.remove(&object).expect("each came from a batch");
            self.count(object, outcome, lost_answer.as_ref(), origin);
        }
        self.settle_lanes();
        match cut {
            None => Ok(()),
            Some(Cut::Away(error)) => Err(error.into()),
            Some(Cut::OutOfTime) => {
                // announced and not counted: whoever goes on finds them
                self.end = Some(End::OutOfTime);
                Ok(())
            }
        }
    }

    fn count(&mut self, object: ObjectRef, outcome: KeyOutcome, unanswered: Option<&KeyFailure>, from: Origin) {
        let Origin { lane, number, weight } = from;
        let lane = self.lanes.get_mut(&lane).expect("a lane is not done before all of it is settled");
        if outcome.is_gone() {
            self.claimed.progress.count(&outcome, weight.bytes, weight.kind);
            lane.gone(number, weight);
        } else {
            lane.stays(number, object, weight, Stays { outcome, unanswered: unanswered.cloned() });
        }
    }

    /// Moves every lane on over what is settled, and closes those that have come to their end.
    fn settle_lanes(&mut self) {
        let Claimed { progress, checkpoint, .. } = &mut *self.claimed;
        self.lanes.values_mut().for_each(|lane| lane.settle(progress, checkpoint));
        for (_, lane) in self.lanes.extract_if(.., |_, lane| lane.is_done()) {
            lane.close(progress);
        }
        let counted = progress.since(&self.reported);
        self.purger.metrics.purges().objects(&self.place.location.store, &counted);
        self.reported = *progress;
    }

    async fn write(&mut self) -> Result<Go, PurgeError> {
        self.claimed.checkpoint.ranges = self.lanes.values().flat_map(Lane::ranges).collect();
        self.purger.write_checkpoint(self.claimed).await
    }
}

/// What a task of ours came to; its panic is ours, too.
fn come_back<T>(joined: Result<T, JoinError>) -> T {
    joined.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}
