//! One range, from its pages to everything settled, with a store that deletes whatever it is asked to.

#[path = "../../src/purge/empty/lane.rs"]
mod lane;
#[path = "../../src/purge/empty/range.rs"]
pub(super) mod range;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use reprieve::domain::outcome::KeyOutcome;
use reprieve::domain::progress::Progress;
use reprieve::objects::{MAX_BATCH, Page};

use self::lane::Lane;
use self::range::{Range, Weight};
use super::checkpoint::Checkpoint;

/// Takes the pages, announces their batches, writes down what is left as often, and settles every object.
fn empty(pages: Vec<Page>) -> Progress {
    let mut lane = Lane::new(Range::default());
    let (mut progress, mut checkpoint) = (Progress::default(), Checkpoint::default());
    for page in pages {
        for batch in lane.take(page, MAX_BATCH).expect("in the order of the keys") {
            let number = lane.announce(&batch);
            checkpoint.ranges = lane.ranges().collect();
            black_box(serde_json::to_value(&checkpoint).expect("plain data"));
            for entry in &batch {
                progress.count(&KeyOutcome::Deleted, entry.size, entry.kind);
                lane.gone(number, Weight::from(entry));
            }
            lane.settle(&mut progress, &mut checkpoint);
        }
    }
    assert!(lane.is_done(), "or less would be measured");
    progress
}

pub(crate) fn bookkeeping(c: &mut Criterion, pages: &[Page]) {
    let entries: usize = pages.iter().map(|page| page.entries.len()).sum();
    assert_eq!(empty(pages.to_vec()).objects_deleted, entries as u64);
    let mut group = c.benchmark_group("bookkeeping");
    group.throughput(Throughput::Elements(entries as u64));
    group.bench_function("from pages to settled", |b| {
        b.iter_batched(|| pages.to_vec(), empty, BatchSize::SmallInput);
    });
    let key = |page: &Page, at: usize| page.entries[at].object.key.clone();
    let (first, last) = (key(&pages[0], 0), key(&pages[0], pages[0].entries.len() - 1));
    let prefix = first.find('/').expect("a prefix ends in one") + 1;
    group.throughput(Throughput::Elements(1));
    group.bench_function("cut a range", |b| {
        b.iter(|| range::cuts(black_box(prefix), black_box(&first), black_box(&last), None));
    });
    group.finish();
}
