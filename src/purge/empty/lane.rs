//! One range on its way from listed to gone: what was announced, what of it is settled, and where the next worker goes on.
//!
//! Invariant: at any moment [`Lane::ranges`], written down together with the progress, is enough to go on and to count
//! every object exactly once. A batch is announced before it is sent: how many objects it has, not which. Whoever goes on
//! lists the range anew; of the objects that were announced and not settled those that still show are sent again and
//! counted by their answer, and the others have gone. That holds while a store lists its keys in their order; one that
//! does not is not emptied this way.

use std::collections::{HashSet, VecDeque};

use super::range::{Owed, Range, Weight};
use crate::{
    domain::{
        outcome::{KeyFailure, KeyOutcome, ObjectRef},
        progress::Progress,
    },
    objects::{Cursor, ObjectEntry, Page},
    purge::checkpoint::{Checkpoint, Staying},
};

/// A page that is not in the order of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsorted;

/// Which batch of a lane, counted from its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

/// A batch that was announced.
#[derive(Debug)]
struct Batch {
    last: Cursor,
    /// Objects that are not gone.
    left: Owed,
    /// Of those, how many nothing is known of yet.
    open: u64,
    staying: Vec<(ObjectRef, Weight, Stays)>,
}

/// An object that stays behind for this pass.
#[derive(Debug, Clone)]
pub(super) struct Stays {
    /// `Failed` or `Unknown`.
    pub(super) outcome: KeyOutcome,
    /// Why the last answer that should have named it was lost.
    pub(super) unanswered: Option<KeyFailure>,
}

/// A range that is being emptied.
#[derive(Debug)]
pub(super) struct Lane {
    /// Everything up to here is settled and counted.
    after: Option<Cursor>,
    /// Where the next page begins.
    next: Option<Cursor>,
    until: Option<String>,
    /// Whether it was listed to its end.
    is_listed: bool,
    /// Batches that were listed and not announced.
    waiting: usize,
    /// Announced by whoever was here before, and not seen again so far.
    owed: Owed,
    /// The versions of the last key of a page that may go on in the next.
    carried: Vec<ObjectEntry>,
    batches: VecDeque<Batch>,
    /// The number of the first of them.
    first: u64,
    /// The ends of the last page.
    ends: Option<(String, String)>,
    pages: u32,
}

impl Lane {
    pub(super) fn new(range: Range) -> Self {
        let Range { after, until, owed } = range;
        Self {
            next: after.clone(),
            after,
            until,
            owed,
            is_listed: false,
            waiting: 0,
            carried: Vec::new(),
            batches: VecDeque::new(),
            first: 0,
            ends: None,
            pages: 0,
        }
    }

    /// Where the next page begins; `None` when there is none.
    pub(super) fn to_list(&self) -> Option<Option<&Cursor>> {
        (!self.is_listed).then_some(self.next.as_ref())
    }

    /// Takes a page, and gives it back in batches that can be announced.
    pub(super) fn take(&mut self, page: Page, batch_size: usize) -> Result<Vec<Vec<ObjectEntry>>, Unsorted> {
        let Page { entries, next } = page;
        let before = self.next.as_ref().map(|cursor| (cursor.key.as_str(), cursor.version.is_some()));
        let fits = |first: &ObjectEntry| match before {
            Some((key, true)) => first.object.key.as_str() >= key,
            Some((key, false)) => first.object.key.as_str() > key,
            None => true,
        };
        if !entries.first().is_none_or(fits) || !entries.is_sorted_by(in_order) {
            return Err(Unsorted);
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.ends = Some((first.object.key.clone(), last.object.key.clone()));
            self.pages += 1;
        }
        let mut entries = [std::mem::take(&mut self.carried), entries].concat();
        let is_beyond = |key: &str| self.until.as_deref().is_some_and(|until| key > until);
        let inside = entries.partition_point(|entry| !is_beyond(&entry.object.key));
        self.is_listed = next.is_none() || inside < entries.len();
        entries.truncate(inside);
        drop_repeated(&mut entries);
        self.next = next;
        if !self.is_listed {
            self.carried = last_versions(&mut entries);
        }
        let batches = in_batches(entries, batch_size);
        self.waiting += batches.len();
        Ok(batches)
    }

    /// Parts a batch that was not announced into smaller ones.
    pub(super) fn part(&mut self, batch: Vec<ObjectEntry>, batch_size: usize) -> Vec<Vec<ObjectEntry>> {
        let batches = in_batches(batch, batch_size);
        self.waiting += batches.len();
        self.waiting -= 1;
        batches
    }

    /// The ranges to cut this one into, when it goes on for more than a few pages. This one ends at the first cut.
    pub(super) fn split(&mut self, prefix: usize) -> Vec<Range> {
        let is_long = self.pages >= 2 && !self.is_listed && self.owed.is_none();
        let Some((first, last)) = self.ends.as_ref().filter(|_| is_long) else { return Vec::new() };
        let cuts = super::range::cuts(prefix, first, last, self.until.as_deref());
        let mut ranges = Vec::with_capacity(cuts.len());
        for cut in cuts.into_iter().rev() {
            let after = Some(Cursor { key: cut.clone(), version: None });
            ranges.push(Range { after, until: self.until.replace(cut), owed: Owed::default() });
        }
        ranges.reverse();
        ranges
    }

    /// Announces a batch, in the order in which they were listed; to be written down before it is sent.
    pub(super) fn announce(&mut self, batch: &[ObjectEntry]) -> Number {
        let objects = batch.len() as u64;
        let left = batch.iter().fold(Owed::default(), |left, entry| left.and(Weight::from(entry).into()));
        self.owed = self.owed.less(left);
        self.waiting -= 1;
        let last = batch.last().map(ObjectEntry::cursor).expect("no batch is empty");
        self.batches.push_back(Batch { last, left, open: objects, staying: Vec::new() });
        Number(self.first + self.batches.len() as u64 - 1)
    }

    /// An object of a batch is gone.
    pub(super) fn gone(&mut self, number: Number, weight: Weight) {
        let batch = self.batch(number);
        batch.open -= 1;
        batch.left = batch.left.less(weight.into());
    }

    /// An object of a batch stays behind.
    pub(super) fn stays(&mut self, number: Number, object: ObjectRef, weight: Weight, why: Stays) {
        let batch = self.batch(number);
        batch.open -= 1;
        batch.staying.push((object, weight, why));
    }

    fn batch(&mut self, number: Number) -> &mut Batch {
        let index = usize::try_from(number.0 - self.first).ok();
        index.and_then(|index| self.batches.get_mut(index)).expect("a batch leaves when all of it is settled")
    }

    /// Moves on over the batches that are settled, and counts what stays behind of them. At the end of the range counts
    /// what was announced before and did not show again.
    pub(super) fn settle(&mut self, progress: &mut Progress, checkpoint: &mut Checkpoint) {
        while let Some(batch) = self.batches.pop_front_if(|batch| batch.open == 0) {
            self.first += 1;
            for (object, Weight { bytes, kind }, why) in batch.staying {
                progress.count(&why.outcome, bytes, kind);
                if let Some(staying) = Staying::of(&why.outcome, why.unanswered.as_ref()) {
                    checkpoint.leave(&object, staying);
                }
            }
            self.after = Some(batch.last);
        }
    }

    /// Counts what was announced before and did not show again: the range was listed to its end, and all of it sent.
    pub(super) fn close(self, progress: &mut Progress) {
        let Owed { objects, bytes, versions, markers } = self.owed;
        progress.count_absent(objects, versions, markers, bytes);
    }

    /// Whether nothing is left to list, to announce or to settle.
    pub(super) fn is_done(&self) -> bool {
        self.is_listed && self.waiting == 0 && self.batches.is_empty()
    }

    /// What is left to do, for whoever goes on.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> {
        let rest = |after| Range { after, until: self.until.clone(), owed: Owed::default() };
        let left = self.batches.iter().fold(self.owed, |owed, batch| owed.and(batch.left));
        let (first, second) = match self.batches.back() {
            // what was owed before may be anywhere up to the end
            _ if !self.owed.is_none() => (Range { owed: left, ..rest(self.after.clone()) }, None),
            Some(last) if !left.is_none() => {
                let until = Some(last.last.key.clone());
                let sent = Range { after: self.after.clone(), until, owed: left };
                let is_all = self.is_listed && self.waiting == 0;
                (sent, (!is_all).then(|| rest(Some(last.last.clone()))))
            }
            _ => (rest(self.after.clone()), None),
        };
        std::iter::once(first).chain(second)
    }
}

/// Whether one entry may come before the other: by key, and several of a key only where they are versions of it.
fn in_order(a: &ObjectEntry, b: &ObjectEntry) -> bool {
    let (a, b) = (&a.object, &b.object);
    if b.version.is_some() { a.key <= b.key } else { a.key < b.key }
}

/// Keeps one of each: a version that a page shows twice is gone once. Keys alone never repeat: they are in order.
fn drop_repeated(entries: &mut Vec<ObjectEntry>) {
    if entries.windows(2).any(|pair| pair[0].object.key == pair[1].object.key) {
        let mut seen = HashSet::with_capacity(entries.len());
        entries.retain(|entry| seen.insert(entry.object.clone()));
    }
}

/// Takes the versions of the last key, unless there is no other key before them.
fn last_versions(entries: &mut Vec<ObjectEntry>) -> Vec<ObjectEntry> {
    let Some(last) = entries.last().filter(|last| last.object.version.is_some()) else { return Vec::new() };
    match entries.iter().rposition(|entry| entry.object.key != last.object.key) {
        Some(before) => entries.split_off(before + 1),
        None => Vec::new(),
    }
}

/// Batches that do not part the versions of a key, unless it has more than go into one.
fn in_batches(mut entries: Vec<ObjectEntry>, batch_size: usize) -> Vec<Vec<ObjectEntry>> {
    let mut batches = Vec::with_capacity(entries.len().div_ceil(batch_size));
    while entries.len() > batch_size {
        let differs = |index: &usize| entries[*index].object.key != entries[*index - 1].object.key;
        let cut = (1..=batch_size).rev().find(differs).unwrap_or(batch_size);
        let rest = entries.split_off(cut);
        batches.push(std::mem::replace(&mut entries, rest));
    }
    if !entries.is_empty() {
        batches.push(entries);
    }
    batches
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::outcome::EntryKind;

    const BYTES: u64 = 7;
    const WEIGHT: Weight = Weight { bytes: BYTES, kind: EntryKind::Current };
    const PAGE: usize = 5;

    /// The first version of a key is an older one, the others are not.
    fn kind_of(object: &ObjectRef) -> EntryKind {
        if object.version.as_deref() == Some("v0") { EntryKind::Older } else { EntryKind::Current }
    }

    fn entry(key: &str, version: Option<u32>) -> ObjectEntry {
        let version = version.map(|n| format!("v{n}"));
        ObjectEntry { object: ObjectRef { key: key.into(), version }, size: BYTES, kind: EntryKind::Current }
    }

    /// What a store holds, in its order.
    type Held = BTreeSet<ObjectRef>;

    fn page(held: &Held, after: Option<&Cursor>) -> Page {
        let is_after = |object: &&ObjectRef| match after {
            Some(Cursor { key, version: None }) => object.key > *key,
            Some(Cursor { key, version }) => (&object.key, &object.version) > (key, version),
            None => true,
        };
        let mut rest = held.iter().filter(is_after);
        let entries: Vec<_> = rest
            .by_ref()
            .take(PAGE)
            .map(|object| ObjectEntry { object: object.clone(), size: BYTES, kind: kind_of(object) })
            .collect();
        let next = rest.next().and(entries.last()).map(ObjectEntry::cursor);
        Page { entries, next }
    }

    /// What happens to a worker next.
    #[derive(Debug, Clone)]
    enum Step {
        List(usize),
        Announce(usize),
        /// The store carries one out, and the worker does not know.
        CarryOut(usize),
        /// The answer arrives.
        Answer(usize),
        Dies,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..9usize).prop_map(Step::List),
            4 => (0..9usize).prop_map(Step::Announce),
            2 => (0..9usize).prop_map(Step::CarryOut),
            4 => (0..9usize).prop_map(Step::Answer),
            1 => Just(Step::Dies),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// A worker on some ranges, and what is written down of it.
    struct Worker {
        lanes: Vec<Lane>,
        ready: Vec<(usize, Vec<ObjectEntry>)>,
        sent: Vec<(usize, Number, Vec<ObjectEntry>)>,
        progress: Progress,
        checkpoint: Checkpoint,
        batch_size: usize,
        written: (Vec<Range>, Progress),
    }

    impl Worker {
        fn new(ranges: Vec<Range>, progress: Progress, batch_size: usize) -> Self {
            let written = (ranges.clone(), progress);
            let lanes = ranges.into_iter().map(Lane::new).collect();
            let checkpoint = Checkpoint::default();
            Self { lanes, ready: Vec::new(), sent: Vec::new(), progress, checkpoint, batch_size, written }
        }

        fn write(&mut self) {
            self.written = (self.lanes.iter().flat_map(Lane::ranges).collect(), self.progress);
        }

        fn step(&mut self, step: &Step, held: &mut Held) {
            match step {
                Step::List(n) => {
                    let n = n % self.lanes.len();
                    let waits = self.ready.iter().any(|(lane, _)| *lane == n);
                    let Some(after) = self.lanes[n].to_list().filter(|_| !waits) else { return };
                    let page = page(held, after);
                    let batches = self.lanes[n].take(page, self.batch_size).expect("in order");
                    self.ready.extend(batches.into_iter().map(|batch| (n, batch)));
                    for range in self.lanes[n].split(0) {
                        self.lanes.push(Lane::new(range));
                    }
                }
                Step::Announce(n) if !self.ready.is_empty() => {
                    // in the order of each lane
                    let lane = self.ready[n % self.ready.len()].0;
                    let first = self.ready.iter().position(|(of, _)| *of == lane).expect("it is there");
                    let (lane, batch) = self.ready.remove(first);
                    let number = self.lanes[lane].announce(&batch);
                    self.write();
                    self.sent.push((lane, number, batch));
                }
                Step::CarryOut(n) if !self.sent.is_empty() => {
                    let (_, _, batch) = &self.sent[n % self.sent.len()];
                    batch.iter().for_each(|entry| _ = held.remove(&entry.object));
                }
                Step::Answer(n) if !self.sent.is_empty() => {
                    let (lane, number, batch) = self.sent.remove(n % self.sent.len());
                    for entry in batch {
                        held.remove(&entry.object);
                        self.progress.count(&KeyOutcome::Deleted, entry.size, entry.kind);
                        self.lanes[lane].gone(number, Weight::from(&entry));
                    }
                    self.lanes[lane].settle(&mut self.progress, &mut self.checkpoint);
                }
                Step::Announce(_) | Step::CarryOut(_) | Step::Answer(_) | Step::Dies => {}
            }
        }

        fn finish(mut self, held: &mut Held) -> Progress {
            for _ in 0..10_000 {
                if self.lanes.iter().all(Lane::is_done) {
                    self.lanes.into_iter().for_each(|lane| lane.close(&mut self.progress));
                    return self.progress;
                }
                for n in 0..self.lanes.len() {
                    self.step(&Step::List(n), held);
                }
                self.step(&Step::Announce(0), held);
                self.step(&Step::Answer(0), held);
            }
            panic!("it does not end");
        }
    }

    fn held(keys: &BTreeSet<u16>, versions: u32) -> Held {
        let of = |key: &u16| {
            let key = format!("{key:04}");
            let versions: Vec<_> = if versions == 0 { vec![None] } else { (0..versions).map(Some).collect() };
            versions.into_iter().map(move |version| entry(&key, version).object)
        };
        keys.iter().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn whenever_workers_die_every_object_is_counted_once(
            keys in prop::collection::btree_set(0..400u16, 0..80),
            versions in 0..3u32,
            batch_size in 2..8usize,
            steps in steps(),
        ) {
            let mut held = held(&keys, versions);
            let all = held.len() as u64;
            let mut worker = Worker::new(vec![Range::default()], Progress::default(), batch_size);
            for step in steps {
                if matches!(step, Step::Dies) {
                    let (ranges, progress) = worker.written;
                    worker = Worker::new(ranges, progress, batch_size);
                } else {
                    worker.step(&step, &mut held);
                }
            }
            let progress = worker.finish(&mut held);
            prop_assert!(held.is_empty(), "{held:?}");
            prop_assert_eq!((progress.objects_listed, progress.objects_gone()), (all, all));
            prop_assert_eq!(progress.bytes_freed, all * BYTES);
            prop_assert_eq!(progress.versions_gone, if versions > 0 { keys.len() as u64 } else { 0 });
        }
    }

    #[test]
    fn a_page_out_of_order_is_refused() {
        let of = |keys: &[&str]| Page { entries: keys.iter().map(|key| entry(key, None)).collect(), next: None };
        assert!(Lane::new(Range::default()).take(of(&["a/1", "a-b"]), 10).is_err());
        assert!(Lane::new(Range::default()).take(of(&["a", "a"]), 10).is_err());
        let after = Some(Cursor { key: "b".into(), version: None });
        assert!(Lane::new(Range { after, ..Range::default() }).take(of(&["a"]), 10).is_err());
        let versions = Page { entries: vec![entry("a", Some(2)), entry("a", Some(1))], next: None };
        assert_eq!(Lane::new(Range::default()).take(versions, 10).map(|batches| batches.len()), Ok(1));
    }

    #[test]
    fn a_version_that_is_listed_twice_is_waited_for_once() {
        let entries = [("a", 2), ("a", 1), ("a", 2), ("b", 1), ("b", 1)].map(|(key, n)| entry(key, Some(n)));
        let mut lane = Lane::new(Range::default());
        let batches = lane.take(Page { entries: entries.into(), next: None }, 10).expect("in order");
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
        let number = lane.announce(&batches[0]);
        // a delete answers once for each different object
        let answered: BTreeSet<_> = batches[0].iter().map(|entry| &entry.object).collect();
        answered.iter().for_each(|_| lane.gone(number, WEIGHT));
        lane.settle(&mut Progress::default(), &mut Checkpoint::default());
        assert!(lane.is_done());
    }

    #[test]
    fn what_stays_behind_is_counted_when_everything_before_it_is_settled() {
        let keys = ["a", "b", "c", "d"].map(|key| entry(key, None));
        let page = Page { entries: keys.to_vec(), next: None };
        let mut lane = Lane::new(Range::default());
        let batches = lane.take(page, 2).expect("in order");
        let numbers: Vec<_> = batches.iter().map(|batch| lane.announce(batch)).collect();
        let (mut progress, mut checkpoint) = (Progress::default(), Checkpoint::default());
        let stays = Stays { outcome: KeyOutcome::Unknown, unanswered: None };
        lane.stays(numbers[1], keys[2].object.clone(), WEIGHT, stays);
        lane.gone(numbers[1], WEIGHT);
        lane.settle(&mut progress, &mut checkpoint);
        assert_eq!(progress.objects_unknown, 0, "whoever goes on would see it again, and count it again");
        let owed: u64 = lane.ranges().map(|range| range.owed.objects).sum();
        assert_eq!(owed, 3);
        lane.gone(numbers[0], WEIGHT);
        lane.gone(numbers[0], WEIGHT);
        lane.settle(&mut progress, &mut checkpoint);
        assert_eq!((progress.objects_unknown, checkpoint.leftovers.len()), (1, 1));
        assert!(lane.is_done());
    }
}
